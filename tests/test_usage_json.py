from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.credential import Family
from llmproxy.usage import Usage
from llmproxy.usage.json_body import END, START
from llmproxy.usage.json_text import members_at_end, members_at_start
from tests.usage_support import cut, dumped, read, tapped

USAGE = {"prompt_tokens": 9, "total_tokens": 9}
READ = Usage(input_tokens=9, output_tokens=0)
FLOATS = [0.0123456789] * 1536
DATA = [{"object": "embedding", "index": n, "embedding": FLOATS} for n in range(150)]  # 3 MB

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\{}[],:\né', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "id", "x", 'y"', "model"]), inner, max_size=3)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(["usage", "id", "x", "choices", "model"]), JSON_VALUES, max_size=5)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "body",
    [
        {"object": "list", "data": DATA, "model": "e-3", "usage": USAGE},
        {"model": "e-3", "usage": USAGE, "object": "list", "data": DATA},
        {"model": "e-3", "object": "list", "data": DATA, "usage": USAGE},
        {"data": [{"usage": {"prompt_tokens": 1}, "model": "x"}] * 20_000, "model": "e-3", "usage": USAGE},
    ],
    ids=["at the end", "at the start", "at both", "with others within"],
)
def test_of_a_body_of_megabytes_both_ends_are_read(body: dict[str, Any], indent: int | None) -> None:
    content = json.dumps(body, indent=indent).encode()
    for step in (1000, 65536, 10**9):
        reading = read(tapped(Family.OPENAI), cut(content, range(0, len(content), step)))
        assert (reading.model, reading.usage, reading.outcome) == ("e-3", READ, "complete")


def test_a_body_of_megabytes_holds_little() -> None:
    tap = tapped(Family.OPENAI)
    piece = b'"' + b"x" * 2**14
    tracemalloc.start()
    for _ in range(2000):
        tap.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * (START + 2 * END)


def test_usage_in_the_middle_of_a_large_body_is_not_seen_and_that_is_said() -> None:
    body = dumped({"a": "x" * 200_000, "usage": USAGE, "b": "x" * 200_000})
    reading = read(tapped(Family.OPENAI), body)
    assert (reading.usage, reading.source, reading.outcome) == (None, "too_large", "complete")


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_body_that_just_fits_is_read_as_a_whole(extra: int) -> None:
    frame = dumped({"a": "", "usage": USAGE, "b": ""})
    body = dumped({"a": "x" * (START + END + extra - len(frame) - 20), "usage": USAGE, "b": "x" * 20})
    assert len(body) == START + END + extra
    assert read(tapped(Family.OPENAI), body).usage == READ


@pytest.mark.parametrize("body", [b"<html>", b'{"usage": ', b"\xff\x00", b'{"a": 1} {"b": 2}'])
def test_what_is_no_json_is_undecodable(body: bytes) -> None:
    reading = read(tapped(Family.OPENAI), body)
    assert (reading.source, reading.usage, reading.outcome) == ("undecodable", None, "cut")


@pytest.mark.parametrize("body", [b"[]", b'"usage"', b"7", b'[{"usage": {"prompt_tokens": 1}}]', b"{}"])
def test_json_without_usage_has_none(body: bytes) -> None:
    assert read(tapped(Family.OPENAI), body).source == "absent"


def test_json_is_read_with_a_byte_order_mark_and_text_that_is_not_utf_8() -> None:
    body = b'\xef\xbb\xbf{"text": "\xff\xfe\n", "usage": {"prompt_tokens": 9, "total_tokens": 9}}'
    assert read(tapped(Family.OPENAI), body).usage == READ


def test_no_content_is_complete_and_tells_nothing() -> None:
    reading = read(tapped(Family.OPENAI), b"")
    assert (reading.source, reading.outcome) == ("absent", "complete")


def test_json_that_is_nested_beyond_reason_is_undecodable() -> None:
    for body in (b"[" * 100_000, b'{"usage":' * 10_000, b'{"a":' * 100_000):
        assert read(tapped(Family.OPENAI), body).source in ("undecodable", "too_large")


def test_of_a_body_that_was_cut_what_came_is_read() -> None:
    body = dumped({"id": "x", "model": "e-3", "usage": USAGE, "data": DATA})
    for size in (1000, 200_000):
        reading = read(tapped(Family.OPENAI), body[:size], whole=False)
        assert (reading.model, reading.usage, reading.outcome) == ("e-3", READ, "cut")
    reading = read(tapped(Family.OPENAI), dumped({"model": "e-3", "data": DATA})[:200_000], whole=False)
    assert (reading.model, reading.source, reading.outcome) == ("e-3", "absent", "cut")


@given(OBJECTS, st.data())
def test_the_members_at_either_end_are_the_objects_own(document: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(document, indent=data.draw(st.sampled_from([None, 1]))).encode()
    at = data.draw(st.integers(0, len(text)))
    for found in (members_at_start(text[:at]), members_at_end(text[at:])):
        assert found == {name: document.get(name) for name in found}


@given(st.binary(max_size=200) | st.text(alphabet='"\\{}[],: usageid1', max_size=200).map(str.encode))
def test_the_members_of_anything_are_looked_for_without_an_error(data: bytes) -> None:
    members_at_start(data)
    members_at_end(data)
