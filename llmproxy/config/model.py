"""What the operator set, as frozen values: what upstreams there are, who may use them, and every bound and timeout.

They are made by the readers of this package, and change nothing by themselves. No ``repr`` shows a secret.
"""

from __future__ import annotations

from functools import cached_property
from urllib.parse import SplitResult
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import attrs

from llmproxy import values
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits
from llmproxy.values import BaseURL

DEFAULT_PORT = 33000
DEFAULT_DRAIN = 30.0  # seconds that requests in flight have to end when the service stops

_SHORT_TOKEN = 16  # characters


class ConfigError(ValueError):
    """A configuration that cannot be used.

    :ivar problems: one sentence for each setting that is missing or malformed; the text of the error holds them all.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "The configuration cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


@attrs.frozen
class Upstream:
    """A provider's API, and how this proxy answers for its clients there.

    :ivar name: the prefix under which clients find it, without slashes.
    :ivar key_header: the header that carries the key: ``Authorization`` (as a bearer token) or ``x-api-key``.
    :ivar default_headers: names and values that are added where a client sent none of that name.
    :ivar ca_file: certificates to trust in the place of the platform's.
    """

    name: str
    base_url: BaseURL
    key_header: str
    key: str = attrs.field(repr=False)
    default_headers: tuple[tuple[bytes, bytes], ...] = ()
    ca_file: str | None = None

    @cached_property
    def credential_header(self) -> tuple[bytes, bytes]:
        """The name and value of the header that carries the key."""
        value = f"Bearer {self.key}" if self.key_header == "Authorization" else self.key
        return self.key_header.encode("ascii"), value.encode("ascii")


@attrs.frozen
class Client:
    """A holder of a local token."""

    name: str
    token: bytes = attrs.field(repr=False)


@attrs.frozen
class Timeouts:
    """How long a silent upstream is waited for once a connection is up, in seconds.

    :ivar first_byte: from sending a request until the response's headers.
    :ivar idle: between two chunks of a response's body.
    """

    first_byte: float = 600.0
    idle: float = 600.0


@attrs.frozen
class Config:
    """Everything that the operator can set."""

    upstreams: tuple[Upstream, ...]
    clients: tuple[Client, ...]
    port: int = DEFAULT_PORT
    timeouts: Timeouts = attrs.Factory(Timeouts)
    downstream: DownstreamLimits = attrs.Factory(DownstreamLimits)
    upstream: UpstreamLimits = attrs.Factory(UpstreamLimits)
    https_proxy: SplitResult | None = attrs.field(default=None, repr=False)
    no_proxy: str = ""

    def proxy_for(self, host: str) -> SplitResult | None:
        """The HTTP proxy through which an upstream's host is reached, or ``None`` where it is reached directly."""
        bypassed = proxy_bypass_environment(host, {"no": self.no_proxy})
        return None if bypassed else self.https_proxy

    def warnings(self) -> list[str]:
        """Name what works but is probably not what was meant."""
        found = [
            f"The token of client {client.name!r} has fewer than {_SHORT_TOKEN} characters; it can be guessed."
            for client in self.clients
            if len(client.token) < _SHORT_TOKEN
        ]
        for upstream in self.upstreams:
            url = upstream.base_url
            if url.path.endswith("/v1"):
                found.append(
                    f"The base URL of {upstream.name} ends in /v1, and so does what SDKs are pointed at: "
                    f"/{upstream.name}/v1/models would become {url.path}/v1/models."
                )
            if url.scheme == "http" and not values.is_loopback(url.host):
                found.append(
                    f"The key for {upstream.name} goes to {url.host} unencrypted: its base URL is not https."
                )
        return found
