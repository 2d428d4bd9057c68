"""A response's body on its way from the upstream to the client: each chunk in the turn in which it came.

Nothing is held here. A client that reads slowly pauses its upstream; one that leaves, or takes nothing for too long, aborts it.
A body that the upstream did not end is never ended for the client either: it sees a truncated response.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import PotentialDataLoss, ResponseDone
from zope.interface import implementer

from llmproxy.deadline import Deadline
from llmproxy.exchange import Ending
from llmproxy.http.intake import Intake
from llmproxy.http.interfaces import IAbortableResponse


@implementer(IPushProducer)
class Relay(Protocol):
    """The protocol that a response's body is delivered to, and the producer that the client's connection drives.

    :param request: the client's, an ``IStreamedRequest``; its response's headers have been written.
    :param deadline: runs while the upstream or the client is waited for, each with its own time. When it expires,
        :meth:`too_late` is to be called.
    :param idle_timeout: seconds of silence after which the upstream is given up, unless it is the client that makes us wait.
    :param patience: seconds after which a client that takes nothing is given up.
    :param over: called once, with the ending, when nothing more will be written.
    :param look: called with each chunk once it is written, for who records what passes.
    :ivar sent: bytes of the body written so far.
    """

    transport: Any

    def __init__(
        self,
        request: Any,
        response: IAbortableResponse,
        deadline: Deadline,
        idle_timeout: float,
        patience: float,
        over: Callable[[Ending], None],
        look: Callable[[bytes], None] | None = None,
    ) -> None:
        self._request = request
        self._response = response
        self._deadline = deadline
        self._wait = deadline.set
        self._idle_timeout = idle_timeout
        self._patience = patience
        self._time = idle_timeout  # or, while the client is waited for, its own
        self._paused = False
        self._intake: Intake | None = None
        self._write = request.write
        self._over = over
        self._look = look
        self._ended = False
        self.sent = 0

    def connectionMade(self) -> None:
        """Let the client's connection set the pace, where more is to come."""
        if not self._response.whole:
            self._wait(self._idle_timeout)
            self._request.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Write a chunk on."""
        self._wait(self._time)
        self.sent += len(data)
        self._write(data)
        if self._look is not None:
            self._look(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the client's response as the upstream's ended: whole, or cut off."""
        if self._ended:
            return
        # PotentialDataLoss: a body without a length, which the close of the connection ended (RFC 9112 section 6.3, rule 8).
        if isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            self._request.unregisterProducer()
            self._request.responseTrailers = self._response.trailers
            self._request.finish()
            self._end(Ending.COMPLETED)
        else:
            self._truncate()
            self._end(Ending.UPSTREAM_FAILED)

    def pauseProducing(self) -> None:
        """The client has enough for now."""
        self._paused = True
        if self._intake is None:
            self._intake = Intake(self._request.transport)
        self._intake.note()
        self._time = self._patience
        self._wait(self._time)
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The client can take more."""
        if not self._ended:
            self._paused = False
            self._time = self._idle_timeout
            self._wait(self._time)
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client has left: what it asked for must not go on, and cost, for nobody."""
        if not self._ended:
            self._end(Ending.CLIENT_LEFT)
            self._response.abort()

    def too_late(self) -> None:
        """The deadline has expired: give up who was waited for."""
        if not self._paused:
            self._end(Ending.UPSTREAM_SILENT)
            self._response.abort()
            self._truncate()
        elif self._intake is not None and self._intake.went_on():
            self._wait(self._patience)
        else:
            self.stopProducing()
            self._request.transport.abortConnection()  # it would not read anything else either

    def _end(self, ending: Ending) -> None:
        self._ended = True
        over, self._over = self._over, _nothing  # who is told refers back to this
        self._look = None
        over(ending)

    def _truncate(self) -> None:
        """Close the client's connection so that it can tell that the response is not whole."""
        self._request.unregisterProducer()
        if self._request.clientproto == b"HTTP/1.1" or self._request.responseHeaders.hasHeader(
            b"content-length"
        ):
            # The missing last chunk, or the missing bytes, tell; all that did come is still delivered.
            self._request.loseConnection()
        else:
            # Here a close *is* the end of a body, so only a reset is left.
            self._request.transport.abortConnection()


def _nothing(ending: Ending) -> None:
    """Tell nobody."""
