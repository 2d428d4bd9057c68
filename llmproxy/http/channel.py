"""A client's connection: whose turn it is to be served, what becomes of what took too long, and when it ends.

A request is rendered at the end of its headers, and its body follows as a stream. Pipelined requests are answered in order.
What is not exactly HTTP/1.1 is refused, and the connection closed: after a message that two readers could understand
differently, nothing on that connection can be trusted (RFC 9112 section 11.2). What is a request is decided in
:mod:`llmproxy.http.request_reader`, when the client is read in :mod:`llmproxy.http.pace`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from llmproxy import errors
from llmproxy.deadline import Deadline
from llmproxy.http.body import BrokenBody, RequestBody, SilentBody
from llmproxy.http.farewell import Farewell
from llmproxy.http.fields import Fields
from llmproxy.http.pace import AHEAD, Pace
from llmproxy.http.refused_request import RefusedRequest
from llmproxy.http.request import Request
from llmproxy.http.request_reader import BODY, HEAD, NOTHING, TUNNEL, UPGRADE, RequestReader
from llmproxy.http.rules import Refused

if TYPE_CHECKING:
    from llmproxy.http.server import Entrance, Site

# Bytes that are parsed at once, though more were read: in 256 KiB, there can be thousands of requests.
_PIECE = 8 * 1024
_PIECE_OF_BODY = 64 * 1024


class Channel(Protocol):
    """One client's connection; made by :class:`~llmproxy.http.server.Site`.

    :ivar entrance: the way it came.
    :ivar requests: those that are not answered yet, in their order; the first is being answered.
    """

    __slots__ = (
        "_closing",
        "_deadline",
        "_farewell",
        "_host",
        "_limits",
        "_pace",
        "_peer",
        "_reader",
        "_served",
        "_serving",
        "_tunnel",
        "_unread",
        "connected",
        "entrance",
        "factory",
        "peer",
        "requests",
        "site",
        "transport",
        "write",
    )

    site: Site
    entrance: Entrance
    transport: Any
    peer: str
    write: Callable[[bytes], None]

    def __init__(self) -> None:
        self.connected = 0
        self.peer = ""
        self.requests: list[Request] = []  # short, and a deque would be larger than all else here
        self._served: Request | None = None
        self._serving = False
        self._tunnel: Any = None
        self._closing = False
        self._farewell: Farewell | None = None
        self._unread = b""  # what came behind as many requests as are read ahead

    def __repr__(self) -> str:
        return f"<Channel reading {self._reader.reading.value}, {len(self.requests)} requests>"

    # What the transport calls

    def connectionMade(self) -> None:
        """Wait for the first request."""
        self.transport.setTcpNoDelay(True)
        self._peer, self._host = self.transport.getPeer(), self.transport.getHost()
        self.write = self.transport.write
        self._limits = self.site.limits
        self._reader = RequestReader(self._begin, self._limits)
        self._deadline = Deadline(self.site.clock, self._too_late)
        self._deadline.set(self._limits.header_time)
        self._pace = Pace(
            self.transport,
            self._reader,
            self.requests,
            self._serve,
            self._deadline,
            self.site.clock,
            self._limits,
        )
        self.transport.registerProducer(self._pace, True)
        self.site.opened(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse what came, then serve: so what came with a request's headers is known when it is rendered."""
        if self._tunnel is not None:
            self._tunnel.dataReceived(data)
            return
        reader = self._reader
        if reader.reading is NOTHING:
            return
        if reader.reading is UPGRADE:
            reader.early += data
        else:
            self._read(self._unread + data if self._unread else data)
            self._serve()
        self._pace.keep()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Tell all that was in progress."""
        self._deadline.close()
        self._pace.rest()
        if self._tunnel is not None:
            self._tunnel.connectionLost(reason)
        self._closing = True
        self._reader.close()
        self._served = None
        self._unread = b""
        requests, self.requests = self.requests, []
        for request in requests:
            # First: whose body fails while the client seems to be there is answered.
            request.connectionLost(reason)
            if request.body is not None:
                request.body.fail(BrokenBody("the client left"))
        self.site.closed(self)

    # Requests

    def _read(self, data: bytes) -> None:
        """Parse what came, and no more of it than makes a few requests: each takes a hundred times its bytes in memory."""
        reader = self._reader
        try:
            while True:
                most = _PIECE_OF_BODY if reader.reading is BODY else _PIECE
                piece, data = (data, b"") if len(data) <= most else (data[:most], data[most:])
                if reader.feed(piece):
                    self._deadline.set(self._limits.header_time)
                if not data or (reader.reading is HEAD and len(self.requests) >= AHEAD):
                    break
                if reader.reading is UPGRADE:
                    reader.early += data
                    data = b""
                    break
        except Refused as refused:
            data = b""
            self._refuse(refused)
        self._unread = data

    def _begin(
        self, method: bytes, target: bytes, version: bytes, fields: Fields, length: Any, keep_alive: bool
    ) -> Request:
        request: Request = self.site.requestFactory(self)
        request.method, request.uri, request.clientproto = method, target, version
        request.path = target.partition(b"?")[0]
        request.requestHeaders = fields
        request.keep_alive = keep_alive
        if length is not None:
            request.body = RequestBody(length, request.say_continue, self._pace.keep)
        self.requests.append(request)
        return request

    def _refuse(self, refused: Refused) -> None:
        """Read no further. Where the headers were good, the request is in progress, and fails by its body."""
        self._deadline.clear()
        if self._reader.stop(BrokenBody(refused.message)) is None:
            self.requests.append(RefusedRequest(self, refused, self._reader.fields))

    def _serve(self) -> None:
        """Render the first request that is not answered, one after the other."""
        if self._serving:
            return  # called by a request that is answered at once: the loop below goes on, as deep as it was
        self._serving = True
        while not (self._closing or self._pace.clogged):
            if self.requests and self.requests[0] is not self._served:
                self._served = self.requests[0]
                self._served.process()
            elif self._unread and len(self.requests) < AHEAD:
                self._read(self._unread)
            else:
                break
        self._serving = False

    def may_persist(self, request: Request) -> bool:
        """Whether the connection stays open after a request's response."""
        return (
            request.keep_alive and not self._closing and not self.site.draining and not self.entrance.draining
        )

    def requestDone(self, request: Request) -> None:
        """A response is written: go on with the next request, or close."""
        self._served = None
        del self.requests[0]
        reader = self._reader
        if not self.may_persist(request):
            self.requests.clear()  # the client was told, or told us, that this was the last
            uploading = request.body is not None and not request.body.over
            self._close(linger=uploading or reader.reading is NOTHING)
            return
        if reader.reading is UPGRADE and not self.requests:
            early = reader.take_early(HEAD)  # the other protocol was refused, so this is HTTP after all
            if early:
                self.dataReceived(early)
        if not self.requests and reader.reading is HEAD and reader.head_size == 0:
            self._deadline.set(self._limits.keep_alive)
        if self.requests or self._pace.paused:
            self._serve()
            self._pace.keep()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let the transport set the pace of a response."""
        self.transport.unregisterProducer()
        if self._pace.clogged:  # from here on it is the producer that waits
            self._pace.clogged = False
            self._pace.keep()
        self.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Let it set the pace of the next requests."""
        self.transport.unregisterProducer()
        if not self._closing:
            self.transport.registerProducer(self._pace, True)

    def handOver(self, protocol: Any) -> None:
        """Leave HTTP: what comes from now on goes to another protocol."""
        early = self._reader.take_early(TUNNEL)
        self._deadline.close()
        self._pace.rest()
        self.requests.clear()
        self.transport.unregisterProducer()
        self._tunnel = protocol
        protocol.makeConnection(self.transport)
        if early:
            protocol.dataReceived(early)

    # Ending

    def _too_late(self) -> None:
        if self._farewell is not None:
            self._farewell.too_late()
        elif self._pace.clogged:
            self.abortConnection()
        elif self._reader.reading is BODY:
            self._reader.stop(SilentBody(f"The client sent nothing for {self._limits.body_idle:g} seconds."))
        elif self._reader.head_size:
            took = f"The request's head took over {self._limits.header_time:g} seconds."
            self._refuse(Refused(errors.REQUEST_TIMEOUT, took))
            self._serve()
        else:
            self._close(linger=False)

    def drain(self) -> None:
        """Take no further request: close at once where none is in progress."""
        if not self.requests and self._reader.head_size == 0 and self._tunnel is None:
            self._close(linger=False)

    def loseConnection(self) -> None:
        """Close after what was written is sent."""
        self._close(linger=False)

    def abortConnection(self) -> None:
        """Close at once."""
        self.transport.abortConnection()

    def _close(self, linger: bool) -> None:
        if not self._closing:
            self._closing = self._pace.ended = True
            self._reader.reading = NOTHING
            self.transport.unregisterProducer()  # one would hold up its close
            self._farewell = Farewell(self.transport, self._deadline, self._limits, linger)

    # What twisted.web's Request uses of a channel

    def getPeer(self) -> Any:
        """The client's address."""
        return self._peer

    def getHost(self) -> Any:
        """Our own address."""
        return self._host
