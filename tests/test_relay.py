from __future__ import annotations

import zlib
from typing import Any

import pytest
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.web.client import PotentialDataLoss, ResponseFailed

from llmproxy.exchange import Ending
from tests.support import ClientConnection, Proxy, UpstreamResponse, take_a_little_five_times_and_then_nothing

LENGTH_10 = [(b"Content-Length", b"10")]
TRUNCATED = ResponseFailed([Failure(error.ConnectionLost())])


class Relayed:
    """A client that has been sent the headers of a response, whose body the test writes."""

    def __init__(self, headers: list[tuple[bytes, bytes]] | None = None, **request: object) -> None:
        self.proxy = Proxy()
        self.client: ClientConnection = self.proxy.ask(b"/openai/v1/x", **request)
        self.upstream: UpstreamResponse = self.proxy.agent.only.answer(headers=headers or [])
        self.head = self.client.received

    @property
    def body(self) -> bytes:
        """What was written since the headers."""
        return self.client.received.removeprefix(self.head)

    @property
    def endings(self) -> list[Ending | None]:
        return [exchange.ending for exchange in self.proxy.exchanges]


def test_each_chunk_is_written_in_the_turn_in_which_it_came() -> None:
    relayed = Relayed()
    written = b""
    for chunk in (b"data: 1\n\n", b"d", b"ata: 2\n\n", b"\x00" * 100_000):
        relayed.upstream.chunk(chunk)
        written += b"%x\r\n%b\r\n" % (len(chunk), chunk)
        assert relayed.body == written
    relayed.upstream.end()
    assert relayed.body == written + b"0\r\n\r\n"
    assert relayed.client.ending == "open"
    assert relayed.endings == [Ending.COMPLETED]


def test_a_body_with_a_length_is_written_as_it_comes() -> None:
    relayed = Relayed(LENGTH_10)
    relayed.upstream.chunk(b"01234")
    assert relayed.body == b"01234"
    relayed.upstream.chunk(b"56789")
    relayed.upstream.end()
    assert relayed.body == b"0123456789"
    assert relayed.client.ending == "open"


def test_a_compressed_body_passes_untouched() -> None:
    body = zlib.compress(b"hello" * 100)
    relayed = Relayed([(b"Content-Encoding", b"deflate")])
    relayed.upstream.chunk(body)
    relayed.upstream.end()
    assert relayed.client.response().body == body


def test_a_body_that_the_close_of_a_connection_ended_is_whole() -> None:
    relayed = Relayed()
    relayed.upstream.chunk(b"hello")
    relayed.upstream.end(PotentialDataLoss())
    assert (relayed.client.response().body, relayed.client.response().whole) == (b"hello", True)
    assert relayed.endings == [Ending.COMPLETED]


def test_an_http_1_0_client_is_told_the_end_by_a_close() -> None:
    relayed = Relayed(version=b"HTTP/1.0")
    relayed.upstream.chunk(b"hello")
    assert relayed.body == b"hello"
    assert relayed.client.ending == "open"
    relayed.upstream.end()
    assert relayed.client.ending == "closed"
    assert relayed.client.response().whole


@pytest.mark.parametrize(
    ("headers", "version", "ending"),
    [
        ([], b"HTTP/1.1", "closed"),  # the last chunk is missing
        (LENGTH_10, b"HTTP/1.1", "closed"),  # bytes are missing
        (LENGTH_10, b"HTTP/1.0", "closed"),
        ([], b"HTTP/1.0", "reset"),  # a close would be the end of the body
    ],
)
@pytest.mark.parametrize("cut", ["failed", "silent"])
def test_a_truncated_body_never_ends_cleanly(
    headers: list[tuple[bytes, bytes]], version: bytes, ending: str, cut: str
) -> None:
    relayed = Relayed(headers, version=version)
    relayed.upstream.chunk(b"01234")
    received = relayed.client.received
    if cut == "failed":
        relayed.upstream.end(TRUNCATED)
    else:
        relayed.proxy.clock.advance(50)
    relayed.proxy.turn()
    assert relayed.client.received == received
    assert relayed.client.ending == ending
    assert relayed.client.response().body == b"01234"
    assert not relayed.client.response().whole
    assert relayed.endings == [Ending.UPSTREAM_FAILED if cut == "failed" else Ending.UPSTREAM_SILENT]
    assert relayed.upstream.aborted == (0 if cut == "failed" else 1)
    assert [exchange.sent for exchange in relayed.proxy.exchanges] == [5]


def test_a_body_that_is_cut_off_before_its_first_byte_is_not_whole_either() -> None:
    relayed = Relayed()
    relayed.upstream.end(TRUNCATED)
    assert not relayed.client.response().whole
    assert relayed.client.ending == "closed"


class TestBackpressure:
    def test_a_slow_client_pauses_its_upstream_and_resumes_it(self) -> None:
        relayed = Relayed()
        relayed.upstream.chunk(b"1")
        relayed.client.stop_reading()
        assert relayed.upstream.paused
        relayed.client.read_on()
        assert not relayed.upstream.paused
        relayed.upstream.chunk(b"2")
        relayed.upstream.end()
        assert relayed.client.response().body == b"12"

    def test_another_client_is_not_held_up(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.proxy.ask(b"/openai/v1/y")
        assert not relayed.proxy.agent.requests[1].answer().paused

    def test_a_response_to_a_client_that_is_slow_already_is_paused_from_the_start(self) -> None:
        proxy = Proxy()
        client = proxy.ask(b"/openai/v1/x")
        client.stop_reading()
        upstream = proxy.agent.only.answer()
        assert upstream.paused
        client.read_on()
        assert not upstream.paused

    def test_one_that_is_all_here_already_waits_for_no_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(UpstreamResponse, "whole", True)
        proxy = Proxy()
        client = proxy.ask(b"/openai/v1/x")
        client.stop_reading()
        upstream = proxy.agent.only.answer(headers=LENGTH_10)
        upstream.chunk(b"0123456789")
        upstream.end()
        assert not upstream.paused
        assert client.response().body == b"0123456789"
        client.read_on()
        assert client.ending == "open"
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.COMPLETED]

    def test_bytes_that_come_in_spite_of_a_pause_are_not_lost(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.upstream.chunk(b"late")
        assert relayed.body == b"4\r\nlate\r\n"

    def test_a_body_that_ends_during_a_pause_is_whole(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.upstream.chunk(b"last")
        relayed.upstream.end()
        relayed.client.read_on()
        assert relayed.client.response().whole
        assert not relayed.client.response().rest

    def test_once_it_is_over_the_upstream_is_not_read_on(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.upstream.end()
        relay: Any = relayed.upstream.reader
        relay.resumeProducing()
        assert relayed.upstream.paused  # its connection may carry another response by now

    def test_a_body_that_is_cut_off_during_a_pause_is_not_whole(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.upstream.end(TRUNCATED)
        assert relayed.endings == [Ending.UPSTREAM_FAILED]
        assert not relayed.client.response().whole


class TestIdleTime:
    def test_an_upstream_that_falls_silent_is_given_up(self) -> None:
        relayed = Relayed()
        relayed.proxy.clock.advance(49.9)
        relayed.upstream.chunk(b"1")
        relayed.proxy.clock.pump([30, 19.9])
        assert (relayed.upstream.aborted, relayed.client.ending) == (0, "open")
        relayed.proxy.clock.advance(0.1)
        assert (relayed.upstream.aborted, relayed.client.ending) == (1, "closed")

    def test_it_does_not_run_while_the_client_is_the_slow_one(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.proxy.clock.advance(599)
        assert relayed.upstream.aborted == 0
        relayed.client.read_on()
        relayed.proxy.clock.advance(49.9)
        assert relayed.upstream.aborted == 0
        relayed.proxy.clock.advance(0.1)
        assert relayed.upstream.aborted == 1

    def test_it_ends_with_the_body(self) -> None:
        relayed = Relayed()
        relayed.upstream.end()
        relayed.proxy.clock.advance(500)
        assert relayed.upstream.aborted == 0
        assert relayed.endings == [Ending.COMPLETED]

    def test_what_comes_after_it_is_over_changes_nothing(self) -> None:
        relayed = Relayed()
        relayed.proxy.clock.advance(50)
        received = relayed.client.received
        relayed.upstream.end(TRUNCATED)
        relayed.proxy.turn()
        assert relayed.client.received == received
        assert relayed.endings == [Ending.UPSTREAM_SILENT]
        assert relayed.upstream.aborted == 1


class TestAClientThatTakesNothing:
    @pytest.mark.parametrize("headers", [[], LENGTH_10])
    def test_it_is_given_up_with_what_it_asked_for(self, headers: list[tuple[bytes, bytes]]) -> None:
        relayed = Relayed(headers)
        relayed.upstream.chunk(b"01234")
        relayed.client.stop_reading()
        relayed.proxy.clock.advance(599)
        assert (relayed.upstream.aborted, relayed.client.ending, relayed.endings) == (0, "open", [])
        relayed.proxy.clock.advance(1)
        assert (relayed.upstream.aborted, relayed.client.ending) == (1, "reset")
        assert relayed.endings == [Ending.CLIENT_LEFT]
        relayed.proxy.turn()
        assert relayed.upstream.aborted == 1
        assert relayed.endings == [Ending.CLIENT_LEFT]
        assert relayed.proxy.clock.getDelayedCalls() == []

    def test_what_comes_in_spite_of_a_pause_does_not_count_as_silence_of_the_upstream(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.upstream.chunk(b"late")
        relayed.proxy.clock.advance(599)
        assert (relayed.upstream.aborted, relayed.client.ending) == (0, "open")
        relayed.proxy.clock.advance(1)
        assert relayed.endings == [Ending.CLIENT_LEFT]

    def test_one_that_reads_on_now_and_then_has_its_time_again(self) -> None:
        relayed = Relayed()
        for _ in range(3):
            relayed.client.stop_reading()
            relayed.proxy.clock.advance(599)
            relayed.client.read_on()
            relayed.upstream.chunk(b"1")
        assert (relayed.upstream.aborted, relayed.client.ending) == (0, "open")

    def test_one_that_takes_a_little_is_not_given_up_before_it_takes_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        relayed = Relayed()
        take_a_little_five_times_and_then_nothing(relayed.proxy, relayed.client, monkeypatch)
        assert (relayed.upstream.aborted, relayed.client.ending) == (1, "reset")

    def test_once_the_upstream_has_ended_the_connection_has_that_time(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.upstream.end()
        assert relayed.endings == [Ending.COMPLETED]
        relayed.proxy.clock.advance(599)
        assert relayed.client.ending == "open"
        relayed.proxy.clock.advance(1)
        assert relayed.client.ending == "reset"


class TestClientLeaves:
    def test_the_upstream_is_aborted_once_and_its_end_changes_nothing(self) -> None:
        relayed = Relayed()
        relayed.client.leave()
        assert relayed.upstream.aborted == 1
        relayed.upstream.end(ResponseFailed([Failure(error.ConnectionAborted())]))
        assert relayed.upstream.aborted == 1
        assert relayed.endings == [Ending.CLIENT_LEFT]

    def test_bytes_that_come_in_spite_of_it_harm_nothing(self) -> None:
        relayed = Relayed()
        relayed.client.leave()
        relayed.upstream.chunk(b"late")
        assert relayed.body == b""

    def test_a_client_that_leaves_while_it_is_slow_is_noticed(self) -> None:
        relayed = Relayed()
        relayed.client.stop_reading()
        relayed.client.leave()
        assert relayed.upstream.aborted == 1
        assert relayed.endings == [Ending.CLIENT_LEFT]
        assert relayed.proxy.clock.getDelayedCalls() == []


def test_the_bytes_of_the_body_are_counted_without_their_framing() -> None:
    relayed = Relayed()
    for size in (1, 10, 1000):
        relayed.upstream.chunk(b"x" * size)
    relayed.upstream.end()
    assert [exchange.sent for exchange in relayed.proxy.exchanges] == [1011]
