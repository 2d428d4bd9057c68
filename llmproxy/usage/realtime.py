"""The messages of a WebSocket: OpenAI's Realtime API, and its responses where they are asked for over one.

One socket carries many turns, some at the same time, each of which is a response of its own with its own model, tier and usage.
Sockets are open for hours, so each turn is told as soon as it is over, and nothing is left for the socket's own reading.

Frames are put together, and inflated, before: what is fed is one whole message at a time, as the upstream sent it.
"""

from __future__ import annotations

from typing import Generic

import attrs

from llmproxy.usage.model import Reading, Source, Usage, unread
from llmproxy.usage.openai import OpenAIReader
from llmproxy.usage.reader import Body, Event
from llmproxy.usage.sse import LIMIT
from llmproxy.usage.turns import T, Turns

_MOST_RUNNING = 1000  # turns at a time; there are one or two


@attrs.define
class _Running(Generic[T]):
    """A turn that has not ended.

    :ivar error: that was told while it ran. It need not be about this turn, which may go on.
    """

    turn: T
    had_token: bool = False
    error: str | None = None


class Messages(Body, Generic[T]):
    """Takes the messages of a socket."""

    tells_first_token = False  # the turns do

    def __init__(self, turns: Turns[T]) -> None:
        self._turns = turns
        self._reader = OpenAIReader()  # of the turn that runs, or of the next one
        self._running: dict[str, _Running[T]] = {}  # by the ids of their responses, the oldest first
        self._too_large = False

    def feed(self, data: bytes) -> None:
        """Take a message."""
        reader = self._reader
        if reader.ordinary(data):
            return
        if len(data) > LIMIT:
            self._too_large = True
            return
        reader.event(Event(b"", data))
        if reader.transcribed:  # by another model, which is not told
            reader.transcribed = False
            self._turns.end(self._turns.begin(), unread("absent", True))
        name = reader.response_id
        if reader.ended or (reader.error and name is None):
            self._end(reader)
        elif name is not None:
            running = self._begun(name)
            running.error, reader.error = reader.error or running.error, None
            if reader.first_token and not running.had_token:
                running.had_token = True
                self._turns.first_token(running.turn)

    def close(self, whole: bool) -> Reading:
        """Take note that the socket is closed, and with it what has not ended; between two turns it lacks nothing."""
        while self._running:
            self._cut_oldest()
        source: Source = "too_large" if self._too_large else "turns"
        return attrs.evolve(unread(source, True), model=self._reader.model)

    def _begun(self, name: str) -> _Running[T]:
        running = self._running.get(name)
        if running is None:
            if len(self._running) == _MOST_RUNNING:
                self._cut_oldest()
            running = self._running[name] = _Running(self._turns.begin())
        return running

    def _cut_oldest(self) -> None:
        name, running = next(iter(self._running.items()))
        del self._running[name]
        reading = unread("absent", False)
        reading.model, reading.response_id = self._reader.model, name
        if running.error:
            reading.outcome, reading.error = "failed", running.error
        self._turns.end(running.turn, reading)

    def _end(self, reader: OpenAIReader) -> None:
        reading = reader.reading(True)
        name = reader.response_id
        if name is not None:
            running = self._begun(name)
            del self._running[name]
            self._turns.end(running.turn, reading)
        elif reading.usage is not None:
            self._turns.end(self._turns.begin(), reading)
        elif reading.error is not None:  # nothing was begun for what the client had sent
            reading.source, reading.usage = "free", Usage(billable=False)
            self._turns.end(self._turns.begin(), reading)
        self._reader = OpenAIReader()
        self._reader.model = reader.model  # Realtime tells it once
        self._reader.response_id = next(iter(self._running), None)
