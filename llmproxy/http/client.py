"""The client side: an ``IAgent`` on twisted.web's connection pool, exact where ``twisted.web.client.Agent`` is not.

Agent rewrites the request target (a trailing ``;`` goes), hides ``Connection`` and ``Content-Length`` of a response, makes a
TLS context for each connection, which costs 12 ms, and cannot abort a response. This agent drives the same pool and protocol
without these. It sends no request twice, and leaves redirects, cookies and encodings alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from twisted.web.client import (
    BrowserLikePolicyForHTTPS,
    HTTP11ClientProtocol,
    HTTPConnectionPool,
    PotentialDataLoss,
    Request,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from llmproxy.http.interfaces import IAbortableResponse

# Seconds. Some upstreams drop an idle connection after 5; a request that meets that drop could not be sent again safely.
IDLE_CONNECTION = 4.0
IDLE_CONNECTIONS_PER_UPSTREAM = 256


@implementer(IAgent)
class PooledAgent:
    """Sends requests over kept-alive connections; certificates are always verified.

    :param reactor: for connections, name resolution and timeouts.
    :param connect_timeout: seconds until a new connection, its TLS handshake included, must be up.
    :param tls_policy: which authorities are trusted; by default the platform's.
    """

    def __init__(self, reactor: Any, connect_timeout: float, tls_policy: IPolicyForHTTPS | None = None) -> None:
        self._reactor = reactor
        self._connect_timeout = connect_timeout
        self._tls_policy = BrowserLikePolicyForHTTPS() if tls_policy is None else tls_policy
        self._endpoints: dict[Hashable, IStreamClientEndpoint] = {}
        self._pool = HTTPConnectionPool(reactor)
        self._pool._factory = _ConnectionFactory
        self._pool.retryAutomatically = False
        self._pool.cachedConnectionTimeout = IDLE_CONNECTION
        self._pool.maxPersistentPerHost = IDLE_CONNECTIONS_PER_UPSTREAM

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IAbortableResponse]:
        """Send one request; the bytes of ``uri`` from its path on are the request target.

        :param headers: as sent, ``Host`` among them; the framing comes from ``bodyProducer.length``.
        :return: fires when the response's headers are there; cancelling it closes the connection. It fails with what
            ``twisted.internet.error``, ``twisted.web.client`` and OpenSSL raise.
        """
        scheme, _, rest = uri.partition(b"://")
        netloc, slash, path = rest.partition(b"/")
        sent = Headers() if headers is None else headers.copy()
        # twisted.web asked the client for the body before there was a request, so there is nothing left to expect.
        sent.removeHeader(b"expect")
        connected: Deferred[Any] = self._pool.getConnection((scheme, netloc), self._endpoint(scheme, netloc))
        if not connected.called:
            connected.addTimeout(self._connect_timeout, self._reactor, _fail_to_connect)
        return connected.addCallback(_send, method, slash + path, sent, bodyProducer)

    def close(self) -> Deferred[object]:
        """Close the idle connections."""
        return self._pool.closeCachedConnections()

    def _endpoint(self, scheme: bytes, netloc: bytes) -> IStreamClientEndpoint:
        endpoint = self._endpoints.get((scheme, netloc))
        if endpoint is None:
            host, port = _split_netloc(netloc, 443 if scheme == b"https" else 80)
            endpoint = HostnameEndpoint(self._reactor, host, port, timeout=self._connect_timeout)
            if scheme == b"https":
                options = self._tls_policy.creatorForNetloc(host.encode("ascii"), port)
                endpoint = _HandshakingEndpoint(wrapClientTLS(options, endpoint))
            self._endpoints[scheme, netloc] = endpoint
        return endpoint


def _split_netloc(netloc: bytes, default_port: int) -> tuple[str, int]:
    host, colon, port = netloc.decode("ascii").rpartition(":")
    if not colon or port.endswith("]"):
        host, port = netloc.decode("ascii"), str(default_port)
    return host.strip("[]"), int(port)


def _fail_to_connect(result: object, seconds: float) -> object:
    # addTimeout would raise defer.TimeoutError, which names a Deferred and is no ConnectError.
    if isinstance(result, Failure) and result.check(CancelledError):
        raise ConnectTimeoutError
    return result


def _send(
    connection: Any, method: bytes, target: bytes, headers: Headers, body: IBodyProducer | None
) -> Deferred[IAbortableResponse]:
    answered: Deferred[Any] = connection.request(Request(method, target, headers, body, persistent=True))
    return answered.addCallback(_Response, connection, connection._parser)


class _Connection(HTTP11ClientProtocol):
    """A connection that remembers how it was lost."""

    lost: Failure | None = None

    def connectionLost(self, reason: Failure) -> None:
        self.lost = reason
        super().connectionLost(reason)


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, quiescentCallback: Callable[[IProtocol], None], metadata: str) -> None:
        self._quiescent = quiescentCallback
        self._metadata = metadata

    def __repr__(self) -> str:
        return f"<connections to {self._metadata}>"

    def buildProtocol(self, addr: IAddress | None) -> _Connection:
        return _Connection(self._quiescent)


class _Response(proxyForInterface(IResponse)):  # type: ignore[misc]
    """A response that tells all of its headers, and can be given up.

    twisted.web keeps the headers that steer a connection in the parser, out of the application's sight, and offers no abort
    at all. The parser is private, but it is the one place that has them; it stands on the connection while a response lasts.
    """

    def __init__(self, original: IResponse, connection: Any, parser: Any) -> None:
        super().__init__(original)
        self._connection = connection
        self._parser = parser
        self._all_headers = original.headers.copy()
        if parser is not None:
            for name, values in parser.connHeaders.getAllRawHeaders():
                self._all_headers.setRawHeaders(name, values)

    @property
    def headers(self) -> Headers:
        return self._all_headers

    def deliverBody(self, protocol: IProtocol) -> None:
        body = _Body(protocol, self._connection)
        self.original.deliverBody(body)
        # twisted.web resumes the transport after makeConnection; a pause that the protocol asked for there still holds.
        if body.paused:
            body.pauseProducing()

    def abort(self) -> None:
        if self._parser is not None and self._connection._parser is self._parser:
            self._connection.transport.abortConnection()


@implementer(IPushProducer)
class _Body(proxyForInterface(IProtocol)):  # type: ignore[misc]
    """What twisted.web delivers a body to, and at the same time what the body's protocol has for a transport."""

    def __init__(self, original: IProtocol, connection: _Connection) -> None:
        super().__init__(original)
        self._connection = connection
        self._transport: Any = None
        self.paused = False

    def makeConnection(self, transport: Any) -> None:
        self._transport = transport
        self.original.makeConnection(self)

    def connectionLost(self, reason: Failure) -> None:
        # A body that the close of its connection ended (RFC 9112 section 6.3, rule 8) is whole, one that a reset cut off is
        # not. twisted.web reports both as PotentialDataLoss.
        lost = self._connection.lost
        if reason.check(PotentialDataLoss) and lost is not None and not lost.check(ConnectionDone):
            reason = Failure(ResponseFailed([lost]))
        self.original.connectionLost(reason)

    def pauseProducing(self) -> None:
        self.paused = True
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        self._transport.stopProducing()


@implementer(IStreamClientEndpoint)
class _HandshakingEndpoint:
    """A TLS endpoint whose connections count as made once the handshake is done.

    So a peer that accepts and says nothing runs into the connect timeout, and a bad certificate is a failure to connect. The
    stock endpoint hands out a connection before its first TLS byte.
    """

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def __repr__(self) -> str:
        return f"<TLS {self._endpoint!r}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connected = self._endpoint.connect(Factory.forProtocol(lambda: _Handshake(protocolFactory)))
        return connected.addCallback(lambda handshake: handshake.done)


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """Waits for the end of a TLS handshake, then stands in for the protocol that the factory makes."""

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        self.done: Deferred[IProtocol] = Deferred(lambda _: self.transport.abortConnection())

    def handshakeCompleted(self) -> None:
        peer: IAddress = self.transport.getPeer()
        protocol = self._factory.buildProtocol(peer)
        protocol.makeConnection(self.transport)
        self.dataReceived = protocol.dataReceived  # type: ignore[method-assign]
        self.connectionLost = protocol.connectionLost  # type: ignore[method-assign]
        self.done.callback(protocol)

    def connectionLost(self, reason: Failure | None = None) -> None:
        if not self.done.called:
            self.done.errback(reason)


