from __future__ import annotations

import asyncio
import base64
import datetime
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import attrs
import pytest
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from twisted.test.iosim import connect as pump_together
from twisted.web.client import ResponseDone

from llmproxy import faults
from llmproxy.errors import BAD_GATEWAY
from llmproxy.http import dial
from llmproxy.http.client import PooledAgent
from llmproxy.http.dial import Dialer, Origin
from llmproxy.http.fields import Fields
from llmproxy.http.transports import NativeTransport
from tests.support import OPENAI
from tests.upstream_support import (
    HOST,
    Identity,
    MemoryAgent,
    Native,
    Outcome,
    Recorder,
    Resolver,
    Wire,
    authority,
    full_queue,
    native_loop,
    read,
    until,
)

LOOPBACK = "127.0.0.1"
TIMEOUT = 10.0
PASSWORD = "s3cr3t"


@pytest.fixture
def loop() -> Iterator[Native]:
    with native_loop() as loop:
        yield loop


def no_proxy(host: str) -> SplitResult | None:
    return None


class Dialling:
    """A dialer on a loop, and what it has come to.

    :param names: the addresses of each name.
    :param proxy: the URL of the proxy to go through.
    """

    def __init__(
        self, loop: Native, names: dict[str, list[str]] | None = None, ca_file: str = "", proxy: str = ""
    ) -> None:
        self.loop = loop
        loop.clock.nameResolver = Resolver(names or {})
        self.proxied: list[str] = []
        ca_files = dict.fromkeys(("upstream.example", LOOPBACK, "::1"), ca_file) if ca_file else {}
        self.dialer = Dialer(loop.reactor, TIMEOUT, ca_files, self._proxy)
        self._url = proxy

    def _proxy(self, host: str) -> SplitResult | None:
        self.proxied.append(host)
        return urlsplit(self._url) if self._url else None

    def start(self, url: str) -> Outcome:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return Outcome(self.dialer.dial(Origin(parts.scheme, parts.hostname, parts.port), Recorder))

    async def to(self, url: str) -> Outcome:
        """Dial, and wait for what comes of it."""
        outcome = self.start(url)
        await until(lambda: not outcome.pending and not self.loop.clock.getDelayedCalls())
        return outcome

    async def fails(self, url: str) -> Failure:
        return (await self.to(url)).failure


async def close(recorder: Any) -> None:
    """Close a connection, and wait until it is lost."""
    recorder.transport.abortConnection()
    await until(lambda: recorder.ends)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


class TestAddresses:
    @pytest.mark.parametrize("host", [LOOPBACK, "::1"])
    def test_an_address_is_connected_to(self, loop: Native, host: str) -> None:
        async def test() -> None:
            async with loop.serve(echo, host=host) as port:
                outcome = await Dialling(loop).to(f"http://{f'[{host}]' if ':' in host else host}:{port}")
                recorder = outcome.result
                assert isinstance(recorder.transport, NativeTransport)
                assert recorder.transport.getPeer().host == host
                recorder.transport.write(b"hello")
                await until(lambda: recorder.data == b"hello")
                await close(recorder)

        loop.run(test())

    def test_a_name_is_resolved(self, loop: Native) -> None:
        async def test() -> None:
            async with loop.serve(echo) as port:
                dialling = Dialling(loop, {"upstream.example": [LOOPBACK]})
                outcome = dialling.start(f"http://upstream.example:{port}")
                await until(lambda: outcome.results)
                loop.clock.advance(0.3)  # when further addresses would be tried
                await until(lambda: not loop.clock.getDelayedCalls())
                await close(outcome.result)

        loop.run(test())

    def test_a_second_address_serves_where_the_first_refuses(self, loop: Native) -> None:
        async def test() -> None:
            async with loop.serve(echo) as port:
                dialling = Dialling(loop, {"upstream.example": ["::1", LOOPBACK]})
                outcome = dialling.start(f"http://upstream.example:{port}")
                await advance_until(loop, lambda: outcome.results)
                assert outcome.result.transport.getPeer().host == LOOPBACK
                await close(outcome.result)

        loop.run(test())

    def test_a_second_address_serves_where_the_first_does_not_answer(self, loop: Native) -> None:
        async def test() -> None:
            with full_queue("127.0.0.2") as (_, port):
                async with loop.serve(echo, host=LOOPBACK, port=port):
                    dialling = Dialling(loop, {"upstream.example": ["127.0.0.2", LOOPBACK]})
                    outcome = dialling.start(f"http://upstream.example:{port}")
                    await advance_until(loop, lambda: outcome.results)
                    assert loop.clock.seconds() < TIMEOUT
                    assert outcome.result.transport.getPeer().host == LOOPBACK
                    await close(outcome.result)

        loop.run(test())

    def test_a_refusal_is_told(self, loop: Native) -> None:
        async def test() -> None:
            with socket.create_server((LOOPBACK, 0)) as gone:
                port = gone.getsockname()[1]
            failure = await Dialling(loop).fails(f"http://{LOOPBACK}:{port}")
            assert failure.check(error.ConnectionRefusedError)

        loop.run(test())

    def test_a_name_without_an_address_is_told(self, loop: Native) -> None:
        async def test() -> None:
            failure = await Dialling(loop).fails("http://nowhere.example:80")
            assert failure.check(error.DNSLookupError)

        loop.run(test())


async def advance_until(loop: Native, true: Callable[[], Any]) -> None:
    """Let time pass until something holds."""
    while not true():
        loop.clock.advance(0.1)
        await asyncio.sleep(0.001)


class TestTimeout:
    """One time covers every step."""

    async def runs_out(self, loop: Native, dialling: Dialling, url: str, ready: Callable[[], Any]) -> None:
        outcome = dialling.start(url)
        await until(ready)
        await asyncio.sleep(0.005)
        loop.clock.advance(TIMEOUT - 0.1)
        await asyncio.sleep(0.005)
        assert outcome.pending
        loop.clock.advance(0.1)
        await until(lambda: not outcome.pending)
        assert outcome.failure.type is error.TimeoutError
        assert loop.clock.getDelayedCalls() == []

    def test_while_nobody_accepts(self, loop: Native) -> None:
        async def test() -> None:
            with full_queue() as (host, port):
                await self.runs_out(loop, Dialling(loop), f"http://{host}:{port}", lambda: True)

        loop.run(test())

    def test_while_no_name_is_resolved(self, loop: Native) -> None:
        async def test() -> None:
            dialling = Dialling(loop)
            loop.clock.nameResolver = Resolver({}, silent=True)
            await self.runs_out(loop, dialling, "http://upstream.example:80", lambda: True)

        loop.run(test())

    def test_while_no_address_of_a_name_accepts(self, loop: Native) -> None:
        async def test() -> None:
            with full_queue() as (host, port):
                dialling = Dialling(loop, {"upstream.example": [host]})
                await self.runs_out(loop, dialling, f"http://upstream.example:{port}", lambda: True)

        loop.run(test())

    @pytest.mark.parametrize("proxied", [False, True], ids=["handshake", "tunnel"])
    def test_while_a_peer_is_silent(self, loop: Native, proxied: bool) -> None:
        async def test() -> None:
            lost: list[bytes] = []
            heard: list[bytes] = []

            async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                heard.append(await reader.read(1))
                try:
                    lost.append(await reader.read())
                except ConnectionError:
                    lost.append(b"reset")

            async with loop.serve(silent) as port:
                url = f"https://{LOOPBACK}:{port}"
                dialling = Dialling(loop, proxy=f"http://{LOOPBACK}:{port}" if proxied else "")
                await self.runs_out(loop, dialling, url, lambda: heard)
                await until(lambda: lost)  # nothing is left open

        loop.run(test())


class TestCancelling:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_before_a_connection_is_up(self, loop: Native, scheme: str) -> None:
        async def test() -> None:
            with full_queue() as (host, port):
                outcome = Dialling(loop).start(f"{scheme}://{host}:{port}")
                await asyncio.sleep(0.005)
                outcome.deferred.cancel()
                assert faults.never_sent(outcome.failure)
                await until(lambda: not loop.clock.getDelayedCalls())

        loop.run(test())

    def test_while_no_name_is_resolved(self, loop: Native) -> None:
        async def test() -> None:
            dialling = Dialling(loop)
            loop.clock.nameResolver = Resolver({}, silent=True)
            outcome = dialling.start("http://upstream.example:80")
            outcome.deferred.cancel()
            assert faults.never_sent(outcome.failure)
            assert loop.clock.getDelayedCalls() == []

        loop.run(test())

    @pytest.mark.parametrize("proxied", [False, True], ids=["handshake", "tunnel"])
    def test_while_a_peer_is_silent_closes_the_connection(self, loop: Native, proxied: bool) -> None:
        async def test() -> None:
            ended: list[bool] = []
            failed: list[Failure] = []

            async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    await reader.read(1)
                    outcome.deferred.cancel()
                    failed.append(outcome.failure)  # in the same turn
                    await reader.read()
                finally:
                    ended.append(True)

            async with loop.serve(silent) as port:
                dialling = Dialling(loop, proxy=f"http://{LOOPBACK}:{port}" if proxied else "")
                outcome = dialling.start(f"https://{LOOPBACK}:{port}")
                await until(lambda: ended)
                assert [faults.never_sent(failure) for failure in failed] == [True]
                assert loop.clock.getDelayedCalls() == []

        loop.run(test())

    def test_at_any_moment_lets_nothing_come_up_later(self, loop: Native, ca_file: str) -> None:
        async def test() -> None:
            identity = authority().issue(LOOPBACK)
            outcomes: list[Outcome] = []
            made: list[Recorder] = []

            def make() -> Recorder:
                made.append(Recorder())
                return made[-1]

            async with loop.serve(echo, identity.context()) as port:
                dialer = Dialling(loop, ca_file=ca_file).dialer
                while not made:
                    outcome = Outcome(dialer.dial(Origin("https", LOOPBACK, port), make))
                    for _ in range(len(outcomes)):
                        await asyncio.sleep(0)
                    outcome.deferred.cancel()
                    assert not outcome.pending
                    outcomes.append(outcome)
                    await asyncio.sleep(0.005)
                    assert len(made) == len(outcome.results)
                await close(made[0])
            assert all(faults.never_sent(outcome.failure) for outcome in outcomes[:-1])
            assert loop.clock.getDelayedCalls() == []

        loop.run(test())


# TLS, on both kinds of transports


@attrs.define
class Handshake:
    """What came of a TLS connection.

    :ivar answer: what a server that sends back what it gets sent back.
    """

    outcome: Outcome
    answer: bytes = b""

    @property
    def words(self) -> str:
        """What a client of the proxy is told."""
        failure = self.outcome.failure
        assert failure.check(ssl.SSLError, SSL.Error, VerificationError)
        explained = faults.explain(OPENAI, failure)
        assert explained is not None
        assert explained[0] is BAD_GATEWAY
        return explained[1]


def over_native(identity: Identity, host: str, ca_files: dict[str, str]) -> Handshake:
    with native_loop() as loop:

        async def test() -> Handshake:
            async with loop.serve(echo, identity.context()) as port:
                loop.clock.nameResolver = Resolver({host: [LOOPBACK]})
                dialer = Dialer(loop.reactor, TIMEOUT, ca_files, no_proxy)
                outcome = Outcome(dialer.dial(Origin("https", host, port), Recorder))
                await until(lambda: not outcome.pending)
                made = Handshake(outcome)
                if outcome.results:
                    assert isinstance(outcome.result.transport, NativeTransport)
                    outcome.result.transport.write(b"hello")
                    await until(lambda: outcome.result.data)
                    made.answer = outcome.result.data
                    await close(outcome.result)
                return made

        return loop.run(test())


class Echo(Protocol):
    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


def accept(reactor: MemoryReactorClock, server: Protocol) -> IOPump:
    """Let the connection that was attempted last come up, with a peer."""
    client: Any = reactor.tcpClients[-1][2].buildProtocol(None)
    pump: IOPump = pump_together(
        server,
        FakeTransport(server, isServer=True),
        client,
        FakeTransport(client, isServer=False),
        clock=reactor,
    )
    return pump


def serve_tls(reactor: MemoryReactorClock, identity: Identity) -> IOPump:
    factory = TLSMemoryBIOFactory(identity.options(), False, Factory.forProtocol(Echo), reactor)
    pump = accept(reactor, factory.buildProtocol(None))
    pump.flush()
    return pump


def in_memory(names: dict[str, list[str]]) -> Any:
    reactor = MemoryReactorClock()
    reactor.nameResolver = cast(Any, Resolver(names))
    return reactor


def over_twisted(identity: Identity, host: str, ca_files: dict[str, str]) -> Handshake:
    reactor = in_memory({host: ["192.0.2.1"]})
    dialer = Dialer(reactor, TIMEOUT, ca_files, no_proxy)
    outcome = Outcome(dialer.dial(Origin("https", host, 443), Recorder))
    pump = serve_tls(reactor, identity)
    made = Handshake(outcome)
    if outcome.results:
        outcome.result.transport.write(b"hello")
        pump.flush()
        made.answer = outcome.result.data
        outcome.result.transport.abortConnection()
    pump.flush()
    reactor.advance(0.3)
    assert reactor.getDelayedCalls() == []
    return made


@pytest.fixture(params=[over_native, over_twisted], ids=["native", "twisted"])
def handshake(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    return authority().file(tmp_path)


class TestCertificates:
    @pytest.mark.parametrize("name", ["api.upstream.example", "*.upstream.example"])
    def test_a_good_one_is_taken(self, handshake: Any, ca_file: str, name: str) -> None:
        host = "api.upstream.example"
        made = handshake(authority().issue(name), host, {host: ca_file})
        assert made.answer == b"hello"

    def test_an_address_is_found_among_its_names(self, handshake: Any, ca_file: str) -> None:
        made = handshake(authority().issue(LOOPBACK), LOOPBACK, {LOOPBACK: ca_file})
        assert made.answer == b"hello"

    def test_an_authority_that_is_not_known_is_refused(self, handshake: Any, ca_file: str) -> None:
        other = authority("other").issue("upstream.example")
        made = handshake(other, "upstream.example", {"upstream.example": ca_file})
        assert "cannot be trusted" in made.words

    def test_the_platforms_authorities_count_by_default(self, handshake: Any, ca_file: str) -> None:
        # An authority is for the host that it was named for, and for no other.
        made = handshake(
            authority().issue("upstream.example"), "upstream.example", {"other.example": ca_file}
        )
        assert "cannot be trusted" in made.words

    @pytest.mark.parametrize(
        ("name", "host"),
        [
            ("another.example", "upstream.example"),
            ("127.0.0.9", LOOPBACK),
            ("upstream.example", LOOPBACK),
            ("*.upstream.example", "deep.api.upstream.example"),
        ],
    )
    def test_a_wrong_name_is_refused(self, handshake: Any, ca_file: str, name: str, host: str) -> None:
        made = handshake(authority().issue(name), host, {host: ca_file})
        assert "cannot be trusted" in made.words

    def test_an_expired_one_is_refused(self, handshake: Any, ca_file: str) -> None:
        past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        identity = authority().issue("upstream.example", not_after=past)
        made = handshake(identity, "upstream.example", {"upstream.example": ca_file})
        assert "cannot be trusted" in made.words
        if handshake is over_native:
            assert "certificate has expired" in made.words

    def test_a_file_may_hold_several_authorities(self, handshake: Any, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle.pem"
        bundle.write_bytes(
            b"# A comment.\n" + b"".join(authority(name).ca.cert_pem.bytes() for name in ("other", "trusted"))
        )
        for name in ("trusted", "other"):
            identity = authority(name).issue("upstream.example")
            made = handshake(identity, "upstream.example", {"upstream.example": str(bundle)})
            assert made.answer == b"hello"

    def test_a_file_that_is_not_there_is_told_and_leaves_nothing_open(
        self, handshake: Any, tmp_path: Path
    ) -> None:
        missing = {"upstream.example": str(tmp_path / "missing.pem")}
        made = handshake(authority().issue("upstream.example"), "upstream.example", missing)
        assert made.outcome.failure.check(FileNotFoundError)


class TestContexts:
    def test_it_is_made_once_for_a_host_natively(
        self, loop: Native, ca_file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []

        def count(**settings: Any) -> ssl.SSLContext:
            made.append(settings)
            return real(**settings)

        async def test() -> None:
            identity = authority().issue("upstream.example", LOOPBACK)
            tls = identity.context()
            monkeypatch.setattr(ssl, "create_default_context", count)
            async with loop.serve(echo, tls) as port:
                dialling = Dialling(loop, {"upstream.example": [LOOPBACK]}, ca_file)

                async def connect(host: str) -> None:
                    outcome = dialling.start(f"https://{host}:{port}")
                    await advance_until(loop, lambda: outcome.results)
                    await close(outcome.result)

                for host in ("upstream.example", LOOPBACK, "upstream.example", LOOPBACK):
                    await connect(host)

        real = ssl.create_default_context
        loop.run(test())
        assert made == [{"cafile": ca_file}, {"cafile": ca_file}]

    def test_it_is_made_once_for_a_host_over_twisted(
        self, ca_file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[str] = []

        def count(host: str, trust: Any) -> Any:
            made.append(host)
            return real(host, trust)

        real = optionsForClientTLS
        monkeypatch.setattr(dial, "optionsForClientTLS", count)
        reactor = in_memory({})
        dialer = Dialer(reactor, TIMEOUT, {LOOPBACK: ca_file}, no_proxy)
        for _ in range(3):
            outcome = Outcome(dialer.dial(Origin("https", LOOPBACK, 443), Recorder))
            serve_tls(reactor, authority().issue(LOOPBACK))
            assert len(outcome.results) == 1
        assert made == [LOOPBACK]

    def test_the_server_is_told_which_host_is_meant_and_that_http_1_1_is_spoken(
        self, loop: Native, ca_file: str
    ) -> None:
        seen: list[Any] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
            await reader.read()

        async def test() -> None:
            tls = authority().issue("upstream.example").context()
            tls.set_alpn_protocols(["h2", "http/1.1"])
            tls.sni_callback = lambda _, name, __: seen.append(name)
            async with loop.serve(note, tls) as port:
                dialling = Dialling(loop, {"upstream.example": [LOOPBACK]}, ca_file)
                outcome = dialling.start(f"https://upstream.example:{port}")
                await until(lambda: outcome.results and len(seen) == 2)
                await close(outcome.result)
                loop.clock.advance(0.3)

        loop.run(test())
        assert seen == ["upstream.example", "http/1.1"]


class TestBrokenHandshakes:
    def test_a_peer_that_speaks_no_tls(self, loop: Native) -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()

        async def test() -> None:
            async with loop.serve(plain) as port:
                failure = await Dialling(loop).fails(f"https://{LOOPBACK}:{port}")
                assert failure.check(ssl.SSLError)

        loop.run(test())

    def test_a_peer_that_speaks_no_tls_over_twisted(self) -> None:
        class Plain(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        reactor = in_memory({})
        outcome = Outcome(
            Dialer(reactor, TIMEOUT, {}, no_proxy).dial(Origin("https", LOOPBACK, 443), Recorder)
        )
        accept(reactor, Plain()).flush()
        assert outcome.failure.check(SSL.Error)
        assert reactor.getDelayedCalls() == []

    @pytest.mark.parametrize("how", ["closes", "resets"])
    def test_a_peer_that_leaves(self, loop: Native, how: str) -> None:
        async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1 if how == "resets" else 10_000)
            if how == "closes":
                writer.close()
                await writer.wait_closed()

        async def test() -> None:
            async with loop.serve(rude) as port:
                failure = await Dialling(loop).fails(f"https://{LOOPBACK}:{port}")
                explained = faults.explain(OPENAI, failure)
                assert explained is not None
                assert explained[0] is BAD_GATEWAY

        loop.run(test())

    def test_a_peer_that_leaves_over_twisted(self) -> None:
        class Rude(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                self.transport.loseConnection()

        reactor = in_memory({})
        outcome = Outcome(
            Dialer(reactor, TIMEOUT, {}, no_proxy).dial(Origin("https", LOOPBACK, 443), Recorder)
        )
        accept(reactor, Rude()).flush()
        explained = faults.explain(OPENAI, outcome.failure)
        assert explained is not None
        assert explained[0] is BAD_GATEWAY

    def test_a_peer_that_is_silent_over_twisted(self) -> None:
        reactor = in_memory({})
        outcome = Outcome(
            Dialer(reactor, TIMEOUT, {}, no_proxy).dial(Origin("https", LOOPBACK, 443), Recorder)
        )
        pump = accept(reactor, Recorder())
        pump.flush()
        reactor.advance(TIMEOUT - 0.1)
        assert outcome.pending
        reactor.advance(0.1)
        assert outcome.failure.type is error.TimeoutError
        pump.flush()
        assert pump.clientIO.disconnecting
        assert reactor.getDelayedCalls() == []


# Proxies


class Tunneller:
    """An HTTP proxy that a test scripts.

    :param answer: to CONNECT; behind a 200, bytes go to ``port`` and back.
    """

    def __init__(self, answer: bytes, port: int = 0, pieces: int = 10_000) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._port = port
        self._pieces = pieces

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        for at in range(0, len(self._answer), self._pieces):
            writer.write(self._answer[at : at + self._pieces])
            await asyncio.sleep(0)
        if not self._answer:
            return
        if not self._port:
            await reader.read()
            return
        there_reader, there_writer = await asyncio.open_connection(LOOPBACK, self._port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(10_000):
                target.write(data)

        try:
            await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
        finally:
            there_writer.transport.abort()


class TestProxy:
    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.0 200 Connection established\r\nProxy-Agent: x\r\n\r\n",
            b"HTTP/1.1 204 x\r\n\r\n",
        ],
    )
    @pytest.mark.parametrize("pieces", [1, 10_000])
    def test_tls_goes_through_its_tunnel(
        self, loop: Native, ca_file: str, answer: bytes, pieces: int
    ) -> None:
        async def test() -> None:
            async with loop.serve(echo, authority().issue("upstream.example").context()) as port:
                tunneller = Tunneller(answer, port, pieces)
                async with loop.serve(tunneller.serve) as proxy_port:
                    dialling = Dialling(loop, {}, ca_file, f"http://{LOOPBACK}:{proxy_port}")
                    outcome = await dialling.to("https://upstream.example:443")
                    outcome.result.transport.write(b"hello")
                    await until(lambda: outcome.result.data == b"hello")
                    await close(outcome.result)
            assert dialling.proxied == ["upstream.example"]
            assert tunneller.requests == [
                b"CONNECT upstream.example:443 HTTP/1.1\r\nHost: upstream.example:443\r\n\r\n"
            ]

        loop.run(test())

    def test_tls_goes_through_its_tunnel_over_twisted(self, ca_file: str) -> None:
        class Proxying(Protocol):
            transport: Any
            request = b""

            def dataReceived(self, data: bytes) -> None:
                if not self.request:
                    self.request = data
                    self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    self.tls = TLSMemoryBIOFactory(
                        authority().issue("upstream.example").options(),
                        False,
                        Factory.forProtocol(Echo),
                        reactor,
                    ).buildProtocol(None)
                    self.tls.makeConnection(self.transport)
                else:
                    self.tls.dataReceived(data)

        reactor = in_memory({})
        proxying = Proxying()
        dialer = Dialer(
            reactor, TIMEOUT, {"upstream.example": ca_file}, lambda host: urlsplit("http://192.0.2.9:3128")
        )
        outcome = Outcome(dialer.dial(Origin("https", "upstream.example", 443), Recorder))
        assert reactor.tcpClients[0][:2] == ("192.0.2.9", 3128)
        pump = accept(reactor, proxying)
        pump.flush()
        outcome.result.transport.write(b"hello")
        pump.flush()
        assert outcome.result.data == b"hello"
        assert proxying.request.startswith(b"CONNECT upstream.example:443 HTTP/1.1\r\n")
        assert reactor.getDelayedCalls() == []

    def test_an_ipv6_address_is_asked_for_in_brackets(self, loop: Native) -> None:
        async def test() -> None:
            tunneller = Tunneller(b"")
            async with loop.serve(tunneller.serve) as port:
                await Dialling(loop, proxy=f"http://{LOOPBACK}:{port}").fails("https://[2001:db8::1]:443")
            assert tunneller.requests[0].startswith(
                b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"
            )

        loop.run(test())

    @pytest.mark.parametrize(
        ("userinfo", "credentials"),
        [
            (f"user:{PASSWORD}", f"user:{PASSWORD}".encode()),
            ("user", b"user:"),
            ("us%40er:p%3a%C3%A9", "us@er:p:é".encode()),
        ],
    )
    def test_its_credentials_are_sent(self, loop: Native, userinfo: str, credentials: bytes) -> None:
        async def test() -> None:
            tunneller = Tunneller(b"")
            async with loop.serve(tunneller.serve) as port:
                await Dialling(loop, proxy=f"http://{userinfo}@{LOOPBACK}:{port}").fails(
                    "https://upstream.example:443"
                )
            expected = b"Proxy-Authorization: Basic " + base64.b64encode(credentials) + b"\r\n\r\n"
            assert tunneller.requests[0].endswith(b"\r\n" + expected)

        loop.run(test())

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "it answered 407"),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "it answered 503"),
            (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "it answered 302"),
            (b"SSH-2.0-s3cr3t\r\n", "it does not speak HTTP"),
            (b"", "it closed the connection"),
        ],
    )
    def test_a_refusal_is_told_without_secrets(self, loop: Native, answer: bytes, words: str) -> None:
        async def test() -> None:
            async with loop.serve(Tunneller(answer).serve) as port:
                dialling = Dialling(loop, proxy=f"http://user:{PASSWORD}@{LOOPBACK}:{port}")
                failure = await dialling.fails("https://upstream.example:443")
                assert failure.check(error.ConnectError)
                explained = faults.explain(OPENAI, failure)
                assert explained is not None
                assert f"the HTTP proxy {LOOPBACK} gave no tunnel: {words}." in explained[1]
                shown = f"{failure} {failure.getErrorMessage()} {failure.getTraceback()} {explained[1]}"
                encoded = base64.b64encode(f"user:{PASSWORD}".encode()).decode("ascii")
                assert PASSWORD not in shown
                assert encoded not in shown

        loop.run(test())

    def test_a_proxy_that_is_not_there_is_told(self, loop: Native) -> None:
        async def test() -> None:
            with socket.create_server((LOOPBACK, 0)) as gone:
                port = gone.getsockname()[1]
            failure = await Dialling(loop, proxy=f"http://{LOOPBACK}:{port}").fails(
                "https://upstream.example:443"
            )
            assert failure.check(error.ConnectionRefusedError)

        loop.run(test())

    def test_a_certificate_is_checked_within_the_tunnel(self, loop: Native, ca_file: str) -> None:
        async def test() -> None:
            async with loop.serve(echo, authority().issue("another.example").context()) as port:
                tunneller = Tunneller(b"HTTP/1.1 200 OK\r\n\r\n", port)
                async with loop.serve(tunneller.serve) as proxy_port:
                    dialling = Dialling(loop, {}, ca_file, f"http://{LOOPBACK}:{proxy_port}")
                    failure = await dialling.fails("https://upstream.example:443")
                    assert failure.check(ssl.SSLCertVerificationError)

        loop.run(test())

    def test_its_port_is_80_where_none_is_told(self) -> None:
        agent = MemoryAgent(proxy_for=lambda host: urlsplit("http://192.0.2.9"))
        outcome = agent.ask(url=b"https://upstream.example/")
        assert agent.reactor.tcpClients[0][:2] == ("192.0.2.9", 80)
        outcome.deferred.cancel()
        assert len(outcome.failures) == 1

    def test_plain_http_does_not_ask_for_one(self, loop: Native) -> None:
        async def test() -> None:
            async with loop.serve(echo) as port:
                dialling = Dialling(loop, proxy="http://192.0.2.9:1")
                outcome = await dialling.to(f"http://{LOOPBACK}:{port}")
                assert dialling.proxied == []
                await close(outcome.result)

        loop.run(test())


# A whole agent over real connections


class TestAgent:
    def test_requests_share_a_connection_and_bodies_come_as_they_are_sent(
        self, loop: Native, ca_file: str
    ) -> None:
        served: list[bytes] = []
        go_on = asyncio.Event()

        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                served.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
                await go_on.wait()
                writer.write(b"1\r\nb\r\n0\r\n\r\n")

        async def exchange(agent: PooledAgent, url: bytes) -> None:
            go_on.clear()
            reader = read(await loop.fires(agent.request(b"GET", url, Fields([HOST]))))
            await until(lambda: reader.body == b"a")
            go_on.set()
            await until(lambda: reader.ends)
            assert reader.body == b"ab"
            assert reader.end.check(ResponseDone)

        async def test() -> None:
            async with loop.serve(upstream, authority().issue(LOOPBACK).context()) as port:
                agent = PooledAgent(loop.clock, ca_files={LOOPBACK: ca_file})
                for _ in range(3):
                    await exchange(agent, f"https://{LOOPBACK}:{port}/".encode())
                assert len(served) == 3
                (pool,) = agent._pools.values()
                assert repr(pool) == "<Pool 1 open, 1 idle, 0 waiting>"
                agent.close()
                await until(lambda: repr(pool) == "<Pool 0 open, 0 idle, 0 waiting>")
                assert loop.clock.getDelayedCalls() == []

        loop.run(test())

    def test_a_response_that_is_aborted_resets_the_upstream(self, loop: Native) -> None:
        seen: list[str] = []

        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nsome")
            try:
                await reader.read()
                seen.append("end")
            except ConnectionResetError:
                seen.append("reset")

        async def test() -> None:
            async with loop.serve(upstream) as port:
                agent = PooledAgent(loop.clock)
                response = await loop.fires(agent.request(b"GET", f"http://{LOOPBACK}:{port}/".encode()))
                reader = read(response)
                await until(lambda: reader.body == b"some")
                response.abort()
                await until(lambda: seen)
                assert seen == ["reset"]

        loop.run(test())

    def test_an_idle_connection_that_the_upstream_closes_is_not_used_again(self, loop: Native) -> None:
        served: list[bytes] = []

        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            await writer.wait_closed()

        async def exchange(agent: PooledAgent, url: bytes) -> None:
            response = await loop.fires(agent.request(b"GET", url))
            assert read(response).end.check(ResponseDone)
            (pool,) = agent._pools.values()
            await until(lambda: repr(pool) == "<Pool 0 open, 0 idle, 0 waiting>")

        async def test() -> None:
            async with loop.serve(upstream) as port:
                agent = PooledAgent(loop.clock)
                for _ in range(3):
                    await exchange(agent, f"http://{LOOPBACK}:{port}/".encode())
                agent.close()
            assert len(served) == 3

        loop.run(test())

    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
    def test_an_upgraded_connection_is_handed_over_with_what_came_early(
        self, loop: Native, ca_file: str, tls: bool
    ) -> None:
        switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(switched + b"early ")
            writer.write(b"and late ")
            while data := await reader.read(1000):
                writer.write(data.upper())

        class Talking(Recorder):
            def connectionMade(self) -> None:
                self.transport.write(b"at once ")

        async def test() -> None:
            context = authority().issue(LOOPBACK).context() if tls else None
            async with loop.serve(upstream, context) as port:
                agent = PooledAgent(loop.clock, ca_files={LOOPBACK: ca_file})
                url = f"{'https' if tls else 'http'}://{LOOPBACK}:{port}/".encode()
                headers = Fields([HOST, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")])
                talking = Talking()
                asked = agent.request(b"GET", url, headers)
                asked.addCallback(lambda response: response.switchProtocols(talking))
                await loop.fires(asked)
                await until(lambda: talking.data.endswith(b"AT ONCE "))
                talking.transport.write(b"and then")
                await until(lambda: talking.data.endswith(b"AND THEN"))
                assert talking.data == b"early and late AT ONCE AND THEN"
                (pool,) = agent._pools.values()
                assert repr(pool) == "<Pool 1 open, 0 idle, 0 waiting>"
                talking.transport.loseConnection()
                await until(lambda: talking.ends)
                assert repr(pool) == "<Pool 0 open, 0 idle, 0 waiting>"

        loop.run(test())


def test_a_stand_in_survives_a_loss_before_anything_took_its_place() -> None:
    agent = MemoryAgent(proxy_for=lambda host: urlsplit("http://192.0.2.9:3128"))
    outcome = agent.ask(url=b"https://upstream.example/")
    wire = agent.accept()
    assert isinstance(wire, Wire)
    assert wire.take().startswith(b"CONNECT ")
    wire.lose(error.ConnectionLost())
    assert outcome.failure.check(error.ConnectError)
    assert wire.ending == "reset"
    assert agent.reactor.getDelayedCalls() == []
