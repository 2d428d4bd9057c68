"""What passes after a 101, through the whole proxy in memory."""

from __future__ import annotations

import pytest
from twisted.internet import error
from twisted.python.failure import Failure

from llmproxy.exchange import Ending
from llmproxy.tunnel import Tunnel
from tests.support import (
    BEARER,
    HANDSHAKE,
    ClientConnection,
    Peer,
    Proxy,
    StuckWire,
    Wire,
    take_a_little_five_times_and_then_nothing,
)


class Joined:
    """A client and an upstream that have agreed to speak WebSocket.

    :param early: what the client sends ahead of the upstream's answer.
    """

    def __init__(self, early: bytes = b"") -> None:
        self.proxy = Proxy()
        self.client: ClientConnection = self.proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        if early:
            self.client.send(early)
        response = self.proxy.agent.only.answer(101, b"Switching Protocols")
        self.upstream: Peer = response.peer
        self.head = self.client.received

    @property
    def to_client(self) -> bytes:
        """What the client was sent behind the 101."""
        return self.client.received.removeprefix(self.head)

    @property
    def endings(self) -> list[Ending | None]:
        return [exchange.ending for exchange in self.proxy.exchanges]


@pytest.fixture
def joined() -> Joined:
    return Joined()


class TestBytes:
    def test_they_pass_both_ways_in_the_turn_in_which_they_come(self, joined: Joined) -> None:
        for data in (b"\x81\x05hello", b"\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\x00" * 100_000):
            joined.client.send(data)
            assert joined.upstream.received.endswith(data)
            joined.upstream.send(data)
            assert joined.to_client.endswith(data)
        assert joined.upstream.received == joined.to_client

    def test_what_the_client_sent_ahead_of_the_answer_goes_first(self) -> None:
        joined = Joined(early=b"early ")
        assert joined.upstream.received == b"early "
        joined.client.send(b"late")
        assert joined.upstream.received == b"early late"

    def test_what_the_client_sent_with_the_handshake_goes_first(self) -> None:
        proxy = Proxy()
        client = proxy.connect()
        lines = b"".join(b"%b: %b\r\n" % header for header in ((b"Host", b"x"), BEARER, *HANDSHAKE))
        client.send(b"GET /openai/v1/realtime HTTP/1.1\r\n" + lines + b"\r\n" + b"early")
        response = proxy.agent.only.answer(101, b"Switching Protocols")
        assert response.peer.received == b"early"

    def test_what_the_client_sends_ahead_is_read_no_further_than_it_came(self) -> None:
        proxy = Proxy()
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        assert not client.unread  # else nobody would notice it leave
        client.send(b"early")
        assert client.unread
        response = proxy.agent.only.answer(101, b"Switching Protocols")
        assert not client.unread
        client.send(b" late")
        assert response.peer.received == b"early late"

    def test_what_the_upstream_sends_before_it_has_heard_anything_arrives(self, joined: Joined) -> None:
        joined.upstream.send(b"session.created")
        assert joined.to_client == b"session.created"

    def test_those_to_the_client_are_counted(self, joined: Joined) -> None:
        joined.client.send(b"x" * 7)
        joined.upstream.send(b"x" * 4)
        joined.upstream.send(b"x" * 1)
        joined.client.leave()
        joined.proxy.turn()
        assert [exchange.sent for exchange in joined.proxy.exchanges] == [5]


class TestBackpressure:
    def test_an_upstream_that_reads_slowly_slows_its_client(self, joined: Joined) -> None:
        joined.upstream.stop_reading()
        assert joined.client.unread
        assert not joined.upstream.unread
        joined.client.send(b"waits")
        assert joined.upstream.received == b""
        joined.upstream.read_on()
        assert joined.upstream.received == b"waits"

    def test_a_client_that_reads_slowly_slows_its_upstream(self, joined: Joined) -> None:
        joined.client.stop_reading()
        assert joined.upstream.unread
        assert not joined.client.unread
        joined.upstream.send(b"waits")
        assert joined.to_client == b""
        joined.client.read_on()
        assert joined.to_client == b"waits"

    def test_a_client_that_is_slow_already_slows_its_upstream_from_the_start(self) -> None:
        proxy = Proxy()
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        client.stop_reading()
        assert proxy.agent.only.answer(101, b"Switching Protocols").peer.unread


class TestEnd:
    @pytest.mark.parametrize("reason", [error.ConnectionDone(), error.ConnectionLost()])
    def test_a_client_that_leaves_closes_the_upstream(self, joined: Joined, reason: Exception) -> None:
        joined.client.send(b"last words")
        joined.client.leave(reason)
        assert joined.upstream.received == b"last words"
        assert joined.upstream.ending == "closed"

    @pytest.mark.parametrize("reason", [error.ConnectionDone(), error.ConnectionLost()])
    def test_an_upstream_that_leaves_closes_the_client(self, joined: Joined, reason: Exception) -> None:
        joined.upstream.send(b"last words")
        joined.upstream.leave(reason)
        assert joined.to_client == b"last words"
        assert joined.client.ending == "closed"

    @pytest.mark.parametrize("slow", ["client", "upstream"])
    @pytest.mark.parametrize("leaver", ["client", "upstream"])
    def test_backpressure_does_not_hinder_it(self, joined: Joined, slow: str, leaver: str) -> None:
        peers = {"client": joined.client, "upstream": joined.upstream}
        peers[slow].stop_reading()
        peers.pop(leaver).leave()
        (other,) = peers.values()
        joined.proxy.turn()
        assert other.ending == "closed"
        assert joined.endings == [Ending.COMPLETED]

    @pytest.mark.parametrize("leaver", ["client", "upstream"])
    def test_it_is_told_once_when_both_are_closed(self, joined: Joined, leaver: str) -> None:
        joined.proxy.clock.advance(5)
        (joined.client if leaver == "client" else joined.upstream).leave()
        assert joined.endings == []
        joined.proxy.turn()
        (exchange,) = joined.proxy.exchanges
        assert (exchange.status, exchange.ending, exchange.duration) == (101, Ending.COMPLETED, 5.0)

    def test_both_may_leave_at_once(self, joined: Joined) -> None:
        joined.client.leave()
        joined.upstream.leave()
        joined.proxy.turn()
        assert joined.endings == [Ending.COMPLETED]

    def test_bytes_that_come_in_spite_of_it_harm_nothing(self, joined: Joined) -> None:
        joined.client.leave()
        joined.upstream.send(b"late")
        joined.proxy.turn()
        assert joined.to_client == b""
        assert joined.endings == [Ending.COMPLETED]

    def test_silence_is_none(self, joined: Joined) -> None:
        joined.proxy.clock.pump([3600.0] * 24)
        assert (joined.client.ending, joined.upstream.ending) == ("open", "open")
        assert joined.proxy.clock.getDelayedCalls() == []


ENDING = {"client": Ending.CLIENT_LEFT, "upstream": Ending.UPSTREAM_FAILED}


class TestDepartureOfASideThatIsNotRead:
    @pytest.mark.parametrize("leaver", ["client", "upstream"])
    def test_a_reset_ends_the_other(
        self, joined: Joined, leaver: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone: list[bool] = []
        monkeypatch.setattr("llmproxy.http.departure.was_reset", lambda _: bool(gone))
        slow = joined.upstream if leaver == "client" else joined.client
        slow.stop_reading()
        joined.proxy.clock.advance(1)
        assert slow.ending == "open"
        gone.append(True)
        joined.proxy.clock.advance(1)
        joined.proxy.turn()
        assert (joined.client.ending, joined.upstream.ending) == ("reset", "reset")
        assert joined.endings == [ENDING[leaver]]

    @pytest.mark.parametrize("leaver", ["client", "upstream"])
    def test_what_it_sent_before_it_closed_in_order_arrives(
        self, joined: Joined, leaver: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.http.departure.has_left", lambda _: True)
        peers = {"client": joined.client, "upstream": joined.upstream}
        sender = peers.pop(leaver)
        (slow,) = peers.values()
        slow.stop_reading()
        sender.send(b"last words")
        joined.proxy.clock.pump([1.0] * 599)
        assert (slow.ending, sender.ending) == ("open", "open")
        slow.read_on()
        sender.leave()
        joined.proxy.turn()
        assert slow.received.endswith(b"last words")
        assert slow.ending == "closed"
        assert joined.endings == [Ending.COMPLETED]

    def test_a_side_that_is_read_again_is_not_looked_for(
        self, joined: Joined, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.http.departure.was_reset", lambda _: True)
        joined.upstream.stop_reading()
        joined.upstream.read_on()
        joined.proxy.clock.advance(5)
        assert joined.client.ending == "open"


class TestASideThatIsLostBeforeItTookAll:
    @pytest.mark.parametrize("lost", ["client", "upstream"])
    def test_the_exchange_is_not_complete(self, joined: Joined, lost: str) -> None:
        peer = joined.client if lost == "client" else joined.upstream
        peer.stop_reading()
        peer.leave(error.ConnectionLost())
        joined.proxy.turn()
        assert joined.endings == [ENDING[lost]]

    @pytest.mark.parametrize("lost", ["client", "upstream"])
    def test_nor_is_it_when_the_other_has_ended_in_order_before(self, joined: Joined, lost: str) -> None:
        peers = {"client": joined.client, "upstream": joined.upstream}
        peer = peers.pop(lost)
        (other,) = peers.values()
        peer.stop_reading()
        other.leave()
        peer.leave(error.ConnectionLost())
        joined.proxy.turn()
        assert joined.endings == [ENDING[lost]]


class TestASideThatTakesNothing:
    @pytest.mark.parametrize("stuck", ["client", "upstream"])
    def test_it_is_given_up(self, joined: Joined, stuck: str) -> None:
        (joined.client if stuck == "client" else joined.upstream).stop_reading()
        joined.proxy.clock.advance(599)
        assert (joined.client.ending, joined.upstream.ending) == ("open", "open")
        joined.proxy.clock.advance(1)
        joined.proxy.turn()
        assert (joined.client.ending, joined.upstream.ending) == ("reset", "reset")
        assert joined.endings == [ENDING[stuck]]
        assert joined.proxy.clock.getDelayedCalls() == []

    def test_one_that_reads_on_is_not(self, joined: Joined) -> None:
        for _ in range(3):
            joined.client.stop_reading()
            joined.proxy.clock.advance(599)
            joined.client.read_on()
            joined.proxy.clock.advance(599)
        joined.proxy.clock.advance(10_000)
        assert (joined.client.ending, joined.upstream.ending) == ("open", "open")

    def test_one_that_takes_a_little_is_not_before_it_takes_none(
        self, joined: Joined, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take_a_little_five_times_and_then_nothing(joined.proxy, joined.client, monkeypatch)
        assert joined.client.ending == "reset"

    @pytest.mark.parametrize("leaver", ["client", "upstream"])
    def test_nor_is_the_last_that_it_was_sent_waited_for_longer(self, leaver: str) -> None:
        over: list[Ending] = []
        proxy = Proxy()
        tunnel = Tunnel(over.append, proxy.clock, 600)
        wires = {"client": StuckWire(proxy.clock), "upstream": StuckWire(proxy.clock)}
        for name, wire in wires.items():
            wire.protocol = getattr(tunnel, name)
            wire.protocol.makeConnection(wire)
        wires.pop(leaver).lose(error.ConnectionDone())
        ((name, slow),) = wires.items()
        proxy.clock.advance(599)
        assert (slow.ending, over) == ("closed", [])
        proxy.clock.advance(1)
        proxy.turn()
        assert (slow.ending, over) == ("reset", [ENDING[name]])
        assert proxy.clock.getDelayedCalls() == []


class TestDrain:
    def test_a_tunnel_is_in_flight_and_is_left_to_end(self, joined: Joined) -> None:
        drained: list[object] = []
        joined.proxy.site.drain().addCallback(drained.append)
        joined.proxy.turn()
        joined.client.send(b"a")
        joined.upstream.send(b"b")
        assert (joined.upstream.received, joined.to_client, drained) == (b"a", b"b", [])
        joined.client.leave()
        assert drained == [None]
        assert joined.upstream.ending == "closed"

    def test_out_of_time_it_is_cut_on_both_sides(self, joined: Joined) -> None:
        joined.proxy.site.abort()
        joined.proxy.turn()
        assert joined.client.ending == "reset"
        assert joined.upstream.ending == "closed"
        joined.proxy.turn()
        assert joined.endings == [Ending.COMPLETED]


def test_an_end_whose_other_is_not_there_yet_waits_unread() -> None:
    proxy = Proxy()
    tunnel = Tunnel(lambda _: None, proxy.clock, 600)
    client, upstream = Wire(proxy.clock), Wire(proxy.clock)
    client.protocol, upstream.protocol = tunnel.client, tunnel.upstream
    tunnel.client.makeConnection(client)
    client.arrive(b"waits")
    assert Peer(client).unread
    tunnel.client.dataReceived(b"handed over, ")  # whatever its former reader had read
    tunnel.upstream.makeConnection(upstream)
    assert upstream.value() == b"handed over, waits"


def test_it_is_not_over_before_both_ends_are_closed() -> None:
    proxy = Proxy()
    over: list[Ending] = []
    tunnel = Tunnel(over.append, proxy.clock, 600)
    tunnel.client.makeConnection(Wire(proxy.clock))
    tunnel.client.connectionLost(Failure(error.ConnectionDone()))
    assert over == []
    tunnel.upstream.connectionLost(Failure(error.ConnectionDone()))
    assert over == [Ending.COMPLETED]


@pytest.mark.parametrize("lost", ["client", "upstream"])
def test_an_end_closes_the_other_also_where_its_transport_stops_no_producer(lost: str) -> None:
    proxy = Proxy()
    tunnel = Tunnel(lambda _: None, proxy.clock, 600)
    client, upstream = Wire(proxy.clock), Wire(proxy.clock)
    tunnel.client.makeConnection(client)
    tunnel.upstream.makeConnection(upstream)
    getattr(tunnel, lost).connectionLost(Failure(error.ConnectionDone()))
    assert (upstream if lost == "client" else client).ending == "closed"
