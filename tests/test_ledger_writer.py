from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.exchange import first_id
from llmproxy.ledger.row import Row
from llmproxy.ledger.writer import Ledger
from tests.conftest import LoggedFailures
from tests.ledger_support import NOON, Lines, exchange, lines

__all__ = ["lines"]  # a fixture


class Full(Exception):
    """What a database says that cannot be written."""


class Table:
    """A table of which the test says when a write ends, and how.

    :ivar rows: the ids of those that were written.
    :ivar wanted: the ids that each write was for, of which the last may be under way.
    :ivar pruned: what was to be deleted.
    """

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.wanted: list[list[str]] = []
        self.pruned: list[tuple[str, int]] = []
        self.closed = False
        self._insert: Deferred[None] | None = None
        self._prune: Deferred[int] | None = None

    def __str__(self) -> str:
        return "/ledger"

    def insert(self, rows: Sequence[Row]) -> Deferred[None]:
        assert self._insert is None, "there is one writer"
        assert not self.closed
        self.wanted.append([row[0] for row in rows])
        self._insert = Deferred()
        return self._insert

    def prune(self, before: str, most: int) -> Deferred[int]:
        self.pruned.append((before, most))
        self._prune = Deferred()
        return self._prune

    def close(self) -> None:
        assert not self.busy, "this would wait for a thread"
        assert self._prune is None, "this would wait for a thread"
        self.closed = True

    @property
    def busy(self) -> bool:
        return self._insert is not None

    def succeed(self) -> None:
        assert self._insert is not None
        ending, self._insert = self._insert, None
        self.rows += self.wanted[-1]
        ending.callback(None)

    def fail(self) -> None:
        assert self._insert is not None
        ending, self._insert = self._insert, None
        ending.errback(Failure(Full("no space\nleft.")))

    def prune_ends(self, result: Any) -> None:
        assert self._prune is not None
        ending, self._prune = self._prune, None
        ending.callback(result)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table() -> Table:
    return Table()


def opened(table: Table, clock: Clock, **settings: Any) -> Ledger:
    """A ledger that has found its database in order."""
    ledger = Ledger(table, clock, now=lambda: NOON, **settings)
    ledger.start()
    table.succeed()
    return ledger


def record(ledger: Ledger, *ids: str) -> None:
    for name in ids:
        ledger.record(exchange(id=name))


class TestWriting:
    def test_the_database_is_tried_at_the_start(self, table: Table, clock: Clock) -> None:
        Ledger(table, clock).start()
        assert table.wanted == [[]]

    def test_what_is_recorded_is_sent_off_within_half_a_second(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, "a")
        clock.advance(0.3)
        record(ledger, "b")
        assert not table.busy
        clock.advance(0.2)
        assert table.wanted[-1] == ["a", "b"]
        assert ledger.backlog == 2
        table.succeed()
        assert (ledger.backlog, table.rows) == (0, ["a", "b"])

    def test_without_exchanges_nothing_is_done(self, table: Table, clock: Clock) -> None:
        opened(table, clock)
        clock.advance(100)
        assert not clock.getDelayedCalls()
        assert not table.busy

    def test_a_batch_that_is_full_is_not_waited_with(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, *map(str, range(1000)))
        clock.advance(0)
        assert len(table.wanted[-1]) == 1000

    def test_there_is_one_write_at_a_time(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, "a")
        clock.advance(0.5)
        record(ledger, "b")
        clock.advance(10)
        table.succeed()
        clock.advance(0.5)
        assert table.wanted[1:] == [["a"], ["b"]]

    def test_what_is_recorded_before_the_database_is_there_waits_for_it(
        self, table: Table, clock: Clock
    ) -> None:
        ledger = Ledger(table, clock)
        record(ledger, "a")
        ledger.start()
        assert table.wanted == [["a"]]

    def test_a_lot_that_waits_is_written_batch_after_batch(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, "first")
        clock.advance(0.5)
        record(ledger, *map(str, range(2500)))
        table.succeed()
        table.succeed()
        table.succeed()
        clock.advance(0.5)
        table.succeed()
        assert [len(ids) for ids in table.wanted[1:]] == [1, 1000, 1000, 500]
        assert table.rows == ["first", *map(str, range(2500))]

    def test_what_cannot_be_a_row_is_dropped_and_told(
        self, table: Table, clock: Clock, logged_failures: LoggedFailures
    ) -> None:
        ledger = opened(table, clock)
        ledger.record("no exchange")  # type: ignore[arg-type]
        assert len(logged_failures.flush(AttributeError)) == 1
        assert (ledger.dropped, ledger.backlog) == (1, 0)

    def test_it_shows_its_state(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, "a")
        assert repr(ledger) == "<Ledger /ledger: open, 1 waiting, 0 dropped>"
        ledger.close()
        table.succeed()
        assert repr(ledger) == "<Ledger /ledger: closed, 0 waiting, 0 dropped>"


class TestFailures:
    def test_it_is_told_once_and_tried_again(self, table: Table, clock: Clock, lines: Lines) -> None:
        ledger = opened(table, clock, max_waiting=100)
        record(ledger, "a")
        clock.advance(0.5)
        table.fail()
        record(ledger, "b")
        for pause in (1, 2, 4, 8, 16, 32, 60, 60):
            assert ledger.failing
            clock.advance(pause - 0.01)
            assert not table.busy
            clock.advance(0.01)
            table.fail()
        assert ledger.failures == 9
        assert lines() == [
            "The ledger /ledger cannot be written: no space left. It is tried again; up to 100 exchanges wait."
        ]
        clock.advance(60)
        table.succeed()
        assert table.rows == ["a", "b"]
        assert not ledger.failing
        assert lines()[1:] == ["The ledger /ledger is written again; 0 exchanges are missing from it."]

    def test_a_second_failure_is_a_new_one(self, table: Table, clock: Clock, lines: Lines) -> None:
        ledger = opened(table, clock)
        for name in "ab":
            record(ledger, name)
            clock.advance(0.5)
            table.fail()
            clock.advance(1)  # not longer than after the first
            table.succeed()
        assert len(lines()) == 4
        assert table.rows == ["a", "b"]

    def test_a_database_that_is_not_there_at_the_start_is_waited_for(
        self, table: Table, clock: Clock
    ) -> None:
        ledger = Ledger(table, clock)
        ledger.start()
        table.fail()
        record(ledger, "a")
        clock.advance(1)
        table.succeed()
        assert table.rows == ["a"]

    def test_no_more_wait_than_may_and_the_oldest_go(self, table: Table, clock: Clock, lines: Lines) -> None:
        ledger = opened(table, clock, max_waiting=3)
        record(ledger, "a")
        clock.advance(0.5)
        table.fail()
        record(ledger, *"bcde")
        assert (ledger.backlog, ledger.dropped) == (3, 2)
        clock.advance(1)
        table.succeed()
        assert table.rows == ["c", "d", "e"]
        assert lines()[1:] == [
            "More than 3 exchanges wait for the ledger /ledger: the oldest are dropped.",
            "The ledger /ledger is written again; 2 exchanges are missing from it.",
        ]

    def test_what_is_being_written_counts_among_those_that_wait(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock, max_waiting=2)
        record(ledger, "a", "b")
        clock.advance(0.5)
        record(ledger, "c")
        assert (ledger.backlog, ledger.dropped) == (2, 1)

    def test_a_slow_database_is_told_of_once(self, table: Table, clock: Clock, lines: Lines) -> None:
        ledger = opened(table, clock, max_waiting=2)
        record(ledger, "a")
        clock.advance(0.5)
        record(ledger, *"bcdefg")
        assert len(lines()) == 1
        table.succeed()
        assert len(lines()) == 2


class TestClosing:
    def test_what_waits_is_written_first(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, "a")
        closed = ledger.close()
        assert not closed.called
        table.succeed()
        assert closed.called
        assert table.rows == ["a"]
        assert table.closed
        assert not clock.getDelayedCalls()

    def test_a_write_that_is_under_way_is_waited_for_and_another_follows(
        self, table: Table, clock: Clock
    ) -> None:
        ledger = opened(table, clock)
        record(ledger, "a")
        clock.advance(0.5)
        record(ledger, "b")
        closed = ledger.close()
        table.succeed()
        assert not closed.called
        table.succeed()
        assert closed.called
        assert table.rows == ["a", "b"]

    def test_a_database_that_failed_is_tried_once_more(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, "a")
        clock.advance(0.5)
        table.fail()
        ledger.close()
        table.succeed()
        assert table.rows == ["a"]
        assert table.closed

    def test_what_cannot_be_written_is_lost_and_told(self, table: Table, clock: Clock, lines: Lines) -> None:
        ledger = opened(table, clock)
        record(ledger, "a", "b")
        closed = ledger.close()
        table.fail()
        assert closed.called
        assert (ledger.dropped, ledger.backlog) == (2, 0)
        assert lines()[-1] == "The last 2 exchanges are missing from the ledger /ledger."
        assert not clock.getDelayedCalls()

    def test_the_last_try_that_fails_is_not_followed_by_another(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        record(ledger, "a")
        clock.advance(0.5)
        closed = ledger.close()
        table.fail()
        assert closed.called
        assert not table.busy

    def test_what_comes_later_is_dropped(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        ledger.close()
        record(ledger, "a")
        table.succeed()
        record(ledger, "b")
        assert (ledger.dropped, ledger.backlog) == (2, 0)
        assert not clock.getDelayedCalls()

    def test_it_may_be_closed_twice(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock)
        closings = [ledger.close(), ledger.close()]
        table.succeed()
        assert all(closing.called for closing in [*closings, ledger.close()])


class TestRetention:
    def test_rows_are_kept_for_ever_unless_told_otherwise(self, table: Table, clock: Clock) -> None:
        opened(table, clock)
        clock.advance(100_000)
        assert not table.pruned

    def test_old_rows_are_deleted_soon_and_then_every_hour(self, table: Table, clock: Clock) -> None:
        opened(table, clock, retention=30)
        clock.advance(1)
        assert table.pruned == [(first_id(NOON - timedelta(days=30)), 1000)]
        table.prune_ends(999)
        clock.advance(3599)
        assert len(table.pruned) == 1
        clock.advance(1)
        assert len(table.pruned) == 2

    def test_many_go_in_batches_with_pauses_for_what_is_new(self, table: Table, clock: Clock) -> None:
        opened(table, clock, retention=30)
        clock.advance(1)
        table.prune_ends(1000)
        assert len(table.pruned) == 1
        clock.advance(1)
        assert len(table.pruned) == 2

    def test_it_is_tried_again_after_a_failure(self, table: Table, clock: Clock) -> None:
        opened(table, clock, retention=30)
        clock.advance(1)
        table.prune_ends(Failure(Full()))
        clock.advance(3600)
        assert len(table.pruned) == 2

    def test_closing_waits_for_it(self, table: Table, clock: Clock) -> None:
        ledger = opened(table, clock, retention=30)
        clock.advance(1)
        closed = ledger.close()
        table.succeed()
        assert not closed.called
        table.prune_ends(1000)
        assert closed.called
        assert not clock.getDelayedCalls()
