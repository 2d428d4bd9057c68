"""The fields of a provider's JSON, by their types: of another type, or out of all bounds, is as good as absent."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

Document = Mapping[str, Any]

_LONGEST_TEXT = 256  # characters: all models, ids and reasons are shorter
_MOST = 10**15  # tokens; more is a mistake, and would not fit every database
_MOST_MONEY = 10**9


def count(value: object) -> int | None:
    """A number of tokens or of uses."""
    # A bool is an int to Python, and none to JSON.
    return value if type(value) is int and 0 <= value < _MOST else None


def money(value: object) -> Decimal | None:
    """An amount of money: the decimal number that was written, and not the binary one nearest to it."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < _MOST_MONEY:
        return None
    # The shortest text that is read as this float is what was written, up to 15 digits.
    return Decimal(repr(value))


def text(value: object) -> str | None:
    """A name: goes into logs and databases, so it has no characters that either would stumble over."""
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_TEXT and value.isascii() and value.isprintable():
        return value
    return None


def part(value: object) -> Document:
    """An object, empty where there is none."""
    return value if isinstance(value, dict) else {}


def parts(value: object) -> list[Document]:
    """The objects in an array, empty where there is none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def first(fields: Document, *names: str) -> int | None:
    """The first number among several fields that mean the same."""
    for name in names:
        value = fields.get(name)
        if value is not None and (found := count(value)) is not None:
            return found
    return None
