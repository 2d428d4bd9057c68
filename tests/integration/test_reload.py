"""SIGHUP with a configuration file: listeners and certificates change, and no stream notices."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from tests.integration.process import (
    AUTHORIZATION,
    FOREGROUND,
    OPENAI_KEY,
    SECRETS,
    TOKEN,
    Twistd,
    eventually,
    refuses,
    settings,
)
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, Body, Ending, Wire, chunked, connect, message

HOST = b"Host: proxy.example"
# The upstream keeps no connection, so each request comes on one of its own.
OK = message(b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: 2", body=b"ok")
STREAM = message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"first"))
HEALTHZ = message(b"GET /healthz HTTP/1.1", HOST)
ASK = message(b"GET /openai/v1/x HTTP/1.1", HOST, AUTHORIZATION)


def tcp(port: int) -> str:
    return f"tcp:{port}:interface=127.0.0.1"


class Certificate:
    """The files of a listener's certificate, which each authority can write anew."""

    def __init__(self, folder: Path) -> None:
        self.key, self.certificate = folder / "key.pem", folder / "cert.pem"

    def issue(self) -> ssl.SSLContext:
        """Write a certificate of a new authority, and return the context of a client that trusts no other."""
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost")
        leaf.private_key_pem.write_to_path(str(self.key))
        leaf.cert_chain_pems[0].write_to_path(str(self.certificate))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    def listener(self, port: int) -> str:
        return f"ssl:{port}:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"


class Proxy:
    """A proxy with a configuration file that a test rewrites.

    :param options: of the proxy, beside its file.
    """

    def __init__(self, folder: Path, upstream: Upstream, *listen: str, options: tuple[str, ...] = ()) -> None:
        self._file = folder / "llmproxy.toml"
        self._upstream = upstream
        self._reloads = 0
        self.configure(*listen)
        arguments = (*FOREGROUND, "--config", str(self._file), *options)
        self.twistd = Twistd(*arguments, settings={"OPENAI_API_KEY": OPENAI_KEY}, cwd=folder)
        self.twistd.started()

    @property
    def processes(self) -> list[Twistd]:
        return [self.twistd]

    def configure(self, *listen: str, more: str = "") -> None:
        """Write the file."""
        self._file.write_text(
            f"listen = [{', '.join(repr(description) for description in listen)}]\n{more}\n"
            f'[upstreams.openai]\nbase_url = "http://127.0.0.1:{self._upstream.port}"\n'
            'api_key_env = "OPENAI_API_KEY"\n'
            f'[clients.team]\ntoken_sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n'
        )

    def reload(self) -> None:
        """Have the file read again, and wait until it is."""
        self._reloads += 1
        self.twistd.send_signal(signal.SIGHUP)
        eventually(lambda: self.twistd.log.count("Reloaded the configuration") == self._reloads, "reloaded")

    def stream(self, client: Wire) -> tuple[Wire, Body]:
        """Begin a stream, and return the upstream's end of it and the client's."""
        client.send(ASK)
        wire, _ = self._upstream.receive()
        wire.send(STREAM)
        body = Body(client, client.head())
        assert body.exactly(5) == b"first"
        return wire, body

    def stop(self) -> None:
        self.twistd.stop()
        told = [word for word in (*SECRETS, "Traceback", "Unhandled", "PRIVATE") if word in self.twistd.log]
        assert not told, self.twistd.log


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture
def ports() -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    found = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return found


def connect_securely(port: int, trusting: ssl.SSLContext) -> Wire:
    sock = socket.create_connection(("127.0.0.1", port))
    return Wire(trusting.wrap_socket(sock, server_hostname="localhost"))


def assert_healthy(client: Wire) -> None:
    """The proxy answers on a connection, and keeps it."""
    client.send(HEALTHZ)
    response = client.response()
    assert response.body == b"ok"
    assert response.head.values(b"connection") == []


# Listeners


def test_listeners_come_and_go_and_a_stream_on_one_that_goes_ends_in_peace(
    tmp_path: Path, upstream: Upstream, ports: list[int]
) -> None:
    leaving, staying, coming = ports
    proxy = Proxy(tmp_path, upstream, tcp(leaving), tcp(staying))
    try:
        streaming, waiting, idle, kept = (connect(port) for port in (leaving, leaving, leaving, staying))
        wire, body = proxy.stream(streaming)
        waiting.send(ASK)
        unanswered, _ = upstream.receive()
        assert_healthy(idle)
        assert_healthy(kept)
        assert refuses(coming)

        proxy.configure(tcp(staying), tcp(coming))
        proxy.reload()

        eventually(lambda: refuses(leaving), "the listener is closed")
        eventually(lambda: not refuses(coming), "the listener is open")
        assert idle.ending() is Ending.FIN
        assert_healthy(kept)
        assert_healthy(connect(coming))
        wire.send(chunked(b"second") + LAST_CHUNK)
        assert body.rest() == b"second"
        assert streaming.ending() is Ending.FIN
        unanswered.send(OK)
        response = waiting.response()
        assert response.body == b"ok"
        assert response.head.values(b"connection") == [b"close"]
        assert waiting.ending() is Ending.FIN
    finally:
        proxy.stop()


def test_a_websocket_on_a_listener_that_goes_runs_to_its_end(
    tmp_path: Path, upstream: Upstream, ports: list[int]
) -> None:
    proxy = Proxy(tmp_path, upstream, tcp(ports[0]))
    try:
        client = connect(ports[0])
        upgrade = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        client.send(message(b"GET /openai/v1/realtime HTTP/1.1", HOST, AUTHORIZATION, *upgrade, key))
        wire = upstream.accept()
        wire.head()
        wire.send(message(b"HTTP/1.1 101 Switching Protocols", *upgrade[:2]))
        assert client.head().status == 101
        proxy.configure(tcp(ports[1]))
        proxy.reload()
        eventually(lambda: refuses(ports[0]), "the listener is closed")
        client.send(b"ping")
        assert wire.exactly(4) == b"ping"
        wire.send(b"pong")
        assert client.exactly(4) == b"pong"
        wire.finish()
        assert client.ending() is Ending.FIN
    finally:
        proxy.stop()


def test_one_that_cannot_be_bound_is_logged_and_the_others_open(
    tmp_path: Path, upstream: Upstream, ports: list[int]
) -> None:
    proxy = Proxy(tmp_path, upstream, tcp(ports[0]))
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            in_use = tcp(taken.getsockname()[1])
            proxy.configure(tcp(ports[0]), in_use, tcp(ports[1]))
            proxy.reload()
            proxy.twistd.wait_for(f"Address already in use: llmproxy cannot listen on {in_use}")
            eventually(lambda: not refuses(ports[1]), "the other listener is open")
        assert_healthy(connect(ports[0]))
        assert_healthy(connect(ports[1]))
    finally:
        proxy.stop()


def test_those_of_the_command_line_stay_as_they_are(
    tmp_path: Path, upstream: Upstream, ports: list[int]
) -> None:
    proxy = Proxy(tmp_path, upstream, tcp(ports[0]), options=("--port", tcp(ports[1])))
    try:
        proxy.configure(tcp(ports[2]))
        proxy.reload()
        assert_healthy(connect(ports[1]))
        assert refuses(ports[0])
        assert refuses(ports[2])
    finally:
        proxy.stop()


# Certificates


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


def test_a_certificate_is_renewed_under_a_running_stream(
    tmp_path: Path, upstream: Upstream, ports: list[int], certificate: Certificate
) -> None:
    before = certificate.issue()
    proxy = Proxy(tmp_path, upstream, certificate.listener(ports[0]))
    try:
        streaming = connect_securely(ports[0], before)
        wire, body = proxy.stream(streaming)
        after = certificate.issue()
        proxy.reload()
        with pytest.raises(ssl.SSLCertVerificationError):
            connect_securely(ports[0], before)
        assert_healthy(connect_securely(ports[0], after))
        wire.send(chunked(b"second") + LAST_CHUNK)
        assert body.rest() == b"second"
        assert_healthy(streaming)
        streaming.close()  # who says nothing to the end of TLS holds up the end of the proxy
    finally:
        proxy.stop()


@pytest.mark.parametrize("where", ["file", "option"])
@pytest.mark.parametrize("wrong", ["another's key", "garbage", "gone"])
def test_a_certificate_that_cannot_be_used_leaves_the_old_one(
    tmp_path: Path, upstream: Upstream, ports: list[int], certificate: Certificate, where: str, wrong: str
) -> None:
    trusting = certificate.issue()
    listener = certificate.listener(ports[0])
    in_file = where == "file"
    proxy = Proxy(
        tmp_path,
        upstream,
        listener if in_file else tcp(ports[1]),
        options=() if in_file else ("--port", listener),
    )
    try:
        if wrong == "another's key":
            trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(certificate.key))
        elif wrong == "garbage":
            certificate.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        else:
            certificate.key.unlink()
        proxy.twistd.send_signal(signal.SIGHUP)
        proxy.twistd.wait_for(r"the old configuration stays(.|\n)*/key\.pem")
        assert "AAAA" not in proxy.twistd.log
        assert_healthy(connect_securely(ports[0], trusting))
        # And it is not the last word.
        again = certificate.issue()
        proxy.reload()
        assert_healthy(connect_securely(ports[0], again))
    finally:
        proxy.stop()


def test_tls_listeners_speak_http_1_1_and_nothing_older_than_tls_1_2(
    tmp_path: Path, upstream: Upstream, ports: list[int], certificate: Certificate
) -> None:
    trusting = certificate.issue()
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    proxy = Proxy(tmp_path, upstream, certificate.listener(ports[0]))
    try:
        with socket.create_connection(("127.0.0.1", ports[0])) as sock:
            client = trusting.wrap_socket(sock, server_hostname="localhost")
            assert (client.selected_alpn_protocol(), client.version()) == ("http/1.1", "TLSv1.3")
            client.close()
    finally:
        proxy.stop()


# The ledger


def test_a_ledger_that_is_repaired_loses_nothing_that_waited(
    tmp_path: Path, upstream: Upstream, ports: list[int]
) -> None:
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file, and no directory")
    good = tmp_path / "good.sqlite3"
    proxy = Proxy(tmp_path, upstream, tcp(ports[0]), options=("--admin-port", str(ports[1])))

    def metric(name: str) -> float:
        admin = connect(ports[1])
        admin.send(message(b"GET /metrics HTTP/1.1", HOST, b"Connection: close"))
        found = re.search(rf"^llmproxy_ledger_{name} (\S+)$", admin.response().body.decode(), re.MULTILINE)
        admin.close()
        assert found
        return float(found[1])

    try:
        proxy.configure(
            tcp(ports[0]), more=f'ledger = "sqlite://{in_the_way}/ledger.sqlite3"\nledger_backlog = 10'
        )
        proxy.reload()
        proxy.twistd.wait_for("cannot be written: .*File exists")
        for _ in range(12):
            client = connect(ports[0])
            client.send(ASK)
            upstream.receive()[0].send(OK)
            assert client.response().body == b"ok"
            client.close()
        eventually(lambda: metric("dropped_records_total") == 2, "12 were recorded, of which 10 wait")
        failures = metric("write_failures_total")
        proxy.configure(tcp(ports[0]), more=f'ledger = "sqlite://{good}"')
        proxy.reload()
        proxy.twistd.wait_for(
            f"The last 10 exchanges could not be written to the ledger .*, and go to {good}"
        )
        eventually(lambda: metric("backlog_records") == 0, "what waited is written")
        assert metric("dropped_records_total") == 2
        assert metric("write_failures_total") >= failures > 0
    finally:
        proxy.stop()
    with closing(sqlite3.connect(good)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM llmproxy_exchanges").fetchone() == (10,)
    assert "missing" not in proxy.twistd.log


# Under load


STREAMS = 200
RELOADS = 20


def test_200_streams_and_20_reloads_lose_nothing(
    tmp_path: Path, upstream: Upstream, ports: list[int], certificate: Certificate
) -> None:
    trusting = certificate.issue()
    plain, secure, leaving = tcp(ports[0]), certificate.listener(ports[1]), tcp(ports[2])
    proxy = Proxy(tmp_path, upstream, plain, secure, leaving)
    try:
        clients = [
            connect_securely(ports[1], trusting) if number % 3 == 1 else connect(ports[number % 3 and 2])
            for number in range(STREAMS)
        ]
        streams = [proxy.stream(client) for client in clients]
        for count in range(RELOADS):
            trusting = certificate.issue() if count % 10 == 0 else trusting
            # A stream is under way while everything is read again, and one listener comes and goes.
            for wire, _ in streams:
                wire.send(chunked(b"%04d" % count))
            proxy.configure(
                plain, secure, *([leaving] if count % 2 else []), more=f"max_resent_body = {count}"
            )
            proxy.reload()
            for _, body in streams:
                assert body.exactly(4) == b"%04d" % count
            for client in (connect(ports[0]), connect_securely(ports[1], trusting)):
                client.send(ASK)
                upstream.receive()[0].send(OK)
                assert client.response().body == b"ok"
                client.close()
        for wire, _ in streams:
            wire.send(chunked(b"last") + LAST_CHUNK)
        assert [body.rest() for _, body in streams] == [b"last"] * STREAMS
        # Those that came through what stayed are kept, the others were told that this was all.
        for number, client in enumerate(clients):
            if number % 3 == 2:
                assert client.ending() is Ending.FIN
            else:
                assert_healthy(client)
            client.close()
    finally:
        proxy.stop()


def test_the_environment_alone_is_reloaded_too(tmp_path: Path, upstream: Upstream) -> None:
    url = f"http://127.0.0.1:{upstream.port}"
    twistd = Twistd(*FOREGROUND, "--port", tcp(0), settings=settings(url, url), cwd=tmp_path)
    try:
        client = connect(twistd.port)
        assert_healthy(client)
        twistd.send_signal(signal.SIGHUP)
        twistd.wait_for("Reloaded the configuration")
        assert_healthy(client)
        assert_healthy(connect(twistd.port))
    finally:
        twistd.stop()
