"""A first run without keys: the proxy, before an upstream that it embeds.

The upstream listens on loopback, on a port of the kernel's choice, and costs nothing; so its keys and the token for it are
constants that stand in the documentation. Nothing of the real environment is used here but the port.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort

from llmproxy import demo
from llmproxy.config import BaseURL, Client, Config, Upstream
from llmproxy.service import ProxyService

TOKEN = "llmproxy-demo-token"
_LOOPBACK = "127.0.0.1"


def _print(text: str) -> None:
    # twistd has put its log in the place of sys.stdout; these lines are for a person to paste, so they go past it.
    if sys.__stdout__ is not None:
        sys.__stdout__.write(text)
        sys.__stdout__.flush()


class DemoService(ProxyService):
    """Serves the proxy with the demo upstream behind it, and tells a newcomer what to try.

    :param announce: takes the text for the newcomer.
    """

    def __init__(self, reactor: Any, listen: Sequence[str], announce: Callable[[str], None] = _print) -> None:
        super().__init__(reactor, listen, self._configure)
        self._announce = announce
        self._upstream: IListeningPort | None = None

    def startService(self) -> None:
        """Start, and show the token and two commands to paste."""
        super().startService()
        addresses = [port.getHost() for port in self._ports]
        port = next((address.port for address in addresses if isinstance(address, IPv4Address)), None)
        if port is not None:
            self._announce(_welcome(f"http://{_LOOPBACK}:{port}"))

    def stopService(self) -> Deferred[object]:
        """Stop the proxy and the upstream behind it."""
        stopping = [super().stopService()]
        if self._upstream is not None:
            stopping.append(maybeDeferred(self._upstream.stopListening))
        return gatherResults(stopping)

    def _configure(self) -> Config:
        if self._upstream is None:
            self._upstream = self._reactor.listenTCP(0, demo.site(self._reactor), interface=_LOOPBACK)
        port = self._upstream.getHost().port
        openai = BaseURL("http", _LOOPBACK, port, "/openai")
        anthropic = BaseURL("http", _LOOPBACK, port, "/anthropic")
        return Config(
            upstreams=(
                Upstream("openai", openai, "Authorization", demo.OPENAI_KEY),
                Upstream("anthropic", anthropic, "x-api-key", demo.ANTHROPIC_KEY),
            ),
            clients=(Client("demo", TOKEN.encode("ascii")),),
        )


def _welcome(url: str) -> str:
    """What a newcomer reads: the token, and a streamed chat with each provider."""
    chat = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Hello, proxy!"}]}
    return f"""
This is the demo: the upstream is built in, no key is needed. The token is {TOKEN}. Paste into another terminal:

curl -N {url}/openai/v1/chat/completions -H 'Authorization: Bearer {TOKEN}' -H 'Content-Type: application/json' \\
  -d '{json.dumps(chat)}'

curl -N {url}/anthropic/v1/messages -H 'x-api-key: {TOKEN}' -H 'anthropic-version: 2023-06-01' \\
  -H 'Content-Type: application/json' -d '{json.dumps({**chat, "max_tokens": 100})}'

"""
