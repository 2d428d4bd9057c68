"""How the leaving of a peer that is not being read is noticed."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from llmproxy.deadline import Clock, Scheduled
from llmproxy.http.sockets import descriptor_of

_EVERY = 1.0  # seconds between two looks


class Departure:
    """Looks now and then whether the peer of a connection that is not being read has left.

    Who does not read sees no end of file. The kernel knows, and can be asked without reading (``POLLRDHUP``, Linux); elsewhere
    nothing is seen.

    :param left: called once, when the peer is gone.
    :param closing_counts: a close in order is leaving, too. The kernel tells of it while bytes that came before are unread.
    """

    def __init__(
        self, clock: Clock, transport: Any, left: Callable[[], None], closing_counts: bool = True
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._left = left
        self._closing_counts = closing_counts
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
        if has_left(self._transport) if self._closing_counts else was_reset(self._transport):
            self._left()
        else:
            self.watch()


def has_left(transport: Any) -> bool:
    """Ask the kernel, once, whether the peer has closed or reset the connection."""
    return hasattr(select, "POLLRDHUP") and _poll(transport, select.POLLRDHUP) != 0


def was_reset(transport: Any) -> bool:
    """Ask it whether the peer has reset the connection, or the network has lost it."""
    # Not POLLHUP: it stands for an orderly close, too, where the connection is a Unix socket.
    return _poll(transport, 0) & select.POLLERR != 0


def _poll(transport: Any, events: int) -> int:
    descriptor = descriptor_of(transport)
    if descriptor < 0:
        return 0
    poll = select.poll()
    poll.register(descriptor, events)
    return sum(seen for _, seen in poll.poll(0))
