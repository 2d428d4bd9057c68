"""What a client sends, read as requests: what the parser's callbacks work on.

llhttp reads, strictly. This module puts together what it finds, holds it to the limits of a head, and helps it over two things:
methods that are not on its list, and offers of another protocol, behind which it takes all that follows for that one. Who
serves the requests, and how long a client may be silent, is for :mod:`llmproxy.http.channel`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

import httptools
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy import errors
from llmproxy.http import rules
from llmproxy.http.fields import Fields, Pair
from llmproxy.http.limits import DownstreamLimits
from llmproxy.http.rules import Refused

if TYPE_CHECKING:
    from llmproxy.http.request import Request

_log = Logger()

# Makes a request of its method, target, version and fields, the length of its body (see rules.body_length), and whether its
# client wants the connection to stay open.
Begin = Callable[[bytes, bytes, bytes, Fields, Any, bool], "Request"]

# Methods that llhttp knows, and with which nearly all requests begin: those need not be looked at.
_USUAL = (b"POST ", b"GET ", b"OPTIONS ", b"HEAD ", b"DELETE ", b"PUT ", b"PATCH ")


class Reading(Enum):
    """What the next bytes of the client belong to."""

    HEAD = "a request's head"
    BODY = "a request's body"
    UPGRADE = "a protocol that the upstream has not agreed to yet"
    TUNNEL = "a tunnel"
    NOTHING = "nothing: what comes is dropped"


# They are looked at some ten times for each request, and the Enum takes as long as a call to find one.
HEAD, BODY, UPGRADE, TUNNEL, NOTHING = Reading


class RequestReader:
    """Reads the requests of one connection.

    :param begin: called with each head that is complete and good; the body of the request that it makes is fed from then on.
    :ivar reading: what it is at.
    :ivar head_size: bytes of the head that has begun, 0 where none has; within a body, of what is not body.
    :ivar incoming: the request whose body is being read.
    :ivar early: what came behind a WebSocket handshake that is not answered yet.
    """

    __slots__ = (
        "_begin",
        "_begun",
        "_behind",
        "_limits",
        "_method",
        "_method_start",
        "_pairs",
        "_parser",
        "_reframing",
        "_target",
        "early",
        "head_size",
        "incoming",
        "reading",
    )

    def __init__(self, begin: Begin, limits: DownstreamLimits) -> None:
        self._begin = begin
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._begun = False
        self._behind = False
        self._method = b""
        self._method_start = b""
        self._target = b""
        self._pairs: list[Pair] = []
        self._reframing = False
        self.reading = HEAD
        self.head_size = 0
        self.incoming: Request | None = None
        self.early = b""

    @property
    def fields(self) -> Fields:
        """The fields of the head that is being read, as far as they have come."""
        return Fields(self._pairs)

    def feed(self, data: bytes) -> bool:
        """Parse what came.

        :return: whether a head has begun in it whose end it does not hold.
        :raise Refused: where it is not exactly HTTP/1.1, or larger than it may be.
        """
        resting = self.head_size == 0
        self.head_size += len(data)
        if not self._begun:
            self._behind = False
            if self._method_start or not data.startswith(_USUAL):
                self._method, data, self._method_start = rules.known_method(self._method_start + data)
        while True:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                raise _refused(error) from None
            # Not within the handler: what is raised there would have that exception, not a refusal, as its context.
            if self._waits_for_upgrade():
                self.early = data
                return False
        self._check_target()
        if self.head_size > self._limits.headers:
            what = "headers" if self.reading is HEAD else "trailers or chunk extensions"
            raise Refused(
                errors.HEADERS_TOO_LARGE, f"The {what} are larger than {self._limits.headers} bytes."
            )
        if self.reading is not HEAD:
            return False
        if self._begun and self.head_size == 0:
            self.head_size = 1  # it began behind a whole request, and its size is not known
            return True
        return resting and self.head_size > 0

    def _check_target(self) -> None:
        if len(self._target) > self._limits.target:
            raise Refused(
                errors.TARGET_TOO_LONG, f"The request target is longer than {self._limits.target} bytes."
            )

    def take_early(self, reading: Reading) -> bytes:
        """Go on behind a handshake that was answered; returns what came behind it."""
        self.reading = reading
        early, self.early = self.early, b""
        return early

    def stop(self, reason: Exception) -> Request | None:
        """Take nothing more of what the client sends.

        :param reason: what the body that was being read fails with.
        :return: the request that has this body.
        """
        self.reading = NOTHING
        incoming, self.incoming = self.incoming, None
        if incoming is not None:
            incoming.keep_alive = False
            if incoming.body is not None:
                incoming.body.fail(reason)
        return incoming

    def close(self) -> None:
        """The connection is lost: let go of what refers back to this."""
        self.reading = NOTHING
        self.incoming = None
        del self._parser, self._begin

    # What the parser calls

    def on_message_begin(self) -> None:
        self._begun = True

    def on_url(self, part: bytes) -> None:
        # One that is too long is refused behind what came with it: which page may read the refusal stands in the head.
        if len(self._target) <= self._limits.target:
            self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        # Optional whitespace is not part of a value (RFC 9110 section 5.5); llhttp takes off only what stands before it.
        self._pairs.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._reframing:
            self._pairs, self._target = [], b""
            return
        limits = self._limits
        self._check_target()
        fields = Fields(self._pairs)
        # Of a head behind another message, in the same bytes, the size is not known.
        if (self.head_size > limits.headers or self._behind) and sum(
            len(n) + len(v) + 4 for n, v in fields.pairs
        ) > limits.headers:
            raise Refused(errors.HEADERS_TOO_LARGE, f"The headers are larger than {limits.headers} bytes.")
        method = self._method or self._parser.get_method()
        version = b"HTTP/" + self._parser.get_http_version().encode("ascii")
        length = rules.body_length(method, version, fields)
        self.incoming = self._begin(
            method, rules.origin_form(self._target), version, fields, length, self._parser.should_keep_alive()
        )
        self._method = self._target = b""
        self._pairs = []
        self.head_size = 0
        self.reading = BODY

    def on_body(self, data: bytes) -> None:
        self.head_size = 0  # what is counted now is what is not body: chunk extensions and trailers
        if self.incoming is not None and self.incoming.body is not None:
            self.incoming.body.feed(data)

    def on_message_complete(self) -> None:
        self._begun = False
        self._behind = True
        self.head_size = 0
        if self._parser.should_upgrade():
            return  # llhttp sees no body behind an offer to upgrade; see _waits_for_upgrade
        request, self.incoming = self.incoming, None
        if request is not None and request.body is not None:
            trailers, self._pairs = self._pairs, []
            request.body.end(Fields(trailers) if trailers else None)
        self.reading = HEAD

    # What llhttp takes for an upgrade

    def _waits_for_upgrade(self) -> bool:
        """Tell whether what follows a request that offered another protocol waits for the upstream's answer.

        It does behind a WebSocket handshake. Any other offer is declined by going on with HTTP/1.1 (RFC 9110 section 7.8); that
        request may have a body. llhttp has found its framing good, so that is given to a new parser as a head of its own, which
        can read what follows.
        """
        request = cast("Request", self.incoming)  # llhttp tells of an upgrade behind a complete head
        # HTTP/1.0 knows no upgrade (RFC 9110 section 7.8).
        if request.clientproto == b"HTTP/1.1" and rules.wants_websocket(
            request.method, request.requestHeaders
        ):
            request.websocket = True
            if request.body is not None:
                request.body.end(None)  # "Content-Length: 0"
            self.reading = UPGRADE
            self.incoming = None
            return True
        request.requestHeaders.removeHeader(b"upgrade")  # so that nobody above takes the offer up
        self._parser = httptools.HttpRequestParser(self)
        self._reframing = True
        framing = [pair for pair in request.requestHeaders.pairs if pair[0].lower() in rules.FRAMING]
        self._parser.feed_data(
            b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in framing) + b"\r\n"
        )
        self._reframing = False
        return False


def _refused(error: httptools.HttpParserError) -> Refused:
    """Why the parser stopped: what a callback raised, or its own finding."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Refused(errors.NOT_IMPLEMENTED, "The request method is none that is known here.")
    if not isinstance(error, httptools.HttpParserCallbackError):
        return Refused(errors.BAD_REQUEST, f"Not HTTP/1.1: {error}.")
    cause = error.__context__ or error
    if isinstance(cause, Refused):
        return cause
    _log.failure("What a client sent could not be handled", Failure(cause))
    return Refused(errors.INTERNAL_ERROR, errors.SEE_LOG)
