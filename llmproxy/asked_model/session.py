"""SessionGuard: lets a client's messages on a WebSocket pass as long as they ask for models that it may use.

A session learns its model from the query, or from the first message. What can name one later is looked at as closely: an
upstream may take it. So each message is read whole before any of it passes; pings, pongs and closes are never held.

====================  =================================================================================================
API                   where a message names a model
====================  =================================================================================================
Responses             ``model`` of each ``response.create``
                      (https://developers.openai.com/api/docs/guides/websocket-mode)
Realtime              the query; ``session.model`` may repeat it. The model that transcribes what is said is named in
                      ``session.audio.input.transcription.model``, formerly in ``session.input_audio_transcription.model``
                      (https://developers.openai.com/api/reference/resources/realtime/client-events)
GPT-Live              ``session.model``, and ``session.delegation.responses.model`` for what is delegated
                      (https://developers.openai.com/api/docs/guides/voice-websockets)
Gemini Live           ``setup.model``, as ``models/NAME`` (https://ai.google.dev/api/live)
====================  =================================================================================================

As in a body, what stands elsewhere is data, and models that tools run are not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from enum import Enum
from typing import Any, Union

import attrs
import ijson  # type: ignore[import-untyped]

from llmproxy.asked_model.answer import (
    UNDECIDED,
    Answer,
    Hidden,
    Known,
    Undecided,
    Unreadable,
    agreed,
    checked_name,
    is_model,
    name_of_resource,
)
from llmproxy.asked_model.reader import LIMIT
from llmproxy.frames import FrameError, FrameReader, Kind

# As in llmproxy.asked_model.json_body, and for its reasons.
_PARSER = ijson.get_backend("yajl2_c")
_SPACE = b" \t\n\r"
_NOT_JSON = "A WebSocket message is not a JSON object in UTF-8, or holds a number that does not fit 64 bits."


class _Says(Enum):
    """What the string at a place says."""

    EVENT = "the type of the message"
    SESSION = "the type of the session"
    MODEL = "the model"
    RESOURCE = "the model, as the name of a resource"
    HELPER = "a model that runs beside that of the session"


_Place = Union[_Says, "_Object"]
_Object = Mapping[str, _Place]

_HELPER: _Object = {"model": _Says.HELPER}
_PLACES: _Object = {
    "type": _Says.EVENT,
    "model": _Says.MODEL,
    "response": {"model": _Says.MODEL},
    "session": {
        "type": _Says.SESSION,
        "model": _Says.MODEL,
        "audio": {"input": {"transcription": _HELPER}},
        "input_audio_transcription": _HELPER,
        "delegation": {"responses": _HELPER},
    },
    "setup": {"model": _Says.RESOURCE},
}
# With a field of its own, a `response.create` is a whole request of the Responses API, and nothing but itself gives it a model:
# without one, the prompt may, that it can refer to.
_CREATE = "response.create"
_PLAIN = frozenset({"type", "event_id", "response"})
# Sessions that only transcribe, so that the model for that is theirs.
_TRANSCRIBING = "transcription"
_TRANSCRIBE = "transcription_session.update"


class SessionGuard:
    """Takes what a client sends on a WebSocket, and hands out as much of it as may be passed on.

    Its answer is ``UNDECIDED`` until a message named a model, then ``Known``, by the first that was named, and ``Hidden`` for
    good once a message did not pass: then the session must be ended. What was handed out before that message may be passed.

    :param model: that of the query, seen to already; ``None`` where it names none.
    :param extensions: the ``Sec-WebSocket-Extensions`` of the 101 answer; see :class:`llmproxy.frames.FrameReader`.
    :param missing: tells which right is missing to ask for a model, in a sentence for the client, or ``None``; see
        :func:`llmproxy.rights.missing_for_model`.
    :param limit: bytes that a message may have. Some four times as much memory can be in use.
    :ivar answer: what is known of the session's model.
    """

    def __init__(
        self, model: str | None, extensions: bytes, missing: Callable[[str], str | None], limit: int = LIMIT
    ) -> None:
        self.answer: Answer = UNDECIDED if model is None else Known(model)
        self._missing = missing
        self._held = bytearray()  # as sent: what belongs to unfinished messages and frames
        self._passed = 0  # bytes
        try:
            self._reader = FrameReader(extensions, from_client=True, limit=limit)
        except FrameError as error:
            self.answer = Hidden(str(error))

    def __repr__(self) -> str:
        return f"<SessionGuard {self.answer!r}, {self._passed} bytes passed, {len(self._held)} held>"

    def feed(self, data: bytes) -> bytes:
        """Take what came from the client.

        :return: what may be passed on now: whole messages, and control frames, which may overtake the message around them.
        """
        if isinstance(self.answer, Hidden):
            return b""
        self._held += data
        passed: list[bytes] = []
        try:
            for message in self._reader.feed(data):
                if message.kind is Kind.BINARY:
                    raise Unreadable(
                        "A WebSocket message is binary, so that no model can be read from it; send text."
                    )
                if message.kind is Kind.TEXT:
                    self._check(_read(message.data))
                # Where it stands in what is held: only a control frame can have something before it.
                stop = message.end - self._passed
                start = stop - message.size
                passed.append(bytes(self._held[start:stop]))
                del self._held[start:stop]
                self._passed += message.size
        except (Unreadable, FrameError) as error:
            self.answer = Hidden(str(error))
            self._held.clear()
        else:
            if self._reader.closed:
                self._held.clear()
        return b"".join(passed)

    def _check(self, said: _Said) -> None:
        """Learn what a message says; raises :class:`Unreadable` where it may not pass."""
        model = agreed(said.models)
        if model is None and (said.session == _TRANSCRIBING or said.event == _TRANSCRIBE):
            model = agreed(said.helpers)
        for name in said.models | said.helpers:
            if (reason := self._missing(name)) is not None:
                raise Unreadable(reason)
        if isinstance(self.answer, Undecided):
            if model is None:
                raise Unreadable(
                    "The session's model is named neither in the query nor in the first message."
                )
            self.answer = Known(model)
        if said.event == _CREATE and not (said.plain or said.named):
            raise Unreadable(f"A {_CREATE!r} message has no 'model' at its top level.")


@attrs.define
class _Said:
    """What a message says at the places that matter.

    :ivar named: it has a model at its top level.
    :ivar plain: it has no fields there but those that a message of the Realtime API has around its content.
    :ivar ended: the outermost object did.
    """

    event: str | None = None
    session: str | None = None
    models: set[str] = attrs.Factory(set)
    helpers: set[str] = attrs.Factory(set)
    named: bool = False
    plain: bool = True
    ended: bool = False

    def note(self, place: _Says, value: str) -> None:
        """Take a string."""
        if place is _Says.EVENT:
            self.event = _same(self.event, value)
        elif place is _Says.SESSION:
            self.session = _same(self.session, value)
        elif place is _Says.HELPER:
            self.helpers.add(checked_name(value))
        elif place is _Says.RESOURCE:
            self.models.add(checked_name(name_of_resource(value)))
        else:
            self.models.add(checked_name(value))


def _read(message: bytes) -> _Said:
    """Read a text message. Behind its outermost object may only be white space, which the parser does not see to at all."""
    said = _Said()
    events = _follow(said)
    next(events)
    # See llmproxy.asked_model.json_body for the number of 5,000 digits.
    parser = _PARSER.basic_parse_coro(events, use_float=True)
    text = message.rstrip(_SPACE)
    if not text.endswith(b"}"):
        raise Unreadable(_NOT_JSON)
    try:
        parser.send(text[:-1])
        if said.ended:
            raise Unreadable(_NOT_JSON)
        parser.send(text[-1:])
        parser.close()
    except (ijson.JSONError, UnicodeDecodeError):
        raise Unreadable(_NOT_JSON) from None
    return said


def _follow(said: _Said) -> Generator[None, tuple[str, Any], None]:
    """Take the parser's events, and note what stands at the places that matter, each time that it does."""
    around: list[_Object] = []  # the objects around that have such places
    below = 0  # how deep in something that has none
    place: _Place | None = _PLACES  # of the value that comes next
    while True:
        event, value = yield
        if event == "map_key":
            if not below:
                place = _place_of(value, around[-1])
                if len(around) == 1:
                    said.named |= place is _Says.MODEL
                    said.plain &= value in _PLAIN
        elif event in ("end_map", "end_array"):
            if below:
                below -= 1
            else:
                around.pop()
                said.ended = not around
        else:
            if place is None:
                below += event in ("start_map", "start_array")
            elif isinstance(place, _Says):
                if event != "string":
                    raise Unreadable(
                        f"A WebSocket message has something else than a string for {place.value}."
                    )
                said.note(place, value)
            elif event == "start_map":
                around.append(place)
            elif event != "null":
                raise Unreadable("A WebSocket message has something else where an object can name the model.")
            place = None


def _place_of(key: str, around: _Object) -> _Place | None:
    """Which of the places that matter a key leads to, if any.

    :raise Unreadable: where some parsers would take it for the key of one.
    """
    is_model(key)
    if key in around:
        return around[key]
    # As there.
    stem = key.partition("[")[0].strip(" ").lower()
    if stem in around:
        raise Unreadable(
            f"A WebSocket message has a key that could be taken for {stem!r}; spell it exactly so."
        )
    return None


def _same(before: str | None, value: str) -> str:
    if before not in (None, value):
        raise Unreadable("A WebSocket message has two types.")
    return value
