"""What is known to cost nothing, since its upstream has heard nothing of it; and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
from twisted.internet import error

from llmproxy.exchange import Ending
from llmproxy.http.limits import UpstreamLimits
from llmproxy.usage import Usage
from llmproxy.values import BaseURL
from tests.forwarding_support import Line
from tests.support import BEARER, CONFIG, HANDSHAKE, OPENAI, TOKEN, ClientConnection, client_with
from tests.upstream_support import OK, RESET, Resolver

KEYS = ("sk-first", "sk-second")
NAMED = BaseURL("http", "upstream.example", 80, "")
SECURE = BaseURL("https", "192.0.2.1", 443, "")
NO = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\nno"
UPLOAD = b"POST /openai/v1/x HTTP/1.1\r\nHost: x\r\n%b: %b\r\nContent-Length: 100\r\n\r\n" % BEARER


def ask(line: Line) -> ClientConnection:
    return line.proxy.ask(b"/openai/v1/x", method=b"POST", body=b"{}")


def ended(line: Line) -> tuple[Ending | None, Usage | None]:
    """How the exchange that ended last did, and what it is known to have used."""
    exchange = line.proxy.exchanges[-1]
    reading = exchange.reading
    return exchange.ending, None if reading is None else reading.usage


def unresolved() -> Line:
    line = Line(base_url=NAMED)
    resolver: Any = Resolver({}, silent=True)
    line.agent.reactor.nameResolver = resolver
    return line


def full() -> Line:
    line = Line(limits=UpstreamLimits(connections=1))
    ask(line)
    line.accept()
    return line


def handshaking(line: Line) -> None:
    assert line.accept().take().startswith(b"\x16")  # TLS


def asking_a_proxy(line: Line) -> None:
    assert line.accept().take().startswith(b"CONNECT ")


def nothing(line: Line) -> None:
    """Let nothing happen."""


FREE = Usage(billable=False)
WAITS = [
    pytest.param(Line, nothing, id="connecting"),
    pytest.param(unresolved, nothing, id="resolving"),
    pytest.param(full, nothing, id="no place is free"),
    pytest.param(lambda: Line(base_url=SECURE), handshaking, id="TLS"),
    pytest.param(
        lambda: Line(base_url=SECURE, proxy_for=lambda _: urlsplit("http://192.0.2.9:3128")),
        asking_a_proxy,
        id="CONNECT",
    ),
]


class TestClientThatLeaves:
    @pytest.mark.parametrize(("make", "begin"), WAITS)
    def test_while_there_is_no_connection_for_it_it_costs_nothing(
        self, make: Callable[[], Line], begin: Callable[[Line], None]
    ) -> None:
        line = make()
        client = ask(line)
        begin(line)
        client.leave()
        assert ended(line) == (Ending.CLIENT_LEFT, FREE)
        assert len(line.proxy.exchanges) == 1

    @pytest.mark.parametrize("kept", [False, True])
    def test_once_it_is_sent_nobody_knows(self, kept: bool) -> None:
        line = Line()
        wire = line.warm()[0] if kept else None
        client = ask(line)
        assert (wire or line.accept()).take().startswith(b"POST ")
        client.leave()
        assert ended(line) == (Ending.CLIENT_LEFT, None)

    def test_nor_once_it_is_sent_in_part(self) -> None:
        line = Line()
        client = line.proxy.connect()
        client.send(UPLOAD + b"some")
        assert line.accept().take().endswith(b"some")
        client.leave()
        assert ended(line) == (Ending.CLIENT_LEFT, None)

    def test_nor_while_the_handshake_of_a_websocket_is_not_answered(self) -> None:
        line = Line()
        client = line.proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        line.accept()
        client.leave()
        assert ended(line) == (Ending.CLIENT_LEFT, None)

    def test_nor_where_another_key_was_tried_before(self) -> None:
        line = Line(attrs.evolve(OPENAI, keys=KEYS))
        client = ask(line)
        line.accept().receive(NO)
        assert line.connections == 2
        client.leave()
        assert ended(line) == (Ending.CLIENT_LEFT, None)

    def test_before_its_model_is_known_it_costs_nothing(self) -> None:
        line = Line(config=attrs.evolve(CONFIG, clients=(client_with(TOKEN, models=("gpt-5",)),)))
        client = line.proxy.connect()
        client.send(UPLOAD + b'{"mod')
        assert line.connections == 0
        client.leave()
        assert ended(line) == (Ending.CLIENT_LEFT, FREE)

    def test_on_a_fresh_connection_in_the_place_of_one_that_its_upstream_had_closed_it_costs_nothing(
        self,
    ) -> None:
        line = Line()
        (kept,) = line.warm()
        client = ask(line)
        kept.lose(RESET)
        assert line.connections == 2
        client.leave()
        assert ended(line) == (Ending.CLIENT_LEFT, FREE)

    def test_others_are_served_on(self) -> None:
        line = Line(limits=UpstreamLimits(connections=1))
        served, leaving, waiting = ask(line), ask(line), ask(line)
        wire = line.accept()
        leaving.leave()
        for client in (served, waiting):
            wire.receive(OK)
            assert client.response(b"POST").status == 200
        assert line.connections == 1


class TestUpstreamThatFails:
    @pytest.mark.parametrize(("make", "begin"), WAITS)
    def test_without_a_connection_in_time_it_costs_nothing(
        self, make: Callable[[], Line], begin: Callable[[Line], None]
    ) -> None:
        line = make()
        ask(line)
        begin(line)
        line.proxy.clock.advance(100)  # for the first byte
        assert ended(line) == (Ending.UPSTREAM_SILENT, FREE)

    def test_a_second_key_that_finds_no_connection_does_not_tell_what_the_first_cost(self) -> None:
        line = Line(attrs.evolve(OPENAI, keys=KEYS))
        client = ask(line)
        line.accept().receive(NO)
        line.agent.refuse(error.ConnectionRefusedError())
        assert client.response(b"POST").status == 502
        assert ended(line) == (Ending.UPSTREAM_FAILED, None)
