"""Cross-origin requests of browser applications, by the Fetch standard (https://fetch.spec.whatwg.org/#http-cors-protocol).

A page may call this proxy from the origins that the operator lists. Its preflights carry no token, and it can read no answer
that does not allow its origin, an error neither. Where no origin is listed, callers keep no :class:`Cors`, and nothing of this
happens. Pure: no reactor, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from twisted.web.http_headers import Headers

from llmproxy.http.fields import Pair

ANY = "*"

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_MAX_AGE = b"7200"  # seconds, the longest that Chromium keeps the answer to a preflight
# RFC 9110 section 5.6.1: what can be echoed is a list of field names.
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]{1,4096}")
# All that a server says of this. An upstream's own words are about its own origin, and two Access-Control-Allow-Origin headers
# are none to a browser.
_OURS = (
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-allow-private-network",
    b"access-control-expose-headers",
    b"access-control-max-age",
)


class Cors:
    """The rule for all requests.

    No answer ever has ``Access-Control-Allow-Credentials``: a token is a header that the page sets itself, not a credential in
    the standard's sense (cookies, and what a browser asks its user for), and this proxy knows no such.

    :param origins: as browsers write them (``https://app.example``, without a path), or ``*`` for all.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        # RFC 6454 section 6.2: a browser's are in lower case.
        listed = frozenset(origin.lower().encode("ascii") for origin in origins)
        self._any = ANY.encode("ascii") in listed
        self._origins = listed

    def __repr__(self) -> str:
        return f"<Cors {sorted(origin.decode('ascii') for origin in self._origins)}>"

    def preflight(self, method: bytes, headers: Headers) -> list[Pair] | None:
        """The headers of the answer to a preflight, whose status is 204, or ``None`` for any other request.

        So an ``OPTIONS`` request from elsewhere is treated as if nobody had heard of preflights.

        :param headers: of the request.
        """
        wanted = headers.getRawHeaders(b"access-control-request-method")
        allowed = self._allowed(headers)
        if method != b"OPTIONS" or not wanted or allowed is None:
            return None
        answer = [
            (b"Access-Control-Allow-Origin", allowed),
            (b"Access-Control-Allow-Methods", _METHODS),
            (b"Access-Control-Max-Age", _MAX_AGE),
            (b"Vary", b"Origin, Access-Control-Request-Headers"),
        ]
        asked = b", ".join(headers.getRawHeaders(b"access-control-request-headers", ()))
        # As asked, since `*` would not cover Authorization.
        if _NAMES.fullmatch(asked):
            answer.append((b"Access-Control-Allow-Headers", asked))
        # A page of the public internet that calls into a private network asks first (https://wicg.github.io/private-network-access).
        if headers.getRawHeaders(b"access-control-request-private-network") == [b"true"]:
            answer.append((b"Access-Control-Allow-Private-Network", b"true"))
        return answer

    def mark(self, request: Headers, response: Headers) -> None:
        """Put into a response's headers what the page may know, in the place of what its upstream said.

        Every answer must come by here, also to requests without an origin: a cache may give it to a page later.
        """
        for name in _OURS:
            if response.hasHeader(name):
                response.removeHeader(name)
        if not self._any:
            response.addRawHeader(b"Vary", b"Origin")
        # `*` also where no origin was read: caches are not told that the answer would differ, and of a message that is refused
        # not all headers may be known.
        allowed = b"*" if self._any else self._allowed(request)
        if allowed is not None:
            response.addRawHeader(b"Access-Control-Allow-Origin", allowed)
            # Everything: request ids, retry-after, and rate limits, whose names no list would be complete for. `*` says so
            # for requests without credentials, and others get no answer anyway.
            response.addRawHeader(b"Access-Control-Expose-Headers", b"*")

    def _allowed(self, headers: Headers) -> bytes | None:
        """The origin to which an answer is opened, as it says so; ``None`` where the request came from another, or none."""
        origins = headers.getRawHeaders(b"origin", ())
        if len(origins) != 1:
            return None
        if self._any:
            return b"*"
        return origins[0] if origins[0] in self._origins else None
