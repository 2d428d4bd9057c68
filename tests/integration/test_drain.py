"""The end of the process: what is in flight is finished, for as long as it may, and nothing else is waited for."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.process import AUTHORIZATION, Proxy, eventually, refuses, running
from tests.integration.test_websocket import tunnel
from tests.integration.upstream import Upstream
from tests.integration.wire import BLOCK, LAST_CHUNK, Body, Ending, Truncated, Wire, chunked, message

HOST = b"Host: proxy.example"
CHUNKED = b"Transfer-Encoding: chunked"
HEALTHZ = message(b"GET /healthz HTTP/1.1", HOST)
OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")


@pytest.fixture
def upstream() -> Upstream:
    """Behind the proxy that is drained, which closes it."""
    return Upstream()


@pytest.fixture
def drained(upstream: Upstream, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy that waits for what is in flight for longer than these tests do."""
    with running(tmp_path, upstream, options=["--drain", "300"]) as proxy:
        yield proxy


@pytest.fixture
def hurried(upstream: Upstream, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy that waits for what is in flight for a second."""
    with running(tmp_path, upstream, options=["--drain", "1"]) as proxy:
        yield proxy


def begin_stream(proxy: Proxy, upstream: Upstream) -> tuple[Wire, Body, Wire]:
    """Begin a response of which one chunk has come: the client, the body and the upstream's end."""
    client = proxy.send(b"GET /openai/v1/stream")
    wire, _ = upstream.receive()
    wire.send(message(b"HTTP/1.1 200 OK", CHUNKED, body=chunked(b"before")))
    body = Body(client, client.head())
    assert body.exactly(6) == b"before"
    return client, body, wire


def terminate(proxy: Proxy) -> None:
    """Send SIGTERM, and wait until it was heard: new connections are refused."""
    port = proxy.twistd.port
    proxy.twistd.send_signal(signal.SIGTERM)
    eventually(lambda: refuses(port), "the listener is closed")


def recorded(ledger: Path) -> list[tuple[int | None, str]]:
    """The status and the ending of each exchange, by the status."""
    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute("SELECT status, ending FROM llmproxy_exchanges ORDER BY status").fetchall()


def test_what_is_in_flight_is_finished_and_no_more_is_taken(drained: Proxy, upstream: Upstream) -> None:
    idle = drained.connect()
    idle.send(HEALTHZ)
    idle.response()
    silent = drained.connect()
    unanswered = drained.send(b"POST /openai/v1/x", b"Content-Length: 2", body=b"{}")
    asked, _ = upstream.receive()
    half_sent = drained.connect()
    half_sent.send(b"GET /openai/v1/y HTTP/1.1\r\nHost: ")
    uploading = drained.send(b"POST /openai/v1/z", CHUNKED, body=chunked(b"one"))
    taking = upstream.accept()
    upload = Body(taking, taking.head())
    assert upload.exactly(3) == b"one"
    streaming, body, wire = begin_stream(drained, upstream)
    in_tunnel, far_end = tunnel(drained, upstream)

    terminate(drained)
    # Whoever has nothing in flight is told at once.
    assert idle.ending() is Ending.FIN
    assert silent.ending() is Ending.FIN
    # All others go on as if nothing had happened, and learn that this was the last answer.
    asked.send(OK)
    response = unanswered.response()
    assert response.body == b"ok"
    assert response.head.values(b"connection") == [b"close"]
    assert unanswered.ending() is Ending.FIN
    half_sent.send(message(b"proxy.example", AUTHORIZATION))
    assert asked.request().head.line == b"GET /v1/y HTTP/1.1"  # on the connection that is free again
    asked.send(OK)
    assert half_sent.response().head.values(b"connection") == [b"close"]
    client_sent = chunked(b"two") + LAST_CHUNK
    uploading.send(client_sent)
    assert upload.rest() == b"two"
    taking.send(OK)
    assert uploading.response().body == b"ok"
    wire.send(chunked(b"after") + LAST_CHUNK)
    assert body.rest() == b"after"
    assert streaming.ending() is Ending.FIN
    in_tunnel.send(b"up")
    assert far_end.exactly(2) == b"up"
    far_end.send(b"down")
    assert in_tunnel.exactly(4) == b"down"
    far_end.end()
    in_tunnel.ending()
    assert drained.twistd.wait() == 0


def test_a_client_that_leaves_ends_the_wait_for_it(drained: Proxy, upstream: Upstream) -> None:
    client, _, wire = begin_stream(drained, upstream)
    terminate(drained)
    client.close()
    wire.ending()
    assert drained.twistd.wait() == 0


def test_pipelined_requests_behind_the_one_in_flight_are_not_begun(
    drained: Proxy, upstream: Upstream
) -> None:
    client, body, wire = begin_stream(drained, upstream)
    client.send(message(b"DELETE /openai/v1/x HTTP/1.1", HOST, AUTHORIZATION))
    terminate(drained)
    wire.send(LAST_CHUNK)
    assert body.rest() == b""
    assert upstream.waiting() == 0
    assert drained.twistd.wait() == 0


def test_a_second_sigterm_changes_nothing(drained: Proxy, upstream: Upstream) -> None:
    _, body, wire = begin_stream(drained, upstream)
    terminate(drained)
    for _ in range(3):
        drained.twistd.send_signal(signal.SIGTERM)
        wire.send(chunked(b"x"))
        assert body.exactly(1) == b"x"
    wire.send(LAST_CHUNK)
    assert body.rest() == b""
    assert drained.twistd.wait() == 0
    assert "Traceback" not in drained.twistd.log


def test_sighup_while_it_ends_changes_nothing(drained: Proxy, upstream: Upstream) -> None:
    _, body, wire = begin_stream(drained, upstream)
    terminate(drained)
    drained.twistd.send_signal(signal.SIGHUP)
    wire.send(chunked(b"after") + LAST_CHUNK)
    assert body.rest() == b"after"
    assert drained.twistd.wait() == 0


def test_what_does_not_end_is_cut_off_when_its_time_is_over(hurried: Proxy, upstream: Upstream) -> None:
    _, body, wire = begin_stream(hurried, upstream)
    unanswered = hurried.send(b"GET /openai/v1/x")
    asked, _ = upstream.receive()
    in_tunnel, far_end = tunnel(hurried, upstream)
    begun = time.monotonic()
    terminate(hurried)
    wire.send(chunked(b"after"))
    assert body.exactly(5) == b"after"  # not cut before
    with pytest.raises(Truncated):
        body.rest()
    assert time.monotonic() - begun > 0.9
    assert unanswered.to_end()[0] == b""
    in_tunnel.ending()
    for upstream_end in (wire, asked, far_end):
        upstream_end.ending()
    assert hurried.twistd.wait() == 0


def test_a_client_that_does_not_read_is_cut_off_too(hurried: Proxy, upstream: Upstream) -> None:
    client = hurried.connect(receive_buffer=16384)
    client.send(message(b"GET /openai/v1/files HTTP/1.1", HOST, AUTHORIZATION))
    wire, _ = upstream.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: 100000000"))
    wire.send_until_blocked(bytes(100_000_000), quiet=0.5)
    terminate(hurried)
    assert hurried.twistd.wait() == 0


def test_with_nothing_in_flight_it_ends_at_once(drained: Proxy, upstream: Upstream) -> None:
    client = drained.send(b"GET /openai/v1/models")
    wire, _ = upstream.receive()
    wire.send(OK)
    client.response()
    drained.twistd.send_signal(signal.SIGTERM)
    assert drained.twistd.wait() == 0  # which has less patience than it would wait
    assert client.ending() is Ending.FIN
    wire.ending()


def test_what_is_cut_off_is_in_the_ledger_with_what_it_was(upstream: Upstream, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite3"
    with running(
        tmp_path, upstream, options=["--drain", "1"], LLMPROXY_LEDGER=f"sqlite://{ledger}"
    ) as hurried:
        begin_stream(hurried, upstream)
        hurried.send(b"GET /openai/v1/x")
        upstream.receive()
        tunnel(hurried, upstream)
        terminate(hurried)
        assert hurried.twistd.wait() == 0
        assert "Traceback" not in hurried.twistd.log
    assert recorded(ledger) == [(None, "proxy failed"), (101, "proxy failed"), (200, "proxy failed")]


def test_a_websocket_that_ends_while_it_drains_is_in_the_ledger(upstream: Upstream, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite3"
    with running(tmp_path, upstream, LLMPROXY_LEDGER=f"sqlite://{ledger}") as proxy:
        client, far_end = tunnel(proxy, upstream)
        terminate(proxy)
        client.close()
        far_end.ending()
        assert proxy.twistd.wait() == 0
    assert recorded(ledger) == [(101, "completed")]


def test_a_websocket_whose_upstream_takes_nothing_is_in_the_ledger(
    upstream: Upstream, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite3"
    with running(
        tmp_path, upstream, options=["--drain", "1"], LLMPROXY_LEDGER=f"sqlite://{ledger}"
    ) as hurried:
        client, _ = tunnel(hurried, upstream)
        assert client.send_until_blocked(BLOCK * 100, quiet=0.5) < len(BLOCK) * 100
        terminate(hurried)
        assert hurried.twistd.wait() == 0
        assert "Traceback" not in hurried.twistd.log
    assert recorded(ledger) == [(101, "proxy failed")]
