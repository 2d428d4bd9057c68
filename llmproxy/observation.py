"""What is looked at while an exchange passes, for its record: copies only, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.asked_model import Known, model_of_target
from llmproxy.asked_model.glance import Glance
from llmproxy.config import Family
from llmproxy.deadline import Clock
from llmproxy.exchange import Ending, Exchange
from llmproxy.frames import FrameError, FrameReader, Kind, MessageTooLarge
from llmproxy.usage import Source, Tap, tap_for, tap_for_messages

# Ids that clients give their sessions and agents: Claude Code's. A setting lists more.
SESSION_HEADERS = (
    b"x-claude-code-session-id",
    b"x-claude-code-agent-id",
    b"x-claude-code-parent-agent-id",
)
_LARGEST_MESSAGE = 8 * 2**20  # bytes of a message on a WebSocket that are looked at
_LONGEST_LABEL = 256  # characters
_REQUEST_IDS = (b"request-id", b"x-request-id")  # Anthropic's and OpenAI's names


class Observation:
    """The record of one exchange in the making.

    :param labels: the headers, in lower case, whose values are recorded.
    """

    _log = Logger()

    def __init__(
        self, exchange: Exchange, family: Family, clock: Clock, labels: tuple[bytes, ...] = SESSION_HEADERS
    ) -> None:
        self._exchange = exchange
        self._family = family
        self._now = clock.seconds
        self._labels = labels
        self._body: Any = None
        self._glance: Glance | None = None
        self._tap: Tap | None = None
        self._feed: Any = None
        self._given_up: Source | None = None

    def look_at_request(self, request: Any, target: bytes) -> None:
        """Note what the request says of itself.

        :param request: an ``IStreamedRequest``.
        :param target: what stands behind the upstream's prefix.
        """
        exchange, headers = self._exchange, request.requestHeaders
        found = {
            name.decode("ascii"): values[0].decode("latin-1")[:_LONGEST_LABEL]
            for name in self._labels
            if (values := headers.values_of(name))
        }
        if found:
            exchange.labels = found
        body = self._body = request.body
        # A query's counts where there is no body to name another.
        named = model_of_target(self._family, target if request.websocket else target.partition(b"?")[0])
        if isinstance(named, Known):
            exchange.asked_model = named.model
            return
        if body is None or headers.values_of(b"content-encoding"):
            return
        if b"json" in b"".join(headers.values_of(b"content-type")):
            self._glance = Glance()
            body.watch(self._glance.feed)

    def look_at_response(self, response: Any) -> None:
        """Note what the response's headers say, and choose a tap for its body."""
        exchange, headers = self._exchange, response.headers
        exchange.reused = response.reused
        for name in _REQUEST_IDS:
            if values := headers.values_of(name):
                exchange.upstream_request_id = values[0].decode("latin-1")[:_LONGEST_LABEL]
        if exchange.method != "POST" or response.code == 101:
            return  # what GET shows was made, and paid for, before
        tap = self._tap = tap_for(
            self._family,
            exchange.path.encode("ascii"),
            b", ".join(headers.values_of(b"content-type")),
            b", ".join(headers.values_of(b"content-encoding")),
        )
        if tap is not None:
            self._feed = tap.feed

    def look_at_session(self, extensions: bytes) -> Callable[[bytes], None] | None:
        """Choose a tap for what the upstream sends on a WebSocket.

        :param extensions: that both sides agreed to.
        """
        tap = self._tap = tap_for_messages(self._family)
        if tap is None:
            return None
        try:
            frames = FrameReader(extensions, from_client=False, limit=_LARGEST_MESSAGE)
        except FrameError:
            self._given_up = "undecodable"
            return None

        def feed(data: bytes) -> None:
            for message in frames.feed(data):
                if message.kind is Kind.TEXT:
                    tap.feed(message.data)

        self._feed = feed
        return self.feed

    def feed(self, data: bytes) -> None:
        """Look at a part of the response's body, which has been passed on."""
        if self._feed is None:
            return
        try:
            self._feed(data)
        except FrameError as error:
            self._feed = None
            self._given_up = "too_large" if isinstance(error, MessageTooLarge) else "undecodable"
            return
        if self._exchange.first_token is None and self._tap is not None and self._tap.first_token:
            self._exchange.first_token = self._now() - self._exchange.started

    def close(self) -> None:
        """The exchange is over: complete its record."""
        exchange = self._exchange
        if self._body is not None:
            exchange.received = self._body.received
        if self._glance is not None:
            exchange.asked_model = self._glance.model
        if self._tap is not None:
            exchange.reading = self._tap.close(exchange.ending is Ending.COMPLETED)
            if self._given_up is not None:  # a part of the usage must not be taken for all of it
                exchange.reading = attrs.evolve(exchange.reading, usage=None, source=self._given_up)
            if self._tap.fault is not None:
                self._log.failure("An answer's usage could not be read", Failure(self._tap.fault))
        self._tap = self._feed = self._glance = self._body = None
