from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.testing import MemoryReactorClock

from llmproxy.config import Config, Credential, Upstream
from llmproxy.http.fields import Fields
from llmproxy.http.limits import UpstreamLimits
from llmproxy.keyring import Key
from llmproxy.route import Route
from llmproxy.routes import Routes
from llmproxy.values import BaseURL, parse_proxy
from tests.support import ANTHROPIC, CONFIG, OPENAI
from tests.upstream_support import HOST, OK, Outcome, Resolver, Wire, read

KEYED = attrs.evolve(OPENAI, base_url=BaseURL("http", "192.0.2.1", 80, ""), keys=("sk-first", "sk-second"))
ELSEWHERE = BaseURL("http", "192.0.2.2", 80, "")


def config(*upstreams: Upstream, **settings: Any) -> Config:
    return attrs.evolve(CONFIG, upstreams=upstreams, **settings)


class Reloading:
    """The routes of one daemon, over a reactor in memory."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.nameResolver = Resolver({})  # type: ignore[assignment]
        self.reactor.advance(1000)
        self.routes = Routes(self.reactor)

    def change(self, *upstreams: Upstream, **settings: Any) -> Route:
        """Load a configuration, and return the route to its first upstream."""
        return self.routes.change(config(*upstreams, **settings))[0]

    def ask(self, route: Route) -> Outcome:
        url = route.upstream.base_url.join(b"/v1/x")
        return Outcome(route.client.request(b"GET", url, Fields([HOST]), None))

    def accept(self) -> Wire:
        wire = Wire()
        wire.connect(self.reactor.tcpClients[-1][2].buildProtocol(None))
        return wire

    def warm(self, route: Route) -> Wire:
        """A connection of a route that is kept."""
        outcome = self.ask(route)
        wire = self.accept()
        wire.take()
        wire.receive(OK)
        assert read(outcome.result).body == b"ok"
        return wire

    def close(self) -> None:
        self.routes.close()


@pytest.fixture
def reloading() -> Reloading:
    return Reloading()


def chosen(route: Route) -> Key:
    key = route.keyring.choose()
    assert key is not None
    return key


def next_keys(route: Route, count: int = 3) -> list[str]:
    return [chosen(route).secret for _ in range(count)]


class TestRoute:
    def test_there_is_one_for_each_upstream_in_the_operators_order(self, reloading: Reloading) -> None:
        routes = reloading.routes.change(config(ANTHROPIC, OPENAI))
        assert [route.upstream for route in routes] == [ANTHROPIC, OPENAI]
        assert reloading.routes.all == routes

    @pytest.mark.parametrize(
        ("credential", "presented"),
        [
            ("bearer", ((b"Authorization", b"Bearer a+b"), None)),
            ("header:api-key", ((b"api-key", b"a+b"), None)),
            ("query:key", (None, b"key=a%2Bb")),
            ("none", (None, None)),
        ],
    )
    def test_a_key_is_presented_as_the_upstream_wants_it(
        self, reloading: Reloading, credential: str, presented: object
    ) -> None:
        upstream = attrs.evolve(OPENAI, credential=Credential.parse(credential), keys=("x", "a+b"))
        route = reloading.change(upstream)
        assert route.presented(route.keyring.keys[1]) == presented
        assert route.presented(None) == (None, None)

    def test_its_repr_shows_no_key(self, reloading: Reloading) -> None:
        assert "sk-" not in repr(reloading.change(KEYED))


class TestConnections:
    def test_they_are_kept_where_nothing_about_them_changed(self, reloading: Reloading) -> None:
        wire = reloading.warm(reloading.change(KEYED, ANTHROPIC))
        same = attrs.evolve(
            KEYED,
            keys=("another",),
            credential=Credential.parse("x-api-key"),
            default_headers=((b"X-A", b"1"),),
            timeouts=attrs.evolve(KEYED.timeouts, idle=1.0),
        )
        route = reloading.change(same, clients=(), cors_origins=("*",), max_resent_body=1)
        assert (route.upstream, wire.ending) == (same, "open")
        outcome = reloading.ask(route)
        wire.receive(OK)
        assert read(outcome.result).body == b"ok"
        assert len(reloading.reactor.tcpClients) == 1
        reloading.close()

    @pytest.mark.parametrize(
        ("change", "settings"),
        [
            ({"name": "renamed"}, {}),
            ({"base_url": ELSEWHERE}, {}),
            ({"limits": UpstreamLimits(connections=1)}, {}),
            ({}, {"https_proxy": parse_proxy("http://192.0.2.9:3128")}),
            ({}, {"no_proxy": "192.0.2.0"}),
        ],
    )
    def test_they_are_closed_where_something_about_them_changed(
        self, reloading: Reloading, change: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        wire = reloading.warm(reloading.change(KEYED))
        route = reloading.change(attrs.evolve(KEYED, **change), **settings)
        assert wire.ending == "closed"
        reloading.ask(route)
        assert len(reloading.reactor.tcpClients) == 2

    def test_they_are_closed_where_an_upstream_is_no_more(self, reloading: Reloading) -> None:
        wire = reloading.warm(reloading.change(KEYED))
        reloading.change(ANTHROPIC)
        assert wire.ending == "closed"
        wire.turn()
        assert reloading.reactor.getDelayedCalls() == []

    def test_certificates_that_were_replaced_under_the_same_name_count(
        self, reloading: Reloading, tmp_path: Path
    ) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("one")
        trusting = attrs.evolve(KEYED, ca_file=str(file))
        wire = reloading.warm(reloading.change(trusting))
        reloading.change(trusting)
        assert wire.ending == "open"
        file.write_text("two")
        reloading.change(trusting)
        assert wire.ending == "closed"

    def test_what_is_in_flight_ends_on_the_old_one(self, reloading: Reloading) -> None:
        old = reloading.change(KEYED)
        outcome = reloading.ask(old)
        wire = reloading.accept()
        new = reloading.change(attrs.evolve(KEYED, base_url=ELSEWHERE))
        assert wire.ending == "open"
        wire.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        reader = read(outcome.result)
        reloading.change(ANTHROPIC)
        wire.receive(b"lo")
        assert reader.body == b"hello"
        assert wire.ending == "closed"  # and is not kept for anyone
        assert new is not old

    def test_who_is_still_to_be_sent_on_the_old_one_is_sent(self, reloading: Reloading) -> None:
        old = reloading.change(KEYED)
        reloading.change(attrs.evolve(KEYED, base_url=ELSEWHERE))
        outcome = reloading.ask(old)
        assert reloading.reactor.tcpClients[-1][0] == "192.0.2.1"
        wire = reloading.accept()
        wire.receive(OK)
        assert read(outcome.result).body == b"ok"
        reloading.reactor.advance(KEYED.limits.idle)
        assert wire.ending == "closed"

    def test_closing_closes_those_of_all(self, reloading: Reloading) -> None:
        routes = reloading.routes.change(config(KEYED, attrs.evolve(KEYED, name="other")))
        wires = [reloading.warm(route) for route in routes]
        reloading.close()
        assert [wire.ending for wire in wires] == ["closed", "closed"]
        for wire in wires:
            wire.turn()
        assert reloading.reactor.getDelayedCalls() == []

    def test_upstreams_share_none(self, reloading: Reloading) -> None:
        # Each has bounds of its own.
        first, second = reloading.routes.change(config(KEYED, attrs.evolve(KEYED, name="other")))
        reloading.warm(first)
        reloading.ask(second)
        assert len(reloading.reactor.tcpClients) == 2
        reloading.close()


class TestKeys:
    def test_one_that_rests_goes_on_resting(self, reloading: Reloading) -> None:
        route = reloading.change(KEYED)
        route.keyring.report(chosen(route), 429, "60")
        reloading.reactor.advance(59)
        for keys in (KEYED.keys, ("sk-third", "sk-second", "sk-first"), ("sk-first", "sk-second")):
            route = reloading.change(attrs.evolve(KEYED, keys=keys))
            assert "sk-first" not in next_keys(route)
        reloading.reactor.advance(1)
        assert "sk-first" in next_keys(route)

    def test_a_new_one_is_taken_at_once_and_an_old_one_no_more(self, reloading: Reloading) -> None:
        reloading.change(KEYED)
        route = reloading.change(attrs.evolve(KEYED, keys=("sk-second", "sk-new")))
        assert set(next_keys(route)) == {"sk-second", "sk-new"}

    def test_turns_go_on_where_the_keys_are_the_same(self, reloading: Reloading) -> None:
        route = reloading.change(KEYED)
        assert next_keys(route, 1) == ["sk-first"]
        assert next_keys(reloading.change(KEYED), 1) == ["sk-second"]

    def test_a_refusal_that_a_request_in_flight_meets_counts(self, reloading: Reloading) -> None:
        old = reloading.change(KEYED)
        key = chosen(old)
        new = reloading.change(attrs.evolve(KEYED, timeouts=attrs.evolve(KEYED.timeouts, idle=1.0)))
        old.keyring.report(key, 401)
        assert set(next_keys(new)) == {"sk-second"}

    @pytest.mark.parametrize("change", [{"name": "renamed"}, {"base_url": ELSEWHERE}])
    def test_what_another_upstream_said_of_one_does_not_count(
        self, reloading: Reloading, change: dict[str, Any]
    ) -> None:
        route = reloading.change(KEYED)
        route.keyring.report(chosen(route), 401)
        assert "sk-first" in next_keys(reloading.change(attrs.evolve(KEYED, **change)))
