from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.interfaces import IPushProducer
from twisted.web.client import PotentialDataLoss, ResponseDone, ResponseFailed
from zope.interface.verify import verifyObject

from llmproxy.http.fields import Fields
from llmproxy.http.interfaces import IAbortableResponse
from llmproxy.http.response import MalformedResponse, body_length
from tests.upstream_support import OK, RESET, Reader, Upload, Upstream, read

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CLOSE_DELIMITED = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def test_it_is_a_response_and_a_producer(upstream: Upstream) -> None:
    response = upstream.exchange(HEAD)
    assert verifyObject(IAbortableResponse, response)
    assert verifyObject(IPushProducer, response)


def test_it_comes_of_no_redirect(upstream: Upstream) -> None:
    response = upstream.exchange(HEAD)
    response.setPreviousResponse(upstream.exchange)
    assert response.previousResponse is None


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (HEAD + b"0123456789", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (HEAD, False),
        (HEAD + b"012345678", False),
        (CLOSE_DELIMITED + b"0123456789", False),
    ],
)
def test_it_is_told_whether_all_of_it_came_with_its_headers(
    upstream: Upstream, answer: bytes, whole: bool
) -> None:
    assert upstream.exchange(answer).whole is whole


class TestDelivery:
    def test_what_came_before_there_was_a_reader_is_delivered_first(self, upstream: Upstream) -> None:
        response = upstream.exchange(HEAD + b"01")
        upstream.wire.receive(b"23")
        reader = read(response)
        upstream.wire.receive(b"45")
        assert reader.chunks == [b"01", b"23", b"45"]

    def test_the_upstream_waits_until_there_is_a_reader(self, upstream: Upstream) -> None:
        response = upstream.exchange(HEAD)
        upstream.wire.receive(b"01")
        assert not upstream.wire.reading
        read(response)
        assert upstream.wire.reading

    def test_the_upstream_is_not_paused_for_a_reader_that_is_there_in_time(self, upstream: Upstream) -> None:
        outcome, reader = upstream.ask(), Reader()
        outcome.deferred.addCallback(lambda _: read(outcome.result, reader))
        upstream.wire.receive(HEAD + b"01")
        assert reader.body == b"01"
        assert upstream.wire.reading

    @pytest.mark.parametrize(
        ("answer", "loss", "end"),
        [
            (OK, None, ResponseDone),
            (CLOSE_DELIMITED + b"ok", error.ConnectionDone(), PotentialDataLoss),
            (HEAD + b"ok", error.ConnectionDone(), ResponseFailed),
            (CLOSE_DELIMITED + b"ok", RESET, ResponseFailed),
        ],
    )
    def test_a_late_reader_is_told_of_the_body_and_its_end(
        self, upstream: Upstream, answer: bytes, loss: Exception | None, end: type[Exception]
    ) -> None:
        response = upstream.exchange(answer)
        if loss is not None:
            upstream.wire.lose(loss)
        reader = read(response)
        assert reader.body == b"ok"
        assert reader.end.check(end)

    def test_a_late_reader_does_not_touch_the_next_exchange(self, upstream: Upstream) -> None:
        response = upstream.exchange(OK)
        read(upstream.exchange(HEAD), Reader(lambda reader: reader.transport.pauseProducing()))
        assert not upstream.wire.reading
        assert read(response).body == b"ok"
        assert not upstream.wire.reading


class TestPace:
    def test_a_reader_can_pause_and_resume_the_upstream(self, upstream: Upstream) -> None:
        reader = read(upstream.exchange(HEAD))
        reader.transport.pauseProducing()
        assert not upstream.wire.reading
        reader.transport.resumeProducing()
        assert upstream.wire.reading

    @pytest.mark.parametrize("early", [b"", b"01"])
    def test_a_pause_that_a_reader_asks_for_at_once_holds(self, upstream: Upstream, early: bytes) -> None:
        response = upstream.exchange(HEAD + early)
        reader = read(response, Reader(lambda reader: reader.transport.pauseProducing()))
        assert not upstream.wire.reading
        reader.transport.resumeProducing()
        assert upstream.wire.reading

    def test_a_pause_that_a_reader_asks_for_with_its_first_bytes_holds(self, upstream: Upstream) -> None:
        response = upstream.exchange(HEAD + b"01")
        read(response, Reader(on_data=lambda reader: reader.transport.pauseProducing()))
        assert not upstream.wire.reading

    def test_bytes_that_were_read_before_a_pause_are_delivered(self, upstream: Upstream) -> None:
        reader = read(upstream.exchange(HEAD))
        reader.transport.pauseProducing()
        upstream.wire.receive(b"01")
        assert reader.body == b"01"

    @pytest.mark.parametrize("call", ["pauseProducing", "resumeProducing"])
    def test_a_response_that_is_over_does_not_pace_the_next(self, upstream: Upstream, call: str) -> None:
        response = upstream.exchange(OK)
        read(response)
        paused = call == "resumeProducing"
        following = read(upstream.exchange(HEAD))
        if paused:
            following.transport.pauseProducing()
        getattr(response, call)()
        assert upstream.wire.reading is not paused


class TestAbort:
    def test_it_resets_the_connection_at_once_before_anyone_reads(self, upstream: Upstream) -> None:
        response = upstream.exchange(HEAD + b"01")
        response.abort()
        assert upstream.wire.ending == "reset"
        upstream.wire.turn()
        assert upstream.lost == [upstream.connection]
        assert upstream.released == 0

    @pytest.mark.parametrize("way", ["abort", "stopProducing"])
    def test_it_resets_the_connection_at_once_while_somebody_reads(
        self, upstream: Upstream, way: str
    ) -> None:
        response = upstream.exchange(HEAD)
        reader = read(response)
        getattr(response, way)()
        assert upstream.wire.ending == "reset"
        upstream.wire.turn()
        assert len(reader.ends) <= 1
        assert upstream.released == 0

    def test_nothing_of_the_next_read_is_delivered(self, upstream: Upstream) -> None:
        chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
        outcome = upstream.ask()
        reader = Reader(on_data=lambda reader: reader.transport.abort())
        outcome.deferred.addCallback(lambda _: read(outcome.result, reader))
        upstream.wire.receive(chunks)
        upstream.wire.receive(b"2\r\ncd\r\n0\r\n\r\n")
        assert reader.body == b"ab"
        assert upstream.wire.ending == "reset"
        assert upstream.released == 0

    def test_it_stops_the_upload(self, upstream: Upstream) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        upstream.wire.receive(HEAD)
        outcome.result.abort()
        assert body.stopped
        assert upstream.wire.ending == "reset"

    def test_it_works_within_the_call_that_tells_of_the_response(self, upstream: Upstream) -> None:
        outcome = upstream.ask()
        outcome.deferred.addCallback(lambda _: outcome.result.abort())
        upstream.wire.receive(OK)
        assert upstream.wire.ending == "reset"
        assert upstream.released == 0

    def test_a_second_time_does_nothing(self, upstream: Upstream) -> None:
        response = upstream.exchange(HEAD)
        response.abort()
        upstream.wire.turn()
        response.abort()
        assert len(upstream.lost) == 1

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    def test_it_does_nothing_to_a_response_that_is_over(self, upstream: Upstream, method: bytes) -> None:
        response = upstream.exchange(OK if method == b"GET" else HEAD, method)
        reader = read(response)
        response.abort()
        assert upstream.wire.ending == "open"
        assert reader.end.check(ResponseDone)

    def test_it_does_not_touch_the_next_exchange_of_the_same_connection(self, upstream: Upstream) -> None:
        first = upstream.exchange(OK)
        outcome = upstream.ask()
        first.abort()
        upstream.wire.receive(HEAD)
        first.abort()
        reader = read(outcome.result)
        first.abort()
        upstream.wire.receive(b"0123456789")
        assert reader.body == b"0123456789"
        assert reader.end.check(ResponseDone)
        assert upstream.released == 2


class TestBodyLength:
    @pytest.mark.parametrize(
        ("fields", "length"),
        [
            ([], None),
            ([(b"content-LENGTH", b"12")], 12),
            ([(b"Content-Length", b"0")], 0),
            ([(b"Transfer-Encoding", b"chunked")], None),
            ([(b"transfer-encoding", b"CHUNKED")], None),
        ],
    )
    def test_it_is_told_by_the_fields(self, fields: Any, length: int | None) -> None:
        assert body_length(Fields(fields)) == length

    @pytest.mark.parametrize(
        "codings", [[b"gzip"], [b"chunked", b"chunked"], [b"gzip, chunked"], [b""], [b"identity"]]
    )
    def test_a_coding_that_nobody_asked_for_is_malformed(self, codings: list[bytes]) -> None:
        with pytest.raises(MalformedResponse, match="transfer coding"):
            body_length(Fields((b"Transfer-Encoding", coding) for coding in codings))
