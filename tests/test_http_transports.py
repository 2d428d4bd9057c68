from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from zope.interface.verify import verifyObject

from llmproxy.http import sockets, transports
from llmproxy.http.transports import WRITE_BUFFER, NativeTransport
from tests.upstream_support import Native, Recorder, Recorders, authority, native_loop, until

LARGE = b"x" * (16 << 20)  # more than a kernel takes off a writer's hands


@pytest.fixture
def native() -> Iterator[Native]:
    with native_loop() as native:
        yield native


async def call_over_tls(native: Native) -> tuple[Recorder, ssl.SSLSocket]:
    """Connect a client that reads only when it is told to; returns what serves it, and the client's socket."""
    factory = Recorders()
    options = authority().issue("proxy.example").options()
    listening = native.reactor.listenSSL(0, factory, options, interface="127.0.0.1")
    host: Any = listening.getHost()
    trusting = ssl.create_default_context()
    authority().ca.configure_trust(trusting)

    def connect() -> ssl.SSLSocket:
        plain = socket.create_connection((host.host, host.port))
        return trusting.wrap_socket(plain, server_hostname="proxy.example")

    client = await native.loop.run_in_executor(None, connect)
    native.sockets.append(client)
    listening.stopListening()
    await until(lambda: factory.made and factory.made[0].transport)
    return factory.made[0], client


def read_to_end(client: socket.socket) -> bytes:
    """What comes until the other side has ended, in a thread."""
    data = b""
    while piece := client.recv(1 << 20):
        data += piece
    return data


class LoopTransport:
    """A loop's own transport in memory: it notes what is asked of it.

    :param info: what it can tell of itself.
    """

    def __init__(self, **info: Any) -> None:
        self.info = info
        self.log: list[Any] = []
        self.high = 0

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def set_protocol(self, protocol: Any) -> None:
        self.log.append("set_protocol")

    def get_extra_info(self, name: str) -> Any:
        return self.info.get(name)

    def can_write_eof(self) -> bool:
        return bool(self.info.get("can_write_eof", True))

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*arguments: Any) -> None:
            self.log.append((name, *arguments) if arguments else name)

        return note


class Connected:
    """A Twisted protocol on a transport in memory."""

    def __init__(self, **info: Any) -> None:
        self.loop_transport = LoopTransport(**info)
        self.transport = NativeTransport()
        self.transport.connection_made(self.loop_transport)
        self.protocol = Recorder()
        self.transport.switch(self.protocol)
        self.loop_transport.log.clear()

    @property
    def log(self) -> list[Any]:
        return self.loop_transport.log


@pytest.fixture
def connected() -> Connected:
    return Connected()


def test_it_is_a_transport_as_twisted_knows_them(connected: Connected) -> None:
    assert verifyObject(ITCPTransport, connected.transport)
    assert verifyObject(IPushProducer, connected.transport)


class TestBytes:
    def test_what_is_written_goes_to_the_loop_at_once(self, connected: Connected) -> None:
        connected.transport.write(b"one")
        connected.transport.writeSequence([b"two", b"three"])
        assert connected.log == [("write", b"one"), ("writelines", [b"two", b"three"])]

    def test_what_comes_goes_to_the_protocol(self, connected: Connected) -> None:
        connected.transport.data_received(b"hello")
        assert connected.protocol.data == b"hello"

    def test_a_protocol_can_take_the_place_of_another(self, connected: Connected) -> None:
        following = Recorder()
        connected.transport.switch(following)
        assert following.transport is connected.transport
        connected.transport.data_received(b"hello")
        connected.transport.eof_received()
        assert (connected.protocol.data, following.data) == (b"", b"hello")
        assert (len(connected.protocol.ends), len(following.ends)) == (0, 1)

    def test_a_protocol_that_switches_within_its_data_gets_no_more(self, native: Native) -> None:
        async def test() -> None:
            factory = Recorders()
            first, client = await native.accept(factory)
            second = Recorder()
            first.dataReceived = lambda data: first.transport.switch(second)  # type: ignore[method-assign]
            first.transport.switch(first)
            client.send(b"first")
            await until(lambda: second.transport)
            client.send(b"second")
            await until(lambda: second.data)
            assert second.data == b"second"
            first.transport.abortConnection()
            await until(lambda: second.ends)

        native.run(test())

    def test_bytes_pass_both_ways(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            client.send(b"up")
            await until(lambda: server.data)
            server.transport.write(b"do")
            server.transport.writeSequence([b"w", b"n"])
            server.transport.loseConnection()
            assert server.data == b"up"
            assert await native.read_all(client) == b"down"

        native.run(test())


class TestReading:
    def test_it_can_be_paused_and_resumed(self, connected: Connected) -> None:
        connected.transport.pauseProducing()
        connected.transport.resumeProducing()
        assert connected.log == ["pause_reading", "resume_reading"]

    @pytest.mark.parametrize("end", ["loseConnection", "abortConnection", "eof_received"])
    def test_a_connection_that_ends_is_neither_paused_nor_resumed(
        self, connected: Connected, end: str
    ) -> None:
        getattr(connected.transport, end)()
        connected.log.clear()
        connected.transport.pauseProducing()
        connected.transport.resumeProducing()
        assert connected.log == []

    def test_nothing_is_read_during_a_pause(self, native: Native) -> None:
        async def test() -> None:
            paused, slow = await native.accept(Recorders())
            other, quick = await native.accept(Recorders())
            paused.transport.pauseProducing()
            paused.transport.pauseProducing()
            for _ in range(10):
                slow.send(b"x")
                quick.send(b"x")
                await until(lambda: other.data)
                other.data = b""
            assert paused.data == b""
            paused.transport.resumeProducing()
            await until(lambda: len(paused.data) == 10)

        native.run(test())

    def test_a_connection_can_be_paused_from_its_beginning(self, native: Native) -> None:
        class Pausing(Recorder):
            def connectionMade(self) -> None:
                self.transport.pauseProducing()

        class Factory(Recorders):
            def buildProtocol(self, addr: Any) -> Recorder:
                self.made.append(Pausing())
                return self.made[-1]

        async def test() -> None:
            paused, slow = await native.accept(Factory())
            other, quick = await native.accept(Recorders())
            slow.send(b"early")
            quick.send(b"x")
            await until(lambda: other.data)
            assert paused.data == b""
            paused.transport.resumeProducing()
            await until(lambda: paused.data == b"early")

        native.run(test())


class TestProducers:
    def test_a_producer_is_paused_and_resumed_with_the_buffer(self, connected: Connected) -> None:
        producer = Recorder()
        connected.transport.registerProducer(producer, True)
        assert producer.pauses == []
        connected.transport.pause_writing()
        assert producer.pauses == ["pause"]
        connected.transport.resume_writing()
        assert producer.pauses == ["pause", "resume"]

    def test_a_producer_that_registers_on_a_full_transport_is_paused(self, connected: Connected) -> None:
        connected.transport.pause_writing()
        producer = Recorder()
        connected.transport.registerProducer(producer, True)
        assert producer.pauses == ["pause"]

    def test_a_producer_that_registers_when_there_is_room_again_is_not(self, connected: Connected) -> None:
        connected.transport.pause_writing()
        connected.transport.resume_writing()
        producer = Recorder()
        connected.transport.registerProducer(producer, True)
        assert producer.pauses == []

    def test_a_second_producer_is_refused(self, connected: Connected) -> None:
        connected.transport.registerProducer(Recorder(), True)
        with pytest.raises(RuntimeError, match="unregistered"):
            connected.transport.registerProducer(Recorder(), True)

    def test_a_producer_that_unregistered_is_told_nothing(self, connected: Connected) -> None:
        producer = Recorder()
        connected.transport.registerProducer(producer, True)
        connected.transport.unregisterProducer()
        connected.transport.pause_writing()
        connected.transport.eof_received()
        assert producer.pauses == []

    def test_a_producer_is_stopped_with_its_connection(self, connected: Connected) -> None:
        producer = Recorder()
        connected.transport.registerProducer(producer, True)
        connected.transport.connection_lost(None)
        assert producer.pauses == ["stop"]

    def test_a_producer_that_registers_on_a_lost_connection_is_stopped(self, connected: Connected) -> None:
        connected.transport.eof_received()
        producer = Recorder()
        connected.transport.registerProducer(producer, True)
        assert producer.pauses == ["stop"]

    def test_a_pull_producer_is_asked_for_more_while_there_is_room(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            try:
                left = [b"one", b"two"]

                class Pulled(Recorder):
                    def resumeProducing(self) -> None:
                        if left:
                            server.transport.write(left.pop(0))
                        else:
                            server.transport.unregisterProducer()
                            server.transport.loseConnection()

                server.transport.registerProducer(Pulled(), False)
                reading = asyncio.ensure_future(native.read_all(client))
                for _ in range(50):
                    await asyncio.sleep(0.001)
                assert reading.done()
                assert reading.result() == b"onetwo"
            finally:
                server.transport.abortConnection()
                with contextlib.suppress(OSError):
                    await reading

        native.run(test())

    def test_a_peer_that_does_not_read_pauses_the_producer_until_it_does(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            producer = Recorder()
            server.transport.registerProducer(producer, True)
            server.transport.write(LARGE)
            assert producer.pauses == ["pause"]
            received = 0
            while received < len(LARGE):
                received += len(await native.loop.sock_recv(client, 1 << 20))
            await until(lambda: producer.pauses == ["pause", "resume"])
            server.transport.unregisterProducer()
            server.transport.loseConnection()
            assert await native.read_all(client) == b""

        native.run(test())

    def test_no_more_than_a_buffer_waits(self, connected: Connected) -> None:
        assert connected.loop_transport.high == WRITE_BUFFER == 64 * 1024


class TestClosing:
    def test_it_is_told_to_the_loop_once(self, connected: Connected) -> None:
        connected.transport.loseConnection()
        connected.transport.loseConnection()
        assert connected.transport.disconnecting
        assert connected.log == ["close"]

    def test_it_waits_for_a_producer(self, connected: Connected) -> None:
        connected.transport.registerProducer(Recorder(), True)
        connected.transport.loseConnection()
        assert connected.log == []
        connected.transport.write(b"more")
        connected.transport.unregisterProducer()
        assert connected.log == [("write", b"more"), "close"]

    def test_stopping_the_transport_as_a_producer_closes_it(self, connected: Connected) -> None:
        connected.transport.stopProducing()
        assert connected.log == ["close"]

    def test_an_end_that_was_asked_for_is_an_end_in_order(self, connected: Connected) -> None:
        connected.transport.loseConnection()
        connected.transport.connection_lost(None)
        assert connected.protocol.end.check(error.ConnectionDone)

    def test_all_that_was_written_is_sent_first(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            server.transport.write(LARGE)
            server.transport.loseConnection()
            assert await native.read_all(client) == LARGE
            await until(lambda: server.ends)
            assert server.end.check(error.ConnectionDone)

        native.run(test())

    @pytest.mark.skipif(sys.platform != "linux", reason="what a peer has received is not told")
    def test_over_tls_a_peer_that_never_reads_is_not_waited_for(
        self, native: Native, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transports, "_LOOK_AGAIN", 0.001)

        async def test() -> None:
            server, client = await call_over_tls(native)
            server.transport.write(b"all")
            server.transport.loseConnection()
            await until(lambda: server.ends)
            assert server.end.check(error.ConnectionDone)
            assert await native.loop.run_in_executor(None, read_to_end, client) == b"all"

        native.run(test())

    def test_over_tls_a_slow_reader_gets_all_that_was_written(
        self, native: Native, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[int | None] = []
        unsent = sockets.unsent

        def look(descriptor: int) -> int | None:
            looks.append(unsent(descriptor))
            return looks[-1]

        monkeypatch.setattr(transports, "_LOOK_AGAIN", 0.001)
        monkeypatch.setattr(transports, "unsent", look)

        async def test() -> None:
            server, client = await call_over_tls(native)
            server.transport.write(LARGE)
            server.transport.loseConnection()
            await until(lambda: len(looks) > 20)
            assert server.ends == []
            assert await native.loop.run_in_executor(None, read_to_end, client) == LARGE
            await until(lambda: server.ends)

        native.run(test())

    def test_what_is_no_connection_or_none_any_more_tells_nothing_of_what_was_sent(self) -> None:
        assert sockets.unsent(-1) is None
        with Path(__file__).open() as file:
            assert sockets.unsent(file.fileno()) is None

    def test_nothing_reaches_a_connection_that_is_lost(self, connected: Connected) -> None:
        transport = connected.transport
        transport.eof_received()
        transport.connection_lost(None)
        connected.log.clear()
        transport.write(b"late")
        transport.writeSequence([b"late"])
        transport.loseConnection()
        transport.loseWriteConnection()
        transport.abortConnection()
        transport.data_received(b"late")
        assert connected.log == []
        assert connected.protocol.data == b""
        assert len(connected.protocol.ends) == 1


class TestAborting:
    def test_the_peer_sees_a_reset_and_the_protocol_that_it_was_us(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            server.transport.write(LARGE)
            server.transport.abortConnection()
            server.transport.abortConnection()
            assert server.transport.disconnecting
            with pytest.raises(ConnectionResetError):
                await native.read_all(client)
            await until(lambda: server.ends)
            assert server.end.check(error.ConnectionAborted)

        native.run(test())

    def test_it_cuts_a_close_short_that_waits_for_a_slow_reader(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            server.transport.write(LARGE)
            server.transport.loseConnection()
            server.transport.abortConnection()
            with pytest.raises(ConnectionResetError):
                await native.read_all(client)
            await until(lambda: server.ends)

        native.run(test())

    def test_it_does_not_wait_for_a_producer(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            producer = Recorder()
            server.transport.registerProducer(producer, True)
            server.transport.abortConnection()
            with pytest.raises(ConnectionResetError):
                await native.read_all(client)
            await until(lambda: server.ends)
            assert producer.pauses == ["stop"]

        native.run(test())

    def test_a_transport_without_a_socket_is_aborted_all_the_same(self, connected: Connected) -> None:
        connected.transport.abortConnection()
        assert connected.log == ["abort"]


class TestLoss:
    def test_a_fin_is_told_in_the_turn_in_which_it_is_read(self, connected: Connected) -> None:
        assert not connected.transport.eof_received()
        assert connected.protocol.end.check(error.ConnectionDone)

    def test_it_is_told_once(self, connected: Connected) -> None:
        connected.transport.eof_received()
        connected.transport.connection_lost(ConnectionResetError("reset"))
        assert connected.protocol.end.check(error.ConnectionDone)

    def test_a_fin_behind_data_comes_after_it(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            client.send(b"last words")
            client.shutdown(socket.SHUT_WR)
            await until(lambda: server.ends)
            assert server.data == b"last words"
            assert server.end.check(error.ConnectionDone)
            assert await native.read_all(client) == b""

        native.run(test())

    def test_a_reset_is_no_end_in_order(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await until(lambda: server.ends)
            assert server.end.type is error.ConnectionLost

        native.run(test())

    def test_a_connection_that_is_lost_before_it_has_a_protocol_tells_nobody(self) -> None:
        transport = NativeTransport()
        transport.connection_made(LoopTransport())
        transport.connection_lost(None)
        transport.data_received(b"late")


class TestHalfClose:
    def test_the_peer_sees_an_end_and_can_still_send(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            server.transport.write(b"all")
            server.transport.loseWriteConnection()
            assert await native.read_all(client) == b"all"
            client.send(b"answer")
            await until(lambda: server.data == b"answer")
            assert server.ends == []
            client.close()
            await until(lambda: server.ends)

        native.run(test())

    def test_a_transport_that_cannot_do_it_is_left_alone(self) -> None:
        connected = Connected(can_write_eof=False)
        connected.transport.loseWriteConnection()
        assert connected.log == []


class TestAddresses:
    def test_ipv4(self, native: Native) -> None:
        async def test() -> None:
            factory = Recorders()
            server, client = await native.accept(factory)
            assert server.transport.getPeer() == IPv4Address("TCP", *client.getsockname())
            assert server.transport.getHost() == IPv4Address("TCP", *client.getpeername())
            assert factory.peers == [server.transport.getPeer()]
            server.transport.abortConnection()
            await until(lambda: server.ends)

        native.run(test())

    def test_ipv6(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders(), "::1")
            assert server.transport.getPeer() == IPv6Address("TCP", *client.getsockname())
            assert server.transport.getHost() == IPv6Address("TCP", *client.getpeername())
            server.transport.abortConnection()
            await until(lambda: server.ends)

        native.run(test())

    def test_unix(self, native: Native, tmp_path: Path) -> None:
        async def test() -> None:
            factory = Recorders()
            path = str(tmp_path / "socket")
            listening = native.reactor.listenUNIX(path, factory)
            server, _ = await native.call(factory, listening)
            assert server.transport.getHost() == UNIXAddress(path)
            assert server.transport.getPeer() == UNIXAddress(None)
            server.transport.abortConnection()
            await until(lambda: server.ends)
            listening.stopListening()

        native.run(test())

    def test_they_are_still_known_when_the_connection_is_lost(self, native: Native) -> None:
        async def test() -> None:
            server, client = await native.accept(Recorders())
            peer = server.transport.getPeer()
            client.close()
            await until(lambda: server.transport._transport is None)
            assert server.transport.getPeer() == peer

        native.run(test())


class TestOptions:
    def test_small_writes_are_sent_at_once(self, native: Native) -> None:
        async def test() -> None:
            server, _ = await native.accept(Recorders())
            server.transport.setTcpNoDelay(True)
            assert server.transport.getTcpNoDelay()
            sock = server.transport._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            server.transport.abortConnection()
            await until(lambda: server.ends)

        native.run(test())

    def test_keepalive_can_be_set(self, native: Native) -> None:
        async def test() -> None:
            server, _ = await native.accept(Recorders())
            for enabled in (True, False):
                server.transport.setTcpKeepAlive(enabled)
                assert server.transport.getTcpKeepAlive() is enabled
            server.transport.abortConnection()
            await until(lambda: server.ends)

        native.run(test())

    def test_keepalive_is_nothing_to_a_unix_socket_or_to_none(self) -> None:
        one, other = socket.socketpair()
        with one, other:
            Connected(socket=one).transport.setTcpKeepAlive(True)
            assert not one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        Connected().transport.setTcpKeepAlive(True)


class TestRest:
    """What the peer had sent before a write failed."""

    @pytest.fixture
    def pair(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            yield ours, theirs

    def broken(
        self, pair: tuple[socket.socket, socket.socket], sent: bytes, reads_rest: bool = True, **info: Any
    ) -> NativeTransport:
        """A connection whose peer had sent something; that a write failed is still to be told."""
        ours, theirs = pair
        theirs.sendall(sent)
        transport = NativeTransport(reads_rest=reads_rest)
        transport.connection_made(LoopTransport(socket=ours, **info))
        transport.switch(Recorder())
        return transport

    @pytest.mark.parametrize("stays", [True, False], ids=["and stays", "and closes"])
    def test_it_is_read_before_the_loss_is_told(
        self, pair: tuple[socket.socket, socket.socket], stays: bool
    ) -> None:
        answer = b"x" * 100_000
        transport = self.broken(pair, answer)
        if not stays:
            pair[1].close()
        protocol = transport.protocol
        transport.connection_lost(BrokenPipeError())
        assert protocol.data == answer
        assert protocol.end.check(error.ConnectionLost)

    def test_whoever_gets_it_cannot_use_the_connection_any_more(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        transport = self.broken(pair, b"answer")
        loop_transport = transport._transport
        loop_transport.log.clear()
        seen: list[bool] = []

        class Answering(Recorder):
            def dataReceived(self, data: bytes) -> None:
                seen.append(self.transport.disconnecting)
                self.transport.write(b"more")
                self.transport.pauseProducing()
                self.transport.loseConnection()

        transport.switch(Answering())
        loop_transport.log.clear()
        transport.connection_lost(BrokenPipeError())
        assert seen == [True]
        assert loop_transport.log == []

    def test_it_may_go_to_another_protocol_midway(self, pair: tuple[socket.socket, socket.socket]) -> None:
        transport = self.broken(pair, b"x" * 100_000)
        first, second = transport.protocol, Recorder()

        def switch(data: bytes) -> None:
            first.data += data
            transport.switch(second)

        first.dataReceived = switch
        transport.data_received = switch
        transport.connection_lost(BrokenPipeError())
        assert len(first.data) + len(second.data) == 100_000
        assert second.data
        assert (len(first.ends), len(second.ends)) == (0, 1)

    def test_whoever_aborts_gets_no_more(self, pair: tuple[socket.socket, socket.socket]) -> None:
        transport = self.broken(pair, b"x" * 100_000)
        protocol = transport.protocol

        def abort(data: bytes) -> None:
            protocol.data += data
            transport.abortConnection()

        transport.data_received = abort
        transport.connection_lost(BrokenPipeError())
        assert len(protocol.data) <= 65536
        assert len(protocol.ends) == 1

    def test_a_protocol_that_fails_is_told_of_the_loss_all_the_same(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        transport = self.broken(pair, b"x")
        protocol = transport.protocol

        def fail(data: bytes) -> None:
            raise ValueError("a fault")

        transport.data_received = fail
        with pytest.raises(ValueError, match="a fault"):
            transport.connection_lost(BrokenPipeError())
        assert len(protocol.ends) == 1

    def test_no_more_than_a_bound_is_read(
        self, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transports, "_REST", 70_000)
        transport = self.broken(pair, b"x" * 100_000)
        protocol = transport.protocol
        transport.connection_lost(BrokenPipeError())
        assert len(protocol.data) == 70_000

    @pytest.mark.parametrize("why", ["TLS", "a client", "aborted", "told before"])
    def test_it_is_left_where_nobody_may_have_it(
        self, pair: tuple[socket.socket, socket.socket], why: str
    ) -> None:
        transport = self.broken(pair, b"x", why != "a client", ssl_object=object() if why == "TLS" else None)
        protocol = transport.protocol
        if why == "aborted":
            transport.abortConnection()
        elif why == "told before":
            transport.eof_received()
        transport.connection_lost(BrokenPipeError())
        assert protocol.data == b""
        assert len(protocol.ends) == 1
