"""A response from an upstream: what lies beneath ``IResponse``.

Its connection feeds it. It hands the body on as it comes, and is what the body's protocol has for a transport.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IAbortableResponse

if TYPE_CHECKING:
    from llmproxy.http.connection import UpstreamConnection


class MalformedResponse(Exception):
    """An upstream sent what is no HTTP/1.1 response; the text says how, and holds none of its bytes."""


@implementer(IAbortableResponse, IPushProducer)
class Response:
    """A response whose headers are there; also what its body's protocol has for a transport."""

    version = (b"HTTP", 1, 1)
    request = None
    previousResponse = None
    whole = False

    def __init__(
        self, connection: UpstreamConnection, code: int, phrase: bytes, headers: Fields, length: Any
    ) -> None:
        self._connection = connection
        self.reused = connection.exchanges > 1
        self.code = code
        self.phrase = phrase
        self.headers = headers
        self.length = length
        self.trailers: Fields | None = None
        self.ends_with_connection = False
        self._protocol: Any = None
        self._held: list[bytes] = []
        self._stalled = False
        # Where the connection puts what comes of the body; one attribute, since nothing here is called more often.
        self.deliver: Callable[[bytes], None] = self._hold
        self._paused = False
        self._ended: Failure | None = None

    def __repr__(self) -> str:
        return f"<Response {self.code} on {self._connection!r}>"

    def deliverBody(self, protocol: Any) -> None:
        """See ``IResponse``."""
        protocol.makeConnection(self)
        self._protocol = protocol
        self.deliver = protocol.dataReceived
        held, self._held = self._held, []
        for data in held:
            protocol.dataReceived(data)
        if self._stalled and not self._paused:
            self.resumeProducing()
        self._stalled = False
        if self._ended is not None:
            protocol.connectionLost(self._ended)

    def switchProtocols(self, protocol: IProtocol) -> None:
        """See :class:`~llmproxy.http.interfaces.IAbortableResponse`."""
        self._connection.handOver(protocol)

    def answer(self, answer: Deferred[Response], data: bytes, whole: bool) -> None:
        """Answer a request with this, of whose body the first bytes may be here, or all."""
        self.whole = whole
        if data:
            self._held.append(data)
        answer.callback(self)
        if self._held:
            self._stall()

    def setPreviousResponse(self, response: object) -> None:
        """See ``IResponse``; redirects are not followed here, so there is none."""

    def abort(self) -> None:
        """See :class:`~llmproxy.http.interfaces.IAbortableResponse`."""
        self._connection._dropped(self)
        self._protocol = None  # it refers back to this
        self.deliver = _drop

    def pauseProducing(self) -> None:
        """Read nothing more of the body for now."""
        self._paused = True
        if self._ended is None:
            self._connection.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        if self._ended is None:
            self._connection.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Give the body up."""
        self.abort()

    def _hold(self, data: bytes) -> None:
        """Keep what came before anyone reads, and let nothing more come until then."""
        self._held.append(data)
        self._stall()

    def _stall(self) -> None:
        self._stalled = True
        self._connection.transport.pauseProducing()

    def _end(self, reason: Failure) -> None:
        self._ended = reason
        protocol, self._protocol = self._protocol, None
        self.deliver = _drop  # who was delivered to refers back to this
        if protocol is not None:
            protocol.connectionLost(reason)


def _drop(data: bytes) -> None:
    """Deliver to nobody."""


def body_length(fields: Fields) -> int | None:
    """The length of a body, or ``None`` where it is chunked or ends with the connection.

    :raise MalformedResponse: for a transfer coding that is not exactly ``chunked``: nobody here asked for another.
    """
    codings = fields.values_of(b"transfer-encoding")
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise MalformedResponse("it has a transfer coding that was not asked for")
        return None
    lengths = fields.values_of(b"content-length")
    return int(lengths[0]) if lengths else None
