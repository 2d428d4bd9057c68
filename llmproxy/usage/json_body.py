"""An answer that is one JSON document: a few kilobytes, mostly, and tens of megabytes with embeddings or images in it.

Only its start and its end are held. A document that fits into both is parsed; of a larger one, the members of the object at
either end are, and usage stands at one of them in every API there is. What is in the middle is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable

from llmproxy.usage.json_text import members_at_end, members_at_start, parse
from llmproxy.usage.model import Reading
from llmproxy.usage.reader import Body, Reader

START = 64 * 2**10  # bytes
END = 64 * 2**10  # bytes; twice that is held, so that it is cut back only now and then

_MOST_PIECES = 256  # each of which costs some 40 bytes more than its content


class JSONBody(Body):
    """Takes one JSON document."""

    __slots__ = ("_make_reader", "_pieces", "_size", "_start")

    tells_first_token = False

    def __init__(self, make_reader: Callable[[], Reader]) -> None:
        self._make_reader = make_reader
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
        reader = self._make_reader()
        if self._start:
            reader.cut = True
            reader.answer({**members_at_start(self._start), **members_at_end(held[-END:])})
            unseen = reader.usage() is None and whole
            return reader.reading(whole, "too_large" if unseen else None)
        if not held:  # as the answer to HEAD
            return reader.reading(whole)
        document = parse(held)
        if document is None:
            reader.answer(members_at_start(held[:START]))
            return reader.reading(False, "undecodable" if whole else None)
        if isinstance(document, dict):
            reader.answer(document)
        return reader.reading(whole)

    def _cut_back(self) -> None:
        held = b"".join(self._pieces)
        if len(held) > START + END:
            self._start = self._start or held[:START]
            held = held[-END:]
        self._pieces = [held]
        self._size = len(held)
