from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet import error

from llmproxy.config import Config, Credential, Upstream
from llmproxy.exchange import Ending
from llmproxy.http.fields import Pair
from llmproxy.http.held_body import again, hold
from llmproxy.http.limits import UpstreamLimits
from tests.forwarding_support import Line, Taker
from tests.support import (
    BEARER,
    CONFIG,
    HANDSHAKE,
    OPENAI,
    TOKEN,
    ClientConnection,
    Proxy,
    UpstreamRequest,
    UpstreamResponse,
    client_with,
    log_lines,
    no_cycle,
)
from tests.upstream_support import Wire

KEYS = ("sk-first", "sk-second", "sk-third")
REFUSALS = (401, 403, 429)
LIMIT = 1000  # bytes of a body that are held here
BODY = b'{"model":"gpt-5","input":"hello"}'
NO = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\nno"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEAD = b"POST /openai/v1/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN + b"\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def keyed(*keys: str, **settings: Any) -> Upstream:
    return attrs.evolve(OPENAI, keys=keys, **settings)


def config(*keys: str, **settings: Any) -> Config:
    return attrs.evolve(CONFIG, upstreams=(keyed(*keys),), max_resent_body=LIMIT, **settings)


def proxy_with(*keys: str) -> Proxy:
    return Proxy(config(*keys))


def line_with(*keys: str, **settings: Any) -> Line:
    return Line(keyed(*keys), config(*keys, **settings))


@pytest.fixture
def proxy() -> Proxy:
    return proxy_with(*KEYS)


def post(proxy: Proxy, body: bytes = BODY) -> ClientConnection:
    return proxy.ask(b"/openai/v1/x", method=b"POST", body=body)


def key_of(request: UpstreamRequest) -> str:
    (value,) = request.headers.getRawHeaders(b"authorization", [])
    return bytes(value).removeprefix(b"Bearer ").decode("ascii")


def keys_sent(proxy: Proxy) -> list[str]:
    return [key_of(request) for request in proxy.agent.requests]


def refuse(proxy: Proxy, code: int = 429, *headers: Pair) -> UpstreamResponse:
    """Let the upstream refuse the request that was sent last."""
    return answer(proxy, code, *headers)


def answer(proxy: Proxy, code: int = 200, *headers: Pair) -> UpstreamResponse:
    response: UpstreamResponse = proxy.agent.requests[-1].answer(code, b"Answer", headers)
    return response


def finish(response: UpstreamResponse, body: bytes = b"done") -> None:
    response.chunk(body)
    response.end()


class TestSpreading:
    def test_requests_take_the_keys_in_turn(self, proxy: Proxy) -> None:
        for _ in range(4):
            post(proxy)
        assert keys_sent(proxy) == ["sk-first", "sk-second", "sk-third", "sk-first"]

    def test_a_key_goes_where_the_upstream_wants_it(self) -> None:
        upstream = keyed("a", "b+", credential=Credential.parse("query:key"))
        proxy = Proxy(attrs.evolve(CONFIG, upstreams=(upstream,)))
        for target in (b"/openai/v1?x=1&key=" + TOKEN, b"/openai/v1"):
            proxy.ask(target)
        assert [request.url for request in proxy.agent.requests] == [
            b"https://openai.example/v1?x=1&key=a",
            b"https://openai.example/v1?key=b%2B",
        ]
        assert not any(request.headers.hasHeader(b"authorization") for request in proxy.agent.requests)

    def test_an_upstream_without_keys_is_sent_none(self) -> None:
        proxy = proxy_with()
        post(proxy)
        assert [name for name, _ in proxy.agent.only.header_list()] == [b"host"]
        finish(refuse(proxy, 401))
        assert len(proxy.agent.requests) == 1


class TestRefusedKey:
    @pytest.mark.parametrize("code", REFUSALS)
    def test_the_request_is_sent_again_with_another(self, proxy: Proxy, code: int) -> None:
        client = post(proxy)
        refused = refuse(proxy, code)
        assert refused.aborted == 1
        assert client.received == b""
        finish(answer(proxy))
        assert keys_sent(proxy) == ["sk-first", "sk-second"]
        assert (client.response().status, client.response().body) == (200, b"done")
        (exchange,) = proxy.exchanges
        assert (exchange.status, exchange.ending) == (200, Ending.COMPLETED)

    def test_all_of_the_request_but_the_key_is_the_same(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.ask(
            b"/openai/v1/x?a=%20&b",
            method=b"PUT",
            headers=[BEARER, (b"X-A", b"1"), (b"x-a", b"2")],
            body=BODY,
        )
        refuse(proxy)
        first, second = proxy.agent.requests
        assert (first.method, first.url) == (second.method, second.url)
        assert first.producer.whole() == second.producer.whole() == BODY  # type: ignore[union-attr]
        others = [
            [pair for pair in request.headers.pairs if pair[0] != b"Authorization"]
            for request in (first, second)
        ]
        assert others[0] == others[1]

    @pytest.mark.parametrize("code", REFUSALS)
    def test_it_rests(self, proxy: Proxy, code: int) -> None:
        post(proxy)
        refuse(proxy, code)
        for _ in range(3):
            post(proxy)
        assert keys_sent(proxy)[1:] == ["sk-second", "sk-third", "sk-second", "sk-third"]

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ([(b"Retry-After", b"7")], 7),
            ([(b"retry-after-ms", b"2500"), (b"retry-after", b"7")], 2.5),
            ([(b"Retry-After", b"Thu, 01 Jan 1970 00:00:20 GMT")], 20),
            ([], 10),
        ],
    )
    def test_a_limited_one_rests_for_as_long_as_the_upstream_says(
        self, headers: list[Pair], seconds: float
    ) -> None:
        proxy = proxy_with("sk-first", "sk-second")
        post(proxy)
        refuse(proxy, 429, *headers)
        proxy.clock.advance(seconds - 0.1)
        for _ in range(2):
            post(proxy)
        assert keys_sent(proxy)[2:] == ["sk-second", "sk-second"]
        proxy.clock.advance(0.1)
        post(proxy)
        assert keys_sent(proxy)[4:] == ["sk-first"]

    @pytest.mark.parametrize("code", [200, 400, 404, 408, 413, 500, 502, 503, 529])
    def test_no_other_answer_speaks_against_it(self, proxy: Proxy, code: int) -> None:
        client = post(proxy)
        finish(answer(proxy, code, (b"Retry-After", b"60"), (b"Content-Length", b"4")))
        assert (client.response().status, client.response().body) == (code, b"done")
        for _ in range(3):
            post(proxy)
        assert keys_sent(proxy) == [*KEYS, "sk-first"]

    def test_a_request_without_a_body_is_sent_again(self, proxy: Proxy) -> None:
        proxy.ask(b"/openai/v1/models")
        refuse(proxy, 401)
        assert keys_sent(proxy) == ["sk-first", "sk-second"]
        assert proxy.agent.requests[1].producer is None

    def test_a_websocket_handshake_is_sent_again(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        refuse(proxy, 401)
        assert proxy.agent.requests[1].headers.getRawHeaders(b"upgrade") == [b"websocket"]
        answer(proxy, 101)
        assert client.received.startswith(b"HTTP/1.1 101 ")

    def test_the_log_names_it_by_its_number(self, proxy: Proxy) -> None:
        with log_lines() as lines:
            post(proxy)
            refuse(proxy, 401)
            refuse(proxy, 429, (b"retry-after-ms", b"1234"))
        assert lines == [
            "The upstream openai refused key 1 with 401; it rests for 300.0 s",
            "The upstream openai refused key 2 with 429; it rests for 1.2 s",
        ]


class TestAllRefused:
    HEADERS = ((b"Retry-After", b"7"), (b"X-Ratelimit", b"0"), (b"Content-Length", b"6"))

    @pytest.mark.parametrize("code", REFUSALS)
    def test_the_upstreams_last_answer_is_passed_untouched(self, proxy: Proxy, code: int) -> None:
        client = post(proxy)
        refuse(proxy, 401)
        refuse(proxy, 403)
        last = refuse(proxy, code, *self.HEADERS)
        finish(last, b"\x00no\xff\r\n")
        head = b"HTTP/1.1 %d Answer\r\nRetry-After: 7\r\nX-Ratelimit: 0\r\nContent-Length: 6\r\n\r\n" % code
        assert client.received == head + b"\x00no\xff\r\n"
        assert last.aborted == 0
        assert keys_sent(proxy) == [*KEYS]
        assert client.ending == "open"

    def test_while_all_rest_a_request_is_tried_once_and_its_answer_passed(self, proxy: Proxy) -> None:
        post(proxy)
        for seconds in (30, 10, 20):
            refuse(proxy, 429, (b"Retry-After", b"%d" % seconds))
        client = post(proxy)
        assert keys_sent(proxy)[3:] == ["sk-second"]  # the one that wakes first
        finish(refuse(proxy, 429, (b"Content-Length", b"4")))
        assert (client.response().status, client.response().body) == (429, b"done")
        assert len(proxy.agent.requests) == 4

    def test_a_refusal_that_turns_out_to_be_over_is_soon_found_out(self, proxy: Proxy) -> None:
        post(proxy)
        for _ in KEYS:
            refuse(proxy, 401)
        client = post(proxy)
        finish(answer(proxy))
        assert client.response().status == 200

    @pytest.mark.parametrize("code", REFUSALS)
    def test_one_key_alone_never_rests(self, code: int) -> None:
        proxy = proxy_with("sk-only")
        with log_lines() as lines:
            for _ in range(2):
                client = post(proxy)
                finish(refuse(proxy, code, (b"Content-Length", b"4")))
                assert client.response().status == code
        assert keys_sent(proxy) == ["sk-only", "sk-only"]
        assert lines == []


class TestBody:
    """A request is sent again only while all of its body is here."""

    def test_of_parts_it_is_sent_again_with_the_same_length(self) -> None:
        line = line_with(*KEYS)
        client = line.proxy.connect()
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY))
        first = line.accept()
        for at in range(0, len(BODY), 10):
            client.send(BODY[at : at + 10])
        assert first.take().endswith(BODY)
        first.receive(NO)
        assert first.ending == "reset"
        sent = line.accept().take()
        assert b"Content-Length: %d\r\n" % len(BODY) in sent
        assert sent.endswith(b"\r\n\r\n" + BODY)
        assert b"Bearer sk-second" in sent

    def test_in_chunks_with_trailers_it_is_sent_again_with_them(self) -> None:
        line = line_with(*KEYS)
        client = line.proxy.connect()
        client.send(CHUNKED)
        first = line.accept()
        first.take()
        client.send(b"5\r\nhello\r\n")
        client.send(b"2\r\n!!\r\n0\r\nX-Sum: 7\r\nCookie: " + TOKEN + b"\r\n\r\n")
        assert first.take() == b"5\r\nhello\r\n2\r\n!!\r\n0\r\nX-Sum: 7\r\n\r\n"
        first.receive(NO)
        assert line.accept().take().endswith(b"\r\n\r\n7\r\nhello!!\r\n0\r\nX-Sum: 7\r\n\r\n")

    def test_an_empty_one_stays_an_empty_one(self) -> None:
        line = line_with(*KEYS)
        line.proxy.ask(b"/openai/v1/x", method=b"POST", body=b"")
        line.accept().receive(NO)
        assert b"Content-Length: 0\r\n" in line.accept().take()

    @pytest.mark.parametrize("parts", [1, 4])
    @pytest.mark.parametrize(("size", "resent"), [(LIMIT, True), (LIMIT + 1, False)])
    def test_one_over_the_bound_is_not_sent_again(self, parts: int, size: int, resent: bool) -> None:
        line = line_with(*KEYS)
        client = line.proxy.connect()
        body = bytes(byte % 251 for byte in range(size))
        head = HEAD + b"Content-Length: %d\r\n\r\n" % size
        if parts == 1:
            client.send(head + body)
        else:
            client.send(head)
        upstream = line.accept()
        if parts > 1:
            for at in range(0, size, size // parts):
                client.send(body[at : at + size // parts])
        assert upstream.take().endswith(body)
        upstream.receive(NO)
        if resent:
            assert line.accept().take().endswith(body)
        else:
            assert line.connections == 1
            assert (client.response().status, client.response().body) == (429, b"no")

    def test_a_key_rests_all_the_same_where_the_request_is_not_sent_again(self) -> None:
        proxy = proxy_with(*KEYS)
        post(proxy, b"x" * (LIMIT + 1))
        Taker(proxy.agent.only)
        refuse(proxy)
        for _ in KEYS:
            post(proxy)
        assert keys_sent(proxy) == ["sk-first", "sk-second", "sk-third", "sk-second"]

    @pytest.mark.parametrize("code", REFUSALS)
    def test_one_that_is_still_coming_is_not_sent_again(self, code: int) -> None:
        line = line_with(*KEYS)
        client = line.proxy.connect()
        client.send(HEAD + b"Content-Length: 10\r\n\r\n01234")
        upstream = line.accept()
        upstream.receive(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % code)
        response = client.response()
        assert (response.status, response.body, response.values(b"connection")) == (code, b"no", [b"close"])
        assert (line.connections, upstream.ending) == (1, "reset")
        client.send(b"56789")
        assert client.ending == "closed"

    def test_one_that_came_whole_before_a_connection_was_there_is_sent_again(self) -> None:
        line = line_with(*KEYS)
        client = line.proxy.connect()
        client.send(HEAD + b"Content-Length: 10\r\n\r\n01234")
        client.send(b"56789")
        upstream = line.accept()
        assert upstream.take().endswith(b"\r\n\r\n0123456789")
        upstream.receive(NO)
        assert line.accept().take().endswith(b"\r\n\r\n0123456789")

    def test_one_that_was_read_for_its_model_is_sent_again(self) -> None:
        line = line_with(*KEYS, clients=(client_with(TOKEN, models=("gpt-*",)),))
        client = line.proxy.connect()
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY))
        for at in range(0, len(BODY), 10):
            client.send(BODY[at : at + 10])
        first = line.accept()
        assert first.take().endswith(BODY)
        first.receive(NO)
        second = line.accept()
        assert second.take().endswith(BODY)
        second.receive(OK)
        assert client.response().body == b"ok"

    @pytest.mark.parametrize("parts", [1, 2])
    def test_it_is_sent_again_on_a_kept_connection_whatever_those_hold(self, parts: int) -> None:
        line = Line(keyed(*KEYS), config(*KEYS), UpstreamLimits(held_body=10))
        first, second = line.warm(2)
        client = line.proxy.connect()
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        client.send(request[: len(request) // parts])
        client.send(request[len(request) // parts :])
        used, other = (first, second) if (sent := first.take()) else (second, first)
        assert (sent or used.take()).endswith(BODY)
        used.receive(NO)
        assert other.take().endswith(b"\r\n\r\n" + BODY)
        other.receive(OK)
        assert client.received.endswith(b"\r\n\r\nok")

    def test_one_that_was_not_asked_for_is_sent_with_each_key_that_follows(self) -> None:
        # The client waits for 100 Continue, the first upstream's answer comes instead of it, and the second's after it.
        line = line_with(*KEYS)
        client = line.proxy.connect()
        client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        line.accept().receive(NO)
        assert client.received == b""
        second = line.accept()
        second.take()
        second.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"01234")
        client.send(b"56789")
        assert second.take() == b"0123456789"
        second.receive(NO)
        third = line.accept()
        assert third.take().endswith(b"\r\n\r\n0123456789")
        third.receive(OK)
        assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n" + OK

    def test_it_is_held_no_longer_than_until_the_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        held: list[Any] = []

        def hold_and_show(body: Any, limit: int) -> Any:
            held.append(hold(body, limit))
            return held[-1]

        monkeypatch.setattr("llmproxy.forwarding.hold", hold_and_show)
        line = line_with(*KEYS)
        client = line.proxy.connect()
        client.send(HEAD + b"Content-Length: 10\r\n\r\n")
        upstream = line.accept()
        client.send(b"0123456789")
        upstream.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        assert again(held[0]) is None
        assert held[0]._parts is None

    def test_what_breaks_in_the_client_is_told(self) -> None:
        line = line_with(*KEYS)
        client = line.proxy.connect()
        client.send(CHUNKED)
        upstream = line.accept()
        client.send(b"5\r\nhello\r\nzz\r\n")
        assert client.response().status == 400
        assert (upstream.ending, line.connections) == ("reset", 1)


class TestFirstByte:
    def test_what_was_begun_is_never_replayed(self, proxy: Proxy) -> None:
        client = post(proxy)
        upstream = answer(proxy)
        upstream.chunk(b"da")
        upstream.end(error.ConnectionLost())
        assert len(proxy.agent.requests) == 1
        assert (client.response().body, client.response().whole) == (b"da", False)

    def test_a_request_that_fails_is_not_sent_again_with_another_key(self, proxy: Proxy) -> None:
        client = post(proxy)
        proxy.agent.only.fail(error.ConnectionRefusedError())
        assert client.response().status == 502
        post(proxy)
        assert keys_sent(proxy) == ["sk-first", "sk-second"]

    def test_a_failure_behind_a_refusal_is_told(self, proxy: Proxy) -> None:
        client = post(proxy)
        refuse(proxy)
        proxy.agent.requests[1].fail(error.ConnectionRefusedError())
        assert client.response().status == 502
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.UPSTREAM_FAILED]

    def test_each_attempt_has_the_whole_time(self, proxy: Proxy) -> None:
        client = post(proxy)
        proxy.clock.advance(99)
        refuse(proxy)
        proxy.clock.advance(99)
        assert not proxy.agent.requests[1].cancelled
        assert client.received == b""
        proxy.clock.advance(1)
        assert proxy.agent.requests[1].cancelled
        assert client.response().status == 504
        (exchange,) = proxy.exchanges
        assert (exchange.ending, exchange.duration) == (Ending.UPSTREAM_SILENT, 199.0)

    def test_a_body_that_was_here_before_prolongs_nothing(self) -> None:
        proxy = proxy_with("sk-only")
        client = post(proxy)
        proxy.clock.advance(100)
        assert proxy.agent.only.cancelled
        assert client.response().status == 504

    def test_a_client_that_leaves_between_two_attempts_cancels_the_second(self, proxy: Proxy) -> None:
        client = post(proxy)
        refuse(proxy)
        client.leave()
        proxy.turn()
        first, second = proxy.agent.requests
        assert (first.cancelled, second.cancelled) == (False, True)
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.CLIENT_LEFT]
        assert proxy.clock.getDelayedCalls() == []

    def test_a_client_that_leaves_while_the_next_connection_is_made_has_none_made(self) -> None:
        line = line_with(*KEYS)
        client = line.proxy.ask(b"/openai/v1/x", method=b"POST", body=BODY)
        line.accept().receive(NO)
        assert line.connections == 2
        client.leave()
        assert line.agent.reactor.connectors[1].stoppedConnecting

    def test_interim_responses_of_each_attempt_pass(self, proxy: Proxy) -> None:
        client = post(proxy)
        proxy.agent.only.interim(103, b"Early Hints")
        refuse(proxy)
        proxy.agent.requests[1].interim(103, b"Early Hints")
        assert client.received == 2 * b"HTTP/1.1 103 Early Hints\r\n\r\n"


class TestSecrets:
    def test_no_key_stands_in_a_log_an_error_or_a_repr(self, proxy: Proxy) -> None:
        with log_lines() as lines:
            first = post(proxy)
            for code in REFUSALS:
                last = refuse(proxy, code, (b"Content-Length", b"4"))
            finish(last)
            second = post(proxy)
            proxy.agent.requests[-1].fail(error.ConnectionRefusedError())
        route = proxy.site.resource.children[b"openai"]._route
        shown = [*lines, repr(route), repr(route.keyring.keys), repr(proxy.exchanges)]
        shown += [client.received.decode("latin-1") for client in (first, second)]
        assert len(lines) == 4
        for secret in (*KEYS, TOKEN.decode("ascii")):
            assert secret not in "\n".join(shown)


class TwistedWire(Wire):
    """Of Twisted's own transports, one that was aborted does not say so."""

    def abortConnection(self) -> None:
        self.ending = "reset"


@pytest.mark.parametrize("kind", [Wire, TwistedWire])
def test_a_refused_connection_carries_no_other_request(kind: type[Wire]) -> None:
    line = line_with(*KEYS)
    client = line.proxy.ask(b"/openai/v1/x", method=b"POST", body=BODY)
    first = kind()
    first.connect(line.agent.reactor.tcpClients[0][2].buildProtocol(None))
    first.receive(NO)  # whole, with its head
    second = line.accept()
    second.receive(OK)
    assert client.response().body == b"ok"
    second.take()
    for target in (b"/openai/v1/y", b"/openai/v1/z"):
        line.proxy.ask(target)
    assert second.take().startswith(b"GET /v1/y ")
    assert line.connections == 3
    first.turn()


@pytest.mark.parametrize(
    "parts", [[HEAD + b"Content-Length: 2\r\n\r\nhi"], [CHUNKED, b"2\r\nhi\r\n0\r\n\r\n"]]
)
def test_a_request_that_is_sent_again_leaves_no_cycle(parts: list[bytes]) -> None:
    line = line_with(*KEYS)
    first, second = line.warm(2)
    client = line.proxy.connect()
    client.ask(b"/healthz")
    with no_cycle():
        for part in parts:
            client.send(part)
        used, other = (first, second) if first.take() else (second, first)
        used.receive(NO)
        used.turn()
        other.receive(OK)
    assert client.received.endswith(b"\r\n\r\nok")
