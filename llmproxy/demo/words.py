"""What the demo upstream says: from a prompt to a reply, whichever API carries the two.

Pure: no I/O, no time and no chance, so a plain and a streamed answer to one request agree, in their text and
in their token counts. How a reply looks on the wire is left to the modules of the APIs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import attrs

ECHO_LENGTH = 200
"""Characters of the prompt that an answer repeats; a long one, repeated whole, would stream for minutes."""

# Arrays stay empty below this depth, so that a schema which contains itself ends in a valid value.
_ARRAY_DEPTH = 4
# No value fits a schema that demands itself without end; this is where the attempt is given up.
_DEPTH = 16

# About the size of a real token: a short word with the space before it. Long words, JSON and scripts without
# spaces come in several pieces too.
_PIECE = re.compile(r"\s*\S{1,8}|\s+")


@attrs.frozen
class Tool:
    """A function that the client offers: its name, and the JSON schema of its arguments."""

    name: str
    schema: Any


@attrs.frozen
class Prompt:
    """What a request asks for, without the dress of its API.

    `texts`: all that the model reads, for the count; `user`: the last thing the user said; `tool_result`:
    what the tool returned, if that is what the last message brings; `tool`: the one to call, if any; `limit`:
    the most tokens to answer with, or None.
    """

    texts: Sequence[str]
    user: str
    tool_result: str | None = None
    tool: Tool | None = None
    limit: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the prompt has."""
        return sum(count(text) for text in self.texts)


@attrs.frozen
class Reply:
    """What is answered: `pieces` of a text or of JSON arguments for `tool`, perhaps `cut` by the limit."""

    pieces: Sequence[str]
    tool: str | None
    cut: bool

    @property
    def text(self) -> str:
        """The whole answer: a text, or the JSON arguments for the tool (no valid JSON when `cut`)."""
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        """How many tokens the answer has: one a piece."""
        return len(self.pieces)


def split(text: str) -> list[str]:
    """Split `text` into the pieces in which it is streamed; joined, they are `text` again."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """Count the tokens of `text`: the pieces in which it would be streamed."""
    return len(split(text))


def reply_to(prompt: Prompt) -> Reply:
    """Answer `prompt`: echo the result that it brings, or call its tool, or else echo the user."""
    tool = None
    if prompt.tool_result is not None:
        text = (
            f'The tool returned: "{_excerpt(prompt.tool_result)}". '
            "That is all I can say of it: I am the demo upstream of llmproxy, not a model."
        )
    elif prompt.tool is not None:
        tool = prompt.tool.name
        text = json.dumps(arguments_for(prompt.tool.schema, prompt.user), ensure_ascii=False)
    else:
        said = f'You said: "{_excerpt(prompt.user)}".' if prompt.user else "You sent no text."
        text = (
            f"{said} I am the demo upstream of llmproxy: no provider was asked, and nothing was paid. "
            "Give llmproxy a real key and start it without --demo to hear from a model."
        )
    pieces = split(text)
    return Reply(pieces[: prompt.limit], tool, cut=prompt.limit is not None and len(pieces) > prompt.limit)


def arguments_for(schema: Any, user: str) -> dict[str, Any]:
    """Make up arguments that satisfy the usual sort of JSON `schema`; strings echo `user`."""
    value = _value_for(schema, schema, _excerpt(user), 0)
    return value if isinstance(value, dict) else {}


def _excerpt(text: str) -> str:
    return text if len(text) <= ECHO_LENGTH else text[:ECHO_LENGTH] + "…"


def _value_for(schema: Any, root: Any, echo: str, depth: int) -> Any:
    if not isinstance(schema, dict):
        return echo
    if depth > _DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    for choices in ("enum", "anyOf", "oneOf", "allOf"):
        options = schema.get(choices)
        if isinstance(options, list) and options:
            return options[0] if choices == "enum" else _value_for(options[0], root, echo, depth + 1)
    if "$ref" in schema:
        return _value_for(_resolve(schema["$ref"], root), root, echo, depth + 1)
    match _type_of(schema):
        case "object":
            return _object_for(schema, root, echo, depth)
        case "array":
            return [] if depth > _ARRAY_DEPTH else [_value_for(schema.get("items"), root, echo, depth + 1)]
        case "integer" | "number":
            bounds = (schema.get("minimum"), schema.get("maximum"))
            return next((bound for bound in bounds if isinstance(bound, (int, float))), 1)
        case "boolean":
            return True
        case "null":
            return None
    longest = schema.get("maxLength")
    return echo[:longest] if isinstance(longest, int) else echo


def _object_for(schema: dict[str, Any], root: Any, echo: str, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    required = schema.get("required")
    names = required if isinstance(required, list) and required else properties
    return {name: _value_for(properties.get(name), root, echo, depth + 1) for name in map(str, names)}


def _type_of(schema: dict[str, Any]) -> Any:
    declared = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(declared, list):
        return next((kind for kind in declared if kind != "null"), "null")
    return declared


def _resolve(reference: Any, root: Any) -> Any:
    """Find what a `#/a/b` reference of a JSON schema points at, or None."""
    found = root
    for name in filter(None, str(reference).removeprefix("#").split("/")):
        found = found.get(name) if isinstance(found, dict) else None
    return found
