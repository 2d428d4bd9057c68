"""Server-sent events (WHATWG HTML, section 9.2) out of a stream that is cut anywhere, for a reader of usage.

Nearly all events are ordinary: they are searched for a few markers, and that is all. This is what every event of every stream
costs, so it is done on whole reads where they end with an event, as they mostly do.

What is held is at most one event: up to :data:`HELD` bytes of an ordinary one, and then only its end, where usage may stand
(Gemini's does, behind an image of some megabytes). One that is not ordinary by its first :data:`HELD` bytes is held up to
:data:`LIMIT`; if it is even larger, its usage is given up, and with it that of the stream, whose end is still told.
"""

from __future__ import annotations

from collections.abc import Callable

from llmproxy.usage.model import Reading
from llmproxy.usage.reader import Event, Reader, Stream

HELD = 64 * 2**10  # bytes
LIMIT = 8 * 2**20  # bytes

_TAIL = HELD // 2  # bytes: the end of an event is cut back to this, each time that HELD is reached
_WHOLE = (b"\n\n", b"\n\r\n")  # how data ends that ends with an event, whatever comes next
_BOM = b"\xef\xbb\xbf"


class EventStream(Stream):
    """Takes a stream of server-sent events apart."""

    def __init__(self, make_reader: Callable[[], Reader]) -> None:
        super().__init__(make_reader)
        self._ordinary = self.reader.ordinary
        self._held = bytearray()
        self._line_end = b""  # the end of what came: only with what comes next is it known what it ends
        self._bound = HELD
        self._is_tail = False
        self._too_large = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if not self._held and data.endswith(_WHOLE) and self._ordinary(data):
            self._line_end = b""
            return
        data = self._line_end + data
        half = b""
        if data.find(b"\r") >= 0:
            if data.endswith(b"\r"):
                data, half = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *ended, rest = data.split(b"\n\n")
        for event in ended:
            self._end(event)
        unended = rest.removesuffix(b"\n")
        self._line_end = rest[len(unended) :] + half
        self._hold(unended)

    def close(self, whole: bool) -> Reading:
        """Take note that nothing more comes; the last event may lack the blank line behind it."""
        self._end(b"")
        return self.reader.reading(self.reader.complete(whole), "too_large" if self._too_large else None)

    def _end(self, data: bytes) -> None:
        """An event is over with these bytes."""
        if not self._held and len(data) <= HELD:
            event = data.lstrip(b"\n")
        else:
            self._hold(data)
            event = bytes(self._held[-_TAIL:] if self._is_tail else self._held)
        is_tail = self._is_tail
        if self._held:
            self._held = bytearray()
            self._bound = HELD
            self._is_tail = False
        if event and not self._ordinary(event):
            self.reader.event(parsed(event, is_tail))

    def _hold(self, data: bytes) -> None:
        """These bytes are part of an event."""
        if not self._held:
            data = data.lstrip(b"\n")
        self._held += data
        if len(self._held) <= self._bound:
            return
        if self._bound == LIMIT:
            self._too_large = True
        if self._bound == LIMIT or self._is_tail or self._ordinary(bytes(self._held[:HELD])):
            self._is_tail = True
            self._bound = HELD
            del self._held[:-_TAIL]
        else:
            self._bound = LIMIT
            self._hold(b"")


def parsed(lines: bytes, is_tail: bool = False) -> Event:
    r"""Parse the lines of one event, all of which end in ``\n``.

    :param is_tail: they begin within a line of data.
    """
    if lines.startswith(b"data:") and lines.find(b"\n") < 0 and not is_tail:
        return Event(b"", lines[5:].removeprefix(b" "))
    name = b""
    data: list[bytes] = []
    for line in (b"data:" + lines if is_tail else lines.removeprefix(_BOM)).split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return Event(name, b"\n".join(data), is_tail)
