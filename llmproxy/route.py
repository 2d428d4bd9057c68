"""What the exchanges of one configuration share: a route to each upstream, and all that is not about one upstream."""

from __future__ import annotations

import attrs
from twisted.logger import Logger

from llmproxy.config import Credential, Place, Upstream
from llmproxy.credentials import Caller, Credentials
from llmproxy.deadline import Clock
from llmproxy.exchange import Ending, Exchange, Observer
from llmproxy.http.fields import Pair
from llmproxy.http.interfaces import IStreamedRequest
from llmproxy.http.limits import DownstreamLimits
from llmproxy.keyring import Key, Keyring
from llmproxy.observation import SESSION_HEADERS, labels_of
from llmproxy.transparent import TransparentClient

_log = Logger()

_ID_HEADER = b"x-llmproxy-request-id"

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
    :ivar observer: told of each exchange when it is over.
    :ivar open: the exchanges that are not over, by their ids.
    :ivar max_resent_body: bytes of a request's body that are held so that it can be sent again with another key.
    :ivar close_time: seconds for which a client, or a side of a tunnel, may take nothing of what it was sent.
    :ivar tell_id: tell clients the id of each exchange.
    :ivar session_headers: those, in lower case, whose values are recorded.
    """

    credentials: Credentials
    clock: Clock
    observer: Observer | None = None
    open: dict[str, Exchange] = attrs.Factory(dict)
    max_resent_body: int = 1024 * 1024
    close_time: float = DownstreamLimits().close_time
    tell_id: bool = True
    session_headers: tuple[bytes, ...] = SESSION_HEADERS
    _any_session_header: frozenset[bytes] = attrs.field(init=False, repr=False)

    @_any_session_header.default
    def _(self) -> frozenset[bytes]:
        return frozenset(self.session_headers)

    def begin(self, upstream: Upstream, request: IStreamedRequest, caller: Caller | None) -> Exchange:
        """Begin the record of an exchange."""
        exchange = Exchange(
            client=None if caller is None else caller.client.name,
            upstream=upstream.name,
            method=request.method.decode("ascii"),
            path=request.path.decode("ascii"),
            started=self.clock.seconds(),
        )
        if self.observer is not None and not request.requestHeaders.has_none_of(self._any_session_header):
            exchange.labels = labels_of(request.requestHeaders, self.session_headers)
        self.open[exchange.id] = exchange
        return exchange

    def tell(self, exchange: Exchange, request: IStreamedRequest) -> None:
        """Put the id of an exchange into the headers of its response, in the place of that of an upstream llmproxy."""
        if self.tell_id:
            headers = request.responseHeaders
            if headers.values_of(_ID_HEADER):
                headers.removeHeader(_ID_HEADER)
            headers.addRawHeader(_ID_HEADER, exchange.id.encode("ascii"))

    def end(self, exchange: Exchange, request: IStreamedRequest, ending: Ending) -> None:
        """The exchange is over."""
        del self.open[exchange.id]
        exchange.ending = ending
        exchange.duration = self.clock.seconds() - exchange.started
        if request.body is not None:
            exchange.received = request.body.received
        if self.observer is None:
            return
        try:
            self.observer(exchange)
        except Exception:
            _log.failure("The observer of exchanges failed")
