"""What an upstream sends through a WebSocket: its messages are taken out of their frames, and inflated, for what reads them."""

from __future__ import annotations

import attrs

from llmproxy.frames import FrameError, FrameReader, Kind, MessageTooLarge
from llmproxy.usage.model import Reading, Source
from llmproxy.usage.reader import Body, MessageBody

_LARGEST_MESSAGE = 8 * 2**20  # bytes


class Framed(Body):
    """Takes the bytes of an upstream's side of a WebSocket.

    Both kinds of messages are taken, texts and binary ones: Gemini's JSON comes in the latter, mostly, and to OpenAI's SDK they
    are the same. One that is too large is skipped, and those behind it are read as ever.

    :param body: takes its messages, each at once.
    :param extensions: the ``Sec-WebSocket-Extensions`` of the 101 answer, several joined by commas.
    :raise llmproxy.frames.FrameError: for extensions that are not known here.
    """

    tells_first_token = False

    def __init__(self, body: MessageBody, extensions: bytes) -> None:
        self._body = body
        self._frames = FrameReader(extensions, from_client=False, limit=_LARGEST_MESSAGE, skips=True)
        self._given_up: Source | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._given_up:
            return
        try:
            for message in self._frames.feed(data):
                if message.kind is Kind.CONTROL:
                    continue
                if message.skipped:
                    self._body.skip(message.data)
                else:
                    self._body.feed(message.data)
        except FrameError as error:
            self._given_up = "too_large" if isinstance(error, MessageTooLarge) else "undecodable"

    def close(self, whole: bool) -> Reading:
        """Take note that the socket is closed; a part of its usage must not be taken for all of it."""
        reading = self._body.close(whole)
        return attrs.evolve(reading, usage=None, source=self._given_up) if self._given_up else reading
