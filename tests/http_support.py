"""The server side of the engine in memory: a client's connection that a test drives piece by piece.

The transport is as strict as real ones are: a paused one delivers nothing, a loss is told in a later turn, and nothing may be
written behind an end.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IConsumer, IPushProducer, ISSLTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import directlyProvides, implementer

from llmproxy.http.body import RequestBody
from llmproxy.http.channel import Channel
from llmproxy.http.fields import Pair
from llmproxy.http.limits import DownstreamLimits
from llmproxy.http.request import Request
from llmproxy.http.server import Site

HOST = b"Host: proxy.example\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


class Transport:
    """The server's end of a connection.

    :ivar ending: ``open``; ``half-closed`` by us; ``closing`` while something is to be sent yet; ``closed``; ``reset`` by us;
        ``left`` by the client.
    :ivar paused: whether the server reads nothing.
    :ivar full: whether the client reads nothing.
    """

    def __init__(self, clock: Clock, host: str) -> None:
        self.protocol: Any = None
        self.producer: Any = None
        self.written = b""
        self.ending = "open"
        self.paused = False
        self.full = False
        self.no_delay = False
        self.told = False
        self.resumed: Callable[[], None] = lambda: None
        self._clock = clock
        self._host = host

    @property
    def lost(self) -> bool:
        return self.ending in ("closed", "reset", "left")

    def write(self, data: bytes) -> None:
        assert self.told or self.ending in ("open", "reset"), f"written behind the end: {data!r}"
        if self.ending == "open":
            self.written += data

    def loseConnection(self) -> None:
        if not self.lost:
            self.ending = "closing"
            self.close_if_done()

    def close_if_done(self) -> None:
        if self.ending == "closing" and not self.full and self.producer is None:
            self._end("closed", error.ConnectionDone())

    def abortConnection(self) -> None:
        if not self.lost:
            self._end("reset", error.ConnectionAborted())

    def loseWriteConnection(self) -> None:
        if self.ending == "open":
            self.ending = "half-closed"

    def _end(self, ending: str, reason: Exception) -> None:
        self.ending = ending
        self._clock.callLater(0, self.tell, reason)

    def tell(self, reason: Exception) -> None:
        """Tell of the connection's loss."""
        self.told = True
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(reason))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming
        self.producer = producer
        if self.full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self.producer = None
        self.close_if_done()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        if self.paused:
            self.paused = False
            self._clock.callLater(0, self.resumed)

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self._host, 50000)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 33000)


class Connection:
    """A client's end of a connection.

    :param tls: for a connection that cannot be closed by halves.
    """

    def __init__(self, site: Site, clock: Clock, host: str = "127.0.0.1", tls: bool = False) -> None:
        self.transport = Transport(clock, host)
        self.transport.resumed = self._deliver
        if tls:
            directlyProvides(self.transport, ISSLTransport)
        self._clock = clock
        self._unread: deque[bytes] = deque()
        channel = site.buildProtocol(self.transport.getPeer())
        self.refused = channel is None
        if channel is not None:
            self.channel: Channel = channel
            self.transport.protocol = channel
            channel.makeConnection(self.transport)

    @property
    def received(self) -> bytes:
        """All that the server has written."""
        return self.transport.written

    @property
    def ending(self) -> str:
        """See :class:`Transport`."""
        return self.transport.ending

    @property
    def unread(self) -> int:
        """Bytes that were sent, and that the server has not read."""
        return sum(map(len, self._unread))

    def send(self, *pieces: bytes) -> None:
        """Send; each piece is read by itself."""
        self._unread.extend(pieces)
        self._deliver()

    def turn(self) -> None:
        """Let the reactor's next turn come, and those that follow from it."""
        while any(call.getTime() <= self._clock.seconds() for call in self._clock.getDelayedCalls()):
            self._clock.advance(0)

    def leave(self, reason: Exception | None = None) -> None:
        """Close the connection from the client's side, by default orderly."""
        self.transport.ending = "left"
        self.transport.tell(reason or error.ConnectionDone())

    def stop_reading(self) -> None:
        """Take no more for now, so that the server's buffers are full."""
        self.transport.full = True
        if self.transport.producer is not None:
            self.transport.producer.pauseProducing()

    def read_on(self) -> None:
        """Take all there is."""
        self.transport.full = False
        if self.transport.producer is not None:
            self.transport.producer.resumeProducing()
        self.transport.close_if_done()

    def answers(self, *methods: bytes) -> list[Answer]:
        """Read what was received as responses to requests of some methods, by default GET."""
        return read_answers(self.received, methods)

    def answer(self, method: bytes = b"GET") -> Answer:
        """Read what was received as one response."""
        (answer,) = self.answers(method)
        return answer

    def _deliver(self) -> None:
        while self._unread and not self.transport.paused and self.ending in ("open", "half-closed"):
            self.channel.dataReceived(self._unread.popleft())


@attrs.frozen
class Answer:
    """A response as a client understands it (RFC 9112 section 6.3).

    :ivar whole: whether its end was seen; one that only the end of the connection ends is never whole.
    """

    status: int
    phrase: bytes
    headers: list[Pair]
    body: bytes = b""
    trailers: list[Pair] = attrs.Factory(list)
    whole: bool = True

    @property
    def json(self) -> Any:
        assert self.whole
        return json.loads(self.body)


def read_answers(received: bytes, methods: Sequence[bytes] = ()) -> list[Answer]:
    """Read responses to requests of some methods; those that are missing are GET."""
    waiting = deque(methods)
    answers = []
    while received:
        head, blank, received = received.partition(b"\r\n\r\n")
        assert blank, f"no whole head: {head!r}"
        line, *lines = head.split(b"\r\n")
        version, code, phrase = line.split(b" ", 2)
        assert version == b"HTTP/1.1"
        status = int(code)
        headers = [_pair(line) for line in lines]
        named = {name.lower(): value for name, value in headers}
        method = b"GET" if status < 200 or not waiting else waiting.popleft()
        answer = Answer(status, phrase, headers)
        if status < 200 or method == b"HEAD" or status in (204, 304):
            pass
        elif b"transfer-encoding" in named:
            body, trailers, whole, received = _chunks(received)
            answer = attrs.evolve(answer, body=body, trailers=trailers, whole=whole)
        elif b"content-length" in named:
            length = int(named[b"content-length"])
            body, received = received[:length], received[length:]
            answer = attrs.evolve(answer, body=body, whole=len(body) == length)
        else:
            answer = attrs.evolve(answer, body=received, whole=False)
            received = b""
        answers.append(answer)
    return answers


def _chunks(content: bytes) -> tuple[bytes, list[Pair], bool, bytes]:
    body = b""
    while b"\r\n" in content:
        line, _, content = content.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            trailers = []
            while not content.startswith(b"\r\n"):
                line, _, content = content.partition(b"\r\n")
                trailers.append(_pair(line))
            return body, trailers, True, content[2:]
        body += content[:size]
        assert content[size : size + 2] in (b"\r\n", b"\r", b"")
        content = content[size + 2 :]
    return body, [], False, b""


def _pair(line: bytes) -> Pair:
    name, _, value = line.partition(b": ")
    return name, value


class Page(Resource):
    """Does with a request what the test wants."""

    isLeaf = True

    def __init__(self, act: Callable[[Request], object]) -> None:
        super().__init__()
        self._act = act

    def render(self, request: Request) -> int:
        self._act(request)
        return NOT_DONE_YET


class Served:
    """A Site with one page, the requests that came to it, and one client.

    :param act: what is done with each request; by default nothing, and the test answers.
    """

    def __init__(
        self,
        act: Callable[[Request], object] = lambda _: None,
        limits: DownstreamLimits | None = None,
        root: IResource | None = None,
        tls: bool = False,
    ) -> None:
        self.clock = Clock()
        self.requests: list[Request] = []

        def keep(request: Request) -> None:
            self.requests.append(request)
            act(request)

        self.site = Site(root or Page(keep), self.clock, limits)
        self.client = Connection(self.site, self.clock, tls=tls)

    @property
    def request(self) -> Request:
        """The one request that came."""
        (request,) = self.requests
        return request


def hi(request: Request) -> None:
    """Answer with two bytes."""
    request.setHeader(b"Content-Length", b"2")
    request.write(b"hi")
    request.finish()


@implementer(IPushProducer)
class Flow:
    """A producer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@implementer(IConsumer)
class Sink:
    """A consumer that keeps what it gets; the transport of an upstream, as far as a body is concerned.

    :ivar ended: how the body ended: not yet, whole, or by which failure.
    """

    def __init__(self, body: RequestBody | None) -> None:
        assert body is not None
        self.body = body
        self.pieces: list[bytes] = []
        self.ended: object = None
        self.done = body.startProducing(self)
        self.done.addCallbacks(self._whole, self._broken)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        raise AssertionError("a body is started by startProducing")

    def unregisterProducer(self) -> None:
        raise AssertionError("a body is started by startProducing")

    def _whole(self, result: object) -> None:
        assert result is None
        self.ended = "whole"

    def _broken(self, failure: Failure) -> None:
        self.ended = failure.type
