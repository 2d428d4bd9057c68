"""ProxyResource: everything under one upstream's prefix.

It says who may ask; what becomes of a request that is let in is told in :mod:`llmproxy.forwarding`. Which requests get here is
decided by :mod:`llmproxy.site`.
"""

from __future__ import annotations

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy import errors, rights
from llmproxy.config import Client
from llmproxy.credentials import has_own_place
from llmproxy.exchange import Ending, Exchange
from llmproxy.forwarding import Forwarding
from llmproxy.http.interfaces import IStreamedRequest
from llmproxy.route import Gateway, Route


class ProxyResource(Resource):
    """Authorizes requests to an upstream, and forwards them.

    It goes by the raw target of the request line, which must be known to be free of tricks: see
    :class:`llmproxy.site.Root`.
    """

    isLeaf = True

    def __init__(self, gateway: Gateway, route: Route) -> None:
        super().__init__()
        self._gateway = gateway
        self._route = route
        self._upstream = route.upstream
        # Nearly all want their key where tokens are looked for anyway.
        self._credential = route.upstream.credential if has_own_place(route.upstream.credential) else None
        self._prefix = b"/" + route.upstream.name.encode("ascii")

    def render(self, request: IStreamedRequest) -> int:
        """Refuse the request or forward it; any method will do."""
        target = request.uri[len(self._prefix) :]
        query = target.partition(b"?")[2]
        caller = self._gateway.credentials.authorize(request.requestHeaders, self._credential, query)
        exchange = self._gateway.begin(self._upstream, request, caller)
        if not target.startswith(b"/"):
            message = f"Nothing is here; the API begins at /{self._upstream.name}/."
            self._refuse(exchange, request, errors.NOT_FOUND, message)
        elif caller is None:
            self._refuse(exchange, request, errors.UNAUTHORIZED)
        elif rights.depend_on_place(caller.client) and (
            missing := self._missing_right(caller.client, request)
        ):
            self._refuse(exchange, request, errors.FORBIDDEN, missing)
        else:
            Forwarding(self._gateway, self._route, request, caller, target, exchange).start()
        return NOT_DONE_YET

    def _refuse(
        self,
        exchange: Exchange,
        request: IStreamedRequest,
        problem: errors.Problem,
        message: str | None = None,
    ) -> None:
        exchange.status = problem.status
        self._gateway.tell(exchange, request)
        errors.answer(request, problem, message)
        self._gateway.end(exchange, request, Ending.REFUSED)

    def _missing_right(self, client: Client, request: IStreamedRequest) -> str | None:
        return rights.missing_for_upstream(client, self._upstream.name) or rights.missing_for_network(
            client, getattr(request.getClientAddress(), "host", None)
        )
