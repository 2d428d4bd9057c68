"""What is not known of an exchange that is over: which tokens it used, and what it cost.

What is unknown is in no sum, and is counted beside them. :mod:`llmproxy.ledger.report` has the same two rules in SQL, for the
rows of a ledger, so that its sums and the metrics count the same; a test holds them together.
"""

from __future__ import annotations

from llmproxy.exchange import Ending, Exchange

# What was read, without usage that can be relied on.
_NOT_READ = frozenset({"absent", "too_large", "undecodable"})
_NOT_ANSWERED = frozenset({Ending.UPSTREAM_SILENT, Ending.UPSTREAM_FAILED, Ending.PROXY_FAILED})


def usage_is_unknown(exchange: Exchange) -> bool:
    """Whether an exchange may have used tokens that are not known, or not all of them.

    A POST may, and a WebSocket, of status 101. What was refused, by this proxy or by the upstream, used none that are billed,
    and neither did what is not billable, such as counting tokens.
    """
    status = exchange.status
    if exchange.method != "POST" and status != 101:
        return False
    reading = exchange.reading
    if reading is not None and reading.usage is not None and not reading.usage.billable:
        return False
    if reading is None or reading.source == "none":
        # It is of a kind that nobody reads, or the client left before there was any.
        unknown = status is None or status == 101 or 200 <= status < 300
    else:
        unknown = (status is None or status < 400) and (
            reading.source in _NOT_READ or (reading.source == "reported" and reading.outcome != "complete")
        )
    # No answer came, and the status is this proxy's own; below 500, it was the client that sent no whole request. What was
    # never sent is not billable.
    return unknown or (
        status is not None
        and status >= 500
        and exchange.first_byte is None
        and exchange.ending in _NOT_ANSWERED
    )


def cost_is_unknown(exchange: Exchange, usage_unknown: bool) -> bool:
    """Whether it is unknown what an exchange cost, which may be nothing.

    :param usage_unknown: what :func:`usage_is_unknown` says of it.
    """
    if exchange.cost is not None:
        return False
    reading = exchange.reading
    if usage_unknown or reading is None:
        return usage_unknown
    return reading.source == "reported" and (reading.usage is None or reading.usage.billable)
