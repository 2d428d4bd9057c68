"""The two seams, as far as they go beyond Twisted's own ``IRequest`` and ``IResponse``.

Twisted's interfaces are made for applications; a proxy needs one thing more on each side: the request's body as a producer,
and a way to drop a response that nobody waits for any more.
"""

from __future__ import annotations

from twisted.web.iweb import IBodyProducer, IRequest, IResponse
from zope.interface import Attribute


class IStreamedRequest(IRequest):
    """A request whose body can be handed on as it is."""

    body: IBodyProducer | None = Attribute(
        "The body as an IBodyProducer, its length in bytes or UNKNOWN_LENGTH where the client sent it chunked; None where the "
        "client sent no body at all, which differs from an empty one."
    )


class IAbortableResponse(IResponse):
    """A response of which all headers are told, and which can be given up.

    ``headers`` holds every header that the upstream sent, ``Content-Length`` and ``Connection`` included.
    """

    def abort() -> None:
        """Close the connection at once, in this reactor turn, and read nothing more of the body.

        A body protocol may still be told of the loss. Does nothing where the response is over.
        """
