"""The daemon's life: bind, serve, reload, stop. The only room that knows every other.

Binding is the step that may fail, so it comes first, and its failure ends the process with one line. SIGHUP reads the
configuration again: requests in flight end under the old one, new ones see the new one, listeners come and go, and a wrong one
changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.web.resource import Resource

from llmproxy import __version__, admin
from llmproxy.bookkeeping import Bookkeeping, database_of
from llmproxy.config import DEFAULT_DRAIN, Config, ConfigError
from llmproxy.cors import Cors
from llmproxy.credentials import Credentials
from llmproxy.deadline import SharedClock
from llmproxy.http.server import Site
from llmproxy.listeners import Listeners
from llmproxy.logs import Log
from llmproxy.observation import SESSION_HEADERS
from llmproxy.route import Gateway
from llmproxy.routes import Routes
from llmproxy.site import build, mark


class ProxyService(Service):
    """Serves the proxy on its listeners, as long as it runs.

    :param reactor: carries everything; it is given, never imported.
    :param listen: Twisted endpoint descriptions, for example ``tcp:33000``; ``None`` for those of the configuration.
    :param load: reads the configuration; raises :class:`~llmproxy.config.ConfigError` where it is wrong.
    :param drain: seconds that requests in flight have to end when the service stops.
    :param access_log: write a line for each exchange.
    :param log: the log of the process, where that is ours to set up.
    """

    name = "llmproxy"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listen: Sequence[str] | None,
        load: Callable[[], Config],
        drain: float = DEFAULT_DRAIN,
        access_log: bool = True,
        log: Log | None = None,
    ) -> None:
        self._reactor = reactor
        self._listen = listen
        self._load = load
        self._drain = drain
        self._process_log = log
        self._stopping = False
        self._routes = Routes(reactor)
        self._clock = SharedClock(reactor)
        self._site = Site(Resource(), reactor)
        self._listeners = Listeners(reactor, self._site)
        self._books = Bookkeeping(reactor, lambda: self._site.open, lambda: self._routes.pools, access_log)
        self._admin_site = Site(admin.build(self._books.metrics.registry, self._why_not_ready), reactor)
        self._admin = Listeners(reactor, self._admin_site)

    def setServiceParent(self, parent: Any) -> None:
        """See ``IService``; twistd asks its application for a log."""
        super().setServiceParent(parent)
        if self._process_log is not None:
            self._process_log.attach(parent)

    def privilegedStartService(self) -> None:
        """Bind, while the process may still hold the privileges that low ports want.

        :raise CannotListen: naming the listener and the reason.
        """
        super().privilegedStartService()
        _raise_descriptor_limit()
        self._config = self._load()
        self._apply()
        self._listeners.start(self._wanted(self._config))
        self._admin.start(_wanted_by_admin(self._config))

    def startService(self) -> None:
        """Say what is served where, and take signals once the reactor has installed its own handlers."""
        super().startService()
        self._take_signals()  # from the first line on that says that this serves
        self._log.info(
            "llmproxy {version} listens on {addresses}; {upstreams}",
            version=__version__,
            addresses=", ".join(map(str, self._listeners.opened)),
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
        yield self._listeners.close()
        drained = self._site.drain()
        deadline = self._reactor.callLater(self._drain, self._out_of_time)
        yield drained
        if deadline.active():
            deadline.cancel()
        yield self._admin.close()
        self._admin_site.abort()
        self._routes.close()
        self._clock.close()
        yield self._books.close()

    def reload(self) -> None:
        """Read the configuration again and serve new requests by it; where it is wrong, log why and keep the old one."""
        if not self.running:
            self._log.info("Nothing was reloaded, the proxy is being stopped.")
            return
        try:
            config = self._load()
            database_of(config)
            self._listeners.change(self._wanted(config))
            self._admin.change(_wanted_by_admin(config))
        except ConfigError as error:
            self._books.metrics.reloaded(False)
            self._log.error(
                "Nothing was reloaded, the old configuration stays. {problems}", problems=str(error)
            )
            return
        self._config = config
        self._apply()
        self._books.metrics.reloaded(True)
        self._log.info("Reloaded the configuration")
        self._warn()

    def _apply(self) -> None:
        """Serve new requests by the present configuration."""
        config = self._config
        if self._process_log is not None:
            self._process_log.change(config.logging.format, config.logging.level)
        self._books.change(config)
        gateway = Gateway(
            credentials=Credentials(config.clients, time.time),
            clock=self._clock,
            observer=self._books.observer,
            open=self._books.open,
            max_resent_body=config.max_resent_body,
            close_time=config.downstream.close_time,
            tell_id=config.accounting.request_id,
            session_headers=(*SESSION_HEADERS, *config.accounting.session_headers),
        )
        cors = Cors(config.cors_origins) if config.cors_origins else None
        self._site.resource = build(gateway, self._routes.change(config), cors, self._why_not_ready)
        self._site.mark = None if cors is None else partial(mark, cors)
        self._site.limits = config.downstream

    def _wanted(self, config: Config) -> Sequence[str]:
        """Where to listen; the command line comes before the configuration."""
        return config.listen if self._listen is None else self._listen

    def _why_not_ready(self) -> str | None:
        """What keeps this from being given requests; ``None`` where nothing does."""
        if self._stopping or not self.running:
            return "The proxy is being stopped, and lets what is in flight end."
        return None if self._listeners.opened else "No listener is open."

    def _out_of_time(self) -> None:
        self._log.warn(
            "{count} connections were still in use after {seconds} s",
            count=self._site.open,
            seconds=self._drain,
        )
        self._books.cut_off()
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


def _wanted_by_admin(config: Config) -> Sequence[str]:
    return () if config.admin is None else (config.admin,)


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
