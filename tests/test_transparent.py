"""What treq would do by itself, and must not."""

from __future__ import annotations

import gzip
from http.cookiejar import Cookie
from typing import Any, cast

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import AccumulatingProtocol
from twisted.web.iweb import IBodyProducer

from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IAbortableResponse
from llmproxy.transparent import TransparentClient, _NoCookies
from tests.support import ScriptedAgent, pairs

URL = b"https://openai.example/v1/x"


class Sent:
    """A transparent client over a scripted agent."""

    def __init__(self) -> None:
        clock = Clock()
        self.agent = ScriptedAgent(clock)
        self.client = TransparentClient(self.agent, clock)

    def request(
        self,
        method: bytes = b"GET",
        url: bytes = URL,
        headers: list[tuple[bytes, bytes]] | None = None,
        body: IBodyProducer | None = None,
    ) -> Deferred[IAbortableResponse]:
        return self.client.request(method, url, Fields(headers or []), body)


@pytest.fixture
def sent() -> Sent:
    return Sent()


def result(deferred: Deferred[IAbortableResponse]) -> Any:
    results: list[IAbortableResponse] = []
    deferred.addCallback(results.append)
    (found,) = results
    return found


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/a?",
        b"/a;",
        b"/a?b=1&b=2",
        b'/a?x=[]{}|"\\^`<>',
        b"/%2F%2f%zz%",
        b"//evil.example/x",
        b"/a b".replace(b" ", b"%20"),
        b"/http://evil.example/",
    ],
)
@pytest.mark.parametrize(
    "origin", [b"https://openai.example", b"http://[2001:db8::1]:8080", b"http://10.0.0.1:1"]
)
def test_a_url_is_not_normalized(sent: Sent, origin: bytes, path: bytes) -> None:
    sent.request(url=origin + path)
    assert sent.agent.only.url == origin + path


@pytest.mark.parametrize("method", [b"GET", b"get", b"Post", b"BREW"])
def test_a_method_is_not_changed(sent: Sent, method: bytes) -> None:
    sent.request(method=method)
    assert sent.agent.only.method == method


@pytest.mark.parametrize(
    "headers",
    [[], [(b"accept-encoding", b"zstd")], [(b"X-a", b"2"), (b"B", b""), (b"x-A", b"1"), (b"X-a", b"2")]],
)
def test_no_header_is_added_or_changed(sent: Sent, headers: list[tuple[bytes, bytes]]) -> None:
    sent.request(headers=headers)
    assert sent.agent.only.headers.pairs == headers


def test_a_body_is_handed_on_as_it_is(sent: Sent) -> None:
    body = cast(IBodyProducer, object())
    sent.request(body=body)
    assert sent.agent.only.producer is body


def test_no_body_stays_no_body(sent: Sent) -> None:
    sent.request()
    assert sent.agent.only.producer is None


def test_the_agents_own_response_comes_back(sent: Sent) -> None:
    answered = sent.request()
    given = sent.agent.only.answer(
        299, b"Odd", headers=[(b"Content-Encoding", b"gzip"), (b"Set-Cookie", b"a=1")]
    )
    response = result(answered)
    assert response is given
    assert pairs(response.headers) == [(b"content-encoding", b"gzip"), (b"set-cookie", b"a=1")]


def test_a_compressed_body_is_not_decoded(sent: Sent) -> None:
    answered = sent.request()
    given = sent.agent.only.answer(headers=[(b"Content-Encoding", b"gzip")])
    body = AccumulatingProtocol()
    result(answered).deliverBody(body)
    compressed = gzip.compress(b"hello")
    given.chunk(compressed)
    assert body.data == compressed


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_redirect_is_not_followed(sent: Sent, method: bytes, code: int) -> None:
    answered = sent.request(method=method)
    sent.agent.only.answer(code, headers=[(b"Location", b"https://elsewhere.example/")])
    assert result(answered).code == code
    assert len(sent.agent.requests) == 1


def test_a_cookie_is_not_sent_back(sent: Sent) -> None:
    sent.request()
    sent.agent.only.answer(headers=[(b"Set-Cookie", b"session=1; Path=/")])
    sent.request()
    assert sent.agent.requests[1].header_list() == []


def test_the_cookie_jar_stays_empty() -> None:
    jar = _NoCookies()
    jar.set_cookie(
        Cookie(
            0,
            "a",
            "1",
            None,
            False,
            "openai.example",
            False,
            False,
            "/",
            True,
            False,
            None,
            True,
            None,
            None,
            {},
        )
    )
    assert len(jar) == 0
    assert list(jar) == []


def test_the_agent_is_given_whom_to_tell_of_interim_responses(sent: Sent) -> None:
    told: list[tuple[int, bytes, Fields]] = []
    answered = sent.client.request(b"GET", URL, Fields(), None, lambda *interim: told.append(interim))
    sent.agent.only.interim(103, b"Early Hints", [(b"Link", b"</style.css>")])
    assert told == [(103, b"Early Hints", Fields([(b"Link", b"</style.css>")]))]
    assert not answered.called


def test_a_failure_comes_back_as_it_is(sent: Sent) -> None:
    answered = sent.request()
    failures: list[Any] = []
    answered.addErrback(failures.append)
    fault = error.ConnectionRefusedError()
    sent.agent.only.fail(fault)
    assert [failure.value for failure in failures] == [fault]


def test_cancelling_drops_the_request(sent: Sent) -> None:
    answered = sent.request()
    failures: list[Any] = []
    answered.addErrback(failures.append)
    answered.cancel()
    assert sent.agent.only.cancelled
    assert failures[0].check(CancelledError)
