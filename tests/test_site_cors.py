from __future__ import annotations

from ipaddress import ip_network
from typing import ClassVar

import attrs
import pytest
from twisted.internet import error

from llmproxy.http.fields import Pair
from tests.conftest import LoggedFailures
from tests.support import BEARER, CONFIG, HANDSHAKE, TOKEN, ClientConnection, Proxy, Response, client_with

PAGE = b"https://app.example"
ORIGIN: Pair = (b"Origin", PAGE)
ELSEWHERE: Pair = (b"Origin", b"https://evil.example")
ASKS: Pair = (b"Access-Control-Request-Method", b"POST")
ASKS_HEADERS: Pair = (b"Access-Control-Request-Headers", b"authorization,content-type")
OPEN = {
    b"access-control-allow-origin": [PAGE],
    b"access-control-expose-headers": [b"*"],
    b"vary": [b"Origin"],
}


def proxy_for(*origins: str, **rights: object) -> Proxy:
    client = client_with(TOKEN, name="alice", **rights)
    return Proxy(attrs.evolve(CONFIG, clients=(client,), cors_origins=origins))


@pytest.fixture
def proxy() -> Proxy:
    return proxy_for("https://app.example", "http://localhost:5173")


@pytest.fixture
def off() -> Proxy:
    return proxy_for()


def said(response: Response) -> dict[bytes, list[bytes]]:
    """What a response says of origins."""
    names = {name for name, _ in response.headers if name.startswith(b"access-control-") or name == b"vary"}
    return {name: response.values(name) for name in names}


def readable(client: ClientConnection, status: int, method: bytes = b"GET") -> bool:
    """Whether the page that asked may read an answer, which has a status."""
    response = client.response(method)
    assert response.status == status
    return said(response) == OPEN


class TestPreflight:
    @pytest.mark.parametrize(
        "target",
        [
            b"/openai/v1/chat/completions",
            b"/anthropic/v1/messages?beta=true",
            b"/healthz",
            b"/unknown",
            b"/openai",
        ],
    )
    @pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
    def test_it_is_answered_without_a_token_and_goes_nowhere(
        self, proxy: Proxy, target: bytes, version: bytes
    ) -> None:
        headers = [ORIGIN, ASKS, ASKS_HEADERS, (b"Connection", b"keep-alive")]
        client = proxy.ask(target, method=b"OPTIONS", headers=headers, version=version)
        response = client.response(b"OPTIONS")
        assert (response.status, response.body, response.rest) == (204, b"", b"")
        assert said(response) == {
            b"access-control-allow-origin": [PAGE],
            b"access-control-allow-methods": [b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"],
            b"access-control-allow-headers": [b"authorization,content-type"],
            b"access-control-max-age": [b"7200"],
            b"vary": [b"Origin, Access-Control-Request-Headers"],
        }
        assert proxy.agent.requests == []
        assert client.ending == "open"

    def test_the_request_follows_on_the_same_connection(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", method=b"OPTIONS", headers=[ORIGIN, ASKS])
        client.ask(b"/openai/v1/x", method=b"POST", headers=[BEARER, ORIGIN], body=b"{}")
        assert proxy.agent.only.method == b"POST"

    @pytest.mark.parametrize("headers", [[ELSEWHERE, ASKS], [ASKS], [ORIGIN], [ORIGIN, ELSEWHERE, ASKS]])
    def test_what_is_none_that_is_allowed_needs_a_token(self, proxy: Proxy, headers: list[Pair]) -> None:
        client = proxy.ask(b"/openai/v1/x", method=b"OPTIONS", headers=headers)
        assert client.response().status == 401
        proxy.ask(b"/openai/v1/x", method=b"OPTIONS", headers=[BEARER, *headers])
        assert proxy.agent.only.method == b"OPTIONS"

    def test_with_another_method_it_is_none(self, proxy: Proxy) -> None:
        assert proxy.ask(b"/openai/v1/x", headers=[ORIGIN, ASKS]).response().status == 401

    def test_from_anywhere_it_is_answered_where_anyone_may(self) -> None:
        client = proxy_for("*").ask(b"/openai/v1/x", method=b"OPTIONS", headers=[ELSEWHERE, ASKS])
        assert client.response(b"OPTIONS").values(b"access-control-allow-origin") == [b"*"]

    def test_no_right_is_looked_at(self) -> None:
        proxy = proxy_for("https://app.example", networks=(ip_network("192.0.2.0/24"),))
        client = proxy.ask(b"/openai/v1/x", method=b"OPTIONS", headers=[ORIGIN, ASKS])
        assert client.response(b"OPTIONS").status == 204


class TestEveryAnswer:
    """A page can read no answer, an error neither, that does not name its origin."""

    def test_a_stream_says_it_with_its_headers(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        upstream = proxy.agent.only.answer(headers=[(b"Content-Type", b"text/event-stream")])
        assert client.received == (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nVary: Origin\r\n"
            b"Access-Control-Allow-Origin: https://app.example\r\nAccess-Control-Expose-Headers: *\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        upstream.chunk(b"data: 1\n\n")
        upstream.end()
        assert (client.response().body, client.response().whole) == (b"data: 1\n\n", True)

    def test_an_upstreams_own_words_are_replaced(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        own = [
            (b"Access-Control-Allow-Origin", b"*"),
            (b"access-control-expose-headers", b"x-request-id"),
            (b"Access-Control-Allow-Credentials", b"true"),
            (b"X-Request-Id", b"1"),
            (b"Content-Length", b"0"),
        ]
        proxy.agent.only.answer(headers=own).end()
        assert readable(client, 200)
        assert client.response().values(b"x-request-id") == [b"1"]

    def test_what_an_answer_varies_by_is_added_to(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        proxy.agent.only.answer(headers=[(b"Vary", b"Accept-Encoding"), (b"Content-Length", b"0")]).end()
        assert client.response().values(b"vary") == [b"Accept-Encoding", b"Origin"]

    @pytest.mark.parametrize("code", [204, 304, 401, 403, 404, 429, 500, 529])
    def test_an_upstreams_errors_say_it(self, proxy: Proxy, code: int) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        proxy.agent.only.answer(code, headers=[(b"Content-Length", b"0")]).end()
        assert readable(client, code)

    @pytest.mark.parametrize(
        ("target", "method", "headers", "status"),
        [
            (b"/openai/v1/x", b"GET", [], 401),
            (b"/openai/v1/x", b"HEAD", [], 401),
            (b"/openai/v1/x", b"OPTIONS", [], 401),
            (b"/anthropic/v1/x", b"GET", [BEARER], 403),
            (b"/openai/v1/x", b"POST", [BEARER], 403),
            (b"/unknown", b"GET", [BEARER], 404),
            (b"/openai", b"GET", [BEARER], 404),
            (b"/openai/../x", b"GET", [BEARER], 400),
            (b"/healthz", b"POST", [], 405),
            (b"/healthz", b"GET", [], 200),
            (b"/openai/v1/realtime?model=claude", b"GET", [BEARER, *HANDSHAKE], 403),
        ],
    )
    def test_the_proxys_own_say_it(
        self, target: bytes, method: bytes, headers: list[Pair], status: int
    ) -> None:
        proxy = proxy_for("https://app.example", upstreams=frozenset({"openai"}), models=("gpt-*",))
        client = proxy.ask(target, method=method, headers=[*headers, ORIGIN], body=b'{"model":"claude"}')
        assert readable(client, status, method)
        assert proxy.agent.requests == []

    def test_a_refusal_by_network_says_it(self) -> None:
        proxy = proxy_for("https://app.example", networks=(ip_network("192.0.2.0/24"),))
        assert readable(proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN]), 403)

    def test_an_upstream_that_cannot_be_reached_is_told_so(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        proxy.agent.only.fail(error.ConnectionRefusedError())
        assert readable(client, 502)

    def test_an_upstream_that_is_silent_is_told_so(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        proxy.clock.advance(100)
        assert readable(client, 504)

    def test_a_fault_of_the_proxys_own_is_told_so(
        self, proxy: Proxy, logged_failures: LoggedFailures
    ) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        proxy.agent.only.fail(ZeroDivisionError())
        logged_failures.flush(ZeroDivisionError)
        assert readable(client, 500)

    @pytest.mark.parametrize("origin", [(), (ELSEWHERE,), (ORIGIN, ELSEWHERE), (ORIGIN, ORIGIN)])
    def test_to_anyone_else_it_only_says_that_it_varies(self, proxy: Proxy, origin: tuple[Pair, ...]) -> None:
        # A cache may give the answer to a page later.
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, *origin])
        own = [(b"Access-Control-Allow-Origin", b"*"), (b"Content-Length", b"0")]
        proxy.agent.only.answer(headers=own).end()
        assert said(client.response()) == {b"vary": [b"Origin"]}

    def test_each_answer_of_a_connection_says_it_once(self, proxy: Proxy) -> None:
        client = proxy.connect()
        for _ in range(3):
            client.ask(b"/healthz", headers=[ORIGIN])
        assert client.received.count(b"Access-Control-Allow-Origin: https://app.example\r\n") == 3

    def test_an_interim_answer_says_nothing(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        proxy.agent.only.interim(103, b"Early Hints", [(b"Link", b"</a>")])
        assert client.received == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


HOST = b"Host: proxy.example\r\n"
FROM_PAGE = b"Origin: %b\r\n" % PAGE


class TestWhatIsNoRequest:
    """It is answered by the engine, before any resource."""

    REFUSED: ClassVar = {
        "no host": (b"GET / HTTP/1.1\r\n" + FROM_PAGE + b"\r\n", 400),
        "no colon": (b"GET / HTTP/1.1\r\n" + HOST + FROM_PAGE + b"X: 1\r\nbroken\r\n", 400),
        "target": (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n" + HOST + FROM_PAGE + b"\r\n", 414),
        "headers": (b"GET / HTTP/1.1\r\n" + HOST + FROM_PAGE + b"X: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        "coding": (b"POST / HTTP/1.1\r\n" + HOST + FROM_PAGE + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    }

    @pytest.mark.parametrize("name", REFUSED)
    def test_the_page_that_sent_it_may_read_why(self, proxy: Proxy, name: str) -> None:
        message, status = self.REFUSED[name]
        client = proxy.connect()
        client.send(message)
        assert readable(client, status)

    def test_so_may_one_that_was_too_slow(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(b"GET / HTTP/1.1\r\n" + HOST + FROM_PAGE + b"X: 1\r\nX")
        proxy.clock.advance(30)
        assert readable(client, 408)

    def test_one_that_waits_for_its_turn_says_it_too(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER])
        client.send(self.REFUSED["no host"][0])
        proxy.agent.only.answer(headers=[(b"Content-Length", b"0")]).end()
        _, _, refusal = client.received.partition(b"\r\n\r\n")
        assert refusal.startswith(b"HTTP/1.1 400 ")
        assert b"\r\nAccess-Control-Allow-Origin: https://app.example\r\n" in refusal

    @pytest.mark.parametrize(
        "message",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nOrigin: https://evil.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nbroken\r\n" + HOST + FROM_PAGE + b"\r\n",
            b"\x16\x03\x01",
        ],
        ids=["no origin", "another", "behind what is wrong", "no HTTP"],
    )
    def test_where_no_page_was_read_of_it_only_says_that_it_varies(
        self, proxy: Proxy, message: bytes
    ) -> None:
        client = proxy.connect()
        client.send(message)
        assert said(client.response()) == {b"vary": [b"Origin"]}

    @pytest.mark.parametrize("page", [b"", FROM_PAGE])
    def test_where_anyone_may_everyone_may(self, page: bytes) -> None:
        client = proxy_for("*").connect()
        client.send(b"GET / HTTP/1.1\r\n" + page + b"\r\n")
        assert client.response().values(b"access-control-allow-origin") == [b"*"]

    def test_where_nobody_may_it_says_nothing(self, off: Proxy) -> None:
        client = off.connect()
        client.send(self.REFUSED["no host"][0])
        assert said(client.response()) == {}


class TestOff:
    def test_a_preflight_is_a_request_like_any_other(self, off: Proxy) -> None:
        headers = [ORIGIN, ASKS, ASKS_HEADERS]
        refused = off.ask(b"/openai/v1/x", method=b"OPTIONS", headers=headers).response()
        assert (refused.status, said(refused)) == (401, {})
        off.ask(b"/openai/v1/x", method=b"OPTIONS", headers=[BEARER, *headers])
        sent = dict(off.agent.only.header_list())
        assert off.agent.only.method == b"OPTIONS"
        assert (sent[b"origin"], sent[b"access-control-request-method"]) == (PAGE, b"POST")

    def test_an_upstreams_own_words_pass(self, off: Proxy) -> None:
        client = off.ask(b"/openai/v1/x", headers=[BEARER, ORIGIN])
        own = [
            (b"access-control-allow-origin", b"*"),
            (b"access-control-expose-headers", b"x-request-id"),
            (b"vary", b"Origin"),
            (b"content-length", b"0"),
        ]
        off.agent.only.answer(headers=own).end()
        assert client.response().headers == own

    @pytest.mark.parametrize("target", [b"/healthz", b"/unknown", b"/openai/v1/x", b"/openai/.."])
    def test_the_proxys_own_answers_say_nothing(self, off: Proxy, target: bytes) -> None:
        assert said(off.ask(target, headers=[ORIGIN]).response()) == {}
