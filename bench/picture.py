"""The results as one picture of small panels."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import FLOWING, STALL
from bench.report import Report

_INK = "#222222"
_COLOURS = (
    "#9aa0a6",
    "#2563eb",
    "#f59e0b",
    "#10b981",
    "#ef4444",
    "#8b5cf6",
)  # direct, llmproxy, then the others

# Title, unit, and the figures: one, or the median and the 99th percentile.
_BARS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("CPU time per request", "µs", ("request_cpu_us",)),
    ("CPU time per event", "µs", ("event_cpu_us",)),
    ("Memory per open stream", "kB", ("stream_memory_kb",)),
    ("Requests per second\n32 connections", "", ("requests_per_second",)),
    ("Added latency, 4 connections\np50 (dark) and p99 (pale)", "ms", ("added_p50_ms", "added_p99_ms")),
    ("Event delay, 200 streams\np50 (dark) and p99 (pale)", "ms", ("event_p50_ms", "event_p99_ms")),
)


def draw(report: Report, path: Path) -> None:
    """Draw a report into a PNG file."""
    # By name, for it belongs to an extra: without it, all but this can be run and checked.
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(13, 6.6), dpi=110, layout="constrained"
    )
    axes = figure.subplots(2, 4)
    colours = dict(zip(report.results, _COLOURS * len(report.results), strict=False))
    values = report.figures()
    for axis, (title, unit, keys) in zip([*axes[0, :3], *axes[1, :3]], _BARS, strict=True):
        _bars(axis, title, unit, values, keys, colours)
    _ladder(axes[0, 3], report, colours)
    _facts(axes[1, 3], report, colours)
    figure.suptitle(
        "llmproxy beside its upstream, asked directly", fontsize=14, fontweight="bold", color=_INK
    )
    figure.savefig(path)


def _bars(
    axis: Any,
    title: str,
    unit: str,
    values: Mapping[str, Mapping[str, float | None]],
    keys: tuple[str, ...],
    colours: Mapping[str, str],
) -> None:
    """Draw a bar for each target; where there are two figures, the second stands pale behind."""
    shown = [name for name in values if all(values[name][key] is not None for key in keys)]
    for row, name in enumerate(shown):
        numbers = [values[name][key] or 0.0 for key in keys]
        if len(numbers) > 1:
            axis.barh(row, max(numbers[1], 0.0), color=colours[name], alpha=0.35, height=0.7)
        axis.barh(row, max(numbers[0], 0.0), color=colours[name], height=0.7 if len(numbers) == 1 else 0.4)
        text = ", ".join(_short(number) for number in numbers)
        axis.annotate(
            f"{text} {unit}".rstrip(),
            (max(*numbers, 0.0), row),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )
    axis.set_title(title, fontsize=11, color=_INK, loc="left")
    axis.set_yticks(range(len(shown)), shown)
    axis.set_ylim(max(len(values), 2) - 0.5, -0.5)  # the same for all panels, so that all bars are
    axis.set_xticks([])
    axis.margins(x=0.6 if len(keys) > 1 else 0.45)
    axis.set_xlim(left=0)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    if not shown:
        axis.text(0.5, 0.5, "not known", transform=axis.transAxes, ha="center", color=_INK)


def _ladder(axis: Any, report: Report, colours: Mapping[str, str]) -> None:
    """Draw the delay of events against the number of streams, and where streams count as stalled."""
    for name, result in report.results.items():
        came = [rung for rung in result.rungs if rung.p99 is not None]
        axis.plot(
            [rung.connections for rung in came],
            [max((rung.p99 or 0.0) * 1e3, 0.01) for rung in came],
            color=colours[name],
            marker="o",
            markersize=4,
        )
    axis.axhline(STALL * 1e3, color=_INK, linewidth=1, linestyle="--")
    axis.annotate(
        "a stall", (0, STALL * 1e3), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points"
    )
    axis.set_yscale("log")
    axis.set_title(
        "Event delay p99 (ms) by number\nof streams of 50 events/s", fontsize=11, color=_INK, loc="left"
    )
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.25)


def _facts(axis: Any, report: Report, colours: Mapping[str, str]) -> None:
    """Write the legend, and what it was measured on."""
    values = report.figures()
    axis.axis("off")
    axis.text(0, 1, "Streams without a stall", transform=axis.transAxes, va="top", fontsize=11, color=_INK)
    for row, name in enumerate(values):
        text = f"\N{BLACK CIRCLE} {name}: {values[name]['streams']:,.0f}"
        axis.text(
            0.02,
            0.88 - 0.1 * row,
            text,
            transform=axis.transAxes,
            va="top",
            color=colours[name],
            fontweight="bold",
        )
    machine = report.machine
    lines = [
        f"A stall: p99 of {STALL * 1e3:.0f} ms or more, or under {FLOWING:.0%} of events",
        f"{report.date[:10]}, {report.plan} run, {machine.commit or machine.libraries['llmproxy']}",
        f"{machine.cpus} CPUs of {machine.cpu}",
        f"{machine.python}, uvloop {machine.libraries['uvloop']}, Twisted {machine.libraries['Twisted']}",
        "One core for the proxy" if report.pinned else "Not pinned to cores",
    ]
    axis.text(0, 0, "\n".join(lines), transform=axis.transAxes, va="bottom", fontsize=8, color=_INK)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
