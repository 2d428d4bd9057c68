"""Exchanges for the tests of the ledger, and what they add up to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from llmproxy.exchange import Ending, Exchange
from llmproxy.ledger.database import SQLite
from llmproxy.ledger.report import Question, Sum
from llmproxy.ledger.row import insertions, row_of
from llmproxy.usage.model import COUNTS, Reading, Usage

NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)

Lines = Callable[[], list[str]]


@implementer(ILogObserver)
class _Logged:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        self.lines.append(formatEvent(event))


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What was logged, as lines."""
    logged = _Logged()
    globalLogPublisher.addObserver(logged)
    yield lambda: logged.lines
    globalLogPublisher.removeObserver(logged)


def reading(usage: Usage | None = None, **changes: Any) -> Reading:
    """What a tap read; with usage, it was reported."""
    known = Reading(
        model="model-1-2026",
        response_id="msg_1",
        stop_reason="end_turn",
        service_tier="standard",
        usage=usage,
        source="absent" if usage is None else "reported",
        outcome="complete",
    )
    return attrs.evolve(known, **changes)


def exchange(at: datetime = NOON, **changes: Any) -> Exchange:
    """An exchange that went well."""
    known: dict[str, Any] = {
        "client": "alice",
        "upstream": "anthropic",
        "method": "POST",
        "path": "/anthropic/v1/messages",
        "started": 0.0,
        "begun_ns": (at - datetime.fromtimestamp(0, timezone.utc)) // timedelta(microseconds=1) * 1000,
        "status": 200,
        "asked_model": "model-1",
        "duration": 2.0,
        "ending": Ending.COMPLETED,
    }
    return Exchange(**{**known, **changes})


def complete() -> Exchange:
    """An exchange of which all is known."""
    counts: dict[str, Any] = {name: number for number, name in enumerate(COUNTS, 1)}
    usage = Usage(**counts, server_tool_uses={"web_search_requests": 2})
    return exchange(
        id="id-1",
        ending=Ending.UPSTREAM_FAILED,
        received=10,
        sent=20,
        first_byte=0.5,
        first_token=0.75,
        reused=True,
        upstream_request_id="req_1",
        socket="id-0",
        labels={"x-claude-code-agent-id": "agent", "x-claude-code-session-id": "session"},
        cost=123,
        reading=reading(usage, outcome="failed", error="overloaded_error"),
    )


def everyday() -> list[Exchange]:
    """Exchanges of two clients over two days, of which not all is known."""
    usage = Usage(input_tokens=100, output_tokens=20, cache_read_tokens=300, cache_write_5m_tokens=50)
    hours = timedelta(hours=1)
    return [
        *(
            exchange(
                at=NOON + number * hours,
                reading=reading(usage),
                cost=1_500,
                first_token=0.1 * number,
                labels={"x-claude-code-session-id": "session-1"},
            )
            for number in range(1, 5)
        ),
        exchange(at=NOON + 20 * hours, reading=reading(usage, model="model-2")),
        exchange(client="bob", reading=reading()),
        exchange(client="bob", reading=reading(usage, outcome="cut"), ending=Ending.CLIENT_LEFT),
        exchange(client="bob", status=None, ending=Ending.CLIENT_LEFT),
        exchange(client="bob", status=429),
        exchange(client="bob", method="GET", path="/anthropic/v1/models", reading=reading(model=None)),
        exchange(client="carol", status=403, ending=Ending.REFUSED, asked_model=None),
    ]


def write(database: SQLite, exchanges: Sequence[Exchange]) -> None:
    """Write exchanges to a ledger, as its writer does."""
    arguments, keywords = database.arguments()
    connection = sqlite3.connect(*arguments, **keywords)
    database.opened(connection)
    for statement, values in insertions(map(row_of, exchanges)):
        connection.executemany(statement, values)
    connection.close()


def check_everyday(ask: Callable[..., list[list[Sum]]]) -> None:
    """Assert what :func:`everyday` comes to, wherever it was written to."""
    by_client, by_day, first_day, only_bob, [total], [nothing] = ask(
        Question(by=("client",)),
        Question(by=("day", "model")),
        Question(by=("session",), until=NOON + timedelta(hours=12)),
        Question(by=("client", "upstream"), client="bob", since=NOON),
        Question(),
        Question(client="nobody"),
    )
    alice, bob, carol = by_client
    assert alice == Sum(
        key=("alice",),
        requests=5,
        errors=0,
        input_tokens=500,
        output_tokens=100,
        reasoning_tokens=None,
        cache_read_tokens=1500,
        cache_write_5m_tokens=250,
        cache_write_1h_tokens=None,
        cost=6_000,
        usage_unknown=0,
        cost_unknown=1,
        first_token_p50=0.2,
        first_token_p99=0.4,
    )
    assert alice.cache_hit_share == 1500 / 2250
    assert (bob.key, bob.requests, bob.errors) == (("bob",), 5, 1)
    # The answer without usage, the one that was left half way, and the one that was left before it came.
    assert (bob.usage_unknown, bob.cost_unknown, bob.input_tokens, bob.cost) == (3, 3, 100, None)
    assert (carol.requests, carol.errors, carol.usage_unknown, carol.cost_unknown) == (1, 1, 0, 0)
    assert (carol.input_tokens, carol.cost, carol.cache_hit_share, carol.first_token_p50) == (None,) * 4
    assert [(line.key, line.requests) for line in by_day if line.key[1] is not None] == [
        (("2026-11-20", "model-1"), 3),
        (("2026-11-20", "model-1-2026"), 6),
        (("2026-11-21", "model-2"), 1),
    ]
    assert {line.key: line.requests for line in first_day} == {("session-1",): 4, (None,): 6}
    assert [line.key for line in only_bob] == [("bob", "anthropic")]
    assert only_bob[0].requests == 5
    assert (total.key, total.requests, total.errors, total.cost, total.cost_unknown) == ((), 11, 2, 6_000, 4)
    assert (nothing.requests, nothing.errors, nothing.cost, nothing.usage_unknown) == (0, 0, None, 0)
