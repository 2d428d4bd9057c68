from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Usage, tap_for_socket
from llmproxy.usage.model import unread
from llmproxy.usage.realtime import Messages
from tests.usage_support import WatchedSocket, dumped, readings_of

SESSION = {"type": "session.created", "session": {"id": "sess_1", "model": "gpt-realtime"}}
DELTA = {"type": "response.output_audio.delta", "delta": "AAAA"}


Session = partial(WatchedSocket, Messages)
told = partial(readings_of, Messages)


def only(*messages: dict[str, Any]) -> Reading:
    """The reading of the one turn."""
    (reading,) = told(*messages)
    return reading


def created(name: str) -> dict[str, Any]:
    return {
        "type": "response.created",
        "response": {"id": name, "object": "realtime.response", "usage": None},
    }


def done(name: str, status: str = "completed", details: Any = None, cached: int = 40) -> dict[str, Any]:
    usage = {
        "input_tokens": 100,
        "output_tokens": 30,
        "total_tokens": 130,
        "input_token_details": {
            "text_tokens": 40,
            "audio_tokens": 60,
            "cached_tokens": cached,
            "cached_tokens_details": {"text_tokens": cached - 10, "audio_tokens": 10},
        },
        "output_token_details": {"text_tokens": 10, "audio_tokens": 20},
    }
    response = {
        "id": name,
        "status": status,
        "status_details": details,
        "usage": usage,
        "max_output_tokens": "inf",
    }
    return {"type": "response.done", "response": response}


TURN = Usage(
    input_tokens=60,
    output_tokens=30,
    cache_read_tokens=40,
    input_audio_tokens=50,
    output_audio_tokens=20,
    cached_audio_tokens=10,
)


def test_each_turn_of_a_realtime_session_is_told_when_it_ends() -> None:
    session = Session(SESSION)
    assert session.begun == []
    for name in ("resp_1", "resp_2"):
        session.feed(created(name), DELTA, DELTA, done(name))
    assert [attrs.astuple(turn)[:4] for turn in session.ended] == [(0, 2, 3, 5), (1, 6, 7, 9)]
    assert session.readings == [
        Reading(
            model="gpt-realtime",
            response_id=name,
            stop_reason="completed",
            service_tier=None,
            usage=TURN,
            source="reported",
            outcome="complete",
        )
        for name in ("resp_1", "resp_2")
    ]
    assert session.close() == attrs.evolve(unread("turns", True), model="gpt-realtime")
    assert len(session.ended) == 2


def response(kind: str, name: str, status: str, **usage: int) -> dict[str, Any]:
    body = {"id": name, "object": "response", "model": "gpt-5", "status": status, "usage": usage or None}
    return {"type": kind, "response": body}


def test_each_turn_of_a_socket_for_responses_is_told_with_its_own_model_and_tier() -> None:
    first = response("response.completed", "r1", "completed", input_tokens=5, output_tokens=1)
    first["response"] |= {"model": "gpt-5-pro", "service_tier": "priority"}
    one, other = told(
        response("response.created", "r1", "in_progress"),
        first,
        response("response.created", "r2", "in_progress"),
        response("response.incomplete", "r2", "incomplete", input_tokens=7, output_tokens=2),
    )
    assert (one.model, one.service_tier, one.response_id) == ("gpt-5-pro", "priority", "r1")
    assert (one.usage, one.outcome) == (Usage(input_tokens=5, output_tokens=1), "complete")
    assert (other.model, other.service_tier, other.response_id) == ("gpt-5", None, "r2")
    assert (other.usage, other.stop_reason) == (Usage(input_tokens=7, output_tokens=2), "incomplete")


def test_a_turn_of_which_only_the_end_came_is_told() -> None:
    reading = only(response("response.completed", "r1", "completed", input_tokens=5))
    assert (reading.response_id, reading.usage) == ("r1", Usage(input_tokens=5))


def test_a_turn_without_a_name_is_told() -> None:
    ended = done("resp_1")
    del ended["response"]["id"]
    assert only(ended).usage == TURN


def test_turns_may_run_at_the_same_time() -> None:
    def begun(name: str) -> dict[str, Any]:
        return response("response.created", name, "in_progress")

    a, b = (response("response.completed", name, "completed", input_tokens=5) for name in "ab")
    session = Session(begun("a"), begun("b"), DELTA, b, DELTA, a)
    assert [(turn.number, turn.ended) for turn in session.ended] == [(1, 4), (0, 6)]
    assert [reading.response_id for reading in session.readings] == ["b", "a"]
    ended, left = told(begun("a"), begun("b"), DELTA, a, DELTA)
    assert (ended.outcome, ended.response_id, ended.usage) == ("complete", "a", Usage(input_tokens=5))
    assert (left.outcome, left.response_id, left.usage, left.source) == ("cut", "b", None, "absent")


def test_turns_that_never_end_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmproxy.usage.realtime._MOST_RUNNING", 2)
    session = Session(*(created(name) for name in "abc"))
    assert [(reading.response_id, reading.outcome) for reading in session.readings] == [("a", "cut")]


def test_a_turn_in_which_a_socket_was_left_is_cut() -> None:
    session = Session(SESSION, created("resp_1"), done("resp_1"), created("resp_2"), DELTA)
    assert len(session.ended) == 1
    assert session.close().source == "turns"
    whole, left = session.readings
    assert (whole.usage, whole.outcome) == (TURN, "complete")
    assert (left.response_id, left.model, left.usage) == ("resp_2", "gpt-realtime", None)
    assert (left.source, left.outcome) == ("absent", "cut")


def test_a_turn_that_failed_tells_its_error_and_its_usage() -> None:
    details = {"type": "failed", "error": {"type": "server_error", "code": None}}
    reading = only(SESSION, created("resp_1"), done("resp_1", "failed", details))
    assert (reading.outcome, reading.error, reading.usage) == ("failed", "server_error", TURN)
    reading = only(response("response.failed", "r1", "failed"))
    assert (reading.outcome, reading.usage, reading.source) == ("failed", None, "absent")


def test_a_turn_that_was_interrupted_tells_why() -> None:
    reading = only(created("resp_1"), done("resp_1", "cancelled", {"reason": "turn_detected"}))
    assert (reading.outcome, reading.stop_reason) == ("complete", "turn_detected")


def test_what_was_refused_before_anything_was_begun_costs_nothing_and_the_session_goes_on() -> None:
    error = {"type": "error", "status": 400, "error": {"type": "invalid_request_error", "code": "x"}}
    refused, turn = told(SESSION, error, created("resp_1"), done("resp_1"))
    assert (refused.error, refused.outcome, refused.response_id) == ("invalid_request_error", "failed", None)
    assert (refused.source, refused.usage) == ("free", Usage(billable=False))
    assert (turn.outcome, turn.error, turn.usage) == ("complete", None, TURN)


def test_an_error_is_that_of_a_turn_that_does_not_go_on() -> None:
    error = {"type": "error", "error": {"type": "server_error"}}
    reading = only(SESSION, created("resp_1"), error)
    assert (reading.response_id, reading.error, reading.outcome) == ("resp_1", "server_error", "failed")
    assert (reading.usage, reading.source) == (None, "absent")
    reading = only(SESSION, created("resp_1"), error, DELTA, done("resp_1"))
    assert (reading.error, reading.outcome, reading.usage) == (None, "complete", TURN)


def test_the_transcript_of_what_was_said_is_another_models_and_not_known() -> None:
    transcript = {
        "type": "conversation.item.input_audio_transcription.completed",
        "usage": {"type": "tokens", "input_tokens": 9, "output_tokens": 9, "total_tokens": 18},
    }
    first, turn, last = told(SESSION, transcript, created("resp_1"), done("resp_1"), transcript)
    assert turn.usage == TURN
    assert first == last == unread("absent", True)


@pytest.mark.parametrize(
    "heard",
    [
        [],
        [{"type": "conversation.created"}, {"type": "ping"}, {"type": "rate_limits.updated"}],
        [{"type": "input_audio_buffer.speech_started"}, {"type": "conversation.item.added"}],
        [{"type": "session.updated", "session": {"model": "gpt-realtime"}}],
    ],
)
def test_a_session_in_which_nothing_was_made_used_nothing(heard: list[dict[str, Any]]) -> None:
    session = Session(SESSION, *heard)
    assert session.close() == attrs.evolve(unread("turns", True), model="gpt-realtime")
    assert session.begun == []


SOUND = {"type": "session.output_audio.delta", "event_id": "e", "delta": "AAAA"}
TRANSLATION = {
    "type": "session.created",
    "session": {"id": "sess_1", "type": "translation", "model": "gpt-realtime-translate"},
}
LIVE = {"type": "session.started", "event_id": "e", "session": {"id": "s", "model": "gpt-live-1"}}
LIVE_USAGE = {"type": "session.usage.updated", "event_id": "e", "usage": {"seconds": 61.5}}
LIVE_CLOSED = {
    "type": "session.closed",
    "event_id": "e",
    "reason": "close_requested",
    "session": {"id": "s", "model": "gpt-live-1"},
    "usage": {"seconds": 100.0},
}


@pytest.mark.parametrize(
    "messages",
    [
        [TRANSLATION],
        [TRANSLATION, SOUND],
        [TRANSLATION, {"type": "session.closed", "event_id": "e"}],
        [LIVE, SOUND],
        [LIVE, LIVE_CLOSED],
        [LIVE],
        [{"type": "transcript.created"}, {"type": "transcript.done", "text": "hello", "duration": 100.0}],
        [{"type": "conversation.item.input_audio_transcription.delta", "delta": "Hel"}],
        [b"\x00\x01 sound"],
        [b"[]"],
    ],
)
def test_a_socket_that_is_not_made_of_responses_is_unknown(messages: list[Any]) -> None:
    session = Session()
    session.feed(*messages)
    assert (session.begun, session.close().source) == ([], "absent")


def nested(event: dict[str, Any], delegation: str | None = "d_1") -> dict[str, Any]:
    return {"type": "response.event", "event_id": "e", "delegation_id": delegation, "event": event}


@pytest.mark.parametrize("beyond", [SOUND, LIVE_USAGE, LIVE_CLOSED])
def test_the_responses_that_a_live_session_asks_for_are_turns_and_its_sound_is_not_known(
    beyond: dict[str, Any],
) -> None:
    text = {"type": "response.output_text.delta", "delta": "x"}
    session = Session(
        LIVE,
        nested(response("response.created", "r1", "in_progress")),
        nested(text),
        nested(text),
        beyond,
        nested(response("response.completed", "r1", "completed", input_tokens=12345)),
    )
    (turn,) = session.ended
    assert attrs.astuple(turn)[:4] == (0, 2, 3, 6)
    (reading,) = session.readings
    assert (reading.model, reading.usage) == ("gpt-5", Usage(input_tokens=12345))
    socket = session.close()
    assert (socket.source, socket.model) == ("absent", "gpt-live-1")


def test_a_nested_response_has_a_model_of_its_own_or_none() -> None:
    ended = response("response.completed", "r1", "completed", input_tokens=5)
    del ended["response"]["model"]
    assert only(LIVE, nested(ended)).model is None
    session = Session(LIVE, nested(ended), {**LIVE_CLOSED, "usage": {"seconds": 0.0}})
    assert session.close().source == "turns"


def test_the_commands_that_a_live_session_refuses_are_none_of_its_responses() -> None:
    error = {"type": "error", "event_id": "e", "error": {"type": "invalid_request_error"}}
    refused, turn = told(
        LIVE,
        nested(response("response.created", "r1", "in_progress")),
        error,
        nested(response("response.completed", "r1", "completed", input_tokens=5)),
    )
    assert (refused.source, refused.model, turn.error, turn.outcome) == (
        "free",
        "gpt-live-1",
        None,
        "complete",
    )


@pytest.mark.parametrize("more", [True, False])
def test_xais_usage_beside_the_response_is_its_usage(more: bool) -> None:
    """As its server sends it, the fields of which there is no documentation among them."""
    usage = {
        "input_tokens": 10,
        "input_token_details": {"text_tokens": 10, "audio_tokens": 0, "grok_tokens": 0},
        "output_tokens": 277,
        "output_token_details": {"text_tokens": 19, "audio_tokens": 258, "grok_tokens": 0},
        "total_tokens": 287,
        "output_audio_seconds": 5.134,
    }
    if more:
        usage["billable_audio_seconds"] = 3
    response = {"id": "r", "object": "realtime.response", "status": "completed", "usage": {}}
    ended = {"type": "response.done", "response": response | {"status_details": "unimplemented"}}
    ended |= {"response_id": "r", "usage": usage}
    reading = only(SESSION, {"type": "response.created", "response": response}, ended)
    assert reading.usage == Usage(
        input_tokens=10, output_tokens=277, input_audio_tokens=0, output_audio_tokens=258, more=more
    )


def test_usage_in_the_response_comes_before_that_beside_it() -> None:
    reading = only(done("r") | {"usage": {"input_tokens": 1, "billable_audio_seconds": 3}})
    assert reading.usage == TURN


@pytest.mark.parametrize(("kind", "outcome"), [("completed", "complete"), ("failed", "failed")])
def test_an_end_that_is_too_large_leaves_its_turn_unknown_and_no_other(kind: str, outcome: str) -> None:
    session = Session(*(response("response.created", name, "in_progress") for name in "ab"))
    end = dumped(response(f"response.{kind}", "b", kind, input_tokens=5))
    session.tap._body.skip(end[:100])  # type: ignore[attr-defined]
    session.feed(response("response.completed", "a", "completed", input_tokens=7))
    assert session.close().source == "turns"
    lost, known = session.readings
    assert (lost.response_id, lost.usage, lost.source, lost.model) == ("b", None, "too_large", "gpt-5")
    assert (lost.outcome, lost.stop_reason) == (outcome, kind)
    assert (known.response_id, known.usage) == ("a", Usage(input_tokens=7))


def test_what_is_too_large_and_no_end_costs_no_turn_its_usage() -> None:
    session = Session(SESSION, created("r"))
    for start in (
        b'{"type":"response.output_audio.delta","response_id":"r","delta":"AA',
        b'{"type": "conversation.item.added", "item": {"content": [{"image_url": "AA',
        b'{"type":"response.output_item.done","response_id":"r","item":{',
    ):
        session.tap._body.skip(start)  # type: ignore[attr-defined]
    assert session.begun[0].first_token is not None
    session.feed(done("r"))
    session.close()
    assert [reading.usage for reading in session.readings] == [TURN]


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"    ",
        b'{"response":{"output":["AA',
        b'{"type":"response.event","event":{',
        b'{"type":"response.done","x":"',
    ],
)
def test_what_is_too_large_and_cannot_be_told_is_of_the_oldest_turn_or_one_of_its_own(start: bytes) -> None:
    session = Session(SESSION, created("a"), created("b"))
    session.tap._body.skip(start)  # type: ignore[attr-defined]
    session.feed(done("b"))
    session.tap._body.skip(start)  # type: ignore[attr-defined]
    session.close()
    assert [(reading.response_id, reading.source) for reading in session.readings] == [
        ("a", "too_large"),
        ("b", "reported"),
        (None, "too_large"),
    ]


def test_nothing_is_parsed_once_all_turns_have_had_their_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(name: str) -> dict[str, Any]:
        return response("response.created", name, "in_progress") | {"stream_id": name}

    piece = {"type": "response.output_text.delta", "sequence_number": 3, "delta": "x"}
    session = Session(begun("a"), begun("b"), piece | {"stream_id": "b"}, piece | {"stream_id": "a"})
    monkeypatch.setattr("llmproxy.usage.realtime.document", None)
    session.feed(*[piece | {"stream_id": name} for name in "aabba"])
    assert [turn.first_token for turn in session.begun] == [4, 3]


@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from(
            [
                *(
                    dumped(message)
                    for message in (done("a"), created("b"), SESSION, nested(done("c")), LIVE_CLOSED)
                ),
                *(
                    b"[DONE]",
                    b"{}",
                    b'{"type":3}',
                    b'{"type":"error"}',
                    b'{"type":"response.event","event":[]}',
                ),
                *(b'{"type":"error","status":1,"stream_id":{}}', b'{"type":"response.x","response":7}'),
                *(
                    b'{"type":"session.updated","session":[],"usage":1}',
                    b'{"type":"response.done","response":{}}',
                ),
            ]
        )
    )
)
def test_no_message_is_an_error(messages: list[bytes]) -> None:
    session = Session()
    for at, message in enumerate(messages):
        if at % 3 == 2:
            session.tap._body.skip(message)  # type: ignore[attr-defined]
        session.feed(message)
    assert session.close().source in ("turns", "absent")


def test_only_openais_messages_are_read() -> None:
    assert tap_for_socket(Family.ANTHROPIC, b"/v1/realtime", b"", Session()) is None
    assert tap_for_socket(Family.NONE, b"/v1/realtime", b"", Session()) is None
