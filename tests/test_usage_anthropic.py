from __future__ import annotations

from typing import Any

import pytest

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Usage
from tests.usage_support import JSON, SSE, dumped, named, read, tapped

USAGE = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 500,
    "cache_read_input_tokens": 3000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 400},
    "output_tokens": 60,
    "output_tokens_details": {"thinking_tokens": 25},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    "service_tier": "standard",
    "inference_geo": "global",
}
READ = Usage(
    input_tokens=12,
    output_tokens=60,
    cache_read_tokens=3000,
    cache_write_5m_tokens=100,
    cache_write_1h_tokens=400,
    reasoning_tokens=25,
    server_tool_uses={"web_search_requests": 2},
)


def message(**fields: Any) -> dict[str, Any]:
    base = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5"}
    return {**base, "content": [], "stop_reason": None, "stop_sequence": None, **fields}


def start(**usage: Any) -> bytes:
    return named({"type": "message_start", "message": message(usage=usage)})


def text(words: str = "Hello") -> bytes:
    return named(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": words}},
    )


def delta(stop_reason: str | None = "end_turn", **usage: Any) -> bytes:
    return named({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": usage})


PING = named({"type": "ping"})
BLOCK = named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
STOP = named({"type": "message_stop"})
STREAM = (
    start(**{**USAGE, "output_tokens": 1, "output_tokens_details": None, "server_tool_use": None}),
    BLOCK,
    PING,
    text(),
    text('{\\"message_delta\\": 1}'),
    delta(
        output_tokens=60,
        output_tokens_details={"thinking_tokens": 25},
        server_tool_use=USAGE["server_tool_use"],
    ),
    STOP,
)
WHOLE = Reading(
    model="claude-sonnet-5",
    response_id="msg_1",
    stop_reason="end_turn",
    service_tier="standard",
    usage=READ,
    source="reported",
    outcome="complete",
)


def whole(body: Any, path: bytes = b"/v1/messages") -> Reading:
    return read(tapped(Family.ANTHROPIC, JSON, path), dumped(body))


def streamed(*events: bytes, is_whole: bool = True) -> Reading:
    return read(tapped(Family.ANTHROPIC, SSE, b"/v1/messages"), events, is_whole)


def test_a_message_is_read() -> None:
    assert whole(message(usage=USAGE, stop_reason="end_turn")) == WHOLE


def test_a_stream_is_read_as_the_message_is() -> None:
    assert streamed(*STREAM) == WHOLE


def test_usage_is_cumulative_and_of_each_field_the_last_value_that_is_not_null_counts() -> None:
    reading = streamed(
        start(input_tokens=10, cache_read_input_tokens=7, output_tokens=1),
        delta(None, input_tokens=15, output_tokens=20, cache_read_input_tokens=None),
        delta(input_tokens=None, output_tokens=30),
        STOP,
    )
    assert reading.usage == Usage(input_tokens=15, output_tokens=30, cache_read_tokens=7)


def test_the_uses_of_tools_are_cumulative_too() -> None:
    reading = streamed(
        start(input_tokens=1, server_tool_use={"web_search_requests": 1, "web_fetch_requests": 4}),
        delta(server_tool_use={"web_search_requests": 3, "web_fetch_requests": None}),
        STOP,
    )
    assert reading.usage is not None
    assert reading.usage.server_tool_uses == {"web_search_requests": 3, "web_fetch_requests": 4}


@pytest.mark.parametrize(
    ("usage", "short", "long"),
    [
        ({"cache_creation_input_tokens": 500}, 500, None),
        ({"cache_creation_input_tokens": 0}, 0, None),
        ({"cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}}, 3, 4),
        ({"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 4}}, 5, 4),
        ({"cache_creation_input_tokens": None, "cache_creation": None}, None, None),
    ],
)
def test_what_is_written_to_a_cache_is_for_five_minutes_unless_an_hour_is_told(
    usage: dict[str, Any], short: int | None, long: int | None
) -> None:
    found = whole(message(usage={"input_tokens": 1, **usage})).usage
    assert found is not None
    assert (found.cache_write_5m_tokens, found.cache_write_1h_tokens) == (short, long)


def test_a_total_that_grew_past_its_split_grew_by_short_writes() -> None:
    split = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 400}
    reading = streamed(
        start(input_tokens=1, cache_creation_input_tokens=500, cache_creation=split),
        delta(cache_creation_input_tokens=650),
        STOP,
    )
    assert reading.usage == Usage(input_tokens=1, cache_write_5m_tokens=250, cache_write_1h_tokens=400)


def test_what_a_compaction_took_is_added() -> None:
    iterations = [
        {"type": "compaction", "input_tokens": 900, "output_tokens": 80, "cache_read_input_tokens": 5},
        {"type": "message", "input_tokens": 12, "output_tokens": 60},
    ]
    usage = {"input_tokens": 12, "output_tokens": 60, "iterations": iterations}
    reading = whole(message(usage=usage))
    assert reading.usage == Usage(input_tokens=912, output_tokens=140, cache_read_tokens=5)
    assert [part.usage for part in reading.parts] == [Usage(12, 60), Usage(900, 80, 5)]
    assert {part.model for part in reading.parts} == {reading.model}


def test_an_advisor_is_a_model_of_its_own() -> None:
    advisor = {"type": "advisor_message", "model": "claude-opus-4-6", "input_tokens": 8, "output_tokens": 6}
    usage = {"input_tokens": 1, "output_tokens": 1, "iterations": [advisor]}
    reading = whole(message(usage=usage))
    assert reading.usage == Usage(9, 7)
    assert [(part.model, part.usage) for part in reading.parts] == [
        (reading.model, Usage(1, 1)),
        ("claude-opus-4-6", Usage(8, 6)),
    ]


def test_what_is_billed_in_another_way_that_is_not_known_yet_is_a_part_that_is_unknown() -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "iterations": [{"type": "new", "input_tokens": 5}]}
    reading = whole(message(usage=usage))
    assert reading.usage == Usage(1, 1)
    assert reading.parts[1].usage is None


@pytest.mark.parametrize("kind", ["message", "fallback_message"])
def test_an_iteration_that_is_in_the_totals_is_not_added(kind: str) -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "iterations": [{"type": kind, "input_tokens": 1}] * 2}
    reading = whole(message(usage=usage))
    assert (reading.usage, reading.parts) == (Usage(1, 1), ())


@pytest.mark.parametrize(
    ("geo", "us_only"), [("us", True), ("global", False), ("not_available", False), (None, False)]
)
def test_what_was_kept_within_the_us_is_told(geo: str | None, us_only: bool) -> None:
    usage = streamed(start(input_tokens=1, inference_geo=geo), delta(output_tokens=1), STOP).usage
    assert usage is not None
    assert usage.us_only is us_only


@pytest.mark.parametrize(
    ("usage", "tier"),
    [
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": "batch"}, "batch"),
        ({"service_tier": "standard", "speed": "fast"}, "fast"),
        ({"service_tier": "standard", "speed": "standard"}, "standard"),
        ({}, None),
    ],
)
def test_the_tier_is_told(usage: dict[str, Any], tier: str | None) -> None:
    assert whole(message(usage=usage)).service_tier == tier
    assert streamed(start(**usage), delta(output_tokens=1), STOP).service_tier == tier


def test_counted_tokens_cost_nothing() -> None:
    reading = whole({"input_tokens": 2095}, b"/v1/messages/count_tokens")
    assert reading.usage == Usage(input_tokens=2095, billable=False)
    assert (reading.source, reading.outcome) == ("reported", "complete")


ERROR = {
    "type": "error",
    "error": {"type": "overloaded_error", "message": "Overloaded"},
    "request_id": "req_1",
}


def test_an_error_after_a_200_keeps_the_usage_that_was_seen() -> None:
    reading = streamed(start(input_tokens=12, output_tokens=1), text(), named(ERROR))
    assert (reading.outcome, reading.error) == ("failed", "overloaded_error")
    assert reading.usage == Usage(input_tokens=12, output_tokens=1)


def test_an_error_is_read_out_of_a_body_too() -> None:
    reading = whole(ERROR)
    assert (reading.outcome, reading.error, reading.usage) == ("failed", "overloaded_error", None)


@pytest.mark.parametrize("is_whole", [True, False])
def test_without_its_message_stop_a_stream_is_cut_and_keeps_what_was_seen(is_whole: bool) -> None:
    reading = streamed(*STREAM[:4], is_whole=is_whole)
    assert reading.outcome == "cut"
    assert reading.usage is not None
    assert (reading.usage.input_tokens, reading.usage.output_tokens) == (12, 1)


def test_a_fallback_tells_the_model_that_answered() -> None:
    block = {"type": "fallback", "from": {"model": "a"}, "to": {"model": "claude-haiku-5"}}
    reading = streamed(
        *STREAM[:4], named({"type": "content_block_start", "index": 1, "content_block": block}), *STREAM[5:]
    )
    assert (reading.model, reading.outcome) == ("claude-haiku-5", "complete")


def test_fields_of_a_tools_input_are_not_the_messages() -> None:
    given = {"usage": {"input_tokens": 10**6}, "model": "x", "id": "y", "stop_reason": "z"}
    block = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": given}
    assert whole(message(content=[block], usage=USAGE, stop_reason="end_turn")) == WHOLE


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"type": "text_delta", "text": "H"}, True),
        ({"type": "thinking_delta", "thinking": "H"}, True),
        ({"type": "input_json_delta", "partial_json": "{"}, True),
        ({"type": "input_json_delta", "partial_json": ""}, False),
    ],
)
def test_the_first_token_is_told_when_it_passes(delta: dict[str, Any], expected: bool) -> None:
    tap = tapped(Family.ANTHROPIC, SSE)
    for other in STREAM[:3]:
        tap.feed(other)
        assert not tap.first_token
    tap.feed(named({"type": "content_block_delta", "index": 0, "delta": delta}))
    assert tap.first_token is expected
