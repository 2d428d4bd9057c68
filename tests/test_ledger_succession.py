from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from llmproxy.ledger.database import Database, parse_ledger
from llmproxy.ledger.succession import Ledgers
from llmproxy.ledger.writer import Ledger
from tests.ledger_support import Lines, exchange, lines
from tests.test_ledger_writer import Table

__all__ = ["lines"]  # a fixture


class Tables(dict[str, Table]):
    """The tables of databases, by the names of these; each is there from when a ledger is opened in it."""

    def open(self, database: Database, clock: Any, **settings: Any) -> Ledger:
        name = str(database)
        table = self[name] = type(name, (Table,), {"__str__": lambda _: name})()
        return Ledger(table, clock, **settings)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    made = Tables()
    monkeypatch.setattr("llmproxy.ledger.succession.open_ledger", made.open)
    return made


@pytest.fixture
def ledgers(tables: Tables, clock: Clock) -> Ledgers:
    return Ledgers(clock)


def change(ledgers: Ledgers, name: str | None, max_waiting: int = 100, retention: int | None = None) -> None:
    database = None if name is None else parse_ledger(f"sqlite://{name}")
    ledgers.change(database, retention=retention, max_waiting=max_waiting)


def failing(ledgers: Ledgers, tables: Tables, name: str, *ids: str) -> Table:
    """Go on with a ledger that cannot be written, for which some exchanges wait."""
    change(ledgers, name)
    ledgers.observe(exchange(id=each) for each in ids)
    tables[name].fail()
    return tables[name]


def replaced_while_it_writes(ledgers: Ledgers, tables: Tables, clock: Clock) -> Table:
    """Go on with another ledger than the one to which "a" is on its way, behind which "b" waits."""
    change(ledgers, "/slow")
    slow = tables["/slow"]
    slow.succeed()
    ledgers.observe([exchange(id="a")])
    clock.advance(0.5)
    ledgers.observe([exchange(id="b")])
    change(ledgers, "/good")
    tables["/good"].succeed()
    return slow


def counts(ledgers: Ledgers) -> tuple[int, int, int]:
    return ledgers.backlog, ledgers.dropped, ledgers.failures


class TestRepair:
    """One that cannot be written is replaced by one that can."""

    def test_what_waits_goes_to_the_new_one_in_its_order_and_before_what_came_since(
        self, ledgers: Ledgers, tables: Tables, clock: Clock, lines: Lines
    ) -> None:
        bad = failing(ledgers, tables, "/bad", "a", "b", "c")
        change(ledgers, "/good")
        ledgers.observe([exchange(id="d")])
        tables["/good"].succeed()
        assert counts(ledgers) == (4, 0, 1)
        bad.fail()
        assert bad.closed
        assert counts(ledgers) == (4, 0, 2)
        assert lines()[-1] == "The last 3 exchanges could not be written to the ledger /bad, and go to /good."
        clock.advance(0.5)
        tables["/good"].succeed()
        assert tables["/good"].rows == ["a", "b", "c", "d"]
        assert counts(ledgers) == (0, 0, 2)
        assert not clock.getDelayedCalls()

    def test_what_waits_is_written_though_nothing_comes_since(
        self, ledgers: Ledgers, tables: Tables, clock: Clock
    ) -> None:
        bad = failing(ledgers, tables, "/bad", "a")
        change(ledgers, "/good")
        tables["/good"].succeed()
        bad.fail()
        clock.advance(0.5)
        tables["/good"].succeed()
        assert tables["/good"].rows == ["a"]

    def test_what_the_old_one_takes_in_the_end_stays_there(
        self, ledgers: Ledgers, tables: Tables, clock: Clock
    ) -> None:
        bad = failing(ledgers, tables, "/bad", "a")
        change(ledgers, "/good")
        tables["/good"].succeed()
        bad.succeed()
        clock.advance(1)
        assert (bad.rows, tables["/good"].rows) == (["a"], [])
        assert counts(ledgers) == (0, 0, 1)

    def test_a_batch_that_is_on_its_way_goes_nowhere_else_until_it_has_failed(
        self, ledgers: Ledgers, tables: Tables, clock: Clock
    ) -> None:
        slow = replaced_while_it_writes(ledgers, tables, clock)
        clock.advance(10)
        assert tables["/good"].wanted == [[]]
        assert ledgers.backlog == 2
        slow.fail()
        clock.advance(0.5)
        tables["/good"].succeed()
        assert (slow.rows, tables["/good"].rows) == ([], ["a", "b"])
        assert slow.closed

    def test_what_was_written_is_not_written_again(
        self, ledgers: Ledgers, tables: Tables, clock: Clock
    ) -> None:
        slow = replaced_while_it_writes(ledgers, tables, clock)
        slow.succeed()  # with what was on its way
        slow.fail()  # with what came then
        clock.advance(0.5)
        tables["/good"].succeed()
        assert (slow.rows, tables["/good"].rows) == (["a"], ["b"])

    def test_one_that_is_busy_goes_on_with_it_first(
        self, ledgers: Ledgers, tables: Tables, clock: Clock
    ) -> None:
        bad = failing(ledgers, tables, "/bad", "a")
        change(ledgers, "/good")
        bad.fail()
        clock.advance(10)
        assert tables["/good"].wanted == [[]]
        tables["/good"].succeed()
        clock.advance(0.5)
        tables["/good"].succeed()
        assert tables["/good"].rows == ["a"]

    def test_no_more_wait_than_the_new_one_lets_and_the_oldest_go(
        self, ledgers: Ledgers, tables: Tables, clock: Clock
    ) -> None:
        bad = failing(ledgers, tables, "/bad", *"abcd")
        change(ledgers, "/good", max_waiting=3)
        tables["/good"].succeed()
        ledgers.observe([exchange(id="e")])
        bad.fail()
        assert counts(ledgers) == (3, 2, 2)
        clock.advance(0.5)
        tables["/good"].succeed()
        assert tables["/good"].rows == ["c", "d", "e"]

    def test_one_that_cannot_be_written_either_keeps_them_for_the_next(
        self, ledgers: Ledgers, tables: Tables, clock: Clock
    ) -> None:
        bad = failing(ledgers, tables, "/bad", "a")
        worse = failing(ledgers, tables, "/worse", "b")
        change(ledgers, "/good")
        tables["/good"].succeed()
        worse.fail()
        bad.fail()  # last, though it was first
        clock.advance(0.5)
        tables["/good"].succeed()
        assert tables["/good"].rows == ["a", "b"]
        assert counts(ledgers) == (0, 0, 4)

    def test_so_does_one_that_has_just_failed(self, ledgers: Ledgers, tables: Tables, clock: Clock) -> None:
        bad = failing(ledgers, tables, "/bad", "a")
        change(ledgers, "/worse")
        tables["/worse"].fail()
        bad.fail()
        assert counts(ledgers) == (1, 0, 3)
        clock.advance(1)
        tables["/worse"].succeed()
        assert tables["/worse"].rows == ["a"]


class TestNone:
    def test_without_another_what_waits_is_lost_and_told_and_stays_counted(
        self, ledgers: Ledgers, tables: Tables, clock: Clock, lines: Lines
    ) -> None:
        bad = failing(ledgers, tables, "/bad", "a", "b")
        change(ledgers, None)
        bad.fail()
        assert lines()[-1] == "The last 2 exchanges are missing from the ledger /bad."
        assert counts(ledgers) == (0, 2, 2)
        assert ledgers.any
        change(ledgers, "/good")
        tables["/good"].succeed()
        assert counts(ledgers) == (0, 2, 2)
        assert not clock.getDelayedCalls()

    def test_there_may_never_have_been_one(self, ledgers: Ledgers) -> None:
        change(ledgers, None)
        ledgers.observe([exchange()])
        assert counts(ledgers) == (0, 0, 0)
        assert not ledgers.any
        assert ledgers.close().called


def test_where_nothing_is_different_nothing_is_changed(
    ledgers: Ledgers, tables: Tables, clock: Clock
) -> None:
    bad = failing(ledgers, tables, "/bad", "a")
    change(ledgers, "//bad")  # in another spelling
    assert list(tables) == ["/bad"]
    assert not bad.busy
    clock.advance(1)
    bad.succeed()
    assert bad.rows == ["a"]


def test_the_end_waits_for_what_an_old_one_leaves(ledgers: Ledgers, tables: Tables, clock: Clock) -> None:
    bad = failing(ledgers, tables, "/bad", "a")
    change(ledgers, "/good")
    tables["/good"].succeed()
    closed = ledgers.close()
    assert not closed.called
    bad.fail()
    assert not closed.called
    tables["/good"].succeed()
    assert closed.called
    assert tables["/good"].rows == ["a"]
    assert tables["/good"].closed
    assert not clock.getDelayedCalls()
