"""treq, made transparent: what a proxy must hand it so that it changes nothing.

treq is a client for applications. Left to itself it follows redirects, keeps one cookie jar for all callers, normalizes URLs,
upper-cases methods, asks for gzip, decodes it, and adds an empty ``Content-Encoding`` to responses that had none. Four
things undo that, and nothing else in this package knows of them:

* :class:`_NoCookies` neither stores nor sends: a jar that is shared would send one caller's cookies for another;
* :class:`_Sealed` are headers that treq cannot edit, with the method and the URL;
* :class:`_AnyURL` is a URL as far as treq looks;
* :class:`_Veil` hides the response's headers from treq's content decoder; the real ones are behind it.
"""

from __future__ import annotations

from http.cookiejar import Cookie
from typing import Any, AnyStr

import attrs
from hyperlink import EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.components import proxyForInterface
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from llmproxy.http.fields import Fields, Informational, OutgoingFields
from llmproxy.http.interfaces import IAbortableResponse


class TransparentClient:
    """Sends requests through treq exactly as they are given, and hands back responses exactly as they came.

    :param agent: what carries them; its responses provide :class:`~llmproxy.http.interfaces.IAbortableResponse`.
    :param reactor: handed to treq, which would otherwise import the global one.
    """

    def __init__(self, agent: IAgent, reactor: IReactorTime) -> None:
        self._reactor: Any = reactor  # treq takes it for more than it uses
        self._cookies = _NoCookies()
        self._treq = HTTPClient(
            _UnveilingAgent(agent), self._cookies, data_to_body_producer=lambda body: body
        )

    def request(
        self,
        method: bytes,
        url: bytes,
        headers: Fields,
        body: Any,
        informational: Informational | None = None,
    ) -> Deferred[IAbortableResponse]:
        """Send one request.

        :param url: the absolute URL; the bytes from its path on are the request target.
        :param body: an ``IBodyProducer``, or ``None``.
        :param informational: called with status, reason phrase and fields of each interim response.
        :return: fires with the response as soon as its headers are there, or fails as the agent does. Cancelling it drops the
            request.
        """
        sealed = _Sealed(method, url, OutgoingFields(headers.pairs, informational))
        answered: Deferred[Any] = self._treq.request(
            "GET",  # the sealed one counts: treq would upper-case it (RFC 9110 section 9.1: methods are case-sensitive)
            _ANY_URL,
            headers=sealed,
            data=body,
            cookies=self._cookies,  # a jar is taken as it is; without one, treq makes one for each request
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )
        return answered.addCallback(_unveiled)


class _NoCookies(IndexableCookieJar):
    """A cookie jar that holds nothing: cookies are between the client and the upstream."""

    def set_cookie(self, cookie: Cookie) -> None:
        """Forget it."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Look at nothing."""

    def add_cookie_header(self, request: object) -> None:
        """Add nothing."""


class _AnyURL(EncodedURL):
    """Stands for every URL, so that treq neither parses nor normalizes the real one.

    ``HTTPClient.request`` takes an ``EncodedURL`` as it is and asks it for no more than ``to_uri().to_text()``.
    """

    def __init__(self) -> None:  # not calling super: no part of it is ever read
        pass

    def to_uri(self) -> _AnyURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return "http://sealed/"


_ANY_URL = _AnyURL()


def _unveiled(response: Any) -> IAbortableResponse:
    unveiled: IAbortableResponse = response.original.unveiled
    return unveiled


class _NoHeaders(Headers):
    """Headers of which there are none, whatever treq's layers do to them."""

    __slots__ = ()

    def hasHeader(self, name: AnyStr) -> bool:
        return False

    def getRawHeaders(self, name: Any, default: Any = None) -> Any:
        return default

    def setRawHeaders(self, name: Any, values: Any) -> None:
        pass

    def addRawHeader(self, name: Any, value: Any) -> None:
        pass

    def removeHeader(self, name: AnyStr) -> None:
        pass


class _Sealed(_NoHeaders):
    """Headers that go out as they are, with the method and URL they belong to."""

    __slots__ = ("headers", "method", "url")

    def __init__(self, method: bytes, url: bytes, headers: Headers) -> None:
        self.method = method
        self.url = url
        self.headers = headers

    def hasHeader(self, name: AnyStr) -> bool:
        """All are here that are to go out, ``Cookie`` too: so treq looks for none."""
        return True

    def copy(self) -> _Sealed:
        """What treq's layers edit, to no effect: it still knows what was sealed."""
        return self


class _Veil(proxyForInterface(IResponse, "unveiled")):  # type: ignore[misc]
    """A response without headers, so that treq finds nothing to decode and nothing to store."""

    unveiled: IAbortableResponse
    headers = _NoHeaders()


@implementer(IAgent)
@attrs.frozen
class _UnveilingAgent:
    """The innermost of treq's layers: sends what was sealed, and veils what comes back."""

    _agent: IAgent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        sealed: Any = headers
        answered: Deferred[Any] = self._agent.request(sealed.method, sealed.url, sealed.headers, bodyProducer)
        return answered.addCallback(_Veil)
