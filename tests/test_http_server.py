"""All connections together: how many there may be, and how they end."""

from __future__ import annotations

import resource
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.web import http
from twisted.web.resource import Resource

from llmproxy.http.limits import DownstreamLimits
from llmproxy.http.request import Request
from llmproxy.http.server import Entrance, Site
from tests.http_support import GET, HOST, Connection, Page, Served, hi
from tests.support import log_lines

HANDSHAKE = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"


class Crowd:
    """A Site and many clients.

    :ivar requests: those that came; the test answers them.
    """

    def __init__(self, **limits: int) -> None:
        self.clock = Clock()
        self.requests: list[Request] = []
        self.site = Site(Page(self.requests.append), self.clock, DownstreamLimits(**limits))

    def connect(self, host: str = "192.0.2.1", by: Any = None) -> Connection:
        """Connect one more client, by an entrance or without."""
        return Connection(by or self.site, self.clock, host)


class TestLimits:
    def test_no_more_than_a_number_of_connections_are_taken(self) -> None:
        crowd = Crowd(connections=3)
        taken = [crowd.connect(f"192.0.2.{number}") for number in range(3)]
        assert not any(connection.refused for connection in taken)
        assert crowd.site.open == 3
        assert crowd.connect().refused
        taken[0].leave()
        assert not crowd.connect().refused

    def test_no_more_than_a_number_are_taken_from_one_address(self) -> None:
        crowd = Crowd(connections_per_address=2)
        first, second = crowd.connect(), crowd.connect()
        assert crowd.connect().refused
        assert not crowd.connect("192.0.2.2").refused
        first.leave()
        assert not crowd.connect().refused
        assert crowd.connect().refused
        second.leave()
        assert not crowd.connect().refused

    def test_addresses_are_forgotten_with_their_connections(self) -> None:
        crowd = Crowd()
        for number in range(100):
            crowd.connect(f"192.0.2.{number}").leave()
        assert len(crowd.site._from) == 0

    def test_those_that_are_expected_count_as_well(self) -> None:
        crowd = Crowd(connections=2)
        entrance = Entrance(crowd.site)
        assert entrance.expect("192.0.2.1")
        assert not crowd.connect().refused
        assert crowd.connect().refused
        assert not entrance.expect("192.0.2.1")
        entrance.expect_no_more("192.0.2.1")
        assert not crowd.connect().refused

    def test_those_that_are_expected_count_for_their_address(self) -> None:
        crowd = Crowd(connections_per_address=1)
        assert crowd.site.expect("192.0.2.1")
        assert crowd.connect().refused
        assert not crowd.site.expect("192.0.2.1")
        assert crowd.site.expect("192.0.2.2")
        for host in ("192.0.2.1", "192.0.2.2"):
            crowd.site.expect_no_more(host)
        assert len(crowd.site._from) == 0

    @pytest.mark.parametrize(
        ("descriptors", "places"), [(164, 50), (20, 5), (1, 1), (resource.RLIM_INFINITY, None)]
    )
    def test_each_client_leaves_a_descriptor_for_an_upstream(
        self, monkeypatch: pytest.MonkeyPatch, descriptors: int, places: int | None
    ) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
        crowd = Crowd()
        entrance = Entrance(crowd.site)
        taken = [crowd.connect() for _ in range((places or 100) - 1)]
        assert entrance.expect("192.0.2.1")
        assert not any(connection.refused for connection in taken)
        assert entrance.crowded == (places is not None)
        assert crowd.connect().refused == (places is not None)
        entrance.expect_no_more("192.0.2.1")
        assert not entrance.crowded

    def test_one_that_is_refused_disturbs_nobody(self) -> None:
        crowd = Crowd(connections=1)
        connection = crowd.connect()
        crowd.connect()
        connection.send(GET)
        hi(crowd.requests[0])
        assert connection.answer().body == b"hi"
        assert crowd.site.open == 1


class TestDrain:
    def drained(self, crowd: Crowd) -> list[object]:
        """Begin to drain; the list is no longer empty when no connection is left."""
        done: list[object] = []
        crowd.site.drain().addCallback(done.append)
        return done

    def test_without_connections_it_is_done(self) -> None:
        assert self.drained(Crowd()) == [None]

    def test_idle_connections_are_closed_at_once(self) -> None:
        crowd = Crowd()
        fresh, used = crowd.connect(), crowd.connect()
        used.send(GET)
        hi(crowd.requests[0])
        done = self.drained(crowd)
        assert (fresh.ending, used.ending) == ("closed", "closed")
        fresh.turn()
        assert done == [None]
        assert crowd.clock.getDelayedCalls() == []

    def test_a_request_in_progress_is_finished_and_its_connection_closed(self) -> None:
        crowd = Crowd()
        connection = crowd.connect()
        connection.send(GET)
        done = self.drained(crowd)
        crowd.clock.advance(10_000)
        assert connection.ending == "open"
        hi(crowd.requests[0])
        assert (b"Connection", b"close") in connection.answer().headers
        assert connection.ending == "closed"
        connection.turn()
        assert done == [None]

    def test_a_response_in_progress_is_finished_and_its_connection_closed(self) -> None:
        crowd = Crowd()
        connection = crowd.connect()
        connection.send(GET)
        crowd.requests[0].write(b"begun")
        self.drained(crowd)
        crowd.requests[0].write(b" before")
        crowd.requests[0].finish()
        assert connection.answer().body == b"begun before"
        assert connection.answer().whole
        assert connection.ending == "closed"

    def test_requests_that_wait_behind_one_in_progress_are_not_begun(self) -> None:
        crowd = Crowd()
        connection = crowd.connect()
        connection.send(GET + GET)
        self.drained(crowd)
        hi(crowd.requests[0])
        assert len(crowd.requests) == 1
        assert connection.ending == "closed"

    @pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHo", GET[:-1]])
    def test_a_request_that_is_coming_is_served(self, start: bytes) -> None:
        crowd = Crowd()
        connection = crowd.connect()
        connection.send(start)
        self.drained(crowd)
        connection.send(GET[len(start) :] if start != b"GET / HTTP/1.1\r\nHo" else b"st: x\r\n\r\n")
        hi(crowd.requests[0])
        assert (b"Connection", b"close") in connection.answer().headers
        assert connection.ending == "closed"

    def test_one_that_never_comes_ends_in_time(self) -> None:
        crowd = Crowd()
        connection = crowd.connect()
        connection.send(b"GET /")
        done = self.drained(crowd)
        crowd.clock.advance(30)
        assert connection.answer().status == 408
        crowd.clock.advance(2)
        connection.turn()
        assert done == [None]

    def test_a_handshake_and_a_tunnel_are_in_progress(self) -> None:
        crowd = Crowd()
        connection = crowd.connect()
        connection.send(HANDSHAKE)
        done = self.drained(crowd)
        assert connection.ending == "open"
        crowd.requests[0].setResponseCode(101)
        crowd.requests[0].switchProtocols(Protocol())
        assert connection.ending == "open"
        connection.leave()
        assert done == [None]

    def test_a_tunnel_is_not_closed(self) -> None:
        crowd = Crowd()
        connection = crowd.connect()
        connection.send(HANDSHAKE)
        crowd.requests[0].switchProtocols(Protocol())
        done = self.drained(crowd)
        assert connection.ending == "open"
        assert done == []

    def test_a_connection_that_is_made_in_the_meantime_is_closed_after_its_request(self) -> None:
        crowd = Crowd()
        crowd.site.drain()
        connection = crowd.connect()
        connection.send(GET)
        hi(crowd.requests[0])
        assert connection.ending == "closed"


class TestEntrance:
    def test_a_connection_through_it_is_the_sites(self) -> None:
        crowd = Crowd(connections=1)
        entrance = Entrance(crowd.site)
        connection = crowd.connect(by=entrance)
        connection.send(GET)
        hi(crowd.requests[0])
        assert connection.answer().body == b"hi"
        assert crowd.site.open == 1
        assert crowd.connect(by=entrance).refused
        connection.leave()
        assert crowd.site.open == 0

    def test_draining_it_ends_what_came_through_it_and_nothing_else(self) -> None:
        crowd = Crowd()
        entrance, other = Entrance(crowd.site), Entrance(crowd.site)
        idle, busy = crowd.connect(by=entrance), crowd.connect(by=entrance)
        elsewhere = [crowd.connect(by=other), crowd.connect()]
        busy.send(GET)
        crowd.requests[0].write(b"begun")
        entrance.drain()
        assert (idle.ending, busy.ending) == ("closed", "open")
        crowd.requests[0].write(b" before")
        crowd.requests[0].finish()
        assert busy.answer().body == b"begun before"
        assert busy.ending == "closed"
        for connection in elsewhere:
            connection.send(GET)
            hi(crowd.requests[-1])
            assert (b"Connection", b"close") not in connection.answer().headers
            assert connection.ending == "open"

    def test_an_answer_that_begins_while_it_drains_says_that_it_is_the_last(self) -> None:
        crowd = Crowd()
        entrance = Entrance(crowd.site)
        connection = crowd.connect(by=entrance)
        connection.send(GET + GET)
        entrance.drain()
        hi(crowd.requests[0])
        assert (b"Connection", b"close") in connection.answer().headers
        assert connection.ending == "closed"
        assert len(crowd.requests) == 1

    def test_a_tunnel_through_it_is_not_closed(self) -> None:
        crowd = Crowd()
        entrance = Entrance(crowd.site)
        connection = crowd.connect(by=entrance)
        connection.send(HANDSHAKE)
        crowd.requests[0].switchProtocols(Protocol())
        entrance.drain()
        assert connection.ending == "open"

    def test_who_was_let_in_at_the_last_moment_is_served_once(self) -> None:
        crowd = Crowd()
        entrance = Entrance(crowd.site)
        entrance.drain()
        connection = crowd.connect(by=entrance)
        connection.send(GET)
        hi(crowd.requests[0])
        assert connection.answer().body == b"hi"
        assert connection.ending == "closed"

    def test_the_whole_site_drains_it_too(self) -> None:
        crowd = Crowd()
        connection = crowd.connect(by=Entrance(crowd.site))
        connection.send(GET)
        crowd.site.drain()
        hi(crowd.requests[0])
        assert connection.ending == "closed"


class TestAbort:
    def test_all_connections_are_closed_at_once(self) -> None:
        crowd = Crowd()
        idle, busy, tunnel = crowd.connect(), crowd.connect(), crowd.connect()
        busy.send(GET)
        crowd.requests[0].write(b"begun")
        tunnel.send(HANDSHAKE)
        crowd.requests[1].switchProtocols(Protocol())
        done: list[object] = []
        crowd.site.drain().addCallback(done.append)
        crowd.site.abort()
        assert (busy.ending, tunnel.ending) == ("reset", "reset")
        idle.turn()
        assert done == [None]
        assert crowd.clock.getDelayedCalls() == []


class TestSite:
    def test_nothing_is_logged_for_a_request(self) -> None:
        served = Served(hi)
        served.site.doStart()
        with log_lines() as lines:
            served.client.send(b"GET /?key=hidden HTTP/1.1\r\n" + HOST + b"\r\n")
        served.site.doStop()
        assert lines == []

    def test_http_2_is_never_offered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # twisted.web offers it where a package for it is installed; connections here would not understand it.
        monkeypatch.setattr(http, "H2_ENABLED", True)
        assert Served().site.acceptableProtocols() == [b"http/1.1"]

    def test_limits_have_defaults(self) -> None:
        assert Site(Resource(), Clock()).limits == DownstreamLimits()

    def test_new_connections_are_under_new_limits_and_old_ones_under_theirs(self) -> None:
        crowd = Crowd()
        old = crowd.connect()
        crowd.site.limits = DownstreamLimits(target=5)
        new = crowd.connect()
        for connection in (old, new):
            connection.send(b"GET /longer HTTP/1.1\r\n" + HOST + b"\r\n")
        assert new.answer().status == 414
        assert old.received == b""
