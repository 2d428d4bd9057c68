"""The configuration from the environment: the one place that knows the names of environment variables.

:func:`load` takes a mapping and reads all of it before it complains, so that one message names everything that is missing or
malformed. No error shows a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from llmproxy import values
from llmproxy.config.model import DEFAULT_PORT, Client, Config, ConfigError, Timeouts, Upstream
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits

_T = TypeVar("_T")

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
