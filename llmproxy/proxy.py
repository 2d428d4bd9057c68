"""ProxyResource: the story of one request, from its headers to its ending.

It is authorized, sealed with the upstream's key, sent through treq, and what comes back is relayed. Which requests get here
is decided by :mod:`llmproxy.site`; which headers pass, by :mod:`llmproxy.headers`; how a body is moved, by
:mod:`llmproxy.relay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy import errors, faults, headers
from llmproxy.config import Timeouts, Upstream
from llmproxy.credentials import Caller, Credentials
from llmproxy.deadline import Clock, Deadline
from llmproxy.exchange import Ending, Exchange, Observer
from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IAbortableResponse, IStreamedRequest
from llmproxy.relay import Relay
from llmproxy.transparent import TransparentClient
from llmproxy.tunnel import Tunnel


@attrs.frozen
class Gateway:
    """What all exchanges share.

    :ivar client: sends requests to upstreams.
    :ivar clock: for the timeouts of exchanges; see :class:`~llmproxy.deadline.SharedClock`.
    :ivar observers: told of each exchange when it is over.
    """

    credentials: Credentials
    client: TransparentClient
    clock: Clock
    timeouts: Timeouts
    observers: Sequence[Observer] = ()


class ProxyResource(Resource):
    """Everything under one upstream's prefix.

    It goes by the raw target of the request line, which must be known to be free of tricks: see
    :class:`llmproxy.site.Root`.
    """

    isLeaf = True

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        super().__init__()
        self._gateway = gateway
        self._upstream = upstream
        self._prefix = b"/" + upstream.name.encode("ascii")

    def render(self, request: IStreamedRequest) -> int:
        """Refuse the request or forward it; any method will do."""
        rest = request.uri[len(self._prefix) :]
        caller = self._gateway.credentials.authorize(request.requestHeaders)
        if not rest.startswith(b"/"):
            errors.answer(
                request, errors.NOT_FOUND, f"Nothing is here; the API begins at /{self._upstream.name}/."
            )
        elif caller is None:
            errors.answer(request, errors.UNAUTHORIZED)
        else:
            _Forwarding(self._gateway, self._upstream, request, caller).start(
                self._upstream.base_url.join(rest)
            )
        return NOT_DONE_YET


class _Forwarding:
    """One request on its way to the upstream, and the response on its way back."""

    _log = Logger()

    def __init__(self, gateway: Gateway, upstream: Upstream, request: Any, caller: Caller) -> None:
        self._gateway = gateway
        self._upstream = upstream
        self._request = request
        self._caller = caller
        self._answer: Deferred[None] | None = None
        self._response: IAbortableResponse | None = None
        self._passage: Relay | Tunnel | None = None
        self._gave_up = False
        self._uploaded = 0
        self._deadline = Deadline(gateway.clock, self._too_late)
        self._exchange = Exchange(
            client=caller.client.name,
            upstream=upstream.name,
            method=request.method.decode("ascii"),
            path=request.path.decode("ascii"),
            started=gateway.clock.seconds(),
        )

    def start(self, url: bytes) -> None:
        """Send the request on; everything after this is a reaction to the upstream, the client or the clock."""
        self._request.notifyFinish().addErrback(self._client_left)
        self._deadline.set(self._gateway.timeouts.first_byte)
        answer: Deferred[Any] = maybeDeferred(self._send, url)
        self._answer = answer
        answer.addCallbacks(self._answered, self._not_answered).addErrback(self._broken)

    def _send(self, url: bytes) -> Deferred[Any]:
        request = self._request
        token = self._caller.token
        sealed = headers.seal(request.requestHeaders, self._upstream, token, request.websocket)
        if request.body is not None:
            request.body.seal_trailers = lambda trailers: headers.seal_trailers(trailers, token)
        return self._gateway.client.request(request.method, url, sealed, request.body, self._interim_answered)

    def _interim_answered(self, code: int, phrase: bytes, fields: Fields) -> None:
        self._request.writeInformational(code, phrase, headers.strip_hop_by_hop(fields))

    def _answered(self, response: IAbortableResponse) -> None:
        """The response's headers are here: write them at once, and let the body follow as it comes."""
        self._response = response
        self._exchange.first_byte = self._elapsed()
        self._exchange.status = response.code
        request = self._request
        request.setResponseCode(response.code, response.phrase)
        request.responseHeaders = headers.strip_hop_by_hop(response.headers)
        request.requestHeaders.settle()  # a stream may be open for long
        response.headers.settle()
        if response.code == 101:
            self._join(response)
            return
        idle = self._gateway.timeouts.idle
        relay = self._passage = Relay(request, response, self._deadline, idle, self._over)
        response.deliverBody(relay)
        if not request.startedWriting:
            request.write(b"")  # nothing of the body came with the headers, and they do not wait for it

    def _join(self, response: IAbortableResponse) -> None:
        """Both sides agreed to speak WebSocket: from here on, bytes pass as they come."""
        self._deadline.clear()
        tunnel = self._passage = Tunnel(lambda: self._over(Ending.COMPLETED), self._gateway.clock)
        headers.offer_websocket(self._request.responseHeaders)
        self._request.switchProtocols(tunnel.client)
        response.switchProtocols(tunnel.upstream)

    def _not_answered(self, failure: Failure) -> None:
        """No headers came, and none will: say why, unless nobody is left to be told."""
        if self._exchange.ending is Ending.CLIENT_LEFT:
            return
        if self._gave_up:
            problem, message = faults.silent(self._upstream, self._gateway.timeouts.first_byte)
            ending = Ending.UPSTREAM_SILENT
        elif (explained := faults.explain(self._upstream, failure)) is not None:
            problem, message = explained
            ending = Ending.UPSTREAM_FAILED
        else:
            failure.raiseException()
        self._log.warn("{message}", message=message)
        self._exchange.status = problem.status
        errors.answer(self._request, problem, message)
        self._over(ending)

    def _too_late(self) -> None:
        """Give the upstream up, unless the time went into an upload that it still takes."""
        if isinstance(self._passage, Relay):
            self._passage.upstream_silent()
            return
        body = self._request.body
        if body is not None and body.received != self._uploaded:
            self._uploaded = body.received
            self._deadline.set(self._gateway.timeouts.first_byte)
            return
        self._gave_up = True
        self._drop()

    def _client_left(self, reason: Failure) -> None:
        """Drop the upstream's side in this same turn: nobody is left to read, or to pay for, its answer."""
        if isinstance(self._passage, Relay):
            self._passage.stopProducing()
        elif self._exchange.ending is None:
            self._over(Ending.CLIENT_LEFT)
            self._drop()

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.cancel()

    def _broken(self, failure: Failure) -> None:
        """Something in this program failed: the one case that is not the upstream's or the client's doing."""
        self._log.failure(
            "A request to {upstream} failed within the proxy", failure, upstream=self._upstream.name
        )
        if self._response is not None:
            self._response.abort()
        if self._request.startedWriting:
            self._request.transport.abortConnection()
        else:
            self._request.unregisterProducer()
            self._exchange.status = errors.INTERNAL_ERROR.status
            self._request.responseHeaders = Fields()
            errors.answer(self._request, errors.INTERNAL_ERROR, errors.SEE_LOG)
        self._over(Ending.PROXY_FAILED)

    def _over(self, ending: Ending) -> None:
        exchange = self._exchange
        if exchange.ending is not None:
            return
        self._deadline.close()
        exchange.ending = ending
        exchange.duration = self._elapsed()
        if self._passage is not None:
            exchange.sent = self._passage.sent
        for observer in self._gateway.observers:
            with self._log.failuresHandled("An observer of exchanges failed"):
                observer(exchange)

    def _elapsed(self) -> float:
        return self._gateway.clock.seconds() - self._exchange.started
