"""The OpenAI half of the demo upstream: bodies in, bodies out. The client's own types say what is right."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from twisted.web.http_headers import Headers

from llmproxy.demo import chat, embeddings, responses
from llmproxy.demo.api import ApiError, Call
from llmproxy.demo.fields import BadField
from llmproxy.demo.openai import MODELS, OpenAI
from llmproxy.demo.words import count

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOLS = [
    {"type": "custom", "custom": {"name": "not_a_function"}},
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "time"}},
]
TOOLS = [
    {"type": "web_search"},
    {"type": "function", "name": "weather", "parameters": WEATHER, "strict": None},
]

EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [{"role": "user", "content": "hello there"}], **fields}


def completion(**fields: Any) -> ChatCompletion:
    return ChatCompletion.model_validate(chat.answer(chat_body(**fields), "t", 5), strict=True)


def chunk_bodies(**fields: Any) -> list[dict[str, Any]]:
    """Return the data of each event but the last, which is [DONE]."""
    events = cast("list[bytes]", chat.answer(chat_body(stream=True, **fields), "t", 5))
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    return [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]


def chunks(**fields: Any) -> list[ChatCompletionChunk]:
    return [ChatCompletionChunk.model_validate(body, strict=True) for body in chunk_bodies(**fields)]


def response(**fields: Any) -> Response:
    body = {"model": "any", "input": "hello there", **fields}
    return Response.model_validate(responses.answer(body, "t", 5))


def response_events(**fields: Any) -> list[ResponseStreamEvent]:
    body = {"model": "any", "input": "hello there", "stream": True, **fields}
    told = []
    for event in cast("list[bytes]", responses.answer(body, "t", 5)):
        name, data = event.decode().strip().split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content['type']}"
        told.append(EVENT.validate_python(content))
    assert [event.sequence_number for event in told] == list(range(len(told)))
    return told


class TestChat:
    def test_the_answer_echoes_the_user_and_counts_its_tokens(self) -> None:
        answer = completion(messages=[{"role": "system", "content": "be brief"}, *chat_body()["messages"]])
        text = answer.choices[0].message.content
        assert text is not None
        assert '"hello there"' in text
        assert (answer.created, answer.model, answer.choices[0].finish_reason) == (5, "any", "stop")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 4
        assert answer.usage.completion_tokens == count(text)
        assert answer.usage.total_tokens == 4 + count(text)

    def test_the_text_parts_of_a_message_are_read_and_others_passed_over(self) -> None:
        content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}, "odd"]
        assert '"look"' in str(completion(messages=[{"role": "user", "content": content}]))

    def test_a_message_without_content_is_passed_over(self) -> None:
        messages = [*chat_body()["messages"], {"role": "assistant", "content": None}]
        assert '"hello there"' in str(completion(messages=messages))

    @pytest.mark.parametrize("fields", [{}, {"max_tokens": 3}, {"tools": CHAT_TOOLS}])
    def test_a_stream_says_what_the_plain_answer_says(self, fields: dict[str, Any]) -> None:
        plain = completion(**fields)
        *told, usage = chunks(stream_options={"include_usage": True}, **fields)
        choices = [chunk.choices[0] for chunk in told]
        calls = [call for choice in choices for call in choice.delta.tool_calls or []]
        assert "".join(choice.delta.content or "" for choice in choices) == (
            plain.choices[0].message.content or ""
        )
        assert "".join(call.function.arguments or "" for call in calls if call.function) == "".join(
            call.function.arguments
            for call in plain.choices[0].message.tool_calls or []
            if call.type == "function"
        )
        assert choices[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1].finish_reason == plain.choices[0].finish_reason
        assert (usage.choices, usage.usage) == ([], plain.usage)
        assert plain.usage is not None
        # All but the first choice, which brings the role, and the last, which brings the finish reason.
        assert plain.usage.completion_tokens == len(choices) - 2

    def test_usage_is_null_in_all_chunks_but_the_last_when_it_is_asked_for(self) -> None:
        bodies = chunk_bodies(stream_options={"include_usage": True})
        assert all(body["usage"] is None for body in bodies[:-1])
        assert bodies[-1]["usage"]["total_tokens"] > 0

    def test_a_stream_has_no_usage_unless_it_is_asked_for(self) -> None:
        assert not any("usage" in body for body in chunk_bodies())
        assert not any("usage" in body for body in chunk_bodies(stream_options={"include_usage": False}))

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_a_limit_cuts_the_answer(self, name: str) -> None:
        answer = completion(**{name: 3})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3

    def test_the_first_function_is_called_with_arguments_for_its_schema(self) -> None:
        choice = completion(tools=CHAT_TOOLS).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert choice.message.tool_calls is not None
        [call] = choice.message.tool_calls
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments) == {"city": "hello there"}

    def test_a_streamed_call_is_named_once_and_its_arguments_come_in_fragments(self) -> None:
        calls = [
            call for chunk in chunks(tools=CHAT_TOOLS) for call in chunk.choices[0].delta.tool_calls or []
        ]
        assert [call.id for call in calls] == ["call_t"] + [None] * (len(calls) - 1)
        assert len(calls) > 3
        assert {call.index for call in calls} == {0}

    @pytest.mark.parametrize(
        ("choice", "called"),
        [
            ("auto", "weather"),
            ("required", "weather"),
            ("none", None),
            ({"type": "function", "function": {"name": "time"}}, "time"),
            (
                {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "time"}}],
                    },
                },
                "time",
            ),
        ],
    )
    def test_tool_choice_is_obeyed(self, choice: object, called: str | None) -> None:
        calls = completion(tools=CHAT_TOOLS, tool_choice=choice).choices[0].message.tool_calls or []
        assert [call.function.name for call in calls if call.type == "function"] == (
            [called] if called else []
        )

    def test_a_choice_of_a_tool_that_is_not_offered_is_refused(self) -> None:
        choice = {"type": "function", "function": {"name": "nothing"}}
        with pytest.raises(BadField, match="tool_choice"):
            chat.answer(chat_body(tools=CHAT_TOOLS, tool_choice=choice), "t", 5)

    def test_a_tool_result_is_answered_with_text(self) -> None:
        messages = [
            *chat_body()["messages"],
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "tool_call_id": "call_t", "content": "18 degrees"},
        ]
        choice = completion(messages=messages, tools=CHAT_TOOLS).choices[0]
        assert '"18 degrees"' in (choice.message.content or "")
        assert choice.finish_reason == "stop"


class TestResponses:
    def test_the_answer_echoes_the_user_and_counts_its_tokens(self) -> None:
        answer = response(instructions="be brief")
        assert '"hello there"' in answer.output_text
        assert (answer.status, answer.created_at, answer.instructions) == ("completed", 5, "be brief")
        assert answer.usage is not None
        assert answer.usage.input_tokens == 4
        assert answer.usage.output_tokens == count(answer.output_text)
        assert answer.usage.total_tokens == 4 + count(answer.output_text)

    def test_input_may_be_a_list_of_items(self) -> None:
        item = {"role": "user", "content": [{"type": "input_text", "text": "look"}]}
        assert '"look"' in response(input=[item]).output_text

    def test_the_events_come_in_order(self) -> None:
        types = [event.type for event in response_events()]
        kept = [kind for kind in types if kind != "response.output_text.delta"]
        assert kept == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]

    @pytest.mark.parametrize("fields", [{}, {"max_output_tokens": 3}, {"tools": TOOLS}])
    def test_a_stream_says_what_the_plain_answer_says(self, fields: dict[str, Any]) -> None:
        plain = response(**fields)
        events = response_events(**fields)
        last = events[-1]
        assert last.type in ("response.completed", "response.incomplete")
        assert last.response == plain
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == plain.output_text
        deltas += [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert plain.usage is not None
        assert len(deltas) == plain.usage.output_tokens

    def test_a_limit_leaves_the_answer_incomplete(self) -> None:
        answer = response(max_output_tokens=3)
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert answer.output[0].type == "message"
        assert answer.output[0].status == "incomplete"
        assert response_events(max_output_tokens=3)[-1].type == "response.incomplete"

    def test_a_function_is_called_with_arguments_for_its_schema(self) -> None:
        [item] = response(tools=TOOLS).output
        assert item.type == "function_call"
        assert (item.name, json.loads(item.arguments)) == ("weather", {"city": "hello there"})

    def test_the_arguments_of_a_streamed_call_come_in_fragments_and_then_whole(self) -> None:
        events = response_events(tools=TOOLS)
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert len(deltas) > 2
        assert "".join(deltas) == done.arguments

    @pytest.mark.parametrize(
        ("choice", "kind"),
        [
            ("auto", "function_call"),
            ("none", "message"),
            ({"type": "function", "name": "weather"}, "function_call"),
            ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "weather"}]}, "function_call"),
        ],
    )
    def test_tool_choice_is_obeyed(self, choice: object, kind: str) -> None:
        assert response(tools=TOOLS, tool_choice=choice).output[0].type == kind

    def test_a_tool_result_is_answered_with_text(self) -> None:
        result = {"type": "function_call_output", "call_id": "call_t", "output": "18 degrees"}
        answer = response(input=[{"role": "user", "content": "q"}, result], tools=TOOLS)
        assert '"18 degrees"' in answer.output_text


class TestEmbeddings:
    def embed(self, **fields: Any) -> CreateEmbeddingResponse:
        return CreateEmbeddingResponse.model_validate(
            embeddings.answer({"model": "any", **fields}), strict=True
        )

    def test_a_vector_depends_on_its_text_alone_and_has_length_one(self) -> None:
        first, second = self.embed(input=["one text", "another"]).data
        [again] = self.embed(input="one text").data
        assert first.embedding == again.embedding != second.embedding
        assert (first.index, second.index) == (0, 1)
        assert sum(value * value for value in first.embedding) == pytest.approx(1)
        assert len(first.embedding) == embeddings.DIMENSIONS

    def test_a_vector_can_be_shorter(self) -> None:
        assert len(self.embed(input="text", dimensions=4).data[0].embedding) == 4

    @pytest.mark.parametrize(
        ("given", "vectors", "tokens"),
        [("two words", 1, 2), (["two words", "one"], 2, 3), ([7, 8, 9], 1, 3), ([[7, 8], [9]], 2, 3)],
    )
    def test_texts_and_tokens_are_counted(self, given: object, vectors: int, tokens: int) -> None:
        answer = self.embed(input=given)
        assert len(answer.data) == vectors
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


class TestModels:
    def get(self, *path: str) -> Any:
        return OpenAI().answer(Call("GET", ("v1", "models", *path), Headers(), b"", "t", 5))

    def test_each_listed_model_can_be_retrieved(self) -> None:
        listed = self.get()
        assert [model["id"] for model in listed["data"]] == list(MODELS)
        for model in listed["data"]:
            Model.model_validate(model, strict=True)
            assert self.get(model["id"]) == model

    def test_another_model_is_not_found(self) -> None:
        with pytest.raises(ApiError, match="model_not_found") as caught:
            self.get("nothing")
        assert caught.value.status == 404
