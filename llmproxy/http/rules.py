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
# RFC 9110 section 5.6.2: a method is a token.
_METHOD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ")
_COMMON_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT"})


class Refused(Exception):
    """A message that is not served."""

    def __init__(self, problem: errors.Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message


def known_method(data: bytes) -> tuple[bytes, bytes]:
    """Put a method that llhttp knows in the place of one that it may not know.

    Methods are open to extension (RFC 9110 section 16.1), but llhttp takes only those on its list. None but CONNECT changes how
    a request is read, so the true one can be put back when the head is complete.

    :param data: the first bytes of a request.
    :return: the method that was replaced, or nothing; and the bytes for llhttp.
    """
    method = _METHOD.match(data)
    if method is None or method[1] in _COMMON_METHODS:
        return b"", data
    return method[1], b"POST" + data[method.end(1) :]


def body_length(method: bytes, version: bytes, fields: Fields) -> Any:
    """Check a request's head, and tell what body follows.

    :return: its length in bytes, UNKNOWN_LENGTH where it is chunked, or ``None`` where there is none.
    :raise Refused: for what llhttp lets pass and RFC 9112 does not.
    """
    if method == b"CONNECT":
        raise Refused(errors.NOT_IMPLEMENTED, "CONNECT is not served: this is no forward proxy.")
    hosts = fields.values_of(b"host")
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise Refused(errors.BAD_REQUEST, "A request must have one Host header.")  # section 3.2
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
    bodiless = not any(fields.values_of(name) for name in FRAMING)
    return (
        method == b"GET"
        and bodiless
        and any(b"websocket" in value.lower() for value in fields.values_of(b"upgrade"))
    )
