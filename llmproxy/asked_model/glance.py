"""A glance at the model that a request asks for, for the record only.

It costs next to nothing, holds nothing and decides nothing: what a client *may* ask for is read by
:class:`~llmproxy.asked_model.reader.ModelReader`. Where the body has several answers, there is none.
"""

from __future__ import annotations

import re

# In JSON an unescaped quote is none of a string's, so what is in a prompt does not match; a nested object's key may.
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*"([\x21\x23-\x5b\x5d-\x7e]{1,256})"')
_OVERLAP = 300  # bytes: the longest match


class Glance:
    """Looks at a JSON body, which may come in parts.

    :ivar model: the one model that was named, so far, if it was one.
    """

    __slots__ = ("_several", "_tail", "model")

    def __init__(self) -> None:
        self.model: str | None = None
        self._several = False
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Look at a part."""
        looked_at = self._tail + data if self._tail else data
        if not self._several and looked_at.find(b'"model"') >= 0:
            for found in _MODEL.findall(looked_at):
                self._take(found.decode("ascii"))
        self._tail = looked_at[-_OVERLAP:]

    def _take(self, model: str) -> None:
        if self.model is None and not self._several:
            self.model = model
        elif self.model != model:
            self.model = None
            self._several = True


def glanced(body: bytes) -> str | None:
    """The one model that a whole body names, if it is one."""
    if body.find(b'"model"') < 0:
        return None
    found = set(_MODEL.findall(body))
    return found.pop().decode("ascii") if len(found) == 1 else None
