"""The results for people, as a table with notes, and for programs, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.figures import (
    DISTURBED,
    FIGURES,
    Figure,
    Result,
    disturbance,
    figures,
    flows,
    load_bound,
    most_streams,
    ratio,
)
from bench.machine import Machine
from bench.targets import DIRECT, OURS


@attrs.frozen
class Report:
    """A run that is over.

    :ivar date: when it began, in UTC, as ISO 8601.
    :ivar plan: its name.
    :ivar shared: whether the load and the upstream ran on one core.
    :ivar pinned: whether each side had a core.
    :ivar results: by the names of the targets; the first is the upstream itself.
    """

    date: str
    plan: str
    machine: Machine
    shared: bool
    pinned: bool
    results: Mapping[str, Result]

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Return the figures of all targets."""
        direct = self.results[DIRECT]
        return {name: figures(result, direct) for name, result in self.results.items()}

    def notes(self) -> list[str]:
        """Say what must be known to read the figures rightly."""
        machine = self.machine
        told = (
            f"{self.date}, {machine.cpus} CPUs of {machine.cpu}, {machine.system}, {machine.python}; llmproxy "
            f"{machine.commit or machine.libraries['llmproxy']}, {self.plan} run. The load in the minute before was "
            f"{machine.load_before}: what else runs makes noise, so compare within a run, and trust ratios."
        )
        notes = [told]
        if not self.pinned:
            notes.append("Nothing was pinned to a core: the sides take time from each other.")
        for figure in FIGURES:
            bound = [name for name, result in self.results.items() if self._is_bound(figure, result)]
            if bound:
                notes.append(
                    f"* {figure.title}, {', '.join(bound)}: the load and the upstream had no time left, so this is theirs."
                )
        for name, result in self.results.items():
            notes += self._troubles(name, result)
        if all(values["request_cpu_us"] is None for values in self.figures().values()):
            notes.append("CPU time and memory are read from /proc, which this system does not have.")
        return notes

    def table(self) -> str:
        """Make the table: a column for each target, and for the ratios of llmproxy to each other one."""
        values = self.figures()
        others = [name for name in values if name != OURS]
        rows = [["", "", *values, *(f"{OURS} / {name}" for name in others)]]
        for figure in FIGURES:
            cells = [
                _shown(figure, values[name][figure.key]) + ("*" if self._is_bound(figure, result) else "")
                for name, result in self.results.items()
            ]
            ratios = [ratio(values[OURS], values[name], figure.key) for name in others]
            rows.append(
                [
                    figure.title,
                    figure.unit,
                    *cells,
                    *("" if each is None else f"{each:.2f}" for each in ratios),
                ]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            named = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}"
            lines.append(
                "  ".join([named, *(f"{c:>{w}}" for c, w in zip(row[2:], widths[2:], strict=True))]).rstrip()
            )
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write all of it, the samples too, as JSON."""
        values = self.figures()
        content: dict[str, Any] = {
            "date": self.date,
            "plan": self.plan,
            "pinned": self.pinned,
            "machine": attrs.asdict(self.machine),
            "units": {figure.key: figure.unit for figure in FIGURES},
            "figures": {
                name: {key: _rounded(value) for key, value in each.items()} for name, each in values.items()
            },
            "ratios": {
                f"{OURS} / {name}": {
                    figure.key: _rounded(ratio(values[OURS], values[name], figure.key)) for figure in FIGURES
                }
                for name in values
                if name != OURS
            },
            "notes": self.notes(),
            "samples": {name: attrs.asdict(result) for name, result in self.results.items()},
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    def _is_bound(self, figure: Figure, result: Result) -> bool:
        return figure.sample is not None and load_bound(figure.sample(result), self.shared)

    def _troubles(self, name: str, result: Result) -> Sequence[str]:
        samples = (result.many, result.few, result.events, *([result.idle] if result.idle else []))
        troubles = [
            f"{name}: {sample.errors} errors with {sample.connections} connections, the first: {sample.trouble}"
            for sample in samples
            if sample.errors
        ]
        if disturbance(result) >= DISTURBED:
            troubles.append(
                f"{name}: other work had its core for up to {disturbance(result):.0%} of a measurement, so this run is noisy."
            )
        last = result.rungs[-1]
        if flows(last):
            troubles.append(f"{name}: {most_streams(result.rungs)} streams are the most that were tried.")
        else:
            came = last.count / last.expected if last.expected else 0.0
            late = "none" if last.p99 is None else f"{last.p99 * 1e3:.0f} ms"
            errors = f", {last.errors} errors, the first: {last.trouble}" if last.errors else ""
            troubles.append(
                f"{name}: {last.connections} streams stall: delay p99 {late}, {came:.0%} of the events came{errors}."
            )
        return troubles


def _shown(figure: Figure, value: float | None) -> str:
    return "-" if value is None else f"{value:,.{figure.digits}f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
