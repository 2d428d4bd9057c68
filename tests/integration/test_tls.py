"""Upstreams that speak TLS: those that can be trusted are, all others never learn a key."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme

from tests.integration.process import ANTHROPIC_KEY, OPENAI_KEY, Proxy, settings
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, Body, Message, Truncated, chunked, message

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
