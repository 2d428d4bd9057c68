"""What one client may ask for, and what becomes of the others meanwhile."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Background
from tests.integration.process import AUTHORIZATION, REACTOR, Proxy, eventually, running
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, PATIENCE, Body, Ending, Wire, chunked, message

HOST = b"Host: proxy.example"
HEALTHZ = message(b"GET /healthz HTTP/1.1", HOST)
OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")
GET = message(b"GET /openai/v1/models HTTP/1.1", HOST, AUTHORIZATION)


@pytest.fixture
def upstream() -> Upstream:
    """Behind the proxy of one test, which closes it."""
    return Upstream()


def assert_problem(client: Wire, status: int, code: str) -> None:
    """The client is answered by the proxy itself, and its connection is closed."""
    response = client.response()
    assert response.head.status == status
    assert response.head.values(b"content-type") == [b"application/json"]
    assert response.head.values(b"connection") == [b"close"]
    assert response.json["error"] == code
    assert response.json["message"]
    assert client.ending() is Ending.FIN


def stream_through(proxy: Proxy, upstream: Upstream) -> tuple[Wire, Wire, Body]:
    """Begin a stream: its client, its upstream, and the body that the client reads."""
    client = proxy.send(b"GET /openai/v1/stream")
    wire, _ = upstream.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked"))
    return client, wire, Body(client, client.head())


def is_served(client: Wire) -> bool:
    """Tell whether a connection is taken, not closed."""
    try:
        client.send(HEALTHZ)
        return client.response().body == b"ok"
    except (AssertionError, ConnectionError):
        return False


def takes_another(proxy: Proxy, source: str = "127.0.0.1") -> bool:
    """Tell whether a new connection is taken."""
    try:
        return is_served(proxy.connect(source=source))
    except ConnectionError:
        return False


# Slow clients


@pytest.mark.parametrize(
    ("ask", "most"),
    [
        (HEALTHZ, 8 * 2**20),
        # A record is made of each, of which 10,000 may wait for the ledger, with a kilobyte each.
        (message(b"GET /openai/v1/models HTTP/1.1", HOST), (8 + 12) * 2**20),
    ],
    ids=["ok", "401"],
)
def test_answers_that_nobody_reads_do_not_pile_up(proxy: Proxy, ask: bytes, most: int) -> None:
    before = proxy.twistd.memory
    client = proxy.connect(receive_buffer=4096)
    many = 64 * 2**20 // len(ask)
    sent = client.send_until_blocked(ask * many, quiet=1.0)
    assert sent < 16 * 2**20  # the kernels' buffers take some of them
    assert proxy.twistd.memory - before < most
    assert proxy.ask(b"GET /healthz").body == b"ok"
    for _ in range(sent // len(ask)):  # whoever reads after all is answered
        client.response()


def test_200_clients_that_dribble_their_headers_disturb_no_one(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    dribblers = [proxy.connect() for _ in range(200)]
    for client in dribblers:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    enough = threading.Event()

    def dribble() -> None:
        while not enough.is_set():
            for client in dribblers:
                client.send(b"x")

    dribbling = background(dribble)
    took = []
    try:
        for _ in range(20):
            begun = time.monotonic()
            client = proxy.send(b"GET /openai/v1/models")
            wire, _ = openai.receive()
            wire.send(OK)
            assert client.response().body == b"ok"
            took.append(time.monotonic() - begun)
            openai.hang_up()
    finally:
        enough.set()
        dribbling.result()
    assert sorted(took)[10] < 1.0
    for client in dribblers:
        client.send(b"\r\n\r\n")
        assert client.response().body == b"ok"


@pytest.fixture(scope="module")
def shared_strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(
        tmp_path_factory.mktemp("strict"),
        Upstream(),
        CLIENT_HEADER_TIMEOUT="0.5",
        CLIENT_KEEP_ALIVE="0.5",
        CLIENT_MAX_TARGET="100",
        CLIENT_MAX_HEADERS="1000",
    ) as proxy:
        yield proxy


@pytest.fixture
def strict(shared_strict: Proxy) -> Iterator[Proxy]:
    """A proxy with small limits."""
    yield shared_strict
    shared_strict.hang_up()


@pytest.mark.parametrize("part", [b"G", b"GET /", b"GET /healthz HTTP/1.1\r\n", HEALTHZ[:-2]])
def test_headers_that_do_not_end_in_time_are_a_timeout(strict: Proxy, part: bytes) -> None:
    client = strict.connect()
    client.send(part)
    assert_problem(client, 408, "request_timeout")


def test_dribbling_does_not_buy_time(strict: Proxy, background: Background) -> None:
    client = strict.connect()
    client.send(HEALTHZ[:-2] + b"X-Slow: ")

    def dribble() -> None:
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            client.send(b"x")
            time.sleep(0.05)

    dribbling = background(dribble)
    assert client.response().head.status == 408
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        dribbling.result()


def test_a_connection_without_a_request_is_closed(strict: Proxy) -> None:
    assert strict.connect().ending() is Ending.FIN


def test_a_connection_that_is_kept_is_closed_when_it_is_idle(strict: Proxy) -> None:
    client = strict.connect()
    for _ in range(2):
        client.send(HEALTHZ)
        assert client.response().head.values(b"connection") == []
    assert client.ending() is Ending.FIN


# Large requests


@pytest.mark.parametrize("size", [101, 5000, 100_000])
def test_a_target_that_is_too_long_is_refused(strict: Proxy, size: int) -> None:
    client = strict.connect()
    client.send(message(b"GET /healthz?".ljust(size + 4, b"x") + b" HTTP/1.1", HOST))
    assert_problem(client, 414, "uri_too_long")


def test_a_target_of_just_the_limit_is_served(strict: Proxy) -> None:
    client = strict.connect()
    client.send(message(b"GET /healthz?".ljust(100 + 4, b"x") + b" HTTP/1.1", HOST))
    assert client.response().head.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [b"X-Large: " + b"x" * 1000],
        [b"X-%d: x" % number for number in range(200)],
        [b"X-Huge: " + b"x" * 1_000_000],
    ],
    ids=["one", "many", "huge"],
)
@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["whole", "endless"])
def test_headers_that_are_too_large_are_refused(strict: Proxy, headers: list[bytes], end: bytes) -> None:
    client = strict.connect()
    client.send(b"\r\n".join([b"GET /healthz HTTP/1.1", HOST, *headers]) + end)
    assert_problem(client, 431, "headers_too_large")


def test_trailers_count_as_headers_do(tmp_path: Path, upstream: Upstream) -> None:
    with running(tmp_path, upstream, CLIENT_MAX_HEADERS="1000") as proxy:
        client = proxy.send(b"POST /openai/v1/x", b"Transfer-Encoding: chunked", body=chunked(b"part"))
        wire = upstream.accept()
        body = Body(wire, wire.head())
        assert body.exactly(4) == b"part"
        client.send(b"0\r\n" + b"X-Endless: x\r\n" * 1000)
        wire.ending()
        assert_problem(client, 400, "bad_request")


# Many connections


def test_no_more_connections_are_taken_than_may_be_open(tmp_path: Path, upstream: Upstream) -> None:
    with running(tmp_path, upstream, CLIENT_MAX_CONNECTIONS="3") as proxy:
        clients = [proxy.connect() for _ in range(3)]
        assert all(is_served(client) for client in clients)
        assert not takes_another(proxy)
        clients[0].close()
        eventually(lambda: takes_another(proxy), "there is room again")


def test_no_more_connections_are_taken_from_one_address_than_it_may_have(
    tmp_path: Path, upstream: Upstream
) -> None:
    with running(tmp_path, upstream, CLIENT_MAX_CONNECTIONS_PER_ADDRESS="2") as proxy:
        clients = [proxy.connect() for _ in range(2)]
        assert all(is_served(client) for client in clients)
        assert not takes_another(proxy)
        assert takes_another(proxy, source="127.0.0.2")
        clients[0].close()
        eventually(lambda: takes_another(proxy), "there is room again")


def test_requests_wait_in_order_for_a_connection_to_the_upstream(tmp_path: Path, upstream: Upstream) -> None:
    with running(tmp_path, upstream, UPSTREAM_MAX_CONNECTIONS="1") as proxy:
        clients = [proxy.send(b"GET /openai/v1/0")]
        wire, request = upstream.receive()
        for number in range(1, 5):
            clients.append(proxy.send(b"GET /openai/v1/%d" % number))
            # A request that was answered after it was read after it.
            proxy.ask(b"GET /healthz")
        clients[2].close()  # one that waits is not sent any more
        proxy.ask(b"GET /healthz")
        for number, client in enumerate(clients):
            if number == 2:
                continue
            if number:
                request = wire.request()
            assert request.head.line == b"GET /v1/%d HTTP/1.1" % number
            wire.send(OK)
            assert client.response().body == b"ok"
        assert upstream.waiting() == 0


def test_a_request_that_waits_is_served_when_the_connection_before_it_is_gone(
    tmp_path: Path, upstream: Upstream
) -> None:
    with running(tmp_path, upstream, UPSTREAM_MAX_CONNECTIONS="1") as proxy:
        first = proxy.send(b"GET /openai/v1/1")
        wire, _ = upstream.receive()
        second = proxy.send(b"GET /openai/v1/2")
        proxy.ask(b"GET /healthz")
        assert upstream.waiting() == 0
        wire.reset()
        assert first.response().head.status == 502
        wire, request = upstream.receive()
        assert request.head.line == b"GET /v1/2 HTTP/1.1"
        wire.send(OK)
        assert second.response().body == b"ok"


def test_a_request_that_never_got_a_connection_is_told_so(tmp_path: Path, upstream: Upstream) -> None:
    with running(tmp_path, upstream, UPSTREAM_MAX_CONNECTIONS="1", UPSTREAM_FIRST_BYTE_TIMEOUT="1") as proxy:
        _, wire, _ = stream_through(proxy, upstream)
        response = proxy.ask(b"GET /openai/v1/models")
        assert (response.head.status, response.json["error"]) == (504, "gateway_timeout")
        assert "No connection to the upstream openai became free for 1 seconds" in response.json["message"]
        wire.send(LAST_CHUNK)


def test_idle_connections_to_the_upstream_are_used_again_and_not_kept_for_long(
    tmp_path: Path, upstream: Upstream
) -> None:
    with running(tmp_path, upstream, UPSTREAM_KEEP_ALIVE="1", UPSTREAM_MAX_IDLE_CONNECTIONS="1") as proxy:
        clients = [proxy.send(b"GET /openai/v1/models") for _ in range(2)]
        wires = [upstream.receive()[0] for _ in clients]
        for wire, client in zip(wires, clients, strict=True):
            wire.send(OK)
            assert client.response().body == b"ok"
        wires[1].ending()  # one too many
        clients[0].send(GET)
        wires[0].request()
        wires[0].send(OK)
        assert clients[0].response().body == b"ok"
        assert wires[0].ending() is Ending.FIN


# Descriptors


def limits_of(proxy: Proxy) -> list[str]:
    (line,) = [
        line
        for line in Path(f"/proc/{proxy.twistd.pid}/limits").read_text().splitlines()
        if line.startswith("Max open files")
    ]
    return line.split()[3:5]


def descriptors_of(proxy: Proxy) -> int:
    return len(list(Path(f"/proc/{proxy.twistd.pid}/fd").iterdir()))


def test_it_raises_its_own_limit_of_descriptors(tmp_path: Path, upstream: Upstream) -> None:
    with running(tmp_path, upstream, descriptors=(100, 200)) as proxy:
        assert limits_of(proxy) == ["200", "200"]


def crowd_of(proxy: Proxy, count: int) -> list[socket.socket]:
    """Clients of which most will not be taken, and not all have room in the kernel's queue."""
    crowd = [socket.socket() for _ in range(count)]
    for sock in crowd:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", proxy.twistd.port))
    return crowd


def test_a_crowd_leaves_descriptors_for_upstreams(tmp_path: Path, upstream: Upstream) -> None:
    with running(tmp_path, upstream, descriptors=(100, 100)) as proxy:
        _, wire, body = stream_through(proxy, upstream)
        others = [proxy.connect() for _ in range(10)]
        assert all(is_served(other) for other in others)
        crowd = crowd_of(proxy, 150)
        for _ in range(20):
            wire.send(chunked(b"event"))
            assert body.exactly(5) == b"event"
        # Each client that was let in finds a descriptor for its upstream.
        for other in others:
            other.send(GET)
        wires = [upstream.receive()[0] for _ in others]
        for upstreams in wires:
            upstreams.send(OK)
        assert [other.response().body for other in others] == [b"ok"] * 10
        assert descriptors_of(proxy) < 100
        wire.send(LAST_CHUNK)
        assert body.rest() == b""
        for sock in crowd:
            sock.close()
        eventually(lambda: takes_another(proxy), "it accepts again")
        if REACTOR is None:  # Twisted's port takes what it will not serve, and closes that
            assert proxy.twistd.log.count("No connections are accepted") == 1


def test_out_of_descriptors_it_serves_what_it_has_and_recovers(tmp_path: Path, upstream: Upstream) -> None:
    with running(tmp_path, upstream, descriptors=(100, 100)) as proxy:
        client, wire, body = stream_through(proxy, upstream)
        other = proxy.connect()
        assert is_served(other)
        used = descriptors_of(proxy)
        resource.prlimit(proxy.twistd.pid, resource.RLIMIT_NOFILE, (used, 100))  # all that are left are taken
        crowd = crowd_of(proxy, 150)
        for _ in range(20):
            wire.send(chunked(b"event"))
            assert body.exactly(5) == b"event"
        wire.send(LAST_CHUNK)
        assert body.rest() == b""
        # On connections that are open already, more requests are served.
        client.send(HEALTHZ)
        assert client.response().body == b"ok"
        client.send(GET)
        wire.request()
        other.send(GET)  # for which there is no second connection to the upstream
        refused = other.response()
        assert (refused.head.status, refused.json["error"]) == (503, "service_unavailable")
        assert "This proxy has run out of file descriptors" in refused.json["message"]
        wire.send(OK)
        assert client.response().body == b"ok"
        for sock in crowd:
            sock.close()
        resource.prlimit(proxy.twistd.pid, resource.RLIMIT_NOFILE, (100, 100))
        eventually(lambda: takes_another(proxy), "it accepts again")
        client = proxy.send(b"GET /openai/v1/models")
        assert wire.request().head.line == b"GET /v1/models HTTP/1.1"
        wire.send(OK)
        assert client.response().body == b"ok"
