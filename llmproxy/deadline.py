"""Times by which a peer must have done something, cheap enough to be set for every message and every chunk."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class Scheduled(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Do not call."""


class Clock(Protocol):
    """What a deadline needs of a reactor, or of a :class:`SharedClock`."""

    def seconds(self) -> float:
        """The time."""

    def callLater(self, delay: float, function: Callable[[], None], /) -> Scheduled:
        """Call something later."""


class Deadline:
    """Calls back when a time has come that was not moved or cleared before.

    Moving it later, which is what nearly every message and chunk does, only notes the time; the one delayed call looks at the
    note when it is due. Arming a delayed call for each chunk would cost more than relaying the chunk.

    :param expired: called without arguments.
    """

    def __init__(self, clock: Clock, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._now = clock.seconds
        self._expired = expired
        self._due = inf
        self._call: Scheduled | None = None
        self._call_due = inf

    def set(self, seconds: float) -> None:
        """Move the time to ``seconds`` from now."""
        due = self._due = self._now() + seconds
        if due < self._call_due:
            if self._call is not None:
                self._call.cancel()
            self._call = self._clock.callLater(seconds, self._look)
            self._call_due = due

    def clear(self) -> None:
        """Nothing is due; :meth:`set` may follow."""
        self._due = inf

    def close(self) -> None:
        """Nothing will be due: leave no delayed call behind, and let go of who was to be told."""
        self._due = inf
        self._expired = _nothing
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._call = None
        self._call_due = inf
        due = self._due
        if due == inf:
            return
        left = due - self._now()
        if left > 0:
            self._call = self._clock.callLater(left, self._look)
            self._call_due = due
        else:
            self._due = inf
            self._expired()


def _nothing() -> None:
    """Take the place of a function that will not be called any more."""


class SharedClock:
    """The clock of all deadlines: ``callLater`` for calls that are nearly always cancelled.

    A delayed call of the reactor costs about as much as relaying a chunk, and more when it is cancelled. This one has a single
    one of those for all of its own, which are a set: adding and cancelling are cheap, and looking through them is rare.

    :ivar seconds: tells the time, as the clock beneath does.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.seconds = clock.seconds
        self._calls: set[_Call] = set()
        self._next: IDelayedCall | None = None

    def callLater(self, delay: float, function: Callable[[], None]) -> _Call:
        """Call something in ``delay`` seconds, unless the returned call is cancelled before."""
        call = _Call(self._calls, self._clock.seconds() + delay, function)
        self._calls.add(call)
        if self._next is None or self._next.getTime() > call.due:
            self._arm(call.due)
        return call

    def rest(self) -> None:
        """Leave no delayed call behind where nothing is to come."""
        if not self._calls and self._next is not None:
            self._next.cancel()
            self._next = None

    def close(self) -> None:
        """Call nothing any more."""
        self._calls.clear()
        self.rest()

    def _arm(self, due: float) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._look)

    def _look(self) -> None:
        self._next = None
        now = self._clock.seconds()
        for call in [call for call in self._calls if call.due <= now]:
            if call in self._calls:  # one that was called before it may have cancelled it
                self._calls.discard(call)
                with self._log.failuresHandled("A timer's call failed"):
                    call.function()
        if self._calls:
            self._arm(min(call.due for call in self._calls))


class _Call:
    """A call that is to come."""

    __slots__ = ("_calls", "due", "function")

    def __init__(self, calls: set[_Call], due: float, function: Callable[[], None]) -> None:
        self._calls = calls
        self.due = due
        self.function = function

    def cancel(self) -> None:
        """Do not call."""
        self._calls.discard(self)
