from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface.verify import verifyObject

from llmproxy.http.body import BrokenBody, RequestBody, SilentBody, TooLarge, read_whole
from llmproxy.http.fields import Fields
from tests.http_support import Sink


class Fed(RequestBody):
    """A body that the test feeds; it keeps what its connection is told.

    :ivar told: ``wanted``, or after a change whether more is wanted.
    """

    def __init__(self, length: Any = UNKNOWN_LENGTH) -> None:
        self.told: list[object] = []
        super().__init__(length, lambda: self.told.append("wanted"), lambda: self.told.append(self.wants))


@pytest.fixture
def body() -> Fed:
    return Fed()


def test_it_is_a_body_producer(body: Fed) -> None:
    verifyObject(IBodyProducer, body)
    assert body.length is UNKNOWN_LENGTH


class TestReading:
    def test_what_comes_is_passed_on_at_once(self, body: Fed) -> None:
        sink = Sink(body)
        body.feed(b"one")
        body.feed(b"two")
        assert sink.pieces == [b"one", b"two"]
        assert body.received == 6

    def test_what_came_before_is_passed_on_at_its_start(self, body: Fed) -> None:
        body.feed(b"one")
        body.feed(b"two")
        assert Sink(body).pieces == [b"one", b"two"]

    def test_its_connection_is_told_that_somebody_reads_it_before_anything_is_passed_on(
        self, body: Fed
    ) -> None:
        body.feed(b"one")
        assert body.told == []
        Sink(body)
        assert body.told == ["wanted", True]

    @pytest.mark.parametrize("trailers", [None, Fields([(b"X-Sum", b"1")])])
    def test_its_end_is_told_with_its_trailers(self, body: Fed, trailers: Fields | None) -> None:
        sink = Sink(body)
        assert not body.over
        body.end(trailers)
        assert body.over
        assert sink.ended == "whole"
        assert body.trailers is trailers

    def test_its_trailers_are_those_that_may_go_further(self, body: Fed) -> None:
        body.seal_trailers = lambda fields: Fields(fields.pairs[1:])
        assert body.trailers is None
        body.end(Fields([(b"Authorization", b"x"), (b"X-Sum", b"1")]))
        assert body.trailers == Fields([(b"X-Sum", b"1")])

    def test_one_that_is_over_already_is_whole_at_once(self, body: Fed) -> None:
        body.feed(b"one")
        body.end(None)
        sink = Sink(body)
        assert sink.data == b"one"
        assert sink.ended == "whole"

    @pytest.mark.parametrize("reason", [BrokenBody("half of it"), SilentBody("nothing")])
    def test_one_that_breaks_off_fails(self, body: Fed, reason: Exception) -> None:
        sink = Sink(body)
        body.feed(b"half")
        body.fail(reason)
        assert sink.data == b"half"
        assert sink.ended is type(reason)
        assert body.over

    def test_one_that_broke_off_before_its_start_fails_then(self, body: Fed) -> None:
        body.feed(b"half")
        body.fail(BrokenBody("half of it"))
        sink = Sink(body)
        assert sink.data == b"half"
        assert sink.ended is BrokenBody

    def test_one_that_is_whole_cannot_break_off(self, body: Fed) -> None:
        body.end(None)
        body.fail(BrokenBody("too late"))
        assert Sink(body).ended == "whole"


class TestPace:
    def test_before_its_start_one_piece_is_wanted(self, body: Fed) -> None:
        assert body.wants
        body.feed(b"piece")
        assert not body.wants

    def test_before_its_start_nobody_waits_for_it(self, body: Fed) -> None:
        assert not body.expected
        Sink(body)
        assert body.expected

    def test_it_is_wanted_while_it_is_read(self, body: Fed) -> None:
        Sink(body)
        body.feed(b"piece")
        assert body.wants

    def test_a_paused_consumer_wants_nothing(self, body: Fed) -> None:
        Sink(body)
        body.pauseProducing()
        assert not body.wants
        assert not body.expected
        body.resumeProducing()
        assert body.wants
        assert body.told == ["wanted", True, False, True]

    def test_a_consumer_that_pauses_at_its_start_holds(self, body: Fed) -> None:
        body.pauseProducing()
        Sink(body)
        assert not body.wants

    def test_when_it_is_over_nothing_is_wanted(self, body: Fed) -> None:
        Sink(body)
        body.end(None)
        assert not body.wants


class TestDropping:
    def test_a_reader_that_stops_gets_nothing_more(self, body: Fed) -> None:
        sink = Sink(body)
        body.feed(b"one")
        body.stopProducing()
        body.feed(b"two")
        body.end(None)
        assert sink.data == b"one"
        assert sink.ended is None
        assert body.received == 6

    def test_the_rest_is_wanted_so_that_the_client_comes_to_its_answer(self, body: Fed) -> None:
        body.feed(b"held")
        body.pauseProducing()
        assert not body.wants
        body.stopProducing()
        assert body.wants
        assert body.expected
        assert body.told[-1] is True
        body.feed(b"more")
        assert body.wants

    def test_one_that_was_never_begun_can_be_dropped(self, body: Fed) -> None:
        body.stopProducing()
        body.feed(b"one")
        body.fail(BrokenBody("half of it"))
        assert body.over

    def test_to_cancel_is_to_stop(self, body: Fed) -> None:
        sink = Sink(body)
        sink.done.cancel()
        assert sink.ended is CancelledError
        body.feed(b"one")
        body.end(None)
        assert sink.pieces == []

    def test_a_reader_that_stops_at_the_first_of_several_held_pieces_gets_no_other(self, body: Fed) -> None:
        class Sated(Sink):
            def write(self, data: bytes) -> None:
                super().write(data)
                self.body.stopProducing()

        body.feed(b"one")
        body.feed(b"two")
        assert Sated(body).pieces == [b"one"]


class TestReadWhole:
    def results(self, body: RequestBody | None, limit: int = 10) -> list[Any]:
        """What comes of it: nothing yet, the bytes, or a failure's exception."""
        results: list[Any] = []
        read_whole(body, limit).addCallbacks(results.append, lambda failure: results.append(failure.value))
        return results

    def test_no_body_is_empty(self) -> None:
        assert self.results(None) == [b""]

    def test_it_comes_when_it_is_whole(self, body: Fed) -> None:
        body.feed(b"12345")
        results = self.results(body)
        body.feed(b"67890")
        assert results == []
        body.end(None)
        assert results == [b"1234567890"]

    def test_more_than_the_limit_fails_at_once(self, body: Fed) -> None:
        results = self.results(body)
        body.feed(b"12345678901")
        (failed,) = results
        assert isinstance(failed, TooLarge)
        assert str(failed) == "The body is larger than 10 bytes."

    def test_what_comes_beyond_the_limit_is_dropped(self, body: Fed) -> None:
        body.feed(b"12345678901")
        body.feed(b"more")
        results = self.results(body)
        body.feed(b"and more")
        body.end(None)
        assert len(results) == 1
        assert body.wants is False

    def test_one_that_breaks_off_fails(self, body: Fed) -> None:
        results = self.results(body)
        body.fail(BrokenBody("half of it"))
        assert [str(result) for result in results] == ["half of it"]

    def test_one_that_breaks_off_beyond_the_limit_fails_once(self, body: Fed) -> None:
        results = self.results(body)
        body.feed(b"12345678901")
        body.fail(BrokenBody("half of it"))
        assert [type(result) for result in results] == [TooLarge]


class TestWhole:
    """A body that is all here need not be produced."""

    @staticmethod
    def body() -> RequestBody:
        return RequestBody(4, lambda: None, lambda: None)

    def test_it_is_whole_when_it_is_over(self) -> None:
        body = self.body()
        body.feed(b"ab")
        assert body.whole() is None
        body.feed(b"cd")
        body.end(None)
        assert body.whole() == b"abcd"
        assert body.whole() == b"abcd"

    def test_an_empty_body_is_whole(self) -> None:
        body = self.body()
        body.end(None)
        assert body.whole() == b""

    def test_one_that_failed_is_not(self) -> None:
        body = self.body()
        body.feed(b"ab")
        body.fail(BrokenBody("it broke off"))
        assert body.whole() is None

    def test_one_that_was_dropped_is_not(self) -> None:
        body = self.body()
        body.stopProducing()
        body.end(None)
        assert body.whole() is None

    def test_one_that_was_read_is_not(self) -> None:
        body = self.body()
        Sink(body)
        body.feed(b"abcd")
        body.end(None)
        assert body.whole() is None
