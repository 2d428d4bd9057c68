from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.web.test.requesthelper import DummyRequest

from llmproxy import errors


@pytest.mark.parametrize(
    ("problem", "status", "code", "headers"),
    [
        (errors.BAD_REQUEST, 400, "bad_request", {}),
        (errors.UNAUTHORIZED, 401, "unauthorized", {b"WWW-Authenticate": [b"Bearer"]}),
        (errors.NOT_FOUND, 404, "not_found", {}),
        (errors.METHOD_NOT_ALLOWED, 405, "method_not_allowed", {b"Allow": [b"GET, HEAD"]}),
        (errors.REQUEST_TIMEOUT, 408, "request_timeout", {}),
        (errors.TARGET_TOO_LONG, 414, "uri_too_long", {}),
        (errors.HEADERS_TOO_LARGE, 431, "headers_too_large", {}),
        (errors.INTERNAL_ERROR, 500, "internal_error", {}),
        (errors.NOT_IMPLEMENTED, 501, "not_implemented", {}),
        (errors.BAD_GATEWAY, 502, "bad_gateway", {}),
        (errors.BAD_GATEWAY_RETRY, 502, "bad_gateway", {b"X-Should-Retry": [b"true"]}),
        (errors.SERVICE_UNAVAILABLE, 503, "service_unavailable", {}),
        (errors.GATEWAY_TIMEOUT, 504, "gateway_timeout", {}),
    ],
)
def test_each_problem_has_its_status_its_code_and_its_headers(
    problem: errors.Problem, status: int, code: str, headers: dict[bytes, list[bytes]]
) -> None:
    request: Any = DummyRequest([b""])
    errors.answer(request, problem, "Do this.")
    body = b"".join(request.written)
    assert body == errors.body(problem, "Do this.")
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


def test_no_two_problems_share_a_code_but_those_with_the_same_status() -> None:
    problems = [thing for thing in vars(errors).values() if isinstance(thing, errors.Problem)]
    assert len({problem.code for problem in problems}) == len({problem.status for problem in problems})


@pytest.mark.parametrize(
    ("problem", "phrase"),
    [
        (errors.BAD_REQUEST, b"Bad Request"),
        (errors.HEADERS_TOO_LARGE, b"Request Header Fields Too Large"),
        (errors.BAD_GATEWAY_RETRY, b"Bad Gateway"),
    ],
)
def test_the_reason_phrase_is_the_one_of_the_status(problem: errors.Problem, phrase: bytes) -> None:
    assert errors.phrase(problem) == phrase
