"""What the operator set: a frozen Config, read from the environment.

:func:`load` takes a mapping and reads all of it before it complains, so that one message names everything that is missing or
malformed. No secret is shown: not by ``repr``, and not by an error about it. This is the one place that knows the names of
environment variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import SplitResult
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import attrs

from llmproxy import values
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits
from llmproxy.values import BaseURL

DEFAULT_PORT = 33000
DEFAULT_DRAIN = 30.0  # seconds that requests in flight have to end when the service stops
_T = TypeVar("_T")

_SHORT_TOKEN = 16  # characters


# The variables that set the fields of each class, and how their text is read.
_TIMEOUTS = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT": ("first_byte", values.parse_seconds),
    "UPSTREAM_IDLE_TIMEOUT": ("idle", values.parse_seconds),
}
_UPSTREAM = {
    "UPSTREAM_CONNECT_TIMEOUT": ("connect", values.parse_seconds),
    "UPSTREAM_MAX_CONNECTIONS": ("connections", values.parse_count),
    "UPSTREAM_MAX_IDLE_CONNECTIONS": ("idle_connections", values.parse_count),
    "UPSTREAM_KEEP_ALIVE": ("idle", values.parse_seconds),
}
_DOWNSTREAM = {
    "CLIENT_MAX_TARGET": ("target", values.parse_count),
    "CLIENT_MAX_HEADERS": ("headers", values.parse_count),
    "CLIENT_HEADER_TIMEOUT": ("header_time", values.parse_seconds),
    "CLIENT_BODY_TIMEOUT": ("body_idle", values.parse_seconds),
    "CLIENT_KEEP_ALIVE": ("keep_alive", values.parse_seconds),
    "CLIENT_MAX_CONNECTIONS": ("connections", values.parse_count),
    "CLIENT_MAX_CONNECTIONS_PER_ADDRESS": ("connections_per_address", values.parse_count),
}


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


def load(environ: Mapping[str, str]) -> Config:
    """Read the whole configuration.

    :param environ: names and values, usually ``os.environ``. A secret ``NAME`` may come from the file that ``NAME_FILE`` names.
    :raise ConfigError: naming every setting that is missing or malformed.
    """
    read = _Reader(environ)
    openai_url = read.required("OPENAI_BASE_URL", values.parse_base_url)
    openai_key = read.secret("OPENAI_API_KEY")
    anthropic_url = read.required("ANTHROPIC_BASE_URL", values.parse_base_url)
    anthropic_key = read.secret("ANTHROPIC_API_KEY")
    token = read.secret("PROXY_TOKEN")
    version = read.optional("ANTHROPIC_VERSION", values.parse_word, None)
    port = read.optional("PORT", values.parse_port, DEFAULT_PORT)
    openai_ca = read.optional("OPENAI_CA_FILE", values.parse_ca_file, None)
    anthropic_ca = read.optional("ANTHROPIC_CA_FILE", values.parse_ca_file, None)
    https_proxy = read.customary("https_proxy", values.parse_proxy)
    no_proxy = read.customary("no_proxy", str)
    timeouts = read.all_of(Timeouts, _TIMEOUTS)
    downstream = read.all_of(DownstreamLimits, _DOWNSTREAM)
    upstream = read.all_of(UpstreamLimits, _UPSTREAM)
    if read.problems or openai_url is None or anthropic_url is None:
        raise ConfigError(read.problems)
    default_headers = () if version is None else ((b"anthropic-version", version.encode("ascii")),)
    return Config(
        upstreams=(
            Upstream("openai", openai_url, "Authorization", openai_key, ca_file=openai_ca),
            Upstream("anthropic", anthropic_url, "x-api-key", anthropic_key, default_headers, anthropic_ca),
        ),
        clients=(Client("default", token.encode("ascii")),),
        port=port,
        timeouts=timeouts,
        downstream=downstream,
        upstream=upstream,
        https_proxy=https_proxy,
        no_proxy=no_proxy or "",
    )


def load_port(environ: Mapping[str, str]) -> int:
    """Read only where to listen, for a proxy that needs no other setting.

    :raise ConfigError: where ``PORT`` is malformed.
    """
    read = _Reader(environ)
    port = read.optional("PORT", values.parse_port, DEFAULT_PORT)
    if read.problems:
        raise ConfigError(read.problems)
    return port


class _Reader:
    """Reads settings one by one and gathers what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def required(self, name: str, parse: Callable[[str], _T]) -> _T | None:
        """A setting without which nothing works; ``None`` only after a problem was noted."""
        if name not in self._environ:
            self.problems.append(f"{name} is not set.")
            return None
        return self._parsed(name, self._environ[name], parse, None)

    def optional(self, name: str, parse: Callable[[str], _T], default: _T) -> _T:
        """A setting that may be absent, but not empty."""
        return self._parsed(name, self._environ[name], parse, default) if name in self._environ else default

    def customary(self, name: str, parse: Callable[[str], _T]) -> _T | None:
        """A setting that other programs share: by custom in either case, lower case first, and none where it is empty."""
        for spelled in (name, name.upper()):
            if self._environ.get(spelled, "").strip():
                return self._parsed(spelled, self._environ[spelled], parse, None)
        return None

    def all_of(self, kind: Callable[..., _T], names: Mapping[str, tuple[str, Callable[[str], Any]]]) -> _T:
        """A group of settings: its own defaults, but for those that are set."""
        found = {field: self.optional(name, parse, None) for name, (field, parse) in names.items()}
        return kind(**{field: value for field, value in found.items() if value is not None})

    def secret(self, name: str) -> str:
        """A required secret, from ``name`` or from the file that ``name_FILE`` names; empty only after a problem."""
        from_file = f"{name}_FILE"
        if name in self._environ and from_file in self._environ:
            self.problems.append(f"{name} and {from_file} are both set; keep one.")
        elif from_file in self._environ:
            return self._parsed(from_file, self._environ[from_file], values.read_secret_file, "")
        elif name in self._environ:
            return self._parsed(name, self._environ[name], values.parse_word, "")
        else:
            self.problems.append(f"{name} is not set (nor is {from_file}).")
        return ""

    def _parsed(self, name: str, text: str, parse: Callable[[str], _T], default: _T) -> _T:
        if not text.strip():
            self.problems.append(f"{name} is empty.")
            return default
        try:
            return parse(text.strip())
        except ValueError as problem:
            self.problems.append(f"{name} {problem}")
            return default
