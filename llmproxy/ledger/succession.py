"""The ledgers of a process, one after the other: a reload may put another in the place of one, and that loses nothing.

The old one writes what it was told of. What it cannot write, which may be why there is another, goes to the one that is there
by then. To whoever measures them they are one: what was counted once stays counted.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks

from llmproxy.exchange import Exchange
from llmproxy.ledger.database import Database
from llmproxy.ledger.writer import Ledger, open_ledger


class Ledgers:
    """The present ledger, if there is one, and those before it that have not ended.

    :ivar any: whether there is one, or was.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._settings: tuple[Database | None, int | None, int] | None = None
        self._present: Ledger | None = None
        self._retired: list[Ledger] = []
        self._dropped = 0  # by those that have ended
        self._failures = 0
        self.any = False

    @property
    def backlog(self) -> int:
        """How many rows are in no database yet."""
        return sum(ledger.backlog for ledger in self._all())

    @property
    def dropped(self) -> int:
        """How many rows were lost since the process was started."""
        return self._dropped + sum(ledger.dropped for ledger in self._all())

    @property
    def failures(self) -> int:
        """How many writes failed since the process was started."""
        return self._failures + sum(ledger.failures for ledger in self._all())

    def change(self, database: Database | None, *, retention: int | None, max_waiting: int) -> None:
        """Go on with another ledger, or with the same where nothing is different.

        :param database: ``None`` for no ledger.
        :param retention: see :class:`~llmproxy.ledger.writer.Ledger`; so is ``max_waiting``.
        """
        settings = (database, retention, max_waiting)
        if settings == self._settings:
            return
        self._settings = settings
        old, self._present = self._present, None
        if database is not None:
            self.any = True
            self._present = open_ledger(database, self._reactor, retention=retention, max_waiting=max_waiting)
            self._present.start()
        if old is not None:
            self._retire(old)

    def observe(self, exchanges: Iterable[Exchange]) -> None:
        """Write exchanges to the present ledger, if there is one."""
        if self._present is not None:
            for exchange in exchanges:
                self._present.record(exchange)

    @inlineCallbacks
    def close(self) -> Generator[Deferred[Any], Any, None]:
        """Write what waits, and end; fires when that is done."""
        # The present one has to be there for what the others leave.
        yield gatherResults([ledger.close() for ledger in self._retired])
        last, self._present = self._present, None
        if last is not None:
            yield self._retire(last)

    def _retire(self, ledger: Ledger) -> Deferred[None]:
        self._retired.append(ledger)
        return ledger.close(lambda: self._present).addCallback(self._ended, ledger)

    def _ended(self, _: None, ledger: Ledger) -> None:
        self._retired.remove(ledger)
        self._dropped += ledger.dropped
        self._failures += ledger.failures

    def _all(self) -> Iterable[Ledger]:
        return self._retired if self._present is None else (*self._retired, self._present)
