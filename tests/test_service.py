from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from llmproxy import __version__
from llmproxy.config import Config, ConfigError
from llmproxy.http.limits import DownstreamLimits
from llmproxy.listeners import CannotListen
from llmproxy.service import ProxyService
from llmproxy.values import BaseURL
from tests.support import (
    ANTHROPIC_KEY,
    BEARER,
    CONFIG,
    OPENAI,
    OPENAI_KEY,
    TOKEN,
    ClientConnection,
    Peer,
    Wire,
    client_with,
    connect,
    log_lines,
)
from tests.test_http_tls import endpoint
from tests.upstream_support import authority

LISTEN = ["tcp:33000"]
NEW_TOKEN = b"a-new-token-of-the-team"


class Reactor(MemoryReactorClock):
    """A reactor that also takes calls from threads, and can be told what cannot be bound."""

    def __init__(self) -> None:
        super().__init__()
        self.unbindable: dict[int, Exception] = {}
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        self.callLater(0, call, *arguments)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> Any:
        if port in self.unbindable:
            raise self.unbindable[port]
        listening: Any = super().listenTCP(port, factory, backlog, interface)
        if interface and ":" not in interface:
            listening._hostAddress = IPv4Address("TCP", interface, port)  # it forgets where it listens
        return listening


class Running:
    """A service in memory; `config` is what it reads when it loads."""

    def __init__(self, listen: list[str] | None = LISTEN, config: Config = CONFIG, **options: Any) -> None:
        self.reactor = Reactor()
        self.config: Config | ConfigError = config
        self.service = ProxyService(self.reactor, listen, self._load, **options)

    def _load(self) -> Config:
        if isinstance(self.config, ConfigError):
            raise self.config
        return self.config

    def start(self) -> list[str]:
        """Start as twistd does; return what was logged."""
        with log_lines() as lines:
            self.service.privilegedStartService()
            self.service.startService()
        return lines

    def reload(self) -> list[str]:
        """Reload; return what was logged."""
        with log_lines() as lines:
            self.service.reload()
        return lines

    def connect(self) -> ClientConnection:
        """Connect a client to the first listener."""
        return connect(self.reactor.tcpServers[0][1], self.reactor)

    def ask(self, target: bytes, token: bytes = TOKEN) -> int:
        """The status of a response by the first listener; 0 where there is none yet."""
        client = self.connect()
        client.ask(target, headers=[(b"x-api-key", token)])
        return client.response().status if client.received else 0

    def stop(self) -> list[object]:
        """Stop; return what the end of it came to."""
        stopped: list[object] = []
        self.service.stopService().addCallback(stopped.append)
        return stopped


def accept(running: Running, kind: type[Wire] = Wire) -> Peer:
    """Let the upstream take the connection that was asked for last."""
    wire = kind(running.reactor)
    wire.protocol = running.reactor.tcpClients[-1][2].buildProtocol(wire.getPeer())
    wire.protocol.makeConnection(wire)
    return Peer(wire)


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
PLAIN = attrs.evolve(CONFIG, upstreams=(attrs.evolve(OPENAI, base_url=BaseURL("http", "127.0.0.1", 1, "")),))


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits of descriptors that were asked for, in place of the process's own, which is left alone."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: asked.append(limit))
    return asked


@pytest.fixture(autouse=True)
def collector(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the garbage collector, which is left alone too."""
    asked: list[str] = []
    for name in ("collect", "freeze", "set_threshold"):
        monkeypatch.setattr(gc, name, lambda *_, name=name: asked.append(name))
    return asked


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[..., None]]:
    """Signal handlers as they are set, in place of the process's own."""
    handlers: dict[int, Callable[..., None]] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    return handlers


class TestStart:
    def test_it_binds_every_listener_before_it_starts(self) -> None:
        running = Running(["tcp:33000:interface=127.0.0.1", "tcp:8080", "unix:/run/llmproxy.sock"])
        running.service.privilegedStartService()
        assert [(port, interface) for port, _, _, interface in running.reactor.tcpServers] == [
            (33000, "127.0.0.1"),
            (8080, ""),
        ]
        assert [server[0] for server in running.reactor.unixServers] == ["/run/llmproxy.sock"]

    def test_it_listens_where_the_configuration_says_unless_it_is_told(self) -> None:
        config = attrs.evolve(CONFIG, listen=("tcp:8080", "tcp:8081"))
        for listen, ports in ((None, [8080, 8081]), (["tcp:1"], [1])):
            running = Running(listen, config)
            running.start()
            assert [server[0] for server in running.reactor.tcpServers] == ports

    def test_a_listener_that_cannot_be_bound_stops_the_start(self) -> None:
        running = Running(["tcp:33000", "tcp:81"])
        running.reactor.unbindable[81] = error.CannotListenError("", 81, OSError(13, "Permission denied"))
        with pytest.raises(CannotListen, match=r"^Permission denied: llmproxy cannot listen on tcp:81$"):
            running.service.privilegedStartService()

    def test_one_line_says_where_it_listens_where_it_goes_and_which_version_it_is(self) -> None:
        lines = Running(["tcp:33000:interface=127.0.0.1", "tcp:8080", "tcp6:81:interface=\\:\\:1"]).start()
        (line,) = [line for line in lines if line.startswith("llmproxy ")]
        assert line.startswith(f"llmproxy {__version__} listens on ")
        assert "0.0.0.0:8080" in line
        assert "127.0.0.1:33000" in line
        assert "[::1]:81" in line
        assert "/openai/ goes to openai.example" in line
        assert "/anthropic/ goes to anthropic.example" in line
        assert "\n" not in line

    def test_nothing_that_is_logged_shows_a_secret(self) -> None:
        running = Running()
        lines = running.start() + running.reload()
        for secret in (TOKEN.decode("ascii"), OPENAI_KEY, ANTHROPIC_KEY):
            assert secret not in "\n".join(lines)

    def test_what_is_probably_not_meant_is_warned_of(self) -> None:
        config = attrs.evolve(CONFIG, noticed=("It can be guessed.",))
        lines = Running(config=config).start()
        assert [line for line in lines if "can be guessed" in line] == config.warnings()

    def test_it_serves(self) -> None:
        running = Running()
        running.start()
        assert running.ask(b"/healthz") == 200
        assert running.ask(b"/openai/v1/models", b"wrong") == 401

    def test_a_wrong_configuration_stops_the_start(self) -> None:
        running = Running()
        running.config = ConfigError(["PORT is empty."])
        with pytest.raises(ConfigError, match="PORT is empty"):
            running.service.privilegedStartService()
        assert running.reactor.tcpServers == []

    @pytest.mark.parametrize(("hard", "asked"), [(4096, [(4096, 4096)]), (256, [])])
    def test_it_takes_as_many_descriptors_as_it_may(
        self,
        limits: list[tuple[int, int]],
        monkeypatch: pytest.MonkeyPatch,
        hard: int,
        asked: list[tuple[int, int]],
    ) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
        Running().start()
        assert limits == asked

    def test_a_system_that_refuses_more_descriptors_does_not_stop_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise ValueError("current limit exceeds maximum limit")

        monkeypatch.setattr(resource, "setrlimit", refuse)
        running = Running()
        running.start()
        assert running.ask(b"/healthz") == 200

    def test_once_it_serves_what_is_loaded_is_kept_from_the_collector(self, collector: list[str]) -> None:
        running = Running()
        running.service.privilegedStartService()
        assert "freeze" not in collector
        running.service.startService()
        assert collector.index("collect") < collector.index("freeze")

    @pytest.mark.parametrize("wanted", [True, False])
    def test_exchanges_are_logged_where_that_is_wanted(self, wanted: bool) -> None:
        running = Running(access_log=wanted)
        running.start()
        with log_lines() as lines:
            client = running.connect()
            client.ask(b"/openai/v1/x?key=hidden", headers=[BEARER])
            client.leave()
            running.reactor.advance(1)
        shown = [line for line in lines if "GET /openai/v1/x -> openai" in line]
        assert len(shown) == (1 if wanted else 0)
        assert not any("hidden" in line for line in lines)

    def test_a_request_goes_to_the_upstream_by_the_reactor(self) -> None:
        running = Running()
        running.start()
        assert running.ask(b"/openai/v1/models") == 0
        assert [attempt[1] for attempt in running.reactor.tcpClients] == [443]


class TestStop:
    def test_it_closes_its_listeners(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped: list[object] = []
        monkeypatch.setattr(
            "twisted.internet.testing._FakePort.stopListening", lambda port: stopped.append(port)
        )
        running = Running(["tcp:1", "tcp:2"])
        running.start()
        assert len(running.stop()) == 1
        assert len(stopped) == 2
        assert not running.service.running

    def test_it_closes_its_idle_connections(self) -> None:
        running = Running()
        running.start()
        closed: list[bool] = []
        routes: Any = running.service._routes
        close = routes.close

        def closing() -> Any:
            closed.append(True)
            return close()

        routes.close = closing
        assert len(running.stop()) == 1
        assert closed == [True]

    def test_with_nothing_in_flight_it_is_over_at_once_and_leaves_nothing_behind(self) -> None:
        running = Running()
        running.start()
        idle = running.connect()
        idle.ask(b"/healthz")
        stopped = running.stop()
        running.reactor.advance(0)
        assert (idle.ending, len(stopped)) == ("closed", 1)
        assert running.reactor.getDelayedCalls() == []

    def test_what_is_in_flight_is_finished_and_is_the_last_on_its_connection(self) -> None:
        running = Running(config=PLAIN)
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", method=b"POST", headers=[BEARER], body=b"{}")
        upstream = accept(running)
        stopped = running.stop()
        running.reactor.advance(29)
        assert (client.ending, stopped) == ("open", [])
        upstream.send(ANSWER)
        assert client.response().body == b"hello"
        assert client.response().values(b"connection") == [b"close"]
        running.reactor.advance(0)
        assert (client.ending, len(stopped)) == ("closed", 1)

    def test_what_is_in_flight_at_the_deadline_is_cut_off_and_the_log_says_so(self) -> None:
        running = Running(drain=5.0)
        running.start()
        clients = [running.connect(), running.connect()]
        for client in clients:
            client.ask(b"/openai/v1/x", headers=[BEARER])
        stopped = running.stop()
        with log_lines() as lines:
            running.reactor.advance(4.9)
            assert [client.ending for client in clients] == ["open", "open"]
            running.reactor.advance(0.1)
            running.reactor.advance(0)
        assert [client.ending for client in clients] == ["reset", "reset"]
        assert len(stopped) == 1
        assert "2 connections were still in use after 5.0 s" in lines

    def test_after_it_nothing_is_left_in_the_reactor(self) -> None:
        running = Running()
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", headers=[BEARER])
        stopped = running.stop()
        client.leave()
        running.reactor.advance(0)
        assert len(stopped) == 1
        assert running.reactor.getDelayedCalls() == []

    def test_it_can_be_stopped_before_it_was_started(self) -> None:
        assert len(Running().stop()) == 1


class TestReload:
    def test_new_requests_see_the_new_configuration(self) -> None:
        running = Running()
        running.start()
        running.config = attrs.evolve(CONFIG, clients=(client_with(NEW_TOKEN),))
        assert running.reload() == ["Reloaded the configuration"]
        assert running.ask(b"/openai/v1/x", TOKEN) == 401
        assert running.ask(b"/openai/v1/x", NEW_TOKEN) == 0  # on its way to the upstream

    def test_a_kept_connection_sees_it_too(self) -> None:
        running = Running()
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", headers=[(b"x-api-key", NEW_TOKEN)])
        assert client.response().status == 401
        before = len(client.received)
        running.config = attrs.evolve(CONFIG, clients=(client_with(NEW_TOKEN),))
        running.reload()
        client.ask(b"/openai/v1/x", headers=[(b"x-api-key", NEW_TOKEN)])
        assert len(client.received) == before

    def test_a_request_in_flight_ends_under_the_old_one(self) -> None:
        running = Running(config=PLAIN)
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", headers=[(b"x-api-key", TOKEN)])
        upstream = accept(running)
        running.config = attrs.evolve(CONFIG, clients=(client_with(NEW_TOKEN),))
        running.reload()
        upstream.send(ANSWER)
        assert client.response().body == b"hello"

    def test_new_connections_are_held_to_the_new_limits(self) -> None:
        running = Running()
        running.start()
        running.config = attrs.evolve(CONFIG, downstream=DownstreamLimits(target=10))
        running.reload()
        assert running.ask(b"/healthz?" + b"x" * 10) == 414

    def test_a_wrong_configuration_changes_nothing_and_the_log_says_why(self) -> None:
        running = Running()
        running.start()
        running.config = ConfigError(["PORT is empty.", "PROXY_TOKEN is empty."])
        lines = running.reload()
        assert len(lines) == 1
        assert "the old configuration stays" in lines[0]
        assert "PORT is empty." in lines[0]
        assert "PROXY_TOKEN is empty." in lines[0]
        assert running.ask(b"/openai/v1/x", TOKEN) == 0
        assert running.ask(b"/openai/v1/x", b"wrong") == 401

    def test_what_is_probably_not_meant_is_warned_of_again(self) -> None:
        running = Running()
        running.start()
        running.config = attrs.evolve(CONFIG, noticed=("It can be guessed.",))
        assert any("can be guessed" in line for line in running.reload())

    def test_200_streams_live_through_20_reloads_a_minute_apart(self) -> None:
        running = Running(config=PLAIN)
        running.start()
        streams = []
        for _ in range(200):
            client = running.connect()
            client.ask(b"/openai/v1/x", headers=[BEARER])
            upstream = accept(running)
            upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            streams.append((client, upstream))
        elsewhere = attrs.evolve(PLAIN.upstreams[0], base_url=BaseURL("http", "127.0.0.1", 2, ""))
        others: list[Config | ConfigError] = [
            attrs.evolve(PLAIN, clients=(client_with(NEW_TOKEN),)),
            attrs.evolve(PLAIN, upstreams=(elsewhere,)),
            ConfigError(["OPENAI_BASE_URL is not set."]),
            PLAIN,
        ]
        for minute in range(20):
            running.config = others[minute % len(others)]
            running.reload()
            for second in range(60):
                running.reactor.advance(1)
                if second % 20 == 0:
                    for _, upstream in streams:
                        upstream.send(b"2\r\nhi\r\n")
        for client, upstream in streams:
            upstream.send(b"0\r\n\r\n")
            assert (client.response().body, client.response().whole) == (b"hi" * 60, True)
        assert len(running.stop()) == 0  # connections are open
        for client, _ in streams:
            client.leave()
        running.reactor.advance(31)


class TestReloadOfListeners:
    def listening(self, running: Running) -> list[str]:
        return [str(listener) for listener in running.service._listeners.opened]

    def test_those_of_the_configuration_come_and_go(self) -> None:
        running = Running(None, attrs.evolve(CONFIG, listen=("tcp:1", "tcp:2")))
        running.start()
        running.config = attrs.evolve(CONFIG, listen=("tcp:2", "tcp:3"))
        assert "Reloaded the configuration" in running.reload()
        assert self.listening(running) == ["0.0.0.0:2", "0.0.0.0:3"]

    def test_those_of_the_command_line_stay(self) -> None:
        running = Running(["tcp:1"], attrs.evolve(CONFIG, listen=("tcp:2",)))
        running.start()
        running.config = attrs.evolve(CONFIG, listen=("tcp:3",))
        running.reload()
        assert self.listening(running) == ["0.0.0.0:1"]

    def test_one_that_cannot_be_bound_stops_nothing_else_from_being_reloaded(self) -> None:
        running = Running(None, attrs.evolve(CONFIG, listen=("tcp:1",)))
        running.start()
        running.reactor.unbindable[2] = error.CannotListenError("", 2, OSError(13, "Permission denied"))
        running.config = attrs.evolve(CONFIG, listen=("tcp:1", "tcp:2"), clients=(client_with(NEW_TOKEN),))
        lines = running.reload()
        assert "Permission denied: llmproxy cannot listen on tcp:2" in lines
        assert "Reloaded the configuration" in lines
        assert running.ask(b"/openai/v1/x", TOKEN) == 401

    def test_a_certificate_that_cannot_be_used_is_a_wrong_configuration(self, tmp_path: Path) -> None:
        description = endpoint(tmp_path, authority())
        running = Running([*LISTEN, description])
        running.start()
        (tmp_path / "cert.pem").unlink()
        running.config = attrs.evolve(CONFIG, clients=(client_with(NEW_TOKEN),))
        (line,) = running.reload()
        assert "the old configuration stays" in line
        assert "cert.pem" in line
        assert running.ask(b"/openai/v1/x", NEW_TOKEN) == 401

    def test_a_request_on_one_that_goes_ends_and_is_the_last_on_its_connection(self) -> None:
        running = Running(None, attrs.evolve(PLAIN, listen=("tcp:1",)))
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", headers=[BEARER])
        upstream = accept(running)
        running.config = attrs.evolve(PLAIN, listen=("tcp:2",))
        running.reload()
        upstream.send(ANSWER)
        assert client.response().body == b"hello"
        assert client.response().values(b"connection") == [b"close"]
        assert client.ending == "closed"

    def test_nothing_is_opened_by_a_reload_while_it_stops(self) -> None:
        running = Running(None, attrs.evolve(CONFIG, listen=("tcp:1",)))
        running.start()
        client = running.connect()
        client.ask(b"/openai/v1/x", headers=[BEARER])
        stopped = running.stop()
        running.config = attrs.evolve(CONFIG, listen=("tcp:1", "tcp:2"))
        assert running.reload() == ["Nothing was reloaded, the proxy is being stopped."]
        assert self.listening(running) == []
        client.leave()
        assert len(stopped) == 1


class TestSignals:
    def test_they_are_taken_from_the_start_and_again_once_the_reactor_has_installed_its_own(
        self, signals: dict[int, Callable[..., None]]
    ) -> None:
        running = Running()
        running.start()
        assert set(signals) == {signal.SIGTERM, signal.SIGHUP}
        signals.clear()
        running.reactor.run()
        assert set(signals) == {signal.SIGTERM, signal.SIGHUP}

    def test_sigterm_stops_the_reactor_in_its_own_turn(self, signals: dict[int, Callable[..., None]]) -> None:
        running = Running()
        running.start()
        running.reactor.run()
        signals[signal.SIGTERM](signal.SIGTERM, None)
        before = running.reactor.stops
        running.reactor.advance(0)
        assert running.reactor.stops == before + 1

    def test_a_second_sigterm_changes_nothing(self, signals: dict[int, Callable[..., None]]) -> None:
        running = Running()
        running.start()
        running.reactor.run()
        signals[signal.SIGTERM](signal.SIGTERM, None)
        running.reactor.advance(0)
        before = running.reactor.stops
        signals[signal.SIGTERM](signal.SIGTERM, None)
        running.reactor.advance(0)
        assert running.reactor.stops == before

    def test_sighup_reloads_in_the_reactors_own_turn(self, signals: dict[int, Callable[..., None]]) -> None:
        running = Running()
        running.start()
        running.reactor.run()
        running.config = attrs.evolve(CONFIG, clients=(client_with(NEW_TOKEN),))
        signals[signal.SIGHUP](signal.SIGHUP, None)
        assert running.ask(b"/openai/v1/x", NEW_TOKEN) == 401
        with log_lines() as lines:
            running.reactor.advance(0)
        assert "Reloaded the configuration" in lines
        assert running.ask(b"/openai/v1/x", NEW_TOKEN) == 0


def test_the_clock_of_connections_is_the_reactors() -> None:
    running = Running()
    running.start()
    client = running.connect()
    assert isinstance(running.reactor, Clock)
    running.reactor.advance(100_000)
    assert client.ending == "closed"
