"""A request's body on its way into an upstream's connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IConsumer, IProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from llmproxy.http.body import BrokenBody
from llmproxy.http.fields import Fields


@implementer(IConsumer)
class BodyWriter:
    """Writes a body as it is produced, in the framing that was announced.

    :param failed: called where the body breaks off, or is not as long as it was announced.
    :ivar done: all of it was written.
    """

    def __init__(
        self, transport: Any, body: IBodyProducer, chunked: bool, failed: Callable[[Failure], None]
    ) -> None:
        self._transport = transport
        self._body = body
        self._chunked = chunked
        self._failed = failed
        self._left = 0 if chunked else body.length
        self._head = b""
        self._waiting: Any = None
        self._started = False
        self._stopped = False
        self.done = False

    def wait(self, clock: IReactorTime, seconds: float) -> None:
        """Start at ``100 Continue``, or after a time: an upstream need not send it (RFC 9110 section 10.1.1)."""
        self._waiting = clock.callLater(seconds, self.start)

    def start(self, head: bytes = b"") -> None:
        """Ask for the body and write it as it comes.

        :param head: what stands before the body. It goes out in this turn, in one write with what is there of the body: a
            write is the dearest thing that a small request does.
        """
        self._wait_no_more()
        if not self._started and not self._stopped:
            self._started = True
            self._head = head
            self._transport.registerProducer(self._body, True)
            self._body.startProducing(self).addCallbacks(self._sent, self._broke)
            if self._head and not self._stopped:
                self._put(b"")

    def answered(self) -> None:
        """The final response has begun: a body that was not begun is not wanted any more."""
        if not self._started:
            self.stop()

    def stop(self) -> None:
        """Write no more of it."""
        self._wait_no_more()
        if not self.done and not self._stopped:
            self._stopped = True
            if self._started:
                self._transport.unregisterProducer()
            self._body.stopProducing()

    def write(self, data: bytes) -> None:
        """Write a part of the body."""
        if self._stopped or not data:
            return
        if self._chunked:
            self._put(_chunk(data))
        else:
            self._left -= len(data)
            if self._left < 0:
                self._mismatched()  # the surplus would be read as another request
            else:
                self._put(data)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The transport has the producer already."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def _put(self, data: bytes) -> None:
        head, self._head = self._head, b""
        self._transport.write(head + data if head else data)

    def _sent(self, _: object) -> None:
        if self._stopped:
            return
        if self._left:
            self._mismatched()
            return
        self.done = True
        self._transport.unregisterProducer()
        if self._chunked:
            self._put(_last_chunk(getattr(self._body, "trailers", None)))

    def _broke(self, failure: Failure) -> None:
        if not self._stopped:
            self._stopped = True
            self._transport.unregisterProducer()
            self._failed(failure)

    def _mismatched(self) -> None:
        self.stop()
        self._failed(Failure(BrokenBody("it is not as long as its Content-Length says")))

    def _wait_no_more(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.active():
            waiting.cancel()


def framed(body: bytes, trailers: Fields | None) -> list[bytes]:
    """A whole body in the chunked coding (RFC 9112 section 7.1)."""
    return [_chunk(body), _last_chunk(trailers)] if body else [_last_chunk(trailers)]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _last_chunk(trailers: Fields | None) -> bytes:
    fields = () if trailers is None else trailers.pairs
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in fields) + b"\r\n"
