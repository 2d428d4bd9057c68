"""The connections to one upstream: which is used next, how many there may be, and who waits.

The most recently idle connection goes first: it is the one least likely to have been dropped, and the others get old enough to
be closed. Requests beyond the bound wait in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from llmproxy.http.connection import UpstreamConnection
from llmproxy.http.limits import UpstreamLimits

Connect = Callable[[Callable[[], UpstreamConnection]], Deferred[UpstreamConnection]]


class NoneFree(CancelledError):
    """A request waited for a connection until it was given up: nothing of it was sent."""


class Pool:
    """Connections to one upstream.

    :param connect: opens a connection whose protocol it makes with the function that it is given.
    """

    def __init__(self, clock: IReactorTime, limits: UpstreamLimits, connect: Connect) -> None:
        self._clock = clock
        self._limits = limits
        self._connect = connect
        self._open = 0  # connections that are idle, in use or being made
        self._idle: list[tuple[float, UpstreamConnection]] = []  # (since when, which), the oldest first
        self._waiting: deque[Deferred[UpstreamConnection]] = deque()
        self._expiry: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<Pool {self._open} open, {len(self._idle)} idle, {len(self._waiting)} waiting>"

    @property
    def open(self) -> int:
        """How many connections there are: idle, in use, or being made."""
        return self._open

    @property
    def idle(self) -> int:
        """Those of them that wait for a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection."""
        return len(self._waiting)

    def take(self) -> UpstreamConnection | None:
        """Take an idle connection for one exchange, if there is one; it comes back by itself when that is over."""
        return self._idle.pop()[1] if self._idle else None

    def acquire(self) -> Deferred[UpstreamConnection]:
        """Get a new connection for one exchange, or wait for one that others give back.

        Cancelling that wait makes it fail with :class:`NoneFree`.
        """
        if self._open < self._limits.connections:
            return self._open_one()
        waiting: Deferred[UpstreamConnection] = Deferred(self._give_up)
        self._waiting.append(waiting)
        return waiting

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they come back."""
        self._limits = attrs.evolve(self._limits, idle_connections=0)
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _give_up(self, waiting: Deferred[UpstreamConnection]) -> None:
        self._waiting.remove(waiting)
        waiting.errback(NoneFree())

    def _open_one(self) -> Deferred[UpstreamConnection]:
        self._open += 1
        return self._connect(self._make).addErrback(self._not_opened)

    def _make(self) -> UpstreamConnection:
        return UpstreamConnection(self._clock, self._limits, self._released, self._lost)

    def _not_opened(self, failure: Failure) -> Failure:
        self._open -= 1
        self._serve_waiting()
        return failure

    def _released(self, connection: UpstreamConnection) -> None:
        if self._waiting:
            self._waiting.popleft().callback(connection)
        elif len(self._idle) < self._limits.idle_connections:
            self._idle.append((self._clock.seconds(), connection))
            if self._expiry is None:
                self._expiry = self._clock.callLater(self._limits.idle, self._expire)
        else:
            connection.close()

    def _lost(self, connection: UpstreamConnection) -> None:
        self._open -= 1
        self._idle = [entry for entry in self._idle if entry[1] is not connection]
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        """There is room for one connection more: open it for whoever waits longest when it is up."""
        if self._waiting and self._open < self._limits.connections:
            self._open += 1
            self._connect(self._make).addCallbacks(self._released, self._refuse_one)

    def _refuse_one(self, failure: Failure) -> None:
        # In this order: else the next attempt would be made for the one that this failure is for.
        self._open -= 1
        if self._waiting:
            self._waiting.popleft().errback(failure)
        self._serve_waiting()

    def _expire(self) -> None:
        """Close what has been idle for too long, and look again when the next one will have been."""
        self._expiry = None
        now = self._clock.seconds()
        while self._idle and self._idle[0][0] + self._limits.idle <= now:
            self._idle.pop(0)[1].close()
        if self._idle:
            self._expiry = self._clock.callLater(self._idle[0][0] + self._limits.idle - now, self._expire)
