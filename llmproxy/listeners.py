"""Where clients come in: listeners that open at the start, and change on a reload without losing a connection.

A listener is known by its endpoint description. One that stays keeps its socket, and its certificate is read again; one that
goes stops accepting, and the connections that came through it end with their requests; one that is new is opened. Which
listeners there should be, and when, is for :mod:`llmproxy.service` to say.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from ipaddress import IPv6Address as NumericIPv6
from ipaddress import ip_address
from typing import Any

import attrs
from OpenSSL import SSL, crypto
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredLock, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config import ConfigError
from llmproxy.http import tls
from llmproxy.http.native import NativeReactor, native
from llmproxy.http.server import Entrance, Site
from llmproxy.http.tls import ServerCertificate

BACKLOG = 1024  # connections that wait to be accepted, where a listener does not say; Twisted's own 50 would drop bursts


class CannotListen(SystemExit, Exception):
    """A listener that could not be opened.

    twistd tidies up after an Exception, and of a SystemExit the interpreter prints one line instead of a traceback: this is
    both.
    """

    def __init__(self, description: str, reason: BaseException) -> None:
        # The reason first: of a daemon's failure to start, twistd shows its caller only the first 100 bytes.
        super().__init__(f"{_words(reason)}: llmproxy cannot listen on {description}")


@attrs.define(eq=False)
class Listener:
    """A listener that is open.

    :ivar description: the endpoint, as the operator wrote it.
    :ivar certificate: what it serves TLS with; ``None`` where it does not.
    """

    description: str
    port: IListeningPort
    entrance: Entrance
    certificate: ServerCertificate | None

    @property
    def host(self) -> IAddress:
        """The address that it listens on."""
        return self.port.getHost()

    def __str__(self) -> str:
        return _describe(self.host)


def own_addresses() -> list[str]:
    """The addresses that this machine would reach the internet from: one for IPv4 and one for IPv6, where it has a route.

    Connecting a UDP socket chooses its address and sends nothing. It is connected to what stands for any place on the internet
    and is none (RFC 5737, RFC 3849).
    """
    found: list[str] = []
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # OSError: no such route, or no such protocol.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((anywhere, 9))
            found.append(sock.getsockname()[0])
    return found


class Listeners:
    """The listeners that are open, before one Site.

    :param reactor: carries them; natively where it can.
    :param own: this machine's addresses; see :func:`own_addresses`.
    """

    _log = Logger()

    def __init__(self, reactor: Any, site: Site, own: Callable[[], Iterable[str]] = own_addresses) -> None:
        self._reactor = native(reactor)
        self._site = site
        self._own = own
        self._open: list[Listener] = []
        # A port may take a turn of the reactor to close, and another signal may come meanwhile.
        self._busy = DeferredLock()
        self._closed = False

    @property
    def opened(self) -> tuple[Listener, ...]:
        """Those that are open."""
        return tuple(self._open)

    def start(self, descriptions: Iterable[str]) -> None:
        """Open the first ones.

        :raise CannotListen: naming the first that cannot be opened, and the reason.
        """
        wanted = list(descriptions)
        contexts, problems = self._read(wanted)
        if problems:
            raise problems[0]
        failed: list[Failure] = []
        while wanted and not failed:
            description = wanted.pop(0)
            # Every endpoint that Twisted has binds at once; the Deferred is there for others that might not.
            self._bind(description, contexts[description]).addErrback(failed.append)
        if failed:
            failed[0].raiseException()

    def change(self, descriptions: Iterable[str]) -> Deferred[None]:
        """Open those that are new, read certificates again, and drain those that are gone.

        A listener that cannot be bound is logged, and the others go on.

        :return: fires when all is done that takes no waiting for requests.
        :raise ConfigError: at once, and nothing is changed, where a certificate cannot be used.
        """
        wanted = list(descriptions)
        contexts, problems = self._read(wanted)
        if problems:
            raise ConfigError([f"{problem}." for problem in problems])
        return self._busy.run(self._change, wanted, contexts)

    def close(self) -> Deferred[None]:
        """Accept no more connections, and open no more listeners; connections are left to the Site."""
        self._closed = True
        return self._busy.run(self._close)

    @inlineCallbacks
    def _change(
        self, descriptions: Sequence[str], contexts: dict[str, Any]
    ) -> Generator[Deferred[Any], Any, None]:
        if self._closed:
            return
        missing = Counter(descriptions)  # the same may stand there twice: port 0, which the kernel chooses
        gone: list[Listener] = []
        for listener in self._open:
            if not missing[listener.description]:
                gone.append(listener)
                continue
            missing[listener.description] -= 1
            if listener.certificate is not None:
                listener.certificate.context = contexts[listener.description]
        # Those first: one that is new may want the port of one that is gone.
        for listener in gone:
            self._open.remove(listener)
            listener.entrance.drain()
            yield maybeDeferred(listener.port.stopListening)
            self._log.info("Listens no more on {listener}", listener=listener)
        for description in missing.elements():
            yield self._bind(description, contexts[description]).addCallbacks(self._added, self._not_added)

    def _added(self, listener: Listener) -> None:
        self._log.info("Listens on {listener}, too", listener=listener)

    def _not_added(self, failure: Failure) -> None:
        """Log it, and go on: the other listeners do not depend on it."""
        failure.trap(CannotListen)
        self._log.error("{problem}", problem=str(failure.value))

    def _close(self) -> Deferred[None]:
        ports, self._open = [listener.port for listener in self._open], []
        return gatherResults([maybeDeferred(port.stopListening) for port in ports]).addCallback(
            lambda _: None
        )

    def _read(self, descriptions: Iterable[str]) -> tuple[dict[str, Any], list[CannotListen]]:
        """Read the files that descriptions name: what to serve TLS with, or ``None``, for each, and what was wrong."""
        make = tls.for_native if isinstance(self._reactor, NativeReactor) else tls.for_twisted
        problems: list[CannotListen] = []

        def context(description: str) -> Any:
            try:
                options = tls.read(description)
                return None if options is None else make(options)
            except Exception as reason:
                problems.append(CannotListen(description, reason))
                return None

        return {description: context(description) for description in dict.fromkeys(descriptions)}, problems

    @inlineCallbacks
    def _bind(self, description: str, context: Any) -> Generator[Deferred[Any], Any, Listener]:
        entrance = Entrance(self._site)
        certificate = None if context is None else ServerCertificate(context)
        backlog = None if "backlog=" in description else BACKLOG
        try:
            endpoint = serverFromString(_Opener(self._reactor, certificate, backlog), description)
            port = yield endpoint.listen(entrance)
        except Exception as reason:
            raise CannotListen(description, reason) from None
        listener = Listener(description, port, entrance, certificate)
        self._open.append(listener)
        if certificate is None and is_exposed(listener.host, self._own):
            self._log.warn(
                "{listener} may be reached from beyond this machine and private networks, and has no TLS: tokens, prompts and "
                "answers pass there for others to read. Give it a certificate (an ssl: endpoint), or a narrower address.",
                listener=listener,
            )
        return listener


class _Opener:
    """The reactor, as an endpoint is to see it: more are let wait, and what is served is what was found good before."""

    def __init__(self, reactor: Any, certificate: ServerCertificate | None, backlog: int | None) -> None:
        self._reactor = reactor
        self._certificate = certificate
        self._backlog = backlog

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See ``IReactorTCP``."""
        return self._reactor.listenTCP(port, factory, self._backlog or backlog, interface)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        """See ``IReactorSSL``."""
        return self._reactor.listenSSL(
            port, factory, self._certificate or contextFactory, self._backlog or backlog, interface
        )


def is_exposed(address: IAddress, own: Callable[[], Iterable[str]]) -> bool:
    """Tell whether the internet may reach what listens on an address.

    :param own: this machine's addresses, for a listener on all of them.
    """
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return False
    listening = ip_address(address.host)
    if not listening.is_unspecified:
        return _is_global(address.host)
    # What listens on all addresses of IPv6 is reached by IPv4, too.
    return any(_is_global(host) for host in own() if listening.version == 6 or ip_address(host).version == 4)


def _is_global(host: str) -> bool:
    address = ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, NumericIPv6) else None
    return (mapped or address).is_global


def _words(reason: BaseException) -> str:
    """Why something failed; of files it tells the names, and nothing that they hold."""
    cause = getattr(reason, "socketError", None) or reason
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
    if isinstance(cause, (SSL.Error, crypto.Error)) and cause.args:
        return ", ".join(words for *_, words in cause.args[0])
    return str(cause) or type(cause).__name__


def _describe(address: IAddress) -> str:
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, UNIXAddress):
        return f"unix:{os.fsdecode(address.name or b'')}"
    return str(address)
