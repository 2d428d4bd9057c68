"""What makes a message a request, beyond what llhttp checks. Pure.

llhttp is strict about syntax. These rules are about meaning: a message that breaks one could be understood differently by
another reader of the same bytes, and is refused (RFC 9112 section 11).
"""

from __future__ import annotations

import re
from typing import Any

from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy import errors
from llmproxy.http.fields import Fields

# The headers that tell where a body ends.
FRAMING = (b"content-length", b"transfer-encoding")
# RFC 9110 section 5.6.2: a method is a token. Empty lines before it are skipped (RFC 9112 section 2.2).
_METHOD = re.compile(rb"[\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64})( |\Z)")
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_COMMON_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT"})
# llhttp also takes HTTP/0.9 and HTTP/2.0, which are other protocols, for versions of this one.
_VERSIONS = frozenset({b"HTTP/1.0", b"HTTP/1.1"})
# RFC 9110 section 7.2: a host, which may be empty, and a port, as in RFC 3986 section 3.2.
_HOST = re.compile(rb"(?:\[[0-9A-Za-z._~!$&'()*+,;=:-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


class Refused(Exception):
    """A message that is not served."""

    def __init__(self, problem: errors.Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message


def known_method(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Put a method that llhttp knows in the place of one that it may not know.

    Methods are open to extension (RFC 9110 section 16.1), but llhttp takes only those on its list. None but CONNECT changes how
    a request is read, so the true one can be put back when the head is complete.

    :param data: the first bytes of a request.
    :return: the method that was replaced, or nothing; the bytes for llhttp; and the start of a method whose end has not come
        yet, to be put before what comes.
    """
    found = _METHOD.match(data)
    if found is None:
        return b"", data, b""
    method, space = found.groups()
    if not space:
        return b"", data[: found.start(1)], method
    if method in _COMMON_METHODS:
        return b"", data, b""
    return method, b"POST" + data[found.end(1) :], b""


def origin_form(target: bytes) -> bytes:
    """Bring a target in absolute-form, which a server must take (RFC 9112 section 3.2.2), to the form of all others.

    Which authority it names does not matter here, as a Host header does not: this server has one site.
    """
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def body_length(method: bytes, version: bytes, fields: Fields) -> Any:
    """Check a request's head, and tell what body follows.

    :return: its length in bytes, UNKNOWN_LENGTH where it is chunked, or ``None`` where there is none.
    :raise Refused: for what llhttp lets pass and RFC 9112 does not.
    """
    if method == b"CONNECT":
        raise Refused(errors.NOT_IMPLEMENTED, "CONNECT is not served: this is no forward proxy.")
    if version not in _VERSIONS:
        raise Refused(errors.BAD_REQUEST, "The only versions of HTTP that are taken here are 1.1 and 1.0.")
    hosts = fields.values_of(b"host")
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise Refused(errors.BAD_REQUEST, "A request must have one Host header.")  # section 3.2
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise Refused(errors.BAD_REQUEST, "The Host header is not a host and a port.")  # section 3.2
    codings = fields.values_of(b"transfer-encoding")
    if codings and version != b"HTTP/1.1":
        raise Refused(errors.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding.")  # section 6.1
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise Refused(
            errors.NOT_IMPLEMENTED, "The only transfer coding that is taken is chunked."
        )  # section 6.1
    if codings:
        return UNKNOWN_LENGTH
    lengths = fields.values_of(b"content-length")
    return int(lengths[0]) if lengths else None


def wants_websocket(method: bytes, fields: Fields) -> bool:
    """Tell whether a request is a WebSocket handshake (RFC 6455 section 4.1), the one upgrade that is passed on."""
    lengths = fields.values_of(b"content-length")
    bodiless = not fields.values_of(b"transfer-encoding") and not any(map(int, lengths))
    return (
        method == b"GET"
        and bodiless
        and any(b"websocket" in value.lower() for value in fields.values_of(b"upgrade"))
    )
