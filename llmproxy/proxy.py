"""ProxyResource: the story of one request, from its headers to its ending.

It is authorized, sealed with the upstream's key, sent through treq, and what comes back is relayed. Which requests get here
is decided by :mod:`llmproxy.site`; which headers pass, by :mod:`llmproxy.headers`; how a body is moved, by
:mod:`llmproxy.relay`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy import errors, headers
from llmproxy.config import Timeouts, Upstream
from llmproxy.credentials import Caller, Credentials
from llmproxy.exchange import Ending, Exchange, Observer
from llmproxy.http.interfaces import IAbortableResponse, IStreamedRequest
from llmproxy.idle import IdleTimer
from llmproxy.relay import Relay
from llmproxy.transparent import TransparentClient


@attrs.frozen
class Gateway:
    """What all exchanges share.

    :ivar client: sends requests to upstreams.
    :ivar observers: told of each exchange when it is over.
    """

    credentials: Credentials
    client: TransparentClient
    clock: IReactorTime
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
            errors.answer(request, errors.NOT_FOUND, f"Nothing is here; the API begins at /{self._upstream.name}/.")
        elif caller is None:
            errors.answer(request, errors.UNAUTHORIZED)
        elif headers.wants_websocket(request.requestHeaders):
            errors.answer(request, errors.UPGRADE_REQUIRED, "WebSockets are not tunnelled here; use HTTP requests.")
        else:
            _Forwarding(self._gateway, self._upstream, request, caller).start(self._upstream.base_url.join(rest))
        return NOT_DONE_YET


class _Forwarding:
    """One request on its way to the upstream, and the response on its way back."""

    _log = Logger()

    def __init__(self, gateway: Gateway, upstream: Upstream, request: IStreamedRequest, caller: Caller) -> None:
        self._gateway = gateway
        self._upstream = upstream
        self._request = request
        self._caller = caller
        self._relay: Relay | None = None
        self._gave_up = False
        self._answer: Deferred[None]
        self._patience = IdleTimer(gateway.clock, gateway.timeouts.first_byte, self._give_up)
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
        self._patience.start()
        sealed = headers.seal(self._request.requestHeaders, self._upstream, self._caller.token)
        answered = self._gateway.client.request(self._request.method, url, sealed, self._request.body)
        self._answer = answered.addCallbacks(self._answered, self._not_answered)
        self._answer.addErrback(self._broken)

    def _answered(self, response: IAbortableResponse) -> None:
        """The response's headers are here: write them at once, and let the body follow as it comes."""
        self._patience.stop()
        self._exchange.first_byte = self._elapsed()
        self._exchange.status = response.code
        request = self._request
        request.setResponseCode(response.code, response.phrase)
        for name, values in headers.strip_hop_by_hop(response.headers).getAllRawHeaders():
            request.responseHeaders.setRawHeaders(name, values)
        request.write(b"")
        timeouts = self._gateway.timeouts
        self._relay = Relay(request, response, self._gateway.clock, timeouts.idle, self._over)
        response.deliverBody(self._relay)

    def _not_answered(self, failure: Failure) -> None:
        """No headers came, and none will: say why, unless nobody is left to be told."""
        self._patience.stop()
        if self._exchange.ending is Ending.CLIENT_LEFT:
            return
        if self._gave_up:
            problem, message = errors.silent(self._upstream, self._gateway.timeouts.first_byte)
            ending = Ending.UPSTREAM_SILENT
        elif (explained := errors.explain(self._upstream, failure)) is not None:
            problem, message = explained
            ending = Ending.UPSTREAM_FAILED
        else:
            failure.raiseException()
        self._log.warn("{message}", message=message)
        self._exchange.status = problem.status
        errors.answer(self._request, problem, message)
        self._over(ending)

    def _give_up(self) -> None:
        """The upstream has kept silent for too long."""
        self._gave_up = True
        self._answer.cancel()

    def _client_left(self, reason: Failure) -> None:
        """Drop the upstream's side in this same turn: nobody is left to read, or to pay for, its answer."""
        if self._relay is not None:
            self._relay.stopProducing()
        elif self._exchange.ending is None:
            self._over(Ending.CLIENT_LEFT)
            self._answer.cancel()

    def _broken(self, failure: Failure) -> None:
        """Something in this program failed: the one case that is not the upstream's or the client's doing."""
        self._patience.stop()
        self._log.failure("A request to {upstream} failed within the proxy", failure, upstream=self._upstream.name)
        if self._exchange.status is None:
            self._exchange.status = errors.INTERNAL_ERROR.status
            errors.answer(self._request, errors.INTERNAL_ERROR, errors.SEE_LOG)
        else:
            self._request.transport.abortConnection()
        self._over(Ending.PROXY_FAILED)

    def _over(self, ending: Ending) -> None:
        exchange = self._exchange
        if exchange.ending is not None:
            return
        exchange.ending = ending
        exchange.duration = self._elapsed()
        if self._relay is not None:
            exchange.sent = self._relay.sent
        for observer in self._gateway.observers:
            with self._log.failuresHandled("An observer of exchanges failed"):
                observer(exchange)

    def _elapsed(self) -> float:
        return self._gateway.clock.seconds() - self._exchange.started
