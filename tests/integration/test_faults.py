"""What a client sees of an upstream that fails: before the headers a 502 or 504, after them a body that was cut off."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.conftest import Background
from tests.integration.process import AUTHORIZATION, SECRETS, Proxy, running, settings
from tests.integration.upstream import Upstream
from tests.integration.wire import (
    LAST_CHUNK,
    PATIENCE,
    Body,
    Message,
    Truncated,
    Wire,
    chunked,
    message,
)

POST = b"POST /openai/v1/chat/completions?key=sk-in-a-query"
CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: 1000"
OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose upstreams are a port that refuses, and a name that does not exist."""
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))  # and never listens
        urls = settings(f"http://127.0.0.1:{refusing.getsockname()[1]}", "http://does-not-exist.invalid")
        proxy = Proxy(urls, tmp_path_factory.mktemp("unreachable"))
        try:
            yield proxy
        finally:
            proxy.stop()


@pytest.fixture(scope="module")
def silent_upstream() -> Upstream:
    """Behind /openai/ of the impatient proxy."""
    return Upstream(send_buffer=65536)


@pytest.fixture(scope="module")
def shared_impatient_proxy(
    silent_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    url = f"http://127.0.0.1:{silent_upstream.port}"
    impatient = settings(url, url, UPSTREAM_FIRST_BYTE_TIMEOUT="0.5", UPSTREAM_IDLE_TIMEOUT="1.0")
    proxy = Proxy(impatient, tmp_path_factory.mktemp("impatient"), silent_upstream)
    try:
        proxy.twistd.started()
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture
def impatient(shared_impatient_proxy: Proxy) -> Iterator[Proxy]:
    """A proxy that waits for a silent upstream for no more than a second, and on which no other test's connection is left."""
    yield shared_impatient_proxy
    shared_impatient_proxy.hang_up()


def assert_problem(response: Message, status: int, code: str, *words: str) -> None:
    """The proxy's own error, whose sentence says some words and no secret."""
    assert response.head.status == status
    assert response.head.values(b"content-type") == [b"application/json"]
    assert set(response.json) == {"error", "message"}
    assert response.json["error"] == code
    for word in words:
        assert word in response.json["message"]
    for secret in (*SECRETS, "sk-in-a-query", "Traceback"):
        assert secret not in repr(response)


# Before the headers


def test_a_refused_connection_is_a_bad_gateway(unreachable: Proxy) -> None:
    client = unreachable.send(POST)
    assert_problem(client.response(), 502, "bad_gateway", "openai", "127.0.0.1", "refused")
    client.send(message(b"GET /healthz HTTP/1.1", b"Host: proxy.example"))
    assert client.response().body == b"ok"


def test_a_host_that_does_not_resolve_is_a_bad_gateway(unreachable: Proxy) -> None:
    response = unreachable.ask(b"GET /anthropic/v1/models")
    assert_problem(response, 502, "bad_gateway", "anthropic", "does-not-exist.invalid", "resolve")


def test_a_fault_is_told_to_head_without_a_body(unreachable: Proxy) -> None:
    client = unreachable.send(b"HEAD /openai/v1/models")
    assert client.response(b"HEAD").head.status == 502
    client.send(message(b"GET /healthz HTTP/1.1", b"Host: proxy.example"))
    assert client.response().body == b"ok"


@pytest.mark.parametrize("end", [Wire.close, Wire.reset])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTT",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Half",
        b"HTTP/1.1 200 OK\r\n" + b"X-Endless: x\r\n" * 100,
        b"garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
    ],
    ids=["nothing", "part of a line", "line", "half a header", "headers", "garbage", "ssh", "no status"],
)
def test_an_end_before_the_headers_end_is_a_bad_gateway(
    proxy: Proxy, openai: Upstream, sent: bytes, end: Callable[[Wire], None]
) -> None:
    client = proxy.send(POST, b"Content-Length: 2", body=b"{}")
    wire, _ = openai.receive()
    wire.send(sent)
    end(wire)
    assert_problem(client.response(), 502, "bad_gateway", "openai", "127.0.0.1")
    # It was not sent again: the upstream may have acted upon it.
    assert openai.waiting() == 0
    client.send(message(b"GET /healthz HTTP/1.1", b"Host: proxy.example"))
    assert client.response().body == b"ok"


@pytest.mark.parametrize(
    "malformed",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    ],
)
def test_a_malformed_response_is_a_bad_gateway_though_the_upstream_stays(
    proxy: Proxy, openai: Upstream, malformed: bytes
) -> None:
    client = proxy.send(POST, b"Content-Length: 2", body=b"{}")
    wire, _ = openai.receive()
    wire.send(malformed)
    assert_problem(client.response(), 502, "bad_gateway", "openai", "127.0.0.1")
    wire.ending()


def test_an_upstream_that_ends_while_it_is_sent_a_body_is_a_bad_gateway(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    client = proxy.send(POST, b"Content-Length: 20000000")
    sending = background(client.send, b"x" * 20_000_000)
    wire = openai.accept()
    wire.head()
    wire.reset()
    assert_problem(client.response(), 502, "bad_gateway", "openai")
    client.close()
    sending.exception(PATIENCE)


def test_silence_before_the_headers_is_a_timeout(impatient: Proxy, silent_upstream: Upstream) -> None:
    client = impatient.send(POST, b"Content-Length: 2", body=b"{}")
    wire, _ = silent_upstream.receive()
    assert_problem(client.response(), 504, "gateway_timeout", "openai", "127.0.0.1")
    wire.ending()


def test_headers_that_never_end_are_a_timeout(impatient: Proxy, silent_upstream: Upstream) -> None:
    client = impatient.send(POST, b"Content-Length: 2", body=b"{}")
    wire, _ = silent_upstream.receive()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
    assert_problem(client.response(), 504, "gateway_timeout", "openai", "127.0.0.1")
    wire.ending()


def test_a_tls_handshake_that_never_comes_is_a_timeout(tmp_path: Path) -> None:
    mute = Upstream()
    url = f"https://127.0.0.1:{mute.port}"
    proxy = Proxy(settings(url, url, UPSTREAM_CONNECT_TIMEOUT="0.5"), tmp_path, mute)
    try:
        client = proxy.send(b"GET /anthropic/v1/models")
        wire = mute.accept()
        assert_problem(client.response(), 504, "gateway_timeout", "anthropic", "127.0.0.1")
        assert b"models" not in wire.to_end()[0]
    finally:
        proxy.stop()


def test_what_its_client_left_during_the_tls_handshake_cost_nothing(tmp_path: Path) -> None:
    upstream, ledger = Upstream(), tmp_path / "ledger.sqlite3"
    url = f"https://127.0.0.1:{upstream.port}"
    with running(tmp_path, upstream, OPENAI_BASE_URL=url, LLMPROXY_LEDGER=f"sqlite://{ledger}") as proxy:
        client = proxy.send(POST, b"Content-Length: 2", body=b"{}")
        handshaking = upstream.accept()
        assert handshaking.exactly(1) == b"\x16"
        client.close()
        handshaking.to_end()
        client = proxy.send(b"POST /anthropic/v1/messages", b"Content-Length: 2", body=b"{}")
        asked, _ = upstream.receive()
        client.close()
        asked.ending()
    with closing(sqlite3.connect(ledger)) as connection:
        rows = connection.execute(
            "SELECT upstream, ending, cost FROM llmproxy_exchanges ORDER BY id"
        ).fetchall()
    assert rows == [("openai", "client left", 0), ("anthropic", "client left", None)]


def test_a_fault_does_not_last(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(POST, b"Content-Length: 2", body=b"{}")
    wire, _ = openai.receive()
    wire.reset()
    assert client.response().head.status == 502
    client.send(message(b"GET /openai/v1/models HTTP/1.1", b"Host: proxy.example", AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok"))
    assert client.response().body == b"ok"


def test_an_upstream_may_drop_an_idle_connection(proxy: Proxy, openai: Upstream) -> None:
    for _ in range(3):
        client = proxy.send(POST, b"Content-Length: 2", body=b"{}")
        wire, _ = openai.receive()
        wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok"))
        assert client.response().body == b"ok"
        wire.finish()


# A connection that was used before


def kept(proxy: Proxy, upstream: Upstream) -> tuple[Wire, Wire]:
    """A client and the upstream's end of a connection on which one exchange is over."""
    client = proxy.send(POST, b"Content-Length: 2", body=b"{}")
    wire, _ = upstream.receive()
    wire.send(OK)
    assert client.response().body == b"ok"
    return client, wire


def send_again(client: Wire, body: bytes = b"{}", framing: bytes | None = None) -> None:
    length = framing or b"Content-Length: %d" % len(body)
    client.send(message(POST + b" HTTP/1.1", b"Host: proxy.example", AUTHORIZATION, length, body=body))


def test_a_connection_that_was_reset_while_idle_is_not_used(proxy: Proxy, openai: Upstream) -> None:
    for _ in range(3):
        client, wire = kept(proxy, openai)
        wire.reset()
        send_again(client)
        wire, request = openai.receive()
        assert request.body == b"{}"
        wire.send(OK)
        assert client.response().body == b"ok"
        wire.finish()


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 8", b"question"),
        (CHUNKED, chunked(b"ques", b"tion") + LAST_CHUNK),
        (b"Content-Length: 60000", b"q" * 60000),
    ],
    ids=["length", "chunked", "60 kB"],
)
def test_what_a_kept_connection_dropped_unread_is_sent_once_more(
    proxy: Proxy, openai: Upstream, framing: bytes, body: bytes
) -> None:
    client, wire = kept(proxy, openai)
    send_again(client, body, framing)
    wire.wait_until_readable()
    wire.close()  # with bytes unread, which resets
    fresh, request = openai.receive()
    assert request.body in (b"question", b"q" * 60000)
    assert request.head.fields(b"host", b"authorization") == {
        name.lower(): [value] for name, _, value in [framing.partition(b": ")]
    }
    fresh.send(OK)
    assert client.response().body == b"ok"


def test_what_was_reset_after_a_while_may_have_been_acted_upon(proxy: Proxy, openai: Upstream) -> None:
    client, wire = kept(proxy, openai)
    send_again(client)
    wire.request()
    time.sleep(0.4)
    wire.reset()
    assert_problem(client.response(), 502, "bad_gateway", "openai", "reset")
    assert openai.waiting() == 0


def test_it_is_not_sent_a_third_time(proxy: Proxy, openai: Upstream) -> None:
    client, wire = kept(proxy, openai)
    send_again(client)
    wire.wait_until_readable()
    wire.close()
    fresh, _ = openai.receive()
    fresh.reset()
    assert_problem(client.response(), 502, "bad_gateway", "openai")
    assert openai.waiting() == 0


def test_a_body_that_is_no_longer_held_is_not_sent_again(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    client, wire = kept(proxy, openai)
    sending = background(send_again, client, b"x" * 10_000_000)
    wire.wait_until_readable()
    wire.close()
    assert_problem(client.response(), 502, "bad_gateway", "openai")
    assert openai.waiting() == 0
    client.close()
    sending.exception(PATIENCE)


def test_a_body_that_is_still_on_its_way_is_not_sent_again(proxy: Proxy, openai: Upstream) -> None:
    client, wire = kept(proxy, openai)
    send_again(client, chunked(b"part"), CHUNKED)
    wire.wait_until_readable()
    wire.close()
    assert_problem(client.response(), 502, "bad_gateway", "openai")
    assert openai.waiting() == 0


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200"], ids=["nothing", "a part"])
def test_what_a_kept_connection_may_have_acted_on_is_for_the_client_to_send_again(
    proxy: Proxy, openai: Upstream, answer: bytes
) -> None:
    client, wire = kept(proxy, openai)
    send_again(client)
    wire.request()
    wire.send(answer)
    wire.end()
    response = client.response()
    assert_problem(response, 502, "bad_gateway", "openai", "closed")
    assert response.head.values(b"x-should-retry") == [b"true"]
    assert openai.waiting() == 0


def test_a_reset_within_an_answer_is_not_sent_again(proxy: Proxy, openai: Upstream) -> None:
    client, wire = kept(proxy, openai)
    send_again(client)
    wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\nX-Begun: ")
    assert proxy.ask(b"GET /healthz").body == b"ok"  # by now it was read
    wire.reset()
    assert_problem(client.response(), 502, "bad_gateway", "openai")
    assert openai.waiting() == 0


def test_more_than_one_answer_closes_a_connection(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(POST, b"Content-Length: 2", body=b"{}")
    wire, _ = openai.receive()
    wire.send(OK + message(b"HTTP/1.1 200 OK", b"Content-Length: 6", body=b"stolen"))
    assert client.response().body == b"ok"
    wire.ending()
    send_again(client)
    fresh, _ = openai.receive()
    fresh.send(OK)
    assert client.response().body == b"ok"


# After the headers


@pytest.mark.parametrize(
    ("headers", "part", "end"),
    [
        ([CHUNKED], chunked(b"part"), Wire.close),
        ([CHUNKED], chunked(b"part"), Wire.reset),
        ([CHUNKED], b"8\r\npart", Wire.close),
        ([CHUNKED], chunked(b"part") + b"0\r\n", Wire.close),
        ([LENGTH], b"part", Wire.close),
        ([LENGTH], b"part", Wire.reset),
        ([], b"part", Wire.reset),
    ],
    ids=[
        "chunked",
        "chunked reset",
        "within a chunk",
        "within the last",
        "length",
        "length reset",
        "no length reset",
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_the_client_can_tell_that_a_response_was_cut_off(
    proxy: Proxy,
    openai: Upstream,
    version: bytes,
    headers: list[bytes],
    part: bytes,
    end: Callable[[Wire], None],
) -> None:
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/x HTTP/" + version, b"Host: proxy.example", AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", *headers, body=part))
    body = Body(client, client.head())
    assert body.exactly(4) == b"part"
    end(wire)
    with pytest.raises(Truncated) as truncated:
        body.rest()
    assert truncated.value.body == b""


def test_all_that_came_before_the_cut_is_delivered(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    body = bytes(range(256)) * 20_000
    client = proxy.send(b"GET /openai/v1/files")
    wire, _ = openai.receive()

    def send() -> None:
        wire.send(message(b"HTTP/1.1 200 OK", CHUNKED, body=chunked(body)))
        wire.close()

    sending = background(send)
    with pytest.raises(Truncated) as truncated:
        client.response()
    sending.result()
    assert truncated.value.body == body


def test_a_malformed_chunk_cuts_the_response_off(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"GET /openai/v1/files")
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", CHUNKED, body=chunked(b"part")))
    body = Body(client, client.head())
    assert body.exactly(4) == b"part"
    wire.send(b"no size\r\n")
    with pytest.raises(Truncated):
        body.rest()
    wire.ending()


def test_an_error_in_place_of_a_body_stays_one_response(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"GET /openai/v1/files")
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", LENGTH))
    assert client.head().values(b"content-length") == [b"1000"]
    wire.reset()
    data, _ = client.to_end()
    assert data == b""


@pytest.mark.parametrize("headers", [[CHUNKED], [LENGTH], []], ids=["chunked", "length", "no length"])
def test_silence_within_a_body_cuts_it_off(
    impatient: Proxy, silent_upstream: Upstream, headers: list[bytes]
) -> None:
    client = impatient.send(b"GET /openai/v1/x")
    wire, _ = silent_upstream.receive()
    wire.send(
        message(b"HTTP/1.1 200 OK", *headers, body=chunked(b"part") if headers == [CHUNKED] else b"part")
    )
    body = Body(client, client.head())
    assert body.exactly(4) == b"part"
    with pytest.raises(Truncated):
        body.rest()
    wire.ending()


def test_a_slow_reader_is_not_the_silence_of_its_upstream(
    impatient: Proxy, silent_upstream: Upstream, background: Background
) -> None:
    large = bytes(64_000_000)
    encoded = chunked(large) + LAST_CHUNK
    client = impatient.connect(receive_buffer=16384)
    client.send(message(b"GET /openai/v1/files HTTP/1.1", b"Host: proxy.example", AUTHORIZATION))
    wire, _ = silent_upstream.receive()
    wire.send(message(b"HTTP/1.1 200 OK", CHUNKED))
    sent = wire.send_until_blocked(encoded, quiet=2.0)  # twice as long as an upstream may be silent
    assert sent < len(encoded)
    sending = background(wire.send, encoded[sent:])
    assert client.response().body == large
    sending.result()


def test_a_cut_off_response_is_not_followed_by_another(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"GET /openai/v1/x")
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", LENGTH, body=b"part"))
    body = Body(client, client.head())
    assert body.exactly(4) == b"part"
    client.send(message(b"GET /healthz HTTP/1.1", b"Host: proxy.example"))
    wire.close()
    with pytest.raises(Truncated) as truncated:
        body.rest()
    assert truncated.value.body == b""
