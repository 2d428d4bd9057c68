"""Whether a client may use the model that it asks for, before its upstream hears of the request.

Only clients whose rights depend on the model come here. The model is read in passing (:mod:`llmproxy.asked_model`), and the
body goes on from the moment in which it is known. What is found out later (a second, different model) breaks the upload off,
so that the upstream never has the whole request.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IConsumer, IProducer
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from llmproxy import rights
from llmproxy.asked_model import (
    Hidden,
    Known,
    ModelReader,
    SessionGuard,
    may_name_none,
    model_of_path,
    model_of_target,
)
from llmproxy.config import Client, Upstream
from llmproxy.http.fields import Fields


class Forbidden(Exception):
    """A request for a model that its client may not use, or of which none can tell; the text is a sentence for the client."""


def admit(client: Client, upstream: Upstream, request: Any, target: bytes) -> Deferred[Any]:
    """Read the model of a request, and hold it against its client's rights.

    :param request: an ``IStreamedRequest``.
    :param target: what stands behind the upstream's prefix.
    :return: fires with the body to forward, or ``None`` where there is none; fails with :class:`Forbidden`, or as the body
        does.
    """
    return maybeDeferred(_admit, client, upstream, request, target)


def _admit(client: Client, upstream: Upstream, request: Any, target: bytes) -> Any:
    body = request.body
    named = model_of_target(upstream.family, target)
    if named is not None:
        _check(client, named)
    if request.websocket:
        return body  # what comes in its frames is looked at as they pass
    if body is None:
        if named is None and not may_name_none(request.method, has_body=False, is_websocket=False):
            raise Forbidden("The request names no model, and its client may only use some.")
        return body
    if model_of_path(upstream.family, target) is not None:
        return body
    # A model in the query does not stand for that of the body: most APIs ignore a query that they have no use for.
    fields = request.requestHeaders
    reader = ModelReader(
        b", ".join(fields.values_of(b"content-type")), b", ".join(fields.values_of(b"content-encoding"))
    )
    whole = body.whole()
    if whole is None:
        return ReadBody(client, body, reader).begin()
    reader.feed(whole)
    reader.close()
    _check(client, reader.answer)
    return body


def session_guard(client: Client, upstream: Upstream, target: bytes, extensions: bytes) -> SessionGuard:
    """Make the guard of a WebSocket whose handshake was let in.

    :param extensions: of the upstream's answer.
    """
    named = model_of_target(upstream.family, target)
    model = named.model if isinstance(named, Known) else None
    return SessionGuard(model, extensions, partial(rights.missing_for_model, client))


def _check(client: Client, answer: Any) -> None:
    if isinstance(answer, Hidden):
        raise Forbidden(answer.reason)
    missing = rights.missing_for_model(client, answer.model)
    if missing is not None:
        raise Forbidden(missing)


@implementer(IBodyProducer, IConsumer)
class ReadBody:
    """A body that is read for its model while it passes."""

    def __init__(self, client: Client, body: Any, reader: ModelReader) -> None:
        self._client = client
        self._body = body
        self._reader = reader
        self._early: list[bytes] = []
        self._consumer: Any = None
        self._done: Deferred[None] | None = None
        self._end: Failure | bool = False
        self._settled = False
        self._paused = False  # by who takes it
        self._known: Deferred[Any] | None = None
        self.length = body.length

    def begin(self) -> Deferred[Any]:
        """Read until the model is known.

        :return: fires with this when it is, and allowed; fails with :class:`Forbidden`, or as the body does.
        """
        known = self._known = Deferred(self._given_up)
        self._body.startProducing(self).addCallbacks(self._whole, self._broken)
        return known

    @property
    def forbidden(self) -> str | None:
        """Why the rest of it was refused, if it was."""
        return (
            self._end.getErrorMessage()
            if isinstance(self._end, Failure) and self._end.check(Forbidden)
            else None
        )

    @property
    def trailers(self) -> Fields | None:
        """See :class:`~llmproxy.http.interfaces.IStreamedBody`."""
        found: Fields | None = self._body.trailers
        return found

    # What the client's body calls

    def write(self, data: bytes) -> None:
        """Look at a part of the body, and pass on what may be."""
        self._pass(self._reader.feed(data))

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """It is started by this itself."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def _whole(self, result: object) -> None:
        self._pass(self._reader.close())
        if self._end is False:
            self._end = True
            self._finish()

    def _broken(self, failure: Failure) -> None:
        if self._end is False:
            self._refuse(failure)

    def _pass(self, data: bytes) -> None:
        if self._end is not False:
            return
        answer = self._reader.answer
        try:
            if isinstance(answer, Hidden) or (isinstance(answer, Known) and not self._settled):
                _check(self._client, answer)
        except Forbidden:
            self._refuse(Failure())
            self._body.stopProducing()
            return
        if data:
            if self._consumer is None:
                self._early.append(data)
            else:
                self._consumer.write(data)
        if isinstance(answer, Known) and not self._settled:
            self._settled = True
            self._body.pauseProducing()  # until somebody takes it
            known, self._known = self._known, None
            if known is not None:
                known.callback(self)

    def _refuse(self, failure: Failure) -> None:
        self._end = failure
        self._early.clear()
        self._settled = True
        known, self._known = self._known, None
        if known is None:
            self._finish()
        else:
            known.errback(failure)

    def _given_up(self, known: Deferred[Any]) -> None:
        self._known = None
        self._end = self._settled = True
        self._early.clear()
        self._body.stopProducing()
        known.errback(CancelledError())

    # What the upstream's connection calls

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See ``IBodyProducer``; fails with :class:`Forbidden`, or as the body does."""
        done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._done = done
        self._consumer = consumer
        early, self._early = self._early, []
        for data in early:
            consumer.write(data)
        if self._end is not False:
            self._finish()
        elif not self._paused:
            self._body.resumeProducing()
        return done

    def pauseProducing(self) -> None:
        """Read nothing more for now."""
        self._paused = True
        self._body.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        self._body.resumeProducing()

    def stopProducing(self) -> None:
        """Nobody wants the rest."""
        self._done = self._consumer = None
        self._end = self._end or True
        self._body.stopProducing()

    def _finish(self) -> None:
        done = self._done
        if done is None:
            return
        self._done = self._consumer = None
        if isinstance(self._end, Failure):
            done.errback(self._end)
        else:
            done.callback(None)
