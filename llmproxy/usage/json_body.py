"""An answer that is one JSON document: a few kilobytes, mostly, and tens of megabytes with embeddings or images in it.

Only its start and its end are held. A document that fits into both is parsed; of a larger one, the members of the object at
either end are, and usage stands at one of them in every API there is. What is in the middle is not looked at.
"""

from __future__ import annotations

from llmproxy.usage.json_text import members_at_end, members_at_start, parse
from llmproxy.usage.model import Reading
from llmproxy.usage.reader import Body, Reader

START = 64 * 2**10  # bytes
END = 64 * 2**10  # bytes; twice that is held, so that it is cut back only now and then


class JSONBody(Body):
    """Takes one JSON document."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self._start = bytearray()
        self._end = bytearray()
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._size += len(data)
        missing = START - len(self._start)
        if missing:
            self._start += data[:missing]
            data = data[missing:]
        self._end += data[-END:]
        if len(self._end) > 2 * END:
            del self._end[:-END]

    def close(self, whole: bool) -> Reading:
        """Read it, or what there is of it."""
        if self._size > START + END:
            return self._close_large(whole)
        if not self._size:  # as the answer to HEAD
            return self.reader.reading(whole)
        document = parse(bytes(self._start + self._end))
        if document is None:
            self.reader.answer(members_at_start(bytes(self._start)))
            return self.reader.reading(False, "undecodable" if whole else None)
        if isinstance(document, dict):
            self.reader.answer(document)
        return self.reader.reading(whole)

    def _close_large(self, whole: bool) -> Reading:
        end = members_at_end(bytes(self._end[-END:]))
        self.reader.answer({**members_at_start(bytes(self._start)), **end})
        unseen = self.reader.usage() is None and whole
        return self.reader.reading(whole, "too_large" if unseen else None)
