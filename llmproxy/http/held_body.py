"""A request's body that can be sent a second time: kept as it passes, up to a bound."""

from __future__ import annotations

from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IWholeBody

_T = TypeVar("_T")


def hold(body: Any, limit: int) -> Any:
    """Make of a body one that :func:`again` may give once more.

    :param body: an ``IBodyProducer``, or ``None``.
    :param limit: bytes; of a larger body nothing is kept.
    """
    if body is None or isinstance(body, _KnownBody):
        return body
    whole = body.whole() if IWholeBody.providedBy(body) else None
    if whole is None or len(whole) > limit:
        return _HeldBody(body, limit)
    return _KnownBody([whole], body)  # for producing it would use it up


def again(body: Any) -> Any:
    """The same body once more, of one that :func:`hold` or this made, or ``None`` where it is not all here."""
    return body.again() if isinstance(body, _HeldBody) else body


def release(body: Any) -> None:
    """Keep nothing more of a body that :func:`hold` made: it will not be asked for again."""
    if isinstance(body, _HeldBody):
        body.release()


@implementer(IBodyProducer, IConsumer)
class _HeldBody:
    """A body of which a copy is kept while it passes."""

    def __init__(self, body: IBodyProducer, limit: int) -> None:
        self._body = body
        self._limit = limit
        self._consumer: IConsumer | None = None
        self._parts: list[bytes] | None = []
        self._size = 0
        self._started = self._whole = False
        self.length = body.length

    @property
    def trailers(self) -> Fields | None:
        return getattr(self._body, "trailers", None)

    def again(self) -> Any:
        if not self._started:
            return self
        return _KnownBody(self._parts, self) if self._whole and self._parts is not None else None

    def release(self) -> None:
        self._parts = None

    # What the upstream's connection calls

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._started = True
        self._consumer = consumer
        producing: Deferred[None] = self._body.startProducing(self)
        return producing.addBoth(self._over)

    def pauseProducing(self) -> None:
        self._body.pauseProducing()

    def resumeProducing(self) -> None:
        self._body.resumeProducing()

    def stopProducing(self) -> None:
        if not self._whole and self._started:
            self._consumer = self._parts = None
            self._body.stopProducing()

    # What the body calls

    def write(self, data: bytes) -> None:
        if self._parts is not None:
            self._size += len(data)
            if self._size > self._limit:
                self._parts = None
            else:
                self._parts.append(data)
        if self._consumer is not None:
            self._consumer.write(data)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The transport has the producer already."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def _over(self, result: _T) -> _T:
        self._whole = not isinstance(result, Failure)
        self._consumer = None  # it refers back to this, and gets no more
        return result


@implementer(IWholeBody)
class _KnownBody:
    """A body that is all here, and so is never asked to produce it."""

    def __init__(self, parts: list[bytes], like: Any) -> None:
        self._parts = parts
        self._like = like
        self.length = like.length

    @property
    def trailers(self) -> Fields | None:
        trailers: Fields | None = self._like.trailers
        return trailers

    def whole(self) -> bytes:
        return b"".join(self._parts)
