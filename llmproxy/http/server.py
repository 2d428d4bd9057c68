"""The server side: twisted.web's Site and Request, without what they add of their own.

Stock twisted.web writes ``Server``, ``Date`` and ``Content-Type`` headers that nobody sent, answers failures in HTML, and
logs full request targets. It holds a request's body whole before it renders; :attr:`Request.body` hands it on from there.
"""

from __future__ import annotations

from typing import BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from twisted.web.resource import IResource
from zope.interface import implementer

from llmproxy import errors
from llmproxy.http.interfaces import IStreamedRequest

# Seconds. The channel counts from the end of a response, also while a slow reader still takes it from our buffers: a shorter
# limit would cut the end off.
IDLE_CONNECTION = 600
_READ_SIZE = 65536  # bytes


@implementer(IStreamedRequest)
class Request(server.Request):
    """A request that is routed by its raw path and answered with exactly the headers that a resource sets."""

    defaultContentType = None

    @property
    def body(self) -> IBodyProducer | None:
        """See :class:`~llmproxy.http.interfaces.IStreamedRequest`."""
        if self.requestHeaders.hasHeader(b"transfer-encoding"):
            return _HeldBody(self.content, UNKNOWN_LENGTH)
        length = self.getHeader(b"content-length")
        return None if length is None else _HeldBody(self.content, int(length))

    def process(self) -> None:
        """Find the resource by the raw path segments, undecoded, and render it."""
        self.site = self.channel.site
        self.prepath = []
        self.postpath = self.path[1:].split(b"/")
        try:
            self.render(self.site.getResourceFor(self))
        except Exception:
            self.processingFailed(Failure())

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        """Set the status and, where one is given, the exact reason phrase, be it empty."""
        super().setResponseCode(code, message)
        if message is not None:
            self.code_message = message

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Register a producer, and pause it at once where an earlier response still fills the connection."""
        super().registerProducer(producer, streaming)
        if self.channel._waitingForTransport:
            producer.pauseProducing()

    def processingFailed(self, reason: Failure) -> Failure:
        """Log what went wrong in a resource; the client gets a 500, or a truncated response where one has begun."""
        self._log.failure("A request to {path} failed within the proxy", failure=reason, path=self.path)
        if self.startedWriting:
            self.transport.abortConnection()
        else:
            errors.answer(self, errors.INTERNAL_ERROR, errors.SEE_LOG)
        return reason


class Site(server.Site):
    """Serves a Resource tree.

    :param resource: the root of the tree.
    :param reactor: for the timeouts of connections.
    """

    displayTracebacks = False
    noisy = False

    def __init__(self, resource: IResource, reactor: IReactorTime) -> None:
        super().__init__(
            resource, requestFactory=Request, parsePOSTFormSubmission=False, timeout=IDLE_CONNECTION, reactor=reactor
        )

    def log(self, request: server.Request) -> None:
        """Write nothing: the stock access log holds query strings, and those may hold keys."""


@implementer(IBodyProducer)
class _HeldBody:
    """A request body that twisted.web has read whole, produced from its file.

    :param length: in bytes, or UNKNOWN_LENGTH so that a chunked body stays chunked.
    """

    def __init__(self, content: BinaryIO, length: int) -> None:
        self._content = content
        self.length = length
        self._paused = False
        self._done: Deferred[None] | None = None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._consumer = consumer
        self._done = done
        self._produce()
        return done

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._produce()

    def stopProducing(self) -> None:
        self._done = None

    def _produce(self) -> None:
        # The consumer pauses this from within write() when it has enough.
        while self._done is not None and not self._paused:
            data = self._content.read(_READ_SIZE)
            if data:
                self._consumer.write(data)
            else:
                done, self._done = self._done, None
                done.callback(None)

