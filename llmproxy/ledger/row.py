"""An exchange as a row of the ledger.

What came from a client or an upstream, and was not read by a tap, may hold anything: it is cut to a length and freed of what
cannot be printed, which neither a database nor a terminal should be given. A number that no database can hold is unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from operator import attrgetter
from typing import Any

from llmproxy.exchange import Exchange
from llmproxy.usage.model import COUNTS, Reading, Usage

Row = tuple[tuple[str, ...], tuple[Any, ...]]
"""Columns, and the value of each. What is unknown is not in a row: most of it is, mostly, and a NULL that is written costs more
than any value does.
"""

_LONGEST = 256  # characters of a name or an id
_LONGEST_PATH = 1024
_LARGEST = 2**63 - 1  # of a BIGINT
# The label that names a session: "x-claude-code-session-id", "session_id", ...
_SESSION = re.compile(r"(.*[-_])?session[-_]id", re.IGNORECASE)
_COLUMNS = (
    "id",
    "at",
    "client",
    "upstream",
    "method",
    "path",
    "status",
    "ending",
    "asked_model",
    "received",
    "sent",
    "first_byte",
    "first_token",
    "duration",
    "reused",
    "upstream_request_id",
    "cost",
)
_READING_COLUMNS = (
    "answered_model",
    "usage_source",
    "outcome",
    "error",
    "response_id",
    "stop_reason",
    "service_tier",
)
_of_reading: Callable[[Reading], tuple[Any, ...]] = attrgetter(
    "model", "source", "outcome", "error", "response_id", "stop_reason", "service_tier"
)
_counts: Callable[[Usage], tuple[int | None, ...]] = attrgetter(*COUNTS)
_json = json.JSONEncoder(separators=(",", ":")).encode


def insertions(rows: Iterable[Row]) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """The statements that write some rows, with ``?`` for values, and for each the values of all rows that it writes."""
    alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for columns, values in rows:
        alike.setdefault(columns, []).append(values)
    return ((_insert(columns), values) for columns, values in alike.items())


@lru_cache
def _insert(columns: tuple[str, ...]) -> str:
    return (
        f"INSERT INTO llmproxy_exchanges ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "  # noqa: S608
        # A batch is written once more where it was not known whether the database took it.
        "ON CONFLICT (id) DO NOTHING"
    )


def row_of(exchange: Exchange) -> Row:
    """Make the row."""
    ending, reading, labels = exchange.ending, exchange.reading, exchange.labels
    columns: tuple[str, ...] = _COLUMNS
    values: tuple[Any, ...] = (
        exchange.id,
        _utc(exchange.begun_ns),
        _text(exchange.client),
        _text(exchange.upstream),
        _text(exchange.method),
        _text(exchange.path, _LONGEST_PATH),
        exchange.status,
        None if ending is None else ending.value,
        _text(exchange.asked_model),
        exchange.received,
        exchange.sent,
        exchange.first_byte,
        exchange.first_token,
        exchange.duration,
        exchange.reused,
        _text(exchange.upstream_request_id),
        _number(exchange.cost),
    )
    if reading is not None:
        columns += _READING_COLUMNS
        values += _of_reading(reading)
    known = {column: value for column, value in zip(columns, values, strict=True) if value is not None}
    if labels:
        known["labels"] = _json({_text(name): _text(value) for name, value in labels.items()})
        if session := _text(_session(labels)):
            known["session"] = session
    if reading is not None and reading.usage is not None:
        known.update(_of_usage(reading.usage))
    return tuple(known), tuple(known.values())


def _of_usage(usage: Usage) -> dict[str, Any]:
    known: dict[str, Any] = {
        column: value
        for column, value in zip(COUNTS, _counts(usage), strict=True)
        if value is not None and 0 <= value <= _LARGEST
    }
    known["billable"] = usage.billable
    if (uses := usage.server_tool_uses) is not None:
        known["server_tool_uses"] = _json({_text(name): _number(count) for name, count in uses.items()})
    return known


def _utc(unix_ns: int) -> str:
    """Write a time in ISO 8601, to the microsecond."""
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return f"{_second(seconds)}.{ns // 1000:06d}+00:00"


@lru_cache(8)  # most rows of a batch are of the same one
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _session(labels: Mapping[str, str]) -> str | None:
    return next((value for name, value in labels.items() if _SESSION.fullmatch(name)), None)


def _text(value: str | None, longest: int = _LONGEST) -> str | None:
    if value is None or (value.isprintable() and len(value) <= longest):
        return value
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value[:longest]
    )


def _number(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= _LARGEST else None
