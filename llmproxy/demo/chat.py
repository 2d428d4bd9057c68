"""OpenAI's chat completions: from the body of a `POST /v1/chat/completions` to a completion or its chunks."""

from __future__ import annotations

import json
from typing import Any

import attrs

from llmproxy.demo import sse
from llmproxy.demo.api import Answer
from llmproxy.demo.fields import (
    Json,
    conversation,
    last_user_text,
    optional,
    pick,
    positive,
    required,
    text_of,
    tools_of,
)
from llmproxy.demo.words import Prompt, Reply, Tool, reply_to


def answer(body: Json, token: str, now: int) -> Answer:
    """Answer `body` with a completion, or its chunks if it asks for a stream; ids are made from `token`."""
    model = required(body, "model", str)
    prompt = prompt_of(body)
    completion = _Completion(token, now, model, prompt.tokens, reply_to(prompt))
    if not optional(body, "stream", bool):
        return completion.whole()
    options = optional(body, "stream_options", dict) or {}
    return completion.chunks(with_usage=bool(optional(options, "include_usage", bool)))


def prompt_of(body: Json) -> Prompt:
    """Read what `body` asks for, or raise `BadField`."""
    messages = conversation(body, "messages")
    definitions = optional(body, "tools", list) or []
    functions = [item.get("function") for item in definitions if isinstance(item, dict)]
    last = messages[-1]
    return Prompt(
        texts=[
            *(text_of(message.get("content")) for message in messages),
            *(json.dumps(definition) for definition in definitions),
        ],
        user=last_user_text(messages),
        tool_result=text_of(last.get("content")) if last.get("role") == "tool" else None,
        tool=_tool_to_call(tools_of(map(_with_parameters, functions), "parameters"), body.get("tool_choice")),
        limit=positive(body, "max_completion_tokens") or positive(body, "max_tokens"),
    )


def _with_parameters(function: object) -> object:
    """Say of a function without `parameters` that it takes none, as OpenAI understands it."""
    return {"parameters": {"type": "object"}, **function} if isinstance(function, dict) else function


def _tool_to_call(tools: list[Tool], choice: Any) -> Tool | None:
    if choice == "none":
        return None
    match choice:
        case {"type": "function", "function": {"name": name}}:
            return pick(tools, name)
        case {"type": "allowed_tools", "allowed_tools": {"tools": [{"function": {"name": name}}, *_]}}:
            return pick(tools, name)
    return tools[0] if tools else None


@attrs.frozen
class _Completion:
    token: str
    created: int
    model: str
    prompt_tokens: int
    reply: Reply

    def whole(self) -> Json:
        message: Json = {"role": "assistant", "content": self.reply.text, "refusal": None, "annotations": []}
        if self.reply.tool is not None:
            message["content"] = None
            message["tool_calls"] = [self._tool_call(self.reply.text)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason()}
        return self._dress("chat.completion", [choice]) | {"usage": self._usage()}

    def chunks(self, with_usage: bool) -> list[bytes]:
        first: Json = {"role": "assistant", "content": "", "refusal": None}
        if self.reply.tool is not None:
            first |= {"content": None, "tool_calls": [{"index": 0, **self._tool_call("")}]}
        steps = [(first, None), *((self._delta(piece), None) for piece in self.reply.pieces)]
        # With usage asked for, each chunk has the field, and the one after the last choice a value in it.
        no_usage = {"usage": None} if with_usage else {}
        chunks = [
            self._dress(
                "chat.completion.chunk",
                [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
            )
            | no_usage
            for delta, finish_reason in [*steps, ({}, self._finish_reason())]
        ]
        if with_usage:
            chunks.append(self._dress("chat.completion.chunk", []) | {"usage": self._usage()})
        return [*map(sse.event, chunks), b"data: [DONE]\n\n"]

    def _delta(self, piece: str) -> Json:
        if self.reply.tool is None:
            return {"content": piece}
        return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}

    def _tool_call(self, arguments: str) -> Json:
        function = {"name": self.reply.tool, "arguments": arguments}
        return {"id": f"call_{self.token}", "type": "function", "function": function}

    def _finish_reason(self) -> str:
        if self.reply.cut:
            return "length"
        return "stop" if self.reply.tool is None else "tool_calls"

    def _dress(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": f"chatcmpl-{self.token}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "service_tier": "default",
            "system_fingerprint": "fp_demo",
        }

    def _usage(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.reply.tokens,
            "total_tokens": self.prompt_tokens + self.reply.tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
