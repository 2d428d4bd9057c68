from __future__ import annotations

import json
from typing import Any

import pytest

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Usage
from llmproxy.usage.sse import LIMIT
from tests.usage_support import JSON, SSE, cut, dumped, event, read, tapped

STREAM_PATH = b"/v1beta/models/gemini-3-pro:streamGenerateContent"
COUNTS = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 60,
    "candidatesTokenCount": 20,
    "thoughtsTokenCount": 30,
    "toolUsePromptTokenCount": 5,
    "totalTokenCount": 155,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 80}, {"modality": "AUDIO", "tokenCount": 20}],
    "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 15}, {"modality": "TEXT", "tokenCount": 45}],
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 18}],
    "serviceTier": "priority",
}
READ = Usage(
    input_tokens=45,
    output_tokens=50,
    cache_read_tokens=60,
    reasoning_tokens=30,
    input_audio_tokens=5,
    cached_audio_tokens=15,
    output_image_tokens=18,
)
WHOLE = Reading(
    model="gemini-3-pro",
    response_id="r1",
    stop_reason="STOP",
    service_tier="priority",
    usage=READ,
    source="reported",
    outcome="complete",
)


def piece(
    text: str = "Hello", reason: str | None = None, counts: dict[str, Any] | None = None
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if reason:
        candidate["finishReason"] = reason
    counts = {"promptTokenCount": 100, "totalTokenCount": 100} if counts is None else counts
    head = {"modelVersion": "gemini-3-pro", "responseId": "r1"}
    return {"candidates": [candidate], "usageMetadata": counts, **head}


PIECES = [piece(), piece(" you"), piece(".", "STOP", COUNTS)]


def array(*pieces: dict[str, Any]) -> bytes:
    """As Gemini writes it, without ``alt=sse``."""
    return b"[" + b"\n,\r\n".join(json.dumps(one, indent=2).encode() for one in pieces) + b"\n]\n"


def whole(body: Any) -> Reading:
    return read(tapped(Family.GEMINI), dumped(body))


def streamed(*pieces: dict[str, Any], is_whole: bool = True) -> Reading:
    return read(tapped(Family.GEMINI, SSE, STREAM_PATH), map(event, pieces), is_whole)


def test_an_answer_is_read() -> None:
    assert whole(PIECES[-1]) == WHOLE


def test_a_stream_of_events_is_read() -> None:
    assert streamed(*PIECES) == WHOLE


def test_an_array_that_grows_is_read() -> None:
    tap = tapped(Family.GEMINI, JSON, STREAM_PATH + b"?key=x")
    body = array(*PIECES)
    assert read(tap, cut(body, range(0, len(body), 100))) == WHOLE
    assert tap.first_token


def test_a_stream_that_was_left_keeps_the_last_usage_that_was_told() -> None:
    counts = {"promptTokenCount": 100, "candidatesTokenCount": 7, "totalTokenCount": 107}
    reading = streamed(PIECES[0], piece(counts=counts), is_whole=False)
    assert reading.usage == Usage(input_tokens=100, output_tokens=7)
    assert (reading.outcome, reading.stop_reason) == ("cut", None)


def test_without_a_reason_to_finish_a_stream_is_cut() -> None:
    assert streamed(*PIECES[:2]).outcome == "cut"


def test_numbers_of_0_are_left_out_and_told_by_the_total() -> None:
    assert streamed(PIECES[0]).usage == Usage(input_tokens=100, output_tokens=0)


def test_usage_without_numbers_is_unknown() -> None:
    reading = streamed(piece(counts={"trafficType": "ON_DEMAND"}), is_whole=False)
    assert (reading.usage, reading.source, reading.service_tier) == (None, "absent", "ON_DEMAND")


def test_counted_tokens_cost_nothing() -> None:
    assert whole({"totalTokens": 31}).usage == Usage(input_tokens=31, billable=False)


@pytest.mark.parametrize(
    ("model", "queries", "searches"),
    [
        ("gemini-3-pro", ["a", "", "b"], 2),
        ("gemini-2.5-flash", ["a", "b", "c"], 1),
        ("gemini-2.5-pro", [""], None),
    ],
)
def test_searches_that_are_paid_for_are_counted(model: str, queries: list[str], searches: int | None) -> None:
    body = piece(reason="STOP", counts={"promptTokenCount": 1, "candidatesTokenCount": 2})
    body["modelVersion"] = model
    body["candidates"][0]["groundingMetadata"] = {"webSearchQueries": queries}
    uses = None if searches is None else {"web_search_requests": searches}
    assert whole(body).usage == Usage(input_tokens=1, output_tokens=2, server_tool_uses=uses)


@pytest.mark.parametrize("details", ["promptTokensDetails", "candidatesTokensDetails"])
def test_that_there_was_video_is_told(details: str) -> None:
    counts = {
        "promptTokenCount": 9,
        "candidatesTokenCount": 2,
        details: [{"modality": "VIDEO", "tokenCount": 5}],
    }
    assert whole(piece(reason="STOP", counts=counts)).usage == Usage(9, 2, video=True)


def test_a_prompt_that_was_blocked_tells_why() -> None:
    reading = streamed(
        {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
    )
    assert (reading.stop_reason, reading.outcome, reading.usage) == (
        "SAFETY",
        "complete",
        Usage(input_tokens=4),
    )


ERROR = {"error": {"code": 503, "message": "m", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize("error", [array(ERROR), dumped(ERROR)])
def test_an_error_is_told_by_its_status(error: bytes) -> None:
    assert streamed(PIECES[0], ERROR).error == "UNAVAILABLE"
    assert whole(ERROR).error == "UNAVAILABLE"
    reading = read(tapped(Family.GEMINI, JSON, STREAM_PATH), error)
    assert (reading.outcome, reading.error) == ("failed", "UNAVAILABLE")


def test_what_comes_from_a_cache_is_told_by_what_it_is() -> None:
    counts = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "candidatesTokenCount": 1,
        "promptTokensDetails": [
            {"modality": "IMAGE", "tokenCount": 80},
            {"modality": "TEXT", "tokenCount": 20},
        ],
        "cacheTokensDetails": [
            {"modality": "IMAGE", "tokenCount": 50},
            {"modality": "TEXT", "tokenCount": 10},
        ],
    }
    assert whole(piece(".", "STOP", counts)).usage == Usage(
        input_tokens=40, output_tokens=1, cache_read_tokens=60, input_image_tokens=30, cached_image_tokens=50
    )


def test_the_usage_behind_an_image_is_read_and_the_image_is_not_held() -> None:
    image = piece("A" * 3_000_000, None, COUNTS)
    reading = streamed(PIECES[0], image)
    assert (reading.usage, reading.model) == (READ, "gemini-3-pro")
    assert whole(image).usage == READ


def test_an_array_that_was_cut_keeps_what_was_whole() -> None:
    body = array(PIECES[0], piece(counts=COUNTS), PIECES[0])
    reading = read(tapped(Family.GEMINI, JSON, STREAM_PATH), cut(body[:-20], range(0, len(body), 7)))
    assert (reading.usage, reading.outcome) == (READ, "cut")


def test_an_array_of_something_else_is_undecodable() -> None:
    reading = read(tapped(Family.GEMINI, JSON, STREAM_PATH), [b"[1, 2", b", {}]"])
    assert (reading.source, reading.outcome) == ("undecodable", "cut")


@pytest.mark.parametrize("size", [2**16, LIMIT + 2])
def test_an_array_with_one_piece_larger_than_all_bounds_is_given_up(size: int) -> None:
    body = array(PIECES[0], piece("A" * LIMIT), PIECES[2])
    reading = read(tapped(Family.GEMINI, JSON, STREAM_PATH), cut(body, range(0, len(body), size)))
    assert (reading.source, reading.usage, reading.model) == ("too_large", None, "gemini-3-pro")
