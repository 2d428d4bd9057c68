"""What is wrong with a configuration, in words: where it stands, what was found there, what is allowed.

Nothing that may be a secret is repeated: a key or a token that was put in the wrong place must not reach a log by way of the
message that says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import date, datetime, time
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

# The keys that lead to a value of the file; for an item of a list, its number, from 0.
Where = tuple[Any, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0, "Keys"
# What may be a key or a token: a word with a prefix that is known, or of 20 characters and more. Words of names seldom are.
_WORD = re.compile(r"[A-Za-z0-9+=_-]+")
_SECRETIVE = re.compile(r"(llmp|sk|pk|rk|gsk|xai|hf)[_-].*|.{20,}", re.IGNORECASE)
_LONGEST_SHOWN = 60  # characters


class Problems:
    """Gathers what is wrong, so that one message names all of it.

    :ivar sentences: one for each problem, in the order in which they were found.
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._places: list[Where] = []

    def say(self, sentence: str, *places: Where) -> None:
        """Note what is wrong elsewhere; ``places`` of the file are silent for that reason, and nothing is missing there."""
        self._places += places
        self.sentences.append(sentence)

    def add(self, place: Where, text: str) -> None:
        """Note what is wrong at a place of the file: what is found there, or missing."""
        self._places.append(place)
        self.sentences.append(f"{dotted(place)}: {text}")

    def refuse(self, place: Where, error: ValueError) -> None:
        """Note why a value at a place of the file cannot be used, in words that go behind the place."""
        self._places.append(place)
        self.sentences.append(f"{dotted(place)} {_without_secrets(str(error))}")

    def at(self, *place: Any) -> bool:
        """Tell whether something is wrong there, above or below: what seems to be missing there is then only unreadable."""
        return any(found[: len(place)] == place[: len(found)] for found in self._places)


def _without_secrets(text: str) -> str:
    return _WORD.sub(lambda word: "..." if _SECRETIVE.fullmatch(word[0]) else word[0], text)


def dotted(place: Where) -> str:
    """Write a place as TOML writes a key, for example ``clients.alice.models[0]``."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else json.dumps(part))
    return text


def shown(value: Any) -> str:
    """Write a value of the file as a message may show it."""
    if isinstance(value, str):
        url = "://" in value and "@" in value  # there may be a password in it
        hidden = url or len(value) > _LONGEST_SHOWN or _without_secrets(value) != value
        return "text that is not shown, since it may be a secret" if hidden else json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, (int, float)):
        large = isinstance(value, int) and abs(value) >= 2**63
        return "a number beyond 64 bits" if large else str(value)
    if isinstance(value, Decimal):
        return "a number of many digits" if len(str(value)) > _LONGEST_SHOWN else str(value)
    if isinstance(value, dict):
        return "a table"
    return "a list" if value else "an empty list"


def nearest(name: str, known: Iterable[str]) -> str:
    """End a sentence about an unknown name: with a question for the known one that is near to it, or just so."""
    names = sorted(known)
    found = get_close_matches(name, names, n=1) or get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {found[0]}?" if found else "."
