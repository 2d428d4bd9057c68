"""The pace of a client's connection: when the client is read, and how long it may keep us waiting.

It is read while there is somebody to take what comes, and else only looked for, to notice that it leaves. What becomes of one
that took too long is for :mod:`llmproxy.http.channel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from llmproxy.deadline import Clock, Deadline
from llmproxy.http.departure import Departure
from llmproxy.http.limits import DownstreamLimits
from llmproxy.http.request_reader import HEAD, UPGRADE, RequestReader

AHEAD = 2  # requests: the one that is being answered, and the one behind it


@implementer(IPushProducer)
class Pace:
    """The pace of one connection.

    Between the producers of responses it is the transport's own, so that no requests are read whose answers nobody reads.

    :param requests: those that are not answered yet.
    :param serve: answers the next of them, now that the client has read.
    :param deadline: until when the client may keep us waiting.
    :param clock: for looking whether a client that is not read has left.
    :ivar clogged: the client does not read what it was answered.
    :ivar paused: the client is not read.
    :ivar ended: no requests are read any more, and the pace is another's.
    """

    __slots__ = (
        "_clock",
        "_deadline",
        "_departure",
        "_limits",
        "_reader",
        "_requests",
        "_serve",
        "_transport",
        "clogged",
        "ended",
        "paused",
    )

    def __init__(
        self,
        transport: Any,
        reader: RequestReader,
        requests: Sequence[Any],
        serve: Callable[[], None],
        deadline: Deadline,
        clock: Clock,
        limits: DownstreamLimits,
    ) -> None:
        self._transport = transport
        self._reader = reader
        self._requests = requests
        self._serve = serve
        self._deadline = deadline
        self._clock = clock
        self._limits = limits
        self._departure: Departure | None = None
        self.clogged = False
        self.paused = False
        self.ended = False

    def keep(self) -> None:
        """Read from the client when there is somebody to take what comes, and else only to notice that it leaves."""
        if self.ended:
            return
        reader, waiting = self._reader, len(self._requests)
        body = None if reader.incoming is None else reader.incoming.body
        if self.clogged:
            wanted = False
            self._deadline.set(self._limits.close_time)
        elif body is not None:
            wanted = body.wants
            if body.expected:
                self._deadline.set(self._limits.body_idle)
            else:
                self._deadline.clear()
        elif reader.reading is UPGRADE:
            wanted = not reader.early
            self._deadline.clear()
        else:
            wanted = waiting < AHEAD
            if waiting and (not wanted or reader.head_size == 0):
                self._deadline.clear()  # the client owes us nothing, or a head of which we read no more
            elif self.paused and reader.head_size and reader.reading is HEAD:
                self._deadline.set(self._limits.header_time)
        if wanted is self.paused:
            self.paused = not wanted
            if self._departure is None:
                self._departure = Departure(self._clock, self._transport, self._transport.abortConnection)
            if wanted:
                self._departure.rest()
                self._transport.resumeProducing()
            else:
                self._transport.pauseProducing()
                self._departure.watch()

    def pauseProducing(self) -> None:
        """The client does not read what it was answered: take nothing more from it."""
        self.clogged = True
        self.keep()

    def resumeProducing(self) -> None:
        """It has read."""
        self.clogged = False
        self._serve()
        self.keep()

    def stopProducing(self) -> None:
        """The connection is lost, of which the channel is told."""

    def rest(self) -> None:
        """End, and look for the client no more."""
        self.ended = True
        self._serve = _nothing  # who is called refers back to this
        if self._departure is not None:
            self._departure.rest()


def _nothing() -> None:
    """Take the place of a function that will not be called any more."""
