"""The daemon's life: bind, serve, reload, stop. The only room that knows every other.

Binding is the step that may fail, so it comes first, and its failure ends the process with one line. SIGHUP reads the
configuration again: requests in flight end under the old one, new ones see the new one, and a wrong one changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from llmproxy import __version__
from llmproxy.config import DEFAULT_DRAIN, Config, ConfigError
from llmproxy.cors import Cors
from llmproxy.credentials import Credentials
from llmproxy.deadline import SharedClock
from llmproxy.exchange import AccessLog
from llmproxy.http.native import native
from llmproxy.http.server import Site
from llmproxy.route import Gateway
from llmproxy.routes import Routes
from llmproxy.site import build, mark


class CannotListen(SystemExit, Exception):
    """A listener that could not be opened.

    twistd tidies up after an Exception, and of a SystemExit the interpreter prints one line instead of a traceback: this is
    both.
    """


class ProxyService(Service):
    """Serves the proxy on its listeners, as long as it runs.

    :param reactor: carries everything; it is given, never imported.
    :param listen: Twisted endpoint descriptions, for example ``tcp:33000``.
    :param load: reads the configuration; raises :class:`~llmproxy.config.ConfigError` where it is wrong.
    :param drain: seconds that requests in flight have to end when the service stops.
    :param access_log: write a line for each exchange.
    """

    name = "llmproxy"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listen: Sequence[str],
        load: Callable[[], Config],
        drain: float = DEFAULT_DRAIN,
        access_log: bool = True,
    ) -> None:
        self._reactor = reactor
        self._listen = listen
        self._load = load
        self._drain = drain
        self._access_log = access_log
        self._ports: list[IListeningPort] = []
        self._stopping = False
        self._routes = Routes(reactor)
        self._clock = SharedClock(reactor)
        self._site: Site

    def privilegedStartService(self) -> None:
        """Bind, while the process may still hold the privileges that low ports want.

        :raise CannotListen: naming the listener and the reason.
        """
        super().privilegedStartService()
        _raise_descriptor_limit()
        self._config = self._load()
        self._site = Site(Resource(), self._reactor)
        self._apply()
        for description in self._listen:
            self._ports.append(self._bind(description))

    def startService(self) -> None:
        """Say what is served where, and take signals once the reactor has installed its own handlers."""
        super().startService()
        self._take_signals()  # from the first line on that says that this serves
        self._log.info(
            "llmproxy {version} listens on {addresses}; {upstreams}",
            version=__version__,
            addresses=", ".join(_describe(port.getHost()) for port in self._ports),
            upstreams=", ".join(
                f"/{upstream.name}/ goes to {upstream.base_url.netloc.decode('ascii')}"
                for upstream in self._config.upstreams
            ),
        )
        self._warn()
        self._reactor.callWhenRunning(self._take_signals)  # again: the reactor has put in its own
        _spare_the_collector()

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Close the listeners, let what is in flight end, up to a deadline, and abort what is left then."""
        super().stopService()
        ports, self._ports = self._ports, []
        for port in ports:
            yield maybeDeferred(port.stopListening)
        if ports:
            drained = self._site.drain()
            deadline = self._reactor.callLater(self._drain, self._out_of_time)
            yield drained
            if deadline.active():
                deadline.cancel()
        self._routes.close()
        self._clock.close()

    def reload(self) -> None:
        """Read the configuration again and serve new requests by it; where it is wrong, log why and keep the old one."""
        try:
            config = self._load()
        except ConfigError as error:
            self._log.error(
                "Nothing was reloaded, the old configuration stays. {problems}", problems=str(error)
            )
            return
        self._config = config
        self._apply()
        self._log.info("Reloaded the configuration")
        self._warn()

    def _apply(self) -> None:
        """Serve new requests by the present configuration."""
        config = self._config
        gateway = Gateway(
            credentials=Credentials(config.clients, time.time),
            clock=self._clock,
            observers=[AccessLog()] if self._access_log else [],
            max_resent_body=config.max_resent_body,
        )
        cors = Cors(config.cors_origins) if config.cors_origins else None
        self._site.resource = build(gateway, self._routes.change(config), cors)
        self._site.mark = None if cors is None else partial(mark, cors)
        self._site.limits = config.downstream

    def _bind(self, description: str) -> IListeningPort:
        bound: list[IListeningPort] = []
        failed: list[Failure] = []
        # Every endpoint that serverFromString knows binds at once; the Deferred is there for others that might not.
        endpoint = serverFromString(native(self._reactor), description)
        endpoint.listen(self._site).addCallbacks(bound.append, failed.append)
        if failed:
            reason = getattr(failed[0].value, "socketError", None) or failed[0].value
            # The reason first: of a daemon's failure to start, twistd shows its caller only the first 100 bytes.
            raise CannotListen(
                f"{getattr(reason, 'strerror', None) or reason}: llmproxy cannot listen on {description}"
            )
        return bound[0]

    def _out_of_time(self) -> None:
        self._log.warn(
            "{count} connections were still in use after {seconds} s",
            count=self._site.open,
            seconds=self._drain,
        )
        self._site.abort()

    def _warn(self) -> None:
        for warning in self._config.warnings():
            self._log.warn("{warning}", warning=warning)

    def _take_signals(self) -> None:
        # The reactor's own handler for SIGTERM makes twistd die of the signal; a daemon that was asked to stop ends with 0.
        signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self._stop))
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))

    def _stop(self) -> None:
        if not self._stopping:  # a second signal, while requests end, asks for nothing new
            self._stopping = True
            self._reactor.stop()


def _spare_the_collector() -> None:
    """Keep the garbage collector off what will never be garbage.

    The modules of a started process are a hundred thousand objects, and a full collection looks at each; while streams come and
    go, that took 8 % of the time. An exchange leaves no cycle behind, so collections may be rarer, too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _raise_descriptor_limit() -> None:
    """Let the process have as many connections as it may: each exchange takes two descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems refuse a soft limit of "unlimited" though the hard one says so.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _describe(address: object) -> str:
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, UNIXAddress):
        return f"unix:{os.fsdecode(address.name or b'')}"
    return str(address)
