"""A time by which a peer must have done something, cheap enough to be set for every message."""

from __future__ import annotations

from collections.abc import Callable

from llmproxy.idle import Clock, Scheduled


class Deadline:
    """Calls back when a time has come that was not moved or cleared before.

    Moving it later only notes the time; the delayed call looks at the note when it is due.

    :param expired: called without arguments.
    """

    def __init__(self, clock: Clock, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._due: float | None = None
        self._call: Scheduled | None = None

    def set(self, seconds: float) -> None:
        """Move the time to ``seconds`` from now."""
        self._due = self._clock.seconds() + seconds
        if self._call is not None and self._call.getTime() > self._due:
            self._call.cancel()
            self._call = None
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._look)

    def clear(self) -> None:
        """Nothing is due."""
        self._due = None

    def cancel(self) -> None:
        """Nothing is due, and nothing will be: leave no delayed call behind, and let go of who was to be told."""
        self._due = None
        self._expired = _nothing
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._call = None
        if self._due is None:
            return
        left = self._due - self._clock.seconds()
        if left > 0:
            self._call = self._clock.callLater(left, self._look)
        else:
            self._due = None
            self._expired()


def _nothing() -> None:
    """Take the place of a function that will not be called any more."""
