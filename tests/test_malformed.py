"""Each malformed request, sent to the whole proxy in memory."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from llmproxy.credentials import Credentials
from llmproxy.http.server import Site
from llmproxy.keyring import Keyring
from llmproxy.route import Gateway, Route
from llmproxy.site import build
from llmproxy.transparent import TransparentClient
from tests.http_support import Connection
from tests.malformed import SMUGGLED, TABLE, Malformed
from tests.support import CONFIG, TOKEN, log_lines

PIECE = 16_384  # bytes of a read, so that what is too large comes in several


@implementer(IAgent)
class TakingAgent:
    """An agent that takes requests with their bodies and never answers; a body that breaks off fails its request.

    :ivar whole: the targets of requests that came whole.
    """

    def __init__(self) -> None:
        self.whole: list[bytes] = []

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        if bodyProducer is None:
            self.whole.append(uri)
        else:
            bodyProducer.startProducing(StringTransport()).addCallbacks(
                lambda _: self.whole.append(uri), answer.errback
            )
        return answer


class Refusing:
    """The proxy, and a client that sends it something."""

    def __init__(self, *pieces: bytes) -> None:
        clock = Clock()
        self.agent = TakingAgent()
        client = TransparentClient(self.agent, clock)
        gateway = Gateway(Credentials(CONFIG.clients, clock.seconds), clock)
        routes = [
            Route(upstream, client, Keyring(upstream.keys, clock.seconds)) for upstream in CONFIG.upstreams
        ]
        self.client = Connection(Site(build(gateway, routes), clock), clock)
        with log_lines() as self.log:
            self.client.send(*pieces)
            self.client.turn()
        self.clock = clock

    def assert_refused(self, row: Malformed) -> None:
        answer = self.client.answer()
        assert answer.status == row.status, row.reason
        assert (b"Content-Type", b"application/json") in answer.headers
        assert (b"Connection", b"close") in answer.headers
        assert set(answer.json) == {"error", "message"}
        assert self.client.ending == "half-closed"
        assert self.agent.whole == []
        assert TOKEN not in self.client.received
        assert not any(TOKEN.decode() in line for line in self.log)
        self.clock.advance(CONFIG.downstream.linger)
        assert self.client.ending == "closed"


def pieces(message: bytes, size: int = PIECE) -> list[bytes]:
    """What several reads get of a message."""
    return [message[start : start + size] for start in range(0, len(message), size)]


def test_the_table_is_long_and_its_names_differ() -> None:
    assert len(TABLE) >= 60
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert {row.status for row in TABLE} == {400, 414, 431, 501}


def test_what_would_be_smuggled_is_a_request_that_is_served() -> None:
    # Otherwise the tests below would prove nothing.
    refusing = Refusing(SMUGGLED.replace(b"<token>", TOKEN))
    assert refusing.agent.whole == [b"https://openai.example/v1/smuggled"]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_it_is_refused(row: Malformed) -> None:
    Refusing(*pieces(row.sent(TOKEN))).assert_refused(row)


@pytest.mark.parametrize("row", [row for row in TABLE if len(row.message) < PIECE], ids=lambda row: row.name)
def test_it_is_refused_byte_by_byte(row: Malformed) -> None:
    Refusing(*pieces(row.sent(TOKEN), 1)).assert_refused(row)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_it_is_refused_behind_a_good_request(row: Malformed) -> None:
    health = b"GET /healthz HTTP/1.1\r\nHost: proxy.example\r\n\r\n"
    refusing = Refusing(*pieces(health + row.sent(TOKEN)))
    first, second = refusing.client.answers()
    assert first.body == b"ok"
    assert second.status in (row.status, 501)  # see known_method
    assert refusing.agent.whole == []


@pytest.mark.xfail(reason="llhttp takes RTSP for HTTP, and httptools does not tell which it was", strict=True)
@pytest.mark.parametrize("version", [b"RTSP/1.0", b"RTSP/1.1"])
def test_another_protocol_that_llhttp_knows_is_refused(version: bytes) -> None:
    line = b"GET /healthz %b\r\nHost: proxy.example\r\n\r\n" % version
    assert Refusing(line).client.answer().status == 400
