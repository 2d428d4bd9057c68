"""The messages of a WebSocket: OpenAI's Realtime API, and its responses where they are asked for over one.

One socket carries many turns, some at the same time, each of which is a response of its own with its own model, tier and usage:
so here, unlike in a stream, usage is summed, and its parts are told for the price. Model, id and stop reason are those of the
last turn, and so is the outcome: an error ends a turn, and the next one may be well.

Frames are put together, and inflated, before: what is fed is one whole message at a time, as the upstream sent it.
"""

from __future__ import annotations

import attrs

from llmproxy.usage.model import Part, Reading, Usage
from llmproxy.usage.openai import OpenAIReader
from llmproxy.usage.reader import Body, Event
from llmproxy.usage.sse import LIMIT

_MOST_PARTS = 10_000  # of some 300 bytes; what such a long session costs is not known


class Messages(Body):
    """Takes the messages of a socket."""

    def __init__(self) -> None:
        self._turn = OpenAIReader()  # the turn that runs, or the next one
        self._ended = self._turn  # the last one that has ended, if one has
        self._begun: dict[str, None] = {}  # the ids of responses that have not ended, the oldest first
        self._parts: list[Part] = []
        self._usage: Usage | None = None
        self._first_token = False
        self._too_large = False

    @property
    def first_token(self) -> bool:
        """A first piece of what the model makes has passed, in the first turn."""
        return self._first_token

    def feed(self, data: bytes) -> None:
        """Take a message."""
        turn = self._turn
        if turn.ordinary(data):
            return
        if len(data) > LIMIT:
            self._too_large = True
            return
        turn.event(Event(b"", data))
        self._first_token = self._first_token or turn.first_token
        if turn.transcribed:
            turn.transcribed = False
            self._add(Part(None, None, None))  # of another model, which is not told
        if turn.ended or turn.error:
            self._end(turn)
        elif turn.response_id is not None:
            self._begun[turn.response_id] = None

    def _end(self, turn: OpenAIReader) -> None:
        used = turn.usage()
        if used is not None:
            self._usage = used if self._usage is None else self._usage + used
        if turn.response_id is not None:
            self._begun.pop(turn.response_id, None)
            self._add(Part(turn.model, turn.service_tier, None if turn.error else used))
        self._ended = turn
        self._turn = OpenAIReader()
        self._turn.model = turn.model  # Realtime tells it once
        self._turn.response_id = next(iter(self._begun), None)

    def _add(self, part: Part) -> None:
        if len(self._parts) < _MOST_PARTS:
            self._parts.append(part)
        else:
            self._parts[-1] = Part(None, None, None)

    def close(self, whole: bool) -> Reading:
        """Take note that the socket is closed; a socket between two turns lacks nothing, however it was closed."""
        is_open = self._turn.response_id is not None
        last = self._turn if is_open else self._ended
        reading = last.reading(not is_open, "too_large" if self._too_large else None)
        if self._too_large or self._usage is None:
            return reading
        parts = tuple(self._parts) if len(self._parts) > 1 else ()
        return attrs.evolve(reading, usage=self._usage, source="reported", parts=parts)
