"""The official Python clients of OpenAI and Anthropic, through the proxy to the demo upstream.

A client is told a base URL and the local token, and nothing else: what it then does works as with the provider.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Protocol

import anthropic
import openai
import pytest
from anthropic.types import MessageParam, ToolParam
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.responses import FunctionToolParam

TIMEOUT = 20.0  # seconds; no answer of the demo takes a tenth of it
WRONG_TOKEN = "a-token-that-nobody-was-given"

PROMPT = "Good morning, na\u00efve \u4e16\u754c"
CITY_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city", "days"],
}
CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]
MESSAGES: list[MessageParam] = [{"role": "user", "content": PROMPT}]
CHAT_TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "forecast", "parameters": CITY_SCHEMA},
}
RESPONSES_TOOL: FunctionToolParam = {
    "type": "function",
    "name": "forecast",
    "parameters": CITY_SCHEMA,
    "strict": False,
}
MESSAGES_TOOL: ToolParam = {"name": "forecast", "input_schema": CITY_SCHEMA}


class Demo(Protocol):
    """A proxy that runs with the demo upstream."""

    url: str
    token: str


@pytest.fixture(autouse=True)
def _direct_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def openai_client(demo: Demo) -> Iterator[openai.OpenAI]:
    base_url = f"{demo.url}/openai/v1"
    with openai.OpenAI(base_url=base_url, api_key=demo.token, max_retries=0, timeout=TIMEOUT) as client:
        yield client


@pytest.fixture(params=["api_key", "auth_token"])
def anthropic_client(demo: Demo, request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    """A client for each way to send the token: as `x-api-key`, and as `Authorization: Bearer`."""
    with connect_anthropic(demo, request.param, demo.token) as client:
        yield client


def connect_anthropic(demo: Demo, credential: str, token: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=f"{demo.url}/anthropic",
        api_key=token if credential == "api_key" else None,
        auth_token=token if credential == "auth_token" else None,
        max_retries=0,
        timeout=TIMEOUT,
    )


def check_forecast_arguments(arguments: object) -> None:
    assert isinstance(arguments, dict)
    assert isinstance(arguments["city"], str)
    assert isinstance(arguments["days"], int)


class TestOpenAI:
    def test_chat(self, openai_client: openai.OpenAI) -> None:
        completion = openai_client.chat.completions.create(model="demo-large", messages=CHAT)
        assert PROMPT in (completion.choices[0].message.content or "")
        assert completion.choices[0].finish_reason == "stop"
        assert completion.model == "demo-large"

    def test_streamed_chat_says_what_plain_chat_says(self, openai_client: openai.OpenAI) -> None:
        plain = openai_client.chat.completions.create(model="demo-large", messages=CHAT)
        with openai_client.chat.completions.create(
            model="demo-large", messages=CHAT, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(pieces) == plain.choices[0].message.content
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert (chunks[-1].choices, chunks[-1].usage) == ([], plain.usage)

    def test_a_streamed_tool_call_has_arguments_for_its_schema(self, openai_client: openai.OpenAI) -> None:
        with openai_client.chat.completions.create(
            model="demo-large", messages=CHAT, tools=[CHAT_TOOL], stream=True
        ) as stream:
            choices = [choice for chunk in stream for choice in chunk.choices]
        functions = [call.function for choice in choices for call in choice.delta.tool_calls or []]
        assert [function.name for function in functions if function and function.name] == ["forecast"]
        arguments = [function.arguments for function in functions if function and function.arguments]
        assert len(arguments) > 1
        check_forecast_arguments(json.loads("".join(arguments)))
        assert choices[-1].finish_reason == "tool_calls"

    def test_the_streaming_helper_puts_a_chat_together(self, openai_client: openai.OpenAI) -> None:
        with openai_client.chat.completions.stream(model="demo-large", messages=CHAT) as stream:
            completion = stream.get_final_completion()
        assert PROMPT in (completion.choices[0].message.content or "")

    def test_responses(self, openai_client: openai.OpenAI) -> None:
        response = openai_client.responses.create(model="demo-large", input=PROMPT)
        assert PROMPT in response.output_text
        assert response.status == "completed"
        assert response.usage is not None
        assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens

    def test_streamed_responses_say_what_plain_ones_say(self, openai_client: openai.OpenAI) -> None:
        plain = openai_client.responses.create(model="demo-large", input=PROMPT)
        with openai_client.responses.create(model="demo-large", input=PROMPT, stream=True) as stream:
            events = list(stream)
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == plain.output_text
        assert events[0].type == "response.created"
        assert events[-1].type == "response.completed"
        assert events[-1].response.usage == plain.usage

    def test_a_response_calls_a_function(self, openai_client: openai.OpenAI) -> None:
        with openai_client.responses.stream(
            model="demo-large", input=PROMPT, tools=[RESPONSES_TOOL]
        ) as stream:
            response = stream.get_final_response()
        [call] = response.output
        assert call.type == "function_call"
        check_forecast_arguments(json.loads(call.arguments))
        answer = openai_client.responses.create(
            model="demo-large",
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}],
            tools=[RESPONSES_TOOL],
        )
        assert "18 degrees" in answer.output_text

    def test_embeddings_are_the_same_in_both_encodings(self, openai_client: openai.OpenAI) -> None:
        # Unasked, the client has them sent as base64.
        unasked = openai_client.embeddings.create(model="demo-embedding", input=[PROMPT, "other"])
        floats = openai_client.embeddings.create(
            model="demo-embedding", input=[PROMPT, "other"], encoding_format="float"
        )
        assert [item.embedding for item in unasked.data] == [item.embedding for item in floats.data]
        assert unasked.usage == floats.usage

    def test_models(self, openai_client: openai.OpenAI) -> None:
        models = list(openai_client.models.list())
        assert models
        assert openai_client.models.retrieve(models[0].id) == models[0]

    def test_a_raw_response_shows_the_request_id(self, openai_client: openai.OpenAI) -> None:
        raw = openai_client.chat.completions.with_raw_response.create(model="demo-large", messages=CHAT)
        assert raw.headers["x-request-id"].startswith("req_")
        assert raw.parse()._request_id == raw.headers["x-request-id"]

    def test_an_error_of_the_provider_arrives_as_such(self, openai_client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="nothing") as caught:
            openai_client.models.retrieve("nothing")
        assert caught.value.code == "model_not_found"

    def test_a_wrong_token_is_refused_and_not_repeated(self, openai_client: openai.OpenAI) -> None:
        with pytest.raises(openai.AuthenticationError) as caught:
            openai_client.with_options(api_key=WRONG_TOKEN).models.list()
        assert WRONG_TOKEN not in f"{caught.value!r} {caught.value.body!r}"

    def test_a_stream_can_be_left_early(self, openai_client: openai.OpenAI) -> None:
        with openai_client.chat.completions.create(model="demo-large", messages=CHAT, stream=True) as stream:
            for chunk in stream:
                assert chunk.choices
                break
        assert list(openai_client.models.list())

    def test_the_async_client(self, demo: Demo) -> None:
        async def ask() -> str:
            async with openai.AsyncOpenAI(
                base_url=f"{demo.url}/openai/v1", api_key=demo.token, max_retries=0, timeout=TIMEOUT
            ) as client:
                stream = await client.chat.completions.create(model="demo-large", messages=CHAT, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert PROMPT in asyncio.run(ask())


class TestAnthropic:
    def test_messages(self, anthropic_client: anthropic.Anthropic) -> None:
        message = anthropic_client.messages.create(model="demo-large", max_tokens=999, messages=MESSAGES)
        [block] = message.content
        assert block.type == "text"
        assert PROMPT in block.text
        assert (message.model, message.stop_reason) == ("demo-large", "end_turn")
        assert (message._request_id or "").startswith("req_")

    def test_streamed_messages_say_what_plain_ones_say(self, anthropic_client: anthropic.Anthropic) -> None:
        plain = anthropic_client.messages.create(model="demo-large", max_tokens=999, messages=MESSAGES)
        with anthropic_client.messages.stream(
            model="demo-large", max_tokens=999, messages=MESSAGES
        ) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        [block], [final_block] = plain.content, final.content
        assert block.type == final_block.type == "text"
        assert "".join(pieces) == final_block.text == block.text
        assert (final.stop_reason, final.usage) == (plain.stop_reason, plain.usage)

    def test_a_tool_is_called_and_its_result_answered(self, anthropic_client: anthropic.Anthropic) -> None:
        plain = anthropic_client.messages.create(
            model="demo-large", max_tokens=999, messages=MESSAGES, tools=[MESSAGES_TOOL]
        )
        with anthropic_client.messages.stream(
            model="demo-large", max_tokens=999, messages=MESSAGES, tools=[MESSAGES_TOOL]
        ) as stream:
            final = stream.get_final_message()
        [block], [call] = plain.content, final.content
        assert block.type == call.type == "tool_use"
        check_forecast_arguments(call.input)
        assert (call.name, call.input) == (block.name, block.input)
        assert final.stop_reason == plain.stop_reason == "tool_use"

        result: MessageParam = {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}],
        }
        answer = anthropic_client.messages.create(
            model="demo-large",
            max_tokens=999,
            messages=[*MESSAGES, {"role": "assistant", "content": plain.content}, result],
            tools=[MESSAGES_TOOL],
        )
        assert answer.content[0].type == "text"
        assert "18 degrees" in answer.content[0].text

    def test_tokens_are_counted_as_they_are_charged(self, anthropic_client: anthropic.Anthropic) -> None:
        counted = anthropic_client.messages.count_tokens(model="demo-large", messages=MESSAGES)
        message = anthropic_client.messages.create(model="demo-large", max_tokens=9, messages=MESSAGES)
        assert counted.input_tokens == message.usage.input_tokens > 0
        assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 9)

    def test_models(self, anthropic_client: anthropic.Anthropic) -> None:
        models = list(anthropic_client.models.list())
        assert models
        assert anthropic_client.models.retrieve(models[0].id) == models[0]

    def test_an_error_of_the_provider_arrives_as_such(self, anthropic_client: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError, match="nothing") as caught:
            anthropic_client.models.retrieve("nothing")
        assert (caught.value.request_id or "").startswith("req_")

    @pytest.mark.parametrize("credential", ["api_key", "auth_token"])
    def test_a_wrong_token_is_refused_and_not_repeated(self, demo: Demo, credential: str) -> None:
        with (
            connect_anthropic(demo, credential, WRONG_TOKEN) as client,
            pytest.raises(anthropic.AuthenticationError) as caught,
        ):
            client.messages.create(model="demo-large", max_tokens=9, messages=MESSAGES)
        assert WRONG_TOKEN not in f"{caught.value!r} {caught.value.body!r}"

    def test_a_stream_can_be_left_early(self, anthropic_client: anthropic.Anthropic) -> None:
        with anthropic_client.messages.stream(
            model="demo-large", max_tokens=999, messages=MESSAGES
        ) as stream:
            for _ in stream.text_stream:
                break
        assert list(anthropic_client.models.list())

    def test_the_async_client(self, demo: Demo) -> None:
        async def ask() -> str:
            async with (
                anthropic.AsyncAnthropic(
                    base_url=f"{demo.url}/anthropic", api_key=demo.token, max_retries=0, timeout=TIMEOUT
                ) as client,
                client.messages.stream(model="demo-large", max_tokens=999, messages=MESSAGES) as stream,
            ):
                return "".join([text async for text in stream.text_stream])

        assert PROMPT in asyncio.run(ask())
