"""The part of a Twisted reactor that endpoints use, over the event loop's native transports.

Endpoints ask a reactor to ``listenTCP``, ``listenUNIX``, ``listenSSL``, ``adoptStreamPort`` and ``connectTCP``.
:class:`NativeReactor` does these natively and leaves all else to the reactor that it stands before, so every endpoint string,
name resolution and happy eyeballs work as they do in Twisted. :func:`native` says where that is possible.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectError, UserError, getConnectError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IAddress, IConnector
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.http import tls
from llmproxy.http.port import NativePort, remove_stale
from llmproxy.http.tls import ServerCertificate
from llmproxy.http.transports import NativeTransport


def native(reactor: Any) -> Any:
    """Return a reactor for endpoints: native transports where the reactor runs on uvloop, else the reactor itself."""
    loop = getattr(reactor, "_asyncioEventloop", None)
    return (
        NativeReactor(reactor, loop)
        if loop is not None and type(loop).__module__.startswith("uvloop")
        else reactor
    )


class NativeReactor:
    """A reactor whose connections are native ones.

    :param reactor: for everything else: time, name resolution, threads.
    :param loop: the asyncio event loop that it runs on.
    """

    def __init__(self, reactor: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._reactor = reactor
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> NativePort:
        """See ``IReactorTCP``."""
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((interface, port))
        except OSError as error:
            sock.close()
            raise CannotListenError(interface, port, error) from None
        return NativePort(self, sock, factory, backlog)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> NativePort:
        """See ``IReactorSSL``.

        :param contextFactory: a :class:`~llmproxy.http.tls.ServerCertificate`, which may be renewed while it is served, or
            Twisted's ``CertificateOptions``.
        """
        if not isinstance(contextFactory, ServerCertificate):
            contextFactory = ServerCertificate(tls.for_native(contextFactory))
        listening = self.listenTCP(port, factory, backlog, interface)
        listening.tls = contextFactory
        return listening

    def listenUNIX(
        self, address: str | bytes, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> NativePort:
        """See ``IReactorUNIX``; a socket file that nobody listens on any more is replaced."""
        path = os.fsdecode(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            remove_stale(path)
            sock.bind(path)
            Path(path).chmod(mode)
        except OSError as error:
            sock.close()
            raise CannotListenError(None, path, error) from None
        return NativePort(self, sock, factory, backlog)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> NativePort:
        """See ``IReactorSocket``."""
        sock = socket.socket(addressFamily, socket.SOCK_STREAM, fileno=os.dup(fileDescriptor))
        return NativePort(self, sock, factory, None)

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: tuple[str, int] | None = None,
    ) -> NativeConnector:
        """See ``IReactorTCP``; ``host`` is an address, as endpoints give it."""
        connector = NativeConnector(self, host, port, factory, timeout, bindAddress)
        connector.connect()
        return connector

    def start_tls(self, transport: NativeTransport, context: ssl.SSLContext, hostname: str) -> Deferred[None]:
        """Begin TLS as a client on a connection that is up.

        :return: fires when the handshake is done and the certificate was found good for ``hostname``. Cancelling it makes it
            fail at once.
        """

        def tell(result: Any) -> None:
            if not secured.called:
                secured.callback(result)

        handshake = transport.start_tls(self._loop, context, hostname)
        handshaking = Deferred.fromFuture(asyncio.ensure_future(handshake, loop=self._loop))
        # A task ends in a later turn than the one in which it is cancelled, and may have done its work by then.
        secured: Deferred[None] = Deferred(lambda _: handshaking.cancel())
        handshaking.addBoth(tell)
        return secured


@implementer(IConnector)
class NativeConnector:
    """One attempt to connect."""

    def __init__(
        self,
        reactor: NativeReactor,
        host: str,
        port: int,
        factory: Any,
        timeout: float,
        bindAddress: tuple[str, int] | None,
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._factory = factory
        self._timeout = timeout
        self._bind = bindAddress
        self._task: asyncio.Task[None] | None = None
        self._transport: NativeTransport | None = None

    def connect(self) -> None:
        """Begin to connect."""
        self._factory.doStart()
        self._factory.startedConnecting(self)
        self._task = asyncio.ensure_future(self._connect(), loop=self._reactor._loop)

    def stopConnecting(self) -> None:
        """Give up the attempt."""
        self._fail(UserError())

    def disconnect(self) -> None:
        """Give up the attempt, or close the connection that it made."""
        if self._task is not None:
            self.stopConnecting()
        elif self._transport is not None:
            self._transport.loseConnection()

    def getDestination(self) -> IAddress:
        """The address that is connected to."""
        return (IPv6Address if ":" in self._host else IPv4Address)("TCP", self._host, self._port)

    async def _connect(self) -> None:
        transport = self._transport = NativeTransport(self, reads_rest=True)
        timer = self._reactor.callLater(self._timeout, self._fail, ConnectTimeoutError())
        try:
            await self._reactor._loop.create_connection(
                lambda: transport, self._host, self._port, local_addr=self._bind
            )
        except OSError as error:
            self._fail(
                getConnectError((error.errno, error.strerror))
                if error.errno
                else ConnectError(string=str(error))
            )
        finally:
            if timer.active():
                timer.cancel()

    def buildProtocol(self, peer: IAddress) -> Any:
        """Build the protocol of the connection, which is up; what the server says at once is for it."""
        if self._task is None:
            return None  # the attempt was given up
        self._task = None
        return self._factory.buildProtocol(self.getDestination())

    def _fail(self, reason: Exception) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._transport = None
            task.cancel()
            self._factory.clientConnectionFailed(self, Failure(reason))
            self._factory.doStop()
