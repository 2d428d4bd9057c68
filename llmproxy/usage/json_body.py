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

_MOST_PIECES = 256  # each of which costs some 40 bytes more than its content


class JSONBody(Body):
    """Takes one JSON document."""

    tells_first_token = False

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self._start = b""  # of a document that is larger than what is held
        self._pieces: list[bytes] = []  # all of it, or what is held behind its start
        self._size = 0  # bytes, of the pieces

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        # Most documents come in a piece or two, which are kept as they are until somebody asks.
        self._pieces.append(data)
        self._size += len(data)
        if self._size > START + END or len(self._pieces) > _MOST_PIECES:
            self._cut_back()

    def close(self, whole: bool) -> Reading:
        """Read it, or what there is of it."""
        held = b"".join(self._pieces)
        if self._start:
            return self._close_large(held[-END:], whole)
        if not held:  # as the answer to HEAD
            return self.reader.reading(whole)
        document = parse(held)
        if document is None:
            self.reader.answer(members_at_start(held[:START]))
            return self.reader.reading(False, "undecodable" if whole else None)
        if isinstance(document, dict):
            self.reader.answer(document)
        return self.reader.reading(whole)

    def _close_large(self, end: bytes, whole: bool) -> Reading:
        self.reader.answer({**members_at_start(self._start), **members_at_end(end)})
        unseen = self.reader.usage() is None and whole
        return self.reader.reading(whole, "too_large" if unseen else None)

    def _cut_back(self) -> None:
        held = b"".join(self._pieces)
        if len(held) > START + END:
            self._start = self._start or held[:START]
            held = held[-END:]
        self._pieces = [held]
        self._size = len(held)
