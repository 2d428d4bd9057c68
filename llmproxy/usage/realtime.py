"""The messages of a WebSocket: OpenAI's Realtime API, and its responses where they are asked for over one.

One socket carries many turns, some at the same time, each of which is a response of its own with its own model, tier and usage
(:mod:`~llmproxy.usage.in_flight`). Sockets are open for hours, so each turn is told as soon as it is over, and nothing is left
for the socket's own reading but whether that was all.

What an ``error`` means is told by its shape, as the ``openai`` SDK types it:

- With an ``event_id`` it is Realtime's, most of which "are recoverable and the session will stay open": it is that of a
  response of which nothing more comes.
- Without, mostly with a ``sequence_number`` or a ``status``, it is one of a Responses WebSocket, and ends what runs in its
  lane, as it does for the SDK's sessions. More may be told of that response (``response.failed``), which counts only where it
  is usage.
- Where nothing runs in its lane, it is a refusal, which costs nothing and is a turn of its own; so is one of which nobody can
  tell what it is about, as several run there. An error without a lane is of the requests that named none, or of the connection.

Sockets of the same upstreams may also carry what is no response: GPT-Live's sound, which is billed by the second, beside
responses of other models that it wraps (``response.event``), translations, transcripts. What was made there is told to nobody,
and then the socket's own reading says so.

Frames are put together, and inflated, before: what is fed is one whole message at a time, as the upstream sent it.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Generic

import attrs

from llmproxy.usage.fields import Document, part, text
from llmproxy.usage.in_flight import AllInFlight, InFlight, lane_of
from llmproxy.usage.json_text import document, members_at_start
from llmproxy.usage.model import Reading, Source, Usage, unread
from llmproxy.usage.openai import OpenAIReader
from llmproxy.usage.reader import MessageBody, Parsed
from llmproxy.usage.turns import T, Turns

_MOST_RUNNING = 100  # turns at a time; OpenAI allows 16
_MOST_BROKEN_OFF = 100  # that are remembered, in case more is told of them
# Events that tell of a session or of what was said to it, and of nothing that was made.
_OF_THE_SESSION = (
    "session.created",
    "session.updated",
    "transcription_session.",
    "conversation.created",
    "conversation.item.added",
    "conversation.item.created",
    "conversation.item.deleted",
    "conversation.item.done",
    "conversation.item.retrieved",
    "conversation.item.truncated",
    "input_audio_buffer.",
    "output_audio_buffer.",
    "mcp_list_tools.",
    "rate_limits.",
    "codex.",
    "keepalive",
    "ping",
)
_NESTED = "response.event"  # GPT-Live's: an event of a response of a model that it had asked
# The types of events that have the whole response in them; those of its parts have longer names.
_OF_A_RESPONSE = re.compile(r"response\.[a-z_]+")
# What can be told of a response by the start of such an event.
_ID_AT_START = re.compile(rb'"response"\s*:\s*\{\s*"id"\s*:\s*"([^"\\]*)"')


class Messages(MessageBody, Generic[T]):
    """Takes the messages of a socket."""

    tells_first_token = False  # the turns do

    def __init__(self, turns: Turns[T]) -> None:
        self._turns = turns
        self._running: AllInFlight[T] = AllInFlight()
        # Ids of responses that had no end of their own.
        self._broken_off: deque[str] = deque(maxlen=_MOST_BROKEN_OFF)
        self._model: str | None = None  # of the session
        self._told = False  # of anything that was used
        self._strange = False  # something passed that was not understood
        self._beyond = False  # something was made, or used, that is no response's
        self._settled = False  # pieces tell nothing new

    def feed(self, data: bytes) -> None:
        """Take a message."""
        if self._ordinary(data):
            return
        message = document(data)
        if message.get("type") == _NESTED:
            self._take(part(message.get("event")), lane_of(message.get("delegation_id")), model=None)
        else:
            self._take(message, lane_of(message.get("stream_id")), self._model)
        self._settle()

    def skip(self, start: bytes) -> None:
        """Take note of a message that is too large to be read."""
        known = members_at_start(start)
        kind = known.get("type")
        name = _ID_AT_START.search(start)
        if not isinstance(kind, str) or kind == _NESTED or (_OF_A_RESPONSE.fullmatch(kind) and name is None):
            self._lose()
        else:
            # Of other events nothing is lost: the end of their response repeats what they tell.
            if name is not None:
                status = kind.removeprefix("response.")
                known["response"] = {"id": name[1].decode("latin-1"), "status": status}
            self._take(known, lane_of(known.get("stream_id")), self._model, too_large=True)
        self._settle()

    def close(self, whole: bool) -> Reading:
        """Take note that the socket is closed, and with it what has not ended; between two turns it lacks nothing."""
        while self._running:
            self._cut_oldest()
        understood = not self._beyond and (self._told or not self._strange)
        return attrs.evolve(unread("turns" if understood else "absent", True), model=self._model)

    def _ordinary(self, data: bytes) -> bool:
        """Tell whether a message is but a further piece of what is made, or one that tells nothing, fast."""
        # What people and models say is not taken for a name here, as the quotes in it have backslashes; but for a text that is
        # no more than such a name, which only takes longer.
        find = data.find
        return (
            self._settled
            and (self._beyond or find(b'"response.') >= 0)
            and find(b'"response"') < 0
            and find(b'"usage"') < 0
            and find(b'"error"') < 0
            and find(b'"session"') < 0
        )

    def _settle(self) -> None:
        known = self._told or self._beyond or len(self._running) > 0
        self._settled = known and not self._running.waiting

    def _take(self, message: Document, lane: str | None, model: str | None, too_large: bool = False) -> None:
        """Take what was understood of a message.

        :param model: of a response of which none is told.
        :param too_large: the rest was not read.
        """
        kind = message.get("type")
        if not isinstance(kind, str):
            self._strange = True
        elif kind == "error":
            self._take_error(message, lane)
        elif kind.startswith("response."):
            self._take_response(kind, message, lane, model, too_large)
        elif kind.startswith("conversation.") and "usage" in message:
            # The transcript of what was said to the session, which is billed by the price of another model.
            self._tell(self._turns.begin(), unread("absent", True))
        else:
            self._take_other(kind, message)

    def _take_response(
        self, kind: str, message: Document, lane: str | None, model: str | None, too_large: bool
    ) -> None:
        answer = part(message.get("response"))
        name = text(answer.get("id")) or text(message.get("response_id"))
        response = self._running.meant(name, lane)
        if not answer:
            if response is None:
                self._strange = True
            elif response.take_piece(kind):
                self._turns.first_token(response.turn)
            return
        more = False
        if not answer.get("usage") and (usage := part(message.get("usage"))):  # xAI's place for it
            more = "billable_audio_seconds" in usage  # sound is billed by that, and not by the tokens
            answer = {**answer, "usage": usage}
            message = {**message, "response": answer}
        if name in self._broken_off and kind != "response.created" and not part(answer.get("usage")):
            return
        if response is None or (name is None and kind == "response.created"):
            response = self._begin(name, lane, answer.get("object") == "realtime.response", model)
        reader = response.reader
        reader.event(Parsed(message))
        if reader.ended:
            reading = reader.reading(True, "too_large" if too_large else None)
            if more and reading.usage is not None:
                reading.usage = attrs.evolve(reading.usage, more=True)
            self._end(response, reading)

    def _take_other(self, kind: str, message: Document) -> None:
        session = part(message.get("session"))
        self._model = text(session.get("model")) or self._model
        if kind.startswith(_OF_THE_SESSION) and session.get("type") != "translation":
            return
        self._strange = True
        # The text of what was said to a session is no output of it.
        if not kind.startswith("conversation."):
            made = kind.endswith(".delta") or any(part(message.get("usage")).values())
            self._beyond = self._beyond or made

    def _take_error(self, message: Document, lane: str | None) -> None:
        response = self._running.in_lane(lane)
        reader = OpenAIReader() if response is None else response.reader
        held = reader.error
        reader.event(Parsed(message))
        if response is None:
            reader.model = self._model
            refused = reader.reading(False)
            refused.source, refused.usage = "free", Usage(billable=False)
            self._turns.end(self._turns.begin(), refused)
        elif _is_final(message, response):
            self._break_off(response, reader.reading(False))
        else:
            response.error, reader.error = reader.error, held

    def _lose(self) -> None:
        """Something of which nothing is known was not read."""
        source: Source = "too_large"
        if self._running:
            response = self._running.oldest
            self._break_off(response, response.reader.reading(False, source))
        else:
            self._tell(self._turns.begin(), attrs.evolve(unread(source, False), model=self._model))

    def _begin(self, name: str | None, lane: str | None, is_realtime: bool, model: str | None) -> InFlight[T]:
        if len(self._running) >= _MOST_RUNNING:
            self._cut_oldest()
        response = InFlight(self._turns.begin(), name, lane, is_realtime)
        response.reader.model = model
        self._running.add(response)
        return response

    def _cut_oldest(self) -> None:
        response = self._running.oldest
        response.reader.error = response.error
        self._break_off(response, response.reader.reading(False))

    def _break_off(self, response: InFlight[T], reading: Reading) -> None:
        if response.name is not None:
            self._broken_off.append(response.name)
        self._end(response, reading)

    def _end(self, response: InFlight[T], reading: Reading) -> None:
        self._running.remove(response)
        self._tell(response.turn, reading)

    def _tell(self, turn: T, reading: Reading) -> None:
        self._told = True
        self._turns.end(turn, reading)


def _is_final(error: Document, response: InFlight[Any]) -> bool:
    """Tell whether a response that runs in the lane of an error has ended with it."""
    return "event_id" not in error and not response.is_realtime
