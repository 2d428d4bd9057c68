"""Single values as people write them: a port, a URL, a number of seconds, a secret in a file.

Each reader takes the text of one setting and raises ``ValueError`` with a text that goes behind the setting's name. None shows
a secret.
"""

from __future__ import annotations

import re
import ssl
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import attrs
from twisted.internet.endpoints import serverFromString

# What can stand in a header value as one word: a token or key with anything else in it was pasted wrongly.
_WORD = re.compile(r"[\x21-\x7e]+")
# RFC 3986 section 3.2.2, for names; address literals are left to ipaddress.
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_URL_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")
_DAY = 86400  # seconds


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

    @cached_property
    def netloc(self) -> bytes:
        """The value of the ``Host`` header (RFC 9110 section 7.2): the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}[self.scheme]
        return (host if self.port == default else f"{host}:{self.port}").encode("ascii")

    def join(self, rest: bytes) -> bytes:
        """Put a request's path and query behind this URL, byte for byte.

        This joins, it does not *resolve* (RFC 3986 section 5): resolving ``//evil.example/x`` would leave the host.
        """
        return self._prefix + rest

    @cached_property
    def _prefix(self) -> bytes:
        return b"%b://%b%b" % (self.scheme.encode("ascii"), self.netloc, self.path.encode("ascii"))

    def __str__(self) -> str:
        return self._prefix.decode("ascii")


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


def parse_listener(text: str) -> str:
    """Read where to listen: a port, for all interfaces, or a Twisted endpoint description, which is what is returned."""
    if ":" not in text:
        return f"tcp:{parse_port(text)}"
    try:
        serverFromString(None, text)  # parses, and reads the certificates of ssl:, without binding
    except Exception as error:
        raise ValueError(f"is not an endpoint that can be used: {text} ({error}).") from None
    return text


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
        raise ValueError(
            f"has a host that is no host name or address: {host!r} (write other scripts in punycode)."
        )
    if port == 0:
        raise ValueError("is out of range: a port is 1 to 65535.")
    path = url.path.rstrip("/")
    if not _URL_PATH.fullmatch(path):
        raise ValueError("has a path with characters that must be percent-encoded.")
    return BaseURL(url.scheme, host, port or {"http": 80, "https": 443}[url.scheme], path)


def parse_word(text: str) -> str:
    """Read a token, a key or anything else that stands in a header as one word."""
    if not _WORD.fullmatch(text):
        raise ValueError("holds a space, a line break or a character outside ASCII; it must be one word.")
    return text


def read_secret_file(path: str) -> str:
    """Read a secret from the file that holds it, with or without a line break at its end."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("names a file that is not text.") from None
    except OSError as error:
        # Not by its name: what stands here may be a secret that was meant for the variable without _FILE.
        raise ValueError(f"names a file that cannot be read ({error.strerror}).") from None
    if not text:
        raise ValueError("names an empty file.")
    return parse_word(text)


def parse_seconds(text: str) -> float:
    """Read a time in seconds: more than none, at most a day."""
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"is not a number of seconds: {text!r}.") from None
    if not 0 < seconds <= _DAY:  # NaN fails this too
        raise ValueError(f"is out of range: {text} (more than 0, and at most {_DAY} seconds).")
    return seconds


def parse_count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 2**31):
        raise ValueError(f"is not a whole number of at least 1: {text!r}.")
    return int(text)


def parse_ca_file(text: str) -> str:
    """Read the name of a file of PEM certificates to trust."""
    try:
        ssl.create_default_context(cafile=text)
    except ssl.SSLError:
        raise ValueError(f"names a file that holds no PEM certificates: {text}.") from None
    except OSError as error:
        raise ValueError(f"names a file that cannot be read: {text} ({error.strerror}).") from None
    return text


def parse_proxy(text: str) -> SplitResult:
    """Read the URL of an HTTP proxy; it may hold a user name and a password, and no error shows them."""
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        usable = url.scheme == "http" and url.hostname and (url.port or 80)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is not the URL of an HTTP proxy, such as http://proxy.example:3128.")
    return url


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
