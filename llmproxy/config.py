"""What the operator set: a frozen Config, read from the environment.

:func:`load` takes a mapping and reads all of it before it complains, so that one message names everything that is missing or
malformed. No secret is shown: not by ``repr``, and not by an error about it. This is the one place that knows the names of
environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import attrs

DEFAULT_PORT = 33000
_T = TypeVar("_T")

# What can stand in a header value as one word: a token or key with anything else in it was pasted wrongly.
_WORD = re.compile(r"[\x21-\x7e]+")
# RFC 3986 section 3.2.2, for names; address literals are left to ipaddress.
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_URL_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")
_SHORT_TOKEN = 16  # characters


class ConfigError(ValueError):
    """A configuration that cannot be used.

    :ivar problems: one sentence for each setting that is missing or malformed; the text of the error holds them all.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("The configuration cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))


@attrs.frozen
class BaseURL:
    """Where an upstream's API begins.

    :ivar scheme: ``http`` or ``https``.
    :ivar host: a name or an address, IPv6 without brackets.
    :ivar path: the path that is put before every request's, without a slash at its end; often empty.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def netloc(self) -> bytes:
        """The value of the ``Host`` header (RFC 9110 section 7.2): the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}[self.scheme]
        return (host if self.port == default else f"{host}:{self.port}").encode("ascii")

    def join(self, rest: bytes) -> bytes:
        """Put a request's path and query behind this URL, byte for byte.

        This joins, it does not *resolve* (RFC 3986 section 5): resolving ``//evil.example/x`` would leave the host.
        """
        return b"%b://%b%b%b" % (self.scheme.encode("ascii"), self.netloc, self.path.encode("ascii"), rest)

    def __str__(self) -> str:
        return self.join(b"").decode("ascii")


@attrs.frozen
class Upstream:
    """A provider's API, and how this proxy answers for its clients there.

    :ivar name: the prefix under which clients find it, without slashes.
    :ivar key_header: the header that carries the key: ``Authorization`` (as a bearer token) or ``x-api-key``.
    :ivar default_headers: names and values that are added where a client sent none of that name.
    """

    name: str
    base_url: BaseURL
    key_header: str
    key: str = attrs.field(repr=False)
    default_headers: tuple[tuple[bytes, bytes], ...] = ()

    def credential_header(self) -> tuple[bytes, list[bytes]]:
        """The name and values of the header that carries the key."""
        value = f"Bearer {self.key}" if self.key_header == "Authorization" else self.key
        return self.key_header.encode("ascii"), [value.encode("ascii")]


@attrs.frozen
class Client:
    """A holder of a local token."""

    name: str
    token: bytes = attrs.field(repr=False)


@attrs.frozen
class Timeouts:
    """How long a silent upstream is waited for, in seconds.

    :ivar connect: until the connection, TLS included, is up.
    :ivar first_byte: from sending a request until the response's headers.
    :ivar idle: between two chunks of a response's body.
    """

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 600.0


@attrs.frozen
class Config:
    """Everything that the operator can set."""

    upstreams: tuple[Upstream, ...]
    clients: tuple[Client, ...]
    port: int = DEFAULT_PORT
    timeouts: Timeouts = Timeouts()

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
            if url.scheme == "http" and not _is_loopback(url.host):
                found.append(f"The key for {upstream.name} goes to {url.host} unencrypted: its base URL is not https.")
        return found


def load(environ: Mapping[str, str]) -> Config:
    """Read the whole configuration.

    :param environ: names and values, usually ``os.environ``. A secret ``NAME`` may come from the file that ``NAME_FILE`` names.
    :raise ConfigError: naming every setting that is missing or malformed.
    """
    read = _Reader(environ)
    openai_url = read.required("OPENAI_BASE_URL", parse_base_url)
    openai_key = read.secret("OPENAI_API_KEY")
    anthropic_url = read.required("ANTHROPIC_BASE_URL", parse_base_url)
    anthropic_key = read.secret("ANTHROPIC_API_KEY")
    token = read.secret("PROXY_TOKEN")
    version = read.optional("ANTHROPIC_VERSION", _parse_word, None)
    port = read.optional("PORT", parse_port, DEFAULT_PORT)
    defaults = Timeouts()
    timeouts = Timeouts(
        connect=read.optional("UPSTREAM_CONNECT_TIMEOUT", _parse_seconds, defaults.connect),
        first_byte=read.optional("UPSTREAM_FIRST_BYTE_TIMEOUT", _parse_seconds, defaults.first_byte),
        idle=read.optional("UPSTREAM_IDLE_TIMEOUT", _parse_seconds, defaults.idle),
    )
    if read.problems or openai_url is None or anthropic_url is None:
        raise ConfigError(read.problems)
    default_headers = () if version is None else ((b"anthropic-version", version.encode("ascii")),)
    return Config(
        upstreams=(
            Upstream("openai", openai_url, "Authorization", openai_key),
            Upstream("anthropic", anthropic_url, "x-api-key", anthropic_key, default_headers),
        ),
        clients=(Client("default", token.encode("ascii")),),
        port=port,
        timeouts=timeouts,
    )


def load_port(environ: Mapping[str, str]) -> int:
    """Read only where to listen, for a proxy that needs no other setting.

    :raise ConfigError: where ``PORT`` is malformed.
    """
    read = _Reader(environ)
    port = read.optional("PORT", parse_port, DEFAULT_PORT)
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

    def secret(self, name: str) -> str:
        """A required secret, from ``name`` or from the file that ``name_FILE`` names; empty only after a problem."""
        from_file = f"{name}_FILE"
        if name in self._environ and from_file in self._environ:
            self.problems.append(f"{name} and {from_file} are both set; keep one.")
        elif from_file in self._environ:
            return self._parsed(from_file, self._environ[from_file], _read_secret_file, "")
        elif name in self._environ:
            return self._parsed(name, self._environ[name], _parse_word, "")
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


def parse_port(text: str) -> int:
    """Read a TCP port number.

    :raise ValueError: with a text to go behind the setting's name.
    """
    # isdecimal alone lets other scripts' digits through, and int() signs, spaces and underscores.
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"is not a port number: {text!r}.")
    if not 1 <= int(text) <= 65535:
        raise ValueError(f"is out of range: {text} (a port is 1 to 65535).")
    return int(text)


def parse_base_url(text: str) -> BaseURL:
    """Read the URL at which an upstream's API begins, for example ``https://api.openai.com``.

    :raise ValueError: with a text to go behind the setting's name. It shows nothing of the URL before its host: what stands
        there may be a password.
    """
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("is not a URL that can be read; check its host and port.") from None
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError("must begin with https:// or http:// and a host.")
    if "@" in url.netloc:
        raise ValueError("must not hold a user name or password; the key has a setting of its own.")
    if "?" in text or "#" in text:
        raise ValueError("must not hold a query or fragment.")
    host = url.hostname or ""
    if not (_is_address(host) if ":" in host or "[" in url.netloc else _HOST_NAME.fullmatch(host)):
        raise ValueError(f"has a host that is no host name or address: {host!r} (write other scripts in punycode).")
    if port == 0:
        raise ValueError("is out of range: a port is 1 to 65535.")
    path = url.path.rstrip("/")
    if not _URL_PATH.fullmatch(path):
        raise ValueError("has a path with characters that must be percent-encoded.")
    return BaseURL(url.scheme, host, port or {"http": 80, "https": 443}[url.scheme], path)


def _parse_word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("holds a space, a line break or a character outside ASCII; it must be one word.")
    return text


def _read_secret_file(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"names a file that is not text: {path}.") from None
    except OSError as error:
        raise ValueError(f"names a file that cannot be read: {path} ({error.strerror}).") from None
    if not text:
        raise ValueError(f"names an empty file: {path}.")
    return _parse_word(text)


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"is not a number of seconds: {text!r}.") from None
    if not 0 < seconds <= 86400:  # NaN fails this too
        raise ValueError(f"is out of range: {text} (more than 0, and at most 86400 seconds).")
    return seconds


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
