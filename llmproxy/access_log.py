"""The access log: an observer that writes a line for each exchange that is over.

Where the log is text, the line is one for people; where it is JSON, it has all that is known of the exchange, under the names
that the ledger uses. Neither has a query, a header beyond the ids that are recorded, a prompt or an answer. How a line gets to
where the log is kept is for :mod:`llmproxy.logs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from twisted.logger import Logger

from llmproxy.exchange import Exchange
from llmproxy.logs import rfc3339
from llmproxy.usage.model import COUNTS, Reading

_USAGE = (*COUNTS, "server_tool_uses", "billable")
# What of it is told to people, and in which words.
_SHOWN = {
    "input_tokens": "in",
    "cache_read_tokens": "from cache",
    "cache_write_5m_tokens": "to cache",
    "cache_write_1h_tokens": "to cache for 1 h",
    "output_tokens": "out",
}


class AccessLog:
    """Writes a line for each exchange.

    A line costs some 25 microseconds, more than all else of its record, so it is written only where it was asked for.
    """

    _log = Logger()

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        """Write the lines of some exchanges."""
        for exchange in exchanges:
            # Both are called by what writes the log, and only if it wants them.
            self._log.info("{line()}", line=partial(line, exchange), as_json=partial(fields, exchange))


def line(exchange: Exchange) -> str:
    """Tell a person of an exchange; what is not known is left out.

    Nothing here was chosen freely by a client: the model is the one that answered; the one that was asked for may be any text.
    """
    told = [
        f"{exchange.client or '-'} {exchange.method} {exchange.path} -> {exchange.upstream} {exchange.status or '-'}",
        f"{_what(exchange)} in {exchange.duration or 0.0:.3f} s",
        "open" if exchange.ending is None else exchange.ending.value,
    ]
    if exchange.reading is not None:
        told.extend(_used(exchange.reading))
    if exchange.cost is not None:
        told.append(f"{exchange.cost // 1_000_000}.{exchange.cost % 1_000_000:06d} USD")
    return f"{', '.join(told)} [{exchange.id}]"


def fields(exchange: Exchange) -> dict[str, Any]:
    """All that is known of an exchange, as JSON has it; what is unknown is left out.

    Times are in seconds, ``at`` in UTC, sizes in bytes, and the cost in micro-dollars. Each id of a session or an agent is
    under ``labels.`` and its header's name.
    """
    found: dict[str, Any] = {
        "id": exchange.id,
        "at": rfc3339(exchange.at),
        "client": exchange.client,
        "upstream": exchange.upstream,
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "ending": None if exchange.ending is None else exchange.ending.value,
        "asked_model": exchange.asked_model,
        "received": exchange.received,
        "sent": exchange.sent,
        "first_byte": _seconds(exchange.first_byte),
        "first_token": _seconds(exchange.first_token),
        "duration": _seconds(exchange.duration),
        "reused": exchange.reused,
        "upstream_request_id": exchange.upstream_request_id,
        "socket": exchange.socket,
        "cost": exchange.cost,
    }
    reading = exchange.reading
    if reading is not None:
        found.update(
            answered_model=reading.model,
            usage_source=reading.source,
            outcome=reading.outcome,
            error=reading.error,
            response_id=reading.response_id,
            stop_reason=reading.stop_reason,
            service_tier=reading.service_tier,
        )
        if reading.usage is not None:
            found.update((name, getattr(reading.usage, name)) for name in _USAGE)
    found.update((f"labels.{name}", value) for name, value in exchange.labels.items())
    return {name: value for name, value in found.items() if value is not None}


def _what(exchange: Exchange) -> str:
    return f"{exchange.sent} bytes" if exchange.socket is None else f"a turn of {exchange.socket}"


def _used(reading: Reading) -> Iterator[str]:
    if reading.model is not None:
        yield reading.model
    usage = reading.usage
    if usage is not None:
        for name, words in _SHOWN.items():
            count = getattr(usage, name)
            if count:
                yield f"{count} {words}"


def _seconds(seconds: float | None) -> float | None:
    """To the microsecond: what comes behind that is the noise of a subtraction."""
    return None if seconds is None else round(seconds, 6)
