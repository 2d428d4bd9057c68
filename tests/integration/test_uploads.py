"""Request bodies: they pass as they come, no faster than the upstream takes them, and only where somebody wants them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Background
from tests.integration.process import AUTHORIZATION, REACTOR, Proxy, running
from tests.integration.upstream import Upstream
from tests.integration.wire import (
    BLOCK,
    LAST_CHUNK,
    PATIENCE,
    Body,
    Ending,
    Flood,
    Truncated,
    Wire,
    chunked,
    message,
)

POST = b"POST /openai/v1/files"
HOST = b"Host: proxy.example"
CHUNKED = b"Transfer-Encoding: chunked"
EXPECT = b"Expect: 100-continue"
CONTINUE = message(b"HTTP/1.1 100 Continue")
OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")
TOO_LARGE = message(
    b"HTTP/1.1 413 Content Too Large", b"Content-Length: 9", b"X-Request-Id: r1", body=b"too large"
)
UNAUTHORIZED = message(b"HTTP/1.1 401 Unauthorized", b"Content-Length: 4", body=b"who?")

BLOCKS = 300  # of a million bytes
GROWTH = 20_000_000  # bytes that a proxy may need for a body of any size

# How each framing is announced for so many bytes, encodes a part, and ends.
FRAMINGS = [
    pytest.param(lambda size: b"Content-Length: %d" % size, bytes, b"", id="length"),
    pytest.param(lambda size: CHUNKED, chunked, LAST_CHUNK, id="chunked"),
]
Announce = Callable[[int], bytes]
Encode = Callable[[bytes], bytes]


# They pass as they come


@pytest.mark.parametrize(("announce", "encode", "end"), FRAMINGS)
def test_each_part_arrives_before_the_next_was_sent(
    proxy: Proxy, openai: Upstream, announce: Announce, encode: Encode, end: bytes
) -> None:
    parts = [b"first", b"2", b"x" * 5000, b"last"]
    client = proxy.send(POST, announce(sum(map(len, parts))))
    wire = openai.accept()
    head = wire.head()
    assert head.fields(b"host", b"authorization") == {
        name.lower(): [value] for name, _, value in [announce(5010).partition(b": ")]
    }
    body = Body(wire, head)
    for part in parts:
        client.send(encode(part))
        assert body.exactly(len(part)) == part
    client.send(end)
    assert body.rest() == b""
    wire.send(OK)
    assert client.response().body == b"ok"


def test_an_answer_may_begin_and_go_on_while_the_request_does(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(POST, CHUNKED, body=chunked(b"question"))
    wire = openai.accept()
    upload = Body(wire, wire.head())
    assert upload.exactly(8) == b"question"
    wire.send(message(b"HTTP/1.1 200 OK", CHUNKED, body=chunked(b"answer")))
    download = Body(client, client.head())
    assert download.exactly(6) == b"answer"
    client.send(chunked(b"another") + LAST_CHUNK)
    assert upload.rest() == b"another"
    wire.send(LAST_CHUNK)
    assert download.rest() == b""


# No faster than they are taken


def assert_bounded(proxy: Proxy, before: int) -> None:
    grown = proxy.twistd.most_memory - before
    assert grown < GROWTH, f"{grown / 1e6:.1f} MB more"


@pytest.mark.parametrize(("announce", "encode", "end"), FRAMINGS)
def test_an_upload_of_300_mb_into_an_upstream_that_stalls_takes_no_memory(
    tmp_path: Path, background: Background, announce: Announce, encode: Encode, end: bytes
) -> None:
    upstream = Upstream()
    with running(tmp_path, upstream) as proxy:
        before = proxy.twistd.memory
        client = proxy.send(POST, announce(BLOCKS * len(BLOCK)))
        wire = upstream.accept()
        body = Body(wire, wire.head())
        flood = Flood(client, BLOCKS, encode)
        sending = background(flood.send, end)
        flood.read(body.exactly, 50)
        flood.wait_until_stalled()
        assert_bounded(proxy, before)
        flood.read(body.exactly, BLOCKS - 50)
        assert body.rest() == b""
        sending.result()
        wire.send(OK)
        assert client.response().body == b"ok"
        assert_bounded(proxy, before)


@pytest.mark.parametrize(("announce", "encode", "end"), FRAMINGS)
def test_a_download_of_300_mb_by_a_client_that_stalls_takes_no_memory(
    tmp_path: Path, background: Background, announce: Announce, encode: Encode, end: bytes
) -> None:
    upstream = Upstream()
    with running(tmp_path, upstream) as proxy:
        before = proxy.twistd.memory
        client = proxy.send(b"GET /openai/v1/files")
        wire, _ = upstream.receive()
        wire.send(message(b"HTTP/1.1 200 OK", announce(BLOCKS * len(BLOCK))))
        flood = Flood(wire, BLOCKS, encode)
        sending = background(flood.send, end)
        body = Body(client, client.head())
        flood.read(body.exactly, 50)
        flood.wait_until_stalled()
        assert_bounded(proxy, before)
        flood.read(body.exactly, BLOCKS - 50)
        assert body.rest() == b""
        sending.result()
        assert_bounded(proxy, before)


# Only where it is wanted


@pytest.mark.parametrize("framing", [b"Content-Length: 5", CHUNKED])
def test_the_body_is_asked_for_when_the_upstream_asks_for_it(
    proxy: Proxy, openai: Upstream, framing: bytes
) -> None:
    client = proxy.send(POST, EXPECT, framing)
    wire = openai.accept()
    head = wire.head()
    assert head.values(b"expect") == [b"100-continue"]
    # What is sent before 100 Continue arrives before it: so nobody had asked until then.
    wire.send(message(b"HTTP/1.1 103 Early Hints", b"Link: </x>"))
    wire.send(CONTINUE)
    assert client.head().status == 103
    assert client.head().line == b"HTTP/1.1 100 Continue"
    client.send(chunked(b"hello") + LAST_CHUNK if framing == CHUNKED else b"hello")
    assert Body(wire, head).rest() == b"hello"
    wire.send(OK)
    assert client.response().body == b"ok"


def test_an_upstream_that_knows_nothing_of_continue_gets_the_body_all_the_same(
    proxy: Proxy, openai: Upstream
) -> None:
    client = proxy.send(POST, EXPECT, b"Content-Length: 5")
    wire = openai.accept()
    head = wire.head()
    assert client.head().status == 100
    client.send(b"hello")
    assert Body(wire, head).rest() == b"hello"
    wire.send(OK)
    assert client.response().head.status == 200


def test_a_client_that_does_not_wait_is_not_told_to_go_on(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(POST, EXPECT, b"Content-Length: 5", body=b"hello")
    wire = openai.accept()
    head = wire.head()
    wire.send(CONTINUE)
    assert Body(wire, head).rest() == b"hello"
    wire.send(OK)
    assert client.response().head.status == 200  # and no 100 before it


def test_without_the_token_the_body_is_never_asked_for(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(message(POST + b" HTTP/1.1", HOST, EXPECT, b"Content-Length: 100000000"))
    response = client.response()
    assert response.head.status == 401  # the first that comes
    assert response.head.values(b"connection") == [b"close"]
    assert client.ending() is Ending.FIN
    assert openai.waiting() == 0


@pytest.mark.parametrize("status", [b"417 Expectation Failed", b"401 Unauthorized", b"413 Content Too Large"])
def test_a_body_that_the_upstream_refuses_is_never_asked_for(
    proxy: Proxy, openai: Upstream, status: bytes
) -> None:
    client = proxy.send(POST, EXPECT, b"Content-Length: 100000000")
    wire = openai.accept()
    wire.head()
    wire.send(message(b"HTTP/1.1 " + status, b"Content-Length: 2", body=b"no"))
    response = client.response()
    assert response.head.line == b"HTTP/1.1 " + status
    assert response.body == b"no"
    assert client.ending() is Ending.FIN
    wire.ending()


@pytest.mark.parametrize("stays", [False, True], ids=["and closes", "and stays"])
@pytest.mark.parametrize("answer", [TOO_LARGE, UNAUTHORIZED], ids=["413", "401"])
@pytest.mark.parametrize(("announce", "encode", "end"), FRAMINGS)
def test_an_early_answer_reaches_a_client_that_goes_on_sending(
    proxy: Proxy,
    openai: Upstream,
    background: Background,
    announce: Announce,
    encode: Encode,
    end: bytes,
    answer: bytes,
    stays: bool,
) -> None:
    blocks = 20
    client = proxy.send(POST, announce(blocks * len(BLOCK)))
    sending = background(Flood(client, blocks, encode).send, end)
    wire = openai.accept()
    Body(wire, wire.head()).exactly(1000)
    wire.send(answer)
    if not stays:
        with contextlib.suppress(OSError):  # the proxy may have reset it already: the answer is whole
            wire.end()
    # A client that reads only when it has sent everything is the hardest to reach.
    sending.result()
    response = client.response()
    assert response.head.line == answer.split(b"\r\n")[0]
    assert response.head.values(b"connection") == [b"close"]
    assert response.body == answer.rpartition(b"\r\n")[2]
    assert client.ending() is Ending.FIN


def test_an_early_answer_reaches_a_client_that_has_stopped_sending(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(POST, b"Content-Length: 100000000", body=b"x" * 1000)
    wire = openai.accept()
    Body(wire, wire.head()).exactly(1000)
    wire.send(TOO_LARGE)
    assert client.response().body == b"too large"
    assert client.ending() is Ending.FIN
    wire.ending()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset may take away what came before it")
def test_an_early_answer_from_an_upstream_that_tears_down_still_arrives(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    for _ in range(20):
        client = proxy.send(POST, b"Content-Length: 20000000")
        sending = background(Flood(client, 20).send)
        wire = openai.accept()
        Body(wire, wire.head()).exactly(1000)
        wire.send(TOO_LARGE)
        wire.close()  # on bytes that nobody has read, which resets
        sending.result()
        response = client.response()
        if REACTOR is None:
            assert response.body == b"too large"
        else:  # Twisted's own transports close their socket where a write fails, now and then before they have read
            assert response.head.status in (413, 502)
        assert client.ending() is Ending.FIN


def test_an_upstream_that_refuses_an_upload_and_then_does_nothing_is_left(
    tmp_path: Path, background: Background
) -> None:
    upstream = Upstream()
    with running(tmp_path, upstream, UPSTREAM_MAX_CONNECTIONS="1") as proxy:
        client = proxy.send(POST, b"Content-Length: 20000000")
        sending = background(Flood(client, 20).send)
        wire = upstream.accept()
        wire.head()
        time.sleep(0.3)  # until all buffers on the way are full
        wire.send(TOO_LARGE)
        assert client.response().body == b"too large"
        sending.exception(PATIENCE)
        # It reads nothing more and does not close, and the one connection that there may be is free all the same.
        client = proxy.send(b"GET /openai/v1/models")
        wire, _ = upstream.receive()
        wire.send(OK)
        assert client.response().body == b"ok"


def test_without_the_token_an_upload_is_refused_before_it_came(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(message(POST + b" HTTP/1.1", HOST, b"Content-Length: 100000000", body=b"x" * 1000))
    response = client.response()
    assert response.head.status == 401
    assert response.head.values(b"connection") == [b"close"]
    assert client.ending() is Ending.FIN  # though the rest of the upload never came
    assert openai.waiting() == 0


def test_without_the_token_a_client_may_not_send_for_ever(proxy: Proxy, background: Background) -> None:
    client = proxy.connect()
    client.send(message(POST + b" HTTP/1.1", HOST, b"Content-Length: 100000000000"))

    def drip() -> None:
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            client.send(b"x" * 1000)
            time.sleep(0.01)

    dripping = background(drip)
    assert client.response().head.status == 401
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        dripping.result()


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset, Wire.end], ids=["close", "reset", "half"])
@pytest.mark.parametrize(("announce", "encode", "end"), FRAMINGS)
def test_a_client_that_leaves_within_its_upload_ends_the_upstream_request(
    proxy: Proxy,
    openai: Upstream,
    announce: Announce,
    encode: Encode,
    end: bytes,
    leave: Callable[[Wire], None],
) -> None:
    client = proxy.send(POST, announce(1000), body=encode(b"part"))
    wire = openai.accept()
    body = Body(wire, wire.head())
    assert body.exactly(4) == b"part"
    leave(client)
    with pytest.raises(Truncated):  # the upstream must not take the part for all of it
        body.rest()


def test_a_client_that_leaves_while_the_upstream_takes_nothing_ends_the_upstream_request(
    proxy: Proxy, openai: Upstream
) -> None:
    client = proxy.send(POST, CHUNKED)
    wire = openai.accept()
    large = chunked(BLOCK) * 100
    assert client.send_until_blocked(large, quiet=0.5) < len(large)
    client.reset()
    wire.wait_for_reset(patience=3.0)


def test_an_upload_that_the_upstream_does_not_take_is_given_up(tmp_path: Path) -> None:
    upstream = Upstream()
    with running(tmp_path, upstream, UPSTREAM_FIRST_BYTE_TIMEOUT="1") as proxy:
        client = proxy.send(POST, CHUNKED)
        wire = upstream.accept()
        client.send_until_blocked(chunked(BLOCK) * 100, quiet=0.5)
        response = client.response()
        assert response.head.status == 504
        assert response.json["error"] == "gateway_timeout"
        wire.wait_for_reset()


def test_a_body_that_is_broken_is_cut_off_and_answered(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(POST, CHUNKED, body=chunked(b"part"))
    wire = openai.accept()
    body = Body(wire, wire.head())
    assert body.exactly(4) == b"part"
    client.send(b"no size\r\n")
    with pytest.raises(Truncated):
        body.rest()
    response = client.response()
    assert response.head.status == 400
    assert response.json["error"] == "bad_request"
    assert client.ending() is Ending.FIN


def test_a_client_that_is_silent_within_its_body_is_given_up(tmp_path: Path) -> None:
    upstream = Upstream()
    with running(tmp_path, upstream, CLIENT_BODY_TIMEOUT="0.5") as proxy:
        client = proxy.send(POST, b"Content-Length: 10", body=b"part")
        wire = upstream.accept()
        with pytest.raises(Truncated):
            Body(wire, wire.head()).rest()
        response = client.response()
        assert response.head.status == 408
        assert response.json["error"] == "request_timeout"
        assert client.ending() is Ending.FIN


def test_a_connection_serves_another_request_after_an_upload(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(POST, CHUNKED, body=chunked(b"one") + LAST_CHUNK)
    wire, request = openai.receive()
    wire.send(OK)
    assert client.response().body == b"ok"
    client.send(message(POST + b" HTTP/1.1", HOST, AUTHORIZATION, b"Content-Length: 3", body=b"two"))
    again = wire.request()  # on the same connection
    wire.send(OK)
    assert client.response().body == b"ok"
    assert (request.body, again.body) == (b"one", b"two")
