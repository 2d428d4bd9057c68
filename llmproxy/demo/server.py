"""The demo upstream put together: both providers in one resource tree, and the site that serves it."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request
from twisted.web.iweb import IRequest
from twisted.web.pages import notFound
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site

from llmproxy.demo.anthropic import Anthropic
from llmproxy.demo.api import ApiResource
from llmproxy.demo.openai import OpenAI

INTERVAL = 0.03
"""Seconds between two events of a stream: about 30 tokens a second, the pace of a real model."""


def upstream(clock: IReactorTime, interval: float = INTERVAL) -> Resource:
    """Return the root resource: OpenAI below ``/openai/v1``, Anthropic below ``/anthropic/v1``.

    `clock` dates the answers and paces the streams, `interval` seconds from one event to the next.
    """
    root = _Root()  # type: ignore[no-untyped-call, unused-ignore]
    root.putChild(b"openai", ApiResource(OpenAI(), clock, interval))
    root.putChild(b"anthropic", ApiResource(Anthropic(), clock, interval))
    return root


def site(clock: IReactorTime, interval: float = INTERVAL) -> Site:
    """Return a site that serves `upstream(clock, interval)`, without an access log: the proxy keeps one."""
    root = upstream(clock, interval)
    return _QuietSite(  # type: ignore[no-untyped-call, unused-ignore]
        root, parsePOSTFormSubmission=False, reactor=clock
    )


class _Root(Resource):
    def getChild(self, path: bytes, request: IRequest) -> IResource:
        # The default one warns of its own deprecation.
        return notFound()


class _QuietSite(Site):
    noisy = False

    def log(self, request: Request) -> None:
        pass
