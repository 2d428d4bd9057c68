"""An upstream without any manners of its own: the test that uses it decides each byte that it sends, and when.

It only listens. The kernel takes connections in the meantime; a test accepts them in its own thread, reads what the proxy
sent, and answers as it likes. So a test reads from top to bottom in the order in which things happen.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

from tests.integration.wire import PATIENCE, Message, Wire


class Upstream:
    """A listening socket on loopback, and the connections that were accepted from it.

    :param tls: for an upstream that speaks TLS.
    :param send_buffer: bytes that the kernel may hold for us unsent.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, send_buffer: int | None = None) -> None:
        self._tls = tls
        self._wires: list[Wire] = []
        self._socket = socket.socket()
        if send_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(128)
        self.port: int = self._socket.getsockname()[1]

    @property
    def netloc(self) -> bytes:
        return b"127.0.0.1:%d" % self.port

    def accept(self) -> Wire:
        """Wait for the next connection; for one that speaks TLS, its handshake is done.

        :raise ssl.SSLError: where the handshake fails.
        """
        return self._accept(PATIENCE)

    def receive(self) -> tuple[Wire, Message]:
        """Wait for the next connection and a whole request on it."""
        wire = self.accept()
        return wire, wire.request()

    def waiting(self) -> int:
        """How many connections were made that no test has accepted; they are accepted now."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._accept(0)
                count += 1
        return count

    def hang_up(self) -> None:
        """Close all connections, and wait until the proxy has noticed: none is left to carry a later test's request."""
        self.waiting()
        while self._wires:
            self._wires.pop().finish()

    def close(self) -> None:
        """Listen no more."""
        while self._wires:
            self._wires.pop().close()
        self._socket.close()

    def _accept(self, timeout: float) -> Wire:
        self._socket.settimeout(timeout)
        try:
            sock, _ = self._socket.accept()
        except TimeoutError:
            raise AssertionError(f"no connection came for {timeout} s") from None
        sock.settimeout(PATIENCE)
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                raise
        wire = Wire(sock)
        self._wires.append(wire)
        return wire
