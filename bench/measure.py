"""The plan of a run: what the load does to each target, how long, and in which order.

Each part is done with all targets before the next part begins, so that figures that are compared were measured within
seconds of each other. The memory of streams comes first, while llmproxy has not yet held as many before.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import attrs

from bench.figures import EVENT_RATE, Result, flows
from bench.process import Children, Cores
from bench.records import Sample, Task
from bench.targets import ROOT, Target, python_environ

_SLACK = 30.0  # seconds beyond its own that the load has to start, open its connections and end


@attrs.frozen
class Plan:
    """How long things take, and how far they go.

    :ivar requests: seconds for which requests are counted, for each of the two counts of connections.
    :ivar events: seconds for which the events of a moderate number of streams are counted.
    :ivar rung: seconds for which those of each number of streams are counted.
    :ivar rungs: the numbers of streams.
    :ivar tries: how often streams may stall before it counts: a hiccup of the machine is none of the target's.
    :ivar warmup: seconds before each.
    """

    requests: float
    events: float
    rung: float
    rungs: Sequence[int]
    tries: int
    warmup: float


FULL = Plan(8.0, 8.0, 4.0, (64, 128, 256, 512, 768, 1000, 1500, 2000), 2, 1.0)
QUICK = Plan(1.5, 1.5, 1.2, (128, 256, 512, 1000, 2000), 2, 0.4)

IDLE_STREAMS = 1000
_IDLE_RATE = 1  # events a second
_IDLE_WARMUP = 2.5  # seconds, so that each stream has had events
_WARM = 16  # connections that each target has had before anything is measured
_MANY = 32
_FEW = 4
_FEW_PAUSE = 0.002  # seconds: short of what would make requests wait for each other
_STREAMS = 200


class CannotMeasure(Exception):
    """A target does not answer, or the load itself broke; the message says which."""


class Run:
    """A run over some targets.

    :param upstream: the process id of the upstream.
    :param say: is told what is being measured.
    """

    def __init__(
        self, children: Children, cores: Cores, plan: Plan, upstream: int, say: Callable[[str], None]
    ) -> None:
        self._children = children
        self._cores = cores
        self._plan = plan
        self._upstream = upstream
        self._say = say

    def measure(self, targets: Sequence[Target]) -> dict[str, Result]:
        """Measure all targets, and return what was recorded by their names."""
        plan = self._plan
        for target in targets:
            first = self._sample("first requests", target, _WARM, 1.0)
            if first.errors or not first.count:
                raise CannotMeasure(
                    f"{target.name} does not answer as it should: {first.trouble or 'no answer'}."
                )
            self._sample("first streams", target, _WARM, plan.warmup, rate=EVENT_RATE)
        idle = {
            target.name: self._sample(
                f"{IDLE_STREAMS} idle streams",
                target,
                IDLE_STREAMS,
                0.5,
                rate=_IDLE_RATE,
                warmup=_IDLE_WARMUP,
            )
            for target in targets
            if target.pid is not None
        }
        many = {
            target.name: self._sample(f"{_MANY} connections", target, _MANY, plan.requests)
            for target in targets
        }
        few = {
            target.name: self._sample(f"{_FEW} connections", target, _FEW, plan.requests, pause=_FEW_PAUSE)
            for target in targets
        }
        events = {
            target.name: self._sample(f"{_STREAMS} streams", target, _STREAMS, plan.events, rate=EVENT_RATE)
            for target in targets
        }
        rungs = self._climb(targets)
        return {
            name: Result(many[name], few[name], events[name], rungs[name], idle.get(name))
            for name in (target.name for target in targets)
        }

    def _climb(self, targets: Sequence[Target]) -> Mapping[str, Sequence[Sample]]:
        """Ask each target for more and more streams, until they stall."""
        climbed: dict[str, list[Sample]] = {target.name: [] for target in targets}
        climbing = list(targets)
        for streams in self._plan.rungs:
            for target in tuple(climbing):
                for _ in range(self._plan.tries):
                    sample = self._rung(target, streams)
                    if flows(sample):
                        break
                climbed[target.name].append(sample)
                if not flows(sample):
                    climbing.remove(target)
        return climbed

    def _rung(self, target: Target, streams: int) -> Sample:
        return self._sample(f"{streams} streams", target, streams, self._plan.rung, rate=EVENT_RATE)

    def _sample(
        self,
        what: str,
        target: Target,
        connections: int,
        seconds: float,
        *,
        rate: int | None = None,
        pause: float = 0.0,
        warmup: float | None = None,
    ) -> Sample:
        self._say(f"{target.name}: {what}")
        proxy = {} if target.pid is None else {"proxy": target.pid}
        task = Task(
            base_url=target.base_url,
            headers=target.headers,
            connections=connections,
            warmup=self._plan.warmup if warmup is None else warmup,
            seconds=seconds,
            rate=rate,
            pause=pause,
            processes={**proxy, "upstream": self._upstream},
        )
        command = [sys.executable, "-m", "bench.load"]
        process = self._children.start(command, self._cores.load, python_environ(), ROOT)
        try:
            output, _ = process.communicate(task.to_json(), timeout=task.warmup + seconds + _SLACK)
        except subprocess.TimeoutExpired:
            output = ""
        self._children.stop(process)
        if not output:
            raise CannotMeasure(f"The load failed with {target.name}, {what}.")
        return Sample.from_json(output)
