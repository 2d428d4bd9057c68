from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Tap, Usage, tap_for_socket
from llmproxy.usage.model import Part
from llmproxy.usage.realtime import Messages
from llmproxy.usage.sse import LIMIT
from tests.usage_support import Watched, dumped, read

SESSION = {"type": "session.created", "session": {"id": "sess_1", "model": "gpt-realtime"}}
DELTA = {"type": "response.output_audio.delta", "delta": "AAAA"}


def tapped() -> Watched:
    """A tap that is fed messages, out of their frames."""
    return Watched(lambda told: Tap(Messages(), told))


def told(*messages: dict[str, Any], whole: bool = False) -> Reading:
    return read(tapped(), map(dumped, messages), whole)


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


def test_the_turns_of_a_realtime_session_are_summed() -> None:
    reading = told(
        SESSION, created("resp_1"), DELTA, done("resp_1"), created("resp_2"), DELTA, done("resp_2")
    )
    assert reading == Reading(
        model="gpt-realtime",
        response_id="resp_2",
        stop_reason="completed",
        service_tier=None,
        usage=TURN + TURN,
        source="reported",
        outcome="complete",
        parts=(Part("gpt-realtime", None, TURN),) * 2,
    )
    assert reading.usage is not None
    assert reading.usage.input_audio_tokens == 100


def response(kind: str, name: str, status: str, **usage: int) -> dict[str, Any]:
    body = {"id": name, "object": "response", "model": "gpt-5", "status": status, "usage": usage or None}
    return {"type": kind, "response": body}


def test_the_turns_of_a_socket_for_responses_are_summed() -> None:
    reading = told(
        response("response.created", "r1", "in_progress"),
        response("response.completed", "r1", "completed", input_tokens=5, output_tokens=1),
        response("response.created", "r2", "in_progress"),
        response("response.incomplete", "r2", "incomplete", input_tokens=7, output_tokens=2),
    )
    assert (reading.model, reading.response_id, reading.stop_reason) == ("gpt-5", "r2", "incomplete")
    assert (reading.usage, reading.outcome) == (Usage(input_tokens=12, output_tokens=3), "complete")


def test_each_turn_is_told_with_its_own_model_and_tier() -> None:
    first = response("response.completed", "r1", "completed", input_tokens=5)
    first["response"] |= {"model": "gpt-5-pro", "service_tier": "priority"}
    second = response("response.completed", "r2", "completed", input_tokens=7)
    assert told(first, second).parts == (
        Part("gpt-5-pro", "priority", Usage(input_tokens=5)),
        Part("gpt-5", None, Usage(input_tokens=7)),
    )
    assert told(first).parts == ()


def test_a_turn_that_failed_has_a_part_that_is_unknown_whatever_follows() -> None:
    failed = response("response.failed", "r1", "failed")
    reading = told(failed, response("response.completed", "r2", "completed", input_tokens=7))
    assert reading.outcome == "complete"
    assert reading.parts == (Part("gpt-5", None, None), Part("gpt-5", None, Usage(input_tokens=7)))


def test_turns_may_run_at_the_same_time() -> None:
    def begun(name: str) -> dict[str, Any]:
        return response("response.created", name, "in_progress")

    a, b = (response("response.completed", name, "completed", input_tokens=5) for name in "ab")
    reading = told(begun("a"), begun("b"), DELTA, a, DELTA)
    assert (reading.outcome, reading.response_id, reading.usage) == ("cut", "b", Usage(input_tokens=5))
    reading = told(begun("a"), begun("b"), DELTA, b, DELTA, a)
    assert (reading.outcome, reading.usage) == ("complete", Usage(input_tokens=10))
    assert len(reading.parts) == 2


def test_what_so_many_turns_cost_is_not_known_but_their_usage_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmproxy.usage.realtime._MOST_PARTS", 2)
    reading = told(*(response("response.completed", name, "completed", input_tokens=5) for name in "abc"))
    assert reading.usage == Usage(input_tokens=15)
    assert [part.usage for part in reading.parts] == [Usage(input_tokens=5), None]


def test_a_socket_that_was_left_in_a_turn_is_cut_and_keeps_the_turns_before() -> None:
    reading = told(SESSION, created("resp_1"), done("resp_1"), created("resp_2"), DELTA)
    assert (reading.usage, reading.outcome, reading.response_id) == (TURN, "cut", "resp_2")
    assert reading.model == "gpt-realtime"


def test_a_turn_that_failed_tells_its_error_and_its_usage() -> None:
    details = {"type": "failed", "error": {"type": "server_error", "code": None}}
    reading = told(SESSION, created("resp_1"), done("resp_1", "failed", details))
    assert (reading.outcome, reading.error, reading.usage) == ("failed", "server_error", TURN)


def test_a_turn_that_was_interrupted_tells_why() -> None:
    reading = told(created("resp_1"), done("resp_1", "cancelled", {"reason": "turn_detected"}))
    assert (reading.outcome, reading.stop_reason) == ("complete", "turn_detected")


def test_a_session_goes_on_after_an_error() -> None:
    error = {"type": "error", "error": {"type": "invalid_request_error", "code": "x"}}
    assert told(SESSION, error).error == "invalid_request_error"
    reading = told(SESSION, error, created("resp_1"), done("resp_1"))
    assert (reading.outcome, reading.error, reading.usage) == ("complete", None, TURN)


def test_the_transcript_of_what_was_said_is_another_models_and_not_counted() -> None:
    transcript = {
        "type": "conversation.item.input_audio_transcription.completed",
        "usage": {"type": "tokens", "input_tokens": 9, "output_tokens": 9, "total_tokens": 18},
    }
    reading = told(SESSION, transcript, created("resp_1"), done("resp_1"), transcript)
    assert reading.usage == TURN
    assert (
        reading.parts[0] == reading.parts[2] == Part(None, None, None)
    )  # so what all of it costs is not known


def test_a_session_without_a_turn_used_nothing_that_is_known() -> None:
    reading = told(SESSION)
    assert (reading.model, reading.source, reading.outcome) == ("gpt-realtime", "absent", "complete")


def test_a_message_beyond_all_bounds_is_given_up() -> None:
    large = done("resp_1") | {"output": "x" * LIMIT}
    assert told(SESSION, created("resp_1"), DELTA, large).source == "too_large"
    assert told(created("resp_1"), DELTA, DELTA | {"delta": "x" * LIMIT}, done("resp_1")).usage == TURN


def test_the_first_token_is_told_when_it_passes() -> None:
    tap = tapped()
    for message, expected in (
        (SESSION, False),
        (created("resp_1"), False),
        (DELTA, True),
        (done("resp_1"), True),
    ):
        tap.feed(dumped(message))
        assert tap.first_token is expected


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([dumped(done("a")), dumped(created("b")), b"[DONE]"]))
)
def test_no_message_is_an_error(messages: list[bytes]) -> None:
    read(tapped(), messages)


def test_only_openais_messages_are_read() -> None:
    assert tap_for_socket(Family.ANTHROPIC, b"") is None
    assert tap_for_socket(Family.NONE, b"") is None
