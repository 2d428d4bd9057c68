"""The ledger where things go wrong: processes that are killed, disks that are full, servers that come and go."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import psycopg
import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from llmproxy.cli.main import main
from llmproxy.ledger import Database, Ledger, open_ledger, parse_ledger, schema, store
from llmproxy.ledger.database import PostgreSQL
from llmproxy.ledger.report import LedgerError, Question, ask
from llmproxy.usage.model import Usage
from tests.integration import postgresql
from tests.integration.ledger_process import INTERVAL
from tests.integration.postgresql import PASSWORD, Server
from tests.integration.process import ROOT, environment, eventually
from tests.ledger_support import Lines, check_everyday, everyday, exchange, lines, reading

__all__ = ["lines"]  # a fixture


class Recorder:
    """A process that records; see :mod:`tests.integration.ledger_process`."""

    def __init__(self, ledger: str, name: str, seconds: float, **settings: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.ledger_process", name, str(seconds)],
            env=environment({"LLMPROXY_LEDGER": ledger, **settings}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self) -> list[str]:
        """End it as nothing can be prevented, and return the ids that it has recorded."""
        self._process.send_signal(signal.SIGKILL)
        out, _ = self._process.communicate(timeout=30)
        return out.split("\n")[:-1]

    def ended(self) -> tuple[list[str], str]:
        """Wait for its end; the lines that it printed, and its log."""
        out, log = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, log
        return out.splitlines(), log


def in_file(path: Path) -> list[str]:
    """The ids in a file, which must be whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchall():
            return []
        return [row[0] for row in connection.execute("SELECT id FROM llmproxy_exchanges ORDER BY id")]


class TestSQLite:
    def test_a_process_that_is_killed_loses_at_most_its_last_second(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.sqlite"
        kept: list[str] = []
        for number in range(3):
            process = Recorder(f"sqlite://{path}", f"run{number}", 60)
            eventually(lambda: path.exists() and in_file(path) > kept, "some is written")
            time.sleep(0.7 * number)  # at another moment between two writes each time
            recorded = process.kill()
            here = in_file(path)[len(kept) :]
            assert here == recorded[: len(here)], "all up to a moment is there"
            assert len(recorded) - len(here) <= 1.0 / INTERVAL
            kept.extend(here)

    def test_a_full_disk_slows_nothing_and_loses_nothing_that_can_wait(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.sqlite"
        printed, log = Recorder(f"sqlite://{path}", "run", 3, ROOM="70000").ended()
        told = re.fullmatch(r"full: True, backlog (\d+)", printed[-2])
        assert told is not None
        assert 0 < int(told[1]) < 550
        ended = re.fullmatch(r"recorded (\d+), dropped 0, slowest ([0-9.]+)", printed[-1])
        assert ended is not None
        assert float(ended[2]) < 0.1
        assert len(in_file(path)) == int(ended[1])
        assert log.count("cannot be written") == 1
        assert "Traceback" not in log

    def test_two_processes_write_to_one_file(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.sqlite"
        processes = [Recorder(f"sqlite://{path}", name, 2) for name in ("one", "two")]
        recorded = [line for process in processes for line in process.ended()[0][:-1]]
        assert sorted(recorded) == in_file(path)


@pytest.fixture(scope="module")
def running_server() -> Iterator[Server]:
    if postgresql.programs() is None:
        pytest.skip("there is no PostgreSQL here; Debian: apt install postgresql")
    yield from postgresql.server()


@pytest.fixture
def url(running_server: Server, request: pytest.FixtureRequest) -> str:
    """Of a database that is empty."""
    return running_server.create(re.sub(r"\W", "_", request.node.name)[:60])


@pytest.fixture
def database(url: str) -> Database:
    parsed = parse_ledger(url)
    assert isinstance(parsed, PostgreSQL)
    return parsed


@pytest.fixture
def reactor() -> Any:
    from twisted.internet import reactor

    return reactor


@pytest.fixture
def ledger(database: Database, reactor: Any) -> Iterator[Ledger]:
    opened = open_ledger(database, reactor)
    opened.start()
    yield opened
    pytest_twisted.blockon(opened.close())


def in_server(url: str, sql: str = "SELECT id FROM llmproxy_exchanges ORDER BY id") -> list[Any]:
    with closing(psycopg.connect(url)) as connection:
        return [row[0] for row in connection.execute(sql)]


def until(reactor: Any, condition: Callable[[], bool]) -> Deferred[None]:
    """Wait for what no event tells."""
    return Deferred.fromCoroutine(_until(reactor, condition))


async def _until(reactor: Any, condition: Callable[[], bool]) -> None:
    deadline = reactor.seconds() + 30
    while not condition():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.02)


class TestPostgreSQL:
    @pytest_twisted.inlineCallbacks
    def test_everyday_exchanges_come_to_the_same(self, ledger: Ledger, database: Database) -> Any:
        for given in everyday():
            ledger.record(given)
        yield ledger.close()
        check_everyday(lambda *questions: ask(database, *questions))

    @pytest_twisted.inlineCallbacks
    def test_tokens_that_were_only_counted_are_no_part_of_the_sums(
        self, ledger: Ledger, database: Database
    ) -> Any:
        count = exchange(reading=reading(Usage(input_tokens=5_000, billable=False)), cost=0)
        for given in (count, exchange(reading=reading(Usage(input_tokens=1, output_tokens=1)))):
            ledger.record(given)
        ledger.record(attrs.evolve(count, id="2", client="bob"))
        yield ledger.close()
        [[alice], [bob]] = ask(database, Question(client="alice"), Question(client="bob"))
        assert (alice.input_tokens, alice.cost, alice.cost_unknown) == (1, None, 1)
        assert (bob.input_tokens, bob.cost, bob.cost_unknown) == (None, 0, 0)

    @pytest_twisted.inlineCallbacks
    def test_whatever_came_is_written(self, ledger: Ledger, url: str) -> Any:
        names = ["\0", "\ud800", "模型", "%s", "'", "m" * 1000]
        for number, name in enumerate(names):
            ledger.record(exchange(id=str(number), asked_model=name, labels={"x-session-id": name}))
        yield ledger.close()
        models = in_server(url, "SELECT asked_model FROM llmproxy_exchanges ORDER BY id")
        assert models == ["\ufffd", "\ufffd", "模型", "%s", "'", "m" * 256]
        sql = "SELECT labels ->> 'x-session-id' FROM llmproxy_exchanges ORDER BY id"
        assert in_server(url, sql) == models

    @pytest_twisted.inlineCallbacks
    def test_old_rows_are_deleted(self, database: Database, reactor: Any, url: str) -> Any:
        ledger = open_ledger(database, reactor, retention=30)
        ledger.record(exchange(client="old", at=exchange().at.replace(year=2000)))
        ledger.record(exchange(client="new", at=exchange().at.replace(year=2126)))
        ledger.start()
        yield until(
            reactor, lambda: in_server(url, "SELECT 1 FROM pg_tables WHERE tablename LIKE 'llm%'") != []
        )
        yield until(reactor, lambda: in_server(url, "SELECT client FROM llmproxy_exchanges") == ["new"])
        yield ledger.close()

    @pytest_twisted.inlineCallbacks
    def test_time_goes_by_bytes_also_where_the_database_sorts_by_a_language(
        self, running_server: Server, reactor: Any
    ) -> Any:
        try:
            url = running_server.create("danish", language="da")
        except psycopg.Error as error:  # before PostgreSQL 15, or built without ICU
            pytest.skip(str(error))
        assert in_server(url, "SELECT 'aa' > 'b'") == [True]
        before, border, after = (
            datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
            for milliseconds in (0x019A_9000_0000, 0x019A_A000_0000, 0x019A_B000_0000)
        )
        database = parse_ledger(url)
        assert database is not None
        with patch.object(schema, "MIGRATIONS", schema.MIGRATIONS[:3]):  # a ledger of before it did
            ledger = open_ledger(database, reactor)
            ledger.record(exchange(before, client="old"))
            yield ledger.close()
        now = border + timedelta(days=1)
        ledger = Ledger(store.Store(database, reactor), reactor, retention=1, now=lambda: now)
        ledger.record(exchange(after, client="new"))
        ledger.start()
        yield until(reactor, lambda: in_server(url, "SELECT client FROM llmproxy_exchanges") == ["new"])
        yield ledger.close()
        sums = ask(database, Question(since=border), Question(until=border))
        assert [[found.requests for found in group] for group in sums] == [[1], [0]]

    @pytest_twisted.inlineCallbacks
    def test_a_server_that_goes_is_waited_for(
        self, ledger: Ledger, running_server: Server, url: str, reactor: Any, lines: Lines
    ) -> Any:
        ledger.record(exchange(id="a"))
        yield until(reactor, lambda: not ledger.backlog)
        running_server.stop()
        try:
            ledger.record(exchange(id="b"))
            yield until(reactor, lambda: ledger.failures >= 2)
            ledger.record(exchange(id="c"))
            assert ledger.backlog == 2
        finally:
            running_server.start()
        yield until(reactor, lambda: not ledger.backlog)
        assert in_server(url) == ["a", "b", "c"]
        told = [line for line in lines() if "ledger" in line]
        assert ["cannot be written" in line for line in told] == [True, False]
        assert PASSWORD not in "".join(lines())

    @pytest_twisted.inlineCallbacks
    def test_a_server_that_hangs_is_given_up_and_found_again(
        self, ledger: Ledger, running_server: Server, url: str, reactor: Any, monkeypatch: pytest.MonkeyPatch
    ) -> Any:
        ledger.record(exchange(id="a"))
        yield until(reactor, lambda: not ledger.backlog)
        monkeypatch.setattr(store, "_PATIENCE", 0.5)
        running_server.freeze()
        try:
            ledger.record(exchange(id="b"))
            yield until(reactor, lambda: ledger.failing)
        finally:
            running_server.thaw()
        monkeypatch.undo()
        yield until(reactor, lambda: not ledger.backlog)
        assert in_server(url) == ["a", "b"]

    def test_two_proxies_share_a_database_that_was_empty(self, url: str, database: Database) -> None:
        processes = [Recorder(url, name, 2) for name in ("one", "two")]
        outcomes = [process.ended() for process in processes]
        recorded = [line for printed, _ in outcomes for line in printed[:-1]]
        assert sorted(recorded) == in_server(url)
        numbers = in_server(url, "SELECT number FROM llmproxy_migrations")
        assert numbers == list(range(1, len(schema.MIGRATIONS) + 1))
        [sums] = ask(database, Question(by=("client",)))
        assert {line.key[0]: line.cost for line in sums} == {
            name: 3 * len([line for line in recorded if line.startswith(name)]) for name in ("one", "two")
        }
        assert not [log for _, log in outcomes if "cannot be written" in log or PASSWORD in log]

    def test_a_wrong_password_is_told_without_it(self, running_server: Server) -> None:
        database = parse_ledger(running_server.url().replace(PASSWORD, "wr0ng-pass"))
        assert database is not None
        with pytest.raises(LedgerError, match="authentication failed") as caught:
            ask(database, Question())
        assert "wr0ng-pass" not in str(caught.value)

    def test_a_database_without_tables_is_no_ledger_yet(self, database: Database) -> None:
        with pytest.raises(
            LedgerError, match=r"There is no ledger in postgresql://llmproxy@127\.0\.0\.1:\d+/\w+ yet"
        ):
            ask(database, Question())

    @pytest_twisted.inlineCallbacks
    def test_the_command_reads_it(
        self, ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Any:
        ledger.record(exchange())
        yield ledger.close()
        monkeypatch.setenv("LLMPROXY_LEDGER", url)
        assert main(["usage", "--by", "day"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["2026-11-20", "1"]
