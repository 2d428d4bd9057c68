"""A listening socket whose connections are native ones; :class:`~llmproxy.http.native.NativeReactor` binds it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from zope.interface import implementer

from llmproxy.http.tls import ServerCertificate
from llmproxy.http.transports import NativeTransport

if TYPE_CHECKING:
    from llmproxy.http.native import NativeReactor

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Seconds that the loop may wait for what was written to a TLS connection that is closed: whoever closes has a time of its own.
_NO_BOUND = 24 * 3600.0
_ACCEPT_AGAIN = 0.25  # seconds until accepting is tried again after descriptors ran out
_ACCEPT_AT_ONCE = (
    64  # connections accepted in one turn, so that a crowd at the door does not stop those inside
)


@implementer(IListeningPort)
class NativePort:
    """A listening socket. It accepts by itself, since the loop's servers cannot stop accepting for a while.

    :ivar tls: for TLS listeners, what to serve.
    """

    _log = Logger()

    def __init__(
        self, reactor: NativeReactor, sock: socket.socket, factory: Any, backlog: int | None
    ) -> None:
        self.tls: ServerCertificate | None = None
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
        if self._socket is not None and self._again is None and not self._adopted:
            # To whom the kernel has let in already, closing would be a reset. An adopted socket has others to accept for it.
            with contextlib.suppress(OSError):
                self._accept()
        sock, self._socket = self._socket, None
        if sock is not None:
            if self._again is not None:
                self._again.cancel()
            self._loop.remove_reader(sock.fileno())
            sock.close()
            # The file of an adopted socket is its owner's, who may still listen on it.
            if isinstance(self._host, UNIXAddress) and self._host.name and not self._adopted:
                remove_stale(os.fsdecode(self._host.name))
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
        loop: Any = self._loop  # uvloop's, with more arguments than typeshed knows for all Pythons
        try:
            await loop.connect_accepted_socket(
                lambda: transport,
                sock,
                ssl=None if self.tls is None else self.tls.context,
                ssl_shutdown_timeout=None if self.tls is None else _NO_BOUND,
            )
        except (OSError, ssl.SSLError, ConnectionError):
            sock.close()  # a peer that left, or whose handshake failed


def _host(sock: socket.socket) -> IAddress:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UNIXAddress(name)
    return (IPv6Address if sock.family == socket.AF_INET6 else IPv4Address)("TCP", *name)


def remove_stale(path: str) -> None:
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
