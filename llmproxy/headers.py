"""Which headers pass, in both directions: the one place that knows their names.

All pass as they came (value, number, order of repetition) but for three kinds: hop-by-hop headers, message framing, which the
HTTP engine beneath writes for each connection anew, and credentials, which are swapped. Pure: no reactor, no I/O.
"""

from __future__ import annotations

import re

from twisted.web.http_headers import Headers

from llmproxy.config import Upstream

# RFC 9110 section 7.6.1 and, for the Proxy-* three, sections 11.7 and 7.6.1's note on RFC 2068. Trailer announces fields of the
# chunked coding, which is decoded here and encoded anew.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Where clients carry the local token, and where upstreams want the key: none of a client's goes further.
_CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
# A body producer's length tells the framing of a request (twisted.web.iweb.IBodyProducer), and Host names the upstream.
_REWRITTEN = frozenset({b"host", b"content-length"})


def strip_hop_by_hop(headers: Headers) -> Headers:
    """Copy the end-to-end headers of a message, without hop-by-hop headers and those that ``Connection`` names."""
    return _without(headers, _HOP_BY_HOP | _named_in_connection(headers))


def seal(headers: Headers, upstream: Upstream, local_token: bytes) -> Headers:
    """Make the headers of a request to an upstream from those of the client's request.

    :param headers: as the client sent them.
    :param local_token: the token that the client presented. A header value that holds it as a word of its own, under whatever
        name, is left out: it opens this proxy, and no upstream may learn it.
    """
    sealed = _without(headers, _HOP_BY_HOP | _CREDENTIALS | _REWRITTEN | _named_in_connection(headers))
    _forget(sealed, local_token)
    for name, value in upstream.default_headers:
        if not sealed.hasHeader(name):
            sealed.setRawHeaders(name, [value])
    sealed.setRawHeaders(b"Host", [upstream.base_url.netloc])
    sealed.setRawHeaders(*upstream.credential_header())
    return sealed


def wants_websocket(headers: Headers) -> bool:
    """Tell whether a request is a WebSocket handshake (RFC 6455 section 4.1) rather than another offer to upgrade."""
    return b"upgrade" in _named_in_connection(headers) and any(
        b"websocket" in value.lower() for value in headers.getRawHeaders(b"upgrade", ())
    )


def _named_in_connection(headers: Headers) -> frozenset[bytes]:
    values = headers.getRawHeaders(b"connection")
    if values is None:
        return frozenset()
    return frozenset(name.strip().lower() for value in values for name in value.split(b","))


def _without(headers: Headers, names: frozenset[bytes]) -> Headers:
    kept = Headers()
    for name, values in headers.getAllRawHeaders():
        if name.lower() not in names:
            kept.setRawHeaders(name, values)
    return kept


def _forget(headers: Headers, token: bytes) -> None:
    """Take out the header values that hold a token, as a word: a short token must not take out innocent ones."""
    word = re.compile(rb"(?<![A-Za-z0-9_-])" + re.escape(token) + rb"(?![A-Za-z0-9_-])")
    for name, values in list(headers.getAllRawHeaders()):
        if any(token in value for value in values):  # a plain search first: nearly always, there is nothing to find
            kept = [value for value in values if not word.search(value)]
            if kept:
                headers.setRawHeaders(name, kept)
            else:
                headers.removeHeader(name)
