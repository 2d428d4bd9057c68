"""What keeps the ledger: an observer of exchanges that writes them in batches.

It takes nothing from the requests: to record is to make a row and to put it in a queue. A database that is full, lost or slow
is told of in the log once, and tried again; rows wait in memory meanwhile, up to a bound, from which on the oldest are
dropped. All of that is counted for whoever measures it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.exchange import Exchange, first_id
from llmproxy.ledger.database import Database
from llmproxy.ledger.row import Row, row_of
from llmproxy.ledger.store import Store

DEFAULT_MAX_WAITING = 10_000  # rows, of 1 to 2 kB

_INTERVAL = 0.5  # seconds; with the time that the writing takes, a row is in the ledger within a second
_BATCH = 1000  # rows for one transaction
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0  # seconds; doubled from one to the next
_PRUNE_INTERVAL = 3600.0  # seconds
_PRUNE_PAUSE = 1.0  # seconds from one batch of old rows to the next, in which new ones are written


def open_ledger(
    database: Database,
    reactor: Any,
    *,
    retention: int | None = None,
    max_waiting: int = DEFAULT_MAX_WAITING,
) -> Ledger:
    """Make a ledger that is kept in a database; see :class:`Ledger`."""
    return Ledger(Store(database, reactor), reactor, retention=retention, max_waiting=max_waiting)


class Rows(Protocol):
    """Where rows are written to: what is said of them at :class:`~llmproxy.ledger.store.Store`."""

    def insert(self, rows: Sequence[Row]) -> Deferred[None]:
        """Write rows."""

    def prune(self, before: str, most: int) -> Deferred[int]:
        """Delete old rows."""

    def close(self) -> None:
        """End."""


class Ledger:
    """Writes exchanges to a database.

    :param rows: where to; ``str`` of it is shown in the log.
    :param retention: the days for which rows are kept; ``None`` for ever.
    :param max_waiting: how many rows may wait in memory.
    :param now: the time in UTC.
    :ivar dropped: how many rows were lost since the start.
    :ivar failures: how many writes failed since the start.
    :ivar failing: whether the database could not be written when it was last tried.
    """

    _log = Logger()

    def __init__(
        self,
        rows: Rows,
        clock: IReactorTime,
        *,
        retention: int | None = None,
        max_waiting: int = DEFAULT_MAX_WAITING,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._rows = rows
        self._clock = clock
        self._retention = None if retention is None else timedelta(days=retention)
        self._max_waiting = max_waiting
        self._now = now
        self._waiting: deque[Row] = deque()
        self._writing: list[Row] = []
        self._busy = False  # with a write, which may be one of no rows
        self._pruning = False
        self._timer: IDelayedCall | None = None  # of the next write
        self._prune_timer: IDelayedCall | None = None
        self._retry = _FIRST_RETRY
        self._told = False  # that the database cannot be written
        self._missing = 0  # rows that were dropped since all was well
        self._closing: list[Deferred[None]] | None = None
        self._heir: Callable[[], Ledger | None] = lambda: None
        self._closed = False
        self.dropped = 0
        self.failures = 0
        self.failing = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "failing" if self.failing else "open"
        return f"<Ledger {self._rows}: {state}, {self.backlog} waiting, {self.dropped} dropped>"

    @property
    def backlog(self) -> int:
        """How many rows are not in the database yet."""
        return len(self._waiting) + len(self._writing)

    def start(self) -> None:
        """Begin to write. The database is tried at once, so that what is wrong with it is in the log from the start."""
        self._write()
        if self._retention is not None:
            self._prune_timer = self._clock.callLater(_PRUNE_PAUSE, self._prune, self._retention)

    def record(self, exchange: Exchange) -> None:
        """Take an exchange that is over. Never raises, and never waits."""
        try:
            row = row_of(exchange)
        except Exception:
            self._log.failure("An exchange cannot be made a row of the ledger")
            self.dropped += 1
            return
        if self._closing is not None:
            self.dropped += 1
            return
        self._waiting.append(row)
        if self.backlog > self._max_waiting:
            self._drop()
        if self._busy or self.failing:
            return
        if self._timer is None:
            self._timer = self._clock.callLater(_INTERVAL, self._write)
        elif len(self._waiting) == _BATCH:
            self._timer.reset(0)

    def inherit(self, rows: Collection[Row]) -> None:
        """Take what another ledger could not write, in front of what came here: it is older, mostly."""
        self._waiting.extendleft(reversed(tuple(rows)))
        while self._waiting and self.backlog > self._max_waiting:
            self._drop()
        if not self._busy and not self.failing and self._timer is None:
            self._timer = self._clock.callLater(_INTERVAL, self._write)

    def close(self, heir: Callable[[], Ledger | None] = lambda: None) -> Deferred[None]:
        """Write what waits, and end. What cannot be written now goes to another ledger, and is lost where there is none.

        :param heir: tells, at the end, which one that is; of the first call.
        :return: fires when that is done; a database that hangs is given up after the time that :class:`Store` has for it.
        """
        closed: Deferred[None] = Deferred()
        if self._closed:
            closed.callback(None)
        elif self._closing is not None:
            self._closing.append(closed)
        else:
            self._closing = [closed]
            self._heir = heir
            for timer in (self._timer, self._prune_timer):
                if timer is not None and timer.active():
                    timer.cancel()
            if not self._busy:
                self._write()
        return closed

    def _write(self) -> None:
        self._timer = None
        self._busy = True
        self._writing = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        self._rows.insert(self._writing).addCallbacks(self._written, self._not_written)

    def _written(self, _: None) -> None:
        self._busy = self.failing = False
        self._writing = []
        self._retry = _FIRST_RETRY
        if len(self._waiting) < _BATCH and (self._told or self._missing):
            self._log.info(
                "The ledger {ledger} is written again; {missing} exchanges are missing from it.",
                ledger=self._rows,
                missing=self._missing,
            )
            self._told, self._missing = False, 0
        if self._closing is not None:
            self._end()
        elif len(self._waiting) >= _BATCH:
            self._write()
        elif self._waiting:
            self._timer = self._clock.callLater(_INTERVAL, self._write)

    def _not_written(self, failure: Failure) -> None:
        self._busy = False
        self.failing = True
        self.failures += 1
        self._waiting.extendleft(reversed(self._writing))
        self._writing = []
        if not self._told:
            self._told = True
            self._log.error(
                "The ledger {ledger} cannot be written: {problem}. It is tried again; up to {most} exchanges wait.",
                ledger=self._rows,
                problem=" ".join(failure.getErrorMessage().split()).rstrip("."),
                most=self._max_waiting,
            )
        if self._closing is not None:
            self._end()
        else:
            self._timer = self._clock.callLater(self._retry, self._write)
            self._retry = min(self._retry * 2, _LAST_RETRY)

    def _drop(self) -> None:
        self._waiting.popleft()
        self.dropped += 1
        self._missing += 1
        if self._missing == 1:
            self._log.error(
                "More than {most} exchanges wait for the ledger {ledger}: the oldest are dropped.",
                most=self._max_waiting,
                ledger=self._rows,
            )

    def _end(self) -> None:
        """Close what has no more to do; this is asked after each thing that was done."""
        if self._closing is None or self._busy or self._pruning:
            return
        if self._waiting and not self.failing:
            self._write()
            return
        if self._waiting:
            self._leave()
        self._closed = True
        self._rows.close()
        for closed in self._closing:
            closed.callback(None)

    def _leave(self) -> None:
        """Part with what cannot be written."""
        heir = self._heir()
        if heir is None:
            self._log.error(
                "The last {lost} exchanges are missing from the ledger {ledger}.",
                lost=len(self._waiting),
                ledger=self._rows,
            )
            self.dropped += len(self._waiting)
        else:
            self._log.warn(
                "The last {left} exchanges could not be written to the ledger {ledger}, and go to {heir}.",
                left=len(self._waiting),
                ledger=self._rows,
                heir=heir._rows,
            )
            heir.inherit(self._waiting)
        self._waiting.clear()

    def _prune(self, retention: timedelta) -> None:
        self._pruning = True
        self._rows.prune(first_id(self._now() - retention), _BATCH).addCallbacks(
            lambda count: _PRUNE_PAUSE if count == _BATCH else _PRUNE_INTERVAL,
            lambda failure: _PRUNE_INTERVAL,  # what fails here fails when rows are written, and is told then
        ).addCallback(self._pruned, retention)

    def _pruned(self, pause: float, retention: timedelta) -> None:
        self._pruning = False
        if self._closing is None:
            self._prune_timer = self._clock.callLater(pause, self._prune, retention)
        self._end()
