from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.iweb import UNKNOWN_LENGTH
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer
from zope.interface.verify import verifyObject

from llmproxy.http.interfaces import IStreamedRequest
from llmproxy.http.server import IDLE_CONNECTION, Request, Site
from tests.conftest import LoggedFailures
from tests.support import ClientConnection, connect, log_lines


class Page(Resource):
    """Does with a request what the test wants."""

    isLeaf = True

    def __init__(self, act: Callable[[Any], object]) -> None:
        super().__init__()
        self._act = act

    def render(self, request: Request) -> int:
        self._act(request)
        return NOT_DONE_YET


class Served:
    """A client of a Site with one page, and the requests that came there."""

    def __init__(self, act: Callable[[Any], object] = lambda _: None, root: IResource | None = None) -> None:
        self.clock = Clock()
        self.requests: list[Any] = []

        def keep(request: Any) -> None:
            self.requests.append(request)
            act(request)

        self.site = Site(root or Page(keep), self.clock)
        self.client: ClientConnection = connect(self.site, self.clock)

    @property
    def request(self) -> Any:
        (request,) = self.requests
        return request


def answer(request: Any) -> None:
    """Answer with nothing but what is asked for."""
    request.setHeader(b"Content-Length", b"2")
    request.write(b"hi")
    request.finish()


class TestAnswers:
    def test_no_header_is_added(self) -> None:
        served = Served(answer)
        served.client.ask(b"/")
        assert served.client.received == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

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
        def act(request: Any) -> None:
            request.setResponseCode(*arguments)
            answer(request)

        served = Served(act)
        served.client.ask(b"/")
        assert served.client.received.startswith(b"HTTP/1.1 " + line + b"\r\n")

    def test_nothing_is_logged_for_a_request(self) -> None:
        served = Served(answer)
        served.site.startFactory()
        with log_lines() as lines:
            served.client.ask(b"/?key=hidden")
        served.site.stopFactory()
        assert lines == []

    def test_a_form_is_not_parsed(self) -> None:
        served = Served()
        served.client.ask(
            b"/", method=b"POST", headers=[(b"Content-Type", b"multipart/form-data")], body=b"no form"
        )
        assert served.request.content.read() == b"no form"


class TestRouting:
    def test_segments_are_not_decoded(self) -> None:
        seen: list[bytes] = []

        class Root(Resource):
            def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
                seen.extend([path, *request.postpath])
                return Page(answer)

        served = Served(root=Root())
        served.client.ask(b"/a%2Fb/c%20d?e/f")
        assert seen == [b"a%2Fb", b"c%20d"]

    def test_an_asterisk_is_routed_like_any_other_target(self) -> None:
        served = Served(answer)
        served.client.ask(b"*", method=b"OPTIONS")
        assert served.request.uri == b"*"
        assert served.client.received.endswith(b"hi")


class TestFailures:
    def test_an_exception_is_logged_and_answered_in_json(self, logged_failures: LoggedFailures) -> None:
        served = Served(lambda _: 1 // 0)
        with log_lines() as lines:
            served.client.ask(b"/path?key=hidden")
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert len(lines) == 1
        assert "/path" in lines[0]
        assert "hidden" not in lines[0]
        response = served.client.response()
        assert response.status == 500
        assert response.json()["error"] == "internal_error"
        assert served.client.ending == "open"

    def test_an_exception_after_the_headers_resets_the_connection(
        self, logged_failures: LoggedFailures
    ) -> None:
        def fail(request: Any) -> None:
            request.write(b"begun")
            raise ZeroDivisionError

        served = Served(fail)
        served.client.ask(b"/")
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        assert served.client.ending == "reset"
        served.clock.advance(0)
        assert not served.client.response().whole

    def test_a_tree_that_fails_is_answered_too(self, logged_failures: LoggedFailures) -> None:
        class Broken(Resource):
            def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
                raise ZeroDivisionError

        served = Served(root=Broken())
        served.client.ask(b"/")
        logged_failures.flush(ZeroDivisionError)
        assert served.client.response().status == 500


@implementer(IPushProducer)
class Flow:
    """A producer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class TestProducers:
    def test_a_producer_follows_the_client(self) -> None:
        served = Served()
        served.client.ask(b"/")
        flow = Flow()
        served.request.registerProducer(flow, True)
        served.client.stop_reading()
        served.client.read_on()
        assert flow.told == ["pause", "resume"]

    def test_a_producer_behind_a_full_connection_is_paused_at_once(self) -> None:
        served = Served()
        served.client.ask(b"/")
        served.client.stop_reading()
        flow = Flow()
        served.request.registerProducer(flow, True)
        assert flow.told == ["pause"]
        served.client.read_on()
        assert flow.told == ["pause", "resume"]


class Slow(StringTransport):
    """A consumer of a request's body that takes one piece at a time."""

    def take(self, producer: Any) -> bytes:
        """Ask for a piece."""
        self.clear()
        producer.resumeProducing()
        taken: bytes = self.value()
        return taken

    def write(self, data: bytes) -> None:
        super().write(data)
        self.body.pauseProducing()

    body: Any


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class TestBody:
    def test_it_is_part_of_a_streamed_request(self) -> None:
        served = Served()
        served.client.ask(b"/", method=b"POST", body=b"hello")
        verifyObject(IStreamedRequest, served.request)

    @pytest.mark.parametrize("body", [b"", b"hello", b"x" * 200_000])
    def test_a_body_with_a_length_is_produced_with_it(self, body: bytes) -> None:
        served = Served()
        served.client.ask(b"/", method=b"POST", body=body)
        assert produced(served.request.body) == (len(body), body)

    @pytest.mark.parametrize("chunks", [[], [b"hello"], [b"x" * 70_000, b"y" * 70_000]])
    def test_a_chunked_body_is_produced_without_a_length(self, chunks: list[bytes]) -> None:
        served = Served()
        served.client.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*chunks)
        )
        assert produced(served.request.body) == (UNKNOWN_LENGTH, b"".join(chunks))

    @pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
    def test_no_body_is_not_an_empty_one(self, method: bytes) -> None:
        served = Served()
        served.client.ask(b"/", method=method)
        assert served.request.body is None

    def test_a_slow_consumer_gets_it_piece_by_piece(self) -> None:
        served = Served()
        body = bytes(range(256)) * 1000
        served.client.ask(b"/", method=b"POST", body=body)
        producer = served.request.body
        slow = Slow()
        slow.body = producer
        done: list[object] = []
        producer.startProducing(slow).addCallback(done.append)
        pieces = [slow.value()]
        while not done:
            pieces.append(slow.take(producer))
        assert len(pieces) > 3
        assert b"".join(pieces) == body

    @pytest.mark.parametrize("end", ["stop", "cancel"])
    def test_a_consumer_that_wants_no_more_gets_no_more(self, end: str) -> None:
        served = Served()
        served.client.ask(b"/", method=b"POST", body=b"x" * 200_000)
        producer = served.request.body
        slow = Slow()
        slow.body = producer
        started = producer.startProducing(slow)
        if end == "stop":
            producer.stopProducing()
        else:
            started.addErrback(lambda _: None)
            started.cancel()
        assert slow.take(producer) == b""

    @pytest.mark.xfail(
        strict=True, reason="the body is read on from a file that is closed when its request is over"
    )
    def test_a_consumer_may_ask_on_when_the_request_is_over(self) -> None:
        # An upstream that answers early, for example with 413, still takes what was being sent to it.
        served = Served()
        served.client.ask(b"/", method=b"POST", body=b"x" * 200_000)
        producer = served.request.body
        slow = Slow()
        slow.body = producer
        producer.startProducing(slow).addErrback(lambda _: None)
        answer(served.request)
        slow.take(producer)


def produced(producer: Any) -> tuple[object, bytes]:
    """The length and the bytes of a body."""
    wire = StringTransport()
    done: list[object] = []
    producer.startProducing(wire).addCallback(done.append)
    assert done == [None]
    return producer.length, wire.value()


def test_an_idle_connection_is_closed() -> None:
    served = Served(answer)
    served.client.ask(b"/")
    served.clock.advance(IDLE_CONNECTION - 1)
    assert served.client.ending == "open"
    served.clock.advance(1)
    assert served.client.ending == "closed"
    served.clock.advance(0)


def test_a_connection_with_a_request_in_flight_is_not_idle() -> None:
    served = Served()
    served.client.ask(b"/")
    served.clock.advance(10 * IDLE_CONNECTION)
    assert served.client.ending == "open"
