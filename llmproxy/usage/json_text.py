"""JSON out of bytes: all of it, or what can be told for sure of a text of which only the start or the end is there.

The bytes are taken for latin-1. JSON's own syntax is ASCII, as is all that is looked for, so the text that people wrote may
turn out wrong: nobody reads it, nothing fails for it, and places in the text stay places in the bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_DECODER = json.JSONDecoder(strict=False)
_BOM = b"\xef\xbb\xbf"

_OPENING = re.compile(r"\s*\{\s*")
_KEY = re.compile(r'"([^"\\]*)"\s*:\s*')
_COMMA = re.compile(r"\s*,\s*")
_CLOSING = re.compile(r"\s*\}\Z")
# What to look for at an end: the members of an answer that tell something here.
_AT_THE_END = re.compile(
    r'"(?:usage|usageMetadata|model|modelVersion|id|responseId|status|stop_reason|service_tier|error|tool_usage)"\s*:'
)
# Characters to be parsed in search of the object's own members, among those of objects within. Once or twice the text is usual.
_MOST_PARSED = 2**20


def parse(data: bytes) -> Any:
    """Parse a whole text, or return ``None`` where it is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # it is strict: it may be JSON all the same, of text that is not UTF-8, say
    try:
        return _DECODER.decode(data.removeprefix(_BOM).decode("latin-1"))
    except (ValueError, RecursionError):
        return None


def document(data: bytes) -> dict[str, Any]:
    """Parse an object, or return an empty one."""
    parsed = parse(data)
    return parsed if isinstance(parsed, dict) else {}


def end_of_object(text: str, start: int) -> int | None:
    """Tell where the object ends that starts there, or ``None`` where it does not, so far."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def members_at_start(data: bytes) -> dict[str, Any]:
    """The members of an object of which only the start is there, as far as they are whole."""
    text = data.removeprefix(_BOM).decode("latin-1")
    opening = _OPENING.match(text)
    return _members(text, opening.end())[0] if opening else {}


def members_at_end(data: bytes) -> dict[str, Any]:
    """The last members of an object of which only the end is there, from the first on that could tell something here.

    They are the object's own, and not those of one within it, if behind them comes a brace and nothing else.
    """
    text = data.decode("latin-1").rstrip()
    left = _MOST_PARSED
    for candidate in _AT_THE_END.finditer(text):
        start = candidate.start()
        if start == 0 or text[start - 1] not in "{, \t\r\n":  # within a string, it would be a backslash
            continue
        members, end = _members(text, start)
        if _CLOSING.match(text, end):
            return members
        left -= end - start
        if left < 0:
            break
    return {}


def _members(text: str, at: int) -> tuple[dict[str, Any], int]:
    """Parse the members of an object from there on, and tell where they end: with the text, where one of them is not whole."""
    found: dict[str, Any] = {}
    while key := _KEY.match(text, at):
        try:
            value, at = _DECODER.raw_decode(text, key.end())
        except (ValueError, RecursionError):
            return found, len(text)
        if at == len(text):  # a number could go on
            break
        found[key[1]] = value
        comma = _COMMA.match(text, at)
        if comma is None:
            break
        at = comma.end()
    return found, at
