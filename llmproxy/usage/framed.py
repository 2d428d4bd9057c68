"""What an upstream sends through a WebSocket: its messages are taken out of their frames, and inflated, for what reads them."""

from __future__ import annotations

from collections.abc import Container

import attrs

from llmproxy.frames import FrameError, FrameReader, Kind, MessageTooLarge
from llmproxy.usage.model import Reading, Source
from llmproxy.usage.reader import Body

_LARGEST_MESSAGE = 8 * 2**20  # bytes


class Framed(Body):
    """Takes the bytes of an upstream's side of a WebSocket.

    :param body: takes its messages, each at once.
    :param extensions: the ``Sec-WebSocket-Extensions`` of the 101 answer, several joined by commas.
    :param kinds: of the messages that it takes.
    :raise llmproxy.frames.FrameError: for extensions that are not known here.
    """

    tells_first_token = False

    def __init__(self, body: Body, extensions: bytes, kinds: Container[Kind] = (Kind.TEXT,)) -> None:
        self._body = body
        self._kinds = kinds
        self._frames = FrameReader(extensions, from_client=False, limit=_LARGEST_MESSAGE)
        self._given_up: Source | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._given_up:
            return
        try:
            for message in self._frames.feed(data):
                if message.kind in self._kinds:
                    self._body.feed(message.data)
        except FrameError as error:
            self._given_up = "too_large" if isinstance(error, MessageTooLarge) else "undecodable"

    def close(self, whole: bool) -> Reading:
        """Take note that the socket is closed; a part of its usage must not be taken for all of it."""
        reading = self._body.close(whole)
        return attrs.evolve(reading, usage=None, source=self._given_up) if self._given_up else reading
