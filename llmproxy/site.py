"""The Resource tree, built from a Config: ``/healthz``, ``/readyz``, and a prefix for each upstream.

The tree is walked by the raw bytes of the request target, and a target that could be understood in two ways is refused before
any resource sees it. So what is authorized, what is routed and what is forwarded are the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy import errors
from llmproxy.admin import Health, Readiness, Ready, Refusal
from llmproxy.cors import Cors
from llmproxy.proxy import ProxyResource
from llmproxy.route import Gateway, Route
from llmproxy.target import RefusedTarget, split


class Root(Resource):
    """The root of the tree: one child for each prefix, and an answer for every target that names none."""

    def __init__(self, children: dict[str, IResource], cors: Cors | None = None) -> None:
        super().__init__()
        self._cors = cors
        for name, child in children.items():
            self.putChild(name.encode("ascii"), child)
        known = ", ".join(f"/{name}/" for name in children if name not in ("healthz", "readyz"))
        self._not_found = Refusal(errors.NOT_FOUND, f"Nothing is here; the upstreams are at {known}.")

    def getChildWithDefault(self, path: bytes, request: IRequest) -> IResource:
        """Find the resource of a request by its raw target; ``path`` may have been decoded, and is not looked at."""
        if request.method == b"OPTIONS" and request.uri == b"*":
            return Refusal(errors.NOT_FOUND, "The server as a whole has no options; ask for a path.")
        if self._cors is not None and self._cors.preflight(request.method, request.requestHeaders):
            return Preflight()
        try:
            target = split(request.uri)
        except RefusedTarget as refused:
            return Refusal(errors.BAD_REQUEST, str(refused))
        child: IResource = self.children.get(target.prefix, self._not_found)
        return child


class Preflight(Resource):
    """Answers a browser that asks whether a page may send a request; what it may is in the headers, see :func:`mark`."""

    isLeaf = True

    def render(self, request: IRequest) -> int:
        """Answer, without a token: a preflight carries none."""
        request.setResponseCode(204)
        request.finish()
        return NOT_DONE_YET


def mark(cors: Cors, request: IRequest) -> None:
    """Put into a response what the page that asked may know of it."""
    preflight = cors.preflight(request.method, request.requestHeaders)
    if preflight is None:
        cors.mark(request.requestHeaders, request.responseHeaders)
        return
    for name, value in preflight:
        request.responseHeaders.addRawHeader(name, value)


def build(
    gateway: Gateway, routes: Iterable[Route], cors: Cors | None = None, why_not: Readiness = lambda: None
) -> Root:
    """Make the tree over some routes.

    :param cors: the rule for cross-origin requests, where any are allowed.
    :param why_not: what ``/readyz`` asks.
    """
    upstreams: dict[str, IResource] = {route.upstream.name: ProxyResource(gateway, route) for route in routes}
    return Root({**upstreams, "healthz": Health(), "readyz": Ready(why_not)}, cors)
