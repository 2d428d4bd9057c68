from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from llmproxy.ledger.database import SQLite
from llmproxy.ledger.report import LedgerError, Question, ask
from llmproxy.ledger.row import insertions, row_of
from tests.cli_support import Shell, shell
from tests.ledger_support import exchange, write

__all__ = ["shell"]  # a fixture

NOBODY = 65534


def requests(database: SQLite) -> int:
    """What somebody who asks is told."""
    [[line]] = ask(database, Question())
    return line.requests


@contextmanager
def written_to(database: SQLite, *ids: str) -> Iterator[sqlite3.Connection]:
    """A proxy that has written, and goes on."""
    arguments, keywords = database.arguments()
    with closing(sqlite3.connect(*arguments, **keywords)) as connection:
        database.opened(connection)
        add(connection, *ids)
        yield connection


def add(connection: sqlite3.Connection, *ids: str) -> None:
    for statement, values in insertions([row_of(exchange(id=name)) for name in ids]):
        connection.executemany(statement, values)


def killed(database: SQLite, *ids: str) -> None:
    """A proxy that has written, and left its files as they were."""
    running = SQLite(database.path.with_name("running"))
    with written_to(running, *ids):
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{running.path}{suffix}", f"{database.path}{suffix}")


def files(database: SQLite) -> list[str]:
    return sorted(file.name for file in database.path.parent.iterdir())


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write in a directory: root, who may write anywhere, is somebody else meanwhile."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        for file in folder.iterdir():
            file.chmod(0o644)
        os.seteuid(NOBODY)
    try:
        assert not os.access(folder, os.W_OK, effective_ids=True)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that others can look into, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def database(folder: Path) -> SQLite:
    return SQLite(folder / "ledger #1.sqlite3")


class TestClosed:
    def test_reading_leaves_nothing_behind(self, database: SQLite) -> None:
        write(database, [exchange()])
        assert requests(database) == 1
        assert files(database) == [database.path.name]

    def test_it_is_read_where_nothing_may_be_written(self, database: SQLite) -> None:
        write(database, [exchange()])
        with read_only(database.path.parent):
            assert requests(database) == 1

    def test_so_it_is_by_the_command(self, database: SQLite, shell: Shell) -> None:
        write(database, [exchange()])
        shell.environ["LLMPROXY_LEDGER"] = database.path.as_uri().replace("file:", "sqlite:")
        with read_only(database.path.parent):
            assert "alice" in shell.run("usage").out

    def test_an_empty_log_holds_nothing(self, database: SQLite) -> None:
        write(database, [exchange()])
        Path(f"{database.path}-wal").touch()
        with read_only(database.path.parent):
            assert requests(database) == 1

    def test_a_log_that_is_taken_away_meanwhile_has_left_nothing_out(
        self, database: SQLite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(database, [exchange()])
        monkeypatch.setattr("llmproxy.ledger.sqlite_reading.os.path.exists", lambda _: True)
        with read_only(database.path.parent):
            assert requests(database) == 1

    def test_a_proxy_that_starts_meanwhile_makes_no_wrong_sum(self, database: SQLite) -> None:
        write(database, [exchange()])

        def add_and_checkpoint(proxy: sqlite3.Connection) -> None:
            add(proxy, "b")
            proxy.execute("PRAGMA wal_checkpoint").fetchall()

        def read_while(happens: Callable[[sqlite3.Connection], object]) -> int:
            with ExitStack() as proxies, database.read() as connection:
                happens(proxies.enter_context(written_to(database)))
                rows = connection.execute("SELECT COUNT(*) FROM llmproxy_exchanges").fetchone()
            return int(rows[0])

        assert read_while(lambda proxy: add(proxy, "a")) == 1  # it is in the log until that is closed
        with pytest.raises(sqlite3.OperationalError, match="began to write to it meanwhile; ask again"):
            read_while(add_and_checkpoint)

    def test_what_is_wrong_meanwhile_may_come_of_that(self, database: SQLite) -> None:
        write(database, [exchange()])
        reading = database.read()
        reading.__enter__()
        os.utime(database.path)
        malformed = sqlite3.DatabaseError("database disk image is malformed")
        with pytest.raises(sqlite3.OperationalError, match="ask again"):
            reading.__exit__(sqlite3.DatabaseError, malformed, None)


class TestOpen:
    def test_what_is_in_the_log_is_read(self, database: SQLite) -> None:
        with written_to(database, "a") as proxy:
            assert requests(database) == 1
            add(proxy, "b")
            assert requests(database) == 2
        assert files(database) == [database.path.name]

    def test_the_log_is_found_beside_what_a_link_leads_to(self, database: SQLite) -> None:
        link = SQLite(database.path.parent / "elsewhere" / "link")
        link.path.parent.mkdir()
        link.path.symlink_to(database.path)
        with written_to(database, "a"):
            assert requests(link) == 1

    def test_what_somebody_who_was_killed_left_is_read(self, database: SQLite) -> None:
        killed(database, "a")
        assert requests(database) == 1
        killed(database, "a", "b")
        with read_only(database.path.parent):
            assert requests(database) == 2

    def test_a_log_that_cannot_be_read_is_told_with_what_to_do(self, database: SQLite) -> None:
        killed(database, "a")
        log = Path(f"{database.path}-wal")
        with read_only(database.path.parent):
            with _as_ourselves():
                log.chmod(0)
            with pytest.raises(LedgerError) as caught:
                requests(database)
        assert str(caught.value) == (
            f"The ledger {database} cannot be read: what was written last is in {os.path.realpath(log)}, and SQLite reads that "
            "only where it may write beside it; ask as the user of the proxy, or copy both files to where you may write."
        )

    def test_one_that_is_locked_is_not_read_past_its_lock(
        self, database: SQLite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.ledger.sqlite_reading._BUSY", 0.01)
        with written_to(database, "a") as proxy:
            proxy.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            proxy.execute("PRAGMA locking_mode = EXCLUSIVE")
            add(proxy, "b")
            Path(f"{database.path}-wal").write_bytes(b"")
            with pytest.raises(LedgerError, match="locked"):
                requests(database)


@contextmanager
def _as_ourselves() -> Iterator[None]:
    """Do something as who runs the tests."""
    now = os.geteuid()
    os.seteuid(os.getuid())
    try:
        yield
    finally:
        os.seteuid(now)
