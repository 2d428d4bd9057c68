"""Where a request goes: the raw request target, split into prefix and rest, or refused.

Everything here works on the bytes that stood on the request line, and what is routed is exactly what is forwarded: a target
that two readers could understand differently (dot segments, backslashes, an encoded prefix) is refused, not repaired. So
nothing can be authorized or keyed as one upstream and reach another. What a prefix stands for is decided elsewhere.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

# RFC 3986 section 2: a request target has no fragment, and nothing outside visible ASCII. The characters of section 2's
# grammar are not enforced beyond that: clients do send `[`, `|` or `"` in queries, and upstreams accept them.
_FOREIGN = re.compile(rb"[^\x21-\x7e]|#")
_PREFIX = re.compile(rb"/([^/?]*)")
_SEGMENT_END = re.compile(rb"[;?#]")
_DECODINGS = 4  # more are no mistake of a client's, and would cost time
# Only a path that holds one of these can hide a dot segment; all others skip the slow look.
_SUSPICIOUS = re.compile(rb"[%\\]|/\.")


class RefusedTarget(ValueError):
    """A request target that is not forwarded; its text says why, in a sentence for the client."""


class Target(NamedTuple):
    """A request target: ``/prefix`` and all that follows it, as sent.

    :ivar prefix: the first path segment, without its slash.
    :ivar rest: the bytes after the prefix: empty, or starting with ``/`` or ``?``.
    """

    prefix: bytes
    rest: bytes


def split(raw: bytes) -> Target:
    """Split the target of a request line into its prefix and the rest, byte for byte.

    :param raw: the target in origin-form (RFC 9112 section 3.2.1), for example ``b"/openai/v1/models?limit=1"``.
    :raise RefusedTarget: where the target is in another form or could be understood in two ways.
    """
    prefix = _PREFIX.match(raw)
    if prefix is None:
        raise RefusedTarget("The request target must be a path that starts with '/'.")
    if _FOREIGN.search(raw):
        raise RefusedTarget(
            "The request target holds a '#' or a byte outside visible ASCII; percent-encode it."
        )
    if b"%" in prefix[1]:
        raise RefusedTarget("The first path segment must be spelled without percent-encoding.")
    path = raw.partition(b"?")[0]
    if _SUSPICIOUS.search(path):
        _refuse_ambiguous(path)
    return Target(prefix[1], raw[prefix.end() :])


def seal(raw: bytes, local_token: bytes, parameter: bytes | None) -> bytes:
    """Make the target of a request to an upstream: without the local token, and with the key where the query carries that.

    :param raw: what stands behind the prefix; all but those two stays as it is, byte for byte.
    :param local_token: no parameter whose value it is goes further.
    :param parameter: the key as ``name=value``, percent-encoded; one of the client's own of that name goes.
    """
    path, mark, query = raw.partition(b"?")
    if not mark and parameter is None:
        return raw
    name = None if parameter is None else parameter.partition(b"=")[0]
    kept = [
        pair
        for pair in query.split(b"&")
        if unquote_to_bytes(pair.partition(b"=")[2]) != local_token
        and unquote_to_bytes(pair.partition(b"=")[0]) != name
    ]
    if parameter is not None:
        kept = [parameter] if kept == [b""] else [*kept, parameter]
    elif not kept:
        return path
    return path + b"?" + b"&".join(kept)


def _refuse_ambiguous(path: bytes) -> None:
    """Refuse what some server would read as another path (RFC 3986 section 5.2.4, and beyond it what servers really do)."""
    decoded = _decode_fully(path)
    if b"\\" in decoded:
        raise RefusedTarget("The path holds a backslash, plain or percent-encoded.")
    for segment in decoded.split(b"/"):
        # Servers that know path parameters drop `;x` before they resolve dots, so `..;x` climbs too; one that decodes before it
        # parses sees a query or fragment in `..%3Fx` or `..%23x`.
        if _SEGMENT_END.split(segment, maxsplit=1)[0] in (b".", b".."):
            raise RefusedTarget("The path holds a dot segment ('.' or '..'), plain or percent-encoded.")


def _decode_fully(path: bytes) -> bytes:
    """Percent-decode until nothing changes, so that ``%252e`` is seen for what a server that decodes twice makes of it."""
    for _ in range(_DECODINGS):
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return path
        path = decoded
    raise RefusedTarget("The path is percent-encoded several times over.")
