"""The two seams, as far as they go beyond Twisted's own ``IRequest`` and ``IResponse``.

Twisted's interfaces are made for applications. A proxy needs a little more on each side: the request's body as a producer, a
way to drop a response that nobody waits for any more, and what HTTP/1.1 can say besides headers and a body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IRequest, IResponse
from zope.interface import Attribute, Interface


class IWholeBody(Interface):
    """A body of which all may be here already."""

    length: Any = Attribute("In bytes, or UNKNOWN_LENGTH where it is chunked.")
    trailers: Headers | None = Attribute("Fields that followed a chunked body; known when the body is over.")

    def whole() -> bytes | None:
        """All of the body, where it is here already; it is not for ``startProducing`` then, which costs much more."""


class IStreamedBody(IBodyProducer, IWholeBody):
    """The body of a client's request."""

    received: int = Attribute("Bytes that came from the client.")

    def watch(look: Callable[[bytes], None]) -> None:
        """Let somebody look at each part as it comes, and at those that came already; to be called before it is read."""


class IStreamedRequest(IRequest):
    """A request that is rendered at the end of its headers, and whose body follows as a stream."""

    body: IStreamedBody | None = Attribute(
        """The body; None where the client sends none at all, which differs from an empty one. Its trailers go through
        `seal_trailers` where that is set."""
    )
    websocket: bool = Attribute(
        "This is a WebSocket handshake (RFC 6455 section 4.1), the one upgrade that is passed on."
    )
    responseTrailers: Headers | None = Attribute(
        "Fields to send after a chunked response (RFC 9110 section 6.5); to be set before `finish`."
    )

    def switchProtocols(protocol: IProtocol) -> None:
        """Send the response's headers, which say 101, and hand the connection over (RFC 9110 section 15.2.2).

        The protocol gets the transport, and whatever the client sent ahead of the answer.
        """

    def writeInformational(code: int, phrase: bytes, headers: Headers) -> None:
        """Send an interim response, such as 103 Early Hints, before the response itself (RFC 9110 section 15.2)."""


class IDoor(Interface):
    """A factory that counts connections from the moment that they are accepted, before they are up."""

    limits: Any = Attribute("The DownstreamLimits; a TLS handshake has the time of a request's head.")
    crowded: bool = Attribute("No more should be accepted, or no descriptors would be left for upstreams.")

    def expect(host: str) -> bool:
        """Keep a place for a connection from a host; false where it is to be refused."""

    def expect_no_more(host: str) -> None:
        """Give the place back: the connection is up, or will not be."""


class IAbortableResponse(IResponse):
    """A response of which all headers are told, and which can be given up.

    ``headers`` holds every header that the upstream sent, ``Content-Length`` and ``Connection`` included. A pause that the body
    protocol asks for, even from ``connectionMade``, holds until it resumes.
    """

    trailers: Headers | None = Attribute("Fields that followed a chunked body; known when the body is over.")
    reused: bool = Attribute("The connection had carried another exchange before.")
    whole: bool = Attribute("All of the body came with the headers: nobody needs to set its pace.")

    def switchProtocols(protocol: IProtocol) -> None:
        """Hand the connection of a response with status 101 over, with whatever the upstream sent behind its headers."""

    def abort() -> None:
        """Close the connection at once, in this reactor turn, and read nothing more of the body.

        A body protocol may still be told of the loss. Does nothing where the response is over.
        """
