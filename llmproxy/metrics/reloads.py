"""How often the configuration was read again, and how that went the last time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Reloads(Collector):
    """Counts reloads; the start, without which nothing runs, is the first good reading of the configuration.

    :param now: seconds since 1970.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._counts = {"good": 0, "bad": 0}
        self._last_was_good = True
        self._last_good = now()

    def add(self, good: bool) -> None:
        """Count one, and whether it was taken."""
        self._counts["good" if good else "bad"] += 1
        self._last_was_good = good
        if good:
            self._last_good = self._now()

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        reloads = CounterMetricFamily(
            "llmproxy_config_reloads",
            "Reloads of the configuration: good ones, and bad ones, which changed nothing.",
            labels=["result"],
        )
        for result, count in self._counts.items():
            reloads.add_metric([result], count)
        yield reloads
        yield GaugeMetricFamily(
            "llmproxy_config_last_reload_successful",
            "Whether the last reading of the configuration was good: 1, or 0 where an old one is still served.",
            value=self._last_was_good,
        )
        yield GaugeMetricFamily(
            "llmproxy_config_last_reload_success_timestamp_seconds",
            "When the configuration that is served was read, in seconds since 1970.",
            value=self._last_good,
        )
