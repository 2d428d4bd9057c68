"""The whole proxy over the engine's own agent, in memory: what a client sends, seen as the bytes that an upstream gets."""

from __future__ import annotations

from typing import Any

import attrs

from llmproxy.config import Config, Upstream
from llmproxy.http.limits import UpstreamLimits
from llmproxy.values import BaseURL
from tests import support, upstream_support
from tests.support import CONFIG, OPENAI, Proxy

PLAIN = BaseURL("http", "192.0.2.1", 80, "")


class Line:
    """A proxy for one upstream, whose connections a test lets come up.

    :param upstream: the one, but for its base URL.
    :param settings: of the agent.
    """

    def __init__(
        self,
        upstream: Upstream = OPENAI,
        config: Config = CONFIG,
        limits: UpstreamLimits | None = None,
        base_url: BaseURL = PLAIN,
        **settings: Any,
    ) -> None:
        self.agent = upstream_support.MemoryAgent(limits, **settings)
        here = attrs.evolve(upstream, base_url=base_url)
        self.proxy = Proxy(attrs.evolve(config, upstreams=(here,)), agent=self.agent.agent)

    @property
    def connections(self) -> int:
        """How many connections to the upstream were attempted."""
        return self.agent.attempts

    def accept(self) -> upstream_support.Wire:
        """Let the connection that was attempted last come up."""
        return self.agent.accept()

    def warm(self, count: int = 1) -> list[upstream_support.Wire]:
        """Connections that were used before, and are kept."""
        clients = [self.proxy.ask(b"/openai/warm") for _ in range(count)]
        wires = [self.agent.accept(number - count) for number in range(count)]
        for wire in wires:
            wire.take()
            wire.receive(upstream_support.OK)
        assert all(client.response().status == 200 for client in clients)
        return wires


class Taker:
    """The transport of an upstream, as far as a request's body is concerned.

    :ivar ended: how the body ended: not yet, ``whole``, or by which kind of failure.
    """

    def __init__(self, request: support.UpstreamRequest) -> None:
        self.data = b""
        self.ended: Any = None
        producer: Any = request.producer
        self.producer = producer
        producer.startProducing(self).addCallbacks(self._whole, self._broken)

    def write(self, data: bytes) -> None:
        self.data += data

    def _whole(self, result: object) -> None:
        assert result is None
        self.ended = "whole"

    def _broken(self, failure: Any) -> None:
        self.ended = failure.type
