"""Two connections joined after a 101: bytes pass both ways, as they come, until either side ends.

Each side sets the pace of the other; nothing is held, read or counted but the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.deadline import Clock
from llmproxy.http.departure import Departure


class Tunnel:
    """Both ends of a tunnel.

    :param over: called once, when both ways are closed.
    :param clock: for looking whether a side that the other does not let us read has left.
    :ivar client: the protocol for the client's connection.
    :ivar upstream: the protocol for the upstream's connection.
    """

    def __init__(self, over: Callable[[], None], clock: Clock) -> None:
        self._over = over
        self.client = _End(self._ended, clock)
        self.upstream = _End(self._ended, clock)
        self.client.other = self.upstream
        self.upstream.other = self.client

    @property
    def sent(self) -> int:
        """Bytes that came from the upstream."""
        return self.upstream.received

    def _ended(self) -> None:
        if self.client.closed and self.upstream.closed:
            self._over()


@implementer(IPushProducer)
class _End(Protocol):
    """One end: what comes in here goes out at the other, which sets the pace."""

    other: _End
    transport: Any = None

    def __init__(self, ended: Callable[[], None], clock: Clock) -> None:
        self._ended = ended
        self._clock = clock
        self._departure: Departure | None = None
        self._early: list[bytes] = []
        self.received = 0
        self.closed = False

    def connectionMade(self) -> None:
        """The first end waits for the second, and then both pace each other."""
        other = self.other
        if other.transport is None:
            self.transport.pauseProducing()
            return
        self.transport.registerProducer(other, True)
        other.transport.registerProducer(self, True)
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

    def pauseProducing(self) -> None:
        """The other side has enough for now."""
        self.transport.pauseProducing()
        if self._departure is None:
            self._departure = Departure(self._clock, self.transport, self._left)
        self._departure.watch()

    def resumeProducing(self) -> None:
        """The other side can take more."""
        if self._departure is not None:
            self._departure.rest()
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The other side is gone."""
        self.transport.loseConnection()

    def _left(self) -> None:
        """This side left while the other took nothing: what that was sent would wait for ever."""
        self.other.transport.abortConnection()
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of one side ends the other, after what it was sent."""
        self.closed = True
        if self._departure is not None:
            self._departure.rest()
        other = self.other
        if other.transport is not None and not other.closed:
            other.transport.unregisterProducer()
            other.transport.loseConnection()
        self._ended()
