"""A request that was received, and the writing of its response: what lies beneath ``IRequest``.

It is a ``twisted.web.server.Request``, so that any Resource can render it, but routes by the raw path, invents no header, and
frames its response by itself: a length stays a length, all else is chunked, and for HTTP/1.0 ends with the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import parse_qs
from twisted.web.http_headers import Headers
from zope.interface import implementer

from llmproxy import errors
from llmproxy.http.body import RequestBody
from llmproxy.http.fields import Fields, Pair, fields_of, pairs_of
from llmproxy.http.interfaces import IStreamedRequest

if TYPE_CHECKING:
    from llmproxy.http.channel import Channel

_BODILESS = (204, 304)  # RFC 9110 sections 15.3.5 and 15.4.5
_NO_FIELDS = Fields()


@implementer(IStreamedRequest)
class Request(server.Request):
    """One request on a client's connection.

    :ivar keep_alive: the client wants the connection to stay open afterwards.
    """

    channel: Channel  # type: ignore[assignment]
    transport: Any
    requestHeaders: Fields
    body: RequestBody | None = None
    responseTrailers: Fields | None = None
    keep_alive = True
    websocket = False
    _bodiless = False
    _left: int | None = None

    def __init__(self, channel: Channel) -> None:
        # Not twisted.web's own initialization: of what that sets up, most is for forms, cookies and sessions.
        Componentized.__init__(self)
        self.channel = channel
        self.transport = channel.transport
        self.client = channel.getPeer()
        self.host = channel.getHost()
        self.requestHeaders = _NO_FIELDS
        self.responseHeaders = Fields()
        self.received_cookies: dict[bytes, bytes] = {}
        self.cookies: list[bytes] = []
        self.notifications: list[Deferred[None]] = []
        self.queued = False

    def __repr__(self) -> str:
        return f"<Request {self.method.decode('latin-1')} {self.path!r}>"

    @property  # twisted.web parses the query of every request; here, who wants it parsed asks
    def args(self) -> dict[bytes, list[bytes]]:  # type: ignore[override]
        """The arguments of the query."""
        parsed: dict[bytes, list[bytes]] = parse_qs(self.uri.partition(b"?")[2], keep_blank_values=True)
        return parsed

    def process(self) -> None:
        """Find the resource by the raw path segments, undecoded, and render it."""
        self.site = self.channel.site
        self.prepath = []
        self.postpath = self.path[1:].split(b"/")
        try:
            self.render(self.site.getResourceFor(self))
        except Exception:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> Failure:
        """Log what went wrong in a resource; the client gets a 500, or a truncated response where one has begun."""
        self._log.failure("A request to {path} failed within the proxy", failure=reason, path=self.path)
        if self.startedWriting:
            self.transport.abortConnection()
        else:
            errors.answer(self, errors.INTERNAL_ERROR, errors.SEE_LOG)
        return reason

    # The response

    def writeInformational(self, code: int, phrase: bytes, headers: Headers) -> None:
        """See :class:`~llmproxy.http.interfaces.IStreamedRequest`. HTTP/1.0 knows no interim responses."""
        if not self.startedWriting and not self._disconnected and self.clientproto == b"HTTP/1.1":
            self.channel.write(_head(code, phrase, pairs_of(headers)))

    def say_continue(self) -> None:
        """Somebody begins to read the body: now is the time to say so to a client that asked (RFC 9110 section 10.1.1)."""
        expects = b"100-continue" in b",".join(self.requestHeaders.values_of(b"expect")).lower()
        whole = self.body is None or self.body.over
        if expects and self.clientproto == b"HTTP/1.1" and not whole and not self.startedWriting:
            self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def write(self, data: bytes) -> None:
        """Write a part of the body; the first call, with any data or none, writes the status and headers."""
        if self.finished:
            raise RuntimeError("Request.write called on a request after Request.finish was called.")
        if self._disconnected:
            return
        if self.startedWriting:
            if data and not self._bodiless:
                self.channel.write(self._framed(data))
            return
        self.startedWriting = 1
        head = self._begin()
        # With what is there of the body in one write: a write is the dearest thing that a small response does.
        self.channel.write(head + self._framed(data) if data and not self._bodiless else head)

    def _framed(self, data: bytes) -> bytes:
        self.sentLength += len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def finish(self) -> None:
        """End the response. One that is shorter than its announced length is truncated, and looks so."""
        if self._disconnected:
            raise RuntimeError("Request.finish called on a request after its connection was lost")
        if self.finished:
            return
        if not self.startedWriting:
            self.write(b"")
        if self.chunked:
            trailers = () if self.responseTrailers is None else self.responseTrailers.pairs
            self.channel.write(b"0\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in trailers) + b"\r\n")
        self.finished = 1
        if self._left is not None and self._left != self.sentLength:
            self.keep_alive = False
        self._cleanup()

    def switchProtocols(self, protocol: IProtocol) -> None:
        """See :class:`~llmproxy.http.interfaces.IStreamedRequest`."""
        self.startedWriting = self.finished = 1
        self.channel.write(_head(self.code, self.code_message, pairs_of(self.responseHeaders)))
        self.channel.handOver(protocol)
        waiting, self.notifications = self.notifications, []
        for finished in waiting:
            finished.callback(None)

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let the connection set the producer's pace."""
        self.producer = producer
        self.channel.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """See ``IConsumer``."""
        if self.producer is not None:
            self.producer = None
            self.channel.unregisterProducer()

    def connectionLost(self, reason: Failure) -> None:
        """The client has left."""
        self.producer = None
        super().connectionLost(reason)

    def _begin(self) -> bytes:
        mark = self.channel.site.mark
        if mark is not None:
            mark(self)
        headers = self.responseHeaders
        framing: list[Pair] = []
        self._bodiless = self.method == b"HEAD" or self.code in _BODILESS
        if not self._bodiless:
            lengths = fields_of(headers).values_of(b"content-length")
            if lengths:
                self._left = int(lengths[0])
            elif self.clientproto == b"HTTP/1.1":
                self.chunked = 1
                framing.append((b"Transfer-Encoding", b"chunked"))
            else:
                self.keep_alive = False  # only the end of the connection can end this body
        if self.body is not None and not self.body.over:
            self.keep_alive = False  # the rest of the upload will not be read as a request
        if not self.channel.may_persist(self):
            framing.append((b"Connection", b"close"))
        elif self.clientproto != b"HTTP/1.1":
            framing.append((b"Connection", b"keep-alive"))
        return _head(self.code, self.code_message, pairs_of(headers) + framing)


def _head(code: int, phrase: bytes, pairs: list[Pair]) -> bytes:
    lines = [b"HTTP/1.1 %d %b\r\n" % (code, phrase)]
    lines += [b"%b: %b\r\n" % pair for pair in pairs]
    lines.append(b"\r\n")
    return b"".join(lines)
