"""How a connection to an upstream comes up: name resolution, TCP, perhaps an HTTP proxy's CONNECT, TLS.

It counts as up when all of that is done, so that one timeout covers it, and a bad certificate is a failure to connect.
Certificates are always verified; a context is made once, since making one costs milliseconds of reactor time.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

import attrs
import httptools
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import HostnameAddress
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.http.transports import NativeTransport


@attrs.frozen
class Origin:
    """Where requests go (RFC 6454 section 4): connections to one origin are interchangeable."""

    scheme: str
    host: str
    port: int


class Dialer:
    """Opens connections.

    :param reactor: from :func:`llmproxy.http.native.native`.
    :param timeout: seconds until a connection must be up.
    :param ca_files: for an origin's host name, a file of PEM certificates to trust in the place of the platform's.
    :param proxy_for: for a host name, the URL of the HTTP proxy to go through, or ``None``. Only TLS goes through proxies.
    """

    def __init__(
        self,
        reactor: Any,
        timeout: float,
        ca_files: Mapping[str, str],
        proxy_for: Callable[[str], SplitResult | None],
    ) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._ca_files = ca_files
        self._proxy_for = proxy_for
        self._contexts: dict[str, Any] = {}

    def dial(self, origin: Origin, make: Callable[[], Protocol]) -> Deferred[Any]:
        """Open a connection.

        :param make: makes the protocol that the connection is for.
        :return: fires with that protocol once it is connected. It fails with what ``twisted.internet.error``, ``ssl`` and
            OpenSSL raise; with ``twisted.internet.error.TimeoutError`` where it took too long. Cancelling it makes it fail at
            once, in one of these ways or with ``ConnectingCancelledError``.
        """
        dialling = self._dial(origin, make)
        late: list[bool] = []

        def give_up() -> None:
            late.append(True)
            dialling.cancel()

        timer = self._reactor.callLater(self._timeout, give_up)

        def settle(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            # Each step fails in its own way when it is cancelled.
            if late and isinstance(result, Failure):
                raise ConnectTimeoutError
            if isinstance(result, Failure) and result.check(CancelledError):
                raise ConnectingCancelledError(HostnameAddress(origin.host.encode("ascii"), origin.port))
            return result

        return dialling.addBoth(settle)

    @inlineCallbacks
    def _dial(self, origin: Origin, make: Callable[[], Protocol]) -> Generator[Deferred[Any], Any, Protocol]:
        proxy = self._proxy_for(origin.host) if origin.scheme == "https" else None
        host, port = (origin.host, origin.port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
        stand_in: _StandIn = yield self._endpoint(host, port).connect(_Makes(_StandIn))
        try:
            if proxy is not None:
                tunnel = _Tunnel(origin, proxy)
                stand_in.give_way(tunnel)
                yield tunnel.open
            if origin.scheme == "https":
                stand_in = yield self._secure(stand_in, origin.host)
        except BaseException:
            stand_in.transport.abortConnection()
            raise
        protocol = make()
        stand_in.give_way(protocol)
        return protocol

    def _endpoint(self, host: str, port: int) -> IStreamClientEndpoint:
        # A name may have several addresses, which are tried side by side (RFC 8305). An address needs none of that.
        if isIPAddress(host):
            return TCP4ClientEndpoint(self._reactor, host, port, timeout=self._timeout)
        if isIPv6Address(host):
            return TCP6ClientEndpoint(self._reactor, host, port, timeout=self._timeout)
        return HostnameEndpoint(self._reactor, host, port, timeout=self._timeout)

    @inlineCallbacks
    def _secure(self, below: _StandIn, host: str) -> Generator[Deferred[Any], Any, _StandIn]:
        """Do the TLS handshake; returns what stands in above it."""
        transport = below.transport
        if isinstance(transport, NativeTransport):
            yield self._reactor.start_tls(transport, self._context(host, self._native_context), host)
            return below
        above = _StandIn()
        options = self._context(host, self._twisted_options)
        factory = TLSMemoryBIOFactory(options, True, _Makes(lambda: above), self._reactor)
        below.give_way(factory.buildProtocol(None))
        yield above.secured
        return above

    def _context(self, host: str, make: Callable[[str], Any]) -> Any:
        if host not in self._contexts:
            self._contexts[host] = make(host)
        return self._contexts[host]

    def _native_context(self, host: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_files.get(host))
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _twisted_options(self, host: str) -> Any:
        ca_file = self._ca_files.get(host)
        return optionsForClientTLS(host, platformTrust() if ca_file is None else _trust(ca_file))


def _trust(ca_file: str) -> Any:
    # Twisted reads one certificate at a time; a bundle holds many.
    end = b"-----END CERTIFICATE-----"
    parts = Path(ca_file).read_bytes().split(end)[:-1]
    return trustRootFromCertificates([Certificate.loadPEM(part + end) for part in parts])


class _Makes(Factory[Any]):
    """A factory for one kind of protocol, which says nothing in the log."""

    noisy = False

    def __init__(self, make: Callable[[], Protocol]) -> None:
        self._make = make

    def buildProtocol(self, addr: object) -> Protocol:
        return self._make()


@implementer(IHandshakeListener)
class _StandIn(Protocol):
    """The protocol of a connection that is not up yet; gives way to the next.

    :ivar secured: fires when a TLS handshake beneath this is done.
    """

    transport: Any

    def __init__(self) -> None:
        self._next: Any = None
        self.secured: Deferred[None] = Deferred()

    def give_way(self, protocol: Any) -> None:
        """Connect another protocol in the place of this one."""
        self._next = protocol
        if isinstance(self.transport, NativeTransport):
            self.transport.switch(protocol)
        else:
            self.dataReceived = protocol.dataReceived  # type: ignore[method-assign]
            protocol.makeConnection(self.transport)

    def handshakeCompleted(self) -> None:
        self.secured.callback(None)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self._next is not None:
            self._next.connectionLost(reason)
        elif not self.secured.called:
            self.secured.errback(reason)
            self.secured.addErrback(lambda _: None)


class _Tunnel(Protocol):
    """Asks an HTTP proxy for a tunnel (RFC 9110 section 9.3.6).

    :ivar open: fires when there is one; fails with ConnectError where the proxy refuses.
    """

    transport: Any

    def __init__(self, origin: Origin, proxy: SplitResult) -> None:
        self.open: Deferred[None] = Deferred()
        self._proxy = proxy
        self._authority = (
            f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
        )
        self._parser = httptools.HttpResponseParser(self)

    def connectionMade(self) -> None:
        lines = [f"CONNECT {self._authority} HTTP/1.1", f"Host: {self._authority}"]
        if self._proxy.username is not None:
            credentials = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode('ascii')}")
        self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii"))

    def dataReceived(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refused("it does not speak HTTP")

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        if not 200 <= code < 300:
            self._refused(f"it answered {code}")
        elif not self.open.called:
            self.open.callback(None)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._refused("it closed the connection")

    def _refused(self, why: str) -> None:
        if not self.open.called:
            self.open.errback(
                ConnectError(string=f"the HTTP proxy {self._proxy.hostname} gave no tunnel: {why}")
            )
