from __future__ import annotations

import json
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock

from llmproxy import demo
from llmproxy.demo_service import TOKEN, DemoService
from tests.support import ANTHROPIC_KEY, connect, log_lines
from tests.test_http_tls import endpoint
from tests.test_service import Reactor, collector, limits
from tests.upstream_support import authority

__all__ = ["collector", "limits"]  # fixtures: starting a service changes the process


class Demo:
    """A demo service in memory, and what it told the newcomer."""

    def __init__(self, *listen: str) -> None:
        self.reactor: MemoryReactorClock = Reactor()
        self.told: list[str] = []
        self.service = DemoService(
            self.reactor, listen or ["tcp:33000:interface=127.0.0.1"], announce=self.told.append
        )

    def start(self) -> list[str]:
        with log_lines() as lines:
            self.service.privilegedStartService()
            self.service.startService()
        return lines


def test_the_upstream_listens_on_loopback_on_a_port_of_the_kernels_choice() -> None:
    made = Demo()
    made.start()
    (upstream, proxy) = made.reactor.tcpServers
    assert (upstream[0], upstream[3]) == (0, "127.0.0.1")
    assert (proxy[0], proxy[3]) == (33000, "127.0.0.1")


def test_it_serves_with_the_token_that_it_tells() -> None:
    made = Demo()
    made.start()
    site = made.reactor.tcpServers[1][1]
    for token, status in ((TOKEN, 0), ("wrong", 401)):
        client = connect(site, made.reactor)
        client.ask(b"/openai/v1/models", headers=[(b"x-api-key", token.encode("ascii"))])
        assert (client.response().status if client.received else 0) == status


def test_the_keys_are_those_of_the_demo_and_not_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", ANTHROPIC_KEY)
    made = Demo()
    made.start()
    config = made.service._config
    assert [upstream.keys for upstream in config.upstreams] == [
        (demo.OPENAI_KEY,),
        (demo.ANTHROPIC_KEY,),
    ]
    assert [upstream.base_url.path for upstream in config.upstreams] == ["/openai", "/anthropic"]
    assert config.warnings() == []


def test_a_newcomer_is_told_the_token_and_a_command_for_each_provider() -> None:
    made = Demo()
    made.start()
    (text,) = made.told
    assert TOKEN in text
    commands = [shlex.split(command) for command in re.findall(r"curl .*?\n\n", text, re.DOTALL)]
    openai, anthropic = commands
    assert "http://127.0.0.1:33000/openai/v1/chat/completions" in openai
    assert f"Authorization: Bearer {TOKEN}" in openai
    assert "http://127.0.0.1:33000/anthropic/v1/messages" in anthropic
    assert f"x-api-key: {TOKEN}" in anthropic
    for command in commands:
        body = json.loads(command[command.index("-d") + 1])
        assert body["stream"] is True
        assert body["messages"]


def test_the_commands_name_the_first_port_that_curl_can_reach() -> None:
    made = Demo("unix:/run/llmproxy.sock", "tcp:8080", "tcp:8081")
    made.start()
    assert "http://127.0.0.1:8080/" in made.told[0]


@pytest.mark.parametrize(
    ("listen", "reached"),
    [
        ("tcp:8080", "127.0.0.1:8080"),
        ("tcp:8080:interface=127.0.0.1", "127.0.0.1:8080"),
        ("tcp:8080:interface=10.0.0.1", "10.0.0.1:8080"),
        ("tcp6:8080", "[::1]:8080"),
        ("tcp6:8080:interface=2001\\:db8\\:\\:1", "[2001:db8::1]:8080"),
    ],
)
def test_the_commands_name_the_interface_that_is_listened_on(listen: str, reached: str) -> None:
    made = Demo(listen)
    made.start()
    assert re.findall(r"http://(.*?)/(?:openai|anthropic)/", made.told[0]) == [reached, reached]


def test_the_commands_speak_tls_where_the_listener_does(tmp_path: Path) -> None:
    made = Demo(endpoint(tmp_path, authority()).replace("ssl:0", "ssl:443:interface=127.0.0.1"))
    made.start()
    assert "https://127.0.0.1:443/openai/" in made.told[0]


def test_without_such_a_port_nothing_is_told() -> None:
    made = Demo("unix:/run/llmproxy.sock")
    made.start()
    assert made.told == []


def test_the_token_is_in_no_log() -> None:
    assert not any(TOKEN in line for line in Demo().start())


def test_a_reload_keeps_the_upstream() -> None:
    made = Demo()
    made.start()
    before = made.service._config
    made.service.reload()
    assert made.service._config == before
    assert len(made.reactor.tcpServers) == 2


def test_stopping_it_stops_the_upstream_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[object] = []
    monkeypatch.setattr("twisted.internet.testing._FakePort.stopListening", lambda port: stopped.append(port))
    made = Demo()
    made.start()
    ended: list[object] = []
    made.service.stopService().addCallback(ended.append)
    assert len(ended) == 1
    assert len(stopped) == 2


def test_it_can_be_stopped_before_it_was_started() -> None:
    ended: list[object] = []
    Demo().service.stopService().addCallback(ended.append)
    assert len(ended) == 1


def test_what_is_told_goes_past_the_log_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StringIO()
    monkeypatch.setattr(sys, "__stdout__", terminal)
    service = DemoService(Reactor(), ["tcp:33000"])
    service.privilegedStartService()
    service.startService()
    assert TOKEN in terminal.getvalue()


def test_without_a_terminal_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)
    service = DemoService(Reactor(), ["tcp:33000"])
    service.privilegedStartService()
    service.startService()
    assert service.running
