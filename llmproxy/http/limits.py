"""How much a peer may ask of a connection: sizes in bytes, times in seconds."""

from __future__ import annotations

import attrs


@attrs.frozen
class DownstreamLimits:
    """What a client may do.

    :ivar target: bytes of a request target.
    :ivar headers: bytes of a request's head or of its trailers.
    :ivar header_time: seconds from a request's first byte to the end of its head.
    :ivar keep_alive: seconds that a connection may be idle between requests.
    :ivar body_idle: seconds that a client may be silent within a request's body while it is read.
    :ivar linger: seconds for which the rest of a refused upload is read and dropped, so that the refusal arrives; they begin
        again while the client has not taken all of it.
    :ivar close_time: seconds that a client may take to read the rest of its last response, or for which it may take
        nothing of one.
    :ivar connections: open at the same time.
    :ivar connections_per_address: open at the same time from one IP address.
    """

    target: int = 16 * 1024
    headers: int = 64 * 1024
    header_time: float = 30.0
    keep_alive: float = 75.0
    body_idle: float = 60.0
    linger: float = 2.0
    close_time: float = 600.0
    connections: int = 10_000
    connections_per_address: int = 10_000


@attrs.frozen
class UpstreamLimits:
    """How upstreams are used.

    :ivar connect: seconds until a connection, its TLS handshake included, is up.
    :ivar headers: bytes of a response's head or of its trailers.
    :ivar idle: seconds for which an idle connection is kept. Some upstreams drop theirs after 5.
    :ivar idle_connections: kept for each upstream.
    :ivar connections: open at the same time to each upstream; further requests wait in order.
    :ivar held_body: bytes of a request's body that are kept so that it can be sent again on a fresh connection.
    :ivar expect: seconds to wait for ``100 Continue`` before a body is sent all the same.
    """

    connect: float = 10.0
    headers: int = 256 * 1024
    idle: float = 4.0
    idle_connections: int = 256
    connections: int = 4096
    held_body: int = 64 * 1024
    expect: float = 1.0
