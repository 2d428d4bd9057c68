"""What the samples mean: the figures of each target, and whether a figure is its own or that of the load. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from bench.records import Sample

EVENT_RATE = 50
"""Events a second of a stream, about as a fast model writes."""

STALL = 0.020
"""Seconds of delay at the 99th percentile from which streams count as stalled: the time between two events."""

FLOWING = 0.75
"""The share of the expected events below which streams count as stalled."""

BUSY = 0.9
"""The share of its time from which on the load is taken to be what limits a figure."""

DISTURBED = 0.05
"""The share of its time from which on a proxy that waits for its core is worth a word."""


@attrs.frozen
class Result:
    """All that was recorded of a target.

    :ivar many: requests on many connections, each sent as soon as the one before was answered.
    :ivar few: requests on few connections, with pauses.
    :ivar events: streams that are well below what the target can do.
    :ivar rungs: more and more streams; the last one is where they stall, unless all flow.
    :ivar idle: streams of which each has an event now and then; None where no process is known whose memory they take.
    """

    many: Sample
    few: Sample
    events: Sample
    rungs: Sequence[Sample]
    idle: Sample | None


def flows(sample: Sample) -> bool:
    """Tell whether all streams of a sample flowed without a stall."""
    return (
        sample.opened == sample.connections
        and not sample.errors
        and sample.count >= FLOWING * (sample.expected or 0)
        and sample.p99 is not None
        and sample.p99 < STALL
    )


def most_streams(rungs: Sequence[Sample]) -> int:
    """Return the number of streams on the last rung before the first on which they stall; 0 if they stall on all."""
    most = 0
    for rung in rungs:
        if not flows(rung):
            break
        most = rung.connections
    return most


def load_bound(sample: Sample, shared: bool) -> bool:
    """Tell whether the load or the upstream had no time left, so that the target might have done more.

    :param shared: whether the two run on the same core.
    """
    used = [sample.cpu.get("load", 0.0), sample.cpu.get("upstream", 0.0)]
    return (sum(used) if shared else max(used)) >= BUSY * sample.seconds


def cpu_each(sample: Sample) -> float | None:
    """Return the seconds of CPU time that the proxy used for each answer or event; None where it is not known."""
    return sample.cpu["proxy"] / sample.count if sample.count and "proxy" in sample.cpu else None


def memory_each(sample: Sample | None) -> float | None:
    """Return the bytes by which the proxy grew for each connection; None where it is not known."""
    if sample is None or not sample.opened or "proxy" not in sample.resident_after:
        return None
    return (sample.resident_after["proxy"] - sample.resident_before["proxy"]) / sample.opened


def disturbance(result: Result) -> float:
    """Return the largest share of a sample's time for which other work had the core of a proxy that could have run."""
    samples = [result.many, result.few, result.events, *result.rungs]
    return max(sample.waited.get("proxy", 0.0) / sample.seconds for sample in samples)


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _added(result: Result, direct: Result, which: str) -> float | None:
    """The seconds that a proxy adds to a quantile of the latency; None for the upstream itself."""
    through, without = getattr(result.few, which), getattr(direct.few, which)
    return None if result is direct or through is None or without is None else through - without


@attrs.frozen
class Figure:
    """A line of the table.

    :ivar key: its name in the JSON file.
    :ivar title: its name for people.
    :ivar unit: of its value.
    :ivar digits: after the decimal point.
    :ivar more_is_better: which way is better.
    :ivar of: computes it from what was recorded of a target, and of the upstream asked directly.
    :ivar sample: what it comes from, where the load may be what limits it.
    """

    key: str
    title: str
    unit: str
    digits: int
    more_is_better: bool
    of: Callable[[Result, Result], float | None]
    sample: Callable[[Result], Sample] | None = None


FIGURES = (
    Figure(
        "request_cpu_us",
        "CPU time per request",
        "us",
        1,
        False,
        lambda result, _: _scaled(cpu_each(result.many), 1e6),
    ),
    Figure(
        "requests_per_second",
        "requests per second, 32 connections",
        "/s",
        0,
        True,
        lambda result, _: result.many.count / result.many.seconds,
        lambda result: result.many,
    ),
    Figure(
        "latency_p50_ms",
        "latency p50, 4 connections",
        "ms",
        3,
        False,
        lambda result, _: _scaled(result.few.p50, 1e3),
    ),
    Figure(
        "latency_p99_ms",
        "latency p99, 4 connections",
        "ms",
        3,
        False,
        lambda result, _: _scaled(result.few.p99, 1e3),
    ),
    Figure(
        "added_p50_ms",
        "added to the latency p50",
        "ms",
        3,
        False,
        lambda result, direct: _scaled(_added(result, direct, "p50"), 1e3),
    ),
    Figure(
        "added_p99_ms",
        "added to the latency p99",
        "ms",
        3,
        False,
        lambda result, direct: _scaled(_added(result, direct, "p99"), 1e3),
    ),
    Figure(
        "event_cpu_us",
        "CPU time per event",
        "us",
        1,
        False,
        lambda result, _: _scaled(cpu_each(result.events), 1e6),
    ),
    Figure(
        "event_p50_ms",
        "event delay p50, 200 streams",
        "ms",
        3,
        False,
        lambda result, _: _scaled(result.events.p50, 1e3),
        lambda result: result.events,
    ),
    Figure(
        "event_p99_ms",
        "event delay p99, 200 streams",
        "ms",
        3,
        False,
        lambda result, _: _scaled(result.events.p99, 1e3),
        lambda result: result.events,
    ),
    Figure(
        "streams",
        "streams without a stall",
        "",
        0,
        True,
        lambda result, _: most_streams(result.rungs),
        lambda result: result.rungs[-1],
    ),
    Figure(
        "stream_memory_kb",
        "memory per open stream",
        "kB",
        1,
        False,
        lambda result, _: _scaled(memory_each(result.idle), 1e-3),
    ),
)
"""All figures, in the order of the table."""


def figures(result: Result, direct: Result) -> dict[str, float | None]:
    """Compute the figures of a target, by their key; None where there is nothing to compute one from."""
    return {figure.key: figure.of(result, direct) for figure in FIGURES}


def ratio(values: Mapping[str, float | None], others: Mapping[str, float | None], key: str) -> float | None:
    """Divide a figure by that of another target; None where either is missing or has no meaningful ratio."""
    value, other = values[key], others[key]
    return None if value is None or other is None or value < 0 or other <= 0 else value / other
