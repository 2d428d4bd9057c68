"""Both neighbours of the proxy, in memory: an upstream that a test scripts step by step, and a client's connection.

What lies beneath the package's two seams is met in one place only, :func:`connect`. Everything else here knows Twisted's
interfaces and what the package adds to them, and nothing of what implements them.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import attrs
import pytest
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer, ITransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer
from zope.interface import implementer

from llmproxy.config import Client, Config, Credential, Family, Timeouts, Upstream, token_digest
from llmproxy.cors import Cors
from llmproxy.credentials import Credentials
from llmproxy.exchange import Exchange, Observer
from llmproxy.http.fields import Fields, OutgoingFields
from llmproxy.http.interfaces import IAbortableResponse
from llmproxy.http.server import Site
from llmproxy.keyring import Keyring
from llmproxy.route import Gateway, Route
from llmproxy.site import build, mark
from llmproxy.transparent import TransparentClient
from llmproxy.values import BaseURL

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

TIMEOUTS = Timeouts(first_byte=100.0, idle=50.0)
OPENAI = Upstream(
    "openai",
    BaseURL("https", "openai.example", 443, ""),
    Credential.parse("bearer"),
    (OPENAI_KEY,),
    Family.OPENAI,
    timeouts=TIMEOUTS,
)
ANTHROPIC = Upstream(
    "anthropic",
    BaseURL("https", "anthropic.example", 443, "/base"),
    Credential.parse("x-api-key"),
    (ANTHROPIC_KEY,),
    Family.ANTHROPIC,
    ((b"anthropic-version", b"2023-06-01"),),
    timeouts=TIMEOUTS,
)


def client_with(*tokens: bytes, name: str = "default", **rights: Any) -> Client:
    """A client with some tokens, and the rights that are given."""
    return Client(name, tuple(token_digest(token) for token in tokens), **rights)


CONFIG = Config(
    upstreams=(OPENAI, ANTHROPIC),
    clients=(client_with(TOKEN),),
)

BEARER = (b"Authorization", b"Bearer " + TOKEN)
# What a client sends, beside its token, to speak WebSocket (RFC 6455 section 4.1).
HANDSHAKE = (
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
)


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Gather what is logged meanwhile, as an operator reads it; the list is filled at the end."""
    lines: list[str] = []
    with capturedLogs() as events:
        yield lines
    lines.extend(formatEvent(event) for event in events)


class Wire(StringTransport):
    """The proxy's end of a connection, which the test drives from the other end, as a :class:`Peer`.

    As in a reactor, what comes while reading is paused waits, and a loss that the proxy brings about is told in a later turn.

    :ivar ending: how the proxy has ended it: ``open`` (not yet), ``closed`` (after all that was written) or ``reset``; ``left``
        where the peer did.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 50000), lenient=True)
        self.protocol: Any = None
        self.ending = "open"
        self._clock = clock
        self._full = False
        self._lost = False
        self._arrived: list[bytes] = []
        self._delivering = False

    # What the proxy calls

    def write(self, data: bytes) -> None:
        if self.ending == "open":
            super().write(data)

    def setTcpNoDelay(self, enabled: bool) -> None:
        assert enabled

    def loseWriteConnection(self) -> None:
        if self.ending == "open":
            self.ending = "closed"

    def loseConnection(self) -> None:
        self._end("closed", error.ConnectionDone())

    def abortConnection(self) -> None:
        self._end("reset", error.ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        if self._lost:
            producer.stopProducing()
            return
        super().registerProducer(producer, streaming)
        if self._full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self._deliver()

    def stopProducing(self) -> None:
        self.loseConnection()

    # What the test does from the other end

    def arrive(self, data: bytes) -> None:
        self._arrived.append(data)
        self._deliver()

    def fill(self) -> None:
        self._full = True
        if self.producer is not None:
            self.producer.pauseProducing()

    def empty(self) -> None:
        self._full = False
        if self.producer is not None:
            self.producer.resumeProducing()

    def lose(self, reason: Exception) -> None:
        if not self._lost:
            self._lost = self.disconnecting = True
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.stopProducing()
            self.protocol.connectionLost(Failure(reason))

    def _deliver(self) -> None:
        if self._delivering:
            return  # by the call that is going on further up
        self._delivering = True
        try:
            while self._arrived and self.producerState == "producing" and not self.disconnecting:
                self.protocol.dataReceived(self._arrived.pop(0))
        finally:
            self._delivering = False

    def _end(self, ending: str, reason: Exception) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self.ending = ending
            self._clock.callLater(0, self.lose, reason)


class StuckWire(Wire):
    """A connection whose peer takes nothing, so that a close that waits for that has no end."""

    def loseConnection(self) -> None:
        self.ending = "closed"


class Peer:
    """Whoever is at the other end of a connection of the proxy's."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def received(self) -> bytes:
        """All bytes that the proxy has written so far."""
        received: bytes = self._wire.value()
        return received

    @property
    def ending(self) -> str:
        """How the connection has ended; see :class:`Wire`."""
        return self._wire.ending

    @property
    def unread(self) -> bool:
        """Whether the proxy reads nothing for now."""
        return self._wire.producerState == "paused"

    def send(self, data: bytes) -> None:
        """Let bytes of the peer arrive."""
        self._wire.arrive(data)

    def leave(self, reason: Exception | None = None) -> None:
        """Close the connection from the peer's side, by default in order."""
        self._wire.ending = "left"
        self._wire.lose(reason or error.ConnectionDone())

    def stop_reading(self) -> None:
        """Take no more for now, so that the proxy's buffers are full."""
        self._wire.fill()

    def read_on(self) -> None:
        """Take all there is, so that the proxy's buffers are empty."""
        self._wire.empty()


class ClientConnection(Peer):
    """A client's end of a connection to the proxy."""

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

    def response(self, method: bytes = b"GET") -> Response:
        """Read what was received as one response to a request of a method."""
        return Response.read(self.received, method, self.ending)


@implementer(IAbortableResponse, IPushProducer)
class UpstreamResponse:
    """A response whose body the test writes; it is the transport of the protocol that the body is delivered to.

    :ivar aborted: how often it was given up.
    :ivar paused: whether the reader has asked for a pause.
    :ivar peer: the upstream's end of the connection, once it was handed over.
    """

    version = (b"HTTP", 1, 1)
    request = None
    previousResponse = None
    reused = False
    whole = False

    def __init__(self, clock: Clock, code: int, phrase: bytes, headers: Headers, length: object) -> None:
        self._clock = clock
        self.code = code
        self.phrase = phrase
        self.headers = headers
        self.length = length
        self.trailers: Fields | None = None
        self.aborted = 0
        self.paused = False
        self.reader: IProtocol
        self.peer: Peer

    def deliverBody(self, protocol: IProtocol) -> None:
        self.reader = protocol
        protocol.makeConnection(cast(ITransport, self))

    def switchProtocols(self, protocol: IProtocol) -> None:
        wire = Wire(self._clock)
        wire.protocol = protocol
        self.peer = Peer(wire)
        protocol.makeConnection(cast(ITransport, wire))

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

    def end(self, reason: Exception | None = None, trailers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Let the body end, by default whole."""
        self.trailers = Fields(trailers)
        self.reader.connectionLost(Failure(ResponseDone() if reason is None else reason))


@attrs.define
class UpstreamRequest:
    """A request as it reached the upstream, and the test's hand on what comes back."""

    clock: Clock
    method: bytes
    url: bytes
    headers: OutgoingFields
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

    def interim(self, code: int, phrase: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Let an interim response arrive."""
        assert self.headers.informational is not None
        self.headers.informational(code, phrase, Fields(headers))

    def answer(
        self,
        code: int = 200,
        phrase: bytes = b"OK",
        headers: Iterable[tuple[bytes, bytes]] = (),
        length: object = UNKNOWN_LENGTH,
    ) -> UpstreamResponse:
        """Let the headers of a response arrive."""
        response = UpstreamResponse(self.clock, code, phrase, Fields(headers), length)
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

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
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
        assert isinstance(headers, OutgoingFields)
        request = UpstreamRequest(self._clock, method, uri, headers, bodyProducer)
        self.requests.append(request)
        return request.answered

    @property
    def only(self) -> UpstreamRequest:
        """The one request that was sent."""
        (request,) = self.requests
        return request


def connect(site: Any, clock: Clock) -> ClientConnection:
    """Connect a client to a Site: the one place that knows how the server side is given its bytes.

    :param site: the package's Site.
    """
    wire = Wire(clock)
    wire.protocol = site.buildProtocol(wire.getPeer())
    wire.protocol.makeConnection(wire)
    return ClientConnection(wire)


@attrs.frozen
class Response:
    """A response as a client understands it (RFC 9112 section 6.3).

    :ivar whole: whether its end was seen; a truncated one is not whole.
    :ivar rest: bytes behind its end, which would be taken for the next response.
    :ivar trailers: the fields behind a chunked body.
    """

    version: bytes
    status: int
    phrase: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    whole: bool
    rest: bytes = b""
    trailers: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def read(cls, received: bytes, method: bytes, ending: str) -> Response:
        head, blank, content = received.partition(b"\r\n\r\n")
        assert blank, f"no whole head: {received!r}"
        status_line, *lines = head.split(b"\r\n")
        version, code, phrase = status_line.split(b" ", 2)
        headers = _fields(lines)
        named = dict(headers)
        status = int(code)
        trailers: tuple[tuple[bytes, bytes], ...] = ()
        if method == b"HEAD" or status < 200 or status in (204, 304):
            body, whole, rest = b"", True, content
        elif named.get(b"transfer-encoding") == b"chunked":
            body, trailers, whole, rest = _dechunk(content)
        elif b"content-length" in named:
            length = int(named[b"content-length"])
            body, whole, rest = content[:length], len(content) >= length, content[length:]
        else:
            body, whole, rest = content, ending == "closed", b""
        return cls(version, status, phrase, headers, body, whole, rest, trailers)

    def values(self, name: bytes) -> list[bytes]:
        """The values of a header, in order."""
        return [value for found, value in self.headers if found == name]

    def json(self) -> Any:
        assert self.whole
        return json.loads(self.body)


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]


def _dechunk(content: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...], bool, bytes]:
    """The body, the trailers, whether its end was seen, and the bytes behind it."""
    body = b""
    while b"\r\n" in content:
        size_line, _, content = content.partition(b"\r\n")
        size = int(size_line, 16)
        if size == 0:
            head, end, rest = (b"\r\n" + content).partition(b"\r\n\r\n")
            return body, tuple(_fields(head.split(b"\r\n")[1:])), bool(end), rest
        body += content[:size]
        content = content[size + 2 :]
    return body, (), False, b""


class Proxy:
    """The whole proxy, between a scripted upstream and the clients that a test connects.

    :ivar exchanges: those that are over.
    """

    def __init__(
        self,
        config: Config = CONFIG,
        observer: Observer | None = None,
        agent: Any = None,
        tell_id: bool = False,
    ) -> None:
        self.clock = Clock()
        self.agent = agent or ScriptedAgent(self.clock)
        self.exchanges: list[Exchange] = []
        gateway = Gateway(
            credentials=Credentials(config.clients, self.clock.seconds),
            clock=self.clock,
            observer=observer or self.exchanges.append,
            max_resent_body=config.max_resent_body,
            tell_id=tell_id,
        )
        cors = Cors(config.cors_origins) if config.cors_origins else None
        routes = [
            Route(
                upstream,
                TransparentClient(self.agent, self.clock),
                Keyring(upstream.keys, self.clock.seconds, self.clock.seconds),
            )
            for upstream in config.upstreams
        ]
        self.site = Site(build(gateway, routes, cors), self.clock)
        if cors is not None:
            self.site.mark = partial(mark, cors)

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


def pairs(headers: Headers) -> list[tuple[bytes, bytes]]:
    """All names, in lower case, and values of some headers."""
    return [(name.lower(), value) for name, values in headers.getAllRawHeaders() for value in values]


@contextmanager
def no_cycle() -> Iterator[None]:
    """Fail where what happens within leaves something of ours that only the garbage collector could find."""
    # Until a log is begun, the last 200 events are kept, with what logged them: an event more would let go of an older test's.
    cast(Any, globalLogBeginner)._initialBuffer._buffer.clear()
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        # Of ours: other threads of the process leave garbage, too.
        left = [thing for thing in gc.garbage if _module_of(thing).startswith("llmproxy")]
        assert left == [], left
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _module_of(thing: object) -> str:
    return str(getattr(thing if callable(thing) else type(thing), "__module__", ""))


def take_a_little_five_times_and_then_nothing(
    proxy: Proxy, client: ClientConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a client read slowly, of which only its kernel knows, in the last second that it has; and then not at all."""
    left = [4_000_000]
    monkeypatch.setattr("llmproxy.http.intake.unsent", lambda _: left[0])
    client.stop_reading()
    for _ in range(5):
        proxy.clock.advance(599)
        left[0] -= 1
        proxy.clock.advance(1)
        assert client.ending == "open"
    proxy.clock.advance(600)
