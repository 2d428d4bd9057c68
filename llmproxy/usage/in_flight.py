"""The responses that run on one of OpenAI's sockets, of which there may be several at a time.

Each has a reader of its own, so that nothing of one is ever taken for another's: not its model, its tier, its error or its
first token. What says to which of them a message belongs:

- the id of a response: in what tells of one, and as ``response_id`` in all other events of a Realtime response;
- the lane: other events of a response in a Responses WebSocket have no id, but the ``stream_id`` of the request that asked for
  it, if it had one (https://developers.openai.com/api/docs/guides/websocket-mode). A lane carries one response at a time;
- where neither is told: that only one runs.
"""

from __future__ import annotations

from typing import Any, Generic

import attrs

from llmproxy.usage.openai import OpenAIReader
from llmproxy.usage.reader import Parsed
from llmproxy.usage.turns import T

_LONGEST_LANE = 256  # characters; OpenAI allows fewer


@attrs.define(eq=False)
class InFlight(Generic[T]):
    """A response that has not ended.

    :ivar name: its id, where it has one.
    :ivar lane: see :func:`lane_of`.
    :ivar is_realtime: it is one of a Realtime session.
    :ivar error: that was told while it ran, and nothing more of the response since. It need not be about this one.
    """

    turn: T
    name: str | None
    lane: str | None
    is_realtime: bool
    reader: OpenAIReader = attrs.Factory(OpenAIReader)
    error: str | None = None

    @property
    def waits(self) -> bool:
        """The next piece of it is to be seen."""
        return not self.reader.first_token or self.error is not None

    def take_piece(self, kind: str) -> bool:
        """Take note of an event of it, and tell whether that had its first token."""
        self.error = None
        if self.reader.first_token:
            return False
        self.reader.event(Parsed({"type": kind}))
        return self.reader.first_token


class AllInFlight(Generic[T]):
    """Those of a socket, the oldest first."""

    def __init__(self) -> None:
        self._all: list[InFlight[T]] = []

    def __len__(self) -> int:
        return len(self._all)

    @property
    def oldest(self) -> InFlight[T]:
        """The first that has begun; there must be one."""
        return self._all[0]

    @property
    def waiting(self) -> bool:
        """A next piece of one of them is to be seen."""
        return any(response.waits for response in self._all)

    def add(self, response: InFlight[T]) -> None:
        """It has begun."""
        self._all.append(response)

    def remove(self, response: InFlight[T]) -> None:
        """It has ended."""
        self._all.remove(response)

    def named(self, name: str) -> InFlight[T] | None:
        """The one with an id."""
        return next((response for response in self._all if response.name == name), None)

    def in_lane(self, lane: str | None) -> InFlight[T] | None:
        """The only one in a lane; ``None`` where there are more, and nobody can tell which is meant."""
        found = [response for response in self._all if response.lane == lane]
        return found[0] if len(found) == 1 else None

    def meant(self, name: str | None, lane: str | None) -> InFlight[T] | None:
        """The one that an event belongs to which tells that much of it."""
        if name is not None:
            return self.named(name)
        found = self.in_lane(lane)
        if found is None and lane is None and len(self._all) == 1:
            return self._all[0]
        return found


def lane_of(value: Any) -> str | None:
    """The name of a lane, which clients choose; ``None`` is that of the requests without one."""
    return value[:_LONGEST_LANE] if isinstance(value, str) else None
