"""Both neighbours of the proxy, in memory: an upstream that a test scripts step by step, and a client's connection.

What lies beneath the package's two seams is met in one place only, :func:`connect`. Everything else here knows Twisted's
interfaces, and nothing of what implements them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import attrs
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer, ITransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer
from zope.interface import implementer

from llmproxy.config import BaseURL, Client, Config, Timeouts, Upstream
from llmproxy.credentials import Credentials
from llmproxy.exchange import Exchange, Observer
from llmproxy.http.interfaces import IAbortableResponse
from llmproxy.http.server import Site
from llmproxy.proxy import Gateway
from llmproxy.site import build
from llmproxy.transparent import TransparentClient

TOKEN = b"local-token-of-the-team"
OPENAI_KEY = "sk-openai-real"
ANTHROPIC_KEY = "sk-ant-real"

ENVIRON = {
    "OPENAI_BASE_URL": "https://openai.example",
    "OPENAI_API_KEY": OPENAI_KEY,
    "ANTHROPIC_BASE_URL": "https://anthropic.example/base",
    "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
    "PROXY_TOKEN": TOKEN.decode("ascii"),
}

OPENAI = Upstream("openai", BaseURL("https", "openai.example", 443, ""), "Authorization", OPENAI_KEY)
ANTHROPIC = Upstream(
    "anthropic",
    BaseURL("https", "anthropic.example", 443, "/base"),
    "x-api-key",
    ANTHROPIC_KEY,
    ((b"anthropic-version", b"2023-06-01"),),
)
CONFIG = Config(
    upstreams=(OPENAI, ANTHROPIC),
    clients=(Client("default", TOKEN),),
    timeouts=Timeouts(connect=10.0, first_byte=100.0, idle=50.0),
)

BEARER = (b"Authorization", b"Bearer " + TOKEN)


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Gather what is logged meanwhile, as an operator reads it; the list is filled at the end."""
    lines: list[str] = []
    with capturedLogs() as events:
        yield lines
    lines.extend(formatEvent(event) for event in events)


@implementer(IAbortableResponse, IPushProducer)
class UpstreamResponse:
    """A response whose body the test writes; it is the transport of the protocol that the body is delivered to.

    :ivar aborted: how often it was given up.
    :ivar paused: whether the reader has asked for a pause.
    """

    version = (b"HTTP", 1, 1)
    request = None
    previousResponse = None

    def __init__(self, code: int, phrase: bytes, headers: Headers, length: object) -> None:
        self.code = code
        self.phrase = phrase
        self.headers = headers
        self.length = length
        self.aborted = 0
        self.paused = False
        self.reader: IProtocol

    def deliverBody(self, protocol: IProtocol) -> None:
        self.reader = protocol
        protocol.makeConnection(cast(ITransport, self))

    def setPreviousResponse(self, response: object) -> None:
        raise AssertionError("a redirect was followed")

    def abort(self) -> None:
        self.aborted += 1

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        raise AssertionError("abort() is the way to give up a response")

    def chunk(self, data: bytes) -> None:
        """Let a piece of the body arrive."""
        self.reader.dataReceived(data)

    def end(self, reason: Exception | None = None) -> None:
        """Let the body end, by default whole."""
        self.reader.connectionLost(Failure(ResponseDone() if reason is None else reason))


@attrs.define
class UpstreamRequest:
    """A request as it reached the upstream, and the test's hand on what comes back."""

    method: bytes
    url: bytes
    headers: Headers
    producer: IBodyProducer | None
    cancelled: bool = False
    answered: Deferred[UpstreamResponse] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.answered = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled = True

    def header_list(self) -> list[tuple[bytes, bytes]]:
        """All names, in lower case, with their values."""
        return pairs(self.headers)

    def answer(
        self,
        code: int = 200,
        phrase: bytes = b"OK",
        headers: Iterable[tuple[bytes, bytes]] = (),
        length: object = UNKNOWN_LENGTH,
    ) -> UpstreamResponse:
        """Let the headers of a response arrive."""
        made = make_headers(headers)
        response = UpstreamResponse(code, phrase, made, length)
        self.answered.callback(response)
        return response

    def fail(self, fault: BaseException) -> None:
        """Let the request fail before any header of a response."""
        self.answered.errback(Failure(fault))


@implementer(IAgent)
class ScriptedAgent:
    """An agent that keeps what it is asked to send.

    :ivar broken: raised in place of sending, if set.
    """

    def __init__(self) -> None:
        self.requests: list[UpstreamRequest] = []
        self.broken: Exception | None = None

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[Any]:
        if self.broken is not None:
            raise self.broken
        assert headers is not None
        request = UpstreamRequest(method, uri, headers, bodyProducer)
        self.requests.append(request)
        return request.answered

    @property
    def only(self) -> UpstreamRequest:
        """The one request that was sent."""
        (request,) = self.requests
        return request


class _Transport(StringTransport):
    """The proxy's end of a client's connection; as in a reactor, its loss is told in a later turn.

    :ivar ending: ``open``, ``closed`` (after all that was written) or ``reset``.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 50000), lenient=True)
        self.protocol: Any = None
        self.ending = "open"
        self._clock = clock

    def loseConnection(self) -> None:
        self._end("closed", error.ConnectionDone())

    def abortConnection(self) -> None:
        self._end("reset", error.ConnectionAborted())

    def _end(self, ending: str, reason: Exception) -> None:
        if self.ending == "open":
            self.ending = ending
            self.disconnecting = True
            self._clock.callLater(0, self.protocol.connectionLost, Failure(reason))


class ClientConnection:
    """A client's end of a connection to the proxy."""

    def __init__(self, transport: _Transport) -> None:
        self._transport = transport

    @property
    def received(self) -> bytes:
        """All bytes that the proxy has written so far."""
        received: bytes = self._transport.value()
        return received

    @property
    def ending(self) -> str:
        """How the proxy has ended the connection: ``open`` (not yet), ``closed`` or ``reset``."""
        return self._transport.ending

    def send(self, data: bytes) -> None:
        """Let bytes of the client arrive."""
        self._transport.protocol.dataReceived(data)

    def ask(
        self,
        target: bytes,
        method: bytes = b"GET",
        headers: Sequence[tuple[bytes, bytes]] = (BEARER,),
        body: bytes | None = None,
        version: bytes = b"HTTP/1.1",
    ) -> None:
        """Send a whole request."""
        framing = () if body is None else ((b"Content-Length", b"%d" % len(body)),)
        lines = [b"%b: %b\r\n" % header for header in ((b"Host", b"proxy.example"), *headers, *framing)]
        self.send(b"%b %b %b\r\n%b\r\n%b" % (method, target, version, b"".join(lines), body or b""))

    def leave(self) -> None:
        """Close the connection from the client's side."""
        self._transport.ending = "left"
        self._transport.protocol.connectionLost(Failure(error.ConnectionDone()))

    def stop_reading(self) -> None:
        """Take no more for now, so that the proxy's buffers are full."""
        self._producer().pauseProducing()

    def read_on(self) -> None:
        """Take all there is, so that the proxy's buffers are empty."""
        self._producer().resumeProducing()

    def _producer(self) -> IPushProducer:
        producer: Any = self._transport.producer
        assert producer is not None, "nothing here can be slowed down"
        return cast(IPushProducer, producer)

    def response(self, method: bytes = b"GET") -> Response:
        """Read what was received as one response to a request of a method."""
        return Response.read(self.received, method, self.ending)


def connect(site: Any, clock: Clock) -> ClientConnection:
    """Connect a client to a Site: the one place that knows how the server side is given its bytes.

    :param site: the package's Site.
    """
    transport = _Transport(clock)
    transport.protocol = site.buildProtocol(transport.getPeer())
    transport.protocol.makeConnection(transport)
    return ClientConnection(transport)


@attrs.frozen
class Response:
    """A response as a client understands it (RFC 9112 section 6.3).

    :ivar whole: whether its end was seen; a truncated one is not whole.
    :ivar rest: bytes behind its end, which would be taken for the next response.
    """

    version: bytes
    status: int
    phrase: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    whole: bool
    rest: bytes = b""

    @classmethod
    def read(cls, received: bytes, method: bytes, ending: str) -> Response:
        head, blank, content = received.partition(b"\r\n\r\n")
        assert blank, f"no whole head: {received!r}"
        status_line, *lines = head.split(b"\r\n")
        version, code, phrase = status_line.split(b" ", 2)
        headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]
        named = dict(headers)
        status = int(code)
        if method == b"HEAD" or status in (204, 304):
            body, whole, rest = b"", True, content
        elif named.get(b"transfer-encoding") == b"chunked":
            body, whole, rest = _dechunk(content)
        elif b"content-length" in named:
            length = int(named[b"content-length"])
            body, whole, rest = content[:length], len(content) >= length, content[length:]
        else:
            body, whole, rest = content, ending == "closed", b""
        return cls(version, status, phrase, headers, body, whole, rest)

    def values(self, name: bytes) -> list[bytes]:
        """The values of a header, in order."""
        return [value for found, value in self.headers if found == name]

    def json(self) -> Any:
        assert self.whole
        return json.loads(self.body)


def _dechunk(content: bytes) -> tuple[bytes, bool, bytes]:
    body = b""
    while b"\r\n" in content:
        size_line, _, content = content.partition(b"\r\n")
        size = int(size_line, 16)
        if size == 0:
            return body, content.startswith(b"\r\n"), content[2:]
        body += content[:size]
        content = content[size + 2 :]
    return body, False, b""


class Proxy:
    """The whole proxy, between a scripted upstream and the clients that a test connects.

    :ivar exchanges: those that are over.
    """

    def __init__(self, config: Config = CONFIG, observers: Sequence[Observer] = ()) -> None:
        self.clock = Clock()
        self.agent = ScriptedAgent()
        self.exchanges: list[Exchange] = []
        gateway = Gateway(
            credentials=Credentials(config.clients),
            client=TransparentClient(self.agent, self.clock),
            clock=self.clock,
            timeouts=config.timeouts,
            observers=[*observers, self.exchanges.append],
        )
        self.site = Site(build(config, gateway), self.clock)

    def connect(self) -> ClientConnection:
        """Connect one more client."""
        return connect(self.site, self.clock)

    def ask(self, target: bytes, **request: Any) -> ClientConnection:
        """Connect a client that sends one request; see :meth:`ClientConnection.ask`."""
        client = self.connect()
        client.ask(target, **request)
        return client

    def turn(self) -> None:
        """Let the reactor's next turn come."""
        self.clock.advance(0)


def make_headers(listed: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers from names and values."""
    headers = Headers()
    for name, value in listed:
        headers.addRawHeader(name, value)
    return headers


def pairs(headers: Headers) -> list[tuple[bytes, bytes]]:
    """All names, in lower case, and values of some headers."""
    return [(name.lower(), value) for name, values in headers.getAllRawHeaders() for value in values]
