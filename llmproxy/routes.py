"""The routes to all upstreams, kept over a reload where nothing about their connections changed.

So a reload costs no warm connection, and a key that rests goes on resting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmproxy.config import Config, Upstream
from llmproxy.http.client import PooledAgent
from llmproxy.http.pool import Pool
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
        self._agents: dict[tuple[Any, ...], PooledAgent] = {}
        self.all: tuple[Route, ...] = ()

    def change(self, config: Config) -> tuple[Route, ...]:
        """Make the routes of another configuration; requests in flight end on the old ones."""
        before = {route.upstream.name: route for route in self.all}
        agents: dict[tuple[Any, ...], PooledAgent] = {}
        routes = []
        for upstream in config.upstreams:
            connections = (
                upstream.name,
                upstream.base_url,
                upstream.ca_file,
                _content(upstream.ca_file),
                upstream.limits,
                config.https_proxy,
                config.no_proxy,
            )
            agent = self._agents.pop(connections, None) or self._agent(upstream, config.proxy_for)
            agents[connections] = agent
            keyring = self._keyring(upstream, before.get(upstream.name))
            routes.append(Route(upstream, TransparentClient(agent, self._reactor), keyring))
        self.close()
        self._agents = agents
        self.all = tuple(routes)
        return self.all

    @property
    def pools(self) -> Iterator[tuple[str, Pool]]:
        """The connections to all upstreams, with the upstreams' names."""
        for connections, agent in self._agents.items():
            for pool in agent.pools:
                yield connections[0], pool

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their exchanges are over."""
        for agent in self._agents.values():
            agent.close()
        self._agents = {}

    def _keyring(self, upstream: Upstream, before: Route | None) -> Keyring:
        # What another host said of a key says nothing of this one.
        if before is None or before.upstream.base_url != upstream.base_url:
            return Keyring(upstream.keys, self._reactor.seconds)
        if before.upstream.keys == upstream.keys:
            return before.keyring  # so that a refusal counts which a request in flight meets
        keyring = Keyring(upstream.keys, self._reactor.seconds)
        keyring.adopt(before.keyring)
        return keyring

    def _agent(self, upstream: Upstream, proxy_for: Callable[[str], Any]) -> PooledAgent:
        ca_files = {upstream.base_url.host: upstream.ca_file} if upstream.ca_file else {}
        return PooledAgent(self._reactor, upstream.limits, ca_files, proxy_for)


def _content(ca_file: str | None) -> bytes | None:
    """What a file of certificates says now: it can be replaced under the same name."""
    try:
        return None if ca_file is None else Path(ca_file).read_bytes()
    except OSError:
        return None  # who connects will say why
