"""A client's connection: HTTP/1.1 from the server's side.

llhttp reads, strictly; this module decides what is a request, when it is rendered, and how long anything may take. A request is
rendered at the end of its headers, and its body follows as a stream. Pipelined requests are answered in order. What is not
exactly HTTP/1.1 is refused, and the connection closed: after a message that two readers could understand differently,
nothing on that connection can be trusted (RFC 9112 section 11.2).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

import httptools
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy import errors
from llmproxy.deadline import Deadline
from llmproxy.http import rules
from llmproxy.http.body import BrokenBody, RequestBody, SilentBody
from llmproxy.http.departure import Departure
from llmproxy.http.fields import Fields, Pair
from llmproxy.http.request import Request
from llmproxy.http.rules import Refused

if TYPE_CHECKING:
    from llmproxy.http.server import Entrance, Site


class Reading(Enum):
    """What the next bytes of the client belong to."""

    HEAD = "a request's head"
    BODY = "a request's body"
    UPGRADE = "a protocol that the upstream has not agreed to yet"
    TUNNEL = "a tunnel"
    NOTHING = "nothing: what comes is dropped"


class Channel(Protocol):
    """One client's connection; made by :class:`~llmproxy.http.server.Site`.

    :ivar entrance: the way it came.
    :ivar requests: those that are not answered yet, in their order; the first is being answered.
    """

    __slots__ = (
        "_begun",
        "_behind",
        "_closing",
        "_deadline",
        "_departure",
        "_early",
        "_head_size",
        "_host",
        "_incoming",
        "_limits",
        "_lingering",
        "_method",
        "_method_start",
        "_pairs",
        "_parser",
        "_paused",
        "_peer",
        "_reframing",
        "_refusal",
        "_served",
        "_serving",
        "_target",
        "_tunnel",
        "connected",
        "entrance",
        "factory",
        "peer",
        "reading",
        "requests",
        "site",
        "transport",
        "write",
    )

    _log = Logger()
    site: Site
    entrance: Entrance
    transport: Any
    peer: str
    write: Callable[[bytes], None]

    def __init__(self) -> None:
        self.connected = 0
        self.peer = ""
        self.requests: list[Request] = []  # short, and a deque would be larger than all else here
        self.reading = Reading.HEAD
        self._parser = httptools.HttpRequestParser(self)
        self._head_size = 0
        self._begun = False
        self._behind = False
        self._method = b""
        self._method_start = b""
        self._target = b""
        self._pairs: list[Pair] = []
        self._incoming: Request | None = None
        self._served: Request | None = None
        self._refusal: Refused | None = None
        self._reframing = False
        self._serving = False
        self._early = b""
        self._tunnel: Any = None
        self._paused = False
        self._departure: Departure | None = None
        self._lingering = False
        self._closing = False

    def __repr__(self) -> str:
        return f"<Channel reading {self.reading.value}, {len(self.requests)} requests>"

    # What the transport calls

    def connectionMade(self) -> None:
        """Wait for the first request."""
        self.transport.setTcpNoDelay(True)
        self._peer, self._host = self.transport.getPeer(), self.transport.getHost()
        self.write = self.transport.write
        self._limits = self.site.limits
        self._deadline = Deadline(self.site.clock, self._too_late)
        self._deadline.set(self._limits.header_time)
        self.site.opened(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse what came, then serve: so what came with a request's headers is known when it is rendered."""
        if self.reading is Reading.TUNNEL:
            self._tunnel.dataReceived(data)
            return
        if self.reading is Reading.UPGRADE:
            self._early += data
            self._pace()
            return
        if self.reading is Reading.NOTHING:
            return
        if self.reading is Reading.HEAD and self._head_size == 0:
            self._deadline.set(self._limits.header_time)
        self._head_size += len(data)
        if not self._begun:
            self._behind = False
            self._method, data, self._method_start = rules.known_method(self._method_start + data)
        try:
            self._parse(data)
            if self._head_size > self._limits.headers:
                what = "headers" if self.reading is Reading.HEAD else "trailers or chunk extensions"
                raise Refused(
                    errors.HEADERS_TOO_LARGE, f"The {what} are larger than {self._limits.headers} bytes."
                )
        except Refused as refused:
            self._refuse(refused)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(Refused(errors.NOT_IMPLEMENTED, "The request method is none that is known here."))
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause
                if isinstance(cause, Refused)
                else Refused(errors.BAD_REQUEST, f"Not HTTP/1.1: {error}.")
            )
        if self._begun and self.reading is Reading.HEAD and self._head_size == 0:
            self._head_size = 1  # behind a whole request, the next has begun
            self._deadline.set(self._limits.header_time)
        self._serve()
        self._pace()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Tell all that was in progress."""
        self._deadline.close()
        if self._departure is not None:
            self._departure.rest()
        if self.reading is Reading.TUNNEL:
            self._tunnel.connectionLost(reason)
        self.reading = Reading.NOTHING
        self._closing = True
        del self._parser  # it refers back to this, as these do
        self._served = self._incoming = None
        requests, self.requests = self.requests, []
        for request in requests:
            # First: whose body fails while the client seems to be there is answered.
            request.connectionLost(reason)
            if request.body is not None:
                request.body.fail(BrokenBody("the client left"))
        self.site.closed(self)

    # What the parser calls

    def on_message_begin(self) -> None:
        self._begun = True

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > self._limits.target:
            raise Refused(
                errors.TARGET_TOO_LONG, f"The request target is longer than {self._limits.target} bytes."
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        # Optional whitespace is not part of a value (RFC 9110 section 5.5); llhttp takes off only what stands before it.
        self._pairs.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._reframing:
            self._pairs, self._target = [], b""
            return
        fields, self._pairs = Fields(self._pairs), []
        target, self._target = self._target, b""
        size, self._head_size = self._head_size, 0
        # Of a head behind another message, in the same bytes, the size is not known.
        if (size > self._limits.headers or self._behind) and sum(
            len(n) + len(v) + 4 for n, v in fields.pairs
        ) > self._limits.headers:
            raise Refused(
                errors.HEADERS_TOO_LARGE, f"The headers are larger than {self._limits.headers} bytes."
            )
        method, self._method = self._method or self._parser.get_method(), b""
        request = self._request(method, rules.origin_form(target), fields)
        self.reading = Reading.BODY
        self._incoming = request
        self.requests.append(request)

    # What llhttp takes for an upgrade

    def _upgrade_offered(self, rest: bytes) -> None:
        """Go on after a request that offered another protocol; llhttp takes all that follows for that one.

        A WebSocket handshake waits for the upstream's answer. Any other offer is declined by going on with HTTP/1.1 (RFC 9110
        section 7.8); that request may have a body. llhttp has found its framing good, so that is given to a new parser as a
        head of its own, and the rest after it.
        """
        request = self.requests[-1]
        # HTTP/1.0 knows no upgrade (RFC 9110 section 7.8).
        if request.clientproto == b"HTTP/1.1" and rules.wants_websocket(
            request.method, request.requestHeaders
        ):
            request.websocket = True
            self.reading = Reading.UPGRADE
            self._incoming = None
            self._early = rest
            self._deadline.clear()
            return
        request.requestHeaders.removeHeader(b"upgrade")  # so that nobody above takes the offer up
        self._parser = httptools.HttpRequestParser(self)
        self._reframing = True
        framing = [pair for pair in request.requestHeaders.pairs if pair[0].lower() in rules.FRAMING]
        self._incoming = request
        self.reading = Reading.BODY
        self._parser.feed_data(
            b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in framing) + b"\r\n"
        )
        self._reframing = False
        self._parse(rest)

    def handOver(self, protocol: Any) -> None:
        """Leave HTTP: what comes from now on goes to another protocol."""
        self.reading = Reading.TUNNEL
        self._deadline.close()
        self.requests.clear()
        self._tunnel = protocol
        protocol.makeConnection(self.transport)
        early, self._early = self._early, b""
        if early:
            protocol.dataReceived(early)

    def on_body(self, data: bytes) -> None:
        self._head_size = 0  # what is counted now is what is not body: chunk extensions and trailers
        if self._incoming is not None and self._incoming.body is not None:
            self._incoming.body.feed(data)

    def on_message_complete(self) -> None:
        self._begun = False
        self._behind = True
        self._head_size = 0
        if self._parser.should_upgrade():
            return  # llhttp sees no body behind an offer to upgrade; see _upgrade_offered
        request, self._incoming = self._incoming, None
        if request is not None and request.body is not None:
            trailers, self._pairs = self._pairs, []
            request.body.end(Fields(trailers) if trailers else None)
        self.reading = Reading.HEAD
        self._deadline.clear()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        # Not within the handler: what is raised there would have this exception, not a refusal, as its context.
        self._upgrade_offered(rest)

    def _request(self, method: bytes, target: bytes, fields: Fields) -> Request:
        version = b"HTTP/" + self._parser.get_http_version().encode("ascii")
        length = rules.body_length(method, version, fields)
        request: Request = self.site.requestFactory(self)
        request.method, request.uri, request.clientproto = method, target, version
        request.path = target.partition(b"?")[0]
        request.requestHeaders = fields
        request.keep_alive = self._parser.should_keep_alive()
        if length is not None:
            request.body = RequestBody(length, lambda: self._wanted(request), self._pace)
        return request

    # Serving

    def _serve(self) -> None:
        """Render the first request that is not answered, one after the other."""
        if self._serving:
            return  # called by a request that is answered at once: the loop below goes on, as deep as it was
        self._serving = True
        while self.requests and self.requests[0] is not self._served and not self._closing:
            self._served = self.requests[0]
            self._served.process()
        self._serving = False
        if self._refusal is not None and not self.requests and not self._closing:
            refusal, self._refusal = self._refusal, None
            self._answer_refusal(refusal)

    def may_persist(self, request: Request) -> bool:
        """Whether the connection stays open after a request's response."""
        draining = self.site.draining or self.entrance.draining
        return request.keep_alive and not self._closing and not draining

    def requestDone(self, request: Request) -> None:
        """A response is written: go on with the next request, or close."""
        del self.requests[0]
        if not self.may_persist(request):
            self.requests.clear()  # the client was told, or told us, that this was the last
            uploading = request.body is not None and not request.body.over
            self._close(linger=uploading or self.reading is Reading.NOTHING)
            return
        if self.reading is Reading.UPGRADE and not self.requests:
            self._declined()
        if not self.requests and self.reading is Reading.HEAD and self._head_size == 0:
            self._deadline.set(self._limits.keep_alive)
        self._serve()
        self._pace()

    def _declined(self) -> None:
        """The other protocol was refused, so what came behind the handshake is HTTP after all."""
        self.reading = Reading.HEAD
        early, self._early = self._early, b""
        if early:
            self.dataReceived(early)

    def _wanted(self, request: Request) -> None:
        """Somebody begins to read a body: now is the time to say so to a client that asked (RFC 9110 section 10.1.1)."""
        expects = b"100-continue" in b",".join(request.requestHeaders.values_of(b"expect")).lower()
        whole = request.body is None or request.body.over
        if expects and request.clientproto == b"HTTP/1.1" and not whole and not request.startedWriting:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _pace(self) -> None:
        """Read from the client when there is somebody to take what comes, and else only to notice that it leaves."""
        if self._closing:
            return
        body = None if self._incoming is None else self._incoming.body
        if self.reading is Reading.TUNNEL:
            return
        if self.reading is Reading.UPGRADE:
            wanted = not self._early
        elif body is not None:
            wanted = body.wants
            if body.expected:
                self._deadline.set(self._limits.body_idle)
            else:
                self._deadline.clear()
        else:
            wanted = len(self.requests) < 2
            if not wanted:
                self._deadline.clear()  # for the next head, of which we read no more
            elif self._paused and self._head_size:
                self._deadline.set(self._limits.header_time)
        if wanted is self._paused:
            self._paused = not wanted
            if self._departure is None:
                self._departure = Departure(self.site.clock, self.transport, self.abortConnection)
            if wanted:
                self._departure.rest()
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()
                self._departure.watch()

    # Ending

    def drain(self) -> None:
        """Take no further request: close at once where none is in progress."""
        if not self.requests and self._head_size == 0 and self.reading is not Reading.TUNNEL:
            self._close(linger=False)

    def loseConnection(self) -> None:
        """Close after what was written is sent."""
        self._close(linger=False)

    def abortConnection(self) -> None:
        """Close at once."""
        self.transport.abortConnection()

    def _refuse(self, refused: Refused) -> None:
        self.reading = Reading.NOTHING
        self._deadline.clear()
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            # Its headers were good, so it is in progress; it fails by its body.
            incoming.keep_alive = False
            if incoming.body is not None:
                incoming.body.fail(BrokenBody(refused.message))
        else:
            self._refusal = refused

    def _answer_refusal(self, refused: Refused) -> None:
        """Answer what never became a request."""
        body = errors.body(refused.problem, refused.message)
        lines = [
            b"HTTP/1.1 %d %b" % (refused.problem.status, errors.phrase(refused.problem)),
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(body),
            b"Connection: close",
            b"",
            body,
        ]
        self._log.info("Refused a message: {message}", message=refused.message)
        self.write(b"\r\n".join(lines))
        self._close(linger=True)

    def _close(self, linger: bool) -> None:
        """Close the connection.

        :param linger: read and drop for a moment what the client is still sending: closing on unread bytes makes the kernel
            send a reset, and that can take away the answer before the client has read it (RFC 9112 section 9.6).
        """
        if self._closing:
            return
        self._closing = True
        self.reading = Reading.NOTHING
        self._lingering = linger
        if linger:
            if ISSLTransport(self.transport, None) is None:  # TLS knows no half-closed connection
                self.transport.loseWriteConnection()
            self.transport.resumeProducing()
            self._deadline.set(self._limits.linger)
        else:
            self.transport.loseConnection()
            self._deadline.set(self._limits.close_time)

    def _too_late(self) -> None:
        if self._lingering:
            self._lingering = False
            self.transport.loseConnection()
            self._deadline.set(self._limits.close_time)
        elif self._closing:
            self.transport.abortConnection()
        elif self.reading is Reading.BODY:
            self._silent()
        elif self._head_size:
            self._refuse(
                Refused(
                    errors.REQUEST_TIMEOUT,
                    f"The request's head took over {self._limits.header_time:g} seconds.",
                )
            )
            self._serve()
        else:
            self._close(linger=False)

    def _silent(self) -> None:
        incoming = self._incoming
        if incoming is not None and incoming.body is not None:
            incoming.keep_alive = False
            self.reading = Reading.NOTHING
            self._incoming = None
            incoming.body.fail(SilentBody(f"The client sent nothing for {self._limits.body_idle:g} seconds."))

    # What twisted.web's Request uses of a channel

    def getPeer(self) -> Any:
        """The client's address."""
        return self._peer

    def getHost(self) -> Any:
        """Our own address."""
        return self._host
