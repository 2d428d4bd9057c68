"""One connection to an upstream: HTTP/1.1 from the client's side, one exchange at a time.

llhttp reads; this module writes requests, keeps the state of the exchange, and knows when a connection may be used again. A
response is complete when the parser says so, or, where its body has no other end, when the upstream closes the connection
(RFC 9112 section 6.3); it is never complete by default. Which connection a request takes is decided in
:mod:`llmproxy.http.pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import httptools
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
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
from llmproxy.http.fields import Fields, Informational, Pair
from llmproxy.http.interfaces import IWholeBody
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.response import MalformedResponse, Response, body_length

_log = Logger()
_RESPONSE_DONE = Failure(ResponseDone())
_CLOSE_DELIMITED = Failure(PotentialDataLoss())


class State(Enum):
    """Where a connection stands."""

    IDLE = "idle"
    WAITING = "waiting for a response"
    RECEIVING = "receiving a response"
    TUNNEL = "a tunnel"
    CLOSED = "closed"


class UpstreamConnection(Protocol):
    """A connection to an upstream.

    :param released: called when an exchange is over and the connection can be used for another.
    :param lost: called when the connection is lost, whatever it was doing.
    :ivar exchanges: how many requests were sent on it.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_chunks",
        "_clock",
        "_complete",
        "_head_size",
        "_heard",
        "_informational",
        "_keep_alive",
        "_limits",
        "_lost",
        "_method",
        "_offers_upgrade",
        "_pairs",
        "_parser",
        "_phrase",
        "_released",
        "_response",
        "_switching",
        "_tunnel",
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
        self._parser = httptools.HttpResponseParser(self)
        self.state = State.IDLE
        self.exchanges = 0
        self._answer: Deferred[Response] | None = None
        self._response: Response | None = None
        self._switching: Response | None = None
        self._body: BodyWriter | None = None
        self._tunnel: Any = None
        self._pairs: list[Pair] = []
        self._chunks: list[bytes] = []
        self._phrase = b""
        self._head_size = 0
        self._heard = False
        self._complete = False

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
        self.state = State.WAITING
        self.exchanges += 1
        self._method = method
        self._informational = informational
        self._heard = self._complete = False
        self._pairs, self._phrase, self._head_size = [], b"", 0
        answer = self._answer = Deferred(self._cancelled)
        lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
        lines += [b"%b: %b\r\n" % pair for pair in headers.pairs]
        # A plain search first: nearly always, neither is there.
        given = b"".join(lines).lower()
        self._offers_upgrade = b"\nupgrade:" in given and headers.hasHeader(b"upgrade")
        self._body = None
        if body is None:
            lines.append(b"\r\n")
            self.transport.write(b"".join(lines))
            return answer
        chunked = body.length is UNKNOWN_LENGTH
        lines.append(
            b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % body.length
        )
        known: Any = body
        whole = known.whole() if IWholeBody.providedBy(body) else None
        if whole is not None:
            # Also where the client expects a 100: it did not wait for it itself (RFC 9110 section 10.1.1).
            lines += framed(whole, known.trailers) if chunked else (whole,)
            self.transport.write(b"".join(lines))
            return answer
        self._body = BodyWriter(self.transport, known, chunked, self._body_failed)
        if b"\nexpect:" in given and b"100-continue" in b",".join(headers.values_of(b"expect")).lower():
            self.transport.write(b"".join(lines))
            self._body.wait(self._clock, self._limits.expect)
        else:
            self._body.start(b"".join(lines))
        return answer

    def handOver(self, protocol: Any) -> None:
        """Leave HTTP: what comes from now on goes to another protocol."""
        self.state = State.TUNNEL
        self._tunnel = protocol
        protocol.makeConnection(self.transport)

    def close(self) -> None:
        """Close an idle connection."""
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abortConnection()

    # What the transport calls

    def dataReceived(self, data: bytes) -> None:
        """Parse what came; anything that came without a request closes the connection."""
        if self.state is State.TUNNEL:
            self._tunnel.dataReceived(data)
            return
        if self.state is State.IDLE:
            self.abort()
            return
        self._heard = True
        self._head_size += len(data)
        fault: BaseException | None = None
        try:
            self._parser.feed_data(data)
            if not self._complete and self._head_size > self._limits.headers:
                raise MalformedResponse("its headers or trailers are too large")
        except httptools.HttpParserUpgrade as upgrade:
            self._switched(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            # What a callback raised is behind the parser's own error.
            fault = _cause(error)
        except MalformedResponse as error:
            fault = error
        try:
            self._tell()
        except Exception as error:
            _log.failure("What an upstream sent could not be handled")
            fault = error
        if fault is not None:
            self._fail(fault)
        if self._complete:
            self._finish()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """End the exchange by what was received until now."""
        tunnel = self._tunnel if self.state is State.TUNNEL else None
        self.state = State.CLOSED
        self._lost(self)
        del self._parser  # it refers back to this
        if tunnel is not None:
            tunnel.connectionLost(reason)
            return
        if self._body is not None:
            self._body.stop()
        answer, self._answer = self._answer, None
        response, self._response = self._response, None
        unanswered = self._unanswered()
        self._body = self._informational = self._switching = None  # they refer back to this, too
        if answer is not None:
            answer.errback(Failure(unanswered([reason])))
        elif response is not None:
            if response.ends_with_connection and reason.check(ConnectionDone):
                response._end(_CLOSE_DELIMITED)
            else:
                response._end(Failure(ResponseFailed([reason])))

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._complete or self.state is State.CLOSED:
            raise MalformedResponse("more followed a complete response")

    def on_status(self, phrase: bytes) -> None:
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        # Optional whitespace is not part of a value (RFC 9110 section 5.5); llhttp takes off only what stands before it.
        self._pairs.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        fields, self._pairs = Fields(self._pairs), []
        phrase, self._phrase = self._phrase, b""
        if code < 200 and code != 101:
            self._interim(code, phrase, fields)
            return
        if code == 101 and not self._offers_upgrade:
            raise MalformedResponse("it switched protocols unasked")
        length = body_length(fields)
        bodiless = self._method == b"HEAD" or code in (204, 304)
        response = Response(self, code, phrase, fields, UNKNOWN_LENGTH if length is None else length)
        response.ends_with_connection = (
            not bodiless and length is None and not fields.hasHeader(b"transfer-encoding")
        )
        self._keep_alive = (
            self._parser.should_keep_alive()
            and not response.ends_with_connection
            # HTTP/1.0 has no transfer codings: one is read, and not relied on (RFC 9112 section 6.1).
            and (length is not None or self._parser.get_http_version() != "1.0")
        )
        self._head_size = 0
        self.state = State.RECEIVING
        if code == 101:
            self._switching = response  # the answer is given when the parser has stopped, see _switched
        else:
            self._response = response
        if self._body is not None:
            self._body.answered()
        if self._method == b"HEAD":
            self._complete = True

    def on_body(self, data: bytes) -> None:
        if self._response is None or self._complete:  # it was given up, is an interim one, or answers HEAD
            raise MalformedResponse("it has a body where none belongs")
        self._head_size = 0
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        if self._response is not None:
            self._complete = True

    # The exchange

    def _tell(self) -> None:
        """Pass on what was parsed, all that came at once as one: so the client's side writes once for it."""
        response, chunks = self._response, self._chunks
        if response is None:
            return
        if self._answer is not None:
            answer, self._answer = self._answer, None
            response.answer(answer, self._taken())
        elif chunks:
            response.deliver(chunks.pop() if len(chunks) == 1 else self._taken())

    def _taken(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data

    def _interim(self, code: int, phrase: bytes, fields: Fields) -> None:
        if code < 100:
            raise MalformedResponse("its status is below 100")
        if code == 100:
            if self._body is not None:
                self._body.start()
        elif self._informational is not None:
            self._informational(code, phrase, fields)
        self._head_size = 0

    def _switched(self, rest: bytes) -> None:
        """The upstream agreed to another protocol, whose first bytes may be here already."""
        response, self._switching = self._switching, None
        answer, self._answer = self._answer, None
        if response is not None and answer is not None:
            answer.callback(response)
        if self.state is not State.TUNNEL:
            self.abort()  # nobody took it over
        elif rest:
            self._tunnel.dataReceived(rest)

    def _finish(self) -> None:
        """The response is whole: let the connection be used again where that is safe, then tell."""
        response, self._response = self._response, None
        if response is not None and self._pairs:
            response.trailers = Fields(self._pairs)
        self._complete = False
        if self.state is not State.CLOSED:
            self.state = State.IDLE
            if (
                self._keep_alive
                and (self._body is None or self._body.done)
                and not self.transport.disconnecting
            ):
                if self._method == b"HEAD":
                    self._parser = httptools.HttpResponseParser(
                        self
                    )  # the old one waits for the body that HEAD has not
                self.transport.resumeProducing()
                self._released(self)
            else:
                self._stop_sending()
                self.transport.loseConnection()
        if response is not None:
            response._end(_RESPONSE_DONE)

    def _fail(self, error: BaseException) -> None:
        """The upstream does not speak HTTP: the exchange fails, unless its response was whole already."""
        self._keep_alive = False
        if self._complete:
            return
        self._stop_sending()
        answer, self._answer = self._answer, None
        response, self._response = self._response, None
        self.abort()
        if answer is not None:
            answer.errback(Failure(ResponseFailed([Failure(error)])))
        elif response is not None:
            response._end(Failure(ResponseFailed([Failure(error)])))

    def _unanswered(self) -> type[Exception]:
        if self._heard:
            return ResponseFailed
        return ResponseNeverReceived if self._body is None or self._body.done else RequestTransmissionFailed

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
        if self._body is not None:
            self._body.stop()

    def _dropped(self, response: Response) -> None:
        if self._response is response:
            self._response = None
            # Its end may be here already, and not every transport says that it was aborted.
            self._keep_alive = False
            self._stop_sending()
            self.abort()


def _cause(error: httptools.HttpParserError) -> BaseException:
    """What made the parser stop: what a callback raised, or the parser's own finding."""
    if not isinstance(error, httptools.HttpParserCallbackError):
        return MalformedResponse(str(error))
    cause = error.__context__ or error
    if not isinstance(cause, MalformedResponse):
        _log.failure("What an upstream sent could not be handled", Failure(cause))
    return cause
