"""An exchange as a row of the ledger.

What came from a client or an upstream, and was not read by a tap, may hold anything: it is cut to a length and freed of what
cannot be printed, which neither a database nor a terminal should be given. A number that no database can hold is unknown.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

from llmproxy.exchange import Ending, Exchange
from llmproxy.usage.model import COUNTS, Reading, Usage

Row = tuple[Any, ...]
"""A value for each of :data:`COLUMNS`; ``None`` where it is unknown."""

_LONGEST = 256  # characters of a name or an id
_LONGEST_PATH = 1024
_TOGETHER = 24  # rows; SQLite before 3.32 takes 999 values for a statement
_LARGEST = 2**63 - 1  # of a BIGINT
# A label that names an agent rather than a session: "x-claude-code-agent-id", "user-agent", ..., and not "x-agent-session".
_OF_AGENT = re.compile(r"(?!.*session)(.*[-_])?agent([-_].*)?", re.IGNORECASE)
COLUMNS = (
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
    "labels",
    "session",
    "socket",
    "answered_model",
    "usage_source",
    "outcome",
    "error",
    "response_id",
    "stop_reason",
    "service_tier",
    "billable",
    "server_tool_uses",
    *COUNTS,
)
# Until Python 3.12 it takes two calls to find the value of one.
_ENDINGS: Mapping[Ending | None, str] = {ending: ending.value for ending in Ending}
_UNREAD = (None,) * 7
_UNUSED = (None,) * (2 + len(COUNTS))
# For Python's sqlite3, a bool or None takes as long as three numbers; and a number is no BOOLEAN to PostgreSQL.
_FLAGS = {"reused": "? = 1", "billable": "? = 1"}
# Exchanges that have these in common know the same things of themselves, mostly.
_kind: Callable[[Row], tuple[Any, ...]] = itemgetter(
    *map(COLUMNS.index, ("upstream", "ending", "usage_source"))
)
_counts: Callable[[Usage], tuple[int | None, ...]] = attrgetter(*COUNTS)
_json = json.JSONEncoder(separators=(",", ":")).encode


def insertions(rows: Iterable[Row]) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """The statements that write some rows, with ``?`` for values, and for each the values for each time that it is run.

    Columns of which nothing is known in any of its rows are left out. Half are, and a NULL that is written takes longer than
    any value does. A statement that can be is one for many rows: SQLite's lock and Python's are handed over for each.
    """
    alike: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        alike[_kind(row)].append(row)
    for some in alike.values():
        columns = {
            column: values
            for column, values in zip(COLUMNS, zip(*some, strict=True), strict=True)
            if values.count(None) < len(some)
        }
        names, values = tuple(columns), list(zip(*columns.values(), strict=True))
        together = len(values) // _TOGETHER * _TOGETHER
        if together:
            joined = (values[at : at + _TOGETHER] for at in range(0, together, _TOGETHER))
            yield _insert(names, _TOGETHER), [tuple(chain.from_iterable(rows)) for rows in joined]
        if len(values) > together:
            yield _insert(names, 1), values[together:]


@lru_cache
def _insert(columns: tuple[str, ...], rows: int) -> str:
    values = ", ".join(_FLAGS.get(column, "?") for column in columns)
    return (
        f"INSERT INTO llmproxy_exchanges ({', '.join(columns)}) VALUES {', '.join([f'({values})'] * rows)} "  # noqa: S608
        # A batch is written once more where it was not known whether the database took it.
        "ON CONFLICT (id) DO NOTHING"
    )


def row_of(exchange: Exchange) -> Row:
    """Make the row."""
    reading, labels = exchange.reading, exchange.labels
    return (
        exchange.id,
        _utc(exchange.begun_ns),
        exchange.client,
        exchange.upstream,
        _text(exchange.method),
        _text(exchange.path, _LONGEST_PATH),
        exchange.status,
        _ENDINGS.get(exchange.ending),
        _text(exchange.asked_model),
        exchange.received,
        exchange.sent,
        exchange.first_byte,
        exchange.first_token,
        exchange.duration,
        None if exchange.reused is None else int(exchange.reused),
        _text(exchange.upstream_request_id),
        _number(exchange.cost),
        _json({_text(name): _text(value) for name, value in labels.items()}) if labels else None,
        _text(_session(labels)) if labels else None,
        exchange.socket,
        *(_UNREAD + _UNUSED if reading is None else _of_reading(reading)),
    )


def _of_reading(reading: Reading) -> tuple[Any, ...]:
    usage = reading.usage
    return (
        reading.model,
        reading.source,
        reading.outcome,
        reading.error,
        reading.response_id,
        reading.stop_reason,
        reading.service_tier,
        *(_UNUSED if usage is None else _of_usage(usage)),
    )


def _of_usage(usage: Usage) -> tuple[Any, ...]:
    counts, uses = _counts(usage), usage.server_tool_uses
    known = tuple(filter(None, counts))
    if known and (min(known) < 0 or max(known) > _LARGEST):
        counts = tuple(map(_number, counts))
    return (
        int(usage.billable),
        None if uses is None else _json({_text(name): _number(count) for name, count in uses.items()}),
        *counts,
    )


def _utc(unix_ns: int) -> str:
    """Write a time in ISO 8601, to the microsecond."""
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return f"{_second(seconds)}.{ns // 1000:06d}+00:00"


@lru_cache(8)  # most rows of a batch are of the same one
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _session(labels: Mapping[str, str]) -> str | None:
    """The first label that can be a session's; they stand in the order in which headers are looked for."""
    return next((value for name, value in labels.items() if value and not _of_agent(name)), None)


@lru_cache(64)  # the names are those of a setting
def _of_agent(name: str) -> bool:
    return _OF_AGENT.fullmatch(name) is not None


def _text(value: str | None, longest: int = _LONGEST) -> str | None:
    if value is None or (value.isprintable() and len(value) <= longest):
        return value
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value[:longest]
    )


def _number(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= _LARGEST else None
