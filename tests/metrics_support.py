"""Exchanges that are over, and what the gauges are read from, for the tests of metrics and logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from llmproxy.exchange import Ending, Exchange
from llmproxy.metrics import Sources
from llmproxy.usage.model import Reading, Usage

USAGE = Usage(
    input_tokens=10,
    output_tokens=20,
    cache_read_tokens=300,
    cache_write_5m_tokens=40,
    cache_write_1h_tokens=5,
    reasoning_tokens=15,
    server_tool_uses={"web_search_requests": 1},
)
READING = Reading(
    model="gpt-5-2026-01-01",
    response_id="resp_1",
    stop_reason="stop",
    service_tier=None,
    usage=USAGE,
    source="reported",
    outcome="complete",
)
COMPLETED = Exchange(
    client="ann",
    upstream="openai",
    method="POST",
    path="/openai/v1/chat/completions",
    started=1.0,
    begun_ns=1_795_372_024_056_789_000,  # 2026-11-22T18:27:04.056789Z
    id="019364a1b2c3d4e5f60718293a",
    status=200,
    asked_model="gpt-5",
    received=99,
    sent=1234,
    first_byte=0.25,
    first_token=0.5,
    duration=1.2345678,
    reused=True,
    upstream_request_id="req_7",
    labels={"x-claude-code-session-id": "s-1"},
    reading=READING,
    cost=1_234_567,
    ending=Ending.COMPLETED,
)


def exchange(**changes: Any) -> Exchange:
    """An exchange that went well, but for some changes."""
    return attrs.evolve(COMPLETED, **changes)


def reading(**changes: Any) -> Reading:
    """What was read of its answer, but for some changes."""
    return attrs.evolve(READING, **changes)


@attrs.define
class Pool:
    """See :class:`~llmproxy.metrics.PoolState`."""

    open: int
    idle: int
    waiting: int


@attrs.define
class Ledger:
    """See :class:`~llmproxy.metrics.LedgerState`."""

    backlog: int = 0
    dropped: int = 0
    failures: int = 0


@attrs.define
class State:
    """What is the case in a proxy, for a test to change."""

    connections: int = 0
    exchanges: Mapping[str, int] = attrs.field(factory=dict)
    streams: Mapping[str, int] = attrs.field(factory=dict)
    pools: list[tuple[str, Pool]] = attrs.field(factory=list)
    ledger: Ledger | None = attrs.field(factory=Ledger)

    def sources(self) -> Sources:
        """Read it anew each time."""
        return Sources(
            connections=lambda: self.connections,
            exchanges=lambda: self.exchanges,
            streams=lambda: self.streams,
            pools=lambda: self.pools,
            ledger=lambda: self.ledger,
        )
