from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from twisted.internet import error
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from llmproxy import __version__
from llmproxy.config import Client, Config, ConfigError
from llmproxy.service import CannotListen, ProxyService, _describe
from tests.support import ANTHROPIC_KEY, CONFIG, OPENAI_KEY, TOKEN, connect, log_lines

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
        return super().listenTCP(port, factory, backlog, interface)


class Running:
    """A service in memory; `config` is what it reads when it loads."""

    def __init__(self, listen: list[str] | None = None, config: Config = CONFIG) -> None:
        self.reactor = Reactor()
        self.config: Config | ConfigError = config
        self.service = ProxyService(self.reactor, listen or LISTEN, self._load)

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

    def ask(self, target: bytes, token: bytes = TOKEN) -> int:
        """The status of a response by the first listener; 0 where there is none yet."""
        site = self.reactor.tcpServers[0][1]
        client = connect(site, self.reactor)
        client.ask(target, headers=[(b"x-api-key", token)])
        return client.response().status if client.received else 0

    def stop(self) -> list[object]:
        """Stop; return what the end of it came to."""
        stopped: list[object] = []
        self.service.stopService().addCallback(stopped.append)
        return stopped


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

    def test_one_line_says_where_it_listens_where_it_goes_and_which_version_it_is(self) -> None:
        lines = Running(["tcp:33000:interface=127.0.0.1", "tcp:8080", "tcp6:81:interface=\\:\\:1"]).start()
        (line,) = [line for line in lines if line.startswith("llmproxy ")]
        assert line.startswith(f"llmproxy {__version__} listens on ")
        assert "0.0.0.0:8080" in line
        assert ":33000" in line
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
        config = attrs.evolve(CONFIG, clients=(Client("default", b"short"),))
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

    def test_a_request_goes_to_the_upstream_by_the_reactor(self) -> None:
        running = Running()
        running.start()
        assert running.ask(b"/openai/v1/models") == 0
        assert [attempt[1] for attempt in running.reactor.tcpClients] == [443]


class TestCannotListen:
    def fail(self, reason: Exception) -> CannotListen:
        running = Running(["tcp:33000", "tcp:81"])
        running.reactor.unbindable[81] = reason
        with pytest.raises(CannotListen) as caught:
            running.service.privilegedStartService()
        return caught.value

    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            (
                error.CannotListenError("", 81, OSError(98, "Address already in use")),
                "Address already in use",
            ),
            (error.CannotListenError("", 81, OSError(13, "Permission denied")), "Permission denied"),
            (OverflowError("port must be 0-65535."), "port must be 0-65535."),
        ],
    )
    def test_it_names_the_reason_and_the_listener(self, reason: Exception, words: str) -> None:
        assert str(self.fail(reason)) == f"{words}: llmproxy cannot listen on tcp:81"

    def test_twistd_tidies_up_after_it_and_the_interpreter_prints_one_line(self) -> None:
        failed = self.fail(OverflowError("x"))
        assert isinstance(failed, SystemExit)
        assert isinstance(failed, Exception)
        assert failed.code == str(failed)  # what the interpreter prints, with a status of 1
        assert "\n" not in str(failed)


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
        agent: Any = running.service._agent
        close = agent.close

        def closing() -> Any:
            closed.append(True)
            return close()

        agent.close = closing
        assert len(running.stop()) == 1
        assert closed == [True]

    def test_it_can_be_stopped_before_it_was_started(self) -> None:
        assert len(Running().stop()) == 1


class TestReload:
    def test_new_requests_see_the_new_configuration(self) -> None:
        running = Running()
        running.start()
        running.config = attrs.evolve(CONFIG, clients=(Client("default", NEW_TOKEN),))
        assert running.reload() == ["Reloaded the configuration"]
        assert running.ask(b"/openai/v1/x", TOKEN) == 401
        assert running.ask(b"/openai/v1/x", NEW_TOKEN) == 0  # on its way to the upstream

    def test_a_kept_connection_sees_it_too(self) -> None:
        running = Running()
        running.start()
        client = connect(running.reactor.tcpServers[0][1], running.reactor)
        client.ask(b"/openai/v1/x", headers=[(b"x-api-key", NEW_TOKEN)])
        assert client.response().status == 401
        before = len(client.received)
        running.config = attrs.evolve(CONFIG, clients=(Client("default", NEW_TOKEN),))
        running.reload()
        client.ask(b"/openai/v1/x", headers=[(b"x-api-key", NEW_TOKEN)])
        assert len(client.received) == before

    def test_a_request_in_flight_ends_under_the_old_one(self) -> None:
        running = Running()
        running.start()
        client = connect(running.reactor.tcpServers[0][1], running.reactor)
        client.ask(b"/openai/v1/x", headers=[(b"x-api-key", TOKEN)])
        connection: Any = running.reactor.connectors[-1]
        running.config = attrs.evolve(CONFIG, clients=(Client("default", NEW_TOKEN),))
        running.reload()
        assert not connection.stoppedConnecting
        assert client.received == b""

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
        running.config = attrs.evolve(CONFIG, clients=(Client("default", b"short"),))
        assert any("can be guessed" in line for line in running.reload())


class TestSignals:
    def test_they_are_taken_once_the_reactor_has_installed_its_own(
        self, signals: dict[int, Callable[..., None]]
    ) -> None:
        running = Running()
        running.start()
        assert signals == {}
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

    def test_sighup_reloads_in_the_reactors_own_turn(self, signals: dict[int, Callable[..., None]]) -> None:
        running = Running()
        running.start()
        running.reactor.run()
        running.config = attrs.evolve(CONFIG, clients=(Client("default", NEW_TOKEN),))
        signals[signal.SIGHUP](signal.SIGHUP, None)
        assert running.ask(b"/openai/v1/x", NEW_TOKEN) == 401
        with log_lines() as lines:
            running.reactor.advance(0)
        assert "Reloaded the configuration" in lines
        assert running.ask(b"/openai/v1/x", NEW_TOKEN) == 0


class Strange:
    def __str__(self) -> str:
        return "a strange place"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (IPv6Address("TCP", "::1", 80), "[::1]:80"),
        (Strange(), "a strange place"),
        pytest.param(
            UNIXAddress("/run/llmproxy.sock"),
            "unix:/run/llmproxy.sock",
            marks=pytest.mark.xfail(
                strict=True, reason="the name of a UNIX address is bytes, and is shown as such"
            ),
        ),
    ],
)
def test_an_address_is_shown_as_one_would_write_it(address: object, shown: str) -> None:
    assert _describe(address) == shown


def test_the_clock_of_connections_is_the_reactors() -> None:
    running = Running()
    running.start()
    client = connect(running.reactor.tcpServers[0][1], running.reactor)
    assert isinstance(running.reactor, Clock)
    running.reactor.advance(100_000)
    assert client.ending == "closed"
