"""What stands across from the engine's client side: in memory, moved step by step, or on an event loop over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
import trustme
import uvloop
from OpenSSL import crypto
from twisted.internet import error, interfaces
from twisted.internet import ssl as twisted_ssl
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from llmproxy.http.client import PooledAgent
from llmproxy.http.connection import UpstreamConnection
from llmproxy.http.fields import Fields, OutgoingFields, Pair
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.native import NativeReactor
from llmproxy.http.port import NativePort
from llmproxy.http.response import MalformedResponse

T = TypeVar("T")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HOST: Pair = (b"Host", b"upstream.example")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
RESET = error.ConnectionLost("reset by peer")
SECONDS = 10.0  # after which a test that waits for a socket has failed


class Outcome:
    """What a Deferred has come to."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.deferred = deferred
        self.results: list[Any] = []
        self.failures: list[Failure] = []
        deferred.addCallbacks(self.results.append, self.failures.append)

    @property
    def pending(self) -> bool:
        return not self.results and not self.failures

    @property
    def result(self) -> Any:
        (result,) = self.results
        return result

    @property
    def failure(self) -> Failure:
        (failure,) = self.failures
        return failure


class Wire:
    """A connection's transport in memory; as in a reactor, its loss is told in a later turn.

    :ivar ending: ``open``, ``closed`` (after all that was written) or ``reset``.
    :ivar reading: whether bytes are asked for.
    :ivar full: whether a producer that registers is paused at once.
    """

    disconnecting = False

    def __init__(self, full: bool = False) -> None:
        self.ending = "open"
        self.reading = True
        self.full = full
        self.no_delay = False
        self.producer: Any = None
        self._written = b""
        self._protocol: Any = None
        self._lost = False

    def connect(self, protocol: Any) -> None:
        self._protocol = protocol
        protocol.makeConnection(self)

    def take(self) -> bytes:
        """What was written since the last call."""
        written, self._written = self._written, b""
        return written

    def receive(self, data: bytes) -> None:
        """Let bytes arrive; a transport that was aborted reads nothing more."""
        if self.ending != "reset":
            self._protocol.dataReceived(data)

    def lose(self, reason: Exception) -> None:
        """Let the connection be lost."""
        if not self._lost:
            self._lost = True
            self._protocol.connectionLost(Failure(reason))

    def turn(self) -> None:
        """Let the reactor's next turn come: an end that was asked for is told."""
        if self.ending != "open":
            self.lose(error.ConnectionDone() if self.ending == "closed" else error.ConnectionAborted())

    # What the protocol calls

    def write(self, data: bytes) -> None:
        assert self.ending == "open", "written after the end"
        self._written += data

    def loseConnection(self) -> None:
        assert self.producer is None, "this would wait for the producer"
        if self.ending == "open":
            self.ending = "closed"
            self.disconnecting = True

    def abortConnection(self) -> None:
        self.ending = "reset"
        self.disconnecting = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer
        if self.full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled


class Reader(Protocol):
    """Keeps the body of a response.

    :param on_connect: called with this when it is connected; ``on_data`` with this when bytes came.
    """

    transport: Any

    def __init__(
        self,
        on_connect: Callable[[Reader], None] = lambda reader: None,
        on_data: Callable[[Reader], None] = lambda reader: None,
    ) -> None:
        self.chunks: list[bytes] = []
        self.ends: list[Failure] = []
        self._on_connect = on_connect
        self._on_data = on_data

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def end(self) -> Failure:
        (end,) = self.ends
        return end

    def connectionMade(self) -> None:
        self._on_connect(self)

    def dataReceived(self, data: bytes) -> None:
        self.chunks.append(data)
        self._on_data(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.ends.append(reason)


def read(response: Any, reader: Reader | None = None) -> Reader:
    """Read the body of a response."""
    made = reader or Reader()
    response.deliverBody(made)
    return made


def malformed(failure: Failure) -> MalformedResponse:
    """What a ``ResponseFailed`` says was malformed."""
    assert failure.check(ResponseFailed), failure
    assert isinstance(failure.value, ResponseFailed)
    (reason,) = failure.value.reasons
    assert isinstance(reason.value, MalformedResponse), reason
    return reason.value


@implementer(IBodyProducer)
class Upload:
    """A request's body that the test writes.

    :param length: in bytes, or UNKNOWN_LENGTH.
    :ivar log: what its consumer asked of it, in order.
    """

    def __init__(self, length: Any = UNKNOWN_LENGTH) -> None:
        self.length = length
        self.trailers: Fields | None = None
        self.log: list[str] = []
        self._consumer: Any = None
        self._done: Deferred[None] = Deferred()

    @property
    def started(self) -> bool:
        return "start" in self.log

    @property
    def stopped(self) -> bool:
        return "stop" in self.log

    def write(self, data: bytes) -> None:
        self._consumer.write(data)

    def end(self, *trailers: Pair) -> None:
        self.trailers = Fields(trailers) if trailers else None
        self._done.callback(None)

    def fail(self, reason: Exception) -> None:
        self._done.errback(Failure(reason))

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self.log.append("start")
        self._consumer = consumer
        return self._done

    def stopProducing(self) -> None:
        self.log.append("stop")

    def pauseProducing(self) -> None:
        self.log.append("pause")

    def resumeProducing(self) -> None:
        self.log.append("resume")


class Whole(Upload):
    """A request's body that is there at once."""

    def __init__(self, data: bytes, length: Any = None) -> None:
        super().__init__(len(data) if length is None else length)
        self._data = data

    def startProducing(self, consumer: Any) -> Deferred[None]:
        done = super().startProducing(consumer)
        consumer.write(self._data)
        self.end()
        return done


class Upstream:
    """One connection to an upstream, in memory.

    :ivar released: how often the connection was given back for another exchange.
    :ivar informed: the interim responses that were told.
    """

    def __init__(self, limits: UpstreamLimits | None = None, wire: Wire | None = None) -> None:
        self.clock = Clock()
        self.wire = wire or Wire()
        self.lost: list[UpstreamConnection] = []
        self.released = 0
        self.on_release: Callable[[], object] = lambda: None
        self.informed: list[tuple[int, bytes, list[Pair]]] = []
        self.connection = UpstreamConnection(
            self.clock, limits or UpstreamLimits(), self._release, self.lost.append
        )
        self.wire.connect(self.connection)

    def ask(
        self,
        method: bytes = b"GET",
        target: bytes = b"/v1/x",
        headers: Iterable[Pair] = (HOST,),
        body: Any = None,
    ) -> Outcome:
        return Outcome(self.connection.send(method, target, Fields(headers), body, self._inform))

    def exchange(self, answer: bytes, method: bytes = b"GET", headers: Iterable[Pair] = (HOST,)) -> Any:
        """Send a request, and let an answer arrive; returns the response."""
        outcome = self.ask(method, headers=headers)
        self.wire.receive(answer)
        return outcome.result

    def _inform(self, code: int, phrase: bytes, fields: Fields) -> None:
        self.informed.append((code, phrase, list(fields.pairs)))

    def _release(self, connection: UpstreamConnection) -> None:
        assert connection is self.connection
        self.released += 1
        self.on_release()


class Resolver:
    """Knows the addresses of names, and tells them at once, or never.

    :param addresses: for a name, those that it has.
    :param silent: whether it never ends.
    """

    def __init__(self, addresses: dict[str, list[str]], silent: bool = False) -> None:
        self._addresses = addresses
        self._silent = silent

    def resolveHostName(self, receiver: Any, name: str, portNumber: int = 0, *_: Any, **__: Any) -> Any:
        receiver.resolutionBegan(None)
        if not self._silent:
            for address in self._addresses.get(name, []):
                kind = IPv6Address if ":" in address else IPv4Address
                receiver.addressResolved(kind("TCP", address, portNumber))
            receiver.resolutionComplete()


class MemoryAgent:
    """An agent on Twisted's endpoints, whose connections a test lets come up one by one."""

    def __init__(self, limits: UpstreamLimits | None = None, **settings: Any) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.nameResolver = cast(Any, Resolver({"upstream.example": ["192.0.2.1"]}))
        self.agent = PooledAgent(self.reactor, limits, **settings)
        self.informed: list[int] = []

    @property
    def attempts(self) -> int:
        """How many connections were attempted."""
        return len(self.reactor.tcpClients)

    def ask(
        self,
        method: bytes = b"GET",
        url: bytes = b"http://192.0.2.1/v1/x",
        headers: Iterable[Pair] = (HOST,),
        body: Any = None,
    ) -> Outcome:
        fields = OutgoingFields(headers, lambda code, phrase, fields: self.informed.append(code))
        return Outcome(self.agent.request(method, url, fields, body))

    def accept(self, which: int = -1) -> Wire:
        """Let a connection that was attempted come up."""
        wire = Wire()
        wire.connect(self.reactor.tcpClients[which][2].buildProtocol(None))
        return wire

    def refuse(self, reason: Exception, which: int = -1) -> None:
        """Let a connection that was attempted fail."""
        self.reactor.tcpClients[which][2].clientConnectionFailed(
            self.reactor.connectors[which], Failure(reason)
        )

    def kept(self) -> Wire:
        """A connection that one exchange has used."""
        outcome = self.ask()
        wire = self.accept()
        wire.take()
        wire.receive(OK)
        assert read(outcome.result).body == b"ok"
        return wire


# An event loop, and what runs on it


@implementer(interfaces.IReactorTime, interfaces.IReactorPluggableNameResolver)
class LoopReactor(Clock):
    """The reactor that a :class:`NativeReactor` stands before: its time is a test's, its names are given."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.nameResolver = Resolver({})
        self._asyncioEventloop = loop

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError


class Native:
    """A loop of uvloop's, and a native reactor on it.

    :ivar clock: the time of that reactor.
    :ivar problems: what the loop was left to report.
    """

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.problems.append(context))
        self.clock = LoopReactor(self.loop)
        self.reactor = NativeReactor(self.clock, self.loop)
        self.sockets: list[socket.socket] = []

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(test, SECONDS))

    def close(self) -> None:
        """Fail for what the loop had to report, and for tasks that a test left behind."""
        left = self.loop.run_until_complete(self._end())
        self.loop.close()
        assert not left, left
        assert not self.problems, self.problems

    async def _end(self) -> set[asyncio.Task[Any]]:
        for client in self.sockets:
            client.close()
        this = asyncio.current_task()
        for _ in range(100):
            left = {task for task in asyncio.all_tasks() if task is not this}
            if not left:
                return left
            await asyncio.sleep(0.001)
        for task in left:
            task.cancel()
        await asyncio.wait(left)
        return left

    async def accept(
        self, factory: Recorders, interface: str = "127.0.0.1"
    ) -> tuple[Recorder, socket.socket]:
        """Let a client connect; returns what serves it, and the client's socket."""
        listening = self.reactor.listenTCP(0, factory, interface=interface)
        try:
            return await self.call(factory, listening)
        finally:
            listening.stopListening()

    async def call(self, factory: Recorders, listening: NativePort) -> tuple[Recorder, socket.socket]:
        """Connect a client to a listening port."""
        address: Any = listening.getHost()
        if isinstance(address, UNIXAddress):
            family, name = socket.AF_UNIX, cast(Any, address.name)
        else:
            family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
            name = (address.host, address.port)
        client = socket.socket(family)
        self.sockets.append(client)
        client.setblocking(False)
        served = len(factory.made)
        await self.loop.sock_connect(client, name)
        await until(lambda: len(factory.made) > served and factory.made[-1].transport)
        return factory.made[-1], client

    @asynccontextmanager
    async def serve(
        self, handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> AsyncIterator[int]:
        """Let a coroutine serve each connection, which ends with it; gives the port."""
        serving: list[asyncio.Task[None]] = []

        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving.append(cast("asyncio.Task[None]", asyncio.current_task()))
            try:
                with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                    await handler(reader, writer)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve_one, host, port, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in serving:
                task.cancel()
            if serving:
                await asyncio.wait(serving)

    async def read_all(self, client: socket.socket) -> bytes:
        """What comes until the other side has ended."""
        data = b""
        while piece := await self.loop.sock_recv(client, 1 << 16):
            data += piece
        return data

    def fires(self, deferred: Deferred[T]) -> Awaitable[T]:
        """Wait for a Deferred on this loop."""
        return deferred.asFuture(self.loop)

    async def outcome(self, deferred: Deferred[Any]) -> Outcome:
        """Wait until a Deferred has fired, in whichever way."""
        outcome = Outcome(deferred)
        await until(lambda: not outcome.pending)
        return outcome


@contextmanager
def native_loop() -> Iterator[Native]:
    """A loop for one test."""
    native = Native()
    try:
        yield native
    finally:
        native.close()


async def until(true: Callable[[], Any]) -> None:
    """Let the loop turn until something holds; the test's own bound ends a wait that is in vain."""
    while not true():
        await asyncio.sleep(0.001)


class Recorder(Protocol):
    """Keeps what happens to a connection.

    :ivar data: what came; ``ends`` how it was lost, ``pauses`` what its transport asked of it as a producer.
    """

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[Failure] = []
        self.pauses: list[str] = []

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.ends.append(reason)

    @property
    def end(self) -> Failure:
        (end,) = self.ends
        return end

    def pauseProducing(self) -> None:
        self.pauses.append("pause")

    def resumeProducing(self) -> None:
        self.pauses.append("resume")

    def stopProducing(self) -> None:
        self.pauses.append("stop")


class Recorders(Factory[Recorder]):
    """Makes recorders, and keeps them.

    :ivar running: how often it was started and not stopped.
    """

    noisy = False

    def __init__(self) -> None:
        self.made: list[Recorder] = []
        self.peers: list[Any] = []

    def buildProtocol(self, addr: Any) -> Recorder | None:
        recorder = Recorder()
        self.made.append(recorder)
        self.peers.append(addr)
        return recorder


@contextmanager
def full_queue(host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """The address of a listening socket that lets nobody in: what connects to it hangs."""
    with socket.socket() as listening, socket.socket() as first:
        listening.bind((host, 0))
        listening.listen(0)
        address = listening.getsockname()
        first.connect(address)
        yield address


# Certificates


@attrs.frozen
class Authority:
    """A certificate authority that nobody but a test trusts."""

    ca: trustme.CA = attrs.field(factory=trustme.CA)

    def file(self, folder: Path) -> str:
        """Write its own certificate to a file, and return its path."""
        path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return str(path)

    def issue(self, *names: str, **settings: Any) -> Identity:
        return Identity(self.ca.issue_cert(*names, **settings))


@attrs.frozen
class Identity:
    """A server's certificate and key."""

    leaf: trustme.LeafCert

    def context(self) -> ssl.SSLContext:
        """What asyncio serves it with."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.leaf.configure_cert(context)
        return context

    def options(self) -> twisted_ssl.CertificateOptions:
        """What Twisted serves it with."""
        chain = [
            crypto.load_certificate(crypto.FILETYPE_PEM, blob.bytes()) for blob in self.leaf.cert_chain_pems
        ]
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, self.leaf.private_key_pem.bytes())
        return twisted_ssl.CertificateOptions(
            privateKey=key, certificate=chain[0], extraCertChain=chain[1:] or None
        )


@functools.cache
def authority(name: str = "trusted") -> Authority:
    """An authority of a name; the same for all tests, for keys take their time."""
    return Authority()
