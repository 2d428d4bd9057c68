"""The model in a JSON body: the string under the top-level key ``model``, wherever it stands.

ijson reads the grammar; this module decides what its events mean, and when it gets what. That is not at once: its lexer begins
again at the start of a token for each piece of it, which for one long string (an image) in many pieces would take seconds.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import attrs
import ijson  # type: ignore[import-untyped]

from llmproxy.asked_model.answer import Unreadable, agreed, is_model

# Its strictness is part of what is promised here, so it is this backend or none.
_PARSER = ijson.get_backend("yajl2_c")
_CHEAP = 4096  # bytes that may always be read again: some microseconds
_READINGS = (
    4  # how many times over a body may be read in all; of a long token, a quarter is held up, at most a half
)
# What a key, or the end of the body, cannot do without; some parsers take single quotes too.
_SUSPECT = re.compile(rb"""["'}]""")

_SPACE = b" \t\n\r"  # RFC 8259 section 2
_DEEPER = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}
_NOT_JSON = "The body is not JSON in UTF-8, or holds a number that does not fit 64 bits."


@attrs.define
class _Seen:
    """What the events said so far.

    :ivar any: there was an event since this was last reset.
    :ivar ended: the outermost object did.
    """

    model: str | None = None
    any: bool = False
    ended: bool = False


class JSONBody:
    """Reads a JSON body for its model.

    :param max_token: bytes that one string or number may have, about.
    """

    def __init__(self, max_token: int) -> None:
        self._max_token = max_token
        self._seen = _Seen()
        events = _follow(self._seen)
        next(events)
        # Without use_float, a number of 5,000 digits makes the parser hand out no object where one must be.
        self._parser = _PARSER.basic_parse_coro(events, use_float=True)
        self._held = bytearray()
        self._suspended = False
        self._read = 0  # bytes that the parser got
        self._span = 0  # bytes that it got since the piece with the last event: no token under way is longer
        self._work = 0  # bytes that its lexer went through, at most

    @property
    def model(self) -> str | None:
        """The model, as soon as one was named."""
        return self._seen.model

    @property
    def behind(self) -> bool:
        """Whether bytes are held unread that might name a model or end the body; the middle of an image does not."""
        return self._suspended

    def feed(self, data: bytes) -> None:
        """Read on.

        :raise Unreadable: where the model cannot be told any more.
        """
        if self._held or not self._affords(len(data)):
            self._held += data
            self._suspended = self._suspended or _SUSPECT.search(data) is not None
            if self._affords(len(self._held)):
                self.flush()
            elif self._span + len(self._held) > self._max_token:
                raise Unreadable(f"The body holds a string of more than {self._max_token} bytes.")
        else:
            self._parse(data)

    def flush(self) -> None:
        """Read what is held."""
        if self._held:
            data = bytes(self._held)
            self._held.clear()
            self._suspended = False
            self._parse(data)

    def close(self) -> None:
        """Take note that the body is over.

        :raise Unreadable: where it was not whole, or named no model.
        """
        self.flush()
        if not self._read:
            raise Unreadable("The request has no body that could name a model.")
        try:
            self._parser.close()
        except ijson.JSONError:
            raise Unreadable("The body is not whole: its JSON ends in the middle.") from None
        if self._seen.model is None:
            raise Unreadable("The body has no 'model' at its top level.")

    def _affords(self, size: int) -> bool:
        """Whether the lexer may begin the token under way again for some bytes more."""
        return self._span <= _CHEAP or self._work + self._span <= _READINGS * (self._read + size)

    def _parse(self, data: bytes) -> None:
        """Read bytes that may end the body, behind which only white space may come.

        The parser does not see to all of that: it takes the start of a string there for nothing.
        """
        text = data.rstrip(_SPACE)
        if self._seen.ended:
            if text:
                raise Unreadable(_NOT_JSON)
        elif text.endswith(b"}"):
            self._send(data[: len(text) - 1])
            if self._seen.ended:
                raise Unreadable(_NOT_JSON)
            self._send(data[len(text) - 1 :])
        else:
            self._send(data)
            if self._seen.ended:
                raise Unreadable(_NOT_JSON)

    def _send(self, data: bytes) -> None:
        if not data:  # the parser takes that for the end
            return
        self._seen.any = False
        try:
            self._parser.send(data)
        except (ijson.JSONError, UnicodeDecodeError):
            raise Unreadable(_NOT_JSON) from None
        self._read += len(data)
        self._work += self._span + len(data)
        self._span = len(data) if self._seen.any else self._span + len(data)


def _follow(seen: _Seen) -> Generator[None, tuple[str, Any], None]:
    """Take the parser's events, and note the model of the outermost object."""
    depth = 0
    expected = False  # the value that comes next is the model
    while True:
        event, value = yield
        seen.any = True
        if depth == 1:
            if event == "map_key":
                expected = is_model(value)
            elif expected:
                if event != "string":
                    raise Unreadable("The body's 'model' is not a string.")
                seen.model = agreed((value, *((seen.model,) if seen.model else ())))
                expected = False
        elif depth == 0 and event != "start_map":
            raise Unreadable("The body is not a JSON object.")
        depth += _DEEPER.get(event, 0)
        if depth == 0:
            seen.ended = True
