from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import attrs
import pytest

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Usage
from llmproxy.usage.charges import FIELDS
from tests.usage_support import JSON, SSE, cut, dumped, event, named, read, tapped

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


def test_images_from_a_cache_are_told_apart_from_text_from_there() -> None:
    usage = {
        "input_tokens": 1000,
        "output_tokens": 10,
        "total_tokens": 1010,
        "input_token_details": {
            "text_tokens": 200,
            "image_tokens": 800,
            "cached_tokens": 600,
            "cached_tokens_details": {"text_tokens": 100, "image_tokens": 500},
        },
    }
    assert whole({"id": "r", "usage": usage}).usage == Usage(
        input_tokens=400,
        output_tokens=10,
        cache_read_tokens=600,
        input_image_tokens=300,
        cached_image_tokens=500,
    )


@pytest.mark.parametrize(("seconds", "more"), [(12, True), (0, False), (None, False)])
def test_sound_that_mistral_bills_by_its_seconds_is_billed_beyond_the_tokens(
    seconds: int | None, more: bool
) -> None:
    usage = {
        "prompt_audio_seconds": seconds,
        "prompt_tokens": 500,
        "completion_tokens": 9,
        "total_tokens": 509,
    }
    read = whole({"id": "c", "choices": [], "usage": usage}).usage
    assert read == Usage(500, 9, more=more)


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


PLAIN = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
SONAR = {**PLAIN, "search_context_size": "low"}
AGENT = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}


TOLD: list[tuple[dict[str, Any], str]] = [
    # OpenRouter
    (
        {**PLAIN, "cost": 0.02056, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.02056}},
        "20560",
    ),
    ({**PLAIN, "cost": 0.95, "is_byok": True, "cost_details": {"upstream_inference_cost": 19}}, "19950000"),
    ({**PLAIN, "cost": 0, "is_byok": False}, "0"),
    ({**PLAIN, "cost": 5e-07, "server_tool_use": {"web_search_requests": 2}}, "0.5"),
    # Perplexity
    (
        {
            **SONAR,
            "cost": {
                "input_tokens_cost": 1.4e-05,
                "output_tokens_cost": 0.0001,
                "request_cost": 0.005,
                "total_cost": 0.005114,
            },
        },
        "5114",
    ),
    (
        {
            **AGENT,
            "cost": {"currency": "USD", "total_cost": 0.0155},
            "tool_calls_details": {"a": {"invocation": 3}},
        },
        "15500",
    ),
    # xAI
    ({**AGENT, "cost_in_usd_ticks": 37756000, "num_server_side_tools_used": 24}, "3775.6"),
    ({**AGENT, "cost_in_usd_ticks": 1}, "0.0001"),
]


@pytest.mark.parametrize(("usage", "micro_dollars"), TOLD)
def test_what_the_provider_says_that_it_cost_is_read_as_it_was_written(
    usage: dict[str, Any], micro_dollars: str
) -> None:
    for found in (
        whole({"model": "m", "choices": [], "usage": usage}).usage,
        whole(response(usage=usage)).usage,
        streamed(*CHAT[:3], chunk(usage=usage), DONE).usage,
        streamed(*response_events(usage=usage)).usage,
    ):
        assert found is not None
        assert found.told_cost == Decimal(micro_dollars)
        assert found.output_tokens == 100


def test_it_is_read_wherever_a_stream_is_cut_into_pieces() -> None:
    body = b"".join([*CHAT[:3], chunk(usage={**CHAT_USAGE, "cost": 0.0045}), DONE])
    expected = Usage(36, 30, 64, None, None, 12, 8, 4, told_cost=Decimal("4500"))
    for at in range(len(body)):
        assert read(tapped(Family.OPENAI, SSE), cut(body, [at])).usage == expected


def test_it_is_read_of_an_answer_whose_middle_was_not() -> None:
    body = {"model": "m", "data": [{"b64_json": "A" * 300_000}], "usage": {"cost_in_usd_ticks": 200_000_000}}
    reading = whole(body)
    assert (reading.usage, reading.source) == (Usage(told_cost=Decimal(20_000)), "reported")


def test_what_is_billed_beside_tokens_may_be_told_with_an_earlier_usage() -> None:
    def last(*usages: dict[str, Any]) -> Usage | None:
        return streamed(*(chunk(delta("a"), usage=usage) for usage in usages), DONE).usage

    cost = {"cost": 0.5}
    fewer = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    told = Usage(1000, 100, told_cost=Decimal(500_000))
    assert last({**PLAIN, **cost}, PLAIN) == told
    assert last(PLAIN, {**cost, "total_tokens": 5}) == told
    assert last({**fewer, **cost}, PLAIN) == Usage(1000, 100, more=True), "it was of fewer"
    assert last({**PLAIN, "num_search_queries": 3}, PLAIN) == Usage(1000, 100, more=True)
    assert last({**fewer, "num_search_queries": 3}, {**PLAIN, **cost}) == attrs.evolve(told, more=True)
    assert last(fewer, PLAIN) == Usage(1000, 100)


def test_it_is_that_of_the_last_usage() -> None:
    usages = [{**PLAIN, "cost_in_usd_ticks": ticks} for ticks in (10_000, 30_000)]
    usage = streamed(*(chunk(delta("a"), usage=usage) for usage in usages), DONE).usage
    assert usage is not None
    assert usage.told_cost == 3


@pytest.mark.parametrize("cost", ["0.1", -0.1, True, None, 1e9, 1e300, 10**400, [], {}, {"total_cost": "1"}])
def test_what_is_no_amount_of_money_is_not_told(cost: object) -> None:
    for usage in ({**PLAIN, "cost": cost}, {**PLAIN, "cost": {"total_cost": cost}}):
        assert whole({"model": "m", "usage": usage}).usage == Usage(1000, 100)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_what_is_no_number_is_no_cost(number: bytes) -> None:
    body = b'{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":1,"cost":%s}}' % number
    assert read(tapped(Family.OPENAI, JSON), body).usage == Usage(1, 1)


def test_a_cost_in_another_currency_is_not_told() -> None:
    usage = {**SONAR, "cost": {"currency": "EUR", "total_cost": 0.5}}
    assert whole({"model": "m", "usage": usage}).usage == Usage(1000, 100, more=True)


BEYOND: list[dict[str, Any]] = [
    SONAR,
    {**PLAIN, "citation_tokens": 20016},
    {**PLAIN, "num_search_queries": 18},
    {**PLAIN, "tool_calls_details": {"search_web": {"invocation": 3}}},
    {**PLAIN, "num_server_side_tools_used": 1},
    {**PLAIN, "num_sources_used": 4},
    {**PLAIN, "server_side_tool_usage_details": {"web_search_calls": 0, "x_search_calls": 24}},
    {**PLAIN, "server_tool_use": {"web_search_requests": 2}},
    {**PLAIN, "server_tool_use_details": {"web_search_requests": 2}},
    {**PLAIN, "is_byok": True, "cost": 0.001},
]


@pytest.mark.parametrize("usage", BEYOND)
def test_what_is_billed_beyond_tokens_and_has_no_total_makes_it_more(usage: dict[str, Any]) -> None:
    assert whole({"model": "m", "usage": usage}).usage == Usage(1000, 100, more=True)
    assert streamed(chunk(usage=usage), DONE).usage == Usage(1000, 100, more=True)


def test_what_was_not_used_beyond_tokens_is_not_billed() -> None:
    nothing = {
        "search_context_size": None,
        "citation_tokens": 0,
        "num_search_queries": None,
        "num_sources_used": 0,
        "num_server_side_tools_used": 0,
        "server_side_tool_usage_details": {"web_search_calls": 0, "x_search_calls": 0},
        "server_tool_use": None,
        "server_tool_use_details": {},
        "tool_calls_details": {"search_web": {"invocation": 0}},
    }
    assert whole({"model": "m", "usage": {**PLAIN, **nothing}}).usage == Usage(1000, 100)


def test_every_way_of_telling_a_cost_is_looked_for_in_each_usage() -> None:
    told: list[dict[str, Any]] = [usage for usage, _ in TOLD]
    assert all(not FIELDS.isdisjoint(usage) for usage in [*told, *BEYOND])
    assert FIELDS.isdisjoint(CHAT_USAGE)
    assert FIELDS.isdisjoint(RESPONSE_USAGE)


class TestSum:
    ONE = Usage(1, 1, told_cost=Decimal("0.3"))

    def test_costs_that_are_told_are_added(self) -> None:
        both = self.ONE + self.ONE
        assert both == Usage(2, 2, told_cost=Decimal("0.6"))

    def test_with_nothing_used_a_cost_stays_what_it_is(self) -> None:
        assert self.ONE + Usage() == Usage() + self.ONE == self.ONE

    @pytest.mark.parametrize("other", [Usage(1, 1), Usage(more=True), Usage(server_tool_uses={"x": 1})])
    def test_one_that_is_told_and_one_that_is_not_have_a_sum_that_no_list_tells(self, other: Usage) -> None:
        for sum_ in (self.ONE + other, other + self.ONE):
            assert (sum_.told_cost, sum_.more) == (None, True)
