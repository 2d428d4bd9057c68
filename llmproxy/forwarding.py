"""One request on its way to an upstream, and the response on its way back: the story of an exchange, top to bottom.

The request is admitted, sealed with one of the upstream's keys and sent through treq, and what comes back is relayed. Which
headers pass is decided by :mod:`llmproxy.headers`; how a body is moved, by :mod:`llmproxy.relay`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy import admission, errors, faults, headers, rights, target
from llmproxy.credentials import Caller
from llmproxy.deadline import Deadline
from llmproxy.exchange import Ending, Exchange
from llmproxy.http.fields import Fields
from llmproxy.http.held_body import again, hold, release
from llmproxy.http.interfaces import IAbortableResponse
from llmproxy.keyring import REFUSALS, Key
from llmproxy.observation import look_at_request, look_at_response, look_at_session
from llmproxy.relay import Relay
from llmproxy.route import Gateway, Route
from llmproxy.tunnel import Tunnel


class Forwarding:
    """One exchange.

    :param request: an ``IStreamedRequest``, whose sender may ask this upstream.
    :param raw_target: what stands behind the upstream's prefix, as sent.
    """

    _log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        route: Route,
        request: Any,
        caller: Caller,
        raw_target: bytes,
        exchange: Exchange,
    ) -> None:
        self._gateway = gateway
        self._route = route
        self._upstream = route.upstream
        self._request = request
        self._caller = caller
        self._target = raw_target
        self._body: Any = request.body
        self._read: admission.ReadBody | None = None
        self._tried: tuple[Key, ...] = ()
        self._answer: Deferred[Any] | None = None
        self._response: IAbortableResponse | None = None
        self._passage: Relay | Tunnel | None = None
        self._attempts = 0
        self._gave_up: Ending | None = None
        self._uploaded = 0
        self._deadline = Deadline(gateway.clock, self._too_late)
        self._exchange = exchange

    def start(self) -> None:
        """Send the request on; everything after this is a reaction to the upstream, the client or the clock."""
        self._exchange.end = self._over
        self._request.notifyFinish().addErrback(self._client_left)
        if self._gateway.observer is not None:
            look_at_request(self._exchange, self._upstream.family, self._request, self._target)
        if rights.depend_on_model(self._caller.client):
            self._try(self._admit)
        else:
            self._try(self._send)

    def _try(self, attempt: Callable[[], Deferred[Any]]) -> None:
        answer: Deferred[Any] = maybeDeferred(attempt)
        self._answer = answer
        answer.addCallbacks(self._answered, self._not_answered).addErrback(self._broken)

    # On the way to the upstream

    def _admit(self) -> Deferred[Any]:
        """Find out first whether the client may use the model that it asks for."""
        admitted = admission.admit(self._caller.client, self._upstream, self._request, self._target)
        return admitted.addCallback(self._admitted)

    def _admitted(self, body: Any) -> Deferred[Any]:
        self._body = body
        if isinstance(body, admission.ReadBody):
            self._read = body
        return self._send()

    def _send(self) -> Deferred[Any]:
        request, token = self._request, self._caller.token
        self._attempts += 1
        self._deadline.set(self._upstream.timeouts.first_byte)
        keyring = self._route.keyring
        if len(keyring.keys) > 1 and not self._tried:
            self._body = hold(self._body, self._gateway.max_resent_body)
        key = keyring.choose(self._tried)
        if key is not None:
            self._tried += (key,)
        header, parameter = self._route.presented(key)
        sealed = headers.seal(request.requestHeaders, self._upstream, header, token, request.websocket)
        if request.body is not None:
            self._uploaded = request.body.received
            request.body.seal_trailers = lambda trailers: headers.seal_trailers(trailers, token)
        url = self._upstream.base_url.join(target.seal(self._target, token, parameter))
        return self._route.client.request(request.method, url, sealed, self._body, self._interim_answered)

    # On the way back

    def _interim_answered(self, code: int, phrase: bytes, fields: Fields) -> None:
        self._request.writeInformational(code, phrase, headers.strip_hop_by_hop(fields))

    def _answered(self, response: IAbortableResponse) -> None:
        """The response's headers are here: write them at once, and let the body follow as it comes."""
        if response.code in REFUSALS and self._another_key_is_left(response):
            response.abort()
            self._try(self._send)
            return
        release(self._body)
        self._body = None  # the response may go on for long
        self._response = response
        self._exchange.first_byte = self._elapsed()
        self._exchange.status = response.code
        request = self._request
        request.setResponseCode(response.code, response.phrase)
        request.responseHeaders = headers.strip_hop_by_hop(response.headers)
        self._gateway.tell(self._exchange, request)
        look = None
        if self._gateway.observer is not None:
            look = look_at_response(self._exchange, self._upstream.family, response, self._gateway.clock)
        request.requestHeaders.settle()  # a stream may be open for long
        response.headers.settle()
        if response.code == 101:
            self._join(response)
            return
        idle, patience = self._upstream.timeouts.idle, self._gateway.close_time
        relay = self._passage = Relay(request, response, self._deadline, idle, patience, self._over, look)
        response.deliverBody(relay)
        if not request.startedWriting:
            request.write(b"")  # nothing of the body came with the headers, and they do not wait for it

    def _another_key_is_left(self, response: IAbortableResponse) -> bool:
        """Put the key that was refused to rest, and tell whether the request can be sent with another one."""
        keyring = self._route.keyring
        if not self._tried or len(keyring.keys) < 2:
            return False
        key = self._tried[-1]
        rest = keyring.report(
            key,
            response.code,
            response.headers.getRawHeaders(b"retry-after", [None])[0],
            response.headers.getRawHeaders(b"retry-after-ms", [None])[0],
        )
        self._log.warn(
            "The upstream {upstream} refused key {number} with {status}; it rests for {rest} s",
            upstream=self._upstream.name,
            number=key.number,
            status=response.code,
            rest=round(rest, 1),
        )
        if not keyring.has_another(self._tried):
            return False
        body = again(self._body)
        if body is None and self._body is not None:
            return False
        self._body = body
        return True

    def _join(self, response: IAbortableResponse) -> None:
        """Both sides agreed to speak WebSocket: from here on, bytes pass as they come."""
        self._deadline.clear()
        extensions = b", ".join(response.headers.getRawHeaders(b"sec-websocket-extensions", ()))
        clock = self._gateway.clock
        looks = None
        if (observer := self._gateway.observer) is not None:
            looks = look_at_session(self._exchange, self._upstream.family, extensions, clock, observer)
        tunnel = Tunnel(self._over, clock, self._gateway.close_time, *(looks or ()))
        self._passage = tunnel
        if rights.depend_on_model(self._caller.client):
            guard = admission.session_guard(self._caller.client, self._upstream, self._target, extensions)
            tunnel.guard(guard, self._session_refused)
        headers.offer_websocket(self._request.responseHeaders)
        self._request.switchProtocols(tunnel.client)
        response.switchProtocols(tunnel.upstream)

    def _session_refused(self, reason: str) -> None:
        self._log.warn("A WebSocket session was ended: {reason}", reason=reason)
        self._over(Ending.REFUSED)

    # When it fails

    def _not_answered(self, failure: Failure) -> None:
        """No headers came, and none will: say why, unless nobody is left to be told."""
        if self._exchange.ending is not None:
            return
        if self._gave_up is Ending.CLIENT_LEFT:
            self._note_if_unheard(failure)
            return
        if self._gave_up is Ending.UPSTREAM_SILENT:
            problem, message = faults.silent(self._upstream, self._upstream.timeouts.first_byte, failure)
            ending = Ending.UPSTREAM_SILENT
        elif failure.check(admission.Forbidden):
            problem, message = errors.FORBIDDEN, failure.getErrorMessage()
            ending = Ending.REFUSED
        elif (explained := faults.explain(self._upstream, failure)) is not None:
            problem, message = explained
            ours = problem is errors.SERVICE_UNAVAILABLE
            ending = Ending.PROXY_FAILED if ours else Ending.UPSTREAM_FAILED
        else:
            failure.raiseException()
        self._note_if_unheard(failure)
        self._log.warn("{message}", message=message)
        self._exchange.status = problem.status
        self._gateway.tell(self._exchange, self._request)
        errors.answer(self._request, problem, message)
        self._over(ending)

    def _note_if_unheard(self, failure: Failure) -> None:
        """Note that it costs nothing, where the upstream has certainly heard nothing of it, with whichever key."""
        if self._attempts == 1 and faults.never_sent(failure):
            self._exchange.note_free()

    def _too_late(self) -> None:
        """Give up who is waited for; but not the upstream where the time went into an upload that it still takes."""
        if isinstance(self._passage, Relay):
            self._passage.too_late()
            return
        body = self._request.body
        if body is not None and body.received != self._uploaded:
            self._uploaded = body.received
            self._deadline.set(self._upstream.timeouts.first_byte)
            return
        self._drop(Ending.UPSTREAM_SILENT)

    def _client_left(self, reason: Failure) -> None:
        """Drop the upstream's side in this same turn: nobody is left to read, or to pay for, its answer."""
        if isinstance(self._passage, Relay):
            self._passage.stopProducing()
        elif self._exchange.ending is None:
            if self._attempts == 0:  # its model was not known yet
                self._exchange.note_free()
            self._drop(Ending.CLIENT_LEFT)  # before it is over: how it fails tells whether anything was sent
            self._over(Ending.CLIENT_LEFT)

    def _drop(self, ending: Ending) -> None:
        """Wait for no answer any more."""
        self._gave_up = ending
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
            self._gateway.tell(self._exchange, self._request)
            errors.answer(self._request, errors.INTERNAL_ERROR, errors.SEE_LOG)
        self._over(Ending.PROXY_FAILED)

    def _over(self, ending: Ending) -> None:
        exchange = self._exchange
        if exchange.ending is not None:
            return
        self._deadline.close()
        if ending is Ending.UPSTREAM_FAILED and self._read is not None and self._read.forbidden:
            # The answer had begun, and was cut off with the upload that was not to go on.
            self._log.warn("A request was ended: {reason}", reason=self._read.forbidden)
            ending = Ending.REFUSED
        if exchange.cut_off:
            ending = Ending.PROXY_FAILED
        exchange.ending = ending
        exchange.end = None  # it refers back to this
        if self._passage is not None:
            exchange.sent = self._passage.sent
        if exchange.tap is not None and isinstance(self._passage, Tunnel):
            exchange.tap.close(ending is Ending.COMPLETED)  # and with it the turns that have not ended
        self._gateway.end(exchange, self._request, ending)

    def _elapsed(self) -> float:
        return self._gateway.clock.seconds() - self._exchange.started
