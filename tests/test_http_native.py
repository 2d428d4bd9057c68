from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    serverFromString,
)
from twisted.internet.interfaces import IConnector
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from llmproxy.http.native import NativeReactor, native
from llmproxy.http.port import NativePort
from llmproxy.http.tls import ServerCertificate, for_native
from llmproxy.http.transports import NativeTransport
from tests.upstream_support import (
    Authority,
    Native,
    Recorders,
    authority,
    full_queue,
    native_loop,
    until,
)

LOOPBACK = "127.0.0.1"


@pytest.fixture
def loop() -> Iterator[Native]:
    with native_loop() as loop:
        yield loop


class Counted(Recorders):
    """A factory that counts whether it is in use."""

    running = 0

    def doStart(self) -> None:
        self.running += 1

    def doStop(self) -> None:
        self.running -= 1


class TestWhere:
    def test_a_reactor_on_uvloop_gets_native_transports(self, loop: Native) -> None:
        class OnUvloop(MemoryReactorClock):
            _asyncioEventloop = loop.loop

        reactor = OnUvloop()
        made = native(reactor)
        assert isinstance(made, NativeReactor)
        made.advance(5)
        assert reactor.seconds() == 5

    def test_any_other_is_used_as_it_is(self) -> None:
        class OnAsyncio(MemoryReactorClock):
            _asyncioEventloop = asyncio.new_event_loop()

        for reactor in (MemoryReactorClock(), OnAsyncio()):
            assert native(reactor) is reactor
        OnAsyncio._asyncioEventloop.close()


class TestEndpoints:
    """What an operator writes in --port, on the native reactor."""

    def listen(self, loop: Native, description: str, factory: Recorders) -> Any:
        async def listening() -> Any:
            return await loop.fires(serverFromString(loop.reactor, description).listen(factory))

        return loop.run(listening())

    @pytest.mark.parametrize(
        "description",
        ["tcp:0:interface=127.0.0.1", "tcp6:0:interface=\\:\\:1", "unix:{folder}/socket:mode=660"],
    )
    def test_a_description_gives_a_native_port(self, loop: Native, tmp_path: Path, description: str) -> None:
        async def test() -> None:
            server, client = await loop.call(factory, listening)
            assert isinstance(server.transport, NativeTransport)
            client.close()
            await until(lambda: server.ends)
            await loop.fires(listening.stopListening())

        factory = Recorders()
        listening = self.listen(loop, description.format(folder=tmp_path), factory)
        assert isinstance(listening, NativePort)
        loop.run(test())

    def test_a_socket_that_was_inherited_is_listened_on(self, loop: Native) -> None:
        async def test() -> None:
            endpoint = AdoptedStreamServerEndpoint(loop.reactor, inherited.fileno(), socket.AF_INET)
            factory = Recorders()
            listening: Any = await loop.fires(endpoint.listen(factory))
            assert listening.getHost().port == port
            server, client = await loop.call(factory, listening)
            client.close()
            await until(lambda: server.ends)
            listening.stopListening()

        inherited = socket.create_server((LOOPBACK, 0))
        port = inherited.getsockname()[1]
        try:
            loop.run(test())
        finally:
            inherited.detach()  # the endpoint has closed it

    def test_an_inherited_unix_socket_is_left_to_whom_it_belongs(self, loop: Native, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as inherited:
            inherited.bind(str(path))
            inherited.listen()
            inherited.setblocking(False)
            listening = loop.reactor.adoptStreamPort(inherited.fileno(), socket.AF_UNIX, Recorders())
            assert listening.getHost() == UNIXAddress(str(path))
            listening.stopListening()
            assert path.is_socket()
            # A connection would start again what systemd has just stopped.
            with pytest.raises(BlockingIOError):
                inherited.accept()

    def test_who_waits_at_an_inherited_socket_is_left_to_whom_it_belongs(
        self, loop: Native, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as inherited, socket.socket(socket.AF_UNIX) as client:
            inherited.bind(path)
            inherited.listen()
            inherited.setblocking(False)
            listening = loop.reactor.adoptStreamPort(inherited.fileno(), socket.AF_UNIX, Recorders())
            client.connect(path)
            listening.stopListening()
            inherited.accept()[0].close()

    def test_ssl_serves_certificate_and_chain(self, loop: Native, tmp_path: Path) -> None:
        ca = authority().ca
        leaf = ca.create_child_ca().issue_cert("proxy.example")
        leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        certificate, *chain = leaf.cert_chain_pems
        certificate.write_to_path(str(tmp_path / "cert.pem"))
        (tmp_path / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in chain))

        async def test() -> None:
            context = ssl.create_default_context()
            ca.configure_trust(context)
            host = listening.getHost()
            reader, writer = await asyncio.open_connection(
                host.host, host.port, ssl=context, server_hostname="proxy.example"
            )
            await until(lambda: factory.made and factory.made[0].transport)
            server = factory.made[0]
            writer.write(b"hello")
            await until(lambda: server.data == b"hello")
            peer: Any = server.transport.getPeer()
            assert peer.port == writer.get_extra_info("sockname")[1]
            server.transport.write(b"bye")
            server.transport.loseConnection()
            assert await reader.read() == b"bye"
            await until(lambda: server.ends)
            assert server.end.check(error.ConnectionDone)
            writer.close()
            listening.stopListening()

        factory = Recorders()
        listening = self.listen(
            loop,
            f"ssl:0:interface=127.0.0.1:privateKey={tmp_path}/key.pem:certKey={tmp_path}/cert.pem"
            f":extraCertChain={tmp_path}/chain.pem",
            factory,
        )
        loop.run(test())

    def test_a_certificate_that_is_renewed_is_for_new_connections(self, loop: Native) -> None:
        first, second = Authority(), Authority()
        certificate = ServerCertificate(for_native(first.issue("proxy.example").options()))

        async def call(trusted: Authority) -> asyncio.StreamWriter:
            context = ssl.create_default_context()
            trusted.ca.configure_trust(context)
            host: Any = listening.getHost()
            _, writer = await asyncio.open_connection(
                host.host, host.port, ssl=context, server_hostname="proxy.example"
            )
            await until(lambda: factory.made and factory.made[-1].transport)
            return writer

        async def test() -> None:
            before = await call(first)
            certificate.context = for_native(second.issue("proxy.example").options())
            after = await call(second)
            before.write(b"still here")
            await until(lambda: factory.made[0].data == b"still here")
            for writer in (before, after):
                writer.close()
            await until(lambda: all(made.ends for made in factory.made))
            listening.stopListening()

        factory = Recorders()
        listening = loop.reactor.listenSSL(0, factory, certificate, interface=LOOPBACK)
        loop.run(test())

    @pytest.mark.parametrize("how", ["speaks no TLS", "leaves", "does not trust us"])
    def test_a_client_whose_handshake_fails_disturbs_no_one(self, loop: Native, how: str) -> None:
        async def test() -> None:
            factory = Recorders()
            options = authority().issue("proxy.example").options()
            listening = loop.reactor.listenSSL(0, factory, options, interface=LOOPBACK)
            host: Any = listening.getHost()
            if how == "does not trust us":
                with pytest.raises(ssl.SSLCertVerificationError):
                    await asyncio.open_connection(
                        host.host,
                        host.port,
                        ssl=ssl.create_default_context(),
                        server_hostname="proxy.example",
                    )
            else:
                client = socket_of(loop)
                await loop.loop.sock_connect(client, (host.host, host.port))
                if how == "leaves":
                    client.close()
                else:
                    client.send(b"GET / HTTP/1.1\r\n\r\n")
                    await loop.read_all(client)
            context = ssl.create_default_context()
            authority().ca.configure_trust(context)
            _, writer = await asyncio.open_connection(
                host.host, host.port, ssl=context, server_hostname="proxy.example"
            )
            await until(lambda: factory.made)
            assert len(factory.made) == 1
            writer.close()
            await until(lambda: factory.made[0].ends)
            listening.stopListening()
            await until(lambda: not listening._accepting)

        loop.run(test())


class TestConnecting:
    @pytest.mark.parametrize(
        ("endpoint", "interface"), [(TCP4ClientEndpoint, LOOPBACK), (TCP6ClientEndpoint, "::1")]
    )
    def test_an_endpoint_connects_natively(self, loop: Native, endpoint: Any, interface: str) -> None:
        async def test() -> None:
            servers, clients = Recorders(), Recorders()
            listening = loop.reactor.listenTCP(0, servers, interface=interface)
            host: Any = listening.getHost()
            await loop.fires(endpoint(loop.reactor, interface, host.port).connect(clients))
            (client,) = clients.made
            assert client.transport.getPeer().port == host.port
            client.transport.write(b"hello")
            await until(lambda: servers.made and servers.made[0].data == b"hello")
            client.transport.loseConnection()
            await until(lambda: servers.made[0].ends and client.ends)
            assert client.end.check(error.ConnectionDone)
            listening.stopListening()
            assert loop.clock.getDelayedCalls() == []

        loop.run(test())

    def test_a_server_that_speaks_first_is_heard(self, loop: Native) -> None:
        async def test() -> None:
            with socket.create_server((LOOPBACK, 0)) as listening:
                factory = Recorders()
                connecting = TCP4ClientEndpoint(loop.reactor, *listening.getsockname()).connect(factory)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                # The kernel has let us in before the loop looks: what is said here is there when it does.
                server, _ = listening.accept()
                with server:
                    server.send(b"220 welcome")
                    await loop.fires(connecting)
                    (client,) = factory.made
                    await until(lambda: client.data == b"220 welcome")
                    client.transport.abortConnection()
                    await until(lambda: client.ends)

        loop.run(test())

    @pytest.mark.parametrize("how", ["FIN", "RST"])
    def test_a_server_that_closes_at_once_is_connected_and_lost(self, loop: Native, how: str) -> None:
        async def test() -> None:
            with socket.create_server((LOOPBACK, 0)) as listening:
                factory = Recorders()
                connecting = TCP4ClientEndpoint(loop.reactor, *listening.getsockname()).connect(factory)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                server, _ = listening.accept()
                if how == "RST":
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                server.close()
                outcome = await loop.outcome(connecting)
                if outcome.results:
                    (client,) = factory.made
                    await until(lambda: client.ends)
                else:
                    assert outcome.failure.check(error.ConnectError)
                assert loop.clock.getDelayedCalls() == []

        loop.run(test())

    def test_a_refusal_is_told_as_twisted_tells_it(self, loop: Native) -> None:
        async def test() -> None:
            with socket.create_server((LOOPBACK, 0)) as gone:
                port = gone.getsockname()[1]
            factory = Counted()
            outcome = await loop.outcome(TCP4ClientEndpoint(loop.reactor, LOOPBACK, port).connect(factory))
            assert outcome.failure.check(error.ConnectionRefusedError)
            assert factory.running == 0
            assert loop.clock.getDelayedCalls() == []

        loop.run(test())

    def test_a_fault_without_a_number_keeps_its_words(
        self, loop: Native, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def test() -> None:
            endpoint = TCP4ClientEndpoint(loop.reactor, "not an address", 1)
            outcome = await loop.outcome(endpoint.connect(Recorders()))
            assert outcome.failure.check(error.ConnectError)

        loop.run(test())

    def test_a_connection_that_does_not_come_up_in_time_is_a_timeout(self, loop: Native) -> None:
        async def test() -> None:
            with full_queue() as address:
                factory = Counted()
                connecting = TCP4ClientEndpoint(loop.reactor, *address, timeout=7).connect(factory)
                await turns()
                assert not connecting.called
                loop.clock.advance(7)
                outcome = await loop.outcome(connecting)
                assert outcome.failure.check(error.TimeoutError)
                assert factory.running == 0
                assert loop.clock.getDelayedCalls() == []

        loop.run(test())

    def test_an_attempt_can_be_cancelled(self, loop: Native) -> None:
        async def test() -> None:
            with full_queue() as address:
                factory = Counted()
                connecting = TCP4ClientEndpoint(loop.reactor, *address).connect(factory)
                await turns()
                connecting.cancel()
                outcome = await loop.outcome(connecting)
                assert outcome.failure.check(error.ConnectingCancelledError)
                await turns()
                assert loop.clock.getDelayedCalls() == []
                assert factory.running == 0
                assert factory.made == []

        loop.run(test())

    def test_an_attempt_can_be_cancelled_at_any_moment(self, loop: Native) -> None:
        async def test() -> None:
            servers, clients = Recorders(), Recorders()
            listening = loop.reactor.listenTCP(0, servers, interface=LOOPBACK)
            host: Any = listening.getHost()
            for moment in range(8):
                connecting = TCP4ClientEndpoint(loop.reactor, LOOPBACK, host.port).connect(clients)
                for _ in range(moment):
                    await asyncio.sleep(0)
                connecting.cancel()
                outcome = await loop.outcome(connecting)
                if outcome.results:
                    outcome.result.transport.abortConnection()
                else:
                    assert outcome.failure.check(error.ConnectingCancelledError, CancelledError)
            await until(lambda: all(made.ends for made in clients.made if made.transport))
            await until(lambda: all(made.ends for made in servers.made))
            assert loop.clock.getDelayedCalls() == []
            listening.stopListening()

        loop.run(test())

    def test_it_binds_to_an_address_that_is_given(self, loop: Native) -> None:
        async def test() -> None:
            servers = Recorders()
            listening = loop.reactor.listenTCP(0, servers, interface=LOOPBACK)
            host: Any = listening.getHost()
            endpoint = TCP4ClientEndpoint(loop.reactor, LOOPBACK, host.port, bindAddress=("127.0.0.2", 0))
            clients = Recorders()
            await loop.fires(endpoint.connect(clients))
            assert clients.made[0].transport.getHost().host == "127.0.0.2"
            clients.made[0].transport.abortConnection()
            await until(lambda: servers.made and servers.made[0].ends)
            listening.stopListening()

        loop.run(test())


class Following(Recorders):
    """A client's factory, as ``connectTCP`` takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[Any] = []

    def startedConnecting(self, connector: Any) -> None:
        self.connector = connector

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        self.failed.append(reason)


class RefusingClient(Following):
    def buildProtocol(self, addr: Any) -> None:
        self.peers.append(addr)


class TestConnector:
    def test_it_is_a_connector_as_twisted_knows_them(self, loop: Native) -> None:
        async def test() -> None:
            factory = Following()
            connector = loop.reactor.connectTCP("192.0.2.1", 80, factory)
            assert verifyObject(IConnector, connector)
            assert factory.connector is connector
            assert connector.getDestination() == IPv4Address("TCP", "192.0.2.1", 80)
            connector.stopConnecting()
            connector.stopConnecting()
            (reason,) = factory.failed
            assert reason.check(error.UserError)
            connector.disconnect()  # there is nothing to disconnect
            assert len(factory.failed) == 1

        loop.run(test())

    def test_ipv6_destinations_are_told(self, loop: Native) -> None:
        async def test() -> None:
            factory = Following()
            connector = loop.reactor.connectTCP("2001:db8::1", 80, factory)
            assert connector.getDestination() == IPv6Address("TCP", "2001:db8::1", 80)
            connector.disconnect()
            assert len(factory.failed) == 1

        loop.run(test())

    def test_disconnecting_closes_a_connection_that_is_up(self, loop: Native) -> None:
        async def test() -> None:
            servers, factory = Recorders(), Following()
            listening = loop.reactor.listenTCP(0, servers, interface=LOOPBACK)
            host: Any = listening.getHost()
            connector = loop.reactor.connectTCP(LOOPBACK, host.port, factory)
            await until(lambda: factory.made and factory.made[0].transport)
            connector.disconnect()
            await until(lambda: factory.made[0].ends and servers.made and servers.made[0].ends)
            assert factory.failed == []
            listening.stopListening()

        loop.run(test())

    def test_a_connection_that_no_protocol_is_built_for_is_reset(self, loop: Native) -> None:
        async def test() -> None:
            servers, factory = Recorders(), RefusingClient()
            listening = loop.reactor.listenTCP(0, servers, interface=LOOPBACK)
            host: Any = listening.getHost()
            loop.reactor.connectTCP(LOOPBACK, host.port, factory)
            await until(lambda: servers.made and servers.made[0].ends)
            assert len(factory.peers) == 1
            listening.stopListening()

        loop.run(test())


def socket_of(loop: Native) -> socket.socket:
    """A client's socket that is closed with the loop."""
    made = socket.socket()
    made.setblocking(False)
    loop.sockets.append(made)
    return made


async def turns() -> None:
    """Let the loop turn a few times."""
    for _ in range(10):
        await asyncio.sleep(0)
