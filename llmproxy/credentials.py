"""Who is asking: the local token that a request carries, matched to a client.

Tokens are compared as SHA-256 digests, each of the same length, by :func:`hmac.compare_digest`: how long a refusal takes
tells neither how much of a guess was right nor how long the token is. What a client may do is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

import attrs
from twisted.web.http_headers import Headers

from llmproxy.config import Client

# RFC 6750 section 2.1; the scheme is matched in any case (RFC 9110 section 11.1).
_BEARER = re.compile(rb"bearer +(\S+)", re.IGNORECASE)
# Browsers can set no header on a WebSocket; OpenAI takes the credential as one of the protocols that are offered.
# https://platform.openai.com/docs/guides/realtime-websocket
_BROWSER_TOKEN = b"openai-insecure-api-key."


@attrs.frozen
class Caller:
    """An authorized request's sender.

    :ivar client: whose token it was.
    :ivar token: the token as presented, so that it can be kept from going further.
    """

    client: Client
    token: bytes = attrs.field(repr=False)


class Credentials:
    """The local tokens, as digests.

    :param clients: who may use this proxy.
    """

    def __init__(self, clients: Iterable[Client]) -> None:
        self._digests = [(client, sha256(client.token).digest()) for client in clients]

    def authorize(self, headers: Headers) -> Caller | None:
        """Find the client of a request from ``Authorization: Bearer``, ``x-api-key`` and, for browsers, a WebSocket protocol.

        Clients send the token in either, some in both, some twice. Every one that is there must be the same valid token: one
        good credential beside a bad one is refused, since nobody can say which of the two the sender meant.

        :return: the caller, or ``None`` where no valid token was sent.
        """
        presented = {
            match[1] if (match := _BEARER.fullmatch(value.strip())) else b""
            for value in headers.getRawHeaders(b"authorization", ())
        }
        presented.update(value.strip() for value in headers.getRawHeaders(b"x-api-key", ()))
        presented.update(
            item.strip()[len(_BROWSER_TOKEN) :]
            for value in headers.getRawHeaders(b"sec-websocket-protocol", ())
            for item in value.split(b",")
            if item.strip().startswith(_BROWSER_TOKEN)
        )
        if len(presented) != 1:
            return None
        token = presented.pop()
        digest = sha256(token).digest()
        found = None
        for (
            client,
            expected,
        ) in self._digests:  # to the end always: where the match stands takes no different time
            if compare_digest(digest, expected):
                found = client
        return None if found is None else Caller(found, token)
