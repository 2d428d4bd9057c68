"""The client side of the engine: an ``IAgent`` over pooled connections.

It sends what it is given, byte for byte, and hands responses back as they came. Redirects, cookies and encodings are not its
business. One fault it mends by itself: a kept connection that the upstream had dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import SplitResult

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from llmproxy.http.connection import UpstreamConnection
from llmproxy.http.dial import Dialer, Origin
from llmproxy.http.fields import Fields, pairs_of
from llmproxy.http.held_body import again, hold
from llmproxy.http.interfaces import IWholeBody
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.native import native
from llmproxy.http.pool import Pool
from llmproxy.http.response import Response

# Seconds within which a connection that the upstream had dropped is reset by what is sent on it: to most upstreams, more than a
# round trip. In more time than that, one may read a request, act on it and fail; then the client has to decide.
_ROUND_TRIP = 0.25


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
        sending = _Sending(
            self._reactor, pool, self._limits, method, uri[authority_end:], fields, bodyProducer
        )
        connection = pool.take()
        return pool.acquire().addCallback(sending.send) if connection is None else sending.send(connection)

    @property
    def pools(self) -> Iterable[Pool]:
        """The connections, by where they lead."""
        return self._pools.values()

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
    byte of response, and within a round trip of the sending, the upstream had closed it and read nothing, so a fresh connection
    is tried once. Where it was reset later, or *closed* in order, the upstream may have read the request and acted on it; that
    is not for us to repeat.
    """

    def __init__(
        self,
        clock: IReactorTime,
        pool: Pool,
        limits: UpstreamLimits,
        method: bytes,
        target: bytes,
        fields: Fields,
        body: IBodyProducer | None,
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._limits = limits
        self._request = (method, target, fields)
        self._body = body

    def send(self, connection: UpstreamConnection) -> Deferred[Response]:
        if connection.exchanges == 0:
            return self._send(connection, self._body)
        body = hold(self._body, self._limits.held_body)
        begun = self._clock.seconds()
        return self._send(connection, body).addErrback(self._send_again, body, begun)

    def _send(self, connection: UpstreamConnection, body: IBodyProducer | IWholeBody | None) -> Deferred[Any]:
        method, target, fields = self._request
        return connection.send(method, target, fields, body, getattr(fields, "informational", None))

    def _send_again(self, failure: Failure, body: Any, begun: float) -> Any:
        fault = failure.value
        if self._clock.seconds() - begun > _ROUND_TRIP:
            return failure
        if not isinstance(fault, (ResponseNeverReceived, RequestTransmissionFailed)) or fault.reasons[
            0
        ].check(ConnectionDone):
            return failure
        fresh = again(body)
        if fresh is None and body is not None:
            return failure
        return self._pool.acquire().addCallback(self._send, fresh)


def _origin(base: bytes) -> Origin:
    scheme, _, authority = base.decode("ascii").partition("://")
    host, colon, port = authority.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = authority, "443" if scheme == "https" else "80"
    return Origin(scheme, host.strip("[]"), int(port))
