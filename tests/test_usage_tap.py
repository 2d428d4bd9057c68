from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.config.credential import Family
from llmproxy.decoding import decoder
from llmproxy.demo import chat, messages, responses
from llmproxy.demo.api import Answer
from llmproxy.demo.fields import Json
from llmproxy.usage import Reading, Tap, Usage, tap_for
from llmproxy.usage.decoded import Decoded
from llmproxy.usage.openai import OpenAIReader
from llmproxy.usage.sse import EventStream
from tests import test_usage_anthropic as anthropic
from tests import test_usage_gemini as gemini
from tests import test_usage_openai as openai
from tests.conftest import LoggedFailures
from tests.usage_support import CODINGS, JSON, SSE, Watched, cut, dumped, event, named, read, tapped


@attrs.frozen
class Shape:
    """An answer, and how it is taken."""

    family: Family
    kind: bytes
    body: bytes
    path: bytes = b""

    def tap(self, coding: bytes = b"") -> Watched:
        return tapped(self.family, self.kind, self.path, coding)


CHAT_JSON = {"id": "c1", "model": "gpt-5", "choices": [{"finish_reason": "stop"}], "usage": openai.CHAT_USAGE}
EMBEDDINGS = {"object": "list", "data": [], "model": "e-3", "usage": {"prompt_tokens": 9, "total_tokens": 9}}
SHAPES = {
    "chat completion": Shape(Family.OPENAI, JSON, dumped(CHAT_JSON)),
    "chat completion, SSE": Shape(Family.OPENAI, SSE, b"".join(openai.CHAT)),
    "chat completion, SSE, carriage returns": Shape(
        Family.OPENAI, SSE, b"".join(openai.CHAT).replace(b"\n", b"\r\n")
    ),
    "response": Shape(Family.OPENAI, JSON, dumped(openai.response())),
    "response, SSE": Shape(Family.OPENAI, SSE, b"".join(openai.response_events())),
    "embeddings": Shape(Family.OPENAI, JSON, dumped(EMBEDDINGS)),
    "message": Shape(
        Family.ANTHROPIC, JSON, dumped(anthropic.message(usage=anthropic.USAGE, stop_reason="end_turn"))
    ),
    "message, SSE": Shape(Family.ANTHROPIC, SSE, b"".join(anthropic.STREAM)),
    "message, SSE, failed": Shape(
        Family.ANTHROPIC, SSE, b"".join(anthropic.STREAM[:5]) + named(anthropic.ERROR)
    ),
    "counted tokens": Shape(Family.ANTHROPIC, JSON, dumped({"input_tokens": 5})),
    "gemini": Shape(Family.GEMINI, JSON, dumped(gemini.PIECES[-1])),
    "gemini, SSE": Shape(Family.GEMINI, SSE, b"".join(map(event, gemini.PIECES))),
    "gemini, array": Shape(Family.GEMINI, JSON, gemini.array(*gemini.PIECES), gemini.STREAM_PATH),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
codings = pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: coding.decode())


def expected(shape: Shape, whole: bool = True) -> Reading:
    return read(shape.tap(), shape.body, whole)


@shapes
def test_all_shapes_are_read_whole(shape: Shape) -> None:
    reading = expected(shape)
    assert reading.source == "reported"
    assert reading.outcome == ("failed" if reading.error else "complete")


@shapes
def test_all_shapes_are_read_the_same_wherever_they_are_cut(shape: Shape) -> None:
    assert read(shape.tap(), cut(shape.body, range(len(shape.body)))) == expected(shape)
    for at in range(1, len(shape.body)):
        assert read(shape.tap(), cut(shape.body, [at])) == expected(shape)


@shapes
@codings
def test_all_shapes_are_read_compressed(shape: Shape, coding: bytes) -> None:
    packed = CODINGS[coding](shape.body)
    for pieces in ([packed], cut(packed, range(len(packed)))):
        assert read(shape.tap(coding), pieces) == expected(shape)


@shapes
def test_all_shapes_are_read_as_far_as_they_came(shape: Shape) -> None:
    readings = [read(shape.tap(), shape.body[:size], whole=False) for size in range(len(shape.body))]
    assert readings[0].source == "absent"
    assert readings[0].outcome == "cut"
    for size, (before, reading) in enumerate(itertools.pairwise(readings)):
        assert read(shape.tap(), cut(shape.body[:size], range(size)), whole=False) == before
        # What was known once stays known.
        assert before.model is None or reading.model is not None
        assert before.usage is None or reading.usage is not None


@shapes
@codings
def test_a_compressed_answer_that_was_cut_is_read_as_far_as_it_came(shape: Shape, coding: bytes) -> None:
    packed = CODINGS[coding](shape.body)
    for size in range(0, len(packed), 7):
        for whole in (True, False):
            reading = read(shape.tap(coding), packed[:size], whole)
            assert reading == read(shape.tap(coding), cut(packed[:size], range(size)), whole)
            if reading.outcome == "complete":  # its end has passed, and only that of the coding is missing
                assert reading.usage == expected(shape).usage


def test_each_event_of_a_compressed_stream_is_read_when_it_comes() -> None:
    tap = tapped(Family.OPENAI, SSE, coding=b"gzip")
    packing = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    passed = []
    for chunk in openai.CHAT:
        tap.feed(packing.compress(chunk) + packing.flush(zlib.Z_SYNC_FLUSH))
        passed.append(tap.first_token)
    assert passed == [False, True, True, True, True]
    assert tap.close(False).usage == openai.CHAT_READ


@codings
def test_what_cannot_be_decompressed_is_undecodable_and_nothing_of_it_counts(coding: bytes) -> None:
    packed = CODINGS[coding](b"".join(openai.CHAT))
    broken = packed[: len(packed) // 2] + b"\xff" * 40 + packed[len(packed) // 2 :]
    for pieces in ([broken], cut(broken, range(len(broken)))):
        reading = read(tapped(Family.OPENAI, SSE, coding=coding), pieces)
        assert reading == Reading(None, None, None, None, None, "undecodable", "complete")


@codings
def test_a_few_bytes_that_stand_for_a_great_many_are_too_large(coding: bytes) -> None:
    packed = CODINGS[coding](bytes(24 * 2**20))
    undone = decoder(coding, max_total=2**24)
    assert undone is not None
    tap = Tap(Decoded(EventStream(OpenAIReader), undone))
    assert read(tap, cut(packed, range(0, len(packed), 65536))).source == "too_large"


@pytest.mark.parametrize("coding", [b"compress", b"gzip, br", b"gzip, gzip, gzip, gzip, gzip"])
def test_a_coding_that_is_not_known_or_one_upon_another_is_undecodable(coding: bytes) -> None:
    tap = tapped(Family.OPENAI, SSE, coding=coding)
    assert read(tap, b"".join(openai.CHAT)).source == "undecodable"
    assert not tap.first_token


@pytest.mark.parametrize("coding", [b"", b"identity", b" GZIP ", b"x-gzip"])
def test_codings_are_known_by_all_their_names(coding: bytes) -> None:
    body = b"".join(openai.CHAT)
    body = CODINGS[b"gzip"](body) if b"zip" in coding.lower() else body
    assert read(tapped(Family.OPENAI, SSE, coding=coding), body).usage == openai.CHAT_READ


@pytest.mark.parametrize("family", [Family.OPENAI, Family.ANTHROPIC, Family.GEMINI])
@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (b"/v1/chat/completions", "chat completion, SSE"),
        (b"/v1/responses?x=/messages", "response"),
        (b"/v1/messages/?beta=true", "message, SSE"),
        (b"/v1/messages/count_tokens", "counted tokens"),
        (b"/v1beta/models/gemini-3-pro:generateContent", "gemini"),
        (b"/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse", "gemini, SSE"),
    ],
)
def test_an_upstream_may_offer_the_apis_of_other_families(family: Family, path: bytes, shape: str) -> None:
    found = SHAPES[shape]
    assert read(tapped(family, found.kind, path), found.body) == expected(found)


@pytest.mark.parametrize(
    "kind", [b"APPLICATION/JSON; charset=utf-8", b"application/problem+json", b"text/event-stream"]
)
def test_json_and_events_are_tapped(kind: bytes) -> None:
    assert tap_for(Family.OPENAI, b"/v1/chat/completions", kind, b"") is not None


@pytest.mark.parametrize(
    "kind", [b"", b"audio/mpeg", b"text/html", b"application/x-jsonl", b"application/octet-stream"]
)
def test_nothing_else_is_tapped(kind: bytes) -> None:
    assert tap_for(Family.OPENAI, b"/v1/audio/speech", kind, b"") is None


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/files",
        b"/upload/v1beta/files",
        b"/v1/uploads/up_1/complete",
        b"/v1/moderations",
        b"/v1/chat/completions/chatcmpl-1",
        b"/v1/responses/resp_1/cancel",
        b"/v1/messages/batches/b1/cancel",
    ],
)
def test_what_is_posted_for_nothing_is_free_whatever_it_shows(path: bytes) -> None:
    reading = read(tapped(Family.OPENAI, path=path), dumped(CHAT_JSON))
    assert (reading.source, reading.usage) == ("free", Usage(billable=False))


@pytest.mark.parametrize("path", [b"/v1/responses/compact", b"/v1/images/generations"])
def test_what_is_not_known_to_be_free_is_not(path: bytes) -> None:
    assert read(tapped(Family.OPENAI, path=path), dumped(CHAT_JSON)).usage == openai.CHAT_READ


@pytest.mark.parametrize("path", [b"/v1/batches", b"/v1/messages/batches/", b"/v1/batch/jobs"])
def test_the_making_of_a_batch_is_not_tapped(path: bytes) -> None:
    assert tap_for(Family.OPENAI, path, JSON, b"") is None


def test_an_upstream_of_no_family_is_not_tapped() -> None:
    assert tap_for(Family.NONE, b"/v1/chat/completions", JSON, b"") is None


def test_a_tap_that_is_closed_takes_no_more_and_tells_the_same_again() -> None:
    tap = tapped(Family.OPENAI, SSE)
    first = read(tap, openai.CHAT[:2])
    for chunk in openai.CHAT[2:]:
        tap.feed(chunk)
    assert tap.close(False) is first


@pytest.mark.parametrize("broken", ["feed", "close"])
def test_a_fault_in_a_tap_is_logged_once_and_costs_the_accounting_alone(
    broken: str, logged_failures: LoggedFailures
) -> None:
    class Broken(EventStream):
        def feed(self, data: bytes) -> None:
            assert broken != "feed"

        def close(self, whole: bool) -> Reading:
            raise AssertionError

    tap = Tap(Broken(OpenAIReader))
    tap.feed(b"x")
    tap.feed(b"x")
    assert tap.close(True).source == "undecodable"
    assert tap.close(True).source == "undecodable"
    assert len(logged_failures.flush(AssertionError)) == 1


def test_usage_of_which_a_part_is_unknown_adds_up_to_what_is_known() -> None:
    one = Usage(input_tokens=1, server_tool_uses={"a": 1, "b": 2})
    other = Usage(input_tokens=2, output_tokens=3, server_tool_uses={"b": 3})
    assert one + other == Usage(input_tokens=3, output_tokens=3, server_tool_uses={"a": 1, "b": 5})


ASKED = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Hello"}],
    "input": "Hello",
    "max_tokens": 99,
}
DEMO: dict[str, tuple[Family, Callable[[Json], Answer]]] = {
    "chat": (Family.OPENAI, lambda body: chat.answer(body, "1", 1)),
    "responses": (Family.OPENAI, lambda body: responses.answer(body, "1", 1)),
    "messages": (Family.ANTHROPIC, lambda body: messages.answer(body, "1")),
}


@pytest.mark.parametrize(("family", "answer"), DEMO.values(), ids=DEMO)
def test_a_stream_of_the_demo_upstream_says_what_its_whole_answer_does(
    family: Family, answer: Callable[[Json], Answer]
) -> None:
    body, events = answer(ASKED), answer({**ASKED, "stream": True, "stream_options": {"include_usage": True}})
    assert isinstance(body, dict)
    assert isinstance(events, list)
    reading = read(tapped(family, SSE), events)
    assert reading.usage is not None
    assert reading.usage.output_tokens
    assert read(tapped(family), dumped(body)) == attrs.evolve(reading, response_id=body["id"])


TOKENS = st.sampled_from(
    [
        *(
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\n",
            b"data: ",
            b"event: error",
            b": x",
            b"[DONE]",
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
        ),
        *(
            b'"usage":',
            b'"_tokens"',
            b'"error":',
            b'"type":',
            b'"response":',
            b'"usageMetadata":',
            b'"choices":',
        ),
        *(
            b"1",
            b"null",
            b"true",
            b'"message_start"',
            b'"message_delta"',
            b'"x"',
            b"\xff",
            b"\x00",
            b"1e999",
            b"9" * 5000,
        ),
        *openai.CHAT,
        *anthropic.STREAM,
        *map(event, gemini.PIECES),
        *(shape.body for shape in SHAPES.values()),
    ]
)


@settings(max_examples=400)
@given(
    st.lists(TOKENS | st.binary(max_size=8), max_size=12).map(b"".join),
    st.sampled_from([Family.OPENAI, Family.ANTHROPIC, Family.GEMINI]),
    st.sampled_from([(SSE, b""), (JSON, b""), (JSON, gemini.STREAM_PATH)]),
    st.sampled_from([b"", *CODINGS]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_all_bytes_are_taken_and_in_all_pieces_lead_to_the_same_reading(
    body: bytes,
    family: Family,
    kind: tuple[bytes, bytes],
    coding: bytes,
    is_packed: bool,
    whole: bool,
    data: st.DataObject,
) -> None:
    if coding and is_packed:
        body = CODINGS[coding](body)
        size = data.draw(st.integers(0, len(body)))
        # libzstd notices some mistakes only where it gets a whole frame at once.
        rest = b"" if coding == b"zstd" else data.draw(st.binary(max_size=3)) + body[size + 1 :]
        body = body[:size] + rest
    places = data.draw(st.sets(st.integers(0, len(body))))
    once = read(tapped(family, *kind, coding), body, whole)
    assert read(tapped(family, *kind, coding), cut(body, places), whole) == once


FIELDS = st.sampled_from(
    [
        *(
            "usage",
            "error",
            "type",
            "response",
            "message",
            "delta",
            "choices",
            "model",
            "id",
            "status",
            "to",
            "content",
        ),
        *(
            "content_block",
            "iterations",
            "cache_creation",
            "server_tool_use",
            "input_tokens",
            "candidates",
            "parts",
        ),
        *(
            "prompt_tokens_details",
            "cached_tokens_details",
            "usageMetadata",
            "promptTokensDetails",
            "web_search",
        ),
        *(
            "groundingMetadata",
            "webSearchQueries",
            "promptFeedback",
            "tool_usage",
            "output",
            "session",
            "_tokens",
        ),
        *("status_details", "incomplete_details", "total_tokens", "completion_tokens"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["completed", "failed"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=15,
)
TYPES = st.sampled_from(
    [
        *(
            "message_start",
            "message_delta",
            "content_block_delta",
            "content_block_start",
            "error",
            "message_stop",
        ),
        *("response.completed", "response.failed", "response.output_text.delta"),
    ]
)


@given(
    st.lists(st.tuples(st.dictionaries(FIELDS, VALUES, max_size=6), st.none() | TYPES), max_size=4),
    st.sampled_from([Family.OPENAI, Family.ANTHROPIC, Family.GEMINI]),
)
def test_fields_of_all_types_are_taken(
    documents: list[tuple[dict[str, object], str | None]], family: Family
) -> None:
    bodies = [body if kind is None else {**body, "type": kind} for body, kind in documents]
    stream = tapped(family, SSE)
    read(stream, map(unchecked_event, bodies))
    for body in bodies:
        read(tapped(family), unchecked_event(body)[6:-2])


def unchecked_event(body: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"
