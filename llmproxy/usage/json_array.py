"""An answer that is a JSON array which grows by an object at a time: so Gemini streams, unless asked for other events.

What is held is the object that is not whole yet, up to :data:`~llmproxy.usage.sse.LIMIT`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llmproxy.usage.json_text import end_of_object
from llmproxy.usage.model import Reading, Source
from llmproxy.usage.reader import Event, Reader, Stream
from llmproxy.usage.sse import LIMIT

_BETWEEN = re.compile(r"[\s,\[\]]+")


class JSONArray(Stream):
    """Takes an array of objects apart; an error may come as an object without an array around it."""

    def __init__(self, make_reader: Callable[[], Reader]) -> None:
        super().__init__(make_reader)
        self._held = bytearray()
        self._next_try = 0
        self._given_up: Source | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._given_up:
            return
        self._held += data
        # An object in many pieces is tried not for each of them, but each time that there is twice as much of it.
        if len(self._held) >= self._next_try or len(self._held) > LIMIT:
            self._take()
            self._next_try = 2 * len(self._held)

    def close(self, whole: bool) -> Reading:
        """Take note that nothing more comes."""
        self._take()
        return self.reader.reading(whole and not self._held and self._given_up is None, self._given_up)

    def _take(self) -> None:
        """Take the objects that are whole."""
        held = self._held.decode("latin-1")
        at = _next_element(held, 0)
        while at < len(held):
            end = end_of_object(held, at) if held[at] == "{" else at
            if end == at:
                self._given_up = "undecodable"
            elif (len(held) if end is None else end) - at > LIMIT:
                self._given_up = "too_large"
            if end is None or self._given_up:
                break
            element = bytes(self._held[at:end])
            if not self.reader.ordinary(element):
                self.reader.event(Event(b"", element))
            at = _next_element(held, end)
        self._held = bytearray() if self._given_up else self._held[at:]


def _next_element(text: str, at: int) -> int:
    between = _BETWEEN.match(text, at)
    return between.end() if between else at
