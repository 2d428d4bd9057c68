from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived
from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.exchange import Ending, Exchange
from llmproxy.http.body import BrokenBody, SilentBody
from llmproxy.http.fields import Fields
from llmproxy.relay import Relay
from tests.conftest import LoggedFailures
from tests.support import (
    ANTHROPIC_KEY,
    BEARER,
    HANDSHAKE,
    OPENAI_KEY,
    TOKEN,
    ClientConnection,
    Proxy,
    UpstreamResponse,
    log_lines,
)

Pairs = list[tuple[bytes, bytes]]


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


class TestAuthorization:
    @pytest.mark.parametrize(
        "headers",
        [
            (),
            ((b"Authorization", b"Bearer wrong"),),
            ((b"Authorization", b""),),
            ((b"x-api-key", b"wrong"),),
            (BEARER, (b"x-api-key", b"wrong")),
        ],
    )
    @pytest.mark.parametrize("target", [b"/openai/v1/models", b"/anthropic/v1/messages", b"/openai/"])
    @pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS"])
    def test_a_request_without_the_token_is_refused_and_goes_nowhere(
        self, proxy: Proxy, headers: Pairs, target: bytes, method: bytes
    ) -> None:
        client = proxy.ask(target, method=method, headers=headers, body=b"{}")
        response = client.response()
        assert (response.version, response.status, response.phrase) == (b"HTTP/1.1", 401, b"Unauthorized")
        assert sorted(response.headers) == [
            (b"content-length", b"24"),
            (b"content-type", b"application/json"),
            (b"www-authenticate", b"Bearer"),
        ]
        assert response.body == b'{"error":"unauthorized"}'
        assert response.rest == b""
        assert client.ending == "open"
        assert proxy.agent.requests == []
        (exchange,) = proxy.exchanges
        assert (exchange.client, exchange.status, exchange.ending) == (None, 401, Ending.REFUSED)

    def test_a_refused_head_has_no_body_and_leaves_the_connection_usable(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/anthropic/api/hello", method=b"HEAD", headers=())
        response = client.response(b"HEAD")
        assert (response.status, response.rest) == (401, b"")
        assert response.values(b"content-length") == [b"24"]
        client.ask(b"/anthropic/v1/messages", method=b"POST", body=b"{}")
        assert proxy.agent.only.method == b"POST"

    @pytest.mark.parametrize(
        "header",
        [
            BEARER,
            (b"authorization", b"bearer " + TOKEN),
            (b"authorization", b"BEARER " + TOKEN),
            (b"x-api-key", TOKEN),
        ],
    )
    @pytest.mark.parametrize("target", [b"/openai/v1/models", b"/anthropic/v1/models"])
    def test_the_token_is_taken_from_either_header_for_either_upstream(
        self, proxy: Proxy, header: tuple[bytes, bytes], target: bytes
    ) -> None:
        proxy.ask(target, headers=(header,))
        assert TOKEN not in b"".join(value for _, value in proxy.agent.only.header_list())


class TestForwarding:
    @pytest.mark.parametrize(
        ("target", "url"),
        [
            (b"/openai/v1/models", b"https://openai.example/v1/models"),
            (b"/openai/", b"https://openai.example/"),
            (b"/anthropic/v1/messages?beta=true", b"https://anthropic.example/base/v1/messages?beta=true"),
            (b"/openai/v1/a%2Fb%20%c3%A4", b"https://openai.example/v1/a%2Fb%20%c3%A4"),
            (b"/openai/v1/a;x=1/b;", b"https://openai.example/v1/a;x=1/b;"),
            (b"/openai/v1/models?", b"https://openai.example/v1/models?"),
            (b"/openai/v1?a=1&a=2&b&c=", b"https://openai.example/v1?a=1&a=2&b&c="),
            (b'/openai/v1?a[]={|}"^`\\..', b'https://openai.example/v1?a[]={|}"^`\\..'),
            (b"/openai//evil.example/x", b"https://openai.example//evil.example/x"),
            (b"/anthropic//evil.example/x", b"https://anthropic.example/base//evil.example/x"),
            (b"/openai///", b"https://openai.example///"),
            (b"/openai/@evil.example/", b"https://openai.example/@evil.example/"),
            (b"/openai/http://evil.example/", b"https://openai.example/http://evil.example/"),
            (b"/openai/healthz", b"https://openai.example/healthz"),
        ],
    )
    def test_the_raw_target_is_put_behind_the_base_url(self, proxy: Proxy, target: bytes, url: bytes) -> None:
        proxy.ask(target)
        assert proxy.agent.only.url == url

    @pytest.mark.parametrize(
        "method",
        [
            b"GET",
            b"HEAD",
            b"POST",
            b"PUT",
            b"PATCH",
            b"DELETE",
            b"OPTIONS",
            b"TRACE",
            b"get",
            b"BREW",
            b"M-SEARCH",
        ],
    )
    def test_every_method_is_forwarded_as_it_is(self, proxy: Proxy, method: bytes) -> None:
        proxy.ask(b"/openai/v1/x", method=method)
        assert proxy.agent.only.method == method

    def test_headers_are_sealed_for_openai(self, proxy: Proxy) -> None:
        sent = [
            BEARER,
            (b"x-api-key", TOKEN),
            (b"Cookie", b"t=" + TOKEN),
            (b"User-Agent", b"sdk/1"),
            (b"Connection", b"x-hop"),
        ]
        proxy.ask(b"/openai/v1/x", headers=[*sent, (b"X-Hop", b"1"), (b"accept-encoding", b"zstd")])
        assert sorted(proxy.agent.only.header_list()) == [
            (b"accept-encoding", b"zstd"),
            (b"authorization", b"Bearer " + OPENAI_KEY.encode("ascii")),
            (b"host", b"openai.example"),
            (b"user-agent", b"sdk/1"),
        ]

    def test_headers_are_sealed_for_anthropic(self, proxy: Proxy) -> None:
        proxy.ask(b"/anthropic/v1/x", headers=[BEARER, (b"anthropic-beta", b"a"), (b"anthropic-beta", b"b")])
        assert sorted(proxy.agent.only.header_list()) == [
            (b"anthropic-beta", b"a"),
            (b"anthropic-beta", b"b"),
            (b"anthropic-version", b"2023-06-01"),
            (b"host", b"anthropic.example"),
            (b"x-api-key", ANTHROPIC_KEY.encode("ascii")),
        ]

    def test_a_clients_own_anthropic_version_is_kept(self, proxy: Proxy) -> None:
        proxy.ask(b"/anthropic/v1/x", headers=[BEARER, (b"anthropic-version", b"2099-01-01")])
        assert proxy.agent.only.headers.getRawHeaders(b"anthropic-version") == [b"2099-01-01"]

    def test_a_body_is_forwarded_with_its_length(self, proxy: Proxy) -> None:
        body = bytes(range(256)) * 1000
        proxy.ask(b"/openai/v1/x", method=b"POST", body=body)
        assert sent_body(proxy) == (len(body), body)

    def test_an_empty_body_stays_an_empty_body(self, proxy: Proxy) -> None:
        proxy.ask(b"/openai/v1/x", method=b"POST", body=b"")
        assert sent_body(proxy) == (0, b"")

    def test_no_body_stays_no_body(self, proxy: Proxy) -> None:
        proxy.ask(b"/openai/v1/x", method=b"POST")
        assert proxy.agent.only.producer is None

    def test_a_chunked_body_is_forwarded_without_a_length(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(
            b"POST /openai/v1/x HTTP/1.1\r\nHost: x\r\nx-api-key: "
            + TOKEN
            + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        client.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert sent_body(proxy) == (UNKNOWN_LENGTH, b"abcde")

    def test_form_data_and_compressed_bodies_pass_as_bytes(self, proxy: Proxy) -> None:
        body = b"a=1&b=\xff\x00"
        headers = [
            BEARER,
            (b"Content-Type", b"application/x-www-form-urlencoded"),
            (b"Content-Encoding", b"gzip"),
        ]
        proxy.ask(b"/openai/v1/x", method=b"POST", headers=headers, body=body)
        assert sent_body(proxy) == (len(body), body)
        assert proxy.agent.only.headers.getRawHeaders(b"content-encoding") == [b"gzip"]

    def test_another_offer_to_upgrade_is_passed_without_the_offer(self, proxy: Proxy) -> None:
        offer = [
            (b"Connection", b"Upgrade, HTTP2-Settings"),
            (b"Upgrade", b"h2c"),
            (b"HTTP2-Settings", b"AAMA"),
        ]
        proxy.ask(b"/openai/v1/x", headers=[BEARER, *offer])
        assert {name for name, _ in proxy.agent.only.header_list()} == {b"host", b"authorization"}

    def test_names_keep_their_spelling_and_all_headers_their_order(self, proxy: Proxy) -> None:
        sent = [(b"X-b", b"1"), (b"x-A", b"2"), (b"X-B", b"3"), (b"Accept", b"*/*")]
        proxy.ask(b"/openai/v1/x", headers=[BEARER, *sent])
        assert [pair for pair in proxy.agent.only.headers.pairs if pair in sent] == sent


class Upload:
    """A client that uploads, and the upstream's end of it."""

    def __init__(self, proxy: Proxy, *headers: tuple[bytes, bytes], length: int = 10) -> None:
        self.client: ClientConnection = proxy.connect()
        framing = (b"Content-Length", b"%d" % length)
        lines = [b"%b: %b\r\n" % header for header in ((b"Host", b"x"), BEARER, framing, *headers)]
        self.client.send(b"POST /openai/v1/x HTTP/1.1\r\n" + b"".join(lines) + b"\r\n")
        self.wire = StringTransport()
        self.done: list[object] = []

    def take(self, proxy: Proxy) -> None:
        """Let the upstream begin to take the body."""
        producer = proxy.agent.requests[-1].producer
        assert producer is not None
        producer.startProducing(self.wire).addBoth(self.done.append)


class TestUpload:
    def test_the_request_is_forwarded_before_the_first_byte_of_its_body(self, proxy: Proxy) -> None:
        Upload(proxy)
        assert proxy.agent.only.method == b"POST"

    def test_each_part_is_passed_on_in_the_turn_in_which_it_came(self, proxy: Proxy) -> None:
        upload = Upload(proxy)
        upload.take(proxy)
        for part, so_far in ((b"01", b"01"), (b"234", b"01234"), (b"56789", b"0123456789")):
            assert upload.done == []
            upload.client.send(part)
            assert upload.wire.value() == so_far
        assert upload.done == [None]

    def test_it_is_not_read_from_the_client_before_the_upstream_takes_it(self, proxy: Proxy) -> None:
        upload = Upload(proxy)
        upload.client.send(b"01")
        upload.client.send(b"234")
        assert upload.client.unread
        upload.take(proxy)
        assert not upload.client.unread
        assert upload.wire.value() == b"01234"

    def test_an_upstream_that_takes_it_slowly_slows_the_client(self, proxy: Proxy) -> None:
        upload = Upload(proxy)
        upload.take(proxy)
        producer: Any = proxy.agent.only.producer
        producer.pauseProducing()
        assert upload.client.unread
        producer.resumeProducing()
        assert not upload.client.unread

    def test_a_client_that_asks_first_is_told_to_go_on_when_the_upstream_wants_the_body(
        self, proxy: Proxy
    ) -> None:
        upload = Upload(proxy, (b"Expect", b"100-continue"))
        assert upload.client.received == b""
        assert proxy.agent.only.headers.getRawHeaders(b"expect") == [b"100-continue"]
        upload.take(proxy)
        assert upload.client.received == b"HTTP/1.1 100 Continue\r\n\r\n"

    def test_an_unauthorized_one_is_refused_unread(self, proxy: Proxy) -> None:
        upload = Upload(proxy, (b"x-api-key", b"wrong"), (b"Expect", b"100-continue"))
        response = upload.client.response()
        assert (response.status, response.values(b"connection")) == (401, [b"close"])
        assert upload.client.ending == "closed"
        assert proxy.agent.requests == []

    def test_an_answer_that_comes_early_reaches_the_client_and_is_the_last(self, proxy: Proxy) -> None:
        upload = Upload(proxy)
        upload.take(proxy)
        upload.client.send(b"01")
        upstream = proxy.agent.only.answer(413, b"Too Large", headers=[(b"Content-Length", b"2")])
        upstream.chunk(b"no")
        upstream.end()
        response = upload.client.response()
        assert (response.status, response.body, response.values(b"connection")) == (413, b"no", [b"close"])
        assert upload.client.ending == "closed"

    def test_one_that_makes_progress_puts_off_the_first_byte_timeout(self, proxy: Proxy) -> None:
        upload = Upload(proxy)
        upload.take(proxy)
        for part in (b"01", b"23", b"4567"):
            upload.client.send(part)
            proxy.clock.pump([1.0] * 59)  # within the time that a client may be silent in a body
        upload.client.send(b"89")  # at 177 s; what came since the look at 100 s is seen at 200 s
        proxy.clock.pump([1.0] * 122)
        assert not proxy.agent.only.cancelled
        proxy.clock.advance(1.0)
        assert proxy.agent.only.cancelled
        assert upload.client.response().status == 504

    @pytest.mark.parametrize(
        ("fault", "status", "code"),
        [
            (BrokenBody("a chunk has no size"), 400, "bad_request"),
            (SilentBody("The client sent nothing for 60 seconds."), 408, "request_timeout"),
        ],
    )
    def test_a_client_that_does_not_send_what_it_announced_is_told_so(
        self, proxy: Proxy, fault: Exception, status: int, code: str
    ) -> None:
        upload = Upload(proxy)
        proxy.agent.only.fail(fault)
        response = upload.client.response()
        assert (response.status, response.json()["error"]) == (status, code)
        assert str(fault) in response.json()["message"]

    def test_trailers_behind_a_body_are_passed(self, proxy: Proxy) -> None:
        assert trailers_of(proxy, b"X-Sum: 1\r\n") == [(b"X-Sum", b"1")]

    def test_the_token_goes_upstream_in_no_trailer(self, proxy: Proxy) -> None:
        for trailer in (b"x-api-key: ", b"Authorization: Bearer ", b"Cookie: "):
            assert trailers_of(proxy, trailer + TOKEN + b"\r\nX-Sum: 1\r\n") == [(b"X-Sum", b"1")]


def trailers_of(proxy: Proxy, trailers: bytes) -> Pairs:
    """What the upstream is sent of the trailers of a chunked upload."""
    client = proxy.connect()
    client.send(b"POST /openai/v1/x HTTP/1.1\r\nHost: x\r\nx-api-key: " + TOKEN)
    client.send(b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n" + trailers + b"\r\n")
    producer: Any = proxy.agent.requests[-1].producer
    producer.startProducing(StringTransport())
    found: Pairs = producer.trailers.pairs
    return found


class TestWebSocketHandshake:
    @pytest.mark.parametrize("headers", [(), (BEARER, (b"x-api-key", b"wrong"))])
    @pytest.mark.parametrize(
        "protocols", [b"realtime", b"openai-insecure-api-key.wrong, realtime", b"openai-insecure-api-key."]
    )
    def test_without_the_token_it_is_refused_and_goes_nowhere(
        self, proxy: Proxy, headers: Pairs, protocols: bytes
    ) -> None:
        offer = [*HANDSHAKE, (b"Sec-WebSocket-Protocol", protocols)]
        client = proxy.ask(b"/openai/v1/realtime", headers=[*headers, *offer])
        assert client.response().status == 401
        assert proxy.agent.requests == []

    def test_it_is_sealed_with_the_real_key_and_passed_on(self, proxy: Proxy) -> None:
        proxy.ask(b"/openai/v1/realtime?model=m", headers=[BEARER, *HANDSHAKE])
        request = proxy.agent.only
        assert (request.method, request.url) == (b"GET", b"https://openai.example/v1/realtime?model=m")
        assert request.producer is None
        assert sorted(request.header_list()) == [
            (b"authorization", b"Bearer " + OPENAI_KEY.encode("ascii")),
            (b"connection", b"Upgrade"),
            (b"host", b"openai.example"),
            (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
            (b"sec-websocket-version", b"13"),
            (b"upgrade", b"websocket"),
        ]

    def test_a_browsers_token_is_taken_out_of_the_protocols_and_the_others_stay(self, proxy: Proxy) -> None:
        protocols = b"realtime, openai-insecure-api-key." + TOKEN + b", openai-beta.realtime-v1"
        proxy.ask(b"/openai/v1/realtime", headers=[*HANDSHAKE, (b"Sec-WebSocket-Protocol", protocols)])
        headers = proxy.agent.only.headers
        assert headers.getRawHeaders(b"sec-websocket-protocol") == [b"realtime, openai-beta.realtime-v1"]
        assert headers.getRawHeaders(b"authorization") == [b"Bearer " + OPENAI_KEY.encode("ascii")]
        assert TOKEN not in b"".join(value for _, value in proxy.agent.only.header_list())

    def test_when_the_upstream_agrees_the_client_is_told_so_with_its_headers(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        proxy.agent.only.answer(
            101,
            b"Switching Protocols",
            headers=[
                (b"connection", b"upgrade, x-hop"),
                (b"upgrade", b"websocket"),
                (b"X-Hop", b"1"),
                (b"Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                (b"Sec-WebSocket-Protocol", b"realtime"),
            ],
        )
        assert client.received == (
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
            b"Sec-WebSocket-Protocol: realtime\r\n"
            b"Connection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )

    @pytest.mark.parametrize("code", [400, 401, 404, 426, 503])
    def test_a_refusal_passes_as_it_is_and_leaves_the_connection_usable(
        self, proxy: Proxy, code: int
    ) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        upstream = proxy.agent.only.answer(
            code, b"No", headers=[(b"Content-Length", b"2"), (b"X-Why", b"because")]
        )
        upstream.chunk(b"no")
        upstream.end()
        assert client.received == b"HTTP/1.1 %d No\r\nContent-Length: 2\r\nX-Why: because\r\n\r\nno" % code
        client.ask(b"/healthz")
        assert client.received.endswith(b"\r\n\r\nok")
        assert client.ending == "open"

    def test_what_was_sent_behind_a_refused_one_is_http(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        client.ask(b"/healthz")
        assert client.received == b""
        proxy.agent.only.answer(404, b"No", headers=[(b"Content-Length", b"0")]).end()
        assert client.received.endswith(b"\r\n\r\nok")

    def test_a_client_that_leaves_before_the_answer_cancels_it(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        client.leave()
        assert proxy.agent.only.cancelled
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.CLIENT_LEFT]

    def test_a_fault_of_the_upstream_is_told_in_json(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        proxy.agent.only.fail(error.ConnectionRefusedError())
        assert (client.response().status, client.response().json()["error"]) == (502, "bad_gateway")

    @pytest.mark.parametrize("body", [None, b"", b"{}"])
    def test_with_another_method_than_get_it_is_passed_without_the_offer(
        self, proxy: Proxy, body: bytes | None
    ) -> None:
        # RFC 6455 section 4.1: the method of a handshake is GET.
        proxy.ask(b"/openai/v1/responses", method=b"POST", headers=[BEARER, *HANDSHAKE], body=body)
        assert not proxy.agent.only.headers.hasHeader(b"upgrade")
        assert not proxy.agent.only.headers.hasHeader(b"connection")

    def test_an_exception_before_the_client_is_told_of_it_is_a_500_without_the_upstreams_headers(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        monkeypatch.setattr("llmproxy.headers.offer_websocket", lambda _: 1 // 0)
        upstream = proxy.agent.only.answer(101, b"Switching Protocols", headers=[(b"X-Upstream", b"1")])
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        response = client.response()
        assert (response.status, response.json()["error"]) == (500, "internal_error")
        assert response.values(b"x-upstream") == []
        assert upstream.aborted

    def test_an_exception_while_both_sides_are_joined_gives_up_both(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        monkeypatch.setattr(UpstreamResponse, "switchProtocols", lambda *_: 1 // 0)
        upstream = proxy.agent.only.answer(101, b"Switching Protocols")
        proxy.turn()
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert client.ending == "reset"
        assert upstream.aborted
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.PROXY_FAILED]


class TestResponse:
    @pytest.mark.parametrize(
        ("code", "phrase"),
        [
            (200, b"OK"),
            (200, b"Fine by me"),
            (200, b""),
            (404, b""),
            (529, b"unknown"),
            (529, b""),
            (299, b"Odd One"),
            (500, b"X"),
        ],
    )
    def test_status_and_reason_phrase_are_kept(self, proxy: Proxy, code: int, phrase: bytes) -> None:
        client = proxy.ask(b"/openai/v1/x")
        proxy.agent.only.answer(code, phrase)
        assert client.received.startswith(b"HTTP/1.1 %d %b\r\n" % (code, phrase))

    def test_headers_are_written_as_soon_as_they_come(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        assert client.received == b""
        proxy.agent.only.answer(headers=[(b"Content-Type", b"text/event-stream"), (b"Content-Length", b"5")])
        assert (
            client.received
            == b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5\r\n\r\n"
        )

    def test_nothing_is_invented(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        response = proxy.agent.only.answer()
        response.end()
        assert client.received == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"

    def test_headers_pass_but_hop_by_hop_ones(self, proxy: Proxy) -> None:
        kept = [
            (b"Set-Cookie", b"b=2"),
            (b"server", b"upstream"),
            (b"SET-COOKIE", b"a=1; Path=/"),
            (b"Set-Cookie", b"b=2"),
            (b"date", b"yesterday"),
            (b"content-encoding", b"gzip"),
            (b"retry-after", b"1"),
            (b"content-length", b"0"),
        ]
        hops = [
            (b"connection", b"x-hop, close"),
            (b"x-hop", b"1"),
            (b"keep-alive", b"x"),
            (b"upgrade", b"h2c"),
            (b"trailer", b"y"),
        ]
        client = proxy.ask(b"/openai/v1/x")
        proxy.agent.only.answer(headers=[*hops, *kept]).end()
        head = b"".join(b"%b: %b\r\n" % pair for pair in kept)
        assert client.received == b"HTTP/1.1 200 OK\r\n" + head + b"\r\n"
        assert client.ending == "open"

    def test_the_length_is_kept_and_the_body_is_not_chunked(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        upstream = proxy.agent.only.answer(headers=[(b"Content-Length", b"5")], length=5)
        upstream.chunk(b"hello")
        upstream.end()
        response = client.response()
        assert (response.headers, response.body, response.rest) == (
            [(b"content-length", b"5")],
            b"hello",
            b"",
        )

    def test_interim_responses_are_passed_as_they_come(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        hints = b""
        for link in (b"</a.css>", b"</b.css>"):
            proxy.agent.only.interim(
                103, b"Early Hints", [(b"Connection", b"X-Hop"), (b"X-Hop", b"1"), (b"Link", link)]
            )
            hints += b"HTTP/1.1 103 Early Hints\r\nLink: %b\r\n\r\n" % link
            assert client.received == hints
        proxy.agent.only.answer(204, b"No Content").end()
        assert client.received == hints + b"HTTP/1.1 204 No Content\r\n\r\n"

    def test_an_http_1_0_client_is_sent_no_interim_response(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", version=b"HTTP/1.0")
        proxy.agent.only.interim(103, b"Early Hints")
        assert client.received == b""

    def test_trailers_are_passed(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        upstream = proxy.agent.only.answer()
        upstream.chunk(b"hello")
        upstream.end(trailers=[(b"X-Sum", b"1"), (b"x-sum", b"2")])
        assert client.received.endswith(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n")
        assert client.response().trailers == ((b"x-sum", b"1"), (b"x-sum", b"2"))
        assert (client.response().body, client.response().whole) == (b"hello", True)

    def test_a_client_that_can_take_no_trailers_is_sent_none(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", version=b"HTTP/1.0")
        upstream = proxy.agent.only.answer()
        upstream.chunk(b"hello")
        upstream.end(trailers=[(b"X-Sum", b"1")])
        assert client.response().body == b"hello"

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_a_redirect_is_passed_and_not_followed(self, proxy: Proxy, code: int) -> None:
        client = proxy.ask(b"/openai/v1/x")
        location = (b"location", b"https://elsewhere.example/")
        proxy.agent.only.answer(code, b"Go", headers=[location, (b"Content-Length", b"0")]).end()
        assert client.response().status == code
        assert location in client.response().headers
        assert len(proxy.agent.requests) == 1

    @pytest.mark.parametrize(
        ("method", "code"),
        [(b"HEAD", 200), (b"HEAD", 404), (b"GET", 204), (b"POST", 204), (b"GET", 304), (b"HEAD", 304)],
    )
    @pytest.mark.parametrize(
        "headers", [[], [(b"content-length", b"1000")], [(b"content-type", b"application/json")]]
    )
    def test_a_response_that_has_no_body_ends_with_its_headers(
        self, proxy: Proxy, method: bytes, code: int, headers: Pairs
    ) -> None:
        client = proxy.ask(b"/openai/v1/x", method=method)
        proxy.agent.only.answer(code, b"Fine", headers=headers, length=0).end()
        response = client.response(method)
        assert (response.status, response.headers, response.rest) == (code, headers, b"")
        assert client.ending == "open"
        client.ask(b"/healthz")
        assert client.received.endswith(b"\r\n\r\nok")

    def test_cookies_of_one_client_are_not_sent_for_another(self, proxy: Proxy) -> None:
        proxy.ask(b"/openai/v1/x")
        proxy.agent.only.answer(headers=[(b"Set-Cookie", b"session=alice")]).end()
        proxy.ask(b"/openai/v1/x")
        assert not proxy.agent.requests[1].headers.hasHeader(b"cookie")

    def test_a_client_that_asked_for_it_is_left_after_the_response(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", headers=[BEARER, (b"Connection", b"close")])
        proxy.agent.only.answer(headers=[(b"Content-Length", b"0"), (b"Connection", b"keep-alive")]).end()
        assert client.response().values(b"connection") == [b"close"]
        assert client.ending == "closed"

    def test_requests_of_one_connection_are_forwarded_in_order(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/a")
        client.ask(b"/openai/v1/b")
        first = proxy.agent.only.answer(headers=[(b"Content-Length", b"1")])
        first.chunk(b"a")
        first.end()
        assert [request.url[-1:] for request in proxy.agent.requests] == [b"a", b"b"]
        second = proxy.agent.requests[1].answer(headers=[(b"Content-Length", b"1")])
        second.chunk(b"b")
        second.end()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
        assert client.received == head + b"a" + head + b"b"


def within(kind: type[Exception], cause: Exception) -> Exception:
    """What twisted.web's client makes of a failure on a connection."""
    return kind([Failure(cause)])


BAD_GATEWAY = [
    (error.getConnectError((errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))), "refused the connection"),
    (error.getConnectError((errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))), "cannot be reached"),
    (error.DNSLookupError("Couldn't find the hostname 'openai.example'"), "does not resolve"),
    (SSL.Error([("SSL routines", "", "certificate verify failed")]), "certificate verify failed"),
    (SSL.Error([("SSL routines", "", "wrong version number")]), "does not speak TLS"),
    (VerificationError(errors=[]), "cannot be trusted"),
    (error.ConnectionDone(), "during the TLS handshake"),
    (within(ResponseNeverReceived, error.ConnectionDone()), "closed the connection before it answered"),
    (within(ResponseNeverReceived, error.ConnectionLost()), "reset the connection before it answered"),
    (within(RequestTransmissionFailed, error.ConnectionLost()), "while the request was being sent"),
    (within(ResponseFailed, error.ConnectionDone()), "within the headers"),
    (within(ResponseFailed, ValueError("not HTTP")), "sent a malformed response"),
]
GATEWAY_TIMEOUT = [
    (error.TimeoutError(), "did not take the connection in time"),
    (
        error.getConnectError((errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))),
        "did not take the connection in time",
    ),
]


class TestFaults:
    @pytest.mark.parametrize(
        ("status", "code", "fault", "words"),
        [
            *((502, "bad_gateway", fault, words) for fault, words in BAD_GATEWAY),
            *((504, "gateway_timeout", fault, words) for fault, words in GATEWAY_TIMEOUT),
        ],
    )
    def test_a_fault_before_the_headers_is_told_in_json(
        self, proxy: Proxy, status: int, code: str, fault: Exception, words: str
    ) -> None:
        client = proxy.ask(b"/openai/v1/x?key=" + TOKEN)
        with log_lines() as lines:
            proxy.agent.only.fail(fault)
        response = client.response()
        assert (response.status, response.json()["error"], response.rest) == (status, code, b"")
        assert response.values(b"content-type") == [b"application/json"]
        message = response.json()["message"]
        assert "openai" in message
        assert "openai.example" in message
        assert words in message
        assert lines == [message]
        assert client.ending == "open"
        (exchange,) = proxy.exchanges
        assert (exchange.status, exchange.ending) == (status, Ending.UPSTREAM_FAILED)

    @pytest.mark.parametrize(("lost", "retry"), [(error.ConnectionDone, True), (error.ConnectionLost, False)])
    def test_a_client_has_leave_to_retry_where_a_connection_ended_without_an_answer(
        self, proxy: Proxy, lost: type[Exception], retry: bool
    ) -> None:
        client = proxy.ask(b"/openai/v1/x", method=b"POST", body=b"{}")
        proxy.agent.only.fail(within(ResponseNeverReceived, lost()))
        assert client.response().status == 502
        assert client.response().values(b"x-should-retry") == ([b"true"] if retry else [])
        assert len(proxy.agent.requests) == 1

    @pytest.mark.parametrize("fault", [fault for fault, _ in BAD_GATEWAY + GATEWAY_TIMEOUT])
    def test_no_fault_shows_a_secret(self, proxy: Proxy, fault: Exception) -> None:
        client = proxy.ask(b"/anthropic/v1/x?key=" + TOKEN)
        with log_lines() as lines:
            proxy.agent.only.fail(fault)
        for shown in (client.received.decode("ascii"), "\n".join(lines), repr(proxy.exchanges)):
            for secret in (TOKEN.decode("ascii"), OPENAI_KEY, ANTHROPIC_KEY):
                assert secret not in shown

    def test_a_fault_answers_head_without_a_body(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x", method=b"HEAD")
        proxy.agent.only.fail(error.ConnectionRefusedError())
        assert (client.response(b"HEAD").status, client.response(b"HEAD").rest) == (502, b"")

    def test_an_upstream_that_sends_nothing_is_given_up_after_the_first_byte_timeout(
        self, proxy: Proxy
    ) -> None:
        client = proxy.ask(b"/openai/v1/x")
        proxy.clock.advance(99.9)
        assert client.received == b""
        assert not proxy.agent.only.cancelled
        proxy.clock.advance(0.1)
        assert proxy.agent.only.cancelled
        response = client.response()
        assert (response.status, response.json()["error"]) == (504, "gateway_timeout")
        assert (
            response.json()["message"] == "The upstream openai (openai.example) sent nothing for 100 seconds."
        )
        (exchange,) = proxy.exchanges
        assert (exchange.status, exchange.ending, exchange.duration) == (504, Ending.UPSTREAM_SILENT, 100.0)

    def test_the_first_byte_timeout_ends_with_the_headers(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        proxy.clock.advance(99)
        upstream = proxy.agent.only.answer()
        proxy.clock.advance(49)
        upstream.chunk(b"late")
        upstream.end()
        assert client.response().body == b"late"
        assert client.response().whole

    @pytest.mark.parametrize("end", ["answer", "fault", "client", "broken"])
    def test_nothing_is_left_in_the_reactor(
        self, proxy: Proxy, end: str, logged_failures: LoggedFailures
    ) -> None:
        client = proxy.connect()
        idle = list(proxy.clock.getDelayedCalls())
        client.ask(b"/openai/v1/x", headers=[BEARER, (b"Connection", b"close")])
        if end == "answer":
            proxy.agent.only.answer().end()
        elif end == "fault":
            proxy.agent.only.fail(error.ConnectionRefusedError())
        elif end == "broken":
            proxy.agent.only.fail(ZeroDivisionError())
            logged_failures.flush(ZeroDivisionError)
        else:
            client.leave()
        proxy.turn()
        assert [call for call in proxy.clock.getDelayedCalls() if call not in idle] == []


class TestClientLeaves:
    def test_before_the_headers_cancels_the_upstream_request_in_the_same_turn(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        client.leave()
        assert proxy.agent.only.cancelled
        (exchange,) = proxy.exchanges
        assert (exchange.status, exchange.ending, exchange.sent) == (None, Ending.CLIENT_LEFT, 0)

    def test_during_the_body_aborts_the_upstream_response_in_the_same_turn(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        upstream = proxy.agent.only.answer()
        upstream.chunk(b"hello")
        client.leave()
        assert upstream.aborted == 1
        (exchange,) = proxy.exchanges
        assert (exchange.status, exchange.ending, exchange.sent) == (200, Ending.CLIENT_LEFT, 5)

    def test_after_the_response_aborts_nothing(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        upstream = proxy.agent.only.answer()
        upstream.end()
        client.leave()
        assert upstream.aborted == 0
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.COMPLETED]

    def test_between_two_requests_harms_nothing(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/x")
        proxy.agent.only.fail(error.ConnectionRefusedError())
        client.leave()
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.UPSTREAM_FAILED]


class BrokenRelay(Relay):
    def __init__(self, *_: object) -> None:
        raise ZeroDivisionError


class TestOwnFaults:
    """Whatever breaks in the proxy itself: the client gets JSON, the operator a traceback."""

    def test_an_unknown_failure_of_a_request_is_a_500_and_logged(
        self, proxy: Proxy, logged_failures: LoggedFailures
    ) -> None:
        client = proxy.ask(b"/openai/v1/x")
        proxy.agent.only.fail(ZeroDivisionError("of the proxy's own"))
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        response = client.response()
        assert (response.status, response.json()["error"], response.rest) == (500, "internal_error", b"")
        assert b"ZeroDivision" not in client.received
        assert client.ending == "open"
        (exchange,) = proxy.exchanges
        assert (exchange.status, exchange.ending) == (500, Ending.PROXY_FAILED)

    def test_an_exception_before_a_request_is_sent_is_a_500_and_logged(
        self, proxy: Proxy, logged_failures: LoggedFailures
    ) -> None:
        proxy.agent.broken = ZeroDivisionError()
        response = proxy.ask(b"/openai/v1/x").response()
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert (response.status, response.json()["error"]) == (500, "internal_error")

    def test_an_exception_before_a_request_is_sent_leaves_nothing_behind(
        self, proxy: Proxy, logged_failures: LoggedFailures
    ) -> None:
        proxy.agent.broken = ZeroDivisionError()
        proxy.ask(b"/openai/v1/x", headers=[BEARER, (b"Connection", b"close")])
        proxy.turn()
        logged_failures.flush(ZeroDivisionError)
        assert proxy.clock.getDelayedCalls() == []

    def test_an_exception_while_a_resource_renders_is_a_500_in_json_and_logged(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.route.Exchange", lambda **_: 1 // 0)
        client = proxy.ask(b"/openai/v1/x?key=" + TOKEN)
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        response = client.response()
        assert (response.status, response.json()["error"], response.rest) == (500, "internal_error", b"")
        assert b"<" not in client.received
        assert b"ZeroDivision" not in client.received

    def test_an_exception_once_a_response_has_begun_cuts_it_off(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = proxy.ask(b"/openai/v1/x")

        def fail(relay: Any) -> None:
            relay._request.write(b"")
            raise ZeroDivisionError

        monkeypatch.setattr(Relay, "connectionMade", fail)
        proxy.agent.only.answer()
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert client.ending != "open"
        proxy.turn()
        assert not client.response().whole
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.PROXY_FAILED]

    def test_an_exception_while_the_relay_is_set_up_gives_up_both_sides(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = proxy.ask(b"/openai/v1/x")
        set_up = Relay.connectionMade

        def fail(relay: Relay) -> None:
            set_up(relay)
            raise ZeroDivisionError

        monkeypatch.setattr(Relay, "connectionMade", fail)
        upstream = proxy.agent.only.answer()
        proxy.turn()
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert client.response().status == 500
        assert upstream.aborted
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.PROXY_FAILED]

    def test_an_exception_between_the_upstreams_headers_and_ours_is_a_500(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = proxy.ask(b"/openai/v1/x")
        monkeypatch.setattr("llmproxy.headers.strip_hop_by_hop", lambda _: 1 // 0)
        proxy.agent.only.answer()
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert client.ending == "open"
        assert client.response().status == 500

    def test_an_exception_before_the_relay_gives_up_the_upstreams_response(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy.ask(b"/openai/v1/x")
        monkeypatch.setattr("llmproxy.forwarding.Relay", BrokenRelay)
        upstream = proxy.agent.only.answer()
        proxy.turn()
        logged_failures.flush(ZeroDivisionError)
        assert upstream.aborted


class TestObservers:
    def test_each_exchange_is_told_once_when_it_is_over(self, proxy: Proxy) -> None:
        proxy.ask(b"/openai/v1/chat/completions?key=hidden", method=b"POST", body=b"{}")
        proxy.clock.advance(2)
        upstream = proxy.agent.only.answer(201, b"Made")
        upstream.chunk(b"abc")
        proxy.clock.advance(3)
        upstream.chunk(b"de")
        assert proxy.exchanges == []
        upstream.end()
        (exchange,) = proxy.exchanges
        assert len(exchange.id) == 26
        assert abs(exchange.at.timestamp() - time.time()) < 60
        assert proxy.exchanges == [
            Exchange(
                id=exchange.id,
                begun_ns=exchange.begun_ns,
                client="default",
                upstream="openai",
                method="POST",
                path="/openai/v1/chat/completions",
                started=0.0,
                status=201,
                first_byte=2.0,
                duration=5.0,
                received=2,
                sent=5,
                reused=False,
                ending=Ending.COMPLETED,
            )
        ]

    @pytest.mark.parametrize("end", ["answer", "fault", "leave"])
    def test_an_exception_in_an_observer_harms_no_one(
        self, end: str, logged_failures: LoggedFailures
    ) -> None:
        def broken(_: Exchange) -> None:
            raise ZeroDivisionError

        proxy = Proxy(observer=broken)
        client = proxy.ask(b"/openai/v1/x")
        if end == "answer":
            upstream = proxy.agent.only.answer()
            upstream.chunk(b"hello")
            upstream.end()
            assert (client.response().body, client.response().whole) == (b"hello", True)
        elif end == "fault":
            proxy.agent.only.fail(error.ConnectionRefusedError())
            assert client.response().status == 502
        else:
            client.leave()
            assert proxy.agent.only.cancelled
        assert len(logged_failures.flush(ZeroDivisionError)) == 1


def sent_body(proxy: Proxy) -> tuple[object, bytes]:
    """The length and the bytes of the body that goes to the upstream."""
    producer = proxy.agent.only.producer
    assert producer is not None
    wire = StringTransport()
    done: list[object] = []
    producer.startProducing(wire).addCallback(done.append)
    assert done == [None]
    return producer.length, wire.value()


def test_headers_of_the_client_are_not_changed_by_forwarding(proxy: Proxy) -> None:
    # Two requests of one connection, so that a change to shared headers would show in the second.
    client = proxy.ask(b"/openai/v1/x", headers=[BEARER, (b"X-A", b"1")])
    proxy.agent.only.answer(headers=[(b"Content-Length", b"0")]).end()
    client.ask(b"/openai/v1/x", headers=[BEARER, (b"X-A", b"1")])
    first, second = proxy.agent.requests
    assert isinstance(first.headers, Fields)
    assert first.headers is not second.headers
    assert first.header_list() == second.header_list()
