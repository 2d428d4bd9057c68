"""What went wrong with an upstream, in words for the client: one sentence for each fault.

Sentences name the upstream and its host, never a key, token or header. This is the one place that knows what Twisted, ssl,
OpenSSL and the engine raise.
"""

from __future__ import annotations

import errno
import os
import ssl

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived

from llmproxy.config import Upstream
from llmproxy.errors import (
    BAD_GATEWAY,
    BAD_GATEWAY_RETRY,
    BAD_REQUEST,
    GATEWAY_TIMEOUT,
    REQUEST_TIMEOUT,
    SERVICE_UNAVAILABLE,
    Problem,
)
from llmproxy.http.body import BrokenBody, SilentBody
from llmproxy.http.pool import NoneFree
from llmproxy.http.response import MalformedResponse

_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


def explain(upstream: Upstream, failure: Failure) -> tuple[Problem, str] | None:
    """Say what happened to a request on its way to an upstream, or to the response's headers on their way back.

    :return: the problem and a sentence, or ``None`` for a fault of this program, not the upstream's or the client's.
    """
    if failure.check(error.TimeoutError, error.TCPTimedOutError):
        return GATEWAY_TIMEOUT, f"{_name(upstream)} did not take the connection in time."
    if failure.check(BrokenBody):
        return BAD_REQUEST, f"The request's body is broken: {failure.getErrorMessage()}"
    if failure.check(SilentBody):
        return REQUEST_TIMEOUT, failure.getErrorMessage()
    if failure.check(error.ConnectError, OSError) and _number(failure.value) in _OUT_OF_DESCRIPTORS:
        return SERVICE_UNAVAILABLE, (
            f"This proxy has run out of file descriptors: it cannot connect to the upstream {upstream.name}."
        )
    what = _connecting(failure) or _exchanging(failure)
    if what is None:
        return None
    fault = failure.value
    ended = isinstance(fault, ResponseFailed) and fault.reasons[0].check(error.ConnectionDone)
    return BAD_GATEWAY_RETRY if ended else BAD_GATEWAY, f"{_name(upstream)} {what}."


def never_sent(failure: Failure) -> bool:
    """Tell whether it is certain that an upstream heard nothing of a request: it ended before there was a connection for it.

    A kept connection may have been tried before; then the upstream had closed that, and read nothing.
    """
    unconnected = failure.check(error.ConnectingCancelledError, NoneFree, OSError)
    return unconnected is not None or _connecting(failure) is not None


def silent(upstream: Upstream, seconds: float, given_up: Failure | None = None) -> tuple[Problem, str]:
    """Say that an upstream took a request and sent nothing for a time.

    :param given_up: how the request failed when it was given up; perhaps it had not been sent yet.
    """
    if given_up is not None and given_up.check(NoneFree):
        what = f"No connection to the upstream {upstream.name} became free for {seconds:g} seconds"
        return GATEWAY_TIMEOUT, f"{what}: as many as there may be are in use."
    return GATEWAY_TIMEOUT, f"{_name(upstream)} sent nothing for {seconds:g} seconds."


def _name(upstream: Upstream) -> str:
    return f"The upstream {upstream.name} ({upstream.base_url.netloc.decode('ascii')})"


def _connecting(failure: Failure) -> str | None:
    """What failed before a connection was up."""
    if failure.check(error.DNSLookupError, error.UnknownHostError):
        return "cannot be found: its host name does not resolve"
    if failure.check(error.ConnectionRefusedError):
        return "refused the connection"
    if failure.check(error.ConnectError):
        return f"cannot be reached: {_reason(failure.value)}"
    if failure.check(ssl.SSLError, SSL.Error, VerificationError):
        return f"cannot be trusted or does not speak TLS: {_tls_reason(failure.value)}"
    if failure.check(error.ConnectionClosed):
        return "closed the connection during the TLS handshake"
    return None


def _exchanging(failure: Failure) -> str | None:
    """What failed on a connection that was up."""
    fault = failure.value
    if not isinstance(fault, (ResponseFailed, RequestTransmissionFailed)):
        return None
    cause: Failure = fault.reasons[0]
    lost = (
        "closed"
        if cause.check(error.ConnectionDone)
        else "reset"
        if cause.check(error.ConnectionClosed)
        else None
    )
    if lost is None:
        return (
            f"sent a malformed response ({cause.value})"
            if cause.check(MalformedResponse)
            else "sent a malformed response"
        )
    if failure.check(ResponseNeverReceived):
        return f"{lost} the connection before it answered"
    if failure.check(RequestTransmissionFailed):
        return f"{lost} the connection while the request was being sent"
    return f"{lost} the connection within the headers of its response"


def _reason(fault: object) -> str:
    """Why a connection could not be made, without the words that Twisted puts around it."""
    number = _number(fault)
    if number is not None:
        return os.strerror(number)
    cause = _cause(fault)
    if isinstance(cause, Failure):
        return _reason(cause.value)
    return " ".join(str(cause or fault).split())


def _number(fault: object) -> int | None:
    """What the operating system calls it."""
    cause = _cause(fault)
    if isinstance(cause, Failure):
        return _number(cause.value)
    return cause if isinstance(cause, int) else None


def _cause(fault: object) -> object:
    return getattr(fault, "osError", None) or (
        fault.args[0] if isinstance(fault, Exception) and fault.args else None
    )


def _tls_reason(fault: object) -> str:
    """The last of OpenSSL's own words, or the name of the check that the certificate did not pass."""
    if isinstance(fault, ssl.SSLError):
        return str(getattr(fault, "verify_message", None) or fault.reason or fault)
    if isinstance(fault, SSL.Error) and fault.args and isinstance(fault.args[0], list) and fault.args[0]:
        return str(fault.args[0][-1][-1])
    return type(fault).__name__
