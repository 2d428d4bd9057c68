"""Two connections joined after a 101: bytes pass both ways, as they come, until either side ends.

Each side sets the pace of the other, and nothing is held. What a side sent before it closed in order arrives, however slowly
the other reads; a reset, or a side that takes nothing for too long, ends both at once.

Only what a client with a list of models sends is looked at first (:class:`~llmproxy.asked_model.SessionGuard`), and what an
upstream sends may be looked at in passing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.asked_model import Hidden, SessionGuard
from llmproxy.deadline import Clock, Deadline
from llmproxy.exchange import Ending
from llmproxy.http.departure import Departure
from llmproxy.http.intake import Intake


class Tunnel:
    """Both ends of a tunnel.

    :param over: called once, with the ending, when both ways are closed.
    :param clock: for looking whether a side that the other does not let us read has left.
    :param patience: seconds for which a side may take nothing of what it was sent.
    :param look: called with each part of what the upstream sent, once it is written.
    :param look_at_client: the same of what the client sent.
    :ivar client: the protocol for the client's connection.
    :ivar upstream: the protocol for the upstream's connection.
    """

    def __init__(
        self,
        over: Callable[[Ending], None],
        clock: Clock,
        patience: float,
        look: Callable[[bytes], None] | None = None,
        look_at_client: Callable[[bytes], None] | None = None,
    ) -> None:
        self._over = over
        self._ending = Ending.COMPLETED
        self.client = _End(self._ended, partial(self._failed, Ending.CLIENT_LEFT), clock, patience)
        self.upstream = _End(self._ended, partial(self._failed, Ending.UPSTREAM_FAILED), clock, patience)
        self.client.other = self.upstream
        self.upstream.other = self.client
        self.upstream.look = look
        self.client.look = look_at_client

    def guard(self, guard: SessionGuard, refused: Callable[[str], None]) -> None:
        """Let pass of what the client sends only what it may.

        :param refused: called with the reason when something did not pass; then both ends are cut off.
        """
        self.client.check = guard.feed

        def check() -> None:
            if isinstance(guard.answer, Hidden):
                refused(guard.answer.reason)
                self._cut()

        self.client.checked = check

    @property
    def sent(self) -> int:
        """Bytes that came from the upstream."""
        return self.upstream.received

    def _failed(self, ending: Ending) -> None:
        """A side is gone, or as good as gone: what the other was sent or has sent leads nowhere."""
        if self._ending is Ending.COMPLETED:  # else this is what the first cut has led to
            self._ending = ending
        self._cut()

    def _cut(self) -> None:
        for end in (self.upstream, self.client):
            if end.transport is not None and not end.closed:
                end.transport.abortConnection()

    def _ended(self) -> None:
        if self.client.closed and self.upstream.closed:
            self._over(self._ending)


@implementer(IPushProducer)
class _End(Protocol):
    """One end: what comes in here goes out at the other, which sets the pace."""

    other: _End
    transport: Any = None
    look: Callable[[bytes], None] | None = None
    check: Callable[[bytes], bytes] | None = None
    checked: Callable[[], None]

    def __init__(
        self, ended: Callable[[], None], failed: Callable[[], None], clock: Clock, patience: float
    ) -> None:
        self._ended = ended
        self._failed = failed
        self._clock = clock
        self._patience = patience
        self._deadline = Deadline(clock, self._too_late)
        self._departure: Departure | None = None
        self._intake: Intake | None = None
        self._behind = False
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
        passed = data if self.check is None else self.check(data)
        if self.other.transport is None:
            self._early.append(passed)
        elif passed:
            self.other.transport.write(passed)
        if self.look is not None:
            self.look(data)
        if self.check is not None:
            self.checked()

    def pauseProducing(self) -> None:
        """The other side has enough for now."""
        self.transport.pauseProducing()
        if self._departure is None:
            # Of an end in order the reading tells, behind all that came before it.
            self._departure = Departure(self._clock, self.transport, self._failed, closing_counts=False)
        self._departure.watch()
        self.other._await_intake()

    def resumeProducing(self) -> None:
        """The other side can take more."""
        if self._departure is not None:
            self._departure.rest()
        self.other._behind = False
        self.other._deadline.clear()
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The other side is gone."""
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of one side ends the other, after what it was sent."""
        self.closed = True
        self._deadline.close()
        if self._departure is not None:
            self._departure.rest()
        if self._behind and not reason.check(ConnectionDone):
            self._failed()  # it did not take all that it was sent
        other = self.other
        if other.transport is not None and not other.closed:
            other.transport.unregisterProducer()
            other.transport.loseConnection()
            other._await_intake()
        self._ended()

    def _await_intake(self) -> None:
        """This side has been sent more than it has taken; it has its time to go on."""
        if self._intake is None:
            self._intake = Intake(self.transport)
        self._intake.note()
        self._behind = True
        self._deadline.set(self._patience)

    def _too_late(self) -> None:
        if self._intake is not None and self._intake.went_on():
            self._deadline.set(self._patience)
        else:
            self._failed()
