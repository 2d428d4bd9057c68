from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from llmproxy.exchange import first_id
from llmproxy.ledger import Ledger, open_ledger, schema, store
from llmproxy.ledger.database import SQLite
from llmproxy.ledger.row import COLUMNS, row_of
from llmproxy.ledger.store import Store
from tests.ledger_support import NOON, Lines, exchange, lines, write

__all__ = ["lines"]  # a fixture


@attrs.frozen
class SmallDisk(SQLite):
    """A file that cannot grow beyond some pages, for as long as a list says so."""

    pages: list[int] = attrs.Factory(list)

    def begin(self, cursor: Any) -> None:
        cursor.execute(f"PRAGMA max_page_count = {self.pages[0] if self.pages else 2**30}")
        super().begin(cursor)


def written(database: SQLite, sql: str = "SELECT id FROM llmproxy_exchanges ORDER BY id") -> list[Any]:
    """What somebody else reads in a ledger."""
    with closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in connection.execute(sql).fetchall()]


def remove(database: SQLite) -> None:
    """Remove a ledger's files, as ``rm ledger.sqlite*`` does."""
    for file in list(database.path.parent.glob(f"{database.path.name}*")):
        file.unlink()


@pytest.fixture
def reactor() -> Any:
    from twisted.internet import reactor

    return reactor


@pytest.fixture
def database(tmp_path: Path) -> SmallDisk:
    return SmallDisk(tmp_path / "ledger.sqlite")


@pytest.fixture
def rows(database: SQLite, reactor: Any) -> Iterator[Store]:
    opened = Store(database, reactor)
    yield opened
    opened.close()


class TestStore:
    @pytest_twisted.inlineCallbacks
    def test_rows_are_there_for_others_when_it_says_so(self, rows: Store, database: SQLite) -> Any:
        yield rows.insert([row_of(exchange(id=name)) for name in "ab"])
        assert written(database) == ["a", "b"]

    @pytest_twisted.inlineCallbacks
    def test_a_row_that_is_there_already_stays_as_it_is(self, rows: Store, database: SQLite) -> Any:
        yield rows.insert([row_of(exchange(id="a", cost=1))])
        yield rows.insert([row_of(exchange(id=name, cost=2)) for name in "ab"])
        assert written(database, "SELECT cost FROM llmproxy_exchanges ORDER BY id") == [1, 2]

    @pytest_twisted.inlineCallbacks
    def test_the_oldest_are_deleted_some_at_a_time(self, rows: Store, database: SQLite) -> Any:
        yield rows.insert([row_of(exchange(at=NOON.replace(day=day))) for day in range(1, 6)])
        before = first_id(NOON.replace(day=4))
        for count in (2, 1, 0):
            assert (yield rows.prune(before, 2)) == count
        left = written(database, "SELECT substr(at, 1, 10) FROM llmproxy_exchanges ORDER BY at")
        assert left == ["2026-11-04", "2026-11-05"]

    @pytest_twisted.inlineCallbacks
    def test_a_batch_is_written_whole_or_not_at_all(self, rows: Store, database: SQLite) -> Any:
        yield rows.insert([])
        bad = ("b", *[None] * (len(COLUMNS) - 1))
        with pytest.raises(sqlite3.IntegrityError):
            yield rows.insert([row_of(exchange(id="a")), bad])
        assert written(database) == []
        yield rows.insert([row_of(exchange(id="a"))])
        assert written(database) == ["a"]

    @pytest_twisted.inlineCallbacks
    def test_a_file_that_was_removed_is_told_and_made_anew(self, rows: Store, database: SQLite) -> Any:
        yield rows.insert([row_of(exchange(id="a"))])
        remove(database)
        with pytest.raises(sqlite3.OperationalError, match=r"^the file was removed or replaced$"):
            yield rows.insert([row_of(exchange(id="b"))])
        assert not database.path.exists()
        yield rows.insert([row_of(exchange(id="b"))])
        assert written(database) == ["b"]

    @pytest_twisted.inlineCallbacks
    def test_a_file_that_is_removed_with_its_directory_is_too(self, tmp_path: Path, reactor: Any) -> Any:
        database = SQLite(tmp_path / "state" / "ledger.sqlite")
        rows = Store(database, reactor)
        yield rows.insert([])
        shutil.rmtree(database.path.parent)
        with pytest.raises(sqlite3.OperationalError, match="removed or replaced"):
            yield rows.insert([row_of(exchange(id="a"))])
        yield rows.insert([row_of(exchange(id="a"))])
        assert written(database) == ["a"]
        rows.close()

    @pytest_twisted.inlineCallbacks
    def test_a_file_that_took_its_place_is_told_and_gets_what_comes_and_nothing_of_the_old(
        self, rows: Store, database: SQLite
    ) -> Any:
        yield rows.insert([row_of(exchange(id="old"))])
        other = SQLite(database.path.with_name("backup"))
        write(other, [exchange(id=f"backup {number}") for number in range(3)])
        other.path.replace(database.path)  # while the old one's log keeps its name
        with pytest.raises(sqlite3.OperationalError, match="removed or replaced"):
            yield rows.insert([row_of(exchange(id="new"))])
        yield rows.insert([row_of(exchange(id="new"))])
        assert written(database) == ["backup 0", "backup 1", "backup 2", "new"]

    @pytest_twisted.inlineCallbacks
    def test_that_it_was_removed_is_left_to_be_told_when_rows_are_written(
        self, rows: Store, database: SQLite
    ) -> Any:
        yield rows.insert([])
        remove(database)
        yield rows.prune("", 1)
        with pytest.raises(sqlite3.OperationalError, match="removed or replaced"):
            yield rows.insert([])

    @pytest_twisted.inlineCallbacks
    def test_a_database_that_cannot_be_brought_up_to_date_is_left_alone(
        self, rows: Store, database: SQLite, monkeypatch: pytest.MonkeyPatch
    ) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(schema, "MIGRATIONS", (("CREATE TABLE half (a)", "NONSENSE"),))
            with pytest.raises(sqlite3.OperationalError, match="NONSENSE") as held:
                yield rows.insert([])
        yield rows.insert([row_of(exchange(id="a"))])
        assert written(database) == ["a"], held

    @pytest_twisted.inlineCallbacks
    def test_a_statement_that_hangs_is_given_up(
        self, rows: Store, database: SQLite, monkeypatch: pytest.MonkeyPatch
    ) -> Any:
        yield rows.insert([row_of(exchange())])
        monkeypatch.setattr(store, "_PATIENCE", 0.1)
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) DELETE FROM llmproxy_exchanges WHERE id IN n"
        monkeypatch.setattr(store, "_PRUNE", endless + " AND ? IS NOT ?")
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            yield rows.prune("", 1)

    @pytest_twisted.inlineCallbacks
    def test_names_are_resolved_while_the_database_hangs(
        self, rows: Store, database: SQLite, reactor: Any
    ) -> Any:
        yield rows.insert([])
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = rows.insert([row_of(exchange(id="a"))])
            for _ in range(2 * reactor.getThreadPool().max):
                yield reactor.resolve("localhost")
            assert not waiting.called
            other.rollback()
        yield waiting


class TestLedger:
    """The ledger on its own thread and a real file."""

    @pytest.fixture
    def ledger(self, database: SQLite, reactor: Any) -> Ledger:
        opened = open_ledger(database, reactor, max_waiting=100)
        opened.start()
        return opened

    @staticmethod
    def until(reactor: Any, condition: Callable[[], bool]) -> Deferred[None]:
        """Wait for what no event tells."""
        return Deferred.fromCoroutine(_until(reactor, condition))

    @pytest_twisted.inlineCallbacks
    def test_what_is_recorded_is_written_within_a_second(
        self, ledger: Ledger, database: SQLite, reactor: Any
    ) -> Any:
        yield self.until(reactor, lambda: database.path.exists())
        recorded = reactor.seconds()
        ledger.record(exchange(id="a"))
        yield self.until(reactor, lambda: not ledger.backlog)
        assert reactor.seconds() - recorded < 1
        assert written(database) == ["a"]
        yield ledger.close()

    @pytest_twisted.inlineCallbacks
    def test_what_waits_is_written_when_it_ends(self, ledger: Ledger, database: SQLite) -> Any:
        for number in range(50):
            ledger.record(exchange(id=f"{number:02}"))
        yield ledger.close()
        assert written(database) == [f"{number:02}" for number in range(50)]

    @pytest_twisted.inlineCallbacks
    def test_a_full_disk_is_told_once_and_what_waited_is_written_when_there_is_room(
        self, ledger: Ledger, database: SmallDisk, reactor: Any, lines: Lines
    ) -> Any:
        database.pages.append(12)
        for number in range(100):
            ledger.record(exchange(id=f"{number:03}", path="/" * 1000))
        yield self.until(reactor, lambda: ledger.failures >= 2)
        assert ledger.backlog == 100
        assert written(database) == []
        ledger.record(exchange(id="one too many"))
        database.pages.clear()
        yield self.until(reactor, lambda: not ledger.failing)
        assert written(database) == [f"{number:03}" for number in range(1, 100)] + ["one too many"]
        assert ledger.dropped == 1
        assert [line.partition(": ")[2][:33] for line in lines() if "cannot" in line] == [
            "database or disk is full. It is t"
        ]
        assert lines()[-1].endswith("is written again; 1 exchanges are missing from it.")
        yield ledger.close()

    @pytest_twisted.inlineCallbacks
    def test_a_file_that_is_removed_is_told_once_and_loses_nothing_from_then_on(
        self, ledger: Ledger, database: SmallDisk, reactor: Any, lines: Lines
    ) -> Any:
        ledger.record(exchange(id="a"))
        yield self.until(reactor, lambda: not ledger.backlog)
        remove(database)
        ledger.record(exchange(id="b"))
        yield self.until(reactor, lambda: ledger.failing)
        ledger.record(exchange(id="c"))
        yield self.until(reactor, lambda: not ledger.backlog)
        assert written(database) == ["b", "c"]
        assert (ledger.failures, ledger.dropped) == (1, 0)
        told, ended = lines()
        assert "cannot be written: the file was removed or replaced. It is tried again" in told
        assert ended.endswith("is written again; 0 exchanges are missing from it.")
        yield ledger.close()

    @pytest_twisted.inlineCallbacks
    def test_a_directory_that_is_not_there_is_made_once_it_can_be(
        self, tmp_path: Path, reactor: Any, lines: Lines
    ) -> Any:
        database = SQLite(tmp_path / "later" / "still" / "ledger.sqlite")
        (tmp_path / "later").write_text("a file is in the way")
        ledger = open_ledger(database, reactor)
        ledger.start()
        ledger.record(exchange(id="a"))
        yield self.until(reactor, lambda: ledger.failing)
        assert "cannot be written: [Errno 20] Not a directory" in lines()[0]
        (tmp_path / "later").unlink()
        yield self.until(reactor, lambda: not ledger.failing)
        yield ledger.close()
        assert written(database) == ["a"]


async def _until(reactor: Any, condition: Callable[[], bool]) -> None:
    deadline = reactor.seconds() + 20
    while not condition():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.02)
