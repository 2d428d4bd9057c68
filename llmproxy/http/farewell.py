"""How a client's connection is closed, so that what was written last arrives."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ISSLTransport

from llmproxy.deadline import Deadline
from llmproxy.http.intake import untaken
from llmproxy.http.limits import DownstreamLimits


class Farewell:
    """The end of one connection, in steps that each have their time.

    :param deadline: the connection's, which nothing else uses any more; whoever it tells calls :meth:`too_late`.
    :param linger: read and drop for a moment what the client is still sending: closing on unread bytes makes the kernel send a
        reset, and that can take away the answer before the client has read it (RFC 9112 section 9.6). The moment lasts until a
        while after the client has taken all of the answer, within ``close_time``.
    """

    __slots__ = ("_deadline", "_left", "_limits", "_lingering", "_pending", "_transport")

    def __init__(self, transport: Any, deadline: Deadline, limits: DownstreamLimits, linger: bool) -> None:
        self._transport = transport
        self._deadline = deadline
        self._limits = limits
        self._lingering = linger
        self._left = limits.close_time
        self._pending = False
        if linger:
            if ISSLTransport(transport, None) is None:  # TLS knows no half-closed connection
                transport.loseWriteConnection()
            transport.resumeProducing()
            deadline.set(limits.linger)
        else:
            self._close()

    def too_late(self) -> None:
        """Go on to the next step."""
        if self._lingering and self._still_taken():
            self._deadline.set(self._limits.linger)
        elif self._lingering:
            self._lingering = False
            self._close()
        else:
            self._transport.abortConnection()

    def _still_taken(self) -> bool:
        """Whether some of the answer is on its way, or was at the last look: then its reader may need that time again."""
        before, self._pending = self._pending, bool(untaken(self._transport))
        self._left -= self._limits.linger
        return (before or self._pending) and self._left > 0

    def _close(self) -> None:
        self._transport.loseConnection()
        self._deadline.set(self._limits.close_time)
