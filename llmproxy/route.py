"""What the exchanges of one configuration share: a route to each upstream, and all that is not about one upstream."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from llmproxy.config import Credential, Place, Upstream
from llmproxy.credentials import Credentials
from llmproxy.deadline import Clock
from llmproxy.exchange import Observer
from llmproxy.http.fields import Pair
from llmproxy.keyring import Key, Keyring
from llmproxy.transparent import TransparentClient

Presented = tuple[Pair | None, bytes | None]


@attrs.frozen
class Route:
    """The way to an upstream.

    :ivar client: sends requests there, over connections that are this upstream's alone.
    :ivar keyring: its keys, and which of them rest.
    """

    upstream: Upstream
    client: TransparentClient
    keyring: Keyring
    _presented: tuple[Presented, ...] = attrs.field(init=False, repr=False)

    @_presented.default
    def _(self) -> tuple[Presented, ...]:
        return tuple(_presented(self.upstream.credential, key.secret) for key in self.keyring.keys)

    def presented(self, key: Key | None) -> Presented:
        """What a request carries of a key: a header, or a parameter for its query, or neither."""
        return (None, None) if key is None else self._presented[key.number - 1]


def _presented(credential: Credential, secret: str) -> Presented:
    if credential.place is Place.HEADER:
        return credential.header(secret), None
    return None, credential.parameter(secret) if credential.place is Place.QUERY else None


@attrs.frozen
class Gateway:
    """What all routes share.

    :ivar clock: for the timeouts of exchanges; see :class:`~llmproxy.deadline.SharedClock`.
    :ivar observers: told of each exchange when it is over.
    :ivar max_resent_body: bytes of a request's body that are held so that it can be sent again with another key.
    """

    credentials: Credentials
    clock: Clock
    observers: Sequence[Observer] = ()
    max_resent_body: int = 1024 * 1024
