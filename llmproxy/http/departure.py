"""How the leaving of a peer that is not being read is noticed."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from llmproxy.deadline import Clock, Scheduled

_EVERY = 1.0  # seconds between two looks


class Departure:
    """Looks now and then whether the peer of a connection that is not being read has closed or reset it.

    Who does not read sees no end of file. The kernel knows, and can be asked without reading (``POLLRDHUP``, Linux); elsewhere
    nothing is seen.

    :param left: called once, when the peer is gone.
    """

    def __init__(self, clock: Clock, transport: Any, left: Callable[[], None]) -> None:
        self._clock = clock
        self._transport = transport
        self._left = left
        self._next: Scheduled | None = None

    def watch(self) -> None:
        """The peer is not read from now on."""
        if self._next is None:
            self._next = self._clock.callLater(_EVERY, self._look)

    def rest(self) -> None:
        """It is read again, or the connection is lost."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        self._next = None
        if has_left(self._transport):
            self._left()
        else:
            self.watch()


def has_left(transport: Any) -> bool:
    """Ask the kernel, once."""
    descriptor = transport.fileno() if hasattr(transport, "fileno") else -1
    if descriptor < 0 or not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return bool(poll.poll(0))
