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

from llmproxy.http.interfaces import IDoor
from llmproxy.http.sockets import reset
from llmproxy.http.tls import ServerCertificate
from llmproxy.http.transports import NativeTransport

if TYPE_CHECKING:
    from llmproxy.http.native import NativeReactor

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Seconds that the loop may wait for what was written to a TLS connection that is closed: whoever closes has a time of its own.
_NO_BOUND = 24 * 3600.0
_ACCEPT_AGAIN = 0.25  # seconds until accepting is tried again after descriptors ran out
_CROWDED = "clients have as many file descriptors as leave one for an upstream to each of them"
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
        self._door: Any = factory if IDoor.providedBy(factory) else None
        self._warned = False
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
        for turn in range(_ACCEPT_AT_ONCE):
            listening = self._socket
            if listening is None:
                return
            if self._door is not None and self._door.crowded:
                if turn == 0:  # somebody waits
                    self._pause(listening, _CROWDED)
                return
            try:
                sock, peer = listening.accept()
            except BlockingIOError:
                self._warned = False  # nobody waits any more
                return
            except (InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause(listening, error.strerror)
                return
            self._let_in(sock, peer[0] if isinstance(peer, tuple) else "")

    def _let_in(self, sock: socket.socket, host: str) -> None:
        factory = self._factory
        if self._door is not None:
            if not self._door.expect(host):
                reset(sock)
                return
            factory = _Expected(self._door, host)
        sock.setblocking(False)
        task = asyncio.ensure_future(self._serve(sock, factory), loop=self._loop)
        self._accepting.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._accepting.discard)

    def _pause(self, listening: socket.socket, reason: str | None) -> None:
        """Leave the callers in the kernel's queue: those that are connected are served, and then there is room again."""
        self._loop.remove_reader(listening.fileno())
        self._again = self._reactor.callLater(_ACCEPT_AGAIN, self.startListening)
        if not self._warned:
            self._warned = True  # until the queue was empty
            self._log.warn(
                "No connections are accepted for now on {host}: {reason}", host=self._host, reason=reason
            )

    async def _serve(self, sock: socket.socket, factory: Any) -> None:
        transport = NativeTransport(factory)
        loop: Any = self._loop  # uvloop's, with more arguments than typeshed knows for all Pythons
        try:
            await loop.connect_accepted_socket(
                lambda: transport,
                sock,
                ssl=None if self.tls is None else self.tls.context,
                ssl_handshake_timeout=None
                if self.tls is None or self._door is None
                else self._door.limits.header_time,
                ssl_shutdown_timeout=None if self.tls is None else _NO_BOUND,
            )
        except (OSError, ssl.SSLError, ConnectionError):
            sock.close()  # a peer that left, or whose handshake failed or took too long
        finally:
            if isinstance(factory, _Expected):
                factory.leave()


class _Expected:
    """The factory of one connection, which has a place from the moment that it was accepted."""

    def __init__(self, door: Any, host: str) -> None:
        self._door = door
        self._host = host
        self._waits = True

    def buildProtocol(self, peer: IAddress) -> Any:
        """Build the protocol of the connection, which is up and is counted as such from now on."""
        self.leave()
        return self._door.buildProtocol(peer)

    def leave(self) -> None:
        """Give the place back."""
        if self._waits:
            self._waits = False
            self._door.expect_no_more(self._host)


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
