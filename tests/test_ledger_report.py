from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest

from llmproxy.exchange import Ending, Exchange
from llmproxy.ledger import schema
from llmproxy.ledger.database import SQLite
from llmproxy.ledger.report import LedgerError, Question, Sum, ask
from llmproxy.usage.model import Reading, Usage, free
from tests.ledger_support import NOON, check_everyday, everyday, exchange, reading, write


@pytest.fixture
def database(tmp_path: Path) -> SQLite:
    return SQLite(tmp_path / "ledger.sqlite")


def total(database: SQLite, *exchanges: Exchange) -> Sum:
    """What exchanges come to."""
    write(database, exchanges)
    [[line]] = ask(database, Question())
    return line


def used(**changes: Any) -> Exchange:
    """An exchange of tokens."""
    usage = Usage(input_tokens=100, output_tokens=20, cache_read_tokens=300)
    return exchange(**{"reading": reading(usage), "cost": 7, **changes})


def counted(**changes: Any) -> Exchange:
    """An exchange that only told how many tokens there would be, as the providers' calls for that do."""
    usage = Usage(input_tokens=5_000, cache_read_tokens=5_000, billable=False)
    return exchange(**{"reading": reading(usage), "cost": 0, **changes})


class TestSums:
    def test_everyday_exchanges(self, database: SQLite) -> None:
        write(database, everyday())
        check_everyday(lambda *questions: ask(database, *questions))

    def test_who_cost_most_comes_first_and_days_come_in_their_order(self, database: SQLite) -> None:
        write(
            database,
            [
                exchange(client="a", cost=1),
                exchange(client="b", cost=3, at=exchange().at.replace(day=1)),
                exchange(client="c", cost=2),
                exchange(client="d"),
                exchange(client="d"),
                exchange(client="e"),
            ],
        )
        clients, days = ask(database, Question(by=("client",)), Question(by=("day",)))
        assert [line.key[0] for line in clients] == ["b", "c", "a", "d", "e"]
        assert [line.key[0] for line in days] == ["2026-11-01", "2026-11-20"]

    def test_tokens_that_were_only_counted_were_not_used(self, database: SQLite) -> None:
        line = total(database, used(), counted())
        assert (line.requests, line.input_tokens, line.cache_hit_share, line.cost) == (2, 100, 0.75, 7)
        assert (line.usage_unknown, line.cost_unknown) == (0, 0)

    def test_a_client_named_like_sql_is_a_client(self, database: SQLite) -> None:
        write(database, [exchange(client="x' OR '1'='1"), exchange()])
        [[line]] = ask(database, Question(client="x' OR '1'='1"))
        assert line.requests == 1

    def test_the_turns_of_a_socket_are_requests_whose_usage_is_known(self, database: SQLite) -> None:
        socket = exchange(method="GET", status=101, reading=reading(None, source="turns"))
        turn = attrs.evolve(socket, socket=socket.id, reading=reading(Usage(input_tokens=5, output_tokens=1)))
        turns = [attrs.evolve(turn, id=f"{socket.id} {number}", cost=3) for number in range(2)]
        line = total(database, *turns, socket)
        assert (line.requests, line.errors, line.input_tokens, line.output_tokens, line.cost) == (
            3,
            0,
            10,
            2,
            6,
        )
        assert (line.usage_unknown, line.cost_unknown) == (0, 0)
        left = attrs.evolve(turn, id=f"{socket.id} 2", reading=reading(None, outcome="cut"))
        refused = attrs.evolve(
            turn,
            id=f"{socket.id} 3",
            cost=0,
            reading=reading(Usage(billable=False), source="free", outcome="failed"),
        )
        line = total(database, left, refused)
        assert (line.requests, line.errors, line.usage_unknown, line.cost_unknown, line.cost) == (
            5,
            1,
            1,
            1,
            6,
        )

    def test_a_time_is_meant_to_the_microsecond(self, database: SQLite) -> None:
        write(
            database,
            [exchange(at=NOON + timedelta(microseconds=number)) for number in (-1, 0, 499, 500, 1000)],
        )

        def requests(since: int | None, until: int | None) -> int:
            since_, until_ = (
                None if at is None else NOON + timedelta(microseconds=at) for at in (since, until)
            )
            [[line]] = ask(database, Question(since=since_, until=until_))
            return line.requests

        assert [requests(since, None) for since in (-1, 0, 1, 500, 501, 1001)] == [5, 4, 3, 2, 1, 0]
        assert [requests(None, until) for until in (-1, 0, 1, 500, 501, 1001)] == [0, 1, 2, 3, 4, 5]
        assert requests(0, 500) == 2

    def test_the_ends_of_time_are_times(self, database: SQLite) -> None:
        write(database, [exchange()])
        earliest, latest = datetime(1, 1, 1, tzinfo=timezone.utc), datetime(9999, 12, 31, tzinfo=timezone.utc)
        [[line]] = ask(database, Question(since=earliest, until=latest))
        assert line.requests == 1

    @pytest.mark.parametrize(
        ("count", "p50", "p99"), [(1, 1, 1), (2, 1, 2), (3, 2, 3), (100, 50, 99), (101, 51, 100)]
    )
    def test_percentiles_are_times_that_were_measured(
        self, database: SQLite, count: int, p50: float, p99: float
    ) -> None:
        times: list[float | None] = [None, *range(1, count + 1), None]
        line = total(database, *(exchange(first_token=time) for time in times))
        assert (line.first_token_p50, line.first_token_p99) == (p50, p99)


class TestUnknown:
    @pytest.mark.parametrize("source", ["absent", "too_large", "undecodable"])
    def test_an_answer_without_usage_is_counted(self, database: SQLite, source: str) -> None:
        line = total(database, exchange(reading=reading(source=source)))
        assert (line.usage_unknown, line.cost_unknown) == (1, 1)

    @pytest.mark.parametrize("unread", [None, reading(source="none")])
    @pytest.mark.parametrize(
        "answered",
        [
            exchange(path="/openai/v1/audio/speech"),
            exchange(status=202),
            exchange(ending=Ending.CLIENT_LEFT),
            exchange(method="GET", status=101),
        ],
    )
    def test_an_answer_that_nobody_reads_may_have_cost_something(
        self, database: SQLite, answered: Exchange, unread: Reading | None
    ) -> None:
        answered = attrs.evolve(answered, reading=unread)
        line = total(database, answered)
        assert (line.usage_unknown, line.cost_unknown) == (1, 1)

    @pytest.mark.parametrize(
        "unanswered",
        [
            exchange(status=None, ending=Ending.CLIENT_LEFT),
            exchange(status=504, ending=Ending.UPSTREAM_SILENT),
            exchange(status=502, ending=Ending.UPSTREAM_FAILED),
            exchange(status=500, ending=Ending.PROXY_FAILED),
        ],
    )
    def test_a_request_that_was_sent_and_got_no_answer_may_have_cost_something(
        self, database: SQLite, unanswered: Exchange
    ) -> None:
        line = total(database, unanswered)
        assert (line.usage_unknown, line.cost_unknown) == (1, 1)

    @pytest.mark.parametrize(
        "ending", [Ending.CLIENT_LEFT, Ending.UPSTREAM_FAILED, Ending.UPSTREAM_SILENT, Ending.PROXY_FAILED]
    )
    @pytest.mark.parametrize("usage", [None, Usage(input_tokens=1, output_tokens=1)])
    def test_an_answer_that_was_cut_off_cost_what_nobody_knows(
        self, database: SQLite, ending: Ending, usage: Usage | None
    ) -> None:
        line = total(database, exchange(first_byte=0.1, reading=reading(usage, outcome="cut"), ending=ending))
        assert (line.usage_unknown, line.cost_unknown) == (1, 1)

    @pytest.mark.parametrize(
        "other",
        [
            exchange(status=500, first_byte=0.1, reading=reading()),
            exchange(status=502, first_byte=0.1, ending=Ending.UPSTREAM_FAILED),
            exchange(status=502, ending=Ending.UPSTREAM_FAILED, reading=free(whole=False)),
            exchange(status=429, first_byte=0.1),
            exchange(status=307, first_byte=0.1),
            exchange(method="GET", reading=reading()),
            exchange(method="GET"),
            exchange(method="GET", status=None, ending=Ending.CLIENT_LEFT),
            exchange(status=None, ending=Ending.CLIENT_LEFT, reading=free(whole=False)),
            exchange(method="GET", status=504, ending=Ending.UPSTREAM_SILENT),
            exchange(status=404, ending=Ending.REFUSED),
            exchange(status=503, ending=Ending.REFUSED),
            exchange(status=400, ending=Ending.UPSTREAM_FAILED),
        ],
    )
    def test_what_makes_no_tokens_is_not(self, database: SQLite, other: Exchange) -> None:
        line = total(database, other)
        assert (line.usage_unknown, line.cost_unknown) == (0, 0)

    def test_a_websocket_is_a_get_that_makes_tokens(self, database: SQLite) -> None:
        assert total(database, exchange(method="GET", status=101, reading=reading())).usage_unknown == 1

    def test_usage_without_a_price_is_known_usage(self, database: SQLite) -> None:
        line = total(database, exchange(reading=reading(Usage(input_tokens=1, output_tokens=1))))
        assert (line.usage_unknown, line.cost_unknown, line.cost) == (0, 1, None)

    def test_a_cost_of_nothing_is_known(self, database: SQLite) -> None:
        line = total(database, counted())
        assert (line.input_tokens, line.cost_unknown, line.cost) == (None, 0, 0)

    def test_a_cost_of_nothing_makes_no_other_known(self, database: SQLite) -> None:
        write(database, [counted(), used(cost=None), *(counted(client="bob") for _ in range(3))])
        alice, bob = sorted(ask(database, Question(by=("client",)))[0], key=lambda line: str(line.key))
        assert (alice.cost, alice.cost_unknown) == (None, 1)
        assert (bob.cost, bob.cost_unknown) == (0, 0)

    def test_a_known_cost_stays_beside_them(self, database: SQLite) -> None:
        line = total(database, counted(), used(cost=None), used(cost=0))
        assert (line.cost, line.cost_unknown) == (0, 1)

    def test_a_count_that_was_cut_off_leaves_nothing_out(self, database: SQLite) -> None:
        cut = reading(Usage(input_tokens=1, billable=False), outcome="cut")
        line = total(database, exchange(reading=cut, cost=0, ending=Ending.CLIENT_LEFT))
        assert (line.usage_unknown, line.cost_unknown) == (0, 0)


class TestErrors:
    @pytest.mark.parametrize(
        "failed",
        [
            exchange(status=400),
            exchange(status=529),
            exchange(status=403, ending=Ending.REFUSED),
            exchange(ending=Ending.UPSTREAM_FAILED),
            exchange(status=None, ending=Ending.PROXY_FAILED),
            exchange(reading=reading(outcome="failed", error="overloaded_error")),
        ],
    )
    def test_these_are_some(self, database: SQLite, failed: Exchange) -> None:
        assert total(database, failed).errors == 1

    @pytest.mark.parametrize("fine", [exchange(), exchange(status=304), exchange(ending=Ending.CLIENT_LEFT)])
    def test_these_are_none(self, database: SQLite, fine: Exchange) -> None:
        assert total(database, fine).errors == 0


class TestUnreadable:
    def test_no_file(self, database: SQLite) -> None:
        with pytest.raises(LedgerError, match="cannot be read: unable to open database file"):
            ask(database, Question())

    def test_no_database(self, database: SQLite) -> None:
        database.path.write_bytes(b"x" * 5000)
        with pytest.raises(LedgerError, match="cannot be read: file is not a database"):
            ask(database, Question())

    def test_another_database(self, database: SQLite) -> None:
        sqlite3.connect(database.path).execute("CREATE TABLE other (a)").connection.close()
        with pytest.raises(LedgerError, match=r"There is no ledger in .*ledger\.sqlite yet"):
            ask(database, Question())

    def test_an_empty_file(self, database: SQLite) -> None:
        database.path.touch()
        with pytest.raises(LedgerError, match=r"There is no ledger in .*ledger\.sqlite yet"):
            ask(database, Question())
        assert database.path.stat().st_size == 0

    def test_an_older_ledger(self, database: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
        write(database, [])
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ()))
        with pytest.raises(LedgerError, match="made by an older llmproxy"):
            ask(database, Question())
