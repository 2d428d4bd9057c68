"""One forwarded request, or one turn of a WebSocket: what is known about it, and how it ended.

An Exchange is filled in by the proxy while a request is served, and handed to an observer once, when it is over, whatever way
it ended. It never tells of a query, a prompt or an answer; only its tap holds parts of the answer, until that has been read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from enum import Enum
from random import getrandbits
from types import MappingProxyType

import attrs

from llmproxy.usage import Reading, Tap, free

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MILLISECOND = timedelta(milliseconds=1)
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Ending(Enum):
    """How an exchange ended."""

    COMPLETED = "completed"  # the client was sent all that the upstream sent
    REFUSED = "refused"  # by this proxy
    CLIENT_LEFT = "client left"
    UPSTREAM_FAILED = "upstream failed"
    UPSTREAM_SILENT = "upstream silent"
    PROXY_FAILED = "proxy failed"

    __hash__ = object.__hash__  # they are counted by it, and Enum's own is a function in Python


def new_id(begun_ns: int) -> str:
    """Make an id of 26 characters: hexadecimal, the milliseconds of the Unix time first, so that ids sort by time."""
    return f"{begun_ns // 1_000_000:012x}{getrandbits(56):014x}"


def first_id(at: datetime) -> str:
    """The first id that what begins within the millisecond of a time could have."""
    return f"{max(0, (at - _EPOCH) // _MILLISECOND):012x}{0:014x}"


def last_id(at: datetime) -> str:
    """The last id that what begins within the millisecond of a time could have."""
    return f"{first_id(at)[:12]}{2**56 - 1:014x}"


@attrs.define
class Exchange:
    """What is known about one request to an upstream, be it forwarded or refused, or of one turn of a WebSocket.

    :ivar client: the name of the client whose token it carried; ``None`` where it carried none that is known.
    :ivar path: without the query, which may hold keys.
    :ivar started: when its headers were there, in seconds by the reactor's clock.
    :ivar begun_ns: the same, in nanoseconds of the Unix time.
    :ivar id: what the client is told as ``x-llmproxy-request-id``; see :func:`new_id`.
    :ivar status: what the client was answered; ``None`` where it left before.
    :ivar asked_model: the model that the request named, where that was to be seen.
    :ivar received: bytes of the request's body.
    :ivar sent: bytes of the response's body.
    :ivar first_byte: seconds from the start to the response's headers.
    :ivar first_token: seconds from the start to the first token of the answer.
    :ivar duration: seconds from the start to the end.
    :ivar reused: whether the connection to the upstream had carried a request before.
    :ivar upstream_request_id: what the upstream calls it.
    :ivar socket: of a turn, the id of the exchange whose WebSocket carried it.
    :ivar labels: ids of sessions and agents, by the names of the headers that carried them.
    :ivar tap: what reads the answer while it passes.
    :ivar cut_off: this proxy ends it before its time, since it is being stopped.
    :ivar end: makes it be over, with an ending, whatever its connections do; ``None`` where nobody forwards it.
    :ivar cost: in micro-dollars, 1e-6 USD; ``None`` where it is not known.
    """

    client: str | None
    upstream: str
    method: str
    path: str
    started: float
    begun_ns: int = attrs.Factory(time.time_ns)
    id: str = attrs.Factory(lambda self: new_id(self.begun_ns), takes_self=True)
    status: int | None = None
    asked_model: str | None = None
    received: int = 0
    sent: int = 0
    first_byte: float | None = None
    first_token: float | None = None
    duration: float | None = None
    reused: bool | None = None
    upstream_request_id: str | None = None
    socket: str | None = None
    labels: Mapping[str, str] = _NO_LABELS
    cost: int | None = None
    ending: Ending | None = None
    cut_off: bool = False
    end: Callable[[Ending], None] | None = None
    _reading: Reading | None = None
    tap: Tap | None = None

    @property
    def at(self) -> datetime:
        """When it began, in UTC."""
        return _EPOCH + timedelta(microseconds=self.begun_ns // 1000)

    @property
    def reading(self) -> Reading | None:
        """What the answer said of itself, where that was read; of an exchange that is over.

        It is put together when it is first asked for: off the request's path.
        """
        if self.tap is not None:
            tap, self.tap = self.tap, None
            self._reading = tap.close(self.ending is Ending.COMPLETED)
        return self._reading

    def note_free(self) -> None:
        """Note that this is certain to cost nothing, since the upstream heard nothing of it."""
        self._reading = free(whole=False)


Observer = Callable[[Exchange], None]
