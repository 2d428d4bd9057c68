"""How a client is told that something went wrong: the one table of statuses and codes.

An error of the proxy's own always has the shape ``{"error": "<code>", "message": "<a sentence a person can act on>"}``, so
that it is never taken for one of the provider. What is to be said of an upstream's fault is in :mod:`llmproxy.faults`.
"""

from __future__ import annotations

import json
from http import HTTPStatus

import attrs
from twisted.web.iweb import IRequest


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
FORBIDDEN = Problem(403, "forbidden")
NOT_FOUND = Problem(404, "not_found")
REQUEST_TIMEOUT = Problem(408, "request_timeout")
TARGET_TOO_LONG = Problem(414, "uri_too_long")
HEADERS_TOO_LARGE = Problem(431, "headers_too_large")
NOT_IMPLEMENTED = Problem(501, "not_implemented")
METHOD_NOT_ALLOWED = Problem(405, "method_not_allowed", ((b"Allow", b"GET, HEAD"),))
INTERNAL_ERROR = Problem(500, "internal_error")
BAD_GATEWAY = Problem(502, "bad_gateway")
# The upstream may have acted on the request, so it is not for the proxy to send it again; the SDKs of OpenAI and Anthropic take
# this header as leave to do so.
BAD_GATEWAY_RETRY = Problem(502, "bad_gateway", ((b"x-should-retry", b"true"),))
SERVICE_UNAVAILABLE = Problem(503, "service_unavailable")
GATEWAY_TIMEOUT = Problem(504, "gateway_timeout")

SEE_LOG = "The proxy itself failed, not the upstream; its log says how."


def body(problem: Problem, message: str | None = None) -> bytes:
    """The JSON that tells a client of a problem.

    :param message: one or two sentences for the person behind the client; ``None`` leaves the code to speak for itself.
    """
    content = {"error": problem.code} if message is None else {"error": problem.code, "message": message}
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def phrase(problem: Problem) -> bytes:
    """The reason phrase of a problem's status."""
    return HTTPStatus(problem.status).phrase.encode("ascii")


def answer(request: IRequest, problem: Problem, message: str | None = None) -> None:
    """Send a problem as the whole response; see :func:`body`."""
    content = body(problem, message)
    request.setResponseCode(problem.status, phrase(problem))
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Content-Length", b"%d" % len(content))
    for name, value in problem.headers:
        request.setHeader(name, value)
    request.write(content)
    request.finish()
