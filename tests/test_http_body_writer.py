from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH
from zope.interface.verify import verifyObject

from llmproxy.http.body import BrokenBody
from llmproxy.http.body_writer import BodyWriter
from tests.upstream_support import Upload, Whole, Wire


class Writing:
    """A body on its way into a wire."""

    def __init__(self, body: Any, full: bool = False) -> None:
        self.body = body
        self.wire = Wire(full)
        self.clock = Clock()
        self.broken: list[Failure] = []
        self.writer = BodyWriter(self.wire, body, body.length is UNKNOWN_LENGTH, self.broken.append)


@pytest.fixture
def chunked() -> Writing:
    return Writing(Upload())


@pytest.fixture
def sized() -> Writing:
    return Writing(Upload(5))


def test_it_is_a_consumer(chunked: Writing) -> None:
    assert verifyObject(IConsumer, chunked.writer)
    chunked.writer.registerProducer(chunked.body, True)
    chunked.writer.unregisterProducer()
    assert chunked.wire.producer is None


class TestFraming:
    def test_each_part_of_a_body_without_a_length_is_a_chunk(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.body.write(b"hello")
        assert chunked.wire.take() == b"5\r\nhello\r\n"
        chunked.body.write(b"x" * 300)
        assert chunked.wire.take() == b"12c\r\n" + b"x" * 300 + b"\r\n"
        chunked.body.end()
        assert chunked.wire.take() == b"0\r\n\r\n"

    def test_an_empty_part_does_not_end_the_body(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.body.write(b"")
        assert chunked.wire.take() == b""

    def test_trailers_follow_the_last_chunk_as_they_were_spelled(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.body.end((b"X-Sum", b"1"), (b"x-sum", b"2"))
        assert chunked.wire.take() == b"0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n"

    def test_a_body_with_a_length_is_written_as_it_is(self, sized: Writing) -> None:
        sized.writer.start()
        sized.body.write(b"he")
        sized.body.write(b"llo")
        sized.body.end()
        assert sized.wire.take() == b"hello"

    def test_an_empty_body_writes_nothing(self) -> None:
        writing = Writing(Whole(b""))
        writing.writer.start()
        assert writing.writer.done
        assert writing.wire.take() == b""


class TestProgress:
    def test_it_asks_for_nothing_before_it_is_started(self, chunked: Writing) -> None:
        assert chunked.body.log == []
        assert chunked.wire.producer is None

    def test_the_transport_sets_the_pace(self, chunked: Writing) -> None:
        chunked.writer.start()
        assert chunked.wire.producer is chunked.body

    def test_a_body_is_paused_where_the_transport_is_full_already(self) -> None:
        writing = Writing(Upload(), full=True)
        writing.writer.start()
        assert "pause" in writing.body.log

    def test_it_is_done_when_all_of_it_was_written(self, sized: Writing) -> None:
        sized.writer.start()
        sized.body.write(b"hello")
        assert not sized.writer.done
        sized.body.end()
        assert sized.writer.done
        assert sized.wire.producer is None

    def test_it_is_started_once(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.writer.start()
        assert chunked.body.log == ["start"]


class TestWaiting:
    def test_the_wait_ends_by_time(self, chunked: Writing) -> None:
        chunked.writer.wait(chunked.clock, 1.0)
        chunked.clock.advance(0.9)
        assert not chunked.body.started
        chunked.clock.advance(0.1)
        assert chunked.body.started

    def test_the_wait_ends_when_it_is_started(self, chunked: Writing) -> None:
        chunked.writer.wait(chunked.clock, 1.0)
        chunked.writer.start()
        assert chunked.body.started
        assert chunked.clock.getDelayedCalls() == []

    @pytest.mark.parametrize("end", ["stop", "answered"])
    def test_a_body_that_is_not_wanted_any_more_is_never_started(self, chunked: Writing, end: str) -> None:
        chunked.writer.wait(chunked.clock, 1.0)
        getattr(chunked.writer, end)()
        assert chunked.body.log == ["stop"]
        assert chunked.clock.getDelayedCalls() == []
        chunked.writer.start()
        assert not chunked.body.started
        assert not chunked.writer.done


class TestStopping:
    def test_nothing_more_is_written(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.writer.stop()
        chunked.body.write(b"late")
        chunked.body.end()
        assert chunked.wire.take() == b""
        assert not chunked.writer.done

    def test_the_body_is_told_once(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.writer.stop()
        chunked.writer.stop()
        assert chunked.body.log == ["start", "stop"]
        assert chunked.wire.producer is None

    def test_a_body_that_is_done_is_left_alone(self, sized: Writing) -> None:
        sized.writer.start()
        sized.body.write(b"hello")
        sized.body.end()
        sized.writer.stop()
        assert sized.body.log == ["start"]

    def test_an_answer_does_not_stop_a_body_that_is_under_way(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.writer.answered()
        chunked.body.write(b"more")
        assert chunked.wire.take() == b"4\r\nmore\r\n"


class TestBreaking:
    def test_a_body_that_breaks_off_is_told_and_gets_no_end(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.body.write(b"x")
        chunked.wire.take()
        chunked.body.fail(BrokenBody("the client left"))
        assert chunked.wire.take() == b""
        (failure,) = chunked.broken
        assert failure.check(BrokenBody)
        assert chunked.wire.producer is None
        assert not chunked.writer.done

    def test_a_body_that_breaks_after_it_was_stopped_is_nobodys_concern(self, chunked: Writing) -> None:
        chunked.writer.start()
        chunked.writer.stop()
        chunked.body.fail(BrokenBody("the client left"))
        assert chunked.broken == []

    def test_a_body_that_is_shorter_than_announced_breaks(self, sized: Writing) -> None:
        sized.writer.start()
        sized.body.write(b"hell")
        sized.body.end()
        (failure,) = sized.broken
        assert failure.check(BrokenBody)
        assert not sized.writer.done

    def test_a_body_that_is_longer_than_announced_breaks_before_the_surplus_is_written(
        self, sized: Writing
    ) -> None:
        sized.writer.start()
        sized.body.write(b"hell")
        sized.body.write(b"o GET /smuggled HTTP/1.1")
        assert b"GET" not in sized.wire.take()
        (failure,) = sized.broken
        assert failure.check(BrokenBody)
        sized.body.write(b"more")
        sized.body.end()
        assert sized.wire.take() == b""
        assert not sized.writer.done
        assert len(sized.broken) == 1
