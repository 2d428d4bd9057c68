"""Upstreams that speak TLS: those that can be trusted are, all others never learn a key."""

from __future__ import annotations

import base64
import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import openai as openai_sdk
import pytest
import trustme

from llmproxy import demo_service
from tests.integration.process import (
    ANTHROPIC_KEY,
    AUTHORIZATION,
    FOREGROUND,
    OPENAI_KEY,
    REACTOR,
    Proxy,
    Twistd,
    eventually,
    settings,
)
from tests.integration.upstream import Upstream
from tests.integration.wire import (
    LAST_CHUNK,
    PATIENCE,
    Body,
    Ending,
    Message,
    Truncated,
    Wire,
    chunked,
    connect,
    message,
)

OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")


def speaks_tls(authority: trustme.CA, *names: str, not_after: datetime | None = None) -> Upstream:
    """An upstream with a certificate for some names or addresses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=not_after).configure_cert(context)
    return Upstream(context)


@contextlib.contextmanager
def between(openai: Upstream, anthropic: Upstream, cwd: Path, trusted: trustme.CA) -> Iterator[Proxy]:
    """A proxy that trusts one authority, between clients and two upstreams: one at a name, one at an address."""
    authorities = cwd / "authorities.pem"
    trusted.cert_pem.write_to_path(str(authorities))
    urls = settings(
        f"https://localhost:{openai.port}",
        f"https://127.0.0.1:{anthropic.port}",
        SSL_CERT_FILE=str(authorities),
        UPSTREAM_CONNECT_TIMEOUT="5",
    )
    proxy = Proxy(urls, cwd, openai, anthropic)
    try:
        proxy.twistd.started()
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def by_name(authority: trustme.CA) -> Upstream:
    return speaks_tls(authority, "localhost")


@pytest.fixture(scope="module")
def by_address(authority: trustme.CA) -> Upstream:
    return speaks_tls(authority, "127.0.0.1")


@pytest.fixture(scope="module")
def shared_trusting_proxy(
    by_name: Upstream, by_address: Upstream, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    with between(by_name, by_address, tmp_path_factory.mktemp("trusting"), authority) as proxy:
        yield proxy


@pytest.fixture
def trusting(shared_trusting_proxy: Proxy) -> Iterator[Proxy]:
    """A proxy whose upstreams can be trusted: /openai/ is named localhost, /anthropic/ has an address only."""
    yield shared_trusting_proxy
    shared_trusting_proxy.hang_up()


def test_a_trusted_upstream_is_spoken_to(trusting: Proxy, by_name: Upstream) -> None:
    client = trusting.send(b"POST /openai/v1/x?y", b"Content-Length: 2", body=b"{}")
    wire, request = by_name.receive()
    assert request.head.line == b"POST /v1/x?y HTTP/1.1"
    assert request.head.fields() == {
        b"host": [b"localhost:%d" % by_name.port],
        b"authorization": [b"Bearer " + OPENAI_KEY.encode()],
        b"content-length": [b"2"],
    }
    wire.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"first")))
    body = Body(client, client.head())
    assert body.exactly(5) == b"first"
    wire.send(chunked(b"second") + LAST_CHUNK)
    assert body.rest() == b"second"


def test_a_certificate_may_be_for_an_address(trusting: Proxy, by_address: Upstream) -> None:
    client = trusting.send(b"GET /anthropic/v1/models")
    wire, request = by_address.receive()
    assert request.head.values(b"x-api-key") == [ANTHROPIC_KEY.encode()]
    wire.send(OK)
    assert client.response().body == b"ok"


def test_a_body_that_a_reset_cut_off_is_not_whole_over_tls_either(
    trusting: Proxy, by_address: Upstream
) -> None:
    client = trusting.send(b"GET /anthropic/v1/models")
    wire, _ = by_address.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: 1000", body=b"part"))
    body = Body(client, client.head())
    assert body.exactly(4) == b"part"
    wire.reset()
    with pytest.raises(Truncated):
        body.rest()


def test_a_client_that_leaves_ends_its_upstream_request_over_tls_too(
    trusting: Proxy, by_address: Upstream
) -> None:
    client = trusting.send(b"GET /anthropic/v1/models")
    wire, _ = by_address.receive()
    client.close()
    wire.ending()


def refuse(proxy: Proxy, prefix: str, upstream: Upstream) -> None:
    """A request is answered with 502, and nothing of it has reached the upstream."""
    client = proxy.send(b"GET /%b/v1/models" % prefix.encode())
    heard = b""
    with contextlib.suppress(
        OSError
    ):  # whether our side of the handshake still succeeds depends on its version
        heard, _ = upstream.accept().to_end()
    assert heard == b""
    assert_bad_gateway(client.response(), prefix, upstream)


def assert_bad_gateway(response: Message, prefix: str, upstream: Upstream) -> None:
    assert response.head.status == 502
    assert response.json["error"] == "bad_gateway"
    assert prefix in response.json["message"]
    assert str(upstream.port) in response.json["message"]


def test_an_unknown_authority_and_another_name_are_refused(tmp_path: Path, authority: trustme.CA) -> None:
    unknown, elsewhere = speaks_tls(trustme.CA(), "localhost"), speaks_tls(authority, "elsewhere.example")
    with between(unknown, elsewhere, tmp_path, authority) as proxy:
        refuse(proxy, "openai", unknown)
        refuse(proxy, "anthropic", elsewhere)


def test_an_expired_certificate_and_another_address_are_refused(
    tmp_path: Path, authority: trustme.CA
) -> None:
    expired = speaks_tls(authority, "localhost", not_after=datetime.now(timezone.utc) - timedelta(days=1))
    elsewhere = speaks_tls(authority, "127.0.0.2", "localhost")
    with between(expired, elsewhere, tmp_path, authority) as proxy:
        refuse(proxy, "openai", expired)
        refuse(proxy, "anthropic", elsewhere)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["plain HTTP", "nothing"])
def test_an_upstream_without_tls_is_a_bad_gateway(
    tmp_path: Path, authority: trustme.CA, answer: bytes
) -> None:
    plain = Upstream()
    with between(Upstream(), plain, tmp_path, authority) as proxy:
        client = proxy.send(b"GET /anthropic/v1/models")
        wire = plain.accept()
        assert wire.some(3) == b"\x16\x03\x01"  # a TLS handshake begins
        wire.send(answer)
        wire.finish()
        assert_bad_gateway(client.response(), "anthropic", plain)


# Through an HTTP proxy


@pytest.fixture
def forward_proxy() -> Iterator[Upstream]:
    """An HTTP proxy that the test speaks for."""
    listening = Upstream()
    yield listening
    listening.close()


@contextlib.contextmanager
def behind(
    forward_proxy: Upstream, cwd: Path, trusted: trustme.CA, credentials: str = "", **others: str
) -> Iterator[Proxy]:
    """A proxy whose upstream can only be reached through another; nothing listens where it really is."""
    authorities = cwd / "authorities.pem"
    trusted.cert_pem.write_to_path(str(authorities))
    urls = settings(
        "https://api.openai.example",
        "https://127.0.0.1:1",
        OPENAI_CA_FILE=str(authorities),
        HTTPS_PROXY=f"http://{credentials}127.0.0.1:{forward_proxy.port}",
        NO_PROXY="127.0.0.1",
        **others,
    )
    proxy = Proxy(urls, cwd)
    try:
        proxy.twistd.started()
        yield proxy
    finally:
        proxy.hang_up()
        proxy.stop()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_an_upstream_is_reached_through_an_http_proxy(
    tmp_path: Path, authority: trustme.CA, forward_proxy: Upstream
) -> None:
    with behind(forward_proxy, tmp_path, authority, "user:pa%20ss@") as proxy:
        client = proxy.send(b"POST /openai/v1/x", b"Content-Length: 2", body=b"{}")
        wire = forward_proxy.accept()
        head = wire.head()
        assert head.line == b"CONNECT api.openai.example:443 HTTP/1.1"
        assert head.fields() == {
            b"host": [b"api.openai.example:443"],
            b"proxy-authorization": [b"Basic " + base64.b64encode(b"user:pa ss")],
        }
        wire.send(message(b"HTTP/1.1 200 Connection established"))
        wire.start_tls(server_context(authority, "api.openai.example"))
        request = wire.request()
        assert request.head.line == b"POST /v1/x HTTP/1.1"
        assert request.head.values(b"authorization") == [b"Bearer " + OPENAI_KEY.encode()]
        assert request.body == b"{}"
        wire.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"first")))
        body = Body(client, client.head())
        assert body.exactly(5) == b"first"
        wire.send(chunked(b"second") + LAST_CHUNK)
        assert body.rest() == b"second"
        # The tunnel is kept.
        client.send(message(b"GET /openai/v1/y HTTP/1.1", b"Host: proxy.example", AUTHORIZATION))
        assert wire.request().head.line == b"GET /v1/y HTTP/1.1"
        wire.send(OK)
        assert client.response().body == b"ok"
        assert "pa ss" not in proxy.twistd.log
        assert "pa%20ss" not in proxy.twistd.log


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-x\r\n", b""],
    ids=["refused", "not HTTP", "nothing"],
)
def test_an_http_proxy_that_gives_no_tunnel_is_a_bad_gateway(
    tmp_path: Path, authority: trustme.CA, forward_proxy: Upstream, answer: bytes
) -> None:
    with behind(forward_proxy, tmp_path, authority) as proxy:
        client = proxy.send(b"GET /openai/v1/models")
        wire = forward_proxy.accept()
        wire.head()
        wire.send(answer)
        wire.end()
        response = client.response()
        assert response.head.status == 502
        assert response.json["error"] == "bad_gateway"
        assert "openai" in response.json["message"]
        wire.ending()


def test_an_http_proxy_that_says_nothing_is_a_timeout(
    tmp_path: Path, authority: trustme.CA, forward_proxy: Upstream
) -> None:
    with behind(forward_proxy, tmp_path, authority, UPSTREAM_CONNECT_TIMEOUT="0.5") as proxy:
        client = proxy.send(b"GET /openai/v1/models")
        wire = forward_proxy.accept()
        wire.head()
        assert client.response().head.status == 504
        wire.ending()


def test_the_certificate_counts_behind_an_http_proxy_too(
    tmp_path: Path, authority: trustme.CA, forward_proxy: Upstream
) -> None:
    with behind(forward_proxy, tmp_path, authority) as proxy:
        client = proxy.send(b"GET /openai/v1/models")
        wire = forward_proxy.accept()
        wire.head()
        wire.send(message(b"HTTP/1.1 200 OK"))
        heard = b""
        with contextlib.suppress(OSError):
            wire.start_tls(server_context(authority, "elsewhere.example"))
            heard, _ = wire.to_end()
        assert heard == b""
        assert client.response().head.status == 502


def test_a_host_may_be_excepted_from_the_http_proxy(
    tmp_path: Path, authority: trustme.CA, forward_proxy: Upstream
) -> None:
    with behind(forward_proxy, tmp_path, authority) as proxy:
        response = proxy.ask(b"GET /anthropic/v1/models")
        assert response.head.status == 502
        assert "refused" in response.json["message"]
        assert forward_proxy.waiting() == 0


def test_a_ca_file_counts_for_its_upstream_alone(tmp_path: Path, authority: trustme.CA) -> None:
    openai, anthropic = speaks_tls(authority, "localhost"), speaks_tls(authority, "127.0.0.1")
    authorities = tmp_path / "authorities.pem"
    # A bundle: what is wanted is not the first in it.
    authorities.write_bytes(trustme.CA().cert_pem.bytes() + authority.cert_pem.bytes())
    urls = settings(
        f"https://localhost:{openai.port}",
        f"https://127.0.0.1:{anthropic.port}",
        OPENAI_CA_FILE=str(authorities),
    )
    proxy = Proxy(urls, tmp_path, openai, anthropic)
    try:
        client = proxy.send(b"GET /openai/v1/models")
        wire, _ = openai.receive()
        wire.send(OK)
        assert client.response().body == b"ok"
        refuse(proxy, "anthropic", anthropic)
    finally:
        proxy.stop()


# Clients that speak TLS


@contextlib.contextmanager
def listening_with_tls(authority: trustme.CA, cwd: Path, *options: str, **limits: str) -> Iterator[Twistd]:
    """A demo that listens with TLS; with limits, which a demo does not have, a proxy without an upstream."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(cwd / "key.pem"))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(cwd / "chain.pem"), append=True)
    listen = f"ssl:0:interface=127.0.0.1:privateKey={cwd}/key.pem:certKey={cwd}/chain.pem"
    nowhere = "http://127.0.0.1:1"
    twistd = Twistd(
        *FOREGROUND,
        *(() if limits else ("--demo",)),
        *("--port", listen),
        *options,
        settings=settings(nowhere, nowhere, **limits) if limits else {},
        cwd=cwd,
    )
    try:
        yield twistd
    finally:
        twistd.stop()
    assert "Traceback" not in twistd.log


@pytest.fixture(scope="module")
def secured(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twistd]:
    with listening_with_tls(authority, tmp_path_factory.mktemp("secured")) as twistd:
        yield twistd


@pytest.fixture
def trusting_client(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def connect_securely(port: int, context: ssl.SSLContext) -> Wire:
    return Wire(
        context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
    )


def test_the_sdk_works_over_https(
    secured: Twistd, trusting_client: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with openai_sdk.OpenAI(
        base_url=f"https://127.0.0.1:{secured.port}/openai/v1",
        api_key=demo_service.TOKEN,
        max_retries=0,
        http_client=openai_sdk.DefaultHttpxClient(verify=trusting_client),
        timeout=PATIENCE,
    ) as client:
        said = ""
        for chunk in client.chat.completions.create(
            model="demo-large", messages=[{"role": "user", "content": "Good morning"}], stream=True
        ):
            said += chunk.choices[0].delta.content or ""
        assert "Good morning" in said
        uploaded = client.embeddings.create(model="demo-embedding", input=["x" * 100_000])
        assert uploaded.data


def test_a_refused_upload_ends_in_order_over_tls_too(
    secured: Twistd, trusting_client: ssl.SSLContext
) -> None:
    client = connect_securely(secured.port, trusting_client)
    client.send(
        message(
            b"POST /openai/v1/files HTTP/1.1", b"Host: x", b"Content-Length: 100000000", body=b"x" * 100_000
        )
    )
    assert client.response().head.status == 401
    assert client.ending() is Ending.FIN


def test_a_client_that_does_not_speak_tls_disturbs_no_one(
    secured: Twistd, trusting_client: ssl.SSLContext
) -> None:
    for said in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
        plain = connect(secured.port)
        plain.send(said)
        plain.end()
        plain.to_end()
    client = connect_securely(secured.port, trusting_client)
    client.send(message(b"GET /healthz HTTP/1.1", b"Host: x"))
    assert client.response().body == b"ok"


def test_a_client_that_never_finishes_the_handshake_is_closed_and_counted(
    tmp_path: Path, authority: trustme.CA, trusting_client: ssl.SSLContext
) -> None:
    limits = {"CLIENT_HEADER_TIMEOUT": "1", "CLIENT_KEEP_ALIVE": "1", "CLIENT_MAX_CONNECTIONS": "2"}
    with listening_with_tls(authority, tmp_path, **limits) as twistd:
        begun = time.monotonic()
        silent = [connect(twistd.port) for _ in range(2)]
        if REACTOR is None:  # Twisted's TLS builds something around no protocol, too
            with pytest.raises(OSError):  # noqa: PT011
                connect_securely(twistd.port, trusting_client)
        for client in silent:
            client.to_end()
        assert 0.9 < time.monotonic() - begun < 10

        def served() -> bool:
            try:
                client = connect_securely(twistd.port, trusting_client)
            except OSError:
                return False
            client.send(message(b"GET /healthz HTTP/1.1", b"Host: x"))
            return client.response().body == b"ok"

        eventually(served, "their places are free again")  # a little later than their sockets are closed


@pytest.mark.parametrize(
    "drain",
    [
        pytest.param(
            "300",
            marks=pytest.mark.skipif(REACTOR is not None, reason="Twisted's TLS waits for close_notify"),
        ),
        "1",
    ],
)
def test_an_idle_client_that_never_reads_does_not_hold_up_a_stop(
    tmp_path: Path, authority: trustme.CA, trusting_client: ssl.SSLContext, drain: str
) -> None:
    with listening_with_tls(authority, tmp_path, "--drain", drain) as twistd:
        idle = connect_securely(twistd.port, trusting_client)
        idle.send(message(b"GET /healthz HTTP/1.1", b"Host: x"))
        assert idle.response().body == b"ok"
        twistd.send_signal(signal.SIGTERM)
        assert twistd.wait() == 0  # which has less patience than the loop would have
        idle.close()
