"""A first run without keys: the proxy, before an upstream that it embeds.

The upstream listens on loopback, on a port of the kernel's choice, and costs nothing; so its keys and the token for it are
constants that stand in the documentation. Nothing of the real environment is used here but the port.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort

from llmproxy import demo
from llmproxy.config import DEFAULT_DRAIN, Client, Config, Credential, Family, Upstream, token_digest
from llmproxy.http.native import native
from llmproxy.logs import Log
from llmproxy.service import ProxyService
from llmproxy.values import BaseURL

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
    :param applied: puts what the command line says in the place of what the demo's configuration says.
    """

    def __init__(
        self,
        reactor: Any,
        listen: Sequence[str],
        drain: float = DEFAULT_DRAIN,
        announce: Callable[[str], None] = _print,
        log: Log | None = None,
        applied: Callable[[Config], Config] = lambda config: config,
    ) -> None:
        super().__init__(reactor, listen, lambda: applied(self._configure()), drain, log=log)
        self._announce = announce
        self._upstream: IListeningPort | None = None

    def startService(self) -> None:
        """Start, and show the token and two commands to paste."""
        super().startService()
        for listener in self._listeners.opened:
            if isinstance(listener.host, (IPv4Address, IPv6Address)):
                scheme = "http" if listener.certificate is None else "https"
                self._announce(_welcome(f"{scheme}://{_reachable(listener.host)}"))
                return

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Stop the proxy, and then the upstream behind it."""
        yield super().stopService()
        if self._upstream is not None:
            yield maybeDeferred(self._upstream.stopListening)

    def _configure(self) -> Config:
        if self._upstream is None:
            self._upstream = native(self._reactor).listenTCP(0, demo.site(self._reactor), interface=_LOOPBACK)
        address: Any = self._upstream.getHost()
        port = address.port
        openai = BaseURL("http", _LOOPBACK, port, "/openai")
        anthropic = BaseURL("http", _LOOPBACK, port, "/anthropic")
        return Config(
            upstreams=(
                Upstream("openai", openai, Credential.parse("bearer"), (demo.OPENAI_KEY,), Family.OPENAI),
                Upstream(
                    "anthropic",
                    anthropic,
                    Credential.parse("x-api-key"),
                    (demo.ANTHROPIC_KEY,),
                    Family.ANTHROPIC,
                ),
            ),
            clients=(Client("demo", (token_digest(TOKEN.encode("ascii")),)),),
        )


def _reachable(address: IPv4Address | IPv6Address) -> str:
    """Where a listener is reached from this machine, as it stands in a URL."""
    if isinstance(address, IPv6Address):
        return f"[{'::1' if address.host == '::' else address.host}]:{address.port}"
    return f"{_LOOPBACK if address.host == '0.0.0.0' else address.host}:{address.port}"


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
