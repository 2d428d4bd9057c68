"""Listeners as they open, change and close, on a reactor in memory; what passes through them is real."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.web.resource import Resource

from llmproxy import listeners
from llmproxy.config import ConfigError
from llmproxy.http.request import Request
from llmproxy.http.server import Site
from llmproxy.listeners import BACKLOG, CannotListen, Listeners, is_exposed, own_addresses
from tests.http_support import GET, Connection, Page, hi
from tests.support import log_lines
from tests.test_http_tls import endpoint, with_a_short_key
from tests.upstream_support import Authority, authority

LOOPBACK = "interface=127.0.0.1"


class Port:
    """A listening port; where the reactor is slow, it is closed in a later turn, as Twisted's own are."""

    def __init__(self, reactor: Reactor, host: Any, factory: Any, backlog: int, certificate: Any) -> None:
        self.factory = factory
        self.backlog = backlog
        self.certificate = certificate
        self.open = True
        self._reactor = reactor
        self._host = host

    def getHost(self) -> Any:
        return self._host

    def stopListening(self) -> Deferred[None] | None:
        if not self._reactor.slow:
            self.open = False
            return None
        closed: Deferred[None] = Deferred()
        self._reactor.callLater(0, self._close, closed)
        return closed

    def _close(self, closed: Deferred[None]) -> None:
        self.open = False
        closed.callback(None)


class Reactor(Clock):
    """A reactor that listens, on a port of one address at most once."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Port] = []
        self.slow = False

    @property
    def ports(self) -> list[Port]:
        """Those that are open."""
        return [port for port in self.made if port.open]

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        return self._listen(interface or "0.0.0.0", port, factory, backlog)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Port:
        return self._listen(interface or "0.0.0.0", port, factory, backlog, contextFactory)

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Port:
        self.made.append(Port(self, UNIXAddress(address), factory, backlog, None))
        return self.made[-1]

    def _listen(self, host: str, port: int, factory: Any, backlog: int, certificate: Any = None) -> Port:
        address = (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)
        if port and address in [other.getHost() for other in self.ports]:
            raise error.CannotListenError(host, port, OSError(98, "Address already in use"))
        self.made.append(Port(self, address, factory, backlog, certificate))
        return self.made[-1]


class Proxy:
    """Listeners before a Site; a test answers the requests that come.

    :ivar own: this machine's addresses.
    """

    def __init__(self, *descriptions: str) -> None:
        self.own: list[str] = ["192.168.1.5"]
        self.requests: list[Request] = []
        self.reactor = Reactor()
        self.site = Site(Page(self.requests.append), self.reactor)
        self.listeners = Listeners(self.reactor, self.site, lambda: self.own)
        self.lines = self._logged(lambda: self.listeners.start(descriptions))

    @property
    def open(self) -> list[str]:
        """Where it listens."""
        opened: list[Any] = [listener.port for listener in self.listeners.opened]
        assert opened == self.reactor.ports
        return [str(listener) for listener in self.listeners.opened]

    def change(self, *descriptions: str) -> list[str]:
        """Change to other listeners; return what was logged."""
        return self._logged(lambda: self.listeners.change(descriptions))

    def connect(self, which: int = 0) -> Connection:
        """Connect to one of the open ports."""
        return Connection(self.reactor.ports[which].factory, self.reactor)

    @staticmethod
    def _logged(act: Callable[[], object]) -> list[str]:
        with log_lines() as lines:
            act()
        return lines


class TestStart:
    def test_all_are_opened(self) -> None:
        proxy = Proxy(f"tcp:1:{LOOPBACK}", "tcp:2", "tcp6:3:interface=\\:\\:1", "unix:/run/llmproxy.sock")
        assert proxy.open == ["127.0.0.1:1", "0.0.0.0:2", "[::1]:3", "unix:/run/llmproxy.sock"]
        assert proxy.lines == []

    def test_the_same_may_be_asked_for_twice(self) -> None:
        assert len(Proxy("tcp:0", "tcp:0").open) == 2

    def test_they_serve(self) -> None:
        proxy = Proxy("tcp:1", "tcp:2")
        for which in (0, 1):
            client = proxy.connect(which)
            client.send(GET)
            hi(proxy.requests.pop())
            assert client.answer().body == b"hi"
        assert proxy.site.open == 2

    def test_one_that_says_nothing_of_it_lets_many_wait(self, tmp_path: Path) -> None:
        plain = ["tcp:1", "tcp6:2", endpoint(tmp_path, authority())]
        assert [port.backlog for port in Proxy(*plain).reactor.ports] == [BACKLOG] * 3
        assert BACKLOG >= 1024
        (chosen,) = Proxy("tcp:1:backlog=50").reactor.ports
        assert chosen.backlog == 50

    def test_the_first_that_cannot_be_opened_ends_it(self) -> None:
        with pytest.raises(CannotListen, match=r"^Address already in use: llmproxy cannot listen on tcp:1$"):
            Proxy("tcp:1", "tcp:1", "tcp:2")

    def test_a_certificate_that_cannot_be_used_ends_it_before_any_is_opened(self, tmp_path: Path) -> None:
        description = endpoint(tmp_path, authority())
        (tmp_path / "key.pem").unlink()
        reactor = Reactor()
        opening = Listeners(reactor, Site(Resource(), reactor))
        with pytest.raises(CannotListen, match=r"^No such file or directory: \S*/key\.pem: llmproxy cannot"):
            opening.start(["tcp:1", description])
        assert reactor.made == []


class TestChange:
    def test_nothing_happens_where_nothing_changed(self) -> None:
        proxy = Proxy("tcp:1", "tcp:0", "tcp:0")
        before = proxy.reactor.ports
        assert proxy.change("tcp:0", "tcp:1", "tcp:0") == []
        assert proxy.reactor.ports == before

    def test_what_is_new_is_opened_and_what_is_gone_is_closed(self) -> None:
        proxy = Proxy("tcp:1", "tcp:2")
        kept = proxy.reactor.ports[1]
        assert proxy.change("tcp:2", "tcp:3") == [
            "Listens no more on 0.0.0.0:1",
            "Listens on 0.0.0.0:3, too",
        ]
        assert proxy.open == ["0.0.0.0:2", "0.0.0.0:3"]
        assert proxy.reactor.ports[0] is kept

    def test_one_of_two_that_are_the_same_may_go(self) -> None:
        proxy = Proxy("tcp:0", "tcp:0")
        proxy.change("tcp:0")
        assert len(proxy.open) == 1
        proxy.change("tcp:0", "tcp:0", "tcp:0")
        assert len(proxy.open) == 3

    def test_connections_through_one_that_stays_are_left_alone(self) -> None:
        proxy = Proxy("tcp:1", "tcp:2")
        client = proxy.connect()
        proxy.change("tcp:1", "tcp:3")
        client.send(GET)
        hi(proxy.requests[0])
        assert (b"Connection", b"close") not in client.answer().headers
        assert client.ending == "open"

    def test_connections_through_one_that_goes_end_with_their_requests(self) -> None:
        proxy = Proxy("tcp:1", "tcp:2")
        idle, busy = proxy.connect(), proxy.connect()
        busy.send(GET)
        proxy.change("tcp:2")
        assert (idle.ending, busy.ending) == ("closed", "open")
        hi(proxy.requests[0])
        assert (b"Connection", b"close") in busy.answer().headers
        assert busy.ending == "closed"
        again = proxy.connect()
        again.send(GET)
        hi(proxy.requests[1])
        assert again.ending == "open"

    def test_one_that_comes_back_keeps_its_connections(self) -> None:
        proxy = Proxy("tcp:1")
        proxy.change("tcp:2")
        proxy.change("tcp:1", "tcp:2")
        client = proxy.connect(1)
        client.send(GET)
        hi(proxy.requests[0])
        assert client.ending == "open"

    def test_one_that_cannot_be_bound_is_logged_and_the_others_go_on(self) -> None:
        proxy = Proxy("tcp:1")
        lines = proxy.change("tcp:1", "tcp:2", "tcp:2", "tcp:3")
        assert lines == [
            "Listens on 0.0.0.0:2, too",
            "Address already in use: llmproxy cannot listen on tcp:2",
            "Listens on 0.0.0.0:3, too",
        ]
        assert proxy.open == ["0.0.0.0:1", "0.0.0.0:2", "0.0.0.0:3"]

    def test_one_that_could_not_be_bound_is_tried_again(self) -> None:
        proxy = Proxy("tcp:1")
        other = proxy.reactor.listenTCP(2, None)
        proxy.change("tcp:1", "tcp:2")
        other.open = False
        assert proxy.change("tcp:1", "tcp:2") == ["Listens on 0.0.0.0:2, too"]

    def test_one_that_is_no_endpoint_is_logged(self) -> None:
        proxy = Proxy("tcp:1")
        (line,) = proxy.change("tcp:1", "nonsense:2")
        assert line.endswith("llmproxy cannot listen on nonsense:2")
        assert proxy.open == ["0.0.0.0:1"]

    @pytest.mark.parametrize("slow", [False, True])
    def test_the_port_of_one_that_goes_is_free_for_one_that_is_new(self, slow: bool) -> None:
        proxy = Proxy("tcp:1")
        proxy.reactor.slow = slow
        done: list[object] = []
        proxy.listeners.change(["tcp:1:backlog=5"]).addCallback(done.append)
        proxy.reactor.advance(0)
        assert done == [None]
        assert [port.backlog for port in proxy.reactor.ports] == [5]

    def test_a_change_waits_for_one_that_goes_on(self) -> None:
        proxy = Proxy("tcp:1")
        proxy.reactor.slow = True
        proxy.change("tcp:2")
        proxy.change("tcp:1", "tcp:3")
        proxy.reactor.advance(0)
        assert proxy.open == ["0.0.0.0:1", "0.0.0.0:3"]


class TestClose:
    def test_all_are_closed_and_connections_left_alone(self) -> None:
        proxy = Proxy("tcp:1", "tcp:2")
        client = proxy.connect()
        done: list[object] = []
        proxy.listeners.close().addCallback(done.append)
        assert done == [None]
        assert proxy.open == []
        assert client.ending == "open"

    def test_it_is_over_when_the_last_is_closed(self) -> None:
        proxy = Proxy("tcp:1", "tcp:2")
        proxy.reactor.slow = True
        done: list[object] = []
        proxy.listeners.close().addCallback(done.append)
        assert done == []
        proxy.reactor.advance(0)
        assert done == [None]
        assert proxy.open == []

    def test_nothing_is_opened_afterwards(self) -> None:
        proxy = Proxy("tcp:1")
        proxy.listeners.close()
        assert proxy.change("tcp:1", "tcp:2") == []
        assert proxy.open == []

    def test_a_change_that_goes_on_opens_nothing_that_stays(self) -> None:
        proxy = Proxy("tcp:1")
        proxy.reactor.slow = True
        proxy.change("tcp:2")
        proxy.listeners.close()
        proxy.reactor.advance(0)
        assert proxy.open == []


class TestCertificates:
    """By :mod:`tests.test_http_native` and the integration tests, that they are what clients then see."""

    def test_those_of_a_listener_that_stays_are_read_again(self, tmp_path: Path) -> None:
        description = endpoint(tmp_path, authority())
        proxy = Proxy(description)
        (port,) = proxy.reactor.ports
        before = port.certificate.context
        endpoint(tmp_path, authority())
        proxy.change(description)
        assert proxy.reactor.ports == [port]
        assert port.certificate.context is not before
        assert port.certificate.context.certificate.get_serial_number() != (
            before.certificate.get_serial_number()
        )

    def test_one_that_is_served_is_the_one_that_was_found_good(self, tmp_path: Path) -> None:
        proxy = Proxy(f"tcp:1:{LOOPBACK}")
        proxy.change(f"tcp:1:{LOOPBACK}", endpoint(tmp_path, authority()))
        port = proxy.reactor.ports[1]
        assert port.certificate is proxy.listeners.opened[1].certificate

    @pytest.mark.parametrize("kind", ["kept", "new"])
    def test_where_one_cannot_be_used_nothing_is_changed_and_its_files_are_named(
        self, tmp_path: Path, kind: str
    ) -> None:
        description = endpoint(tmp_path, authority())
        proxy = Proxy("tcp:1", *([description] if kind == "kept" else []))
        before = proxy.open
        contexts = [port.certificate and port.certificate.context for port in proxy.reactor.ports]
        precious = "not-to-be-shown"
        (tmp_path / "key.pem").write_text(
            f"-----BEGIN PRIVATE KEY-----\n{precious}\n-----END PRIVATE KEY-----\n"
        )
        with pytest.raises(ConfigError) as caught:
            proxy.listeners.change([description, "tcp:2"])
        (problem,) = caught.value.problems
        assert f"{tmp_path}/key.pem" in problem
        assert f"{tmp_path}/cert.pem" in problem
        assert precious not in problem
        assert proxy.open == before
        assert [port.certificate and port.certificate.context for port in proxy.reactor.ports] == contexts

    def test_all_that_cannot_be_used_are_told_together(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        missing = endpoint(tmp_path / "one", authority())
        (tmp_path / "one" / "cert.pem").unlink()
        proxy = Proxy("tcp:1")
        with pytest.raises(ConfigError) as caught:
            proxy.listeners.change([missing, with_a_short_key(tmp_path), missing])
        first, second = caught.value.problems
        assert first.startswith("No such file or directory: ")
        assert second.startswith("ee key too small: llmproxy cannot listen on ssl:0:privateKey=")

    def test_a_listener_may_move_to_other_files(self, tmp_path: Path) -> None:
        for name in ("old", "new"):
            (tmp_path / name).mkdir()
        old = endpoint(tmp_path / "old", authority()).replace("ssl:0", "ssl:1")
        new = endpoint(tmp_path / "new", Authority()).replace("ssl:0", "ssl:1")
        proxy = Proxy(old)
        proxy.change(new)
        (port,) = proxy.reactor.ports
        assert port.factory is proxy.listeners.opened[0].entrance


class TestWords:
    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            (error.CannotListenError("", 1, OSError(13, "Permission denied")), "Permission denied"),
            (OverflowError("port must be 0-65535."), "port must be 0-65535."),
            (FileNotFoundError(2, "No such file or directory", "/a/key.pem"), "No such file or directory: /a/key.pem"),
            (SSL.Error([("x509", "", "key values mismatch")]), "key values mismatch"),
            (SSL.Error(), "Error"),
            (ValueError(), "ValueError"),
        ],
    )  # fmt: skip
    def test_a_failure_is_told_by_its_reason(self, reason: Exception, words: str) -> None:
        assert str(CannotListen("tcp:81", reason)) == f"{words}: llmproxy cannot listen on tcp:81"

    def test_twistd_tidies_up_after_it_and_the_interpreter_prints_one_line(self) -> None:
        failed = CannotListen("tcp:81", OverflowError("x"))
        assert isinstance(failed, SystemExit)
        assert isinstance(failed, Exception)
        assert failed.code == str(failed)  # what the interpreter prints, with a status of 1
        assert "\n" not in str(failed)

    @pytest.mark.parametrize(
        ("address", "shown"),
        [
            (IPv6Address("TCP", "::1", 80), "[::1]:80"),
            (IPv4Address("TCP", "0.0.0.0", 80), "0.0.0.0:80"),
            (UNIXAddress("/run/llmproxy.sock"), "unix:/run/llmproxy.sock"),
            (UNIXAddress(None), "unix:"),
        ],
    )
    def test_an_address_is_shown_as_one_would_write_it(self, address: IAddress, shown: str) -> None:
        assert listeners._describe(address) == shown

    def test_an_address_of_another_kind_is_shown_as_it_shows_itself(self) -> None:
        class Strange:
            def __str__(self) -> str:
                return "a strange place"

        strange: Any = Strange()
        assert listeners._describe(strange) == "a strange place"
        assert not is_exposed(strange, lambda: ["8.8.8.8"])


GLOBAL = ["192.168.1.5", "2606:4700:4700::1111"]


class TestExposure:
    @pytest.mark.parametrize(
        ("host", "own", "exposed"),
        [
            ("127.0.0.1", GLOBAL, False),
            ("10.0.0.1", GLOBAL, False),
            ("169.254.3.4", GLOBAL, False),
            ("100.64.0.1", GLOBAL, False),
            ("8.8.8.8", [], True),
            ("0.0.0.0", [], False),
            ("0.0.0.0", ["192.168.1.5"], False),
            ("0.0.0.0", ["8.8.8.8"], True),
            ("0.0.0.0", GLOBAL, False),
            ("::1", GLOBAL, False),
            ("fd00::1", GLOBAL, False),
            ("fe80::1%eth0", GLOBAL, False),
            ("2606:4700:4700::1111", [], True),
            ("::ffff:8.8.8.8", [], True),
            ("::ffff:10.0.0.1", [], False),
            ("::", GLOBAL, True),
            ("::", ["8.8.8.8"], True),
            ("::", ["192.168.1.5", "fd00::1"], False),
        ],
    )
    def test_what_the_internet_may_reach(self, host: str, own: Sequence[str], exposed: bool) -> None:
        kind = IPv6Address if ":" in host else IPv4Address
        assert is_exposed(kind("TCP", host, 80), lambda: own) is exposed

    def test_a_local_socket_is_for_this_machine(self) -> None:
        assert not is_exposed(UNIXAddress("/run/llmproxy.sock"), lambda: GLOBAL)

    def test_it_is_warned_of_where_there_is_no_tls(self, tmp_path: Path) -> None:
        proxy = Proxy(f"tcp:1:{LOOPBACK}")
        proxy.own = ["8.8.8.8"]
        warning, told = proxy.change(f"tcp:1:{LOOPBACK}", "tcp:2")
        assert warning.startswith("0.0.0.0:2 may be reached from beyond")
        assert "no TLS" in warning
        assert told == "Listens on 0.0.0.0:2, too"
        lines = proxy.change(f"tcp:1:{LOOPBACK}", "tcp:2", endpoint(tmp_path, authority()))
        assert lines == ["Listens on 0.0.0.0:0, too"]

    def test_it_is_warned_of_at_the_start_too(self) -> None:
        (warning,) = Proxy("tcp:80:interface=8.8.8.8").lines
        assert warning.startswith("8.8.8.8:80 may be reached from beyond")

    def test_a_machine_is_asked_for_its_own_addresses_without_a_packet(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[int, str]] = []

        class Socket:
            def __init__(self, family: int, kind: int) -> None:
                assert kind == socket.SOCK_DGRAM
                self.family = family

            def __enter__(self) -> Socket:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def connect(self, address: tuple[str, int]) -> None:
                asked.append((self.family, address[0]))
                if self.family == socket.AF_INET6:
                    raise OSError(101, "Network is unreachable")

            def getsockname(self) -> tuple[str, int]:
                return "192.168.1.5", 40000

        monkeypatch.setattr(socket, "socket", Socket)
        assert own_addresses() == ["192.168.1.5"]
        assert asked == [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]

    def test_this_machine_has_addresses_or_none(self) -> None:
        assert len(own_addresses()) <= 2
