"""The Resource tree, built from a Config: ``/healthz``, and a prefix for each upstream.

The tree is walked by the raw bytes of the request target, and a target that could be understood in two ways is refused before
any resource sees it. So what is authorized, what is routed and what is forwarded are the same bytes.
"""

from __future__ import annotations

from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy import errors
from llmproxy.config import Config
from llmproxy.proxy import Gateway, ProxyResource
from llmproxy.target import RefusedTarget, split


class Root(Resource):
    """The root of the tree: one child for each prefix, and an answer for every target that names none."""

    def __init__(self, children: dict[str, IResource]) -> None:
        super().__init__()
        for name, child in children.items():
            self.putChild(name.encode("ascii"), child)
        known = ", ".join(f"/{name}/" for name in children if name != "healthz")
        self._not_found = Refusal(errors.NOT_FOUND, f"Nothing is here; the upstreams are at {known}.")

    def getChildWithDefault(self, path: bytes, request: IRequest) -> IResource:
        """Find the resource of a request by its raw target; ``path`` may have been decoded, and is not looked at."""
        if request.method == b"OPTIONS" and request.uri == b"*":
            return Refusal(errors.NOT_FOUND, "The server as a whole has no options; ask for a path.")
        try:
            target = split(request.uri)
        except RefusedTarget as refused:
            return Refusal(errors.BAD_REQUEST, str(refused))
        child: IResource = self.children.get(target.prefix, self._not_found)
        return child


class Refusal(Resource):
    """Answers every request with one problem."""

    isLeaf = True

    def __init__(self, problem: errors.Problem, message: str) -> None:
        super().__init__()
        self._problem = problem
        self._message = message

    def render(self, request: IRequest) -> int:
        """Answer any method."""
        errors.answer(request, self._problem, self._message)
        return NOT_DONE_YET


class Health(Resource):
    """``/healthz``: the process is up and serves. It asks no token, and no upstream."""

    isLeaf = True

    def render(self, request: IRequest) -> int:
        """Answer GET and HEAD."""
        if request.path != b"/healthz":
            errors.answer(request, errors.NOT_FOUND, "Nothing is here; the health check is at /healthz.")
        elif request.method not in (b"GET", b"HEAD"):
            errors.answer(request, errors.METHOD_NOT_ALLOWED, "The health check answers GET and HEAD.")
        else:
            request.setHeader(b"Content-Type", b"text/plain")
            request.setHeader(b"Content-Length", b"2")
            request.write(b"ok")
            request.finish()
        return NOT_DONE_YET


def build(config: Config, gateway: Gateway) -> Root:
    """Make the tree that a Config describes."""
    upstreams: dict[str, IResource] = {
        upstream.name: ProxyResource(gateway, upstream) for upstream in config.upstreams
    }
    return Root({**upstreams, "healthz": Health()})
