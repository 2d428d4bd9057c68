"""The Anthropic half of the demo upstream: bodies in, bodies out. The client's own types say what is right."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from anthropic.types import Message, ModelInfo, RawMessageStreamEvent
from pydantic import TypeAdapter
from twisted.web.http_headers import Headers

from llmproxy.demo import messages
from llmproxy.demo.anthropic import MODELS, Anthropic
from llmproxy.demo.api import ApiError, Call
from llmproxy.demo.fields import BadField
from llmproxy.demo.words import count

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "web_search_20250305", "name": "web_search"},
    {"name": "weather", "input_schema": WEATHER},
    {"name": "time", "input_schema": {"type": "object"}},
]

EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def body(**fields: Any) -> dict[str, Any]:
    return {
        "model": "any",
        "max_tokens": 999,
        "messages": [{"role": "user", "content": "hello there"}],
        **fields,
    }


def message(**fields: Any) -> Message:
    return Message.model_validate(messages.answer(body(**fields), "t"), strict=True)


def events(**fields: Any) -> list[RawMessageStreamEvent]:
    """Return the events of a stream but for the ping, which comes once, after the start of the content."""
    told = []
    for event in cast("list[bytes]", messages.answer(body(stream=True, **fields), "t")):
        name, data = event.decode().strip().split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content['type']}"
        told.append(content)
    assert told.pop(2) == {"type": "ping"}
    return [EVENT.validate_python(content, strict=True) for content in told]


def with_result(content: object) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "hello there"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_t", "name": "weather", "input": {}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_t", "content": content}],
        },
    ]


class TestMessages:
    def test_the_answer_echoes_the_user_and_counts_its_tokens(self) -> None:
        answer = message(system="be brief")
        [block] = answer.content
        assert block.type == "text"
        assert '"hello there"' in block.text
        assert (answer.model, answer.stop_reason) == ("any", "end_turn")
        assert answer.usage.input_tokens == 4
        assert answer.usage.output_tokens == count(block.text)

    def test_the_events_come_in_order(self) -> None:
        types = [event.type for event in events()]
        assert [kind for kind in types if kind != "content_block_delta"] == [
            "message_start",
            "content_block_start",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]

    @pytest.mark.parametrize("fields", [{}, {"max_tokens": 3}])
    def test_a_stream_says_what_the_plain_answer_says(self, fields: dict[str, Any]) -> None:
        plain = message(**fields)
        told = events(**fields)
        deltas = [event.delta for event in told if event.type == "content_block_delta"]
        [block] = plain.content
        assert block.type == "text"
        assert "".join(delta.text for delta in deltas if delta.type == "text_delta") == block.text
        assert told[-2].type == "message_delta"
        assert told[-2].delta.stop_reason == plain.stop_reason
        assert len(deltas) == told[-2].usage.output_tokens == plain.usage.output_tokens

    def test_usage_is_cumulative(self) -> None:
        told = events()
        first, last = told[0], told[-2]
        assert first.type == "message_start"
        assert last.type == "message_delta"
        assert first.message.usage.input_tokens == last.usage.input_tokens == 2
        assert first.message.usage.output_tokens == 1
        assert last.usage.output_tokens > 1

    def test_a_limit_cuts_the_answer(self) -> None:
        answer = message(max_tokens=3)
        assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 3)


class TestTools:
    def test_the_first_tool_with_a_schema_is_called_with_input_for_it(self) -> None:
        answer = message(tools=TOOLS)
        [block] = answer.content
        assert answer.stop_reason == "tool_use"
        assert block.type == "tool_use"
        assert (block.name, block.input) == ("weather", {"city": "hello there"})

    def test_the_input_of_a_streamed_call_comes_in_fragments(self) -> None:
        told = events(tools=TOOLS)
        assert told[1].type == "content_block_start"
        assert told[1].content_block.type == "tool_use"
        assert told[1].content_block.input == {}
        deltas = [event.delta for event in told if event.type == "content_block_delta"]
        fragments = [delta.partial_json for delta in deltas if delta.type == "input_json_delta"]
        assert len(fragments) > 2
        assert json.loads("".join(fragments)) == {"city": "hello there"}

    def test_input_that_the_limit_cuts_is_empty(self) -> None:
        answer = message(tools=TOOLS, max_tokens=1)
        assert answer.stop_reason == "max_tokens"
        assert answer.content[0].type == "tool_use"
        assert answer.content[0].input == {}

    @pytest.mark.parametrize(
        ("choice", "called"),
        [
            ({"type": "auto"}, "weather"),
            ({"type": "any"}, "weather"),
            ({"type": "none"}, None),
            ({"type": "tool", "name": "time"}, "time"),
        ],
    )
    def test_tool_choice_is_obeyed(self, choice: object, called: str | None) -> None:
        [block] = message(tools=TOOLS, tool_choice=choice).content
        assert (block.name if block.type == "tool_use" else None) == called

    def test_a_choice_of_a_tool_that_is_not_offered_is_refused(self) -> None:
        with pytest.raises(BadField, match="tool_choice"):
            messages.answer(body(tools=TOOLS, tool_choice={"type": "tool", "name": "nothing"}), "t")

    @pytest.mark.parametrize("content", ["18 degrees", [{"type": "text", "text": "18 degrees"}]])
    def test_a_tool_result_is_answered_with_text(self, content: object) -> None:
        [block] = message(messages=with_result(content), tools=TOOLS).content
        assert block.type == "text"
        assert '"18 degrees"' in block.text

    def test_a_tool_result_without_content_is_answered_with_text(self) -> None:
        [block] = message(messages=with_result(None), tools=TOOLS).content
        assert block.type == "text"


class TestCounting:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"system": [{"type": "text", "text": "be brief"}]},
            {"messages": with_result("18"), "tools": TOOLS},
        ],
    )
    def test_the_count_is_what_a_message_is_charged(self, fields: dict[str, Any]) -> None:
        counted = messages.count_tokens(body(**fields))
        assert counted == {"input_tokens": message(**fields).usage.input_tokens}


class TestModels:
    def get(self, *path: str) -> Any:
        return Anthropic().answer(Call("GET", ("v1", "models", *path), Headers(), b"", "t", 5))

    def test_each_listed_model_can_be_retrieved(self) -> None:
        listed = self.get()
        assert [model["id"] for model in listed["data"]] == list(MODELS)
        assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][-1]["id"])
        for model in listed["data"]:
            ModelInfo.model_validate(model)
            assert self.get(model["id"]) == model

    def test_another_model_is_not_found(self) -> None:
        with pytest.raises(ApiError, match="model: nothing") as caught:
            self.get("nothing")
        assert caught.value.status == 404
