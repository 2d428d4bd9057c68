"""How a request is rendered, and how its response is framed."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, Resource
from zope.interface.verify import verifyObject

from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IStreamedRequest
from llmproxy.http.request import Request
from tests.conftest import LoggedFailures
from tests.http_support import GET, HOST, Flow, Page, Served, Sink, hi
from tests.support import log_lines

OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


class TestRequest:
    def test_it_is_a_streamed_request(self) -> None:
        served = Served()
        served.client.send(GET)
        verifyObject(IStreamedRequest, served.request)

    def test_everything_is_there_as_it_was_sent(self) -> None:
        served = Served()
        served.client.send(
            b"PUT /a%2Fb/c?d=e&d=%66 HTTP/1.1\r\nhost: x\r\nX-one:  spaced \t\r\nX-ONE:\r\nX-Latin: caf\xe9\r\n\r\n"
        )
        request = served.request
        assert request.method == b"PUT"
        assert request.uri == b"/a%2Fb/c?d=e&d=%66"
        assert request.path == b"/a%2Fb/c"
        assert request.clientproto == b"HTTP/1.1"
        assert request.requestHeaders.pairs == [
            (b"host", b"x"),
            (b"X-one", b"spaced"),
            (b"X-ONE", b""),
            (b"X-Latin", b"caf\xe9"),
        ]
        assert request.getClientAddress().host == "127.0.0.1"
        assert request.getHost().port == 33000

    def test_the_query_is_parsed_for_who_asks(self) -> None:
        served = Served()
        served.client.send(b"GET /?a=1&b=&a=%32 HTTP/1.1\r\n" + HOST + b"\r\n")
        assert served.request.args == {b"a": [b"1", b"2"], b"b": [b""]}

    def test_repr_shows_no_query(self) -> None:
        served = Served()
        served.client.send(b"GET /path?key=secret HTTP/1.1\r\n" + HOST + b"\r\n")
        assert repr(served.request) == "<Request GET b'/path'>"

    def test_segments_are_not_decoded(self) -> None:
        seen: list[bytes] = []

        class Root(Resource):
            def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
                seen.extend([path, *request.postpath])
                return Page(hi)

        Served(root=Root()).client.send(b"GET /a%2Fb/c%20d?e/f HTTP/1.1\r\n" + HOST + b"\r\n")
        assert seen == [b"a%2Fb", b"c%20d"]

    def test_an_asterisk_is_routed_like_any_other_target(self) -> None:
        served = Served(hi)
        served.client.send(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")
        assert served.request.uri == b"*"
        assert served.client.answer(b"OPTIONS").body == b"hi"


class TestAnyResource:
    """What is written for twisted.web is rendered too."""

    class Stock(Resource):
        isLeaf = True

        def render_GET(self, request: Request) -> bytes:
            return b"whole"

    @pytest.mark.parametrize(("method", "body"), [(b"GET", b"whole"), (b"HEAD", b"")])
    def test_bytes_that_it_returns_are_the_body(self, method: bytes, body: bytes) -> None:
        served = Served(root=self.Stock())
        served.client.send(method + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = served.client.answer(method)
        assert (answer.status, answer.body) == (200, body)
        assert (b"5") in [value for name, value in answer.headers if name.lower() == b"content-length"]


class TestFraming:
    def test_a_length_stays_and_no_header_is_added(self) -> None:
        served = Served(hi)
        served.client.send(GET)
        assert served.client.received == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

    def test_a_body_without_a_length_is_chunked(self) -> None:
        served = Served()
        served.client.send(GET)
        request = served.request
        request.write(b"")
        assert served.client.received == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        request.write(b"x" * 20)
        request.write(b"")
        assert served.client.received.endswith(b"\r\n\r\n14\r\n" + b"x" * 20 + b"\r\n")
        request.finish()
        assert served.client.received.endswith(b"\r\n0\r\n\r\n")
        assert served.client.ending == "open"

    def test_trailers_follow_a_chunked_body(self) -> None:
        served = Served()
        served.client.send(GET)
        served.request.write(b"hi")
        served.request.responseTrailers = Fields([(b"X-Sum", b"1"), (b"x-Other", b"")])
        served.request.finish()
        answer = served.client.answer()
        assert answer.body == b"hi"
        assert answer.trailers == [(b"X-Sum", b"1"), (b"x-Other", b"")]

    @pytest.mark.parametrize("request_", [GET, OLD])
    def test_a_body_that_is_not_chunked_has_no_trailers(self, request_: bytes) -> None:
        served = Served()
        served.client.send(request_)
        served.request.setHeader(b"Content-Length", b"2")
        served.request.responseTrailers = Fields([(b"X-Sum", b"1")])
        served.request.write(b"hi")
        served.request.finish()
        assert served.client.received.endswith(b"\r\n\r\nhi")

    @pytest.mark.parametrize(
        ("method", "code"), [(b"HEAD", 200), (b"HEAD", 404), (b"GET", 204), (b"GET", 304), (b"POST", 204)]
    )
    @pytest.mark.parametrize("length", [None, b"1234"])
    def test_a_response_that_has_no_body_gets_no_framing_and_keeps_its_own(
        self, method: bytes, code: int, length: bytes | None
    ) -> None:
        served = Served()
        served.client.send(method + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
        served.request.setResponseCode(code)
        if length is not None:
            served.request.setHeader(b"Content-Length", length)
        served.request.write(b"what is written of a body is dropped")
        served.request.finish()
        answer = served.client.answer(method)
        assert (answer.status, answer.body) == (code, b"")
        assert answer.headers == ([] if length is None else [(b"Content-Length", length)])
        assert served.client.ending == "open"

    @pytest.mark.parametrize("written", [b"", b"h"])
    def test_after_a_body_that_is_shorter_than_announced_the_connection_is_closed(
        self, written: bytes
    ) -> None:
        served = Served()
        served.client.send(GET)
        served.request.setHeader(b"Content-Length", b"2")
        served.request.write(written)
        served.request.finish()
        assert served.client.received.endswith(b"\r\n\r\n" + written)
        assert served.client.ending == "closed"

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            ((200,), b"200 OK"),
            ((404,), b"404 Not Found"),
            ((529,), b"529 Unknown Status"),
            ((200, b""), b"200 "),
            ((529, b""), b"529 "),
            ((200, b"Fine by me"), b"200 Fine by me"),
        ],
    )
    def test_the_reason_phrase_is_the_one_that_is_given(
        self, arguments: tuple[Any, ...], line: bytes
    ) -> None:
        def act(request: Request) -> None:
            request.setResponseCode(*arguments)
            hi(request)

        served = Served(act)
        served.client.send(GET)
        assert served.client.received.startswith(b"HTTP/1.1 " + line + b"\r\n")

    def test_the_headers_of_any_kind_are_written(self) -> None:
        served = Served()
        served.client.send(GET)
        served.request.responseHeaders = Headers({b"content-length": [b"0"], b"x-twice": [b"1", b"2"]})
        served.request.finish()
        assert sorted(served.client.answer().headers) == [
            (b"Content-Length", b"0"),
            (b"X-Twice", b"1"),
            (b"X-Twice", b"2"),
        ]


class TestOldClients:
    """HTTP/1.0: no chunks, no interim responses, and a connection that is kept only for who asks (RFC 9112 section 9.3)."""

    def test_the_connection_is_closed_after_a_response(self) -> None:
        served = Served(hi)
        served.client.send(OLD)
        assert (
            served.client.received == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
        )
        assert served.client.ending == "closed"

    def test_it_is_kept_for_a_client_that_asks(self) -> None:
        served = Served(hi)
        served.client.send(OLD_KEPT, OLD_KEPT)
        first, second = served.client.answers()
        assert first == second
        assert first.headers == [(b"Content-Length", b"2"), (b"Connection", b"keep-alive")]
        assert served.client.ending == "open"

    @pytest.mark.parametrize("request_", [OLD, OLD_KEPT])
    def test_a_body_without_a_length_ends_with_the_connection(self, request_: bytes) -> None:
        served = Served()
        served.client.send(request_)
        served.request.write(b"to the")
        served.request.write(b" end")
        assert served.client.ending == "open"
        served.request.finish()
        assert served.client.received == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end"
        assert served.client.ending == "closed"

    def test_a_response_without_a_body_keeps_the_connection(self) -> None:
        served = Served()
        served.client.send(OLD_KEPT.replace(b"GET", b"HEAD"))
        served.request.finish()
        assert served.client.answer(b"HEAD").headers == [(b"Connection", b"keep-alive")]
        assert served.client.ending == "open"

    def test_they_are_told_of_no_interim_response(self) -> None:
        served = Served()
        served.client.send(OLD)
        served.request.writeInformational(103, b"Early Hints", Fields())
        assert served.client.received == b""


class TestInterim:
    def test_it_precedes_the_response(self) -> None:
        served = Served()
        served.client.send(GET)
        served.request.writeInformational(103, b"Early Hints", Fields([(b"Link", b"</style.css>")]))
        served.request.writeInformational(102, b"Processing", Fields())
        assert served.client.received == (
            b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        )
        hi(served.request)
        assert [answer.status for answer in served.client.answers()] == [103, 102, 200]

    def test_it_cannot_follow_the_headers_of_the_response(self) -> None:
        served = Served()
        served.client.send(GET)
        served.request.write(b"")
        received = served.client.received
        served.request.writeInformational(103, b"Early Hints", Fields())
        assert served.client.received == received

    def test_it_is_not_for_a_client_that_left(self) -> None:
        served = Served()
        served.client.send(GET)
        served.client.leave()
        served.request.writeInformational(103, b"Early Hints", Fields())
        assert served.client.received == b""


class TestFinish:
    def test_it_is_told(self) -> None:
        served = Served()
        served.client.send(GET)
        told: list[object] = []
        served.request.notifyFinish().addCallback(told.append)
        hi(served.request)
        assert told == [None]

    def test_a_second_one_does_nothing(self) -> None:
        served = Served(hi)
        served.client.send(GET)
        served.request.finish()
        assert served.client.answer().body == b"hi"

    def test_nothing_can_be_written_after_it(self) -> None:
        served = Served(hi)
        served.client.send(GET)
        with pytest.raises(RuntimeError, match="finish was called"):
            served.request.write(b"more")

    def test_a_client_that_left_cannot_be_answered(self) -> None:
        served = Served()
        served.client.send(GET)
        told: list[object] = []
        served.request.notifyFinish().addErrback(told.append)
        served.client.leave()
        assert len(told) == 1
        served.request.write(b"into the void")
        with pytest.raises(RuntimeError, match="connection was lost"):
            served.request.finish()
        assert served.client.received == b""


class TestProducers:
    def test_a_producer_follows_the_client(self) -> None:
        served = Served()
        served.client.send(GET)
        flow = Flow()
        served.request.registerProducer(flow, True)
        served.client.stop_reading()
        served.client.read_on()
        assert flow.told == ["pause", "resume"]

    def test_a_producer_behind_a_full_connection_is_paused_at_once(self) -> None:
        served = Served()
        served.client.send(GET)
        served.client.stop_reading()
        flow = Flow()
        served.request.registerProducer(flow, True)
        assert flow.told == ["pause"]

    def test_one_that_is_unregistered_follows_no_more(self) -> None:
        served = Served()
        served.client.send(GET)
        flow = Flow()
        served.request.registerProducer(flow, True)
        served.request.unregisterProducer()
        served.request.unregisterProducer()
        served.client.stop_reading()
        assert flow.told == []

    def test_it_is_stopped_when_the_client_leaves_and_can_be_unregistered_then(self) -> None:
        served = Served()
        served.client.send(GET)
        flow = Flow()
        served.request.registerProducer(flow, True)
        served.client.leave()
        assert flow.told == ["stop"]
        served.request.unregisterProducer()


class TestFailures:
    def test_an_exception_is_logged_and_answered_in_json(self, logged_failures: LoggedFailures) -> None:
        served = Served(lambda _: 1 // 0)
        with log_lines() as lines:
            served.client.send(b"GET /path?key=hidden HTTP/1.1\r\n" + HOST + b"\r\n")
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        (line,) = lines
        assert "/path" in line
        assert "hidden" not in line
        answer = served.client.answer()
        assert answer.status == 500
        assert answer.json["error"] == "internal_error"
        assert served.client.ending == "open"

    def test_an_exception_after_the_headers_resets_the_connection(
        self, logged_failures: LoggedFailures
    ) -> None:
        def fail(request: Request) -> None:
            request.write(b"begun")
            raise ZeroDivisionError

        served = Served(fail)
        served.client.send(GET)
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert served.client.ending == "reset"
        assert not served.client.answer().whole

    def test_a_tree_that_fails_is_answered_too(self, logged_failures: LoggedFailures) -> None:
        class Broken(Resource):
            def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
                raise ZeroDivisionError

        served = Served(root=Broken())
        served.client.send(GET)
        logged_failures.flush(ZeroDivisionError)
        assert served.client.answer().status == 500

    def test_a_failure_before_the_whole_upload_closes_the_connection(
        self, logged_failures: LoggedFailures
    ) -> None:
        served = Served(lambda _: 1 // 0)
        served.client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nhalf")
        logged_failures.flush(ZeroDivisionError)
        assert (b"Connection", b"close") in served.client.answer().headers
        assert served.client.ending == "half-closed"


def test_a_response_that_begins_before_the_upload_is_over_ends_the_connection() -> None:
    served = Served()
    served.client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nfirst")
    request = served.request
    sink = Sink(request.body)
    request.write(b"early")
    served.client.send(b"later")
    assert sink.ended == "whole"
    request.finish()
    answer = served.client.answer()
    assert (b"Connection", b"close") in answer.headers
    assert answer.body == b"early"
    assert served.client.ending == "closed"
