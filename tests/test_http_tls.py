"""Certificates of listeners, as both kinds of transports serve them, and as the client that shakes hands sees them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface.verify import verifyObject

from llmproxy.http.tls import ServerCertificate, for_native, for_twisted, read
from tests.upstream_support import Authority, Recorders, authority

NAME = "proxy.example"


def endpoint(folder: Path, ca: Authority, *, chain: bool = False, **others: str) -> str:
    """Write a certificate's files, and return the endpoint that names them."""
    leaf = (ca.ca.create_child_ca() if chain else ca.ca).issue_cert(NAME)
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate, *rest = leaf.cert_chain_pems
    certificate.write_to_path(str(folder / "cert.pem"))
    files = {"privateKey": "key.pem", "certKey": "cert.pem"}
    if chain:
        (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in rest))
        files["extraCertChain"] = "chain.pem"
    named = {name: f"{folder / file}" for name, file in files.items()}
    return ":".join(["ssl:0", *(f"{name}={value}" for name, value in {**named, **others}.items())])


def with_a_short_key(folder: Path) -> str:
    """Write a certificate that OpenSSL refuses to serve, and return the endpoint that names it."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    ).sign(key, hashes.SHA256())
    file = folder / "short.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return f"ssl:0:privateKey={file}"


def options(folder: Path, ca: Authority, **others: Any) -> CertificateOptions:
    made = read(endpoint(folder, ca, **others))
    assert made is not None
    return made


class ByTwisted:
    """The server's end of a handshake on Twisted's own transports."""

    def __init__(self, context: Any) -> None:
        self.wire = StringTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        factory = TLSMemoryBIOFactory(ServerCertificate(context), False, Recorders(), Clock())
        protocol: Any = factory.buildProtocol(self.wire.getPeer())
        protocol.makeConnection(self.wire)
        self.protocol = protocol

    def exchange(self, data: bytes) -> bytes:
        self.protocol.dataReceived(data)
        sent: bytes = self.wire.value()
        self.wire.clear()
        return sent


class ByLoop:
    """The server's end of a handshake on native transports."""

    def __init__(self, context: Any) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.end = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def exchange(self, data: bytes) -> bytes:
        self.incoming.write(data)
        with contextlib.suppress(ssl.SSLError):  # it wants more, or says why not in what it sends
            self.end.do_handshake()
        sent: bytes = self.outgoing.read()
        return sent


def handshake(server: Any, trusted: Authority, **settings: Any) -> ssl.SSLObject:
    """Shake hands as a client; what is set is set of its context."""
    context = ssl.create_default_context()
    trusted.ca.configure_trust(context)
    context.set_alpn_protocols(settings.pop("protocols", ["h2", "http/1.1"]))
    context.set_ciphers(settings.pop("ciphers", "DEFAULT"))
    for name, value in settings.items():
        setattr(context, name, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    for _ in range(2):  # what TLS 1.2 needs, and 1.3 less
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
            return client
        incoming.write(server.exchange(outgoing.read()))
    client.do_handshake()
    return client


Make = Callable[[CertificateOptions], Any]


@pytest.fixture(params=[(for_twisted, ByTwisted), (for_native, ByLoop)], ids=["twisted", "native"])
def kind(request: pytest.FixtureRequest) -> tuple[Make, Any]:
    """What makes a context, and a server that uses it."""
    made: tuple[Make, Any] = request.param
    return made


class TestServing:
    def test_http_1_1_is_the_only_protocol(self, tmp_path: Path, kind: tuple[Make, Any]) -> None:
        make, server = kind
        context = make(options(tmp_path, authority()))
        assert handshake(server(context), authority()).selected_alpn_protocol() == "http/1.1"

    def test_a_certificate_comes_with_its_chain(self, tmp_path: Path, kind: tuple[Make, Any]) -> None:
        make, server = kind
        context = make(options(tmp_path, authority(), chain=True))
        assert handshake(server(context), authority()).version() == "TLSv1.3"

    @pytest.mark.parametrize("others", [{}, {"sslmethod": "TLS_METHOD"}], ids=["plain", "sslmethod"])
    @pytest.mark.filterwarnings("ignore:Passing method:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    def test_nothing_older_than_tls_1_2_is_spoken(
        self, tmp_path: Path, kind: tuple[Make, Any], others: dict[str, str]
    ) -> None:
        make, server = kind
        context = make(options(tmp_path, authority(), **others))
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            handshake(
                server(context),
                authority(),
                ciphers="ALL:@SECLEVEL=0",  # ours would let them speak it
                minimum_version=ssl.TLSVersion.TLSv1,
                maximum_version=ssl.TLSVersion.TLSv1_1,
            )
        client = handshake(server(context), authority(), maximum_version=ssl.TLSVersion.TLSv1_2)
        assert client.version() == "TLSv1.2"

    def test_a_certificate_that_nobody_would_accept_is_told_at_once(
        self, tmp_path: Path, kind: tuple[Make, Any]
    ) -> None:
        make, _ = kind
        weak = read(with_a_short_key(tmp_path))
        assert weak is not None
        with pytest.raises((SSL.Error, ssl.SSLError), match=r"(?i)ee.key.too.small"):
            make(weak)


class TestReading:
    @pytest.mark.parametrize("description", ["tcp:80", "tcp6:80", "unix:/run/ssl:x.sock"])
    def test_what_has_no_tls_has_nothing_to_read(self, description: str) -> None:
        assert read(description) is None

    def test_the_files_are_read_each_time(self, tmp_path: Path) -> None:
        description = endpoint(tmp_path, authority())
        before, same = read(description), read(description)
        endpoint(tmp_path, authority())
        after = read(description)
        assert before is not None
        assert same is not None
        assert after is not None
        serials = [made.certificate.get_serial_number() for made in (before, same, after) if made.certificate]
        assert serials[0] == serials[1] != serials[2]

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        description = endpoint(tmp_path, authority())
        (tmp_path / "cert.pem").unlink()
        with pytest.raises(OSError, match=r"cert\.pem"):
            read(description)

    def test_a_key_of_another_certificate_is_refused(self, tmp_path: Path) -> None:
        description = endpoint(tmp_path, authority())
        authority().ca.issue_cert(NAME).private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        with pytest.raises(VerifyError, match="do not match"):
            read(description)


class TestServerCertificate:
    def test_it_is_what_twisted_asks_for_connections(self, tmp_path: Path) -> None:
        assert verifyObject(
            IOpenSSLServerConnectionCreator, ServerCertificate(for_twisted(options(tmp_path, authority())))
        )

    def test_a_connection_that_is_made_after_another_context_is_set_gets_that(self, tmp_path: Path) -> None:
        other = Authority()
        certificate = ServerCertificate(for_twisted(options(tmp_path, authority())))
        before = ByTwisted(certificate)
        certificate.context = for_twisted(options(tmp_path, other))
        handshake(before, authority())
        handshake(ByTwisted(certificate), other)
