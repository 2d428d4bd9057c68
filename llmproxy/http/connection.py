"""One connection to an upstream: HTTP/1.1 from the client's side, one exchange at a time.

This module writes requests, tells of their responses, and knows when the connection may be used again. What is a response is
decided in :mod:`llmproxy.http.response_reader`, which connection a request takes in :mod:`llmproxy.http.pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import (
    PotentialDataLoss,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer

from llmproxy.http.body_writer import BodyWriter, framed
from llmproxy.http.fields import Fields, Informational
from llmproxy.http.interfaces import IWholeBody
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.response import Response
from llmproxy.http.response_reader import ResponseReader
from llmproxy.http.state import State

_log = Logger()
_RESPONSE_DONE = Failure(ResponseDone())
_CLOSE_DELIMITED = Failure(PotentialDataLoss())
# Seconds that an upstream may take for what was written to a connection that is closed. Nobody waits for its effect any more.
_CLOSE_TIME = 5.0


# They are looked at for each read, and the Enum takes as long as a call to find one.
_IDLE, _WAITING, _RECEIVING, _TUNNEL, _CLOSED = State


class UpstreamConnection(Protocol):
    """A connection to an upstream.

    :param released: called when an exchange is over and the connection can be used for another.
    :param lost: called when the connection is lost, whatever it was doing.
    :ivar exchanges: how many requests were sent on it.
    :ivar body: the body of the request, where that is not sent with its head.
    """

    __slots__ = (
        "_answer",
        "_clock",
        "_closing",
        "_heard",
        "_limits",
        "_lost",
        "_reader",
        "_released",
        "_tunnel",
        "body",
        "connected",
        "exchanges",
        "factory",
        "state",
        "transport",
    )

    transport: Any

    def __init__(
        self,
        clock: IReactorTime,
        limits: UpstreamLimits,
        released: Callable[[UpstreamConnection], None],
        lost: Callable[[UpstreamConnection], None],
    ) -> None:
        self.connected = 0
        self.transport = None
        self._clock = clock
        self._limits = limits
        self._released = released
        self._lost = lost
        self._reader = ResponseReader(self, limits.headers)
        self.state = State.IDLE
        self.exchanges = 0
        self.body: BodyWriter | None = None
        self._answer: Deferred[Response] | None = None
        self._tunnel: Any = None
        self._heard = False
        self._closing: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<UpstreamConnection {self.state.value}, exchange {self.exchanges}>"

    def connectionMade(self) -> None:
        """Send small writes at once."""
        self.transport.setTcpNoDelay(True)

    def send(
        self,
        method: bytes,
        target: bytes,
        headers: Fields,
        body: IBodyProducer | IWholeBody | None,
        informational: Informational | None,
    ) -> Deferred[Response]:
        """Send a request; its framing follows from ``body.length``.

        :return: fires when the headers of the final response are there. Cancelling it closes the connection.
        """
        self.state = _WAITING
        self.exchanges += 1
        self._heard = False
        self.body = None
        answer = self._answer = Deferred(self._cancelled)
        lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
        lines += [b"%b: %b\r\n" % pair for pair in headers.pairs]
        head = b"".join(lines)
        # A plain search first: nearly always, neither is there.
        given = head.lower()
        self._reader.expect(method, b"\nupgrade:" in given and headers.hasHeader(b"upgrade"), informational)
        if body is None:
            self.transport.write(head + b"\r\n")
            return answer
        chunked = body.length is UNKNOWN_LENGTH
        head += (
            b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % body.length
        )
        known: Any = body
        whole = known.whole() if IWholeBody.providedBy(body) else None
        if whole is not None:
            # Also where the client expects a 100: it did not wait for it itself (RFC 9110 section 10.1.1).
            self.transport.write(
                b"".join((head, *framed(whole, known.trailers))) if chunked else head + whole
            )
            return answer
        self.body = BodyWriter(self.transport, known, chunked, self._body_failed)
        if b"\nexpect:" in given and b"100-continue" in b",".join(headers.values_of(b"expect")).lower():
            self.transport.write(head)
            self.body.wait(self._clock, self._limits.expect)
        else:
            self.body.start(head)
        return answer

    def handOver(self, protocol: Any) -> None:
        """Leave HTTP: what comes from now on goes to another protocol."""
        self.state = _TUNNEL
        self._tunnel = protocol
        protocol.makeConnection(self.transport)

    def close(self) -> None:
        """Close a connection whose exchange is over.

        The answer may have come before the upstream had read all of the request, and the rest may wait in our buffer.
        """
        self._closing = self._clock.callLater(_CLOSE_TIME, self.abort)
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abortConnection()

    # What the transport calls

    def dataReceived(self, data: bytes) -> None:
        """Parse what came, and pass all of it on as one: so the client's side writes once for it."""
        if self.state is _TUNNEL:
            self._tunnel.dataReceived(data)
            return
        if self.state is _IDLE:
            self.abort()  # without a request, nothing may come
            return
        self._heard = True
        reader = self._reader
        fault = reader.feed(data)
        response = reader.response
        try:
            if response is None:
                pass
            elif self._answer is not None:
                self.state = _RECEIVING
                answer, self._answer = self._answer, None
                response.answer(answer, reader.take(), reader.complete)
            elif reader.chunks:
                response.deliver(reader.chunks.pop() if len(reader.chunks) == 1 else reader.take())
        except Exception as error:
            _log.failure("What an upstream sent could not be handled")
            fault = error
        if fault is not None:
            self._fail(fault)
        if reader.complete:
            self._finish()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """End the exchange by what was received until now."""
        tunnel = self._tunnel if self.state is _TUNNEL else None
        self.state = _CLOSED
        closing, self._closing = self._closing, None
        if closing is not None and closing.active():
            closing.cancel()
        self._lost(self)
        response = self._reader.response
        self._reader.close()
        if tunnel is not None:
            tunnel.connectionLost(reason)
            return
        self._stop_sending()
        unanswered = self._unanswered()
        self.body = None  # it refers back to this
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.errback(Failure(unanswered([reason])))
        elif response is not None:
            if response.ends_with_connection and reason.check(ConnectionDone):
                response._end(_CLOSE_DELIMITED)
            else:
                response._end(Failure(ResponseFailed([reason])))

    # How an exchange ends

    def _switched(self, response: Response | None, rest: bytes) -> None:
        """The upstream agreed to another protocol, whose first bytes may be here already."""
        answer, self._answer = self._answer, None
        if response is not None and answer is not None:
            answer.callback(response)
        if self.state is not _TUNNEL:
            self.abort()  # nobody took it over
        elif rest:
            self._tunnel.dataReceived(rest)

    def _finish(self) -> None:
        """The response is whole: let the connection be used again where that is safe, then tell."""
        reader = self._reader
        response, reader.response = reader.response, None
        reader.complete = False
        if self.state is not _CLOSED:
            self.state = _IDLE
            if self.body is not None and not self.body.done:
                self._stop_sending()
                self.abort()  # closing in order would wait for an upstream that may read no more of what it refused
            elif reader.reusable and not self.transport.disconnecting:
                self.transport.resumeProducing()
                self._released(self)
            else:
                self.close()
        if response is not None:
            response._end(_RESPONSE_DONE)

    def _fail(self, error: BaseException) -> None:
        """The upstream does not speak HTTP: the exchange fails, unless its response was whole already."""
        reader = self._reader
        reader.reusable = False
        if reader.complete:
            return
        self._stop_sending()
        answer, self._answer = self._answer, None
        response, reader.response = reader.response, None
        self.abort()
        if answer is not None:
            answer.errback(Failure(ResponseFailed([Failure(error)])))
        elif response is not None:
            response._end(Failure(ResponseFailed([Failure(error)])))

    def _unanswered(self) -> type[Exception]:
        if self._heard:
            return ResponseFailed
        return ResponseNeverReceived if self.body is None or self.body.done else RequestTransmissionFailed

    def _body_failed(self, failure: Failure) -> None:
        """The client did not send its whole body: the upstream must not take what it got for all of it."""
        answer, self._answer = self._answer, None
        self.abort()
        if answer is not None:
            answer.errback(failure)

    def _cancelled(self, answer: Deferred[Response]) -> None:
        self._answer = None
        self._stop_sending()
        self.abort()
        answer.errback(CancelledError())

    def _stop_sending(self) -> None:
        if self.body is not None:
            self.body.stop()

    def _dropped(self, response: Response) -> None:
        reader = self._reader
        if reader.response is response:
            reader.response = None
            # Its end may be here already, and not every transport says that it was aborted.
            reader.reusable = False
            self._stop_sending()
            self.abort()
