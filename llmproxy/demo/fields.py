"""Reading a JSON request body: each field is there and has its type, or the client is told which is wrong.

How a provider words that is left to its own module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs

from llmproxy.demo.words import Tool

Json: TypeAlias = dict[str, Any]
"""A JSON object."""

T = TypeVar("T")

_KINDS: dict[type, str] = {bool: "a boolean", dict: "an object", list: "an array", str: "a string"}


@attrs.define
class BadJson(Exception):
    """The request body is no JSON object; `reason` says why."""

    reason: str


@attrs.define
class BadField(Exception):
    """The field `name` of the body is missing, or (when `expected` is given) is not what was expected."""

    name: str
    expected: str | None = None


def parse(content: bytes) -> Json:
    """Read a request body, or raise `BadJson`."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadJson(str(error)) from None
    if not isinstance(body, dict):
        raise BadJson("the top level is not an object")
    return body


def optional(body: Json, name: str, kind: type[T]) -> T | None:
    """Return the field `name`, or None when it is absent or null; `BadField` when it is no `kind`."""
    value = body.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise BadField(name, _KINDS[kind])


def required(body: Json, name: str, kind: type[T]) -> T:
    """Return the field `name`; `BadField` when it is absent or null, or is no `kind`."""
    value = optional(body, name, kind)
    if value is None:
        raise BadField(name)
    return value


def positive(body: Json, name: str) -> int | None:
    """Return the field `name`, a number from 1 on, or None when it is absent or null; else `BadField`."""
    value = body.get(name)
    # A JSON true is an int to Python.
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise BadField(name, "a positive integer")


def conversation(body: Json, name: str) -> list[Json]:
    """Return the field `name`, an array of at least one object; else `BadField`."""
    items = required(body, name, list)
    if not items or not all(isinstance(item, dict) for item in items):
        raise BadField(name, "a non-empty array of objects")
    return items


def text_of(content: object) -> str:
    """Return the text of a message's content: a string, or an array of parts of which some have a `text`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def last_user_text(messages: Sequence[Json]) -> str:
    """Return the last text in `messages` that the user wrote, or an empty string."""
    said = (message.get("content") for message in reversed(messages) if message.get("role") == "user")
    return next(filter(None, map(text_of, said)), "")


def tools_of(definitions: Iterable[object], schema: str) -> list[Tool]:
    """Return the tools that a client offers and runs itself.

    A definition has a `name` and, in its field `schema`, the JSON schema of the arguments. One without that
    is a tool of the provider's own, which the demo does not have.
    """
    return [
        Tool(definition["name"], definition[schema])
        for definition in definitions
        if isinstance(definition, dict) and isinstance(definition.get("name"), str) and schema in definition
    ]


def pick(tools: Sequence[Tool], name: object) -> Tool:
    """Return the tool that `tool_choice` calls by `name`; `BadField` when it is not among `tools`."""
    for tool in tools:
        if tool.name == name:
            return tool
    raise BadField("tool_choice", "the name of one of the tools")
