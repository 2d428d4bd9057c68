"""What the load is told to do, and what it recorded: the two values that pass between the processes, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs


@attrs.frozen
class Task:
    """One thing for the load to do.

    :ivar base_url: what to ask, as an OpenAI SDK would be given it.
    :ivar headers: what to send beside the usual.
    :ivar connections: open at the same time.
    :ivar warmup: seconds from when all are open until anything counts.
    :ivar seconds: for which it counts.
    :ivar rate: events a second of the stream that each connection asks for; None for answers, one after the other.
    :ivar pause: mean seconds between an answer and the next request.
    :ivar processes: the ids of the processes whose CPU time and memory to record, by a name.
    """

    base_url: str
    headers: Sequence[tuple[str, str]]
    connections: int
    warmup: float
    seconds: float
    rate: int | None = None
    pause: float = 0.0
    processes: Mapping[str, int] = attrs.field(factory=dict)

    def to_json(self) -> str:
        """Make what :meth:`from_json` reads."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read what :meth:`to_json` made."""
        return cls(**json.loads(text))


@attrs.frozen
class Sample:
    """What the load saw.

    :ivar connections: that it was to open.
    :ivar opened: that were open, and streams that had begun, when it began to count.
    :ivar seconds: for which it counted.
    :ivar expected: events that should have come in that time; None where it sent requests.
    :ivar count: answers or events that came.
    :ivar p50: the median, in seconds, of how long an answer, or an event from its sending, took.
    :ivar p99: the same for the slowest hundredth; both are None where nothing came.
    :ivar errors: answers other than 200, connections lost within one, and connections that could not be made.
    :ivar trouble: the first of them in words.
    :ivar cpu: the seconds of CPU time that each process of the task, and the load, used while it counted.
    :ivar waited: the seconds for which each of these could have run while others had its core.
    :ivar resident_before: bytes of memory of each process before anything was asked.
    :ivar resident_after: bytes of memory of each process at the end, all connections still open.
    """

    connections: int
    opened: int
    seconds: float
    expected: float | None
    count: int
    p50: float | None
    p99: float | None
    errors: int
    trouble: str
    cpu: Mapping[str, float]
    waited: Mapping[str, float]
    resident_before: Mapping[str, int]
    resident_after: Mapping[str, int]

    def to_json(self) -> str:
        """Make what :meth:`from_json` reads."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Sample:
        """Read what :meth:`to_json` made."""
        read: dict[str, Any] = json.loads(text)
        return cls(**read)


def quantile(values: Sequence[int], share: float) -> float | None:
    """Return the value that a share of all are not above, by the nearest rank; None where there are no values.

    :param values: in ascending order.
    :param share: more than 0, and 1 at most.
    """
    if not values:
        return None
    rank = -int(-share * len(values) // 1)  # rounded up
    return float(values[rank - 1])
