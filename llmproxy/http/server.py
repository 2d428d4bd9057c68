"""The server side of the engine: a Site whose connections are our own channels, and the entrances to it.

The Site counts and bounds all connections together. An entrance stands before it for each listener, so that a listener can be
closed and what came through it end, while the others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.web import server
from twisted.web.resource import IResource
from zope.interface import implementer

from llmproxy.deadline import SharedClock
from llmproxy.http.channel import Channel
from llmproxy.http.interfaces import IDoor
from llmproxy.http.limits import DownstreamLimits
from llmproxy.http.request import Request
from llmproxy.http.sockets import places


class Site(server.Site):
    """Serves a Resource tree.

    :param resource: the root of the tree.
    :param reactor: for the timeouts of connections.
    :ivar clock: for the deadlines of all connections.
    :ivar draining: no further request is taken on connections that are open.
    :ivar mark: called with each request whose response's headers are about to be written, so that it may add to them.
    """

    protocol = Channel  # type: ignore[assignment]
    requestFactory = Request  # type: ignore[assignment]
    displayTracebacks = False
    noisy = False

    def __init__(self, resource: IResource, reactor: Any, limits: DownstreamLimits | None = None) -> None:
        super().__init__(resource, parsePOSTFormSubmission=False, reactor=reactor)
        self.limits = limits or DownstreamLimits()
        self.draining = False
        self.mark: Callable[[Request], None] | None = None
        self._channels: set[Channel] = set()
        self._drained: Deferred[None] | None = None
        self._itself = Entrance(self)
        self.clock = SharedClock(reactor)
        self._from: Counter[str] = Counter()  # connections by host, those that are expected included
        self._expected = 0

    def startFactory(self) -> None:
        """Start no access log: the stock one holds query strings, and those may hold keys."""

    def stopFactory(self) -> None:
        """See :meth:`startFactory`."""

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS clients may choose from; twisted.web would offer HTTP/2 where the package for it is installed."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> Any:
        """Take a connection, unless there are too many, or too many from there."""
        if self.crowded or not self._has_room(_host(addr)):
            return None
        channel: Any = super().buildProtocol(addr)
        channel.entrance = self._itself
        return channel

    @property
    def crowded(self) -> bool:
        """Clients have as many descriptors as they may: each may need another one, for its upstream."""
        return len(self._channels) + self._expected >= places()

    def expect(self, host: str) -> bool:
        """See :class:`~llmproxy.http.interfaces.IDoor`."""
        if not self._has_room(host):
            return False
        self._expected += 1
        self._from[host] += 1
        return True

    def expect_no_more(self, host: str) -> None:
        """See :class:`~llmproxy.http.interfaces.IDoor`."""
        self._expected -= 1
        self._leave(host)

    def opened(self, channel: Channel) -> None:
        """A connection is there."""
        self._channels.add(channel)
        self._from[_host(channel.getPeer())] += 1
        channel.peer = _host(channel.getPeer())

    def closed(self, channel: Channel) -> None:
        """A connection is gone."""
        self._channels.discard(channel)
        self._leave(channel.peer)
        if not self._channels:
            self.clock.rest()
        self._tell_drained()

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._channels)

    def drain(self) -> Deferred[None]:
        """Close the idle connections, and the others when their requests are answered; fires when none is left."""
        self.draining = True
        for channel in list(self._channels):
            channel.drain()
        drained = self._drained = Deferred()
        self._tell_drained()
        return drained

    def drain_those_of(self, entrance: Entrance) -> None:
        """Do as :meth:`drain` does with the connections that came through one entrance."""
        for channel in list(self._channels):
            if channel.entrance is entrance:
                channel.drain()

    def abort(self) -> None:
        """Close all connections at once."""
        for channel in list(self._channels):
            channel.abortConnection()

    def _has_room(self, host: str) -> bool:
        return (
            len(self._channels) + self._expected < self.limits.connections
            and self._from[host] < self.limits.connections_per_address
        )

    def _leave(self, host: str) -> None:
        self._from[host] -= 1
        if not self._from[host]:
            del self._from[host]

    def _tell_drained(self) -> None:
        drained = self._drained
        if drained is not None and not self._channels:
            self._drained = None
            drained.callback(None)


@implementer(IDoor)
class Entrance(Factory):
    """What a listener makes its connections with. They are the Site's, and know which way they came.

    :ivar draining: no further request is taken on connections that came this way.
    """

    noisy = False

    def __init__(self, site: Site) -> None:
        self.draining = False
        self._site = site

    def buildProtocol(self, addr: Any) -> Any:
        """Take a connection, unless the Site refuses it."""
        channel = self._site.buildProtocol(addr)
        if channel is not None:
            channel.entrance = self
        return channel

    @property
    def limits(self) -> DownstreamLimits:
        """The Site's."""
        return self._site.limits

    @property
    def crowded(self) -> bool:
        """See :attr:`Site.crowded`."""
        return self._site.crowded

    def expect(self, host: str) -> bool:
        """See :meth:`Site.expect`."""
        return self._site.expect(host)

    def expect_no_more(self, host: str) -> None:
        """See :meth:`Site.expect_no_more`."""
        self._site.expect_no_more(host)

    def drain(self) -> None:
        """Close the connections that came this way: the idle ones, and the others when their requests are answered."""
        self.draining = True
        self._site.drain_those_of(self)


def _host(address: IAddress) -> str:
    """What connections are counted by: an IP address; all local sockets are one."""
    return getattr(address, "host", "")
