"""Histograms of times, as cheap as a list; the objects of prometheus_client are made when a scrape comes."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

# Seconds: from an error that comes at once to an answer that was thought about for ten minutes, and close together where people
# wait for a first token.
BUCKETS = (
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    3.0,
    5.0,
    7.5,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_LIMITS = (*map(str, BUCKETS), "+Inf")


class Histogram:
    """Counts values by :data:`BUCKETS`; the last count is of those above all of them."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * len(_LIMITS)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        # The upper bound of a bucket belongs to it.
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def show(self, family: HistogramMetricFamily, *labels: str) -> None:
        """Add it to a :func:`family`; its counts are cumulative there."""
        family.add_metric(labels, list(zip(_LIMITS, accumulate(self._counts), strict=True)), self._sum)


def family(name: str, documentation: str, *labels: str) -> HistogramMetricFamily:
    """Make what histograms are shown in, by upstream and other labels."""
    return HistogramMetricFamily(name, documentation, labels=["upstream", *labels], unit="seconds")
