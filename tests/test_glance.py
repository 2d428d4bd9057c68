from __future__ import annotations

import json
from typing import Any

import pytest

from llmproxy.asked_model.glance import Glance, glanced


def seen(*pieces: bytes) -> str | None:
    glance = Glance()
    for piece in pieces:
        glance.feed(piece)
    assert len(pieces) != 1 or glanced(pieces[0]) == glance.model
    return glance.model


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-5","input":"hello"}',
        b'{"input": "hello", "model" :\r\n\t"gpt-5"}',
        b'{"model":"gpt-5","model":"gpt-5"}',
    ],
)
def test_the_model_is_seen_however_the_body_is_split(body: bytes) -> None:
    assert seen(body) == "gpt-5"
    assert seen(*(body[at : at + 1] for at in range(len(body)))) == "gpt-5"
    assert {seen(body[:at], body[at:]) for at in range(len(body))} == {"gpt-5"}


def test_it_is_seen_behind_a_long_prompt() -> None:
    body = json.dumps({"input": "x" * 100_000, "model": "gpt-5"}).encode()
    assert seen(*(body[at : at + 1000] for at in range(0, len(body), 1000))) == "gpt-5"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"input":"hello"}',
        b'{"model":"gpt-5","more":{"model":"gpt-4"}}',
        b'{"model":null}',
        b'{"model":["gpt-5"]}',
        b'{"model":""}',
        b'{"model":"gpt-5',
        rb'{"model":"gpt\u002d5"}',
        '{"model":"模型"}'.encode(),
        b'{"model":"%b"}' % (b"m" * 257),
    ],
)
def test_a_body_that_names_none_or_several_or_in_an_odd_way_shows_none(body: bytes) -> None:
    assert seen(body) is None


def test_what_a_prompt_says_is_not_taken_for_it() -> None:
    body: dict[str, Any] = {"input": 'Set {"model":"gpt-4"}', "model": "gpt-5"}
    assert seen(json.dumps(body).encode()) == "gpt-5"
