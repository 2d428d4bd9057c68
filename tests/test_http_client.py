from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError
from twisted.web.client import (
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer
from zope.interface.verify import verifyObject

from llmproxy.http.body import BrokenBody
from llmproxy.http.fields import Fields
from llmproxy.http.held_body import again, hold
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.pool import NoneFree
from tests.upstream_support import HOST, OK, RESET, MemoryAgent, Upload, Whole, Wire, read

REQUEST = b"GET /v1/x HTTP/1.1\r\nHost: upstream.example\r\n\r\n"
HELD = 64 * 1024


@pytest.fixture
def agent() -> MemoryAgent:
    return MemoryAgent()


def test_it_is_an_agent(agent: MemoryAgent) -> None:
    assert verifyObject(IAgent, agent.agent)


class TestRequest:
    @pytest.mark.parametrize(
        "target",
        [
            b"/",
            b"/a;",
            b"/a?",
            b'/%2F%2f?x=[|]"\\^`{}',
            b"//evil.example/x",
            b"/http://evil.example/",
            b"/../..//./",
            b"/caf\xc3\xa9",
        ],
    )
    def test_the_bytes_from_the_path_on_are_the_target(self, agent: MemoryAgent, target: bytes) -> None:
        agent.ask(url=b"http://192.0.2.1" + target)
        assert agent.accept().take() == b"GET " + target + b" HTTP/1.1\r\nHost: upstream.example\r\n\r\n"

    @pytest.mark.parametrize(
        ("base", "address"),
        [
            (b"http://192.0.2.1", ("192.0.2.1", 80)),
            (b"http://192.0.2.1:8080", ("192.0.2.1", 8080)),
            (b"https://192.0.2.1", ("192.0.2.1", 443)),
            (b"https://192.0.2.1:8443", ("192.0.2.1", 8443)),
            (b"http://[2001:db8::1]", ("2001:db8::1", 80)),
            (b"http://[2001:db8::1]:8080", ("2001:db8::1", 8080)),
            (b"http://upstream.example", ("192.0.2.1", 80)),
            (b"http://upstream.example:8080", ("192.0.2.1", 8080)),
        ],
    )
    def test_it_connects_to_the_origin_of_the_url(
        self, agent: MemoryAgent, base: bytes, address: tuple[str, int]
    ) -> None:
        outcome = agent.ask(url=base + b"/v1")
        ((host, port, *_),) = agent.reactor.tcpClients
        assert (host, port) == address
        outcome.deferred.cancel()
        assert len(outcome.failures) == 1

    @pytest.mark.parametrize("kind", [Headers, Fields])
    def test_headers_of_any_kind_are_sent(self, agent: MemoryAgent, kind: Any) -> None:
        headers = kind()
        headers.addRawHeader(b"Host", b"h")
        headers.addRawHeader(b"X-A", b"1")
        headers.addRawHeader(b"X-A", b"2")
        agent.agent.request(b"GET", b"http://192.0.2.1/", headers)
        assert agent.accept().take() == b"GET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-A: 2\r\n\r\n"

    def test_a_request_without_headers_has_none(self, agent: MemoryAgent) -> None:
        agent.agent.request(b"GET", b"http://192.0.2.1/")
        assert agent.accept().take() == b"GET / HTTP/1.1\r\n\r\n"

    def test_a_body_follows_in_its_framing(self, agent: MemoryAgent) -> None:
        agent.ask(b"POST", body=Whole(b"hello"))
        assert agent.accept().take().endswith(b"Content-Length: 5\r\n\r\nhello")

    def test_interim_responses_are_told_to_whoever_the_headers_name(self, agent: MemoryAgent) -> None:
        outcome = agent.ask()
        agent.accept().receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
        assert agent.informed == [103]
        assert outcome.result.code == 200


class TestConnections:
    def test_a_connection_is_used_again(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        outcome = agent.ask()
        assert wire.take() == REQUEST
        wire.receive(OK)
        assert read(outcome.result).body == b"ok"
        assert agent.attempts == 1

    def test_origins_share_nothing(self, agent: MemoryAgent) -> None:
        agent.kept()
        agent.ask(url=b"http://192.0.2.1:8080/")
        agent.ask(url=b"http://192.0.2.2/")
        assert agent.attempts == 3

    def test_requests_at_the_same_time_take_a_connection_each(self, agent: MemoryAgent) -> None:
        agent.kept()
        agent.ask()
        agent.ask()
        assert agent.attempts == 2

    def test_a_failure_to_connect_is_told(self, agent: MemoryAgent) -> None:
        outcome = agent.ask()
        refused = error.ConnectionRefusedError()
        agent.refuse(refused)
        assert outcome.failure.value is refused
        assert agent.reactor.getDelayedCalls() == []

    def test_the_limits_are_those_given(self) -> None:
        agent = MemoryAgent(UpstreamLimits(connections=1, connect=5.0))
        first, second = agent.ask(), agent.ask()
        assert agent.attempts == 1
        agent.reactor.advance(5.0)
        assert first.failure.check(error.TimeoutError)
        assert second.pending
        assert agent.attempts == 2
        agent.reactor.advance(5.0)
        assert second.failure.check(error.TimeoutError)

    def test_closing_it_closes_what_is_idle(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        agent.agent.close()
        assert wire.ending == "closed"
        wire.turn()
        assert agent.reactor.getDelayedCalls() == []

    def test_only_tls_goes_through_a_proxy(self) -> None:
        agent = MemoryAgent(proxy_for=lambda host: urlsplit("http://192.0.2.9:3128"))
        agent.ask(url=b"http://192.0.2.1/")
        outcome = agent.ask(url=b"https://192.0.2.1/")
        hosts = [host for host, *_ in agent.reactor.tcpClients]
        assert hosts == ["192.0.2.1", "192.0.2.9"]
        outcome.deferred.cancel()


class TestCancelling:
    def test_while_connecting_gives_the_attempt_up(self, agent: MemoryAgent) -> None:
        outcome = agent.ask(b"POST", body=Upload())
        outcome.deferred.cancel()
        assert len(outcome.failures) == 1
        assert agent.reactor.connectors[0].stoppedConnecting
        assert agent.reactor.getDelayedCalls() == []

    def test_while_waiting_for_a_connection_sends_nothing(self) -> None:
        agent = MemoryAgent(UpstreamLimits(connections=1))
        first, second, third = agent.ask(), agent.ask(), agent.ask(url=b"http://192.0.2.1/third")
        wire = agent.accept()
        wire.take()
        second.deferred.cancel()
        assert second.failure.check(NoneFree)
        wire.receive(OK)
        assert first.result.code == 200
        assert wire.take().startswith(b"GET /third ")
        assert third.pending

    def test_while_sending_stops_the_upload_and_resets_the_connection(self, agent: MemoryAgent) -> None:
        body = Upload()
        outcome = agent.ask(b"POST", body=body)
        wire = agent.accept()
        body.write(b"some")
        outcome.deferred.cancel()
        assert outcome.failure.check(CancelledError)
        assert body.stopped
        assert wire.ending == "reset"

    @pytest.mark.parametrize("kept", [False, True])
    def test_while_waiting_for_headers_resets_the_connection(self, agent: MemoryAgent, kept: bool) -> None:
        wire = agent.kept() if kept else None
        outcome = agent.ask()
        wire = wire or agent.accept()
        attempts = agent.attempts
        outcome.deferred.cancel()
        assert outcome.failure.check(CancelledError)
        assert wire.ending == "reset"
        wire.turn()
        assert agent.attempts == attempts

    def test_makes_room_for_those_who_wait(self) -> None:
        agent = MemoryAgent(UpstreamLimits(connections=1))
        first, second = agent.ask(), agent.ask()
        wire = agent.accept()
        first.deferred.cancel()
        assert agent.attempts == 1
        wire.turn()
        assert agent.attempts == 2
        agent.accept().receive(OK)
        assert second.result.code == 200


class TestSecondSending:
    """What becomes of a request on a kept connection that the upstream had dropped."""

    def lost(self, agent: MemoryAgent, loss: Exception, body: Any, heard: bytes = b"") -> tuple[Any, bytes]:
        """Send a request on a kept connection, and lose that; returns what was written."""
        wire = agent.kept()
        outcome = agent.ask(b"POST", body=body)
        sent = wire.take()
        if heard:
            wire.receive(heard)
        wire.lose(loss)
        return outcome, sent

    @pytest.mark.parametrize(
        "body",
        [
            lambda: None,
            lambda: Whole(b""),
            lambda: Whole(b"hello"),
            lambda: Whole(b"hello", UNKNOWN_LENGTH),
            lambda: Whole(b"x" * HELD),
        ],
        ids=["none", "empty", "sized", "chunked", "as large as is held"],
    )
    def test_after_a_reset_the_same_bytes_are_sent_once_more(self, agent: MemoryAgent, body: Any) -> None:
        outcome, sent = self.lost(agent, RESET, body())
        assert agent.attempts == 2
        wire = agent.accept()
        assert wire.take() == sent
        wire.receive(OK)
        assert read(outcome.result).body == b"ok"
        assert len(outcome.results) == 1

    @pytest.mark.parametrize(("after", "attempts"), [(0.25, 2), (0.26, 1), (10.0, 1)])
    def test_after_more_than_a_round_trip_it_may_have_been_acted_upon(
        self, agent: MemoryAgent, after: float, attempts: int
    ) -> None:
        agent.reactor.advance(3.0)
        wire = agent.kept()
        agent.reactor.advance(1.0)  # idle time does not count
        outcome = agent.ask(b"POST", body=Whole(b"hello"))
        agent.reactor.advance(after)
        wire.lose(RESET)
        assert agent.attempts == attempts
        assert outcome.pending == (attempts == 2)
        if attempts == 1:
            assert outcome.failure.check(ResponseNeverReceived)
        else:
            outcome.deferred.cancel()

    def test_a_chunked_body_and_its_trailers_are_sent_as_they_were(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        body = Upload()
        outcome = agent.ask(b"POST", body=body)
        body.write(b"he")
        body.write(b"llo")
        body.end((b"X-Sum", b"1"))
        head, _, sent = wire.take().partition(b"\r\n\r\n")
        assert sent == b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n"
        wire.lose(RESET)
        again = agent.accept()
        assert again.take() == head + b"\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
        assert body.log == ["start"]
        again.receive(OK)
        assert outcome.result.code == 200

    def test_a_body_that_was_not_begun_is_begun_on_the_fresh_connection(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        body = Upload(5)
        outcome = agent.ask(b"POST", headers=[HOST, (b"Expect", b"100-continue")], body=body)
        wire.lose(RESET)
        again = agent.accept()
        assert body.log == []
        again.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
        body.write(b"hello")
        body.end()
        assert again.take().endswith(b"\r\n\r\nhello")
        again.receive(OK)
        assert outcome.result.code == 200
        assert (
            agent.reactor.getDelayedCalls()[0].getTime() > agent.reactor.seconds() + 3
        )  # what keeps it idle

    def test_it_happens_once(self, agent: MemoryAgent) -> None:
        outcome, _ = self.lost(agent, RESET, Whole(b"hello"))
        agent.accept().lose(RESET)
        assert outcome.failure.check(ResponseNeverReceived)
        assert agent.attempts == 2

    def test_it_is_not_sent_on_another_kept_connection(self, agent: MemoryAgent) -> None:
        first, second = agent.ask(), agent.ask()
        wires = [agent.accept(0), agent.accept(1)]
        for wire in wires:
            wire.receive(OK)
        assert first.result.code == second.result.code == 200
        wires[0].take()
        agent.ask(b"POST", body=Whole(b"hello"))
        wires[1].lose(RESET)
        assert agent.attempts == 3
        assert wires[0].take() == b""

    def test_a_failure_to_connect_for_it_is_told(self, agent: MemoryAgent) -> None:
        outcome, _ = self.lost(agent, RESET, Whole(b"hello"))
        agent.refuse(error.ConnectionRefusedError())
        assert outcome.failure.check(error.ConnectionRefusedError)

    def test_it_can_be_cancelled(self, agent: MemoryAgent) -> None:
        outcome, _ = self.lost(agent, RESET, Whole(b"hello"))
        wire = agent.accept()
        outcome.deferred.cancel()
        assert wire.ending == "reset"
        assert outcome.failure.check(CancelledError)

    def test_an_end_in_order_may_have_been_acted_upon(self, agent: MemoryAgent) -> None:
        outcome, _ = self.lost(agent, error.ConnectionDone(), Whole(b"hello"))
        assert outcome.failure.check(ResponseNeverReceived)
        assert agent.attempts == 1

    @pytest.mark.parametrize("heard", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
    def test_an_upstream_that_had_begun_to_answer_has_acted(self, agent: MemoryAgent, heard: bytes) -> None:
        outcome, _ = self.lost(agent, RESET, Whole(b"hello"), heard)
        assert type(outcome.failure.value) is ResponseFailed
        assert agent.attempts == 1

    @pytest.mark.parametrize("garbage", [b"garbage\r\n\r\n"])
    def test_a_malformed_answer_is_an_answer(self, agent: MemoryAgent, garbage: bytes) -> None:
        outcome, _ = self.lost(agent, RESET, Whole(b"hello"), garbage)
        assert outcome.failure.check(ResponseFailed)
        assert agent.attempts == 1

    @pytest.mark.parametrize("loss", [RESET, error.ConnectionDone()])
    def test_a_fresh_connection_was_not_dropped_in_idleness(
        self, agent: MemoryAgent, loss: Exception
    ) -> None:
        outcome = agent.ask(b"POST", body=Whole(b"hello"))
        agent.accept().lose(loss)
        assert outcome.failure.check(ResponseNeverReceived)
        assert agent.attempts == 1

    def test_a_body_that_is_too_large_to_hold_is_not_sent_again(self, agent: MemoryAgent) -> None:
        outcome, _ = self.lost(agent, RESET, Whole(b"x" * (HELD + 1)))
        assert outcome.failure.check(ResponseNeverReceived)
        assert agent.attempts == 1

    def test_a_body_that_is_not_all_here_is_not_sent_again(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        body = Upload()
        outcome = agent.ask(b"POST", body=body)
        body.write(b"some")
        wire.lose(RESET)
        assert outcome.failure.check(RequestTransmissionFailed)
        assert body.stopped
        assert agent.attempts == 1

    def test_a_body_that_breaks_off_is_not_sent_again(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        body = Upload()
        outcome = agent.ask(b"POST", body=body)
        body.fail(BrokenBody("the client left"))
        assert outcome.failure.check(BrokenBody)
        assert wire.ending == "reset"
        wire.turn()
        assert agent.attempts == 1

    def test_nothing_is_sent_again_once_there_is_a_response(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        outcome = agent.ask()
        wire.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        reader = read(outcome.result)
        wire.lose(RESET)
        assert reader.end.check(ResponseFailed)
        assert agent.attempts == 1


class TestPace:
    def test_a_held_body_is_paced_by_its_connection(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        body = Upload()
        agent.ask(b"POST", body=body)
        wire.producer.pauseProducing()
        wire.producer.resumeProducing()
        assert body.log == ["start", "pause", "resume"]

    def test_a_response_is_whole_on_a_kept_connection(self, agent: MemoryAgent) -> None:
        wire = agent.kept()
        body = Upload()
        outcome = agent.ask(b"POST", body=body)
        wire.receive(OK)
        reader = read(outcome.result)
        assert reader.end.check(ResponseDone)
        assert body.stopped
        assert wire.ending == "reset"


class TestHeldBody:
    def test_a_held_body_is_a_body_and_its_own_consumer(self) -> None:
        held = hold(Upload(), HELD)
        assert verifyObject(IBodyProducer, held)
        held.registerProducer(Upload(), True)
        held.unregisterProducer()
        assert held.length is UNKNOWN_LENGTH

    def test_a_body_that_was_held_is_whole(self) -> None:
        held = hold(Whole(b"hello"), HELD)
        held.startProducing(Wire())
        known = again(held)
        assert known.whole() == b"hello"
        assert again(known) is known
