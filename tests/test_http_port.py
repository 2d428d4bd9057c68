"""Listening sockets whose connections are native: accepting, pausing and closing, and the files of local sockets."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IListeningPort
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from llmproxy.http.interfaces import IDoor
from llmproxy.http.limits import DownstreamLimits
from llmproxy.http.port import NativePort
from tests.support import log_lines
from tests.test_http_native import LOOPBACK, Counted, loop, socket_of, turns
from tests.upstream_support import Native, Recorder, Recorders, authority, until

__all__ = ["loop"]  # a fixture


class Refusing(Recorders):
    """A factory that takes no connection."""

    def buildProtocol(self, addr: Any) -> None:
        self.peers.append(addr)


class Rude(Recorder):
    """Ends its connection as soon as there is one."""

    def connectionMade(self) -> None:
        self.transport.abortConnection()


class TestListening:
    def test_a_port_is_a_port_as_twisted_knows_them(self, loop: Native) -> None:
        listening = loop.reactor.listenTCP(0, Recorders(), interface=LOOPBACK)
        assert verifyObject(IListeningPort, listening)
        host: Any = listening.getHost()
        assert repr(listening) == f"<NativePort {host}>"
        listening.stopListening()
        assert repr(listening) == f"<NativePort {host} closed>"

    @pytest.mark.parametrize(
        ("interface", "kind"), [(LOOPBACK, IPv4Address), ("::1", IPv6Address)], ids=["IPv4", "IPv6"]
    )
    def test_tcp(self, loop: Native, interface: str, kind: Any) -> None:
        async def test() -> None:
            factory = Recorders()
            listening = loop.reactor.listenTCP(0, factory, interface=interface)
            host: Any = listening.getHost()
            assert isinstance(host, kind)
            assert host.host == interface
            server, client = await loop.call(factory, listening)
            client.send(b"hello")
            await until(lambda: server.data == b"hello")
            client.close()
            await until(lambda: server.ends)
            listening.stopListening()

        loop.run(test())

    def test_all_interfaces_are_listened_on_where_none_is_named(self, loop: Native) -> None:
        listening = loop.reactor.listenTCP(0, Recorders())
        host: Any = listening.getHost()
        assert host.host == "0.0.0.0"
        listening.stopListening()

    def test_a_crowd_is_let_in(self, loop: Native) -> None:
        async def test() -> None:
            factory = Recorders()
            listening = loop.reactor.listenTCP(0, factory, backlog=200, interface=LOOPBACK)
            host: Any = listening.getHost()
            clients = [socket.create_connection((host.host, host.port)) for _ in range(150)]
            loop.sockets += clients
            await until(lambda: len(factory.made) == 150)
            for client in clients:
                client.close()
            await until(lambda: all(made.ends for made in factory.made))
            listening.stopListening()

        loop.run(test())

    def test_a_port_that_is_in_use_is_told_with_its_number(self, loop: Native) -> None:
        listening = loop.reactor.listenTCP(0, Recorders(), interface=LOOPBACK)
        host: Any = listening.getHost()
        factory = Counted()
        with pytest.raises(error.CannotListenError) as caught:
            loop.reactor.listenTCP(host.port, factory, interface=LOOPBACK)
        assert str(host.port) in str(caught.value)
        assert isinstance(caught.value.socketError, OSError)
        assert caught.value.socketError.errno == errno.EADDRINUSE
        assert factory.running == 0
        listening.stopListening()
        gc.collect()  # a socket that was left open would be warned of

    def test_a_stopped_port_takes_nobody_and_leaves_those_it_took(self, loop: Native) -> None:
        async def test() -> None:
            factory = Counted()
            listening = loop.reactor.listenTCP(0, factory, interface=LOOPBACK)
            assert factory.running == 1
            server, client = await loop.call(factory, listening)
            await loop.fires(listening.stopListening())
            await loop.fires(listening.stopListening())
            assert factory.running == 0
            host: Any = listening.getHost()
            with pytest.raises(ConnectionRefusedError):
                await loop.loop.sock_connect(socket_of(loop), (host.host, host.port))
            client.send(b"still here")
            await until(lambda: server.data == b"still here")
            server.transport.abortConnection()
            await until(lambda: server.ends)

        loop.run(test())

    def test_a_client_that_the_kernel_has_let_in_is_served_all_the_same(self, loop: Native) -> None:
        async def test() -> None:
            factory = Counted()
            listening = loop.reactor.listenTCP(0, factory, interface=LOOPBACK)
            host: Any = listening.getHost()
            with socket.create_connection((host.host, host.port)) as client:  # the loop does not turn
                client.send(b"hello")
                listening.stopListening()
                await until(lambda: factory.made and factory.made[0].data == b"hello")
            await until(lambda: factory.made[0].ends)

        loop.run(test())

    def test_a_fault_of_a_client_that_waits_does_not_keep_a_port_open(
        self, loop: Native, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def accept(self: socket.socket) -> Any:
            raise OSError(errno.EPERM, "Operation not permitted")

        listening = loop.reactor.listenTCP(0, Counted(), interface=LOOPBACK)
        monkeypatch.setattr(socket.socket, "accept", accept)
        listening.stopListening()
        assert repr(listening).endswith("closed>")

    def test_a_port_may_be_stopped_by_whom_it_lets_in(self, loop: Native) -> None:
        class Last(Counted):
            def buildProtocol(self, addr: Any) -> Recorder:
                listening.stopListening()
                self.made.append(Rude())
                return self.made[-1]

        async def test() -> None:
            host: Any = listening.getHost()
            await loop.loop.sock_connect(socket_of(loop), (host.host, host.port))
            await until(lambda: factory.made and factory.made[0].ends)
            assert factory.running == 0
            listening._accept()  # the loop may have found it readable before it was closed

        factory = Last()
        listening = loop.reactor.listenTCP(0, factory, interface=LOOPBACK)
        loop.run(test())

    def test_a_client_that_no_protocol_is_built_for_is_reset(self, loop: Native) -> None:
        async def test() -> None:
            factory = Refusing()
            listening = loop.reactor.listenTCP(0, factory, interface=LOOPBACK)
            host: Any = listening.getHost()
            client = socket_of(loop)
            await loop.loop.sock_connect(client, (host.host, host.port))
            with pytest.raises(ConnectionResetError):
                await loop.read_all(client)
            assert len(factory.peers) == 1
            listening.stopListening()

        loop.run(test())


class TestOutOfDescriptors:
    @pytest.fixture
    def listening(self, loop: Native) -> Iterator[NativePort]:
        listening = loop.reactor.listenTCP(0, Counted(), interface=LOOPBACK)
        yield listening
        listening.stopListening()

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
    def test_accepting_pauses_and_goes_on(
        self, loop: Native, listening: NativePort, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        tried: list[int] = []

        def accept(self: socket.socket) -> Any:
            tried.append(1)
            raise OSError(number, os.strerror(number))

        async def test() -> None:
            factory: Any = listening._factory
            host: Any = listening.getHost()
            client = socket_of(loop)
            with monkeypatch.context() as patched:
                patched.setattr(socket.socket, "accept", accept)
                await loop.loop.sock_connect(client, (host.host, host.port))
                await until(lambda: tried)
                loop.clock.advance(0.2)
                await turns()
                assert len(tried) == 1
                loop.clock.advance(0.05)
                await until(lambda: len(tried) == 2)
            loop.clock.advance(0.25)
            await until(lambda: factory.made and factory.made[0].transport)
            factory.made[0].transport.abortConnection()
            await until(lambda: factory.made[0].ends)

        with log_lines() as lines:
            loop.run(test())
        assert len(lines) == 1
        assert os.strerror(number) in lines[0]

    def test_it_is_told_once_until_nobody_waits_any_more(
        self, loop: Native, listening: NativePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faults: list[OSError] = [OSError(errno.EMFILE, "out")] * 3 + [BlockingIOError()]

        def accept(self: socket.socket) -> Any:
            raise faults.pop(0)

        monkeypatch.setattr(socket.socket, "accept", accept)
        with log_lines() as lines:
            for _ in range(4):
                listening._accept()
                loop.clock.advance(0.25)
        assert len(lines) == 1
        faults.append(OSError(errno.EMFILE, "out"))
        with log_lines() as lines:
            listening._accept()
        assert len(lines) == 1

    def test_a_port_can_be_stopped_meanwhile(
        self, loop: Native, listening: NativePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def accept(self: socket.socket) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        async def test() -> None:
            host: Any = listening.getHost()
            monkeypatch.setattr(socket.socket, "accept", accept)
            await loop.loop.sock_connect(socket_of(loop), (host.host, host.port))
            await until(lambda: loop.clock.getDelayedCalls())
            listening.stopListening()
            assert loop.clock.getDelayedCalls() == []
            listening.startListening()  # of a port that is closed, it does nothing

        loop.run(test())

    @pytest.mark.parametrize("fault", [BlockingIOError, InterruptedError, ConnectionAbortedError])
    def test_a_client_that_is_gone_again_is_nothing_to_pause_for(
        self, loop: Native, listening: NativePort, monkeypatch: pytest.MonkeyPatch, fault: type[OSError]
    ) -> None:
        real = socket.socket.accept
        tried: list[int] = []

        def accept(self: socket.socket) -> Any:
            if not tried:
                tried.append(1)
                raise fault
            return real(self)

        async def test() -> None:
            monkeypatch.setattr(socket.socket, "accept", accept)
            factory: Any = listening._factory
            server, _ = await loop.call(factory, listening)
            assert loop.clock.getDelayedCalls() == []
            server.transport.abortConnection()
            await until(lambda: server.ends)

        loop.run(test())

    def test_any_other_fault_is_not_hidden(
        self, loop: Native, listening: NativePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def accept(self: socket.socket) -> Any:
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(socket.socket, "accept", accept)
        with pytest.raises(OSError, match="Invalid argument"):
            listening._accept()


class Door(Counted):
    """A factory that counts its connections."""

    limits = DownstreamLimits(header_time=0.2)

    def __init__(self) -> None:
        super().__init__()
        self.room = 1
        self.expected: list[str] = []
        self.crowded = False
        directlyProvides(self, IDoor)

    def expect(self, host: str) -> bool:
        if len(self.expected) >= self.room:
            return False
        self.expected.append(host)
        return True

    def expect_no_more(self, host: str) -> None:
        self.expected.remove(host)


class TestDoor:
    """A factory that has a say before its connections are up."""

    def test_it_is_asked_first_and_told_when_a_connection_is_up(self, loop: Native) -> None:
        seen: list[list[str]] = []

        class Watching(Door):
            def buildProtocol(self, addr: Any) -> Recorder | None:
                seen.append(list(self.expected))
                return super().buildProtocol(addr)

            def expect(self, host: str) -> bool:
                taken = super().expect(host)
                seen.append(list(self.expected))
                return taken

        async def test() -> None:
            server, client = await loop.accept(Watching())
            assert seen == [[LOOPBACK], []]
            client.close()
            await until(lambda: server.ends)

        loop.run(test())

    def test_whom_it_does_not_expect_is_reset(self, loop: Native) -> None:
        async def test() -> None:
            factory = Door()
            factory.room = 0
            listening = loop.reactor.listenTCP(0, factory, interface=LOOPBACK)
            host: Any = listening.getHost()
            client = socket_of(loop)

            async def call() -> bytes:
                await loop.loop.sock_connect(client, (host.host, host.port))
                return await loop.read_all(client)

            with pytest.raises(ConnectionResetError):
                await call()
            assert factory.made == []
            listening.stopListening()

        loop.run(test())

    def test_in_a_crowd_callers_wait(self, loop: Native) -> None:
        async def test() -> None:
            factory = Door()
            factory.crowded = True
            listening = loop.reactor.listenTCP(0, factory, interface=LOOPBACK)
            host: Any = listening.getHost()
            client = socket_of(loop)
            await loop.loop.sock_connect(client, (host.host, host.port))
            client.send(b"hello")
            await until(lambda: loop.clock.getDelayedCalls())
            assert factory.made == []
            factory.crowded = False
            loop.clock.advance(0.25)
            await until(lambda: factory.made and factory.made[0].data == b"hello")
            client.close()
            await until(lambda: factory.made[0].ends)
            listening.stopListening()

        with log_lines() as lines:
            loop.run(test())
        assert len(lines) == 1
        assert "file descriptors" in lines[0]

    def test_a_tls_handshake_keeps_a_place_and_has_its_time(self, loop: Native) -> None:
        async def test() -> None:
            factory = Door()
            options = authority().issue("proxy.example").options()
            listening = loop.reactor.listenSSL(0, factory, options, interface=LOOPBACK)
            host: Any = listening.getHost()
            silent = socket_of(loop)
            await loop.loop.sock_connect(silent, (host.host, host.port))
            await until(lambda: factory.expected)
            assert factory.expected == [LOOPBACK]
            with contextlib.suppress(ConnectionResetError):
                assert await loop.read_all(silent) == b""
            await until(lambda: not factory.expected)
            assert factory.made == []
            listening.stopListening()

        loop.run(test())


class TestUnix:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "socket"

    @pytest.mark.parametrize("kind", [str, os.fsencode])
    def test_it_listens_on_a_file_and_removes_it(self, loop: Native, path: Path, kind: Any) -> None:
        async def test() -> None:
            factory = Recorders()
            listening = loop.reactor.listenUNIX(kind(str(path)), factory, mode=0o600)
            assert listening.getHost() == UNIXAddress(str(path))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            server, client = await loop.call(factory, listening)
            client.send(b"hello")
            await until(lambda: server.data == b"hello")
            listening.stopListening()
            assert not path.exists()
            client.close()
            await until(lambda: server.ends)

        loop.run(test())

    def test_a_socket_that_nobody_listens_on_is_replaced(self, loop: Native, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        listening = loop.reactor.listenUNIX(str(path), Recorders())
        listening.stopListening()
        assert not path.exists()

    def test_a_socket_that_somebody_listens_on_is_left_alone(self, loop: Native, path: Path) -> None:
        first = loop.reactor.listenUNIX(str(path), Recorders())
        with pytest.raises(error.CannotListenError) as caught:
            loop.reactor.listenUNIX(str(path), Recorders())
        assert str(path) in str(caught.value)
        assert path.is_socket()
        first.stopListening()

    def test_a_file_that_is_no_socket_is_left_alone(self, loop: Native, path: Path) -> None:
        path.write_text("precious")
        with pytest.raises(error.CannotListenError):
            loop.reactor.listenUNIX(str(path), Recorders())
        assert path.read_text() == "precious"

    def test_a_folder_that_is_not_there_is_told(self, loop: Native, path: Path) -> None:
        with pytest.raises(error.CannotListenError):
            loop.reactor.listenUNIX(str(path / "below"), Recorders())

    def test_the_socket_of_a_successor_is_left_alone(self, loop: Native, path: Path) -> None:
        first = loop.reactor.listenUNIX(str(path), Recorders())
        path.unlink()
        second = loop.reactor.listenUNIX(str(path), Recorders())
        first.stopListening()
        assert path.is_socket()
        second.stopListening()

    def test_a_file_that_is_gone_already_is_not_missed(self, loop: Native, path: Path) -> None:
        listening = loop.reactor.listenUNIX(str(path), Recorders())
        path.unlink()
        listening.stopListening()

    def test_a_file_that_goes_while_it_is_looked_at_is_not_missed(
        self, loop: Native, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listening = loop.reactor.listenUNIX(str(path), Recorders())
        path.unlink()
        monkeypatch.setattr(Path, "is_socket", lambda self: True)
        listening.stopListening()
