"""Which headers pass, in both directions: the one place that knows their names.

All pass as they came (value, number, order of repetition) but for three kinds: hop-by-hop headers, message framing, which the
HTTP engine beneath writes for each connection anew, and credentials, which are swapped. Pure: no reactor, no I/O.
"""

from __future__ import annotations

import re

from twisted.web.http_headers import Headers

from llmproxy.config import Upstream
from llmproxy.http.fields import Fields, Pair, fields_of

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
_NOT_FOR_UPSTREAMS = _HOP_BY_HOP | _CREDENTIALS | _REWRITTEN
# What nearly all messages have in Connection; neither names a field to take out that is not taken out anyway.
_USUAL_IN_CONNECTION = frozenset({b"keep-alive", b"close"})


def strip_hop_by_hop(headers: Headers) -> Fields:
    """Copy the end-to-end headers of a message, without hop-by-hop headers and those that ``Connection`` names."""
    return _without(headers, _HOP_BY_HOP)


def seal(
    headers: Headers, upstream: Upstream, key: Pair | None, local_token: bytes, websocket: bool = False
) -> Fields:
    """Make the headers of a request to an upstream from those of the client's request.

    :param headers: as the client sent them.
    :param key: the header that carries the upstream's key, if one does.
    :param local_token: the token that the client presented. A header value that holds it as a word of its own, under whatever
        name, is left out: it opens this proxy, and no upstream may learn it.
    :param websocket: the request is a WebSocket handshake.
    """
    kept = _without(headers, _NOT_FOR_UPSTREAMS)
    sealed = Fields(
        [
            (b"Host", upstream.base_url.netloc),
            *_without_word(kept.pairs, local_token),
            *(() if key is None else (key,)),
        ]
    )
    for name, value in upstream.default_headers:
        if not kept.hasHeader(name):
            sealed.addRawHeader(name, value)
    if websocket:
        offer_websocket(sealed)
    return sealed


def seal_trailers(trailers: Fields, local_token: bytes) -> Fields:
    """Make the trailers of a request to an upstream: without credentials, framing and routing (RFC 9110 section 6.5.1)."""
    return Fields(_without_word(_without(trailers, _NOT_FOR_UPSTREAMS).pairs, local_token))


def offer_websocket(headers: Fields) -> None:
    """Add the two hop-by-hop headers that a WebSocket handshake and its answer need on every hop (RFC 6455 section 4)."""
    headers.addRawHeader(b"Connection", b"Upgrade")
    headers.addRawHeader(b"Upgrade", b"websocket")


def _without(headers: Headers, names: frozenset[bytes]) -> Fields:
    """The fields of a message but for some, and those that its ``Connection`` names (RFC 9110 section 7.6.1)."""
    fields = fields_of(headers)
    for value in fields.values_of(b"connection"):
        if value.lower() not in _USUAL_IN_CONNECTION:
            names |= {name.strip().lower() for name in value.split(b",")}
    return fields.without(names)


def _without_word(fields: list[Pair], token: bytes) -> list[Pair]:
    """The fields whose values do not hold a token as a word: a short token must not take out innocent ones."""
    # A plain search first: nearly always, nothing is found.
    if not [True for _, value in fields if token in value]:
        return fields
    word = re.compile(rb"(?<![A-Za-z0-9_-])" + re.escape(token) + rb"(?![A-Za-z0-9_-])")
    pairs = []
    for name, value in fields:
        if not word.search(value):
            pairs.append((name, value))
        elif name.lower() == b"sec-websocket-protocol":
            # A browser can put its token nowhere else. The other protocols stay: the server must choose one of them.
            offered = [item.strip() for item in value.split(b",")]
            others = [item for item in offered if not word.search(item)]
            if others:
                pairs.append((name, b", ".join(others)))
    return pairs
