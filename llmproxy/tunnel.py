"""Two connections joined after a 101: bytes pass both ways, as they come, until either side ends.

Each side sets the pace of the other; nothing is held, read or counted but the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure


class Tunnel:
    """Both ends of a tunnel.

    :param over: called once, with the number of bytes that went to the client, when both ways are closed.
    :ivar client: the protocol for the client's connection.
    :ivar upstream: the protocol for the upstream's connection.
    """

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self.client = _End(self._ended)
        self.upstream = _End(self._ended)
        self.client.other = self.upstream
        self.upstream.other = self.client

    @property
    def sent(self) -> int:
        """Bytes that came from the upstream."""
        return self.upstream.received

    def _ended(self) -> None:
        if self.client.closed and self.upstream.closed:
            self._over()


class _End(Protocol):
    """One end: what comes in here goes out at the other."""

    other: _End
    transport: Any = None

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._early: list[bytes] = []
        self.received = 0
        self.closed = False

    def connectionMade(self) -> None:
        """The first end waits for the second, and then both pace each other."""
        other = self.other
        if other.transport is None:
            self.transport.pauseProducing()
            return
        self.transport.registerProducer(other.transport, True)
        other.transport.registerProducer(self.transport, True)
        for data in other._early:
            self.transport.write(data)
        other._early.clear()
        other.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """Pass it on."""
        self.received += len(data)
        if self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of one side ends the other, after what it was sent."""
        self.closed = True
        other = self.other
        if other.transport is not None and not other.closed:
            other.transport.unregisterProducer()
            other.transport.loseConnection()
        self._ended()
