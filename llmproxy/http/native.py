"""The part of a Twisted reactor that endpoints use, over the event loop's native transports.

Endpoints ask a reactor to ``listenTCP``, ``listenUNIX``, ``listenSSL``, ``adoptStreamPort`` and ``connectTCP``.
:class:`NativeReactor` does these natively and leaves all else to the reactor that it stands before, so every endpoint string,
name resolution and happy eyeballs work as they do in Twisted. :func:`native` says where that is possible.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ConnectError, UserError, getConnectError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IAddress, IConnector, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.http.transports import NativeTransport

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_AGAIN = 0.25  # seconds until accepting is tried again after descriptors ran out
_ACCEPT_AT_ONCE = (
    64  # connections accepted in one turn, so that a crowd at the door does not stop those inside
)


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
        """See ``IReactorSSL``; the context is made from the certificate and key of Twisted's ``CertificateOptions``."""
        listening = self.listenTCP(port, factory, backlog, interface)
        listening.tls = _server_context(contextFactory)
        return listening

    def listenUNIX(
        self, address: str | bytes, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> NativePort:
        """See ``IReactorUNIX``; a socket file that nobody listens on any more is replaced."""
        path = os.fsdecode(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(path)
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

        :return: fires when the handshake is done and the certificate was found good for ``hostname``.
        """
        return transport.start_tls(self._loop, context, hostname)


@implementer(IListeningPort)
class NativePort:
    """A listening socket. It accepts by itself, since the loop's servers cannot stop accepting for a while.

    :ivar tls: for TLS listeners, what to serve.
    """

    _log = Logger()

    def __init__(
        self, reactor: NativeReactor, sock: socket.socket, factory: Any, backlog: int | None
    ) -> None:
        self.tls: ssl.SSLContext | None = None
        self._reactor = reactor
        self._loop = reactor._loop
        self._socket: socket.socket | None = sock
        self._factory = factory
        self._again: Any = None
        self._accepting: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        self._adopted = backlog is None
        if backlog is not None:
            sock.listen(backlog)
        self._host = _host(sock)
        factory.doStart()
        self.startListening()

    def __repr__(self) -> str:
        return f"<NativePort {self._host}{'' if self._socket else ' closed'}>"

    def startListening(self) -> None:
        """Accept connections; called at once, and again when there were no descriptors for a while."""
        self._again = None
        if self._socket is not None:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def stopListening(self) -> Deferred[None]:
        """Close the socket; connections that it accepted are not touched."""
        sock, self._socket = self._socket, None
        if sock is not None:
            if self._again is not None:
                self._again.cancel()
            self._loop.remove_reader(sock.fileno())
            sock.close()
            # The file of an adopted socket is its owner's, who may still listen on it.
            if isinstance(self._host, UNIXAddress) and self._host.name and not self._adopted:
                _remove_stale(os.fsdecode(self._host.name))
            self._factory.doStop()
        return succeed(None)

    def getHost(self) -> IAddress:
        """The address that is listened on."""
        return self._host

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            listening = self._socket
            if listening is None:
                return
            try:
                sock, _peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            sock.setblocking(False)
            task = asyncio.ensure_future(self._serve(sock), loop=self._loop)
            self._accepting.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._accepting.discard)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Leave the callers in the kernel's queue: those that are connected are served, and then there is room again."""
        if error.errno not in _OUT_OF_RESOURCES:
            raise error
        self._loop.remove_reader(listening.fileno())
        self._again = self._reactor.callLater(_ACCEPT_AGAIN, self.startListening)
        self._log.warn(
            "No connections are accepted for a moment on {host}: {error}",
            host=self._host,
            error=error.strerror,
        )

    async def _serve(self, sock: socket.socket) -> None:
        transport = NativeTransport(self._factory)
        try:
            await self._loop.connect_accepted_socket(lambda: transport, sock, ssl=self.tls)
        except (OSError, ssl.SSLError, ConnectionError):
            sock.close()  # a peer that left, or whose handshake failed


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
        transport = self._transport = NativeTransport(self)
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


def _host(sock: socket.socket) -> IAddress:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UNIXAddress(name)
    return (IPv6Address if sock.family == socket.AF_INET6 else IPv4Address)("TCP", *name)


def _remove_stale(path: str) -> None:
    """Remove a socket file, and nothing that is not one, unless somebody listens on it."""
    try:
        if not Path(path).is_socket():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        Path(path).unlink()
    except FileNotFoundError:
        pass


def _server_context(options: Any) -> ssl.SSLContext:
    """The standard library's context for Twisted's ``CertificateOptions``.

    ``load_cert_chain`` reads files only, so the PEM goes through one that has no name and exists in memory alone.
    """
    key = options.privateKey.to_cryptography_key()
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for certificate in [options.certificate, *(options.extraCertChain or ())]:
        pem += certificate.to_cryptography().public_bytes(Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
