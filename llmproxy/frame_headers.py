"""Which frames pass in one direction of a WebSocket, by nothing but their headers (RFC 6455 section 5.2).

For whoever only wants to know that a side said something, this is far cheaper than reading its messages: nothing is unmasked,
copied or held but the start of a header. Pure: no reactor, no I/O.
"""

from __future__ import annotations

_CONTROL = 0x08  # of an opcode: a close, a ping, a pong
_MASKED = 0x80
_LENGTH = 0x7F
_LENGTHS = {126: 2, 127: 8}  # bytes of a length that is told behind
_MASK_BYTES = 4


class DataSeen:
    """Tells, of bytes that come in any pieces, whether some are of a message: of a text, a binary one or a continuation.

    Pings and pongs are not, nor is a close. Of bytes that are no frames it tells something, and never raises.
    """

    __slots__ = ("_head", "_is_data", "_left")

    def __init__(self) -> None:
        self._head = b""  # of a frame, as far as it came
        self._left = 0  # bytes of a frame's content that are still to come
        self._is_data = False  # that frame

    def feed(self, data: bytes) -> bool:
        """Take the next bytes, and tell whether some of them are of a message."""
        if self._head:
            data, before = self._head + data, len(self._head)
            self._head = b""
        else:
            before = 0
        at, end = 0, len(data)
        seen = self._left > 0 and self._is_data and end > 0
        while True:
            at += self._left
            if at >= end:
                self._left = at - end
                return seen
            header = _size_of_header(data, at)
            is_data = not data[at] & _CONTROL
            # What was kept of a header came before, and only now does more of the frame.
            seen = seen or (is_data and end > before)
            if header is None or at + header > end:
                self._head, self._left = data[at:], 0
                return seen
            self._is_data = is_data
            self._left = _size_of_content(data, at)
            at += header


def _size_of_header(data: bytes, at: int) -> int | None:
    """Bytes of the header that begins there; ``None`` where too little of it is there."""
    if at + 2 > len(data):
        return None
    second = data[at + 1]
    return 2 + _LENGTHS.get(second & _LENGTH, 0) + (_MASK_BYTES if second & _MASKED else 0)


def _size_of_content(data: bytes, at: int) -> int:
    """Bytes of content behind the header that begins there, which is whole."""
    told = data[at + 1] & _LENGTH
    more = _LENGTHS.get(told)
    return told if more is None else int.from_bytes(data[at + 2 : at + 2 + more], "big")
