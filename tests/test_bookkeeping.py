from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from llmproxy.bookkeeping import Bookkeeping, database_of
from llmproxy.config import Accounting, Config, ConfigError, PriceOverride
from llmproxy.exchange import Ending, Exchange
from llmproxy.ledger import Database
from llmproxy.ledger.row import COLUMNS, row_of
from llmproxy.observation import look_at_response
from llmproxy.prices import PriceBook
from llmproxy.usage import Usage
from llmproxy.values import BaseURL
from tests.metrics_support import Pool, exchange, reading
from tests.support import BEARER, CONFIG, HANDSHAKE, OPENAI, ClientConnection, Peer, StuckWire, log_lines
from tests.test_frames import frame
from tests.test_service import ANSWER, Running, accept, collector, limits
from tests.usage_support import dumped

__all__ = ["collector", "limits"]  # fixtures

PLAIN = attrs.evolve(CONFIG, upstreams=(attrs.evolve(OPENAI, base_url=BaseURL("http", "127.0.0.1", 1, "")),))


class Ledger:
    """A ledger of which a test says when it is closed.

    :ivar ids: of what was recorded.
    """

    backlog = dropped = failures = 0

    def __init__(self, database: Database, settings: dict[str, Any]) -> None:
        self.file = str(database)
        self.settings = settings
        self.ids: list[str] = []
        self.recorded: list[Exchange] = []
        self.started = 0
        self.closed: Deferred[None] | None = None

    def start(self) -> None:
        self.started += 1

    def record(self, exchange: Exchange) -> None:
        assert self.closed is None, "it was closed"
        self.ids.append(exchange.id)
        self.recorded.append(exchange)

    def close(self, heir: object = None) -> Deferred[None]:
        if self.closed is None:
            self.closed = Deferred()
            self.heir = heir
        ended: Deferred[None] = Deferred()
        self.closed.addCallback(lambda _: ended.callback(None))
        return ended


@pytest.fixture
def ledgers(monkeypatch: pytest.MonkeyPatch) -> list[Ledger]:
    """Those that were opened, in the place of databases."""
    opened: list[Ledger] = []

    def open_ledger(database: Database, reactor: object, **settings: Any) -> Ledger:
        opened.append(Ledger(database, settings))
        return opened[-1]

    monkeypatch.setattr("llmproxy.ledger.succession.open_ledger", open_ledger)
    return opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


def written_to(name: str, **accounting: Any) -> Config:
    """A configuration with a ledger."""
    return attrs.evolve(PLAIN, accounting=Accounting(ledger=f"sqlite:////ledgers/{name}", **accounting))


Make = Callable[..., Bookkeeping]


@pytest.fixture
def make(clock: Clock, ledgers: list[Ledger]) -> Make:
    def made(config: Config, access_log: bool = False) -> Bookkeeping:
        books = Bookkeeping(
            clock, lambda: 3, lambda: [("openai", Pool(open=2, idle=1, waiting=0))], access_log
        )
        books.change(config)
        return books

    return made


def ended(books: Bookkeeping, *ids: str, **changes: Any) -> None:
    """Let exchanges be over."""
    if books.observer is not None:
        for name in ids:
            books.observer(exchange(id=name, **changes))


def shown(books: Bookkeeping, name: str) -> list[float]:
    """The values of a metric."""
    families = books.metrics.registry.collect()
    return [sample.value for family in families for sample in family.samples if sample.name == name]


def by_upstream(books: Bookkeeping, name: str) -> dict[str, float]:
    """The values of a metric, by the upstream that each is labelled with."""
    families = books.metrics.registry.collect()
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels["upstream"]: sample.value for sample in samples}


class TestLedger:
    def test_what_ended_is_recorded_off_the_request_path(
        self, make: Make, clock: Clock, ledgers: list[Ledger]
    ) -> None:
        books = make(written_to("a"))
        ended(books, "1", "2")
        [ledger] = ledgers
        assert (ledger.started, ledger.ids) == (1, [])
        clock.advance(0.5)
        assert ledger.ids == ["1", "2"]

    def test_it_is_opened_as_the_configuration_says(self, make: Make, ledgers: list[Ledger]) -> None:
        make(written_to("a", retention_days=30, backlog=50))
        assert ledgers[0].file == "/ledgers/a"
        assert ledgers[0].settings == {"retention": 30, "max_waiting": 50}

    def test_what_is_recorded_has_its_price(self, make: Make, clock: Clock, ledgers: list[Ledger]) -> None:
        prices = (PriceOverride("gpt-*", input=Decimal(1), output=Decimal(10)),)
        books = make(written_to("a", prices=prices))
        usage = Usage(input_tokens=10, output_tokens=20)
        ended(books, "1", reading=reading(usage=usage), cost=None)
        clock.advance(0.5)
        assert ledgers[0].recorded[0].cost == 10 * 1 + 20 * 10

    def test_prices_are_read_again_only_where_they_changed(
        self, make: Make, clock: Clock, ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[object] = []

        def noted(*arguments: Any) -> PriceBook:
            read.append(arguments)
            return PriceBook(*arguments)

        monkeypatch.setattr("llmproxy.bookkeeping.PriceBook", noted)
        books = make(written_to("a"))
        books.change(written_to("a", backlog=7))
        assert len(read) == 1
        books.change(written_to("a", prices=(PriceOverride("gpt-*", input=Decimal(1), output=Decimal(1)),)))
        ended(books, "1", reading=reading(usage=Usage(input_tokens=10, output_tokens=20)), cost=None)
        clock.advance(0.5)
        assert [over.cost for ledger in ledgers for over in ledger.recorded] == [30]
        books.change(attrs.evolve(written_to("a"), upstreams=PLAIN.upstreams[:1]))
        assert len(read) == 3

    def test_after_a_reload_that_does_not_concern_it_it_goes_on(
        self, make: Make, clock: Clock, ledgers: list[Ledger]
    ) -> None:
        books = make(written_to("a"))
        ended(books, "1")
        books.change(written_to("a", request_id=False))
        ended(books, "2")
        clock.advance(0.5)
        [ledger] = ledgers
        assert (ledger.ids, ledger.closed) == (["1", "2"], None)

    @pytest.mark.parametrize(
        "config", [written_to("b"), written_to("a", retention_days=7), written_to("a", backlog=7)]
    )
    def test_after_a_reload_with_another_the_rest_goes_to_the_old_one(
        self, make: Make, clock: Clock, ledgers: list[Ledger], config: Config
    ) -> None:
        books = make(written_to("a"))
        ended(books, "1")
        books.change(config)
        old, new = ledgers
        assert old.ids == ["1"]
        assert old.closed is not None
        ended(books, "2")
        clock.advance(0.5)
        assert (old.ids, new.ids, new.started) == (["1"], ["2"], 1)

    def test_a_reload_can_take_it_away_and_give_one(
        self, make: Make, clock: Clock, ledgers: list[Ledger]
    ) -> None:
        books = make(written_to("a"), access_log=True)
        ended(books, "1")
        books.change(PLAIN)
        ended(books, "2")
        clock.advance(0.5)
        books.change(written_to("b"))
        ended(books, "3")
        clock.advance(0.5)
        assert [ledger.ids for ledger in ledgers] == [["1"], ["3"]]

    def test_what_was_counted_of_it_stays_counted_over_reloads(
        self, make: Make, ledgers: list[Ledger]
    ) -> None:
        names = ("llmproxy_ledger_dropped_records_total", "llmproxy_ledger_write_failures_total")
        books = make(PLAIN)
        assert [shown(books, name) for name in names] == [[], []]
        books.change(written_to("a"))
        ledgers[0].dropped, ledgers[0].failures = 3, 2
        for config in (PLAIN, written_to("b")):
            books.change(config)
            assert [shown(books, name) for name in names] == [[3], [2]]
        assert ledgers[0].closed is not None
        ledgers[0].closed.callback(None)
        ledgers[1].dropped = 1
        assert [shown(books, name) for name in names] == [[4], [2]]

    def test_the_end_waits_until_all_are_written(
        self, make: Make, clock: Clock, ledgers: list[Ledger]
    ) -> None:
        books = make(written_to("a"))
        books.change(written_to("b"))
        ended(books, "1")
        closed: list[object] = []
        books.close().addCallback(closed.append)
        assert [ledger.ids for ledger in ledgers] == [[], ["1"]]
        for ledger in ledgers:
            assert closed == []
            assert ledger.closed is not None
            ledger.closed.callback(None)
        assert len(closed) == 1
        assert clock.getDelayedCalls() == []

    def test_without_one_there_is_nothing_to_wait_for(self, make: Make) -> None:
        closed: list[object] = []
        make(PLAIN).close().addCallback(closed.append)
        assert len(closed) == 1

    def test_one_that_cannot_be_is_told_without_its_password(self) -> None:
        config = attrs.evolve(PLAIN, accounting=Accounting(ledger="mysql://me:s3cret@host/name"))
        with pytest.raises(ConfigError, match="ledger must be") as caught:
            database_of(config)
        assert "s3cret" not in str(caught.value)


class TestObservers:
    @pytest.mark.parametrize(
        ("config", "access_log"),
        [(written_to("a"), False), (PLAIN, True), (attrs.evolve(PLAIN, admin="tcp:0"), False)],
    )
    def test_somebody_is_told_where_somebody_wants_to_know(
        self, make: Make, config: Config, access_log: bool
    ) -> None:
        assert make(config, access_log).observer is not None

    def test_where_nobody_does_nobody_is_and_no_prices_are_read(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.bookkeeping.PriceBook", None)
        assert make(PLAIN).observer is None

    def test_it_is_a_reload_that_changes_that(self, make: Make) -> None:
        books = make(PLAIN)
        books.change(written_to("a"))
        assert books.observer is not None
        books.change(PLAIN)
        assert books.observer is None

    def test_the_metrics_count_what_ended(self, make: Make, clock: Clock) -> None:
        books = make(attrs.evolve(PLAIN, admin="tcp:0"))
        ended(books, "1", "2")
        clock.advance(0.5)
        assert sum(shown(books, "llmproxy_exchanges_total")) == 2

    def test_what_nobody_can_ask_for_is_not_counted_until_somebody_can(
        self, make: Make, clock: Clock, ledgers: list[Ledger]
    ) -> None:
        books = make(written_to("a"))
        ended(books, "1", "2")
        clock.advance(0.5)
        assert sum(shown(books, "llmproxy_exchanges_total")) == 0
        books.change(attrs.evolve(written_to("a"), admin="tcp:0"))
        ended(books, "3")
        clock.advance(0.5)
        assert sum(shown(books, "llmproxy_exchanges_total")) == 1
        assert ledgers[0].ids == ["1", "2", "3"]

    def test_what_is_not_over_is_shown_too(self, make: Make) -> None:
        books = make(attrs.evolve(PLAIN, admin="tcp:0"))
        books.open.update(
            {"1": exchange(first_byte=None), "2": exchange(), "3": exchange(upstream="anthropic")}
        )
        assert shown(books, "llmproxy_open_exchanges") == [2, 1]
        assert shown(books, "llmproxy_open_streams") == [1, 1]
        assert shown(books, "llmproxy_client_connections") == [3]

    @pytest.mark.parametrize("name", ["llmproxy_open_exchanges", "llmproxy_open_streams"])
    def test_an_upstream_of_which_nothing_is_open_is_shown_with_0(self, make: Make, name: str) -> None:
        books = make(CONFIG)
        assert by_upstream(books, name) == {"openai": 0, "anthropic": 0}
        books.open["1"] = exchange(upstream="openai")
        assert by_upstream(books, name) == {"openai": 1, "anthropic": 0}
        del books.open["1"]
        assert by_upstream(books, name) == {"openai": 0, "anthropic": 0}

    @pytest.mark.parametrize("name", ["llmproxy_open_exchanges", "llmproxy_open_streams"])
    def test_after_a_reload_an_upstream_that_is_gone_is_shown_as_long_as_something_of_it_is_open(
        self, make: Make, name: str
    ) -> None:
        books = make(PLAIN)
        books.open["1"] = exchange(upstream="openai")
        books.change(attrs.evolve(PLAIN, upstreams=(attrs.evolve(OPENAI, name="new"),)))
        assert by_upstream(books, name) == {"new": 0, "openai": 1}
        del books.open["1"]
        assert by_upstream(books, name) == {"new": 0}

    def test_the_access_log_has_a_line_for_each(self, make: Make, clock: Clock) -> None:
        books = make(PLAIN, access_log=True)
        ended(books, "1", "2", reading=None)
        with log_lines() as lines:
            clock.advance(0.5)
        assert len(lines) == 2


class TestNobodyWatches:
    def served(
        self, monkeypatch: pytest.MonkeyPatch, **options: Any
    ) -> tuple[ClientConnection, list[object]]:
        """Serve one request; return its client, and the answers that were looked at."""
        made: list[object] = []

        def noted(*arguments: Any) -> Any:
            made.append(arguments)
            return look_at_response(*arguments)

        monkeypatch.setattr("llmproxy.forwarding.look_at_response", noted)
        running = Running(config=PLAIN, **options)
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", headers=[(b"x-api-key", b"local-token-of-the-team")])
        accept(running).send(ANSWER)
        assert client.response().body == b"hello"
        running.stop()
        client.leave()
        running.reactor.advance(1)
        return client, made

    def test_then_nothing_is_observed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        client, made = self.served(monkeypatch, access_log=False)
        assert made == []
        assert len(client.response().values(b"x-llmproxy-request-id")) == 1

    def test_else_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, made = self.served(monkeypatch, access_log=True)
        assert len(made) == 1


class Stuck:
    """A service that has a WebSocket, with a turn that runs, whose upstream takes nothing of what it is sent any more."""

    def __init__(self, **options: Any) -> None:
        self.running = Running(config=written_to("a"), **options)
        self.running.start()
        self.client = self.running.connect()
        self.client.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        self.upstream: Peer = accept(self.running, StuckWire)
        switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        self.upstream.send(switching)
        self.began = frame(1, dumped({"type": "response.created", "response": {"id": "resp_1"}}))
        self.upstream.send(self.began)
        self.client.send(b"not taken")

    def wait(self, seconds: float) -> None:
        """Let time pass, as a reactor does that turns a hundred times in a second."""
        self.running.reactor.pump([0.01] * round(seconds * 100))


class TestWhatDoesNotEnd:
    """A WebSocket that is open still when the books are closed."""

    def test_it_is_recorded_as_it_is_a_second_after_its_client_has_left(self, ledgers: list[Ledger]) -> None:
        stuck = Stuck()
        stopped = stuck.running.stop()
        stuck.wait(2)
        stuck.client.leave()
        stuck.wait(0.9)
        [ledger] = ledgers
        assert (ledger.recorded, ledger.closed) == ([], None)
        stuck.wait(0.4)
        turn, socket = ledger.recorded
        assert (turn.socket, turn.ending) == (socket.id, Ending.PROXY_FAILED)
        assert turn.reading is not None
        assert turn.reading.outcome == "cut"
        assert (socket.status, socket.ending, socket.sent) == (101, Ending.PROXY_FAILED, len(stuck.began))
        assert socket.duration == pytest.approx(3, abs=0.3)
        assert ledger.closed is not None
        ledger.closed.callback(None)
        assert len(stopped) == 1

    def test_so_it_is_where_the_proxy_cut_its_client_off(self, ledgers: list[Ledger]) -> None:
        stuck = Stuck(drain=1.0)
        stuck.running.stop()
        stuck.wait(2.5)
        assert [over.ending for over in ledgers[0].recorded] == [Ending.PROXY_FAILED] * 2

    @pytest.mark.parametrize("reason", [error.ConnectionDone(), error.ConnectionLost()])
    def test_its_end_is_not_told_again(self, ledgers: list[Ledger], reason: Exception) -> None:
        stuck = Stuck()
        stuck.running.stop()
        stuck.client.leave()
        stuck.wait(1.5)
        [ledger] = ledgers
        told = [(over.id, over.ending, over.sent, over.duration) for over in ledger.recorded]
        stuck.upstream.send(stuck.began)
        stuck.upstream.leave(reason)
        stuck.wait(1)
        assert len(told) == 2
        assert [(over.id, over.ending, over.sent, over.duration) for over in ledger.recorded] == told
        assert stuck.running.reactor.getDelayedCalls() == []

    def test_one_that_ends_in_time_has_its_own_ending(self, ledgers: list[Ledger]) -> None:
        stuck = Stuck()
        stuck.running.stop()
        stuck.client.leave()
        stuck.wait(0.9)
        stuck.upstream.leave()
        stuck.wait(0.5)
        assert [over.ending for over in ledgers[0].recorded] == [Ending.COMPLETED] * 2

    def test_nor_is_the_failure_of_a_request_that_is_over(self, ledgers: list[Ledger]) -> None:
        running = Running(config=written_to("a"))
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", headers=[BEARER])
        upstream = accept(running)
        [open_] = running.service._books.open.values()
        assert open_.end is not None
        open_.end(Ending.PROXY_FAILED)
        upstream.leave(error.ConnectionLost())
        client.leave()
        running.reactor.advance(0.5)
        assert [(over.ending, over.status) for over in ledgers[0].recorded] == [(Ending.PROXY_FAILED, None)]

    def test_what_nobody_forwards_does_not_hinder_the_end(
        self, make: Make, clock: Clock, ledgers: list[Ledger]
    ) -> None:
        books = make(written_to("a"))
        books.open["1"] = exchange()
        books.close()
        clock.pump([0.05] * 21)
        assert (ledgers[0].recorded, ledgers[0].closed is None) == ([], False)


def test_the_settings_reach_what_observes(monkeypatch: pytest.MonkeyPatch, ledgers: list[Ledger]) -> None:
    config = written_to("a", session_headers=(b"x-thread", b"x-team"), request_id=False)
    running = Running(config=config, access_log=False)
    running.start()
    client = running.connect()
    headers = [(b"x-api-key", b"local-token-of-the-team"), (b"X-Team", b"red"), (b"X-Other", b"blue")]
    headers += [(b"X-Thread", b"t-1"), (b"X-Claude-Code-Agent-Id", b"a-1")]
    client.ask(b"/openai/v1/x", headers=headers)
    accept(running).send(ANSWER)
    assert client.response().values(b"x-llmproxy-request-id") == []
    running.reactor.advance(0.5)
    assert [over.labels for over in ledgers[0].recorded] == [
        {"x-team": "red", "x-thread": "t-1", "x-claude-code-agent-id": "a-1"}
    ]
    assert row_of(ledgers[0].recorded[0])[COLUMNS.index("session")] == "t-1"
    stopped = running.stop()
    assert ledgers[0].closed is None  # while a connection of a client is open
    client.leave()
    running.reactor.advance(1)
    assert ledgers[0].closed is not None
    ledgers[0].closed.callback(None)
    assert len(stopped) == 1
