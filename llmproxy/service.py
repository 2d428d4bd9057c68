"""The daemon's life: bind, serve, reload, stop. The only room that knows every other.

Binding is the step that may fail, so it comes first, and its failure ends the process with one line. SIGHUP reads the
configuration again: requests in flight end under the old one, new ones see the new one, and a wrong one changes nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy import __version__
from llmproxy.config import Config, ConfigError
from llmproxy.credentials import Credentials
from llmproxy.exchange import AccessLog
from llmproxy.http.client import PooledAgent
from llmproxy.http.server import Site
from llmproxy.proxy import Gateway
from llmproxy.site import Root, build
from llmproxy.transparent import TransparentClient


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
    """

    name = "llmproxy"
    _log = Logger()

    def __init__(self, reactor: Any, listen: Sequence[str], load: Callable[[], Config]) -> None:
        self._reactor = reactor
        self._listen = listen
        self._load = load
        self._ports: list[IListeningPort] = []
        self._agent: PooledAgent | None = None
        self._site: Site

    def privilegedStartService(self) -> None:
        """Bind, while the process may still hold the privileges that low ports want.

        :raise CannotListen: naming the listener and the reason.
        """
        super().privilegedStartService()
        self._config = self._load()
        self._site = Site(self._tree(), self._reactor)
        for description in self._listen:
            self._ports.append(self._bind(description))

    def startService(self) -> None:
        """Say what is served where, and take signals once the reactor has installed its own handlers."""
        super().startService()
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
        self._reactor.callWhenRunning(self._take_signals)

    def stopService(self) -> Deferred[object]:
        """Close the listeners and the idle connections to upstreams; what is in flight ends with the reactor."""
        closing = [maybeDeferred(port.stopListening) for port in self._ports]
        self._ports = []
        if self._agent is not None:
            closing.append(self._agent.close())
        super().stopService()
        return gatherResults(closing)

    def reload(self) -> None:
        """Read the configuration again and serve new requests by it; where it is wrong, log why and keep the old one."""
        try:
            config = self._load()
        except ConfigError as error:
            self._log.error("Nothing was reloaded, the old configuration stays. {problems}", problems=str(error))
            return
        self._config = config
        self._site.resource = self._tree()
        self._log.info("Reloaded the configuration")
        self._warn()

    def _tree(self) -> Root:
        """The Resource tree for the present configuration, over connections of its own."""
        if self._agent is not None:
            self._agent.close()
        self._agent = PooledAgent(self._reactor, self._config.timeouts.connect)
        gateway = Gateway(
            credentials=Credentials(self._config.clients),
            client=TransparentClient(self._agent, self._reactor),
            clock=self._reactor,
            timeouts=self._config.timeouts,
            observers=[AccessLog()],
        )
        return build(self._config, gateway)

    def _bind(self, description: str) -> IListeningPort:
        bound: list[IListeningPort] = []
        failed: list[Failure] = []
        # Every endpoint that serverFromString knows binds at once; the Deferred is there for others that might not.
        serverFromString(self._reactor, description).listen(self._site).addCallbacks(bound.append, failed.append)
        if failed:
            reason = getattr(failed[0].value, "socketError", None) or failed[0].value
            # The reason first: of a daemon's failure to start, twistd shows its caller only the first 100 bytes.
            raise CannotListen(f"{getattr(reason, 'strerror', None) or reason}: llmproxy cannot listen on {description}")
        return bound[0]

    def _warn(self) -> None:
        for warning in self._config.warnings():
            self._log.warn("{warning}", warning=warning)

    def _take_signals(self) -> None:
        # The reactor's own handler for SIGTERM makes twistd die of the signal; a daemon that was asked to stop ends with 0.
        signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self._reactor.stop))
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))


def _describe(address: object) -> str:
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, UNIXAddress):
        return f"unix:{address.name!s}"
    return str(address)
