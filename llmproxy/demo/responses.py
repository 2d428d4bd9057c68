"""OpenAI's responses: from the body of a `POST /v1/responses` to a response or its events."""

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

# What a response repeats of its request, and what it says where the request is silent.
_REPEATED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def answer(body: Json, token: str, now: int) -> Answer:
    """Answer `body` with a response, or its events if it asks for a stream; ids are made from `token`."""
    model = required(body, "model", str)
    prompt = prompt_of(body)
    repeated = {name: body.get(name, default) for name, default in _REPEATED.items()}
    response = _Response(token, now, model, prompt.tokens, reply_to(prompt), repeated)
    return response.events() if optional(body, "stream", bool) else response.whole()


def prompt_of(body: Json) -> Prompt:
    """Read what `body` asks for, or raise `BadField`."""
    items = _items(body)
    definitions = optional(body, "tools", list) or []
    functions = [item for item in definitions if isinstance(item, dict) and item.get("type") == "function"]
    last = items[-1]
    return Prompt(
        texts=[
            optional(body, "instructions", str) or "",
            *(text_of(item.get("content", item.get("output"))) for item in items),
            *(json.dumps(definition) for definition in definitions),
        ],
        user=last_user_text(items),
        tool_result=text_of(last.get("output")) if last.get("type") == "function_call_output" else None,
        tool=_tool_to_call(tools_of(functions, "parameters"), body.get("tool_choice")),
        limit=positive(body, "max_output_tokens"),
    )


def _items(body: Json) -> list[Json]:
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if given is not None and not isinstance(given, list):
        raise BadField("input", "a string or an array")
    return conversation(body, "input")


def _tool_to_call(tools: list[Tool], choice: Any) -> Tool | None:
    if choice == "none":
        return None
    match choice:
        case {"type": "function", "name": name} | {"type": "allowed_tools", "tools": [{"name": name}, *_]}:
            return pick(tools, name)
    return tools[0] if tools else None


@attrs.frozen
class _Response:
    token: str
    created: int
    model: str
    input_tokens: int
    reply: Reply
    repeated: Json

    def whole(self) -> Json:
        return self._response(self._status(), [self._item(self._status(), self.reply.text)], self._usage())

    def events(self) -> list[bytes]:
        status = self._status()
        begun = self._response("in_progress", [], None)
        empty, full = self._item("in_progress", None), self._item(status, self.reply.text)
        told: list[Json] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": empty},
            *(self._text_events() if self.reply.tool is None else self._call_events()),
            {"type": "response.output_item.done", "output_index": 0, "item": full},
            {"type": f"response.{status}", "response": self.whole()},
        ]
        return [sse.event({**event, "sequence_number": at}, event["type"]) for at, event in enumerate(told)]

    def _text_events(self) -> list[Json]:
        place = {"item_id": self._item_id(), "output_index": 0, "content_index": 0}
        text = self.reply.text
        return [
            {"type": "response.content_part.added", **place, "part": _text_part("")},
            *(
                {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
                for piece in self.reply.pieces
            ),
            {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **place, "part": _text_part(text)},
        ]

    def _call_events(self) -> list[Json]:
        place = {"item_id": self._item_id(), "output_index": 0}
        delta, done = "response.function_call_arguments.delta", "response.function_call_arguments.done"
        return [
            *({"type": delta, **place, "delta": piece} for piece in self.reply.pieces),
            {"type": done, **place, "name": self.reply.tool, "arguments": self.reply.text},
        ]

    def _status(self) -> str:
        return "incomplete" if self.reply.cut else "completed"

    def _item_id(self) -> str:
        return f"{'msg' if self.reply.tool is None else 'fc'}_{self.token}"

    def _item(self, status: str, text: str | None) -> Json:
        """Return the one item of the output, a message or a function call; empty yet when `text` is None."""
        item: Json = {"id": self._item_id(), "status": status}
        if self.reply.tool is None:
            content = [] if text is None else [_text_part(text)]
            return item | {"type": "message", "role": "assistant", "content": content}
        call = {"call_id": f"call_{self.token}", "name": self.reply.tool, "arguments": text or ""}
        return item | {"type": "function_call"} | call

    def _response(self, status: str, output: list[Json], usage: Json | None) -> Json:
        return {
            "id": f"resp_{self.token}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": output,
            "service_tier": "default",
            "usage": usage,
            **self.repeated,
        }

    def _usage(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self.reply.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + self.reply.tokens,
        }


def _text_part(text: str) -> Json:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
