"""What went wrong, and how a client is told: the one table of statuses and codes, and the words for each upstream fault.

An error of the proxy's own always has the shape ``{"error": "<code>", "message": "<a sentence a person can act on>"}``, so
that it is never taken for one of the provider. Messages name the upstream and its host, never a key, token or header.
"""

from __future__ import annotations

import json

import attrs
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.iweb import IRequest

from llmproxy.config import Upstream


@attrs.frozen
class Problem:
    """A kind of failure: what a client sees of it before the sentence that explains the case.

    :ivar headers: what RFC 9110 wants beside the status.
    """

    status: int
    code: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


BAD_REQUEST = Problem(400, "bad_request")
# RFC 9110 section 15.5.2: a 401 names the scheme that is wanted.
UNAUTHORIZED = Problem(401, "unauthorized", ((b"WWW-Authenticate", b"Bearer"),))
NOT_FOUND = Problem(404, "not_found")
METHOD_NOT_ALLOWED = Problem(405, "method_not_allowed", ((b"Allow", b"GET, HEAD"),))
# RFC 9110 section 15.5.22: a 426 names the protocol that is spoken instead.
UPGRADE_REQUIRED = Problem(426, "upgrade_required", ((b"Upgrade", b"HTTP/1.1"), (b"Connection", b"upgrade")))
INTERNAL_ERROR = Problem(500, "internal_error")
BAD_GATEWAY = Problem(502, "bad_gateway")
GATEWAY_TIMEOUT = Problem(504, "gateway_timeout")

SEE_LOG = "The proxy itself failed, not the upstream; its log says how."


def answer(request: IRequest, problem: Problem, message: str | None = None) -> None:
    """Send a problem as the whole response.

    :param message: one or two sentences for the person behind the client; ``None`` leaves the code to speak for itself.
    """
    content = {"error": problem.code} if message is None else {"error": problem.code, "message": message}
    body = json.dumps(content, separators=(",", ":")).encode("ascii")
    request.setResponseCode(problem.status)
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    for name, value in problem.headers:
        request.setHeader(name, value)
    request.write(body)
    request.finish()


def explain(upstream: Upstream, failure: Failure) -> tuple[Problem, str] | None:
    """Say what happened to a request on its way to an upstream, or to the response's headers on their way back.

    :return: the problem and a sentence, or ``None`` where the failure is not the upstream's: a fault of this program.
    """
    if failure.check(error.TimeoutError, error.TCPTimedOutError):
        return GATEWAY_TIMEOUT, f"{_name(upstream)} did not take the connection in time."
    what = _connecting(failure) or _exchanging(failure)
    return None if what is None else (BAD_GATEWAY, f"{_name(upstream)} {what}.")


def silent(upstream: Upstream, seconds: float) -> tuple[Problem, str]:
    """Say that an upstream took a request and sent nothing for a time."""
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
    if failure.check(SSL.Error, VerificationError):
        return f"cannot be trusted or does not speak TLS: {_tls_reason(failure.value)}"
    if failure.check(error.ConnectionClosed):
        return "closed the connection during the TLS handshake"
    return None


def _exchanging(failure: Failure) -> str | None:
    """What failed on a connection that was up."""
    if not failure.check(ResponseFailed, RequestTransmissionFailed):
        return None
    cause: Failure = failure.value.reasons[0]
    lost = "closed" if cause.check(error.ConnectionDone) else "reset" if cause.check(error.ConnectionClosed) else None
    if lost is None:
        return "sent a malformed response"
    if failure.check(ResponseNeverReceived):
        return f"{lost} the connection before it answered"
    if failure.check(RequestTransmissionFailed):
        return f"{lost} the connection while the request was being sent"
    return f"{lost} the connection within the headers of its response"


def _reason(fault: Exception) -> str:
    return getattr(fault, "osError", None) or str(fault)


def _tls_reason(fault: Exception) -> str:
    """The last of OpenSSL's own words, or the name of the check that the certificate did not pass."""
    if isinstance(fault, SSL.Error) and fault.args and isinstance(fault.args[0], list) and fault.args[0]:
        return str(fault.args[0][-1][-1])
    return type(fault).__name__
