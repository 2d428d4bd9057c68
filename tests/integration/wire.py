"""HTTP/1.1 as the bytes that it is, for either end of a connection.

Nothing here is lenient, repaired or hidden: a test sees the start line, each header as it came, the body by its framing, and
whether the connection ended orderly (FIN) or was torn down (RST). Reading waits for at most PATIENCE.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Any

import attrs

PATIENCE = 20.0  # seconds; nothing that works takes nearly as long, even on a busy machine
_READ_SIZE = 65536  # bytes
BLOCK = Random(11).randbytes(1_000_000)


class Ending(Enum):
    """How a peer ended a connection."""

    FIN = "orderly"
    RST = "torn down"


class Truncated(Exception):
    """A body that was cut off, which its reader can tell.

    :ivar body: what came of it.
    :ivar ending: what the connection's end was.
    """

    def __init__(self, body: bytes, ending: Ending) -> None:
        super().__init__(f"{ending.value} after {len(body)} bytes of the body")
        self.body = body
        self.ending = ending


@attrs.frozen
class Head:
    """The start line and the headers of a message, as they stood on the wire."""

    line: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def status(self) -> int:
        return int(self.line.split(b" ", 2)[1])

    @property
    def reason(self) -> bytes:
        return self.line.split(b" ", 2)[2]

    def values(self, name: bytes) -> list[bytes]:
        return [value for other, value in self.headers if other.lower() == name.lower()]

    def fields(self, *without: bytes) -> dict[bytes, list[bytes]]:
        """All headers: lower-case names, and for each the values in their order (RFC 9110 section 5.3)."""
        names = {name.lower() for name, _ in self.headers} - {name.lower() for name in without}
        return {name: self.values(name) for name in names}


@attrs.frozen
class Message:
    """A message that came whole.

    :ivar trailers: the fields that followed its chunks.
    """

    head: Head
    body: bytes
    trailers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self._socket = sock
        self._received = b""
        self._ending: Ending | None = None

    def hold_little(self, receive_buffer: int) -> None:
        """Let the kernel hold no more than so many bytes for us unread."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_until_blocked(self, data: bytes, quiet: float) -> int:
        """Send until nothing was taken for ``quiet`` seconds or all is sent; return how many bytes were."""
        sent = 0
        view = memoryview(data)
        self._socket.setblocking(False)
        try:
            while sent < len(data) and select.select([], [self._socket], [], quiet)[1]:
                sent += self._socket.send(view[sent : sent + _READ_SIZE])
        finally:
            self._socket.settimeout(PATIENCE)
        return sent

    def end(self) -> None:
        """End our direction, and go on reading: the peer sees a bare FIN."""
        self._socket.shutdown(socket.SHUT_WR)

    def start_tls(self, tls: ssl.SSLContext) -> None:
        """Begin TLS, as its server, on a connection that is up."""
        assert not self._received
        self._socket = tls.wrap_socket(self._socket, server_side=True)

    def wait_until_readable(self) -> None:
        """Wait until something came that is not read yet, and leave it there."""
        assert select.select([self._socket], [], [], PATIENCE)[0], f"nothing came for {PATIENCE} s"

    def wait_for_reset(self, patience: float = PATIENCE) -> None:
        """Wait until the peer has torn the connection down, and read nothing of what it sent before."""
        poll = select.poll()
        poll.register(self._socket, 0)  # errors are told unasked
        assert poll.poll(patience * 1000), f"not torn down for {patience} s"

    def head(self) -> Head:
        """Read a start line and headers."""
        while b"\r\n\r\n" not in self._received:
            assert self._receive(), f"the connection ended ({self._ending}) within a head: {self._received!r}"
        text, _, self._received = self._received.partition(b"\r\n\r\n")
        line, *lines = text.split(b"\r\n")
        return Head(line, _fields(lines))

    def request(self) -> Message:
        """Read a whole request."""
        head = self.head()
        body = Body(self, head, close_delimited=False)
        return Message(head, body.rest(), body.trailers)

    def response(self, method: bytes = b"GET") -> Message:
        """Read a whole response.

        :param method: of the request that it answers.
        :raise Truncated: where it was cut off.
        """
        head = self.head()
        # RFC 9112 section 6.3, rule 1.
        if method == b"HEAD" or head.status in (204, 304):
            return Message(head, b"")
        body = Body(self, head)
        return Message(head, body.rest(), body.trailers)

    def some(self, most: int) -> bytes:
        """Read what is there, or wait for it; nothing where the connection has ended."""
        if not self._received:
            self._receive()
        taken, self._received = self._received[:most], self._received[most:]
        return taken

    def exactly(self, count: int) -> bytes:
        """Read so many bytes."""
        parts = []
        while count:
            part = self.some(min(count, _READ_SIZE))
            assert part, f"the connection ended ({self._ending}) {count} bytes too early"
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def ending(self) -> Ending:
        """Wait for the end of the connection, before which nothing more must come."""
        data, ending = self.to_end()
        assert data == b"", f"more came before the end: {data!r}"
        return ending

    def to_end(self) -> tuple[bytes, Ending]:
        """Read all that comes until the connection ends, and how it does."""
        parts = []
        while data := self.some(_READ_SIZE):
            parts.append(data)
        assert self._ending is not None
        return b"".join(parts), self._ending

    def finish(self) -> None:
        """End our direction, and wait until the peer has noticed and closed too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self.to_end()
        self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Tear the connection down: the peer sees a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _receive(self) -> bool:
        if self._ending is None:
            try:
                data = self._socket.recv(_READ_SIZE)
            except ConnectionResetError:
                self._ending = Ending.RST
            except TimeoutError:
                raise AssertionError(f"nothing came for {PATIENCE} s; unread: {self._received!r}") from None
            else:
                self._received += data
                self._ending = None if data else Ending.FIN
        return self._ending is None


class Body:
    """A message's body, read by its framing (RFC 9112 section 6.3).

    :param close_delimited: whether the end of the connection ends a body that tells no length, as it does for responses.
    :ivar trailers: the fields that followed the last chunk.
    """

    def __init__(self, wire: Wire, head: Head, close_delimited: bool = True) -> None:
        self._wire = wire
        self.trailers: tuple[tuple[bytes, bytes], ...] = ()
        coding, lengths = head.values(b"transfer-encoding"), head.values(b"content-length")
        assert not (coding and lengths), f"both framings at once: {head}"
        assert coding in ([], [b"chunked"]), head
        assert len(lengths) <= 1, head
        self._chunked = bool(coding)
        # What is left: of the body, or of the chunk; None where only the end of the connection will tell.
        self._left = int(lengths[0]) if lengths else 0 if self._chunked or not close_delimited else None
        self._over = not self._chunked and self._left == 0

    def exactly(self, count: int) -> bytes:
        """Read some bytes of it, and wait for no more than these."""
        parts: list[bytes] = []
        while count > 0:
            part = self._some(count)
            assert part, "the body is over"
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def rest(self) -> bytes:
        """Read it to its end.

        :raise Truncated: where it has none.
        """
        parts = []
        try:
            while part := self._some(_READ_SIZE):
                parts.append(part)
        except Truncated as truncated:
            raise Truncated(b"".join(parts) + truncated.body, truncated.ending) from None
        return b"".join(parts)

    def _some(self, most: int) -> bytes:
        if self._chunked and self._left == 0 and not self._over:
            self._next_chunk()
        if self._over:
            return b""
        part = self._wire.some(most if self._left is None else min(most, self._left))
        if not part:
            ending = self._wire.ending()
            if self._left is not None or ending is Ending.RST:
                raise Truncated(b"", ending)
            self._over = True
        elif self._left is not None:
            self._left -= len(part)
            if self._left == 0 and self._chunked:
                self._end_chunk()
            elif self._left == 0:
                self._over = True
        return part

    def _next_chunk(self) -> None:
        self._left = int(self._line(), 16)
        if self._left == 0:
            lines = []
            while line := self._line():
                lines.append(line)
            self.trailers = _fields(lines)
            self._over = True

    def _end_chunk(self) -> None:
        assert self._line() == b"", "a chunk that is longer than it says"

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = self._wire.some(1)
            if not byte:
                raise Truncated(b"", self._wire.ending())
            line += byte
        return line[:-2]


def _fields(lines: list[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    pairs = [line.partition(b":") for line in lines]
    return tuple((name, value.strip(b" \t")) for name, _, value in pairs)


def connect(port: int, receive_buffer: int | None = None, source: str = "127.0.0.1") -> Wire:
    """Connect to a port on loopback.

    :param receive_buffer: bytes that the kernel may hold for us unread.
    :param source: our own address.
    """
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(PATIENCE)
    sock.bind((source, 0))
    sock.connect(("127.0.0.1", port))
    return Wire(sock)


def message(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    """Put a message together from its lines."""
    return b"\r\n".join([line, *headers, b"", body])


def chunked(*parts: bytes) -> bytes:
    """Encode parts as chunks, without the last one, which would end the body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


LAST_CHUNK = b"0\r\n\r\n"


class Flood:
    """More bytes than any process on their way may hold: made as they are sent, and checked as they are read.

    :param wire: to send on.
    :param blocks: how many, of :data:`BLOCK` each.
    :param encode: puts a block into the framing of its body.
    """

    def __init__(self, wire: Wire, blocks: int, encode: Callable[[bytes], bytes] = bytes) -> None:
        self._wire = wire
        self._blocks = blocks
        self._encoded = encode(BLOCK)
        self.sent = 0

    def send(self, end: bytes = b"") -> None:
        """Send all of it, and ``end`` behind it."""
        while self.sent < self._blocks:
            self._wire.send(self._encoded)
            self.sent += 1
        self._wire.send(end)

    def wait_until_stalled(self) -> None:
        """Wait until nothing goes any more, though there is more."""
        while True:
            before = self.sent
            time.sleep(0.5)  # no event tells that nothing happens
            if before and self.sent == before:
                break
        assert self.sent < self._blocks, "all of it went"

    @staticmethod
    def read(exactly: Callable[[int], bytes], blocks: int) -> None:
        """Read so many blocks, and check them.

        :param exactly: reads so many bytes.
        """
        for _ in range(blocks):
            assert exactly(len(BLOCK)) == BLOCK
