"""What operators and their machines ask the proxy about itself: ``/metrics``, ``/healthz`` and ``/readyz``.

``/healthz`` says that the process lives: where it does not, start it again. ``/readyz`` says that it may be sent requests:
where it may not, send them elsewhere for a while. Neither asks for a token, or an upstream. ``/metrics`` tells of clients and
of what they spend, so it is on a listener of its own only, which is on loopback unless an operator says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy import errors

# Why no requests should be sent for now, in a sentence; None where all is well.
Readiness = Callable[[], str | None]


class Page(Resource):
    """Answers GET and HEAD at one path, to the byte.

    :param path: of the request's target.
    """

    isLeaf = True

    def __init__(self, path: bytes) -> None:
        super().__init__()
        self._path = path

    def render(self, request: IRequest) -> int:
        """Answer any method, and also the paths below."""
        name = self._path.decode("ascii")
        if request.path != self._path:
            errors.answer(request, errors.NOT_FOUND, f"Nothing is here; there is {name}.")
        elif request.method not in (b"GET", b"HEAD"):
            errors.answer(request, errors.METHOD_NOT_ALLOWED, f"{name} answers GET and HEAD.")
        else:
            self.show(request)
        return NOT_DONE_YET

    def show(self, request: IRequest) -> None:
        """Answer a request that is as it should be."""
        raise NotImplementedError


class Health(Page):
    """``/healthz``: the process is up and serves."""

    def __init__(self) -> None:
        super().__init__(b"/healthz")

    def show(self, request: IRequest) -> None:
        """See :class:`Page`."""
        _answer(request, b"text/plain", b"ok")


class Ready(Page):
    """``/readyz``: the configuration is loaded, the listeners are up, and the proxy is not draining.

    :param why_not: asked for each request.
    """

    def __init__(self, why_not: Readiness) -> None:
        super().__init__(b"/readyz")
        self._why_not = why_not

    def show(self, request: IRequest) -> None:
        """See :class:`Page`."""
        reason = self._why_not()
        if reason is None:
            _answer(request, b"text/plain", b"ok")
        else:
            errors.answer(request, errors.SERVICE_UNAVAILABLE, reason)


class MetricsPage(Page):
    """``/metrics``, as OpenMetrics for those who accept it, and else as Prometheus' own text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(b"/metrics")
        self._registry = registry

    def show(self, request: IRequest) -> None:
        """See :class:`Page`."""
        accepted = b",".join(request.requestHeaders.getRawHeaders(b"accept", []))
        try:
            encode, content_type = choose_encoder(accepted.decode("latin-1"))
        except (TypeError, ValueError):  # it compares a version that is no number
            encode, content_type = choose_encoder("")
        _answer(request, content_type.encode("latin-1"), encode(self._registry))


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


class Root(Resource):
    """The root of the admin listener's tree."""

    def __init__(self, pages: dict[bytes, IResource]) -> None:
        super().__init__()
        for name, page in pages.items():
            self.putChild(name, page)

    def getChild(self, path: bytes, request: IRequest) -> IResource:
        """Find none: those that there are have been looked for before."""
        return Refusal(errors.NOT_FOUND, "Nothing is here; there are /metrics, /healthz and /readyz.")


def build(registry: CollectorRegistry, why_not: Readiness) -> Root:
    """Make the tree of the admin listener.

    :param registry: what ``/metrics`` shows; see :attr:`llmproxy.metrics.Metrics.registry`.
    :param why_not: what ``/readyz`` asks.
    """
    return Root({b"metrics": MetricsPage(registry), b"healthz": Health(), b"readyz": Ready(why_not)})


def _answer(request: IRequest, content_type: bytes, content: bytes) -> None:
    request.setHeader(b"Content-Type", content_type)
    request.setHeader(b"Content-Length", b"%d" % len(content))
    request.write(content)
    request.finish()
