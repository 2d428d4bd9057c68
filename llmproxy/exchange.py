"""One forwarded request: what is known about it, and how it ended.

An Exchange is filled in by the proxy while a request is served, and handed to observers once, when it is over, whatever way
it ended. It never holds a query, a header or a body.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import attrs
from twisted.logger import Logger


class Ending(Enum):
    """How an exchange ended."""

    COMPLETED = "completed"  # the client was sent all that the upstream sent
    REFUSED = "refused"  # by this proxy
    CLIENT_LEFT = "client left"
    UPSTREAM_FAILED = "upstream failed"
    UPSTREAM_SILENT = "upstream silent"
    PROXY_FAILED = "proxy failed"


@attrs.define
class Exchange:
    """What is known about one forwarded request.

    :ivar client: the name of the client whose token it carried.
    :ivar path: without the query, which may hold keys.
    :ivar started: seconds, by the reactor's clock.
    :ivar status: what the client was answered; ``None`` where it left before.
    :ivar first_byte: seconds from the start to the response's headers.
    :ivar duration: seconds from the start to the end.
    :ivar sent: bytes of the response's body.
    """

    client: str
    upstream: str
    method: str
    path: str
    started: float
    status: int | None = None
    first_byte: float | None = None
    duration: float | None = None
    sent: int = 0
    ending: Ending | None = None


Observer = Callable[[Exchange], None]


class AccessLog:
    """An observer that writes one line for each exchange."""

    _log = Logger()

    def __call__(self, exchange: Exchange) -> None:
        """Write the line."""
        self._log.info(
            "{client} {method} {path} -> {upstream} {status}, {sent} bytes in {duration:.3f} s, {ending}",
            client=exchange.client,
            method=exchange.method,
            path=exchange.path,
            upstream=exchange.upstream,
            status=exchange.status or "-",
            sent=exchange.sent,
            duration=exchange.duration or 0.0,
            ending=exchange.ending.value if exchange.ending else "open",
        )
