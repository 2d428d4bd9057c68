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
    """Looks at the parts of a JSON body as they pass."""

    def __init__(self) -> None:
        self._tail = b""
        self._found: set[bytes] = set()

    def feed(self, data: bytes) -> None:
        """Look at a part."""
        looked_at = self._tail + data if self._tail else data
        if b'"model"' in looked_at:
            self._found.update(_MODEL.findall(looked_at))
        self._tail = looked_at[-_OVERLAP:]

    @property
    def model(self) -> str | None:
        """The one model that was named, if it was one."""
        return next(iter(self._found)).decode("ascii") if len(self._found) == 1 else None
