"""A request's body that can be sent a second time: kept as it passes, up to a bound."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IWholeBody


def hold(body: Any, limit: int) -> Any:
    """Make of a body one that :func:`again` may give once more.

    :param body: an ``IBodyProducer``, or ``None``.
    :param limit: bytes; of a larger body nothing is kept.
    """
    if body is None:
        return None
    whole = body.whole() if IWholeBody.providedBy(body) else None
    return body if whole is not None and len(whole) <= limit else _HeldBody(body, limit)


def again(body: Any) -> Any:
    """The same body once more, of one that :func:`hold` made, or ``None`` where it is not all here."""
    return body.again() if isinstance(body, _HeldBody) else body


@implementer(IBodyProducer, IConsumer)
class _HeldBody:
    def __init__(self, body: IBodyProducer, limit: int) -> None:
        self._body = body
        self._limit = limit
        self._parts: list[bytes] | None = []
        self._size = 0
        self._started = self._whole = False
        self.length = body.length

    @property
    def trailers(self) -> Fields | None:
        return getattr(self._body, "trailers", None)

    def again(self) -> Any:
        if not self._started:
            return self._body
        return _KnownBody(self._parts, self) if self._whole and self._parts is not None else None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._started = True
        self._consumer = consumer
        producing: Deferred[None] = self._body.startProducing(self)
        return producing.addCallback(self._done)

    def write(self, data: bytes) -> None:
        if self._parts is not None:
            self._size += len(data)
            if self._size > self._limit:
                self._parts = None
            else:
                self._parts.append(data)
        self._consumer.write(data)

    def pauseProducing(self) -> None:
        self._body.pauseProducing()

    def resumeProducing(self) -> None:
        self._body.resumeProducing()

    def stopProducing(self) -> None:
        if not self._whole and self._started:
            self._body.stopProducing()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The transport has the producer already."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def _done(self, result: None) -> None:
        self._whole = True
        del self._consumer  # it refers back to this, and gets no more


@implementer(IWholeBody)
class _KnownBody:
    """A body that is all here, and so is never asked to produce it."""

    def __init__(self, parts: list[bytes], like: _HeldBody) -> None:
        self._parts = parts
        self.length = like.length
        self.trailers = like.trailers

    def whole(self) -> bytes:
        return b"".join(self._parts)
