"""Who is asking: the local token that a request carries, matched to a client.

Tokens are known by their SHA-256 digests only, and looked up by them in a dict: as fast with a thousand clients as with one.
How long that takes could at most tell how the digest of a guess resembles one that is kept, and that is of no use: a guess that
is nearer to a token is no nearer to its digest, and a digest does not lead back to a token. What a client may do is decided
elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from urllib.parse import unquote_to_bytes

import attrs
from twisted.web.http_headers import Headers

from llmproxy.config import Client, Credential, Place, token_digest
from llmproxy.http.fields import fields_of

# RFC 6750 section 2.1; the scheme is matched in any case (RFC 9110 section 11.1).
_BEARER = re.compile(rb"bearer +(\S+)", re.IGNORECASE)
# Browsers can set no header on a WebSocket; OpenAI takes the credential as one of the protocols that are offered.
# https://platform.openai.com/docs/guides/realtime-websocket
_BROWSER_TOKEN = b"openai-insecure-api-key."
# Google's APIs take a key in either of two places, and their clients use both.
# https://cloud.google.com/docs/authentication/api-keys-use
_GOOGLE = (b"x-goog-api-key", b"key")
# Where the token is looked for whatever the upstream.
_SHARED = ((b"authorization", None), (b"x-api-key", None))


@attrs.frozen
class Caller:
    """An authorized request's sender.

    :ivar client: whose token it was.
    :ivar token: the token as presented, so that it can be kept from going further.
    """

    client: Client
    token: bytes = attrs.field(repr=False)


class Credentials:
    """The local tokens, by their digests.

    :param clients: who may use this proxy.
    :param now: tells the Unix time in seconds, against which a client's ``expires`` is held.
    """

    def __init__(self, clients: Iterable[Client], now: Callable[[], float]) -> None:
        self._clients = {digest: client for client in clients for digest in client.digests}
        self._now = now

    def authorize(
        self, headers: Headers, credential: Credential | None = None, query: bytes = b""
    ) -> Caller | None:
        """Find the client of a request by its token.

        That is looked for in ``Authorization: Bearer``, in ``x-api-key``, for browsers in a WebSocket protocol, and where the
        upstream itself wants its key. Clients send it in any of them, some in several, some twice. Every one that is there must
        be the same valid token: one good credential beside a bad one is refused, since nobody can say which of the two the
        sender meant.

        :param credential: how the upstream that is asked wants its key, which is where its own clients put the token.
        :param query: of the request target, as sent, without its question mark.
        :return: the caller, or ``None`` where no valid token was sent, or one that has expired.
        """
        fields = fields_of(headers).by_name()
        presented = set[bytes]()
        for value in fields.get(b"authorization", ()):
            bearer = _BEARER.fullmatch(value.strip())
            presented.add(b"" if bearer is None else bearer[1])
        for value in fields.get(b"x-api-key", ()):
            presented.add(value.strip())
        for value in fields.get(b"sec-websocket-protocol", ()):
            presented.update(_browser_tokens(value))
        if credential is not None:
            header, parameter = _own_places(credential)
            if header is not None:
                presented.update(value.strip() for value in fields.get(header, ()))
            if parameter is not None and query:
                presented.update(_values_of(parameter, query))
        if len(presented) != 1:
            return None
        token = presented.pop()
        client = self._clients.get(token_digest(token))
        if client is None or (client.expires is not None and self._now() >= client.expires.timestamp()):
            return None
        return Caller(client, token)


def _browser_tokens(protocols: bytes) -> Iterator[bytes]:
    for protocol in protocols.split(b","):
        name = protocol.strip()
        if name.startswith(_BROWSER_TOKEN):
            yield name[len(_BROWSER_TOKEN) :]


def has_own_place(credential: Credential) -> bool:
    """Tell whether an upstream wants its key where the token would not be looked for otherwise."""
    return _own_places(credential) != (None, None)


@cache
def _own_places(credential: Credential) -> tuple[bytes | None, bytes | None]:
    """The header and the query parameter in which an upstream's clients send their key, beside those that all may use."""
    name = credential.name.encode("ascii")
    found = {Place.HEADER: (name.lower(), None), Place.QUERY: (None, name), Place.NONE: (None, None)}[
        credential.place
    ]
    if found in _SHARED:
        return None, None
    return _GOOGLE if found[0] == _GOOGLE[0] or found[1] == _GOOGLE[1] else found


def _values_of(parameter: bytes, query: bytes) -> Iterator[bytes]:
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if unquote_to_bytes(name) == parameter:
            yield unquote_to_bytes(value)
