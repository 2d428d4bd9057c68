"""What is no request, and is answered as one: in its turn, and with all that every answer has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from llmproxy import errors
from llmproxy.http.fields import Fields
from llmproxy.http.request import Request
from llmproxy.http.rules import Refused

if TYPE_CHECKING:
    from llmproxy.http.channel import Channel


class RefusedRequest(Request):
    """Stands among the requests of a connection for a message that is none; no resource sees it.

    :param refused: why it is none.
    :param fields: those that were read before that was known, so that the page that sent it, if one did, can be told why.
    """

    _log = Logger()
    method = uri = path = b""  # which were not understood, or not trusted
    clientproto = b"HTTP/1.1"
    keep_alive = False

    def __init__(self, channel: Channel, refused: Refused, fields: Fields) -> None:
        super().__init__(channel)
        self.requestHeaders = fields
        self._refused = refused

    def process(self) -> None:
        """Say why it is refused."""
        self._log.info("Refused a message: {message}", message=self._refused.message)
        errors.answer(self, self._refused.problem, self._refused.message)
