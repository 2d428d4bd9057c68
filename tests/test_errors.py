from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import _DataLoss
from twisted.web.test.requesthelper import DummyRequest

from llmproxy import errors
from llmproxy.config import BaseURL, Upstream
from tests.support import OPENAI, OPENAI_KEY

Table = list[tuple[BaseException, errors.Problem, str]]


def os_error(number: int) -> Exception:
    """What Twisted makes of an error of the connect system call."""
    made: Exception = error.getConnectError((number, os.strerror(number)))
    return made


def within(kind: type[Exception], cause: Exception) -> Exception:
    """What twisted.web's client makes of a failure on a connection."""
    return kind([Failure(cause)])


CLOSED = error.ConnectionDone()
RESET = error.ConnectionLost()

FAULTS: Table = [
    (os_error(errno.ECONNREFUSED), errors.BAD_GATEWAY, "refused the connection"),
    (
        error.DNSLookupError("no such name"),
        errors.BAD_GATEWAY,
        "cannot be found: its host name does not resolve",
    ),
    (error.UnknownHostError(), errors.BAD_GATEWAY, "cannot be found: its host name does not resolve"),
    (error.TimeoutError(), errors.GATEWAY_TIMEOUT, "did not take the connection in time"),
    (os_error(errno.ETIMEDOUT), errors.GATEWAY_TIMEOUT, "did not take the connection in time"),
    (
        SSL.Error([("SSL routines", "", "certificate verify failed")]),
        errors.BAD_GATEWAY,
        "cannot be trusted or does not speak TLS: certificate verify failed",
    ),
    (
        SSL.Error([("SSL routines", "", "first"), ("SSL routines", "", "wrong version number")]),
        errors.BAD_GATEWAY,
        "cannot be trusted or does not speak TLS: wrong version number",
    ),
    (
        SSL.SysCallError(-1, "Unexpected EOF"),
        errors.BAD_GATEWAY,
        "cannot be trusted or does not speak TLS: SysCallError",
    ),
    (SSL.Error([]), errors.BAD_GATEWAY, "cannot be trusted or does not speak TLS: Error"),
    (
        VerificationError(errors=[]),
        errors.BAD_GATEWAY,
        "cannot be trusted or does not speak TLS: VerificationError",
    ),
    (CLOSED, errors.BAD_GATEWAY, "closed the connection during the TLS handshake"),
    (RESET, errors.BAD_GATEWAY, "closed the connection during the TLS handshake"),
    (within(ResponseNeverReceived, CLOSED), errors.BAD_GATEWAY, "closed the connection before it answered"),
    (within(ResponseNeverReceived, RESET), errors.BAD_GATEWAY, "reset the connection before it answered"),
    (
        within(RequestTransmissionFailed, CLOSED),
        errors.BAD_GATEWAY,
        "closed the connection while the request was being sent",
    ),
    (
        within(RequestTransmissionFailed, RESET),
        errors.BAD_GATEWAY,
        "reset the connection while the request was being sent",
    ),
    (
        within(ResponseFailed, CLOSED),
        errors.BAD_GATEWAY,
        "closed the connection within the headers of its response",
    ),
    (
        within(ResponseFailed, RESET),
        errors.BAD_GATEWAY,
        "reset the connection within the headers of its response",
    ),
    (within(ResponseFailed, ValueError("bad line")), errors.BAD_GATEWAY, "sent a malformed response"),
    (within(ResponseFailed, _DataLoss()), errors.BAD_GATEWAY, "sent a malformed response"),
]


@pytest.mark.parametrize(("fault", "problem", "what"), FAULTS)
def test_a_fault_of_an_upstream_is_told_with_its_name_and_host(
    fault: BaseException, problem: errors.Problem, what: str
) -> None:
    assert errors.explain(OPENAI, Failure(fault)) == (
        problem,
        f"The upstream openai (openai.example) {what}.",
    )


@pytest.mark.xfail(strict=True, reason="the message shows the number of the system error, not its words")
@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH])
def test_an_upstream_that_cannot_be_reached_is_told_in_the_systems_words(number: int) -> None:
    explained = errors.explain(OPENAI, Failure(os_error(number)))
    assert explained is not None
    problem, message = explained
    assert problem is errors.BAD_GATEWAY
    assert message.startswith("The upstream openai (openai.example) cannot be reached: ")
    assert os.strerror(number) in message


def test_a_connection_that_failed_without_a_system_error_is_told_too() -> None:
    explained = errors.explain(OPENAI, Failure(error.ConnectError(string="out of luck")))
    assert explained is not None
    assert "cannot be reached: " in explained[1]
    assert "out of luck" in explained[1]


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("x"),
        KeyError("x"),
        CancelledError(),
        within(RequestGenerationFailed, ValueError("x")),
        RuntimeError(),
    ],
)
def test_a_fault_of_this_program_is_not_blamed_on_an_upstream(fault: Exception) -> None:
    assert errors.explain(OPENAI, Failure(fault)) is None


def test_the_port_of_an_upstream_is_told_where_it_is_not_the_usual_one() -> None:
    upstream = Upstream("openai", BaseURL("http", "::1", 8080, ""), "Authorization", OPENAI_KEY)
    explained = errors.explain(upstream, Failure(error.ConnectionRefusedError()))
    assert explained == (errors.BAD_GATEWAY, "The upstream openai ([::1]:8080) refused the connection.")


@pytest.mark.parametrize(("seconds", "shown"), [(600.0, "600"), (2.5, "2.5")])
def test_a_silent_upstream_is_told_with_the_time_that_was_waited(seconds: float, shown: str) -> None:
    assert errors.silent(OPENAI, seconds) == (
        errors.GATEWAY_TIMEOUT,
        f"The upstream openai (openai.example) sent nothing for {shown} seconds.",
    )


@pytest.mark.parametrize(
    ("problem", "status", "code", "headers"),
    [
        (errors.BAD_REQUEST, 400, "bad_request", {}),
        (errors.UNAUTHORIZED, 401, "unauthorized", {b"WWW-Authenticate": [b"Bearer"]}),
        (errors.NOT_FOUND, 404, "not_found", {}),
        (errors.METHOD_NOT_ALLOWED, 405, "method_not_allowed", {b"Allow": [b"GET, HEAD"]}),
        (
            errors.UPGRADE_REQUIRED,
            426,
            "upgrade_required",
            {b"Upgrade": [b"HTTP/1.1"], b"Connection": [b"upgrade"]},
        ),
        (errors.INTERNAL_ERROR, 500, "internal_error", {}),
        (errors.BAD_GATEWAY, 502, "bad_gateway", {}),
        (errors.GATEWAY_TIMEOUT, 504, "gateway_timeout", {}),
    ],
)
def test_each_problem_has_its_status_its_code_and_its_headers(
    problem: errors.Problem, status: int, code: str, headers: dict[bytes, list[bytes]]
) -> None:
    request: Any = DummyRequest([b""])
    errors.answer(request, problem, "Do this.")
    body = b"".join(request.written)
    assert request.responseCode == status
    assert json.loads(body) == {"error": code, "message": "Do this."}
    assert dict(request.responseHeaders.getAllRawHeaders()) == {
        b"Content-Type": [b"application/json"],
        b"Content-Length": [b"%d" % len(body)],
        **headers,
    }
    assert request.finished == 1


def test_an_answer_without_a_message_is_the_code_alone() -> None:
    request: Any = DummyRequest([b""])
    errors.answer(request, errors.UNAUTHORIZED)
    assert request.written == [b'{"error":"unauthorized"}']


def test_a_message_outside_ascii_is_still_plain_json() -> None:
    request: Any = DummyRequest([b""])
    errors.answer(request, errors.BAD_GATEWAY, "schlecht \u2013 übel")
    assert json.loads(request.written[0])["message"] == "schlecht \u2013 übel"
    assert request.written[0].isascii()
