"""Anthropic's messages: from the body of a `POST /v1/messages` to a message or its events."""

from __future__ import annotations

import json
from typing import Any

import attrs

from llmproxy.demo import sse
from llmproxy.demo.api import Answer
from llmproxy.demo.fields import (
    BadField,
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


def answer(body: Json, token: str) -> Answer:
    """Answer `body` with a message, or its events if it asks for a stream; ids are made from `token`."""
    model = required(body, "model", str)
    prompt = prompt_of(body)
    if prompt.limit is None:
        raise BadField("max_tokens")
    message = _Message(token, model, prompt.tokens, reply_to(prompt))
    return message.events() if optional(body, "stream", bool) else message.whole()


def count_tokens(body: Json) -> Json:
    """Answer the `body` of a `POST /v1/messages/count_tokens`: what `answer` would count as input."""
    required(body, "model", str)
    return {"input_tokens": prompt_of(body).tokens}


def prompt_of(body: Json) -> Prompt:
    """Read what `body` asks for, or raise `BadField`."""
    messages = conversation(body, "messages")
    definitions = optional(body, "tools", list) or []
    results = [_tool_results(message) for message in messages]
    return Prompt(
        texts=[
            text_of(body.get("system")),
            *(text_of(message.get("content")) for message in messages),
            *(text for texts in results for text in texts),
            *(json.dumps(definition) for definition in definitions),
        ],
        user=last_user_text(messages),
        tool_result="\n".join(results[-1]) if results[-1] else None,
        tool=_tool_to_call(tools_of(definitions, "input_schema"), body.get("tool_choice")),
        limit=positive(body, "max_tokens"),
    )


def _tool_results(message: Json) -> list[str]:
    content = message.get("content")
    return [
        text_of(block.get("content"))
        for block in (content if isinstance(content, list) else [])
        if isinstance(block, dict) and block.get("type") == "tool_result"
    ]


def _tool_to_call(tools: list[Tool], choice: Any) -> Tool | None:
    match choice:
        case {"type": "none"}:
            return None
        case {"type": "tool", "name": name}:
            return pick(tools, name)
    return tools[0] if tools else None


@attrs.frozen
class _Message:
    token: str
    model: str
    input_tokens: int
    reply: Reply

    def whole(self) -> Json:
        if self.reply.tool is None:
            block: Json = {"type": "text", "text": self.reply.text}
        else:
            block = self._tool_use(self._arguments())
        return self._message([block], self._stop_reason(), self.reply.tokens)

    def events(self) -> list[bytes]:
        if self.reply.tool is None:
            block, delta, key = {"type": "text", "text": ""}, "text_delta", "text"
        else:
            block, delta, key = self._tool_use({}), "input_json_delta", "partial_json"
        told: list[Json] = [
            # The real one counts the first token here. message_delta has the total, not what is to be added.
            {"type": "message_start", "message": self._message([], None, 1)},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "ping"},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": delta, key: piece}}
                for piece in self.reply.pieces
            ),
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": self._stop_reason(), "stop_sequence": None},
                "usage": self._counts(self.reply.tokens),
            },
            {"type": "message_stop"},
        ]
        return [sse.event(event, event["type"]) for event in told]

    def _arguments(self) -> Json:
        """Return the arguments as an object: an empty one when the limit has cut them to what is no JSON."""
        arguments: Json = {} if self.reply.cut else json.loads(self.reply.text)
        return arguments

    def _tool_use(self, arguments: Json) -> Json:
        return {"type": "tool_use", "id": f"toolu_{self.token}", "name": self.reply.tool, "input": arguments}

    def _stop_reason(self) -> str:
        if self.reply.cut:
            return "max_tokens"
        return "end_turn" if self.reply.tool is None else "tool_use"

    def _message(self, content: list[Json], stop_reason: str | None, output_tokens: int) -> Json:
        return {
            "id": f"msg_{self.token}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {
                **self._counts(output_tokens),
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "service_tier": "standard",
            },
        }

    def _counts(self, output_tokens: int) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
        }
