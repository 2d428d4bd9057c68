"""Answering one request to a demo API: identify it, check the key, answer with JSON, a stream or an error.

The paths, the key, the answers and the wording of errors are left to an `Api`, one for each provider.
"""

from __future__ import annotations

import abc
import uuid
from typing import TypeAlias

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy.demo.fields import BadField, BadJson, Json, parse
from llmproxy.demo.sse import Pacer, Request, encode

Answer: TypeAlias = Json | list[bytes]
"""A JSON body, or the events of a stream."""


@attrs.define
class ApiError(Exception):
    """An answer other than 200: its `status`, and what the provider's error object holds."""

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None


@attrs.frozen
class Call:
    """One request.

    `path`: what follows the API's prefix, split and decoded; `token`: a random name for this call, from which
    the ids in the answer are made; `now`: the clock's time in whole seconds.
    """

    method: str
    path: tuple[str, ...]
    headers: Headers = attrs.field(repr=False)
    content: bytes = attrs.field(repr=False)
    token: str
    now: int

    def body(self) -> Json:
        """Return the body, a JSON object; `BadJson` when it is none."""
        return parse(self.content)


class Api(abc.ABC):
    """What one provider answers. No I/O: it is asked, and returns or raises."""

    request_id_header: str

    @abc.abstractmethod
    def authorize(self, headers: Headers) -> None:
        """Raise the provider's 401 unless `headers` carry its key."""

    @abc.abstractmethod
    def answer(self, call: Call) -> Answer:
        """Answer `call`, or raise `ApiError`, `BadJson` or `BadField`."""

    @abc.abstractmethod
    def explain(self, problem: BadJson | BadField) -> ApiError:
        """Word a `problem` with the request body as the provider does."""

    @abc.abstractmethod
    def error_body(self, error: ApiError, request_id: str) -> Json:
        """Return the provider's JSON for `error`."""


class ApiResource(Resource):
    """Serves an `Api`, with streams that send an event every `interval` seconds of `clock`."""

    isLeaf = True

    def __init__(self, api: Api, clock: IReactorTime, interval: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._api = api
        self._clock = clock
        self._interval = interval

    def render(self, request: Request) -> bytes | int:
        """Answer `request`, whatever its method."""
        call = Call(
            method=request.method.decode("ascii", "replace"),
            path=tuple(name.decode("utf-8", "replace") for name in request.postpath),
            headers=request.requestHeaders,
            content=request.content.read(),
            token=uuid.uuid4().hex,
            now=int(self._clock.seconds()),
        )
        request_id = f"req_{call.token}"
        request.setHeader(self._api.request_id_header, request_id)
        try:
            answer = self._answer(call)
        except ApiError as error:
            request.setResponseCode(error.status)
            answer = self._api.error_body(error, request_id)
        if isinstance(answer, dict):
            request.setHeader("content-type", "application/json")
            return encode(answer)
        request.setHeader("content-type", "text/event-stream; charset=utf-8")
        request.setHeader("cache-control", "no-cache")
        Pacer(request, answer, self._clock, self._interval).start()
        return NOT_DONE_YET

    def _answer(self, call: Call) -> Answer:
        self._api.authorize(call.headers)
        try:
            return self._api.answer(call)
        except (BadJson, BadField) as problem:
            raise self._api.explain(problem) from None
