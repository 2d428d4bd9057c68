"""The event loop's own transports, as Twisted transports.

Twisted's asyncio reactor moves bytes through Twisted's own sockets, in Python, also when its loop is uvloop. The loop's native
transports do it in C. Who makes them is in :mod:`llmproxy.http.native`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.http.sockets import NO_LINGER, address_of, read_rest, unsent

WRITE_BUFFER = 64 * 1024  # bytes that may wait in a transport before its producer is paused

_LOOK_AGAIN = 0.5  # seconds between two looks whether the peer of a TLS connection that is closed has all that was written
_REST = 1 << 20  # bytes that are read at most of what a peer had sent before its connection broke
_DONE = Failure(ConnectionDone())
_ABORTED = Failure(ConnectionAborted())


@implementer(ITCPTransport, IPushProducer)
class NativeTransport(asyncio.Protocol):
    """Stands between a native transport, as its protocol, and a Twisted protocol, as its transport.

    :param factory: what builds the protocol, before the loop begins to read.
    :param reads_rest: whether what the peer had sent still counts when it takes nothing more: an upstream's answer does, a
        request of a client that is gone does not.
    :ivar protocol: what the bytes go to, once :meth:`switch` has connected one.
    """

    __slots__ = (
        "_aborted",
        "_closing_when_done",
        "_factory",
        "_full",
        "_host",
        "_look",
        "_lost",
        "_paused",
        "_peer",
        "_producer",
        "_reads_rest",
        "_streaming",
        "_transport",
        "data_received",
        "disconnecting",
        "protocol",
        "write",
    )

    write: Callable[[bytes], None]
    data_received: Callable[[bytes], None]  # type: ignore[assignment]

    def __init__(self, factory: Any = None, reads_rest: bool = False) -> None:
        self._reads_rest = reads_rest
        self.disconnecting = False
        self.write = _discard
        self.data_received = self._received
        self.protocol: Any = None
        self._factory = factory
        self._transport: Any = None
        self._producer: Any = None
        self._streaming = True
        self._full = False
        self._paused = False
        self._aborted = False
        self._closing_when_done = False
        self._look: asyncio.TimerHandle | None = None
        self._lost = False

    # What the loop calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._peer, self._host = address_of(transport, "peername"), address_of(transport, "sockname")
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.write = transport.write
        factory, self._factory = self._factory, None
        if factory is not None:
            protocol = factory.buildProtocol(self.getPeer())
            if protocol is None:
                self.abortConnection()
            else:
                self.switch(protocol)
                if self._paused:
                    asyncio.get_running_loop().call_soon(self._pause_from_the_beginning)

    def _received(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def eof_received(self) -> bool:
        # A FIN is told in the turn in which it is read; the loop would tell of the connection's loss in a later one.
        self._lose(_DONE)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._lose(_ABORTED if self._aborted else _DONE)
        else:
            try:
                if self._reads_rest and not self._aborted:
                    self._read_rest()
            finally:
                self._lose(Failure(ConnectionLost(str(exc))))
        self._transport = None

    def _read_rest(self) -> None:
        """Read what the peer had sent before a write failed.

        The loop then reads nothing more, but the kernel has it yet: the answer of an upstream that reads no more of an upload,
        for one. Over TLS it is out of reach, since the loop has ended that.
        """
        if self._lost or self._transport.get_extra_info("ssl_object") is not None:
            return
        self.write = _discard
        self.disconnecting = True  # nobody may take it for a connection that can be used again
        for data in read_rest(self.fileno(), _REST):
            self.data_received(data)
            if self._aborted:
                break

    def pause_writing(self) -> None:
        self._full = True
        if self._producer is not None and self._streaming:
            self._producer.pauseProducing()

    def resume_writing(self) -> None:
        self._full = False
        if self._producer is not None and self._streaming:
            self._producer.resumeProducing()
        self._pull()

    # What a Twisted protocol calls

    def switch(self, protocol: Any) -> None:
        """Connect a protocol, in the place of one that was connected before."""
        self.protocol = protocol
        self.data_received = protocol.dataReceived
        self._transport.set_protocol(
            self
        )  # the loop has looked data_received up once, and calls what it found
        protocol.makeConnection(self)

    async def start_tls(
        self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, hostname: str
    ) -> None:
        """Do the TLS handshake as a client, and find the certificate good for ``hostname``."""
        try:
            transport = await loop.start_tls(self._transport, self, context, server_hostname=hostname)
        except ConnectionError as error:
            raise ConnectionLost(str(error)) from None
        self.connection_made(transport)

    def writeSequence(self, iovec: Any) -> None:
        if not self._lost:
            self._transport.writelines(iovec)

    def loseConnection(self, reason: object = None) -> None:
        if self._producer is not None:
            self._closing_when_done = True
        elif not self.disconnecting and not self._lost:
            self.disconnecting = True
            self._transport.close()
            if self._transport.get_extra_info("ssl_object") is not None:
                self._look_again(False)

    def abortConnection(self) -> None:
        if not self._lost and not self._aborted:
            self.disconnecting = self._aborted = True
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                # So that the peer sees a reset, as Twisted's own transports do it: a plain close would look like an end.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self._transport.abort()

    def loseWriteConnection(self) -> None:
        if not self._lost and self._transport.can_write_eof():
            self._transport.write_eof()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError(f"{self._producer!r} was never unregistered")
        if self._lost:
            producer.stopProducing()
            return
        self._producer = producer
        self._streaming = streaming
        if not streaming:
            self._pull()
        elif self._full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None
        if self._closing_when_done:
            self._closing_when_done = False
            self.loseConnection()

    def pauseProducing(self) -> None:
        self._paused = True
        if not self._lost and not self.disconnecting:
            self._transport.pause_reading()

    def resumeProducing(self) -> None:
        self._paused = False
        if not self._lost and not self.disconnecting:
            self._transport.resume_reading()

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> Any:
        return self._peer

    def getHost(self) -> Any:
        return self._host

    def fileno(self) -> int:
        """The file descriptor, as Twisted's transports tell it; -1 once the connection is lost."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        return -1 if sock is None else sock.fileno()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to do: the loop sets it on every TCP connection."""

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    def getTcpKeepAlive(self) -> bool:
        sock = self._transport.get_extra_info("socket")
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def _look_again(self, delivered: bool) -> None:
        self._look = asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._leave, delivered)

    def _leave(self, delivered: bool) -> None:
        """Close a TLS connection whose peer does not answer our close_notify.

        Nobody has to wait for that (RFC 8446 section 6.1), and who keeps a connection for later does not read; the loop would
        wait for 30 seconds. All that was written must have reached the peer: that is seen twice, with turns of the loop
        between, in which what is left in the buffer behind TLS goes into the kernel's, which was empty.
        """
        seen = unsent(self.fileno()) == 0 and self._transport.get_write_buffer_size() == 0
        if seen and delivered:
            self._transport.abort()
        else:
            self._look_again(seen)

    def _pull(self) -> None:
        """Ask a pull producer for more, a turn each, while there is room (``IPullProducer``)."""
        if self._producer is not None and not self._streaming and not self._full:
            self._producer.resumeProducing()
            asyncio.get_running_loop().call_soon(self._pull)

    def _pause_from_the_beginning(self) -> None:
        # The loop begins to read behind connection_made, whatever was asked for in it.
        if self._paused:
            self.pauseProducing()

    def _lose(self, reason: Failure) -> None:
        if self._lost:
            return
        self._lost = True
        if self._look is not None:
            self._look.cancel()
        self.write = _discard
        self.data_received = _discard
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)


def _discard(data: bytes) -> None:
    """Drop bytes of a connection that is lost."""
