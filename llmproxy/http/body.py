"""A request's body as a stream: what the client's connection feeds, and an upstream's connection consumes.

Nothing is held that could be left in the client's hands: until a consumer has started, and while it is paused, the client's
connection is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IStreamedBody


class BrokenBody(Exception):
    """The client did not send the body that it had announced; the text says what it sent, without its bytes."""


class SilentBody(Exception):
    """The client stopped sending in the middle of a body."""


class TooLarge(Exception):
    """A body was larger than its reader takes."""


@implementer(IStreamedBody)
class RequestBody:
    """The body of one request.

    :param length: in bytes, or UNKNOWN_LENGTH for a chunked body.
    :param wanted: called when somebody begins to read it.
    :param changed: called when :attr:`wants` may have changed.
    :ivar seal_trailers: makes of the trailers that the client sent those that may go further.
    :ivar over: nothing more will come.
    :ivar received: bytes that came from the client.
    """

    def __init__(self, length: Any, wanted: Callable[[], None], changed: Callable[[], None]) -> None:
        self.length = length
        self.seal_trailers: Callable[[Fields], Fields] | None = None
        self._trailers: Fields | None = None
        self.over = False
        self.received = 0
        self._wanted = wanted
        self._changed = changed
        self._consumer: IConsumer | None = None
        self._started = False
        self._done: Deferred[None] | None = None
        self._failure: Failure | None = None
        self._held: list[bytes] = []
        self._look: Callable[[bytes], None] | None = None
        self._paused = False
        self._dropped = False

    @property
    def trailers(self) -> Fields | None:
        """The fields that followed a chunked body and may go further; known once the body is over."""
        seal, trailers = self.seal_trailers, self._trailers
        return trailers if seal is None or trailers is None else seal(trailers)

    @property
    def wants(self) -> bool:
        """Whether more of it should be read from the client now."""
        return not self.over and (self._dropped or (not self._paused and not self._held))

    @property
    def expected(self) -> bool:
        """Whether somebody waits for more of it now, so that the client's silence counts."""
        return self.wants and (self._dropped or self._consumer is not None)

    # What the client's connection calls

    def feed(self, data: bytes) -> None:
        """Pass on what came."""
        self.received += len(data)
        if self._look is not None:
            self._look(data)
        if self._dropped:
            return
        if self._consumer is None:
            self._held.append(data)
        else:
            self._consumer.write(data)

    def end(self, trailers: Fields | None) -> None:
        """The body is whole."""
        self.over = True
        self._look = None
        self._wanted = _nothing  # who is told refers back to this
        self._trailers = trailers
        self._tell()

    def fail(self, reason: Exception) -> None:
        """The rest of the body will never come."""
        if not self.over:
            self.over = True
            self._wanted = _nothing
            self._failure = Failure(reason)
            self._tell()

    # What its reader calls

    def watch(self, look: Callable[[bytes], None]) -> None:
        """See :class:`~llmproxy.http.interfaces.IStreamedBody`."""
        for data in self._held:
            look(data)
        self._look = None if self.over else look

    def whole(self) -> bytes | None:
        """See :class:`~llmproxy.http.interfaces.IStreamedBody`."""
        if not self.over or self._started or self._dropped or self._failure is not None:
            return None
        held = self._held
        return held[0] if len(held) == 1 else b"".join(held)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See ``IBodyProducer``; fails with :class:`BrokenBody` or :class:`SilentBody`."""
        done: Deferred[None] = Deferred(self._cancelled)
        self._done = done
        self._started = True
        self._consumer = consumer
        wanted, self._wanted = self._wanted, _nothing
        wanted()
        held, self._held = self._held, []
        for data in held:
            if not self._dropped:
                consumer.write(data)
        if self.over:
            self._tell()
        else:
            self._changed()
        return done

    def pauseProducing(self) -> None:
        """Read nothing more from the client for now."""
        self._paused = True
        self._changed()

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        self._changed()

    def stopProducing(self) -> None:
        """Nobody wants the rest: it is read, so that the client comes to reading its answer, and dropped."""
        self._dropped = True
        self._held.clear()
        self._done = None
        self._changed()

    def _cancelled(self, done: Deferred[None]) -> None:
        self.stopProducing()
        done.errback(CancelledError())

    def _tell(self) -> None:
        done = self._done
        if done is None:
            return
        self._done = self._consumer = None  # it refers back to this, and gets no more
        if self._failure is None:
            done.callback(None)
        else:
            done.errback(self._failure)


def _nothing() -> None:
    """Tell nobody."""


def read_whole(body: IBodyProducer | None, limit: int) -> Deferred[bytes]:
    """Read a body to its end, for a resource that cannot do with less.

    :param limit: bytes.
    :return: fires with the bytes, or fails with :class:`TooLarge` as soon as there are more.
    """
    reading: Deferred[bytes] = Deferred()
    if body is None:
        reading.callback(b"")
        return reading
    whole = _Whole(body, limit, reading)
    body.startProducing(whole).addCallbacks(whole.finished, whole.failed)
    return reading


@implementer(IConsumer)
class _Whole:
    def __init__(self, body: IBodyProducer, limit: int, reading: Deferred[bytes]) -> None:
        self._body = body
        self._limit = limit
        self._reading = reading
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._limit:
            self._body.stopProducing()
            self.failed(Failure(TooLarge(f"The body is larger than {self._limit} bytes.")))

    def finished(self, _: object) -> None:
        if not self._reading.called:
            self._reading.callback(bytes(self._data))

    def failed(self, failure: Failure) -> None:
        if not self._reading.called:
            self._reading.errback(failure)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """The body is started by :func:`read_whole`."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""
