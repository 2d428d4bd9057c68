from __future__ import annotations

import json
from typing import Any

import pytest

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Usage
from tests.usage_support import JSON, SSE, dumped, event, named, read, tapped

CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 30,
    "total_tokens": 130,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 12, "audio_tokens": 4},
}
CHAT_READ = Usage(
    input_tokens=36,
    output_tokens=30,
    cache_read_tokens=64,
    reasoning_tokens=12,
    input_audio_tokens=8,
    output_audio_tokens=4,
)
RESPONSE_USAGE = {
    "input_tokens": 75,
    "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 3},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 95,
}
RESPONSE_READ = Usage(
    input_tokens=40,
    output_tokens=20,
    cache_read_tokens=32,
    cache_write_5m_tokens=3,
    reasoning_tokens=5,
)


def whole(body: Any) -> Reading:
    return read(tapped(Family.OPENAI, JSON), dumped(body))


def streamed(*events: bytes) -> Reading:
    return read(tapped(Family.OPENAI, SSE), events)


def chunk(*choices: dict[str, Any], **fields: Any) -> bytes:
    head = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "gpt-5-2026",
        "service_tier": "flex",
    }
    return event({**head, "choices": list(choices), **fields})


def delta(text: str | None = None, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    content = {} if text is None else {"content": text}
    return {"index": 0, "delta": {**content, **fields}, "finish_reason": reason}


DONE = b"data: [DONE]\n\n"
CHAT = (
    chunk(delta("", role="assistant"), usage=None),
    chunk(delta("Hello"), usage=None),
    chunk(delta(reason="stop"), usage=None),
    chunk(usage=CHAT_USAGE),
    DONE,
)


def response(**fields: Any) -> dict[str, Any]:
    base = {"id": "resp_1", "object": "response", "model": "gpt-5", "status": "completed", "error": None}
    return {**base, "incomplete_details": None, "service_tier": "priority", "usage": RESPONSE_USAGE, **fields}


def response_events(last: str = "response.completed", **fields: Any) -> list[bytes]:
    begun = response(status="in_progress", usage=None)
    return [
        named({"type": "response.created", "sequence_number": 0, "response": begun}),
        named({"type": "response.in_progress", "sequence_number": 1, "response": begun}),
        named({"type": "response.output_text.delta", "sequence_number": 2, "delta": "Hello"}),
        named({"type": last, "sequence_number": 3, "response": response(**fields)}),
    ]


def test_a_chat_completion_is_read() -> None:
    reading = whole(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-5-2026",
            "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "length"}],
            "usage": CHAT_USAGE,
            "service_tier": "default",
        }
    )
    assert reading == Reading(
        model="gpt-5-2026",
        response_id="chatcmpl-1",
        stop_reason="length",
        service_tier="default",
        usage=CHAT_READ,
        source="reported",
        outcome="complete",
    )


def test_a_stream_of_chat_chunks_is_read() -> None:
    assert streamed(*CHAT) == Reading(
        model="gpt-5-2026",
        response_id="chatcmpl-1",
        stop_reason="stop",
        service_tier="flex",
        usage=CHAT_READ,
        source="reported",
        outcome="complete",
    )


def test_usage_that_was_not_asked_for_is_unknown_and_not_0() -> None:
    reading = streamed(*CHAT[:3], DONE)
    assert (reading.usage, reading.source, reading.outcome) == (None, "absent", "complete")


def test_usage_in_every_chunk_is_that_of_the_last() -> None:
    reading = streamed(
        *(chunk(delta("a"), usage={"prompt_tokens": 5, "completion_tokens": n}) for n in (1, 2, 3)), DONE
    )
    assert reading.usage == Usage(input_tokens=5, output_tokens=3)


def test_without_its_done_a_stream_is_cut() -> None:
    reading = streamed(*CHAT[:-1])
    assert (reading.usage, reading.outcome) == (CHAT_READ, "cut")


def test_a_stream_that_was_left_behind_its_done_is_complete() -> None:
    assert read(tapped(Family.OPENAI, SSE), CHAT, whole=False).outcome == "complete"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "m", "type": "server_error", "code": None}, "server_error"),
        ({"message": "m", "type": None, "code": "overloaded"}, "overloaded"),
        ({"message": "m", "code": 502}, "502"),
        ({"message": "m"}, "error"),
        ("message", "error"),
        ({"type": "\x00\ud800" * 400}, "error"),
    ],
)
def test_an_error_after_a_200_is_told_by_its_type(error: Any, kind: str) -> None:
    reading = streamed(*CHAT[:2], b"data: " + json.dumps({"error": error}).encode() + b"\n\n", DONE)
    assert (reading.outcome, reading.error, reading.model) == ("failed", kind, "gpt-5-2026")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'data: {"type":"error","code":"rate_limit_exceeded","message":"m"}', "rate_limit_exceeded"),
        (b'data: {"error":{"type":"server_error"}}', "server_error"),
    ],
)
def test_an_event_named_error_is_one(data: bytes, kind: str) -> None:
    reading = streamed(*response_events()[:3], b"event: error\n" + data + b"\n\n")
    assert (reading.outcome, reading.error) == ("failed", kind)


def test_a_response_is_read() -> None:
    assert whole(response()) == Reading(
        model="gpt-5",
        response_id="resp_1",
        stop_reason="completed",
        service_tier="priority",
        usage=RESPONSE_READ,
        source="reported",
        outcome="complete",
    )


def test_a_stream_of_response_events_is_read_as_the_response_is() -> None:
    assert streamed(*response_events()) == whole(response())


def test_an_incomplete_response_tells_why_and_what_it_used() -> None:
    reading = streamed(
        *response_events(
            "response.incomplete", status="incomplete", incomplete_details={"reason": "max_output_tokens"}
        )
    )
    assert (reading.outcome, reading.stop_reason) == ("complete", "max_output_tokens")
    assert reading.usage == RESPONSE_READ


def test_a_failed_response_tells_its_error_and_what_it_used() -> None:
    error = {"code": "server_error", "message": "m"}
    reading = streamed(*response_events("response.failed", status="failed", error=error))
    assert (reading.outcome, reading.error, reading.stop_reason) == ("failed", "server_error", "failed")
    assert reading.usage == RESPONSE_READ


def test_a_response_that_failed_without_an_error_has_failed() -> None:
    assert streamed(*response_events("response.failed", status="failed")).error == "error"


def test_a_response_that_was_left_has_not_stopped() -> None:
    reading = read(tapped(Family.OPENAI, SSE), response_events()[:3], whole=False)
    assert (reading.outcome, reading.stop_reason, reading.source) == ("cut", None, "absent")
    assert (reading.model, reading.response_id) == ("gpt-5", "resp_1")


def test_the_runs_of_openais_own_tools_are_counted() -> None:
    output = [
        {"type": kind} for kind in ("web_search_call", "file_search_call", "web_search_call", "message", 5)
    ]
    usage = whole(response(output=output)).usage
    assert usage is not None
    assert usage.server_tool_uses == {"web_search_requests": 2, "file_search_requests": 1}


def test_searches_that_are_billed_are_those_that_are_told() -> None:
    tools = {"web_search": {"num_requests": 1}, "image_gen": {"input_tokens": 0}}
    usage = whole(response(output=[{"type": "web_search_call"}] * 3, tool_usage=tools)).usage
    assert usage is not None
    assert usage.server_tool_uses == {"web_search_requests": 1}


def test_to_open_a_page_is_no_search() -> None:
    actions = [{"type": kind} for kind in ("search", "open_page", "find_in_page")] + [None]
    output = [{"type": "web_search_call", "action": action} for action in actions]
    usage = whole(response(output=output)).usage
    assert usage is not None
    assert usage.server_tool_uses == {"web_search_requests": 2}


def test_images_that_are_told_by_their_tokens_are_runs_of_a_tool() -> None:
    usage = whole(response(tool_usage={"image_gen": {"total_tokens": 1400}})).usage
    assert usage is not None
    assert usage.server_tool_uses == {"image_generation_requests": 1}


@pytest.mark.parametrize(
    ("told", "more"),
    [
        ({}, True),
        ({"service_tier": "priority"}, True),
        ({"tool_usage": {"web_search": {"num_requests": 2}}}, True),
        ({"service_tier": "priority", "tool_usage": {"web_search": {"num_requests": 2}}}, False),
    ],
)
def test_a_response_whose_middle_was_not_read_may_cost_more(told: dict[str, Any], more: bool) -> None:
    items = [{"type": "image_generation_call", "result": "A" * 200_000}]
    body = {**response(output=items), **told}
    if "service_tier" not in told:
        body.pop("service_tier", None)
    body["usage"] = body.pop("usage")  # it comes last
    usage = whole(body).usage
    assert usage is not None
    assert usage.more is more


@pytest.mark.parametrize("model", ["gpt-4o-search-preview", "gpt-5-search-api"])
def test_a_model_that_searches_for_each_request_costs_more_than_its_tokens(model: str) -> None:
    usage = whole({"model": model, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).usage
    assert usage == Usage(1, 1, more=True)


def test_thoughts_that_only_the_total_has_are_output() -> None:
    told = {"prompt_tokens": 20, "completion_tokens": 424, "total_tokens": 1016}
    assert whole({"model": "gemini-3-pro", "usage": told}).usage == Usage(20, 996)


def test_runs_of_tools_without_tokens_are_no_usage() -> None:
    assert whole(response(usage=None, output=[{"type": "web_search_call"}])).source == "absent"


def test_embeddings_have_no_output() -> None:
    body = {"object": "list", "data": [], "model": "e-3", "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    reading = whole(body)
    assert (reading.model, reading.usage) == ("e-3", Usage(input_tokens=9, output_tokens=0))


def test_counted_input_tokens_cost_nothing() -> None:
    reading = whole({"object": "response.input_tokens", "input_tokens": 11})
    assert reading.usage == Usage(input_tokens=11, billable=False)


def test_images_tell_their_tokens_by_kind() -> None:
    usage = {
        "input_tokens": 50,
        "output_tokens": 4160,
        "total_tokens": 4210,
        "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
        "output_tokens_details": {"image_tokens": 4100, "text_tokens": 60},
    }
    image = {"type": "image_generation.completed", "b64_json": "A" * 100_000, "usage": usage}
    partial = {"type": "image_generation.partial_image", "b64_json": "A" * 100_000}
    expected = Usage(input_tokens=50, output_tokens=4160, input_image_tokens=40, output_image_tokens=4100)
    assert whole({"created": 1, "data": [{"b64_json": "A" * 300_000}], "usage": usage}).usage == expected
    reading = streamed(named(partial), named(image))
    assert (reading.usage, reading.outcome) == (expected, "complete")


def test_a_transcript_tells_its_audio() -> None:
    usage = {
        "type": "tokens",
        "input_tokens": 14,
        "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
        "output_tokens": 45,
        "total_tokens": 59,
    }
    expected = Usage(input_tokens=14, output_tokens=45, input_audio_tokens=14)
    assert whole({"text": "Hi", "usage": usage}).usage == expected
    words = {"type": "transcript.text.delta", "delta": "Hi"}
    reading = streamed(named(words), named({"type": "transcript.text.done", "text": "Hi", "usage": usage}))
    assert (reading.usage, reading.outcome) == (expected, "complete")


def test_a_transcript_that_is_billed_by_seconds_has_no_tokens() -> None:
    assert whole({"text": "Hi", "usage": {"type": "duration", "seconds": 3}}).source == "absent"


def test_speech_as_events_is_read() -> None:
    done = {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115},
    }
    reading = streamed(named({"type": "speech.audio.delta", "audio": "UklG"}), named(done))
    assert (reading.usage, reading.outcome) == (Usage(input_tokens=14, output_tokens=101), "complete")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "prompt_cache_hit_tokens": 6,
                "prompt_cache_miss_tokens": 4,
            },
            Usage(input_tokens=4, output_tokens=2, cache_read_tokens=6),
            id="DeepSeek",
        ),
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 2, "cached_tokens": 3},
            Usage(input_tokens=7, output_tokens=2, cache_read_tokens=3),
            id="Moonshot",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 112,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            Usage(input_tokens=10, output_tokens=102, reasoning_tokens=100),
            id="xAI, which counts reasoning beside the completion",
        ),
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": None},
            Usage(input_tokens=10, output_tokens=2),
            id="no details",
        ),
        pytest.param({"completion_tokens": 2}, Usage(output_tokens=2), id="no prompt"),
    ],
)
def test_those_who_speak_like_openai_are_understood(usage: dict[str, Any], expected: Usage) -> None:
    assert whole({"id": "x", "model": "m", "choices": [], "usage": usage}).usage == expected


@pytest.mark.parametrize("number", [True, -1, 1.5, "7", None, 10**15, [], {}])
def test_what_is_no_number_of_tokens_is_unknown(number: object) -> None:
    reading = whole({"model": "m", "usage": {"prompt_tokens": number, "completion_tokens": 1}})
    assert reading.usage == Usage(output_tokens=1)


@pytest.mark.parametrize("name", ["", "m" * 257, "m\n", "m\x00", "é", 7, None, ["m"]])
def test_what_no_name_could_be_is_unknown(name: object) -> None:
    assert whole({"model": name, "id": name, "service_tier": name}).model is None


@pytest.mark.parametrize(
    "first",
    [
        chunk(delta("H")),
        chunk(delta(reasoning_content="H")),
        chunk(delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}])),
        event({"object": "text_completion", "choices": [{"text": "H", "finish_reason": None}]}),
        named({"type": "response.reasoning_summary_text.delta", "delta": "H"}),
        named({"type": "image_generation.partial_image", "b64_json": "A"}),
    ],
)
def test_the_first_token_is_told_when_it_passes(first: bytes) -> None:
    tap = tapped(Family.OPENAI, SSE)
    for other in (
        b": wait\n\n",
        chunk(delta("", role="assistant")),
        response_events()[0],
        chunk(delta(None)),
    ):
        tap.feed(other)
        assert not tap.first_token
    tap.feed(first[:-1])
    assert not tap.first_token
    tap.feed(first[-1:])
    assert tap.first_token


def test_another_answer_than_a_stream_tells_of_no_first_token() -> None:
    tap = tapped(Family.OPENAI, JSON)
    read(tap, dumped(response()))
    assert not tap.first_token
