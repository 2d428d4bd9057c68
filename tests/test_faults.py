from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable

import attrs
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

from llmproxy import errors, faults
from llmproxy.http.body import BrokenBody, SilentBody
from llmproxy.http.pool import NoneFree
from llmproxy.http.response import MalformedResponse
from llmproxy.values import BaseURL
from tests.support import OPENAI

Table = list[tuple[BaseException, errors.Problem, str]]


def os_error(number: int) -> Exception:
    """What Twisted makes of an error of the connect system call."""
    made: Exception = error.getConnectError((number, os.strerror(number)))
    return made


def within(kind: type[Exception], cause: Exception) -> Exception:
    """What twisted.web's client makes of a failure on a connection."""
    return kind([Failure(cause)])


def certificate_refused(why: str) -> Exception:
    """What ssl raises where a certificate is not trusted."""
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_message = why
    return refused


def tls_failed(reason: str) -> Exception:
    """What ssl raises where a handshake fails for another reason."""
    failed = ssl.SSLError(1, f"[SSL: {reason}] and more")
    failed.reason = reason
    return failed


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
    (
        within(ResponseNeverReceived, CLOSED),
        errors.BAD_GATEWAY_RETRY,
        "closed the connection before it answered",
    ),
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
        errors.BAD_GATEWAY_RETRY,
        "closed the connection within the headers of its response",
    ),
    (
        within(ResponseFailed, RESET),
        errors.BAD_GATEWAY,
        "reset the connection within the headers of its response",
    ),
    (within(ResponseFailed, ValueError("bad line")), errors.BAD_GATEWAY, "sent a malformed response"),
    (within(ResponseFailed, _DataLoss()), errors.BAD_GATEWAY, "sent a malformed response"),
    (
        within(ResponseFailed, MalformedResponse("its headers are too large")),
        errors.BAD_GATEWAY,
        "sent a malformed response (its headers are too large)",
    ),
    (
        certificate_refused("self-signed certificate"),
        errors.BAD_GATEWAY,
        "cannot be trusted or does not speak TLS: self-signed certificate",
    ),
    (
        tls_failed("WRONG_VERSION_NUMBER"),
        errors.BAD_GATEWAY,
        "cannot be trusted or does not speak TLS: WRONG_VERSION_NUMBER",
    ),
]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize(
    "fault",
    [os_error, lambda number: error.ConnectBindError(number, "out"), lambda number: OSError(number, "out")],
)
def test_out_of_descriptors_is_a_fault_of_the_proxys_own(
    fault: Callable[[int], BaseException], number: int
) -> None:
    explained = faults.explain(OPENAI, Failure(fault(number)))
    assert explained is not None
    problem, message = explained
    assert problem is errors.SERVICE_UNAVAILABLE
    assert message.startswith("This proxy has run out of file descriptors")


@pytest.mark.parametrize(("fault", "problem", "what"), FAULTS)
def test_a_fault_of_an_upstream_is_told_with_its_name_and_host(
    fault: BaseException, problem: errors.Problem, what: str
) -> None:
    assert faults.explain(OPENAI, Failure(fault)) == (
        problem,
        f"The upstream openai (openai.example) {what}.",
    )


@pytest.mark.parametrize("fault", [fault for fault, _, _ in FAULTS])
def test_what_failed_before_there_was_a_connection_was_never_sent(fault: BaseException) -> None:
    assert faults.never_sent(Failure(fault)) is not isinstance(
        fault, (ResponseFailed, RequestTransmissionFailed)
    )


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (NoneFree(), True),
        (error.ConnectingCancelledError(None), True),
        (OSError(errno.EMFILE, "out"), True),
        (os_error(errno.EHOSTUNREACH), True),
        (CancelledError(), False),
        (BrokenBody("x"), False),
        (SilentBody("x"), False),
        (RuntimeError(), False),
    ],
)
def test_whether_a_request_was_sent_is_not_guessed(fault: BaseException, expected: bool) -> None:
    assert faults.never_sent(Failure(fault)) is expected


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH])
def test_an_upstream_that_cannot_be_reached_is_told_in_the_systems_words(number: int) -> None:
    explained = faults.explain(OPENAI, Failure(os_error(number)))
    assert explained is not None
    problem, message = explained
    assert problem is errors.BAD_GATEWAY
    assert message.startswith("The upstream openai (openai.example) cannot be reached: ")
    assert os.strerror(number) in message


def test_a_failure_within_a_failure_is_told_in_one_line_of_its_own_words() -> None:
    explained = faults.explain(
        OPENAI, Failure(error.ConnectError(Failure(error.ConnectionLost("gone\naway"))))
    )
    assert explained is not None
    assert explained[1].endswith("cannot be reached: gone away.")


def test_a_connection_that_failed_without_a_system_error_is_told_too() -> None:
    explained = faults.explain(OPENAI, Failure(error.ConnectError(string="out of luck")))
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
    assert faults.explain(OPENAI, Failure(fault)) is None


def test_a_client_that_breaks_its_body_is_told_so_and_the_upstream_is_not_blamed() -> None:
    explained = faults.explain(OPENAI, Failure(BrokenBody("Not HTTP/1.1: a chunk has no size.")))
    assert explained == (
        errors.BAD_REQUEST,
        "The request's body is broken: Not HTTP/1.1: a chunk has no size.",
    )


def test_a_client_that_stops_sending_is_told_so_and_the_upstream_is_not_blamed() -> None:
    explained = faults.explain(OPENAI, Failure(SilentBody("The client sent nothing for 60 seconds.")))
    assert explained == (errors.REQUEST_TIMEOUT, "The client sent nothing for 60 seconds.")


@pytest.mark.parametrize("kind", [ResponseNeverReceived, ResponseFailed])
def test_leave_to_retry_is_given_only_where_the_upstream_may_have_acted_on_the_request(
    kind: type[Exception],
) -> None:
    # Closed in order, it may have read all of it. Reset, it was not answered for; and what is malformed comes again.
    for cause, retry in ((CLOSED, True), (RESET, False), (MalformedResponse("x"), False)):
        explained = faults.explain(OPENAI, Failure(within(kind, cause)))
        assert explained is not None
        assert (dict(explained[0].headers) == {b"x-should-retry": b"true"}) is retry


def test_the_port_of_an_upstream_is_told_where_it_is_not_the_usual_one() -> None:
    upstream = attrs.evolve(OPENAI, base_url=BaseURL("http", "::1", 8080, ""))
    explained = faults.explain(upstream, Failure(error.ConnectionRefusedError()))
    assert explained == (errors.BAD_GATEWAY, "The upstream openai ([::1]:8080) refused the connection.")


@pytest.mark.parametrize(("seconds", "shown"), [(600.0, "600"), (2.5, "2.5")])
def test_a_silent_upstream_is_told_with_the_time_that_was_waited(seconds: float, shown: str) -> None:
    assert faults.silent(OPENAI, seconds) == (
        errors.GATEWAY_TIMEOUT,
        f"The upstream openai (openai.example) sent nothing for {shown} seconds.",
    )


def test_a_request_that_was_never_sent_is_not_the_silence_of_its_upstream() -> None:
    assert faults.silent(OPENAI, 600, Failure(NoneFree())) == (
        errors.GATEWAY_TIMEOUT,
        "No connection to the upstream openai became free for 600 seconds: as many as there may be are in use.",
    )
    assert "sent nothing" in faults.silent(OPENAI, 600, Failure(CancelledError()))[1]
