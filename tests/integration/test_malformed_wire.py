"""Each malformed request, sent over a socket to a real twistd."""

from __future__ import annotations

import pytest

from tests.integration.process import TOKEN, Proxy
from tests.integration.upstream import Upstream
from tests.integration.wire import Ending, message
from tests.malformed import SMUGGLED, TABLE, Malformed

OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_it_is_refused_and_its_connection_closed(proxy: Proxy, openai: Upstream, row: Malformed) -> None:
    client = proxy.connect()
    client.send(row.sent(TOKEN.encode()))
    answer = client.response()
    assert answer.head.status == row.status, row.reason
    assert answer.head.values(b"content-type") == [b"application/json"]
    assert answer.head.values(b"connection") == [b"close"]
    assert set(answer.json) == {"error", "message"}
    assert TOKEN.encode() not in answer.body
    assert client.ending() is Ending.FIN
    # Of a body that broke off, the upstream may have seen the beginning; it was told by the connection's end.
    assert openai.waiting() <= row.in_body
    assert TOKEN not in proxy.twistd.log


def test_what_would_be_smuggled_is_a_request_that_is_served_alone(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(SMUGGLED.replace(b"<token>", TOKEN.encode()))
    wire, request = openai.receive()
    assert request.head.line == b"GET /v1/smuggled HTTP/1.1"
    wire.send(OK)
    assert client.response().body == b"ok"
