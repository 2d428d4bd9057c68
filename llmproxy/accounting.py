"""What becomes of the records of exchanges: they are priced, and told to who counts and keeps them, off the request path.

A request pays for no more than being put on a list. What happens with the list happens some times a second, or as soon as there
are some on it, for a number of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llmproxy.exchange import Exchange

_EVERY = 0.25  # seconds
_MOST = 64  # exchanges, of which each takes some 20 us: streams must not wait for more of them at once


class Observer(Protocol):
    """Who is told of exchanges that are over."""

    def observe(self, exchanges: Sequence[Exchange], /) -> None:
        """Take some records, in the order in which they ended; it must neither block nor change them."""


class Accounting:
    """Gathers records, prices them and tells the observers.

    :ivar price: gives the cost of an exchange in micro-dollars, ``None`` where it is not known.
    :ivar observers: who is told.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        price: Callable[[Exchange], int | None] = lambda _: None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._clock = clock
        self._waiting: list[Exchange] = []
        self._next: IDelayedCall | None = None
        self.price = price
        self.observers = observers

    def add(self, exchange: Exchange) -> None:
        """An exchange is over."""
        self._waiting.append(exchange)
        if self._next is None:
            self._next = self._clock.callLater(_EVERY, self.flush)
        elif len(self._waiting) == _MOST:
            self._next.reset(0)

    def flush(self) -> None:
        """Tell of all that is over until now."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._next = None
        exchanges, self._waiting = self._waiting, []
        if not exchanges:
            return
        for exchange in exchanges:
            try:
                exchange.cost = self.price(exchange)
            except Exception:
                self._log.failure("A price could not be found")
        for observer in self.observers:
            with self._log.failuresHandled("An observer of exchanges failed"):
                observer.observe(exchanges)
