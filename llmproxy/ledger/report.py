"""Sums over the ledger: who used what, and what it cost.

What is unknown is not in a sum, but is counted beside it, so that a sum of which parts are missing can say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib import import_module
from typing import Any

import attrs

from llmproxy.exchange import first_id, last_id
from llmproxy.ledger import schema
from llmproxy.ledger.database import Database

DIMENSIONS = ("client", "model", "upstream", "day", "session")

# The rules of llmproxy.unknown. What may have been billed, and is not in a sum, or not whole: a POST may make tokens, and a
# WebSocket, of status 101; what was refused, by this proxy or by the upstream, costs nothing, nor does counting tokens.
_USAGE_UNKNOWN = """
    (method = 'POST' OR status = 101) AND billable IS NOT FALSE AND (
        -- It was read, without usage that can be relied on.
        ((status IS NULL OR status < 400) AND (
            usage_source IN ('absent', 'too_large', 'undecodable')
            OR (usage_source = 'reported' AND outcome <> 'complete')
        ))
        -- It is of a kind that nobody reads, or the client left before there was any.
        OR (COALESCE(usage_source, 'none') = 'none' AND (
            status IS NULL OR status = 101 OR status BETWEEN 200 AND 299
        ))
        -- None came, and the status is this proxy's own; below 500, it was the client that sent no whole request. What was
        -- never sent is not billable.
        OR (first_byte IS NULL AND status >= 500 AND ending IN ('upstream silent', 'upstream failed', 'proxy failed'))
    )
"""
_COST_UNKNOWN = f"""
    cost IS NULL AND billable IS NOT FALSE AND (usage_source = 'reported' OR ({_USAGE_UNKNOWN}))
"""
_FAILED = "status >= 400 OR outcome = 'failed' OR ending NOT IN ('completed', 'client left')"
_TOKENS = (
    "input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
)
_VALUES = {
    "errors": f"CASE WHEN {_FAILED} THEN 1 ELSE 0 END",
    # Tokens that were counted on request, and are not billed, were not used.
    **{name: f"CASE WHEN billable THEN {name} END" for name in _TOKENS},
    "cost": "cost",
    "usage_unknown": f"CASE WHEN {_USAGE_UNKNOWN} THEN 1 ELSE 0 END",
    "cost_unknown": f"CASE WHEN {_COST_UNKNOWN} THEN 1 ELSE 0 END",
}
_SUMS = {
    **{name: f"SUM({name})" for name in _VALUES},
    # Where a cost is unknown, the 0 of what is not billed does not stand in for it.
    "cost": "CASE WHEN SUM(cost_unknown) = 0 THEN SUM(cost) ELSE SUM(CASE WHEN billable THEN cost END) END",
}


class LedgerError(Exception):
    """A ledger that cannot be read; the text tells why, and shows no password."""


@attrs.frozen
class Question:
    """What to add up.

    :ivar by: of :data:`DIMENSIONS`; one sum for each combination of their values, or one for all without any.
    :ivar since: the earliest time that counts, with a time zone.
    :ivar until: the first that does not.
    :ivar client: the name of the client that alone counts.
    """

    by: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    client: str | None = None


@attrs.frozen
class Sum:
    """What some exchanges come to. A number is ``None`` where nothing of it is known. Tokens are those that are billed.

    :ivar key: the values of the dimensions.
    :ivar errors: exchanges that failed or were refused.
    :ivar cost: in micro-dollars.
    :ivar usage_unknown: exchanges of which the tokens are not known, or not all of them.
    :ivar cost_unknown: exchanges that are not in ``cost``, for what they cost is not known.
    :ivar first_token_p50: seconds; half of the exchanges with a first token had it by then (nearest rank).
    :ivar first_token_p99: seconds.
    """

    key: tuple[str | None, ...]
    requests: int
    errors: int
    input_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cache_read_tokens: int | None
    cache_write_5m_tokens: int | None
    cache_write_1h_tokens: int | None
    cost: int | None
    usage_unknown: int
    cost_unknown: int
    first_token_p50: float | None
    first_token_p99: float | None

    @property
    def cache_write_tokens(self) -> int | None:
        """What was written to caches, for whatever time."""
        written = [self.cache_write_5m_tokens, self.cache_write_1h_tokens]
        return None if written == [None, None] else sum(filter(None, written))

    @property
    def cache_hit_share(self) -> float | None:
        """The share of all input that was read from a cache, from 0 to 1."""
        read = self.cache_read_tokens
        whole = sum(filter(None, [self.input_tokens, read, self.cache_write_tokens]))
        return None if read is None or not whole else read / whole


def ask(database: Database, *questions: Question) -> list[list[Sum]]:
    """Add up what is in a ledger, at one moment for all questions.

    :return: for each question its sums: by day in their order, else those that cost most first.
    :raise LedgerError: where it cannot be read.
    """
    try:
        with database.read() as connection:
            cursor = connection.cursor()
            if not schema.exists(cursor, database):
                raise LedgerError(
                    f"There is no ledger in {database} yet, for it lacks the tables; a proxy makes them when it starts."
                )
            if schema.version(cursor) < len(schema.MIGRATIONS):
                raise LedgerError(
                    f"The ledger {database} was made by an older llmproxy; it is brought up to date when a proxy starts."
                )
            return [_answer(cursor, database, question) for question in questions]
    except import_module(database.module).Error as error:
        problem = " ".join(str(error).split()).rstrip(".?")
        raise LedgerError(f"The ledger {database} cannot be read: {problem}.") from None


def _answer(cursor: Any, database: Database, question: Question) -> list[Sum]:
    keys = {"model": "COALESCE(answered_model, asked_model)", "day": database.day}
    named = [f"{keys.get(name, name)} AS key_{name}" for name in question.by]
    names = [f"key_{name}" for name in question.by]
    partition = f"PARTITION BY {', '.join(names)}" if names else ""
    conditions, values = _conditions(question)
    order = [f"{name} NULLS LAST" for name in names]
    if question.by[:1] != ("day",):
        order = ["cost DESC NULLS LAST", "requests DESC", *order]
    # Nearest rank: the smallest time that at least so many in a hundred are not above.
    cursor.execute(
        database.sql(f"""
            WITH chosen AS (
                SELECT {", ".join([*named, "first_token", "billable", *_named(_VALUES)])}
                FROM llmproxy_exchanges WHERE {conditions}
            ), ranked AS (
                SELECT chosen.*,
                    ROW_NUMBER() OVER ({partition} ORDER BY first_token NULLS LAST) AS place,
                    COUNT(first_token) OVER ({partition}) AS timed
                FROM chosen
            )
            SELECT {", ".join([*names, "COUNT(*) AS requests", *_named(_SUMS)])},
                MIN(CASE WHEN place * 100 >= timed * 50 THEN first_token END),
                MIN(CASE WHEN place * 100 >= timed * 99 THEN first_token END)
            FROM ranked {f"GROUP BY {', '.join(names)}" if names else ""}
            ORDER BY {", ".join(order)}
        """),  # noqa: S608  (of constants; values are given apart)
        values,
    )
    return [_sum(row, len(names)) for row in cursor.fetchall()]


def _named(expressions: Mapping[str, str]) -> Iterator[str]:
    return (f"{sql} AS {name}" for name, sql in expressions.items())


def _conditions(question: Question) -> tuple[str, list[str]]:
    conditions: dict[str, str] = {}
    if question.since is not None:
        # Only ids have an index, and they tell the millisecond.
        conditions |= {"id >= ?": first_id(question.since), "at >= ?": _time(question.since)}
    if question.until is not None:
        conditions |= {"id <= ?": last_id(question.until), "at < ?": _time(question.until)}
    if question.client is not None:
        conditions["client = ?"] = question.client
    return " AND ".join(conditions) or "1 = 1", list(conditions.values())


def _sum(row: tuple[Any, ...], keys: int) -> Sum:
    requests, *sums = row[keys:-2]
    numbers = {name: None if value is None else int(value) for name, value in zip(_SUMS, sums, strict=True)}
    counts = {name: numbers[name] or 0 for name in ("errors", "usage_unknown", "cost_unknown")}  # of no rows
    return Sum(
        key=row[:keys],
        requests=requests,
        first_token_p50=row[-2],
        first_token_p99=row[-1],
        **{**numbers, **counts},  # type: ignore[arg-type]
    )


def _time(value: datetime) -> str:
    return value.astimezone(timezone.utc).isoformat(timespec="microseconds")
