"""How a client's connection is closed, so that what was written last arrives."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ISSLTransport

from llmproxy.deadline import Deadline
from llmproxy.http.limits import DownstreamLimits


class Farewell:
    """The end of one connection, in steps that each have their time.

    :param deadline: the connection's, which nothing else uses any more; whoever it tells calls :meth:`too_late`.
    :param linger: read and drop for a moment what the client is still sending: closing on unread bytes makes the kernel send a
        reset, and that can take away the answer before the client has read it (RFC 9112 section 9.6).
    """

    __slots__ = ("_deadline", "_limits", "_lingering", "_transport")

    def __init__(self, transport: Any, deadline: Deadline, limits: DownstreamLimits, linger: bool) -> None:
        self._transport = transport
        self._deadline = deadline
        self._limits = limits
        self._lingering = linger
        if linger:
            if ISSLTransport(transport, None) is None:  # TLS knows no half-closed connection
                transport.loseWriteConnection()
            transport.resumeProducing()
            deadline.set(limits.linger)
        else:
            self._close()

    def too_late(self) -> None:
        """Go on to the next step."""
        if self._lingering:
            self._lingering = False
            self._close()
        else:
            self._transport.abortConnection()

    def _close(self) -> None:
        self._transport.loseConnection()
        self._deadline.set(self._limits.close_time)
