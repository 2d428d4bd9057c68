"""What an upstream sends, read as responses: what the parser's callbacks work on.

llhttp reads. A response is complete when the parser says so, or, where its body has no other end, when the upstream closes the
connection (RFC 9112 section 6.3); it is never complete by default. Who is told of it, and whether the connection carries
another request, is for :mod:`llmproxy.http.connection`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.http.fields import Fields, Informational, Pair
from llmproxy.http.response import MalformedResponse, Response, body_length

if TYPE_CHECKING:
    from llmproxy.http.connection import UpstreamConnection

_log = Logger()


class ResponseReader:
    """Reads the responses on one connection, each after a call of :meth:`expect`.

    :param limit: bytes of a head, or of trailers.
    :ivar response: whose headers are there; ``None`` again when it is given up, or over.
    :ivar chunks: what came of its body and was not passed on yet.
    :ivar complete: nothing more belongs to it.
    :ivar reusable: another may follow it.
    """

    __slots__ = (
        "_connection",
        "_head_size",
        "_informational",
        "_limit",
        "_method",
        "_offers_upgrade",
        "_pairs",
        "_parser",
        "_phrase",
        "_switching",
        "chunks",
        "complete",
        "response",
        "reusable",
    )

    def __init__(self, connection: UpstreamConnection, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._parser = httptools.HttpResponseParser(self)
        self._method = b""
        self._offers_upgrade = False
        self._informational: Informational | None = None
        self._switching: Response | None = None
        self._pairs: list[Pair] = []
        self._phrase = b""
        self._head_size = 0
        self.response: Response | None = None
        self.chunks: list[bytes] = []
        self.complete = False
        self.reusable = False

    def expect(self, method: bytes, offers_upgrade: bool, informational: Informational | None) -> None:
        """Read the response to a request that is about to be sent.

        :param offers_upgrade: whether the upstream may go on with another protocol.
        :param informational: told of interim responses.
        """
        if self._method == b"HEAD":
            # The old one waits for the body that HEAD has not.
            self._parser = httptools.HttpResponseParser(self)
        self._method = method
        self._offers_upgrade = offers_upgrade
        self._informational = informational
        self._pairs, self._phrase, self._head_size = [], b"", 0
        self.complete = False

    def feed(self, data: bytes) -> BaseException | None:
        """Parse what came.

        :return: why it is no response, nor part of one; what came before that in the same bytes is there all the same.
        """
        self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            response, self._switching = self._switching, None
            self._connection._switched(response, data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            return _cause(error)
        else:
            if self._head_size > self._limit and not self.complete:
                return MalformedResponse("its headers or trailers are too large")
        return None

    def take(self) -> bytes:
        """What came of the body, as one."""
        data = b"".join(self.chunks)
        self.chunks.clear()
        return data

    def close(self) -> None:
        """The connection is lost: let go of what refers back to this."""
        self.complete = True
        self.response = self._switching = self._informational = None
        del self._parser, self._connection

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.complete:
            raise MalformedResponse("more followed a complete response")

    def on_status(self, phrase: bytes) -> None:
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        # Optional whitespace is not part of a value (RFC 9110 section 5.5); llhttp takes off only what stands before it.
        self._pairs.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        fields, self._pairs = Fields(self._pairs), []
        phrase, self._phrase = self._phrase, b""
        self._head_size = 0
        if code < 200 and code != 101:
            self._interim(code, phrase, fields)
            return
        if code == 101 and not self._offers_upgrade:
            raise MalformedResponse("it switched protocols unasked")
        length = body_length(fields)
        bodiless = self._method == b"HEAD" or code in (204, 304)
        response = Response(
            self._connection, code, phrase, fields, UNKNOWN_LENGTH if length is None else length
        )
        response.ends_with_connection = (
            not bodiless and length is None and not fields.hasHeader(b"transfer-encoding")
        )
        self.reusable = (
            self._parser.should_keep_alive()
            and not response.ends_with_connection
            # HTTP/1.0 has no transfer codings: one is read, and not relied on (RFC 9112 section 6.1).
            and (length is not None or self._parser.get_http_version() != "1.0")
        )
        if code == 101:
            self._switching = response  # it is told of when the parser has stopped, see feed
        else:
            self.response = response
        if self._connection.body is not None:
            self._connection.body.answered()
        if self._method == b"HEAD":
            self.complete = True

    def on_body(self, data: bytes) -> None:
        if self.response is None or self.complete:  # it was given up, is an interim one, or answers HEAD
            raise MalformedResponse("it has a body where none belongs")
        self._head_size = 0
        self.chunks.append(data)

    def on_message_complete(self) -> None:
        if self.response is not None:
            self.complete = True
            if self._pairs:
                self.response.trailers = Fields(self._pairs)

    def _interim(self, code: int, phrase: bytes, fields: Fields) -> None:
        if code < 100:
            raise MalformedResponse("its status is below 100")
        if code == 100:
            if self._connection.body is not None:
                self._connection.body.start()
        elif self._informational is not None:
            self._informational(code, phrase, fields)


def _cause(error: httptools.HttpParserError) -> BaseException:
    """What made the parser stop: what a callback raised, or the parser's own finding."""
    if not isinstance(error, httptools.HttpParserCallbackError):
        return MalformedResponse(str(error))
    cause = error.__context__ or error
    if not isinstance(cause, MalformedResponse):
        _log.failure("What an upstream sent could not be handled", Failure(cause))
    return cause
