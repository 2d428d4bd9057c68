"""The client side of the engine: an ``IAgent`` over pooled connections.

It sends what it is given, byte for byte, and hands responses back as they came. Redirects, cookies and encodings are not its
business. One fault it mends by itself: a kept connection that the upstream had dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from llmproxy.http.connection import UpstreamConnection
from llmproxy.http.dial import Dialer, Origin
from llmproxy.http.fields import Fields, pairs_of
from llmproxy.http.interfaces import IStreamedBody, IWholeBody
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.native import native
from llmproxy.http.pool import Pool
from llmproxy.http.response import Response


def _directly(host: str) -> SplitResult | None:
    return None


@implementer(IAgent)
class PooledAgent:
    """Sends requests over kept-alive connections; certificates are always verified.

    :param reactor: for connections, name resolution and timeouts.
    :param ca_files: for a host name, a file of PEM certificates to trust in the place of the platform's.
    :param proxy_for: for a host name, the URL of the HTTP proxy to tunnel TLS through, or ``None``.
    """

    def __init__(
        self,
        reactor: Any,
        limits: UpstreamLimits | None = None,
        ca_files: Mapping[str, str] | None = None,
        proxy_for: Callable[[str], SplitResult | None] = _directly,
    ) -> None:
        self._reactor = native(reactor)
        self._limits = limits or UpstreamLimits()
        self._dialer = Dialer(self._reactor, self._limits.connect, ca_files or {}, proxy_for)
        self._pools: dict[bytes, Pool] = {}

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[Any]:
        """Send one request; the bytes of ``uri`` from its path on are the request target.

        :param headers: as sent, ``Host`` among them; the framing comes from ``bodyProducer.length``. As
            :class:`~llmproxy.http.fields.OutgoingFields` they also say who is told of interim responses.
        :return: fires when the response's headers are there; cancelling it closes the connection. It fails with what
            ``twisted.internet.error``, ``twisted.web.client``, ``ssl`` and OpenSSL raise.
        """
        authority_end = uri.index(b"/", uri.index(b"://") + 3)
        pool = self._pool(uri[:authority_end])
        fields = (
            headers if isinstance(headers, Fields) else Fields(() if headers is None else pairs_of(headers))
        )
        sending = _Sending(pool, self._limits, method, uri[authority_end:], fields, bodyProducer)
        connection = pool.take()
        return pool.acquire().addCallback(sending.send) if connection is None else sending.send(connection)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their exchanges are over."""
        for pool in self._pools.values():
            pool.close()

    def _pool(self, base: bytes) -> Pool:
        pool = self._pools.get(base)
        if pool is None:
            origin = _origin(base)
            pool = Pool(self._reactor, self._limits, lambda make: self._dialer.dial(origin, make))
            self._pools[base] = pool
        return pool


class _Sending:
    """One request, and the one case in which it is sent again.

    A *kept* connection may have been dropped by the upstream in the moment in which we use it. Where it was *reset* before a
    byte of response, the upstream had closed it and read nothing, so a fresh connection is tried once. Where it was *closed* in
    order, the upstream may have read the request and acted on it; that is not for us to repeat.
    """

    def __init__(
        self,
        pool: Pool,
        limits: UpstreamLimits,
        method: bytes,
        target: bytes,
        fields: Fields,
        body: IBodyProducer | None,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._request = (method, target, fields)
        self._body = body

    def send(self, connection: UpstreamConnection) -> Deferred[Response]:
        body = self._body
        if connection.exchanges == 0:
            return self._send(connection, body)
        if body is not None and not _is_whole(body, self._limits.held_body):
            body = _HeldBody(body, self._limits.held_body)
        return self._send(connection, body).addErrback(self._send_again, body)

    def _send(self, connection: UpstreamConnection, body: IBodyProducer | IWholeBody | None) -> Deferred[Any]:
        method, target, fields = self._request
        return connection.send(method, target, fields, body, getattr(fields, "informational", None))

    def _send_again(self, failure: Failure, body: Any) -> Any:
        fault = failure.value
        if not isinstance(fault, (ResponseNeverReceived, RequestTransmissionFailed)) or fault.reasons[
            0
        ].check(ConnectionDone):
            return failure
        again = body.again() if isinstance(body, _HeldBody) else body
        if again is None and body is not None:
            return failure
        return self._pool.acquire().addCallback(self._send, again)


def _is_whole(body: IBodyProducer, limit: int) -> bool:
    return IStreamedBody.providedBy(body) and body.received <= limit and body.whole() is not None


@implementer(IBodyProducer, IConsumer)
class _HeldBody:
    """A body that is kept as it passes, up to a bound, so that it can be produced again.

    :param limit: bytes; a larger body is not kept.
    """

    def __init__(self, body: IBodyProducer, limit: int) -> None:
        self._body = body
        self._limit = limit
        self._parts: list[bytes] | None = []
        self._size = 0
        self._started = self._whole = False
        self.length = body.length

    @property
    def trailers(self) -> Fields | None:
        return getattr(self._body, "trailers", None)

    def again(self) -> Any:
        """The same body once more, or ``None`` where it is not all here."""
        if not self._started:
            return self._body
        return _KnownBody(self._parts, self) if self._whole and self._parts is not None else None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._started = True
        self._consumer = consumer
        producing: Deferred[None] = self._body.startProducing(self)
        return producing.addCallback(self._done)

    def write(self, data: bytes) -> None:
        if self._parts is not None:
            self._size += len(data)
            if self._size > self._limit:
                self._parts = None
            else:
                self._parts.append(data)
        self._consumer.write(data)

    def pauseProducing(self) -> None:
        self._body.pauseProducing()

    def resumeProducing(self) -> None:
        self._body.resumeProducing()

    def stopProducing(self) -> None:
        if not self._whole and self._started:
            self._body.stopProducing()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The transport has the producer already."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def _done(self, result: None) -> None:
        self._whole = True
        del self._consumer  # it refers back to this, and gets no more


@implementer(IWholeBody)
class _KnownBody:
    """A body that is all here, and so is never asked to produce it."""

    def __init__(self, parts: list[bytes], like: _HeldBody) -> None:
        self._parts = parts
        self.length = like.length
        self.trailers = like.trailers

    def whole(self) -> bytes:
        return b"".join(self._parts)


def _origin(base: bytes) -> Origin:
    scheme, _, authority = base.decode("ascii").partition("://")
    host, colon, port = authority.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = authority, "443" if scheme == "https" else "80"
    return Origin(scheme, host.strip("[]"), int(port))
