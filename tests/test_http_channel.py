"""What a client's connection does with what comes, with time that passes, and with clients that leave."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.http.body import BrokenBody, SilentBody, read_whole
from llmproxy.http.limits import DownstreamLimits
from llmproxy.http.request import Request
from tests.conftest import LoggedFailures
from tests.http_support import GET, HOST, Connection, Flow, Served, Sink, hi
from tests.support import log_lines

POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = POST + b"Content-Length: 10\r\n\r\n"
EXPECT = POST + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HANDSHAKE = b"GET /ws HTTP/1.1\r\n" + HOST + b"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
LIMITS = DownstreamLimits(
    target=100, headers=1000, header_time=30.0, keep_alive=75.0, body_idle=60.0, linger=2.0, close_time=600.0
)


def path(name: bytes) -> bytes:
    """A request without a body for a path."""
    return b"GET /%b HTTP/1.1\r\n%b\r\n" % (name, HOST)


def chunks(*parts: bytes, trailers: bytes = b"") -> bytes:
    """A whole chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


def is_there(request: Request) -> bool:
    """Whether the client is still there."""
    return not request._disconnected


def echo(request: Request) -> None:
    """Answer with the whole body, and what else is known of the request."""

    def answer(body: bytes) -> None:
        length = None if request.body is None else request.body.length
        trailers = getattr(request.body, "trailers", None)
        request.write(
            repr(
                (
                    request.method,
                    request.uri,
                    request.clientproto,
                    request.requestHeaders.pairs,
                    "chunked" if length is UNKNOWN_LENGTH else length,
                    None if trailers is None else trailers.pairs,
                    body,
                )
            ).encode()
        )
        request.finish()

    def fail(failure: Failure) -> None:
        if is_there(request):
            request.setResponseCode(400)
            request.finish()

    read_whole(request.body, 1_000_000).addCallbacks(answer, fail)


class TestRendering:
    def test_a_request_is_rendered_at_the_end_of_its_headers(self) -> None:
        served = Served()
        head, body = LENGTH, b"0123456789"
        served.client.send(head[:-1])
        assert served.requests == []
        served.client.send(head[-1:])
        assert served.request.body is not None
        sink = Sink(served.request.body)
        served.client.send(body[:4], body[4:9])
        assert sink.pieces == [body[:4], body[4:9]]
        assert sink.ended is None
        served.client.send(body[9:])
        assert sink.ended == "whole"

    @pytest.mark.parametrize(
        ("message", "length", "body"),
        [
            (POST + b"Content-Length: 0\r\n\r\n", 0, b""),
            (LENGTH + b"0123456789", 10, b"0123456789"),
            (CHUNKED + chunks(), UNKNOWN_LENGTH, b""),
            (CHUNKED + chunks(b"01234", b"56789"), UNKNOWN_LENGTH, b"0123456789"),
            (CHUNKED + b'5;name=value;other="x"\r\n01234\r\n0;last\r\n\r\n', UNKNOWN_LENGTH, b"01234"),
            (CHUNKED + b"00000000000000000000A\r\n0123456789\r\n000\r\n\r\n", UNKNOWN_LENGTH, b"0123456789"),
        ],
    )
    def test_a_body_has_its_length_and_its_bytes(self, message: bytes, length: object, body: bytes) -> None:
        served = Served()
        served.client.send(message)
        assert served.request.body is not None
        assert served.request.body.length == length
        sink = Sink(served.request.body)
        assert sink.data == body
        assert sink.ended == "whole"
        assert served.request.body.received == len(body)

    @pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
    def test_no_body_is_not_an_empty_one(self, method: bytes) -> None:
        served = Served()
        served.client.send(method + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert served.request.body is None

    def test_trailers_come_with_the_end_of_the_body(self) -> None:
        served = Served(hi)
        served.client.send(CHUNKED + chunks(b"hi", trailers=b"X-Sum: 1 \r\nx-other:\r\n"))
        assert served.request.body is not None
        assert served.request.body.trailers is not None
        assert served.request.body.trailers.pairs == [(b"X-Sum", b"1"), (b"x-other", b"")]

    def test_trailers_are_no_headers_of_the_next_request(self) -> None:
        served = Served(hi)
        served.client.send(CHUNKED + chunks(trailers=b"X-Sum: 1\r\n") + GET)
        assert [request.requestHeaders.hasHeader(b"x-sum") for request in served.requests] == [False, False]

    @pytest.mark.parametrize("lines", [b"\r\n", b"\r\n\r\n"])
    def test_empty_lines_before_a_request_are_skipped(self, lines: bytes) -> None:
        # RFC 9112 section 2.2.
        served = Served(hi)
        served.client.send(lines + GET + lines, lines, GET)
        assert len(served.client.answers()) == 2

    def test_repr_shows_where_it_stands(self) -> None:
        served = Served()
        assert repr(served.client.channel) == "<Channel reading a request's head, 0 requests>"
        served.client.send(LENGTH)
        assert repr(served.client.channel) == "<Channel reading a request's body, 1 requests>"

    def test_small_writes_are_sent_at_once(self) -> None:
        assert Served().client.transport.no_delay


class TestMethods:
    @pytest.mark.parametrize(
        "method", [b"PROPFIND", b"FROBNICATE", b"get", b"Post", b"M-SEARCH", b"PRI", b"SOURCE", b"x!"]
    )
    @pytest.mark.parametrize("before", [b"", b"\r\n"])
    def test_any_token_is_a_method_wherever_it_is_split(self, method: bytes, before: bytes) -> None:
        message = before + method + b" /x HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nhi"
        for position in range(len(message)):
            served = Served(hi)
            served.client.send(message[:position], message[position:])
            assert served.request.method == method
            assert served.client.answer().status == 200

    def test_it_is_the_method_of_one_request_only(self) -> None:
        served = Served(hi)
        served.client.send(
            b"get /1 HTTP/1.1\r\n" + HOST + b"\r\n", GET, b"Get /2 HTTP/1.1\r\n" + HOST + b"\r\n"
        )
        assert [request.method for request in served.requests] == [b"get", b"GET", b"Get"]

    def test_the_middle_of_a_head_is_never_taken_for_a_method(self) -> None:
        # What follows looks like one, and the head began behind another request.
        served = Served(hi)
        served.client.send(GET + b"GET /2 HTTP/1.1\r\n" + HOST + b"X-Text: foo ", b"bar baz\r\n\r\n")
        _, second = served.requests
        assert second.method == b"GET"
        assert second.requestHeaders.getRawHeaders(b"x-text") == [b"foo bar baz"]

    def test_one_that_llhttp_does_not_know_is_not_implemented_behind_another_request(self) -> None:
        # To know where it begins, what lies before it would have to be parsed first.
        served = Served(hi)
        served.client.send(GET + b"frob / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert [answer.status for answer in served.client.answers()] == [200, 501]


class TestPace:
    """Nothing is read that nobody takes, and what is held is one read at most."""

    def test_before_the_body_is_asked_for_one_piece_is_held(self) -> None:
        served = Served()
        served.client.send(LENGTH)
        assert not served.client.transport.paused  # so that it is noticed when the client leaves
        served.client.send(b"01", b"23", b"45")
        assert served.client.transport.paused
        assert served.client.unread == 4

    def test_the_rest_is_read_when_it_is_asked_for(self) -> None:
        served = Served()
        served.client.send(LENGTH, b"01", b"23", b"456789")
        sink = Sink(served.request.body)
        assert sink.pieces == [b"01"]
        served.client.turn()
        assert sink.pieces == [b"01", b"23", b"456789"]
        assert sink.ended == "whole"

    def test_what_came_with_the_headers_is_held(self) -> None:
        served = Served()
        served.client.send(LENGTH + b"01", b"23456789")
        assert served.client.unread == 8

    def test_a_paused_consumer_pauses_the_client(self) -> None:
        served = Served()
        served.client.send(LENGTH)
        sink = Sink(served.request.body)
        served.client.send(b"01")
        sink.body.pauseProducing()
        assert served.client.transport.paused
        served.client.send(b"23", b"456789")
        assert sink.data == b"01"
        sink.body.resumeProducing()
        served.client.turn()
        assert sink.ended == "whole"
        assert not served.client.transport.paused

    def test_a_consumer_may_pause_at_each_piece(self) -> None:
        class OneByOne(Sink):
            def write(self, data: bytes) -> None:
                super().write(data)
                self.body.pauseProducing()

        served = Served()
        served.client.send(CHUNKED)
        sink = OneByOne(served.request.body)
        served.client.send(*(b"1\r\n%d\r\n" % number for number in range(10)), b"0\r\n\r\n")
        for number in range(10):
            assert len(sink.pieces) == number + 1
            sink.body.resumeProducing()
            served.client.turn()
        assert sink.data == b"0123456789"
        assert sink.ended == "whole"

    def test_a_body_that_is_dropped_is_read_on(self) -> None:
        served = Served()
        served.client.send(LENGTH, b"01", b"23")
        assert served.request.body is not None
        served.request.body.stopProducing()
        served.client.turn()
        served.client.send(b"456789")
        assert served.client.unread == 0
        hi(served.request)
        served.client.send(GET)
        assert len(served.requests) == 2

    def test_behind_a_request_in_progress_one_more_is_read(self) -> None:
        served = Served()
        served.client.send(path(b"1"), path(b"2"), path(b"3"))
        assert served.client.unread == len(path(b"3"))
        hi(served.requests[0])
        served.client.turn()
        assert served.client.unread == 0

    def test_the_body_of_a_request_that_waits_is_held_after_one_piece(self) -> None:
        served = Served()
        served.client.send(GET, LENGTH, b"01", b"23", b"456789")
        assert served.client.unread == 8
        hi(served.requests[0])
        served.client.turn()
        assert served.client.unread == 8
        sink = Sink(served.requests[1].body)
        served.client.turn()
        assert sink.ended == "whole"


class TestPipeline:
    def test_requests_are_answered_in_order_one_after_the_other(self) -> None:
        served = Served()
        served.client.send(path(b"1") + path(b"2") + path(b"3"))
        for number in range(3):
            assert len(served.requests) == number + 1
            request = served.requests[number]
            assert request.uri == b"/%d" % (number + 1)
            request.setHeader(b"X-Number", b"%d" % number)
            hi(request)
        assert [answer.headers[0][1] for answer in served.client.answers()] == [b"0", b"1", b"2"]

    def test_one_with_a_body_may_wait_behind_a_slow_one(self) -> None:
        served = Served()
        served.client.send(path(b"slow") + CHUNKED + chunks(b"body") + path(b"last"))
        hi(served.requests[0])
        sink = Sink(served.requests[1].body)
        assert (sink.data, sink.ended) == (b"body", "whole")
        assert len(served.requests) == 2
        hi(served.requests[1])
        hi(served.requests[2])
        assert len(served.client.answers()) == 3

    def test_many_that_are_answered_at_once_are_no_recursion(self) -> None:
        served = Served(hi)
        served.client.send(GET * 5000)
        assert len(served.client.answers()) == 5000
        assert served.client.ending == "open"

    def test_many_behind_a_slow_one_are_no_recursion(self) -> None:
        served = Served(lambda request: hi(request) if len(served.requests) > 1 else None)
        served.client.send(GET * 5000)
        assert served.client.received == b""
        hi(served.requests[0])
        assert len(served.client.answers()) == 5000

    def test_what_is_refused_is_answered_in_its_turn(self) -> None:
        served = Served()
        served.client.send(path(b"1") + path(b"2") + b"GET / HTTP/1.1\r\n\r\n" + path(b"3"))
        assert served.client.received == b""
        hi(served.requests[0])
        hi(served.requests[1])
        first, second, refused = served.client.answers()
        assert [first.status, second.status, refused.status] == [200, 200, 400]
        assert (b"Connection", b"close") not in second.headers
        assert (b"Connection", b"close") in refused.headers
        assert len(served.requests) == 2
        assert served.client.ending == "half-closed"

    @pytest.mark.parametrize("at_once", [True, False])
    def test_what_follows_a_request_that_closes_is_never_served(self, at_once: bool) -> None:
        served = Served(hi if at_once else lambda _: None)
        served.client.send(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n" + GET, GET)
        if not at_once:
            hi(served.request)
        assert len(served.requests) == 1
        assert (
            served.client.received == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
        )
        assert served.client.ending in ("closed", "half-closed")

    def test_what_follows_a_response_that_is_cut_off_is_never_served(self) -> None:
        served = Served()
        served.client.send(GET + GET)
        served.request.write(b"part")
        served.request.loseConnection()
        served.request.loseConnection()
        served.client.turn()
        assert len(served.requests) == 1
        assert not served.client.answer().whole
        assert served.client.ending == "closed"


class TestExpect:
    """RFC 9110 section 10.1.1."""

    def test_the_client_is_told_to_continue_when_somebody_begins_to_read(self) -> None:
        served = Served()
        served.client.send(EXPECT)
        assert served.client.received == b""
        sink = Sink(served.request.body)
        assert served.client.received == CONTINUE
        served.client.send(b"0123456789")
        assert sink.ended == "whole"
        hi(served.request)
        assert [answer.status for answer in served.client.answers()] == [100, 200]

    @pytest.mark.parametrize("code", [401, 413, 417, 200])
    def test_a_client_that_is_answered_before_is_never_told(self, code: int) -> None:
        def refuse(request: Request) -> None:
            request.setResponseCode(code)
            hi(request)

        served = Served(refuse)
        served.client.send(EXPECT)
        answer = served.client.answer()
        assert answer.status == code
        assert (b"Connection", b"close") in answer.headers
        assert served.client.ending == "half-closed"

    def test_nor_is_one_that_a_response_has_begun_for(self) -> None:
        served = Served()
        served.client.send(EXPECT)
        served.request.write(b"")
        Sink(served.request.body)
        assert CONTINUE not in served.client.received

    @pytest.mark.parametrize(
        "message",
        [
            LENGTH,
            EXPECT.replace(b"HTTP/1.1", b"HTTP/1.0"),
            EXPECT + b"0123456789",
            EXPECT.replace(b"100-continue", b"something-else"),
        ],
        ids=["unasked", "HTTP/1.0", "all is sent", "another expectation"],
    )
    def test_one_that_does_not_wait_is_not_told(self, message: bytes) -> None:
        served = Served()
        served.client.send(message)
        Sink(served.request.body)
        assert served.client.received == b""

    def test_one_that_waits_behind_another_request_is_told_in_its_turn(self) -> None:
        served = Served()
        served.client.send(GET, EXPECT)
        hi(served.requests[0])
        assert CONTINUE not in served.client.received
        Sink(served.requests[1].body)
        assert served.client.received.endswith(CONTINUE)

    def test_it_is_found_in_a_list_and_in_any_case(self) -> None:
        served = Served()
        served.client.send(EXPECT.replace(b"100-continue", b"other, 100-Continue"))
        Sink(served.request.body)
        assert served.client.received == CONTINUE

    def test_a_client_that_left_is_not_told(self) -> None:
        served = Served()
        served.client.send(EXPECT)
        served.client.leave()
        assert Sink(served.request.body).ended is BrokenBody
        assert served.client.received == b""


class TestEarlyAnswers:
    """A response to an upload that is not over: it must arrive, and the rest must not be taken for a request."""

    @pytest.fixture
    def served(self) -> Served:
        served = Served(hi, LIMITS)
        served.client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\nfirst")
        return served

    def test_the_connection_is_half_closed_behind_it(self, served: Served) -> None:
        answer = served.client.answer()
        assert answer.body == b"hi"
        assert (b"Connection", b"close") in answer.headers
        assert served.client.ending == "half-closed"

    def test_the_rest_is_read_and_dropped(self, served: Served) -> None:
        served.client.send(b"x" * 1000, GET, GET)
        assert served.client.unread == 0
        assert len(served.requests) == 1
        assert len(served.client.answers()) == 1

    def test_the_connection_is_closed_after_a_time(self, served: Served) -> None:
        served.clock.advance(LIMITS.linger - 0.1)
        served.client.send(b"still sending")
        assert served.client.ending == "half-closed"
        served.clock.advance(0.1)
        assert served.client.ending == "closed"

    def test_a_client_that_has_not_taken_its_answer_has_longer(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = [1000]
        monkeypatch.setattr("llmproxy.http.intake.unsent", lambda _: left[0])
        served.clock.pump([LIMITS.linger] * 10)
        assert served.client.ending == "half-closed"
        left[0] = 0
        served.clock.advance(LIMITS.linger)
        assert served.client.ending == "half-closed"  # its kernel has it all; itself it may still be reading
        served.client.send(b"still sending")
        assert served.client.unread == 0
        served.clock.advance(LIMITS.linger)
        assert served.client.ending == "closed"

    def test_but_not_for_ever(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llmproxy.http.intake.unsent", lambda _: 1000)
        served.clock.pump([LIMITS.linger] * int(LIMITS.close_time / LIMITS.linger - 1))
        assert served.client.ending == "half-closed"
        served.clock.advance(LIMITS.linger)
        assert served.client.ending == "closed"

    def test_a_client_that_closes_sooner_leaves_nothing_behind(self, served: Served) -> None:
        served.client.leave()
        assert served.clock.getDelayedCalls() == []
        assert served.site.open == 0

    def test_a_client_that_was_paused_is_read_again(self) -> None:
        served = Served()
        served.client.send(LENGTH, b"01", b"23", b"45")
        assert served.client.transport.paused
        hi(served.request)
        served.client.turn()
        assert served.client.unread == 0

    def test_tls_knows_no_half_closed_connection(self) -> None:
        served = Served(hi, LIMITS, tls=True)
        served.client.send(LENGTH)
        assert served.client.ending == "open"
        served.client.send(b"0123")
        served.clock.advance(LIMITS.linger)
        assert served.client.ending == "closed"


class TestBrokenBodies:
    def test_the_reader_is_told_and_nothing_after_it_is_read(self) -> None:
        served = Served()
        served.client.send(CHUNKED)
        sink = Sink(served.request.body)
        served.client.send(b"2\r\nhi\r\nno size\r\n" + GET, GET)
        assert sink.data == b"hi"
        assert sink.ended is BrokenBody
        hi(served.request)
        assert len(served.requests) == 1
        assert (b"Connection", b"close") in served.client.answer().headers

    def test_the_answer_is_not_lost_in_a_reset(self) -> None:
        # The client is still sending, so a close at once would be a reset.
        served = Served(echo, LIMITS)
        served.client.send(CHUNKED + b"no size\r\n")
        assert served.client.answer().status == 400
        assert served.client.ending == "half-closed"
        served.clock.advance(LIMITS.linger)
        assert served.client.ending == "closed"

    def test_one_that_is_read_later_is_found_broken_then(self) -> None:
        served = Served()
        served.client.send(GET + CHUNKED + b"2\r\nhi\r\nno size\r\n")
        hi(served.requests[0])
        sink = Sink(served.requests[1].body)
        assert sink.data == b"hi"
        assert sink.ended is BrokenBody


class TestUpgrade:
    @pytest.mark.parametrize(
        ("framing", "body"),
        [
            (b"", b""),
            (b"Content-Length: 0\r\n", b""),
            (b"Content-Length: 4\r\n", b"body"),
            (b"Transfer-Encoding: chunked\r\n", chunks(b"bo", b"dy", trailers=b"X-Sum: 1\r\n")),
        ],
    )
    @pytest.mark.parametrize(
        ("method", "protocol"), [(b"POST", b"h2c"), (b"GET", b"h2c"), (b"POST", b"websocket"), (b"get", b"x")]
    )
    def test_an_offer_that_is_not_taken_is_served_as_if_it_were_not_there(
        self, method: bytes, protocol: bytes, framing: bytes, body: bytes
    ) -> None:
        message = b"%b /x HTTP/1.1\r\n%bConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n%b\r\n%b" % (
            method,
            HOST,
            protocol,
            framing,
            body,
        )
        for position in range(len(message) + 1):
            served = Served(echo)
            served.client.send(message[:position], message[position:] + path(b"next"), path(b"last"))
            first, second, third = (answer.body for answer in served.client.answers())
            assert first.startswith(repr((method, b"/x")).encode()[:-1])
            assert first.endswith(b"b'body')" if b"b" in body else b"b'')")
            assert (b"X-Sum" in first) == (b"X-Sum" in body)
            assert b"/next" in second
            assert b"/last" in third
            assert served.client.ending == "open"

    def test_many_offers_in_one_read_are_no_recursion(self) -> None:
        served = Served(hi)
        served.client.send((POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n") * 2000)
        assert len(served.client.answers()) == 2000
        assert served.client.ending == "open"

    def test_http_1_0_knows_no_upgrade(self) -> None:
        served = Served()
        served.client.send(b"GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert not served.request.requestHeaders.hasHeader(b"upgrade")

    def test_nobody_above_is_told_of_it(self) -> None:
        served = Served()
        served.client.send(
            b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nX-One: 1\r\n\r\n"
        )
        assert served.request.requestHeaders.pairs[1:] == [(b"Connection", b"Upgrade"), (b"X-One", b"1")]

    @pytest.mark.parametrize(
        ("next_", "status"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (path(b"x" * 100), 414),
            (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 1000 + b"\r\n\r\n", 431),
            (b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
        ],
    )
    def test_what_is_refused_behind_it_is_told_why(self, next_: bytes, status: int) -> None:
        served = Served(hi, LIMITS)
        served.client.send(POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + next_)
        _, refused = served.client.answers()
        assert refused.status == status
        assert "callback" not in refused.json["message"]

    def test_a_client_that_offers_it_and_closes_is_answered_and_closed(self) -> None:
        served = Served(hi)
        served.client.send(
            b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET
        )
        assert (b"Connection", b"close") in served.client.answer().headers
        assert len(served.requests) == 1

    def test_a_body_behind_an_offer_can_be_broken(self) -> None:
        served = Served(echo)
        served.client.send(
            POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"no size\r\n",
        )
        assert served.client.answer().status == 400

    def test_what_is_malformed_behind_an_offer_is_refused(self) -> None:
        served = Served(hi)
        served.client.send(
            b"GET / HTTP/1.1\r\n"
            + HOST
            + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /\x01 HTTP/1.1\r\n"
        )
        assert [answer.status for answer in served.client.answers()] == [200, 400]


class Tunnelled(Protocol):
    """What takes a connection over."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason


class TestWebSocket:
    def accept(self, served: Served) -> Tunnelled:
        """Take the last request's offer."""
        tunnelled = Tunnelled()
        request = served.requests[-1]
        request.setResponseCode(101, b"Switching Protocols")
        request.setHeader(b"Upgrade", b"websocket")
        request.switchProtocols(tunnelled)
        return tunnelled

    def test_a_handshake_is_rendered_and_waits(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE)
        assert served.request.body is None
        assert "not agreed" in repr(served.client.channel)
        served.clock.advance(10_000)
        assert served.client.ending == "open"

    def test_what_comes_early_is_held_and_bounded_by_one_read(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE)
        assert not served.client.transport.paused
        served.client.send(b"early", b"later")
        assert served.client.transport.paused
        assert served.client.unread == 5

    @pytest.mark.parametrize("position", range(len(HANDSHAKE) + 5))
    def test_the_connection_is_handed_over_with_what_came_early(self, position: int) -> None:
        served = Served()
        message = HANDSHAKE + b"early"
        served.client.send(message[:position], message[position:])
        tunnelled = self.accept(served)
        assert served.client.received == b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
        tunnelled.transport.resumeProducing()  # as who takes it over does
        served.client.turn()
        served.client.send(b" and late")
        assert tunnelled.data == b"early and late"

    def test_the_end_of_the_request_is_told(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE)
        told: list[object] = []
        served.request.notifyFinish().addCallback(told.append)
        self.accept(served)
        assert told == [None]

    def test_an_offer_may_be_taken_at_once(self) -> None:
        tunnelled = Tunnelled()
        served = Served(lambda request: request.switchProtocols(tunnelled))
        served.client.send(HANDSHAKE + b"early", b" and late")
        assert tunnelled.data == b"early and late"

    def test_a_tunnel_is_not_timed(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE)
        self.accept(served)
        served.clock.advance(100_000)
        assert served.client.ending == "open"

    def test_nor_is_its_client_looked_for_though_it_was_not_read_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.http.departure.has_left", lambda _: True)
        served = Served()
        served.client.send(HANDSHAKE, b"early")
        assert served.client.transport.paused
        self.accept(served)
        served.clock.advance(5)
        assert served.client.ending == "open"

    def test_a_tunnel_is_told_that_the_client_left(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE)
        tunnelled = self.accept(served)
        served.client.leave()
        assert tunnelled.lost is not None
        assert served.site.open == 0

    def test_a_handshake_that_is_declined_leaves_the_connection_to_the_next_request(self) -> None:
        served = Served(hi)
        served.client.send(HANDSHAKE, GET, GET)
        assert len(served.client.answers()) == 3

    def test_what_came_behind_a_handshake_that_is_declined_is_a_request(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE + path(b"next"), path(b"last"))
        assert len(served.requests) == 1
        for _ in range(3):
            hi(served.requests[-1])
            served.client.turn()
        assert [request.uri for request in served.requests] == [b"/ws", b"/next", b"/last"]
        assert len(served.client.answers()) == 3

    def test_what_came_behind_a_handshake_that_is_declined_may_be_malformed(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE + b"\x81\x05hello")
        hi(served.request)
        assert [answer.status for answer in served.client.answers()] == [200, 501]

    def test_what_came_behind_one_that_closes_is_never_served(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE.replace(b"keep-alive", b"close") + GET)
        hi(served.request)
        assert len(served.requests) == 1
        assert len(served.client.answers()) == 1

    def test_one_that_waits_behind_another_request_is_not_declined_by_its_answer(self) -> None:
        served = Served()
        served.client.send(GET + HANDSHAKE + b"early")
        hi(served.requests[0])
        tunnelled = self.accept(served)
        assert tunnelled.data == b"early"

    def test_a_client_that_leaves_before_the_answer_is_noticed(self) -> None:
        served = Served()
        served.client.send(HANDSHAKE)
        told: list[object] = []
        served.request.notifyFinish().addErrback(told.append)
        served.client.leave()
        assert len(told) == 1


class TestLeaving:
    """A client that leaves is noticed by whatever was in progress, and leaves nothing behind."""

    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"\r\n",
            b"GE",
            b"GET / HTTP/1.1\r\nHo",
            GET,
            GET * 3,
            LENGTH,
            LENGTH + b"half",
            CHUNKED + b"5\r\nha",
            GET + LENGTH + b"half",
            HANDSHAKE,
            HANDSHAKE + b"early",
            GET + HANDSHAKE,
            b"GET / HTTP/1.1\r\n\r\n",
            GET + b"GET / HTTP/1.1\r\n\r\n",
            LENGTH + b"0123456789",
        ],
    )
    @pytest.mark.parametrize("reason", [None, ConnectionLost()])
    def test_it_leaves_nothing_behind(self, sent: bytes, reason: Exception | None) -> None:
        served = Served()
        if sent:
            served.client.send(sent)
        told: list[Failure] = []
        for request in served.requests:
            request.notifyFinish().addErrback(told.append)
        served.client.leave(reason)
        assert len(told) == len(served.requests)
        assert served.site.open == 0
        assert served.clock.getDelayedCalls() == []
        assert "nothing" in repr(served.client.channel)

    def test_the_reader_of_a_body_is_told(self) -> None:
        served = Served()
        served.client.send(LENGTH, b"half")
        sink = Sink(served.request.body)
        served.client.leave()
        assert sink.data == b"half"
        assert sink.ended is BrokenBody

    def test_the_request_is_told_before_its_body(self) -> None:
        # Otherwise a failed body would be answered, to nobody.
        served = Served()
        served.client.send(LENGTH)
        told: list[str] = []
        served.request.notifyFinish().addErrback(lambda _: told.append("request"))
        Sink(served.request.body).done.addBoth(lambda _: told.append("body"))
        served.client.leave()
        assert told == ["request", "body"]

    def test_a_body_that_is_whole_stays_so(self) -> None:
        served = Served()
        served.client.send(LENGTH + b"0123456789")
        served.client.leave()
        assert Sink(served.request.body).ended == "whole"

    def test_within_a_response(self) -> None:
        served = Served()
        served.client.send(GET)
        served.request.write(b"begun")
        told: list[Failure] = []
        served.request.notifyFinish().addErrback(told.append)
        served.client.leave(ConnectionLost())
        assert told[0].check(ConnectionLost)

    def test_requests_that_were_waiting_are_never_rendered(self) -> None:
        served = Served()
        served.client.send(GET * 3)
        served.client.leave()
        assert len(served.requests) == 1

    def test_a_reader_may_pause_and_stop_afterwards(self) -> None:
        served = Served()
        served.client.send(LENGTH)
        sink = Sink(served.request.body)
        served.client.leave()
        sink.body.pauseProducing()
        sink.body.resumeProducing()
        sink.body.stopProducing()
        assert served.clock.getDelayedCalls() == []


class TestDeadlines:
    @pytest.fixture
    def served(self) -> Served:
        return Served(hi, LIMITS)

    def dribble(self, served: Served, pieces: list[bytes], seconds: float) -> None:
        """Send pieces, with some time after each."""
        for piece in pieces:
            if served.client.ending == "open":
                served.client.send(piece)
                served.clock.advance(seconds)

    def test_a_client_that_sends_nothing_is_closed_without_a_word(self, served: Served) -> None:
        served.clock.advance(LIMITS.header_time)
        assert served.client.received == b""
        assert served.client.ending == "closed"

    @pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
    def test_a_head_that_dribbles_is_refused_in_time(self, served: Served, start: bytes) -> None:
        if start:
            served.client.send(start)
        self.dribble(served, [b"X"] * 100 if start else [b"GET / HTTP/1.1\r\n"] + [b"X"] * 100, 1.0)
        answer = served.client.answer()
        assert answer.status == 408
        assert answer.json["error"] == "request_timeout"
        assert "30 seconds" in answer.json["message"]
        assert (b"Connection", b"close") in answer.headers
        assert served.clock.seconds() == LIMITS.header_time
        assert served.client.ending == "half-closed"

    def test_the_time_runs_from_the_first_byte_of_a_head(self, served: Served) -> None:
        served.client.send(GET)
        served.clock.advance(50)
        served.client.send(b"GET /")
        served.clock.advance(29)
        served.client.send(b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert len(served.requests) == 2

    def test_a_head_that_begins_behind_a_request_has_no_more_time_than_others(self, served: Served) -> None:
        served.client.send(GET + b"GET / HT")
        served.clock.advance(LIMITS.header_time)
        assert [answer.status for answer in served.client.answers()] == [200, 408]

    def test_what_is_late_behind_a_request_in_progress_is_refused_in_its_turn(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(GET + b"GET / HT")
        served.clock.advance(LIMITS.header_time)
        assert served.client.received == b""
        hi(served.request)
        assert [answer.status for answer in served.client.answers()] == [200, 408]

    def test_a_head_that_is_not_read_is_not_late(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(GET + GET + b"GET / HT", b"TP/1.1\r\n" + HOST + b"\r\n")
        assert served.client.transport.paused
        served.clock.advance(10 * LIMITS.header_time)
        for _ in range(3):
            hi(served.requests[-1])
            served.client.turn()
        assert [answer.status for answer in served.client.answers()] == [200] * 3

    def test_a_head_that_was_not_read_for_a_while_can_be_late_then(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(GET + GET + b"GET / HT")
        served.clock.advance(10 * LIMITS.header_time)
        hi(served.requests[-1])
        hi(served.requests[-1])
        served.clock.advance(LIMITS.header_time)
        assert [answer.status for answer in served.client.answers()] == [200, 200, 408]

    def test_an_idle_connection_is_closed(self, served: Served) -> None:
        served.client.send(GET)
        served.clock.advance(LIMITS.keep_alive - 1)
        assert served.client.ending == "open"
        served.clock.advance(1)
        assert served.client.ending == "closed"
        assert len(served.client.answers()) == 1

    def test_each_request_lets_it_be_idle_anew(self, served: Served) -> None:
        self.dribble(served, [GET] * 5, LIMITS.keep_alive - 1)
        assert len(served.client.answers()) == 5
        assert served.client.ending == "open"

    def test_a_connection_with_a_request_in_progress_is_not_idle(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(GET)
        served.clock.advance(100 * LIMITS.keep_alive)
        assert served.client.ending == "open"

    def test_a_client_that_falls_silent_within_a_body_is_told_to_its_reader(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(LENGTH)
        sink = Sink(served.request.body)
        self.dribble(served, [b"1"] * 5, LIMITS.body_idle - 1)
        assert sink.ended is None
        served.clock.advance(1)
        assert sink.ended is SilentBody
        hi(served.request)
        assert (b"Connection", b"close") in served.client.answer().headers
        served.clock.advance(LIMITS.linger)
        assert served.client.ending == "closed"

    def test_what_comes_too_late_is_dropped(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(LENGTH)
        sink = Sink(served.request.body)
        served.clock.advance(LIMITS.body_idle)
        served.client.send(b"0123456789", GET)
        assert sink.data == b""
        assert len(served.requests) == 1

    def test_a_client_is_not_late_while_its_body_is_not_asked_for(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(EXPECT)
        served.clock.advance(10 * LIMITS.body_idle)
        sink = Sink(served.request.body)
        served.clock.advance(LIMITS.body_idle - 1)
        served.client.send(b"0123456789")
        assert sink.ended == "whole"

    def test_a_client_is_not_late_while_its_reader_is_paused(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(LENGTH)
        sink = Sink(served.request.body)
        served.client.send(b"01234")
        sink.body.pauseProducing()
        served.clock.advance(10 * LIMITS.body_idle)
        assert sink.ended is None
        sink.body.resumeProducing()
        served.clock.advance(LIMITS.body_idle - 1)
        assert sink.ended is None
        served.clock.advance(1)
        assert sink.ended is SilentBody

    def test_a_client_that_falls_silent_in_what_is_dropped_still_gets_its_answer(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(LENGTH)
        assert served.request.body is not None
        served.request.body.stopProducing()
        served.clock.advance(LIMITS.body_idle)
        assert served.client.ending == "open"
        hi(served.request)
        assert served.client.answer().body == b"hi"

    def test_a_slow_reader_of_the_end_of_an_answer_is_not_cut_off(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        served.client.stop_reading()
        hi(served.request)
        served.clock.advance(LIMITS.close_time - 1)
        assert served.client.ending == "closing"
        served.client.read_on()
        assert served.client.ending == "closed"
        served.client.turn()
        assert served.clock.getDelayedCalls() == []

    def test_one_that_reads_nothing_at_all_is_cut_off_in_the_end(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        served.client.stop_reading()
        hi(served.request)
        served.clock.advance(LIMITS.close_time)
        assert served.client.ending == "reset"

    def test_a_refused_upload_of_one_that_reads_nothing_is_cut_off_in_the_end(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(LENGTH)
        served.client.stop_reading()
        hi(served.request)
        served.clock.advance(LIMITS.linger)
        assert served.client.ending == "closing"
        served.clock.advance(LIMITS.close_time)
        assert served.client.ending == "reset"

    def test_a_response_may_take_any_time(self) -> None:
        served = Served(limits=LIMITS)
        served.client.send(GET)
        for _ in range(10):
            served.request.write(b"event")
            served.clock.advance(1000)
        assert served.client.ending == "open"


class TestLimits:
    def refusal(self, *pieces: bytes) -> Any:
        """The answer to what is too large, which must never be rendered."""
        served = Served(hi, LIMITS)
        served.client.send(*pieces)
        assert served.requests == []
        answer = served.client.answer()
        assert (b"Connection", b"close") in answer.headers
        assert answer.json["message"]
        assert served.client.ending == "half-closed"
        return answer

    def test_a_target_of_just_the_limit_is_taken(self) -> None:
        served = Served(hi, LIMITS)
        served.client.send(path(b"x" * 99))
        assert served.client.answer().status == 200

    def test_a_longer_target_is_refused(self) -> None:
        assert self.refusal(path(b"x" * 100)).status == 414

    @pytest.mark.parametrize("pieces", [[b"x"] * 100, [b"x" * 5000]])
    def test_a_target_is_refused_while_it_comes(self, pieces: list[bytes]) -> None:
        assert self.refusal(b"GET /", *pieces).status == 414

    def test_headers_of_nearly_the_limit_are_taken(self) -> None:
        served = Served(hi, LIMITS)
        served.client.send(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 900 + b"\r\n\r\n")
        assert served.client.answer().status == 200

    @pytest.mark.parametrize(
        "lines",
        [b"X: " + b"x" * 1000 + b"\r\n", b"X: 1\r\n" * 200, b"X" * 1000 + b": 1\r\n"],
        ids=["long", "many", "name"],
    )
    @pytest.mark.parametrize("size", [1, 100, 5000])
    def test_larger_headers_are_refused(self, lines: bytes, size: int) -> None:
        message = b"GET / HTTP/1.1\r\n" + HOST + lines + b"\r\n"
        pieces = [message[start : start + size] for start in range(0, len(message), size)]
        assert self.refusal(*pieces).status == 431

    def test_a_header_without_an_end_is_refused(self) -> None:
        assert self.refusal(b"GET / HTTP/1.1\r\nX: ", *[b"x" * 100] * 10).status == 431

    def test_empty_lines_without_an_end_are_refused(self) -> None:
        assert self.refusal(*[b"\r\n" * 50] * 11).status == 431

    def test_a_body_that_comes_with_the_headers_does_not_count(self) -> None:
        served = Served(echo, LIMITS)
        served.client.send(POST + b"Content-Length: 5000\r\n\r\n" + b"x" * 5000)
        assert b"x" * 5000 in served.client.answer().body

    def test_headers_count_for_each_request_anew(self) -> None:
        served = Served(hi, LIMITS)
        message = b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 700 + b"\r\n\r\n"
        served.client.send(message + message[:400], message[400:], message)
        assert [answer.status for answer in served.client.answers()] == [200] * 3

    @pytest.mark.parametrize("size", [20, 500, 5000])
    def test_larger_headers_behind_another_request_are_refused_too(self, size: int) -> None:
        stream = GET + b"GET /2 HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 1000 + b"\r\n\r\n"
        served = Served(hi, LIMITS)
        served.client.send(*(stream[start : start + size] for start in range(0, len(stream), size)))
        assert [answer.status for answer in served.client.answers()] == [200, 431]

    def test_a_body_may_be_larger_than_headers(self) -> None:
        served = Served(echo, LIMITS)
        served.client.send(CHUNKED, *[b"64\r\n" + b"x" * 100 + b"\r\n"] * 100, b"0\r\n\r\n")
        assert b"x" * 10_000 in served.client.answer().body

    @pytest.mark.parametrize(
        "pieces",
        [
            [b"0\r\n", *[b"X: " + b"x" * 95 + b"\r\n"] * 11],
            [b"0\r\nX: ", *[b"x" * 100] * 11],
            [b"5;", *[b"x" * 100] * 11],
        ],
        ids=["trailers", "one trailer", "chunk extension"],
    )
    def test_what_is_no_body_is_limited_within_a_body_too(self, pieces: list[bytes]) -> None:
        served = Served(limits=LIMITS)
        served.client.send(CHUNKED)
        sink = Sink(served.request.body)
        served.client.send(*pieces)
        assert sink.ended is BrokenBody
        assert "trailers" in str(served.request.body and served.request.body._failure)

    def test_a_method_without_an_end_is_refused(self) -> None:
        assert self.refusal(*[b"x"] * 65).status == 501


def outcome(served: Served) -> tuple[list[object], bytes, str]:
    """What came of all that was sent: requests, what was written, and how the connection stands."""
    served.client.turn()
    requests: list[object] = [
        (request.method, request.uri, request.requestHeaders.pairs) for request in served.requests
    ]
    # A client that waits is told to continue only where its body did not come with the headers.
    return requests, served.client.received.replace(CONTINUE, b""), served.client.ending


MESSAGES = [
    GET,
    b"\r\nget /x?y HTTP/1.1\r\nhost: a\r\nX-One:  1 \t\r\nX-ONE:\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n",
    LENGTH + b"0123456789",
    CHUNKED + chunks(b"0123456789", b"\r\n0\r\n\r\n", trailers=b"X-Sum: 1\r\n"),
    CHUNKED + b'5;a=b;c="d e"\r\n01234\r\n0\r\n\r\n',
    POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
    POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(b"body"),
    HANDSHAKE,
    EXPECT + b"0123456789",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    CHUNKED + b"nonsense",
    b"\x16\x03\x01\x02\x00",
]


class TestSplits:
    """Where reads end tells nothing, and changes nothing."""

    @pytest.mark.parametrize("message", MESSAGES)
    def test_a_message_may_be_split_anywhere(self, message: bytes) -> None:
        whole = outcome(self.sent(message))
        assert outcome(self.sent(*(message[index : index + 1] for index in range(len(message))))) == whole
        for position in range(1, len(message)):
            assert outcome(self.sent(message[:position], message[position:])) == whole

    def sent(self, *pieces: bytes) -> Served:
        """Send pieces to a page that tells what it got."""
        served = Served(echo)
        served.client.send(*pieces)
        return served

    @given(
        messages=st.lists(
            st.sampled_from([message for message in MESSAGES if b"get" not in message]),
            min_size=1,
            max_size=5,
        ),
        cuts=st.lists(st.integers(0, 1000), max_size=20),
    )
    @settings(deadline=None)
    def test_a_pipeline_may_be_split_anywhere(self, messages: list[bytes], cuts: list[int]) -> None:
        stream = b"".join(messages)
        places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
        pieces = [stream[start:end] for start, end in pairwise(places)]
        *whole, whole_ending = outcome(self.sent(stream))
        *split, split_ending = outcome(self.sent(*pieces))
        assert split == whole
        # Whether we wait for the client to close first depends on whether more of it was seen coming.
        assert split_ending == whole_ending or {split_ending, whole_ending} == {"closed", "half-closed"}


FRAGMENTS = [
    b"GET ", b"POST ", b"get ", b"/", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", HOST, b"Host: x", b"\r\n", b"\n", b"\r", b": ",
    b"Content-Length: ", b"5", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\r\n\r\n", b"\x00",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Connection: close\r\n",
    b"Expect: 100-continue\r\n", GET, LENGTH, CHUNKED, HANDSHAKE, b"x" * 1000,
]  # fmt: skip


class TestHostileInput:
    @given(
        pieces=st.lists(st.one_of(st.binary(max_size=50), st.sampled_from(FRAGMENTS)), max_size=15),
        act=st.sampled_from([echo, hi, lambda _: None]),
        joined=st.booleans(),
        waits=st.lists(st.sampled_from([0.0, 1.0, 31.0, 61.0]), max_size=5),
    )
    @example(pieces=[GET + b"GET / HTTP/1.1\r\nX: a ", b"b c"], act=hi, joined=False, waits=[])
    @settings(deadline=None, max_examples=300)
    def test_nothing_is_raised_and_nothing_is_left_behind(
        self, pieces: list[bytes], act: Callable[[Request], object], joined: bool, waits: list[float]
    ) -> None:
        served = Served(act, LIMITS)
        served.client.send(*([b"".join(pieces)] if joined else [piece for piece in pieces if piece]))
        for wait in waits:
            served.clock.advance(wait)
        if served.client.ending not in ("closed", "reset"):
            served.client.leave()
        served.client.turn()
        assert served.clock.getDelayedCalls() == []
        assert served.site.open == 0

    @given(st.binary(min_size=1, max_size=200))
    @settings(deadline=None)
    def test_what_is_no_request_is_answered_by_an_error_or_waited_for(self, data: bytes) -> None:
        served = Served(hi, LIMITS)
        served.client.send(data)
        if served.requests == []:
            served.clock.advance(LIMITS.header_time)
            assert served.client.answer().status in (400, 408, 414, 431, 501)


def test_a_refusal_is_logged_without_what_was_sent() -> None:
    served = Served(hi)
    with log_lines() as lines:
        served.client.send(b"GET /?key=secret HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n")
    (line,) = lines
    assert "one Host header" in line
    assert "secret" not in line
    assert b"secret" not in served.client.received


def test_two_connections_know_nothing_of_each_other() -> None:
    served = Served(hi)
    other = Connection(served.site, served.clock)
    served.client.send(GET[:10])
    other.send(GET)
    served.client.send(GET[10:])
    assert served.client.received == other.received


class TestClientThatIsNotRead:
    def test_it_is_looked_for_and_its_leaving_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        left: list[bool] = []
        monkeypatch.setattr("llmproxy.http.departure.has_left", lambda _: bool(left))
        served = Served()
        served.client.send(path(b"slow"), path(b"queued"))
        served.clock.advance(5)
        assert served.client.ending == "open"
        left.append(True)
        served.clock.advance(1)
        assert served.client.ending == "reset"

    def test_it_is_not_looked_for_while_it_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llmproxy.http.departure.has_left", lambda _: True)
        served = Served()
        served.client.send(path(b"slow"))
        served.clock.advance(5)
        assert served.client.ending == "open"


class TestClientThatDoesNotRead:
    """Answers that nobody reads must not pile up, whatever made them."""

    def test_no_more_of_its_requests_are_served_until_it_reads(self) -> None:
        served = Served(hi)
        served.client.send(GET)
        served.client.stop_reading()
        served.client.send(GET, GET)
        assert len(served.requests) == 1
        assert served.client.unread > 0
        served.client.read_on()
        served.client.turn()
        assert len(served.client.answers()) == 3
        assert served.client.unread == 0

    def test_of_those_in_one_read_neither(self) -> None:
        def answer(request: Request) -> None:
            hi(request)
            if len(served.requests) == 3:
                served.client.stop_reading()

        served = Served(answer)
        served.client.send(GET * 5)
        assert len(served.requests) == 3
        served.client.read_on()
        served.client.turn()
        assert len(served.client.answers()) == 5

    def test_thousands_in_one_read_are_not_all_made_requests_at_once(self) -> None:
        def answer(request: Request) -> None:
            hi(request)
            served.client.stop_reading()

        served = Served(answer)
        served.client.send(GET * 5000)
        assert len(served.client.channel.requests) < 500
        assert served.client.transport.paused
        while len(served.requests) < 5000:
            before = len(served.requests)
            served.client.read_on()
            served.client.turn()
            assert len(served.requests) > before
        served.client.read_on()
        assert len(served.client.answers()) == 5000

    @pytest.mark.parametrize("length", [1, 8000, 8192, 20_000, 70_000, 200_000])
    def test_a_body_among_them_is_whole_whatever_is_parsed_at_once(self, length: int) -> None:
        bodies: list[bytes | None] = []

        def answer(request: Request) -> None:
            bodies.append(None if request.body is None else request.body.whole())
            hi(request)

        served = Served(answer)
        body = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
        upload = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % length + body
        served.client.send(GET * 300 + upload + GET * 300 + upload)
        assert bodies == [None] * 300 + [body] + [None] * 300 + [body]
        assert len(served.client.answers()) == 602

    def test_what_is_left_of_a_read_is_dropped_with_its_connection(self) -> None:
        served = Served()
        served.client.send(GET * 5000)
        served.client.leave()
        assert len(served.requests) == 1
        assert served.client.channel.requests == []

    def test_what_is_malformed_behind_many_is_refused_in_its_turn(self) -> None:
        served = Served(hi)
        served.client.send(GET * 1000 + b"GET / HTTP/1.1\r\nno header\r\n\r\n" + GET * 1000)
        answers = served.client.answers()
        assert [answer.status for answer in answers] == [200] * 1000 + [400]

    def test_a_response_with_a_producer_goes_on_at_its_own_pace(self) -> None:
        served = Served()
        served.client.send(LENGTH)
        served.client.stop_reading()
        assert served.client.transport.paused
        flow = Flow()
        served.requests[0].registerProducer(flow, True)
        assert flow.told == ["pause"]
        served.client.send(b"0123456789" + GET)
        assert served.requests[0].body is not None
        sink = Sink(served.requests[0].body)
        served.client.turn()
        assert sink.data == b"0123456789"  # its upload goes on
        served.client.read_on()
        assert flow.told == ["pause", "resume"]
        served.requests[0].unregisterProducer()
        hi(served.requests[0])
        assert len(served.requests) == 2

    def test_what_is_full_when_a_producer_is_done_is_waited_for(self) -> None:
        served = Served()
        served.client.send(GET + GET)
        flow = Flow()
        served.requests[0].registerProducer(flow, True)
        served.client.stop_reading()
        served.requests[0].unregisterProducer()
        hi(served.requests[0])
        assert len(served.requests) == 1
        served.client.read_on()
        assert len(served.requests) == 2

    def test_it_has_a_time_to_read(self) -> None:
        served = Served(hi, LIMITS)
        served.client.send(GET)
        served.client.stop_reading()
        served.client.send(GET)
        served.clock.advance(LIMITS.close_time - 0.1)
        assert served.client.ending == "open"
        served.clock.advance(0.1)
        assert served.client.ending == "reset"


def test_a_fault_of_our_own_is_logged_and_told_as_one(
    monkeypatch: pytest.MonkeyPatch, logged_failures: LoggedFailures
) -> None:
    monkeypatch.setattr("llmproxy.http.request_reader.rules.body_length", lambda *_: 1 // 0)
    served = Served(hi)
    served.client.send(GET)
    assert served.client.answer().status == 500
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
