"""Metrics for Prometheus: what was counted of the exchanges that are over, and what is the case when a scrape comes.

:class:`Metrics` is told of exchanges and of reloads, and holds the registry that ``/metrics`` is made from; prometheus_client
writes it out. Counting is in :mod:`~llmproxy.metrics.counts`, what is looked up at a scrape in :mod:`~llmproxy.metrics.gauges`.
Who may scrape is for :mod:`llmproxy.admin` and its listener to say.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from twisted.copyright import version as twisted_version

from llmproxy import __version__
from llmproxy.exchange import Exchange
from llmproxy.metrics.counts import Counts
from llmproxy.metrics.gauges import Gauges, LedgerState, PoolState, Sources
from llmproxy.metrics.reloads import Reloads

__all__ = ["LedgerState", "Metrics", "PoolState", "Sources"]


class Metrics:
    """All metrics of the process.

    :param sources: where the gauges are read from.
    :param now: seconds since 1970, for the time of a reload.
    :ivar registry: what ``/metrics`` shows.
    """

    def __init__(self, sources: Sources, now: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry()
        self._counts = Counts()
        self._reloads = Reloads(now)
        for collector in (_Build(), self._counts, Gauges(sources), self._reloads):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        """Count exchanges that are over."""
        self._counts.observe(exchanges)

    def reloaded(self, good: bool) -> None:
        """Count a reload of the configuration, and whether it was taken."""
        self._reloads.add(good)


class _Build(Collector):
    """Which software this is."""

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "llmproxy_build",
            "The versions of llmproxy and of what it runs on.",
            {
                "version": __version__,
                "twisted_version": twisted_version,
                "python_version": platform.python_version(),
            },
        )
