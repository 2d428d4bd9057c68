"""A timer that ends the wait for a silent peer, cheap enough to be told of every chunk."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class IdleTimer:
    """Calls back once when nothing was heard for a time.

    :meth:`touch` only notes the time. The one delayed call looks at the note when it is due, and waits for the rest where
    something was heard meanwhile: re-arming a delayed call for each chunk would cost more than relaying the chunk.

    :param seconds: of silence that are borne.
    :param expired: called without arguments, when they are over.
    """

    def __init__(self, clock: IReactorTime, seconds: float, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._expired = expired
        self._heard = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to wait, or begin anew."""
        self.touch()
        if self._call is None:
            self._call = self._clock.callLater(self._seconds, self._look)

    def touch(self) -> None:
        """Note that the peer was heard just now."""
        self._heard = self._clock.seconds()

    def stop(self) -> None:
        """Wait no more; :meth:`start` may follow."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._call = None
        left = self._heard + self._seconds - self._clock.seconds()
        if left > 0:
            self._call = self._clock.callLater(left, self._look)
        else:
            self._expired()
