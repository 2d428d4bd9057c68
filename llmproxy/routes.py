"""The routes to all upstreams, kept over a reload where nothing about their connections changed.

So a reload costs no warm connection, and a key that rests goes on resting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmproxy.config import Config, Upstream
from llmproxy.http.client import PooledAgent
from llmproxy.keyring import Keyring
from llmproxy.route import Route
from llmproxy.transparent import TransparentClient


class Routes:
    """Makes the routes that a configuration describes, and owns their connections.

    :param reactor: carries them.
    :ivar all: the present ones, in the operator's order.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._agents: dict[object, PooledAgent] = {}
        self.all: tuple[Route, ...] = ()

    def change(self, config: Config) -> tuple[Route, ...]:
        """Make the routes of another configuration; requests in flight end on the old ones."""
        before = {route.upstream.name: route for route in self.all}
        agents: dict[object, PooledAgent] = {}
        routes = []
        for upstream in config.upstreams:
            connections = (
                upstream.name,
                upstream.base_url,
                upstream.ca_file,
                upstream.limits,
                config.https_proxy,
                config.no_proxy,
            )
            agent = self._agents.pop(connections, None) or self._agent(upstream, config.proxy_for)
            agents[connections] = agent
            keyring = Keyring(upstream.keys, self._reactor.seconds)
            if upstream.name in before:
                keyring.adopt(before[upstream.name].keyring)
            routes.append(Route(upstream, TransparentClient(agent, self._reactor), keyring))
        self.close()
        self._agents = agents
        self.all = tuple(routes)
        return self.all

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their exchanges are over."""
        for agent in self._agents.values():
            agent.close()
        self._agents = {}

    def _agent(self, upstream: Upstream, proxy_for: Callable[[str], Any]) -> PooledAgent:
        ca_files = {upstream.base_url.host: upstream.ca_file} if upstream.ca_file else {}
        return PooledAgent(self._reactor, upstream.limits, ca_files, proxy_for)
