"""An exchange as a row of the ledger.

What came from a client or an upstream, and was not read by a tap, may hold anything: it is cut to a length and freed of what
cannot be printed, which neither a database nor a terminal should be given. A number that no database can hold is unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timezone
from typing import Any

from llmproxy.exchange import Exchange

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
    "answered_model",
    "received",
    "sent",
    "first_byte",
    "first_token",
    "duration",
    "reused",
    "upstream_request_id",
    "session",
    "labels",
    "cost",
    "usage_source",
    "outcome",
    "error",
    "response_id",
    "stop_reason",
    "service_tier",
    "billable",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "cached_audio_tokens",
    "input_image_tokens",
    "output_image_tokens",
    "server_tool_uses",
)
INSERT = (
    f"INSERT INTO llmproxy_exchanges ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "  # noqa: S608
    # A batch is written once more where it was not known whether the database took it.
    "ON CONFLICT (id) DO NOTHING"
)

Row = tuple[Any, ...]

_LONGEST = 256  # characters of a name or an id
_LONGEST_PATH = 1024
_LARGEST = 2**63 - 1  # of a BIGINT
# The label that names a session: "x-claude-code-session-id", "session_id", ...
_SESSION = re.compile(r"(.*[-_])?session[-_]id", re.IGNORECASE)
_json = json.JSONEncoder(separators=(",", ":")).encode
_NO_READING: Row = (None,) * 7
_NO_USAGE: Row = (None,) * 12


def row_of(exchange: Exchange) -> Row:
    """Make the row, in the order of :data:`COLUMNS`."""
    reading = exchange.reading
    usage = None if reading is None else reading.usage
    labels = exchange.labels
    return (
        exchange.id,
        exchange.at.astimezone(timezone.utc).isoformat(timespec="microseconds"),
        _text(exchange.client),
        _text(exchange.upstream),
        _text(exchange.method),
        _text(exchange.path, _LONGEST_PATH),
        exchange.status,
        None if exchange.ending is None else exchange.ending.value,
        _text(exchange.asked_model),
        None if reading is None else reading.model,
        exchange.received,
        exchange.sent,
        exchange.first_byte,
        exchange.first_token,
        exchange.duration,
        exchange.reused,
        _text(exchange.upstream_request_id),
        _text(_session(labels)) if labels else None,
        _json({_text(name): _text(value) for name, value in labels.items()}) if labels else None,
        _number(exchange.cost),
        *(
            _NO_READING
            if reading is None
            else (
                reading.source,
                reading.outcome,
                reading.error,
                reading.response_id,
                reading.stop_reason,
                reading.service_tier,
                None if usage is None else usage.billable,
            )
        ),
        *(
            _NO_USAGE
            if usage is None
            else (
                _number(usage.input_tokens),
                _number(usage.output_tokens),
                _number(usage.cache_read_tokens),
                _number(usage.cache_write_5m_tokens),
                _number(usage.cache_write_1h_tokens),
                _number(usage.reasoning_tokens),
                _number(usage.input_audio_tokens),
                _number(usage.output_audio_tokens),
                _number(usage.cached_audio_tokens),
                _number(usage.input_image_tokens),
                _number(usage.output_image_tokens),
                _tools(usage.server_tool_uses),
            )
        ),
    )


def _session(labels: Mapping[str, str]) -> str | None:
    return next((value for name, value in labels.items() if _SESSION.fullmatch(name)), None)


def _tools(uses: Mapping[str, int] | None) -> str | None:
    return None if uses is None else _json({_text(name): _number(count) for name, count in uses.items()})


def _text(value: str | None, longest: int = _LONGEST) -> str | None:
    if value is None or (len(value) <= longest and value.isprintable()):
        return value
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value[:longest]
    )


def _number(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= _LARGEST else None
