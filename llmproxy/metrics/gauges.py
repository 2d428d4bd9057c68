"""What is looked up when a scrape comes: what is open, what waits, and how the ledger is doing.

Nothing is kept here; each number is asked for where it is known anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class PoolState(Protocol):
    """The connections to an upstream."""

    @property
    def open(self) -> int:
        """How many there are: idle, in use, or being made."""
        ...

    @property
    def idle(self) -> int:
        """Those of them that wait for a request."""
        ...

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection."""
        ...


class LedgerState(Protocol):
    """How the ledger is doing."""

    @property
    def backlog(self) -> int:
        """How many records wait to be written."""
        ...

    @property
    def dropped(self) -> int:
        """How many records were lost since the start."""
        ...

    @property
    def failures(self) -> int:
        """How many writes failed since the start."""
        ...


@attrs.frozen
class Sources:
    """Where the gauges are read from, each time that they are asked for.

    :ivar connections: how many connections of clients are open.
    :ivar exchanges: by the names of upstreams, how many exchanges are not over.
    :ivar streams: the same of those of them whose answers have begun and are being passed on, tunnels included.
    :ivar pools: the connections to upstreams, each with the upstream's name; those of the same name are added up.
    :ivar ledger: ``None`` where there is no ledger.
    """

    connections: Callable[[], int]
    exchanges: Callable[[], Mapping[str, int]]
    streams: Callable[[], Mapping[str, int]]
    pools: Callable[[], Iterable[tuple[str, PoolState]]]
    ledger: Callable[[], LedgerState | None]


class Gauges(Collector):
    """Asks the sources."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        sources = self._sources
        yield GaugeMetricFamily(
            "llmproxy_client_connections",
            "Connections of clients that are open.",
            value=sources.connections(),
        )
        yield _by_upstream(
            "llmproxy_open_exchanges", "Requests to an upstream that are not over.", sources.exchanges()
        )
        yield _by_upstream(
            "llmproxy_open_streams",
            "Those open exchanges whose answers have begun and are being passed on.",
            sources.streams(),
        )
        yield from self._pools()
        ledger = sources.ledger()
        if ledger is not None:
            yield from _ledger(ledger)

    def _pools(self) -> Iterator[Metric]:
        open_, idle, waiting = Counter[str](), Counter[str](), Counter[str]()
        for upstream, pool in self._sources.pools():
            open_[upstream] += pool.open
            idle[upstream] += pool.idle
            waiting[upstream] += pool.waiting
        yield _by_upstream(
            "llmproxy_pool_connections", "Connections to an upstream: in use, idle or being made.", open_
        )
        yield _by_upstream(
            "llmproxy_pool_idle_connections", "Those of them that wait for a request to carry.", idle
        )
        yield _by_upstream(
            "llmproxy_pool_waiting_requests",
            "Requests that wait for a connection, as the upstream has as many as it may.",
            waiting,
        )


def _by_upstream(name: str, documentation: str, values: Mapping[str, int]) -> Metric:
    gauge = GaugeMetricFamily(name, documentation, labels=["upstream"])
    for upstream, value in values.items():
        gauge.add_metric([upstream], value)
    return gauge


def _ledger(ledger: LedgerState) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "llmproxy_ledger_backlog_records", "Records that wait to be written.", value=ledger.backlog
    )
    yield CounterMetricFamily(
        "llmproxy_ledger_dropped_records",
        "Records that were lost, as too many waited or the database refused them.",
        value=ledger.dropped,
    )
    yield CounterMetricFamily(
        "llmproxy_ledger_write_failures", "Writes to the ledger that failed.", value=ledger.failures
    )
