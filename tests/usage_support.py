"""What the tests of the taps share: server-sent events and JSON to feed, and a tap that is fed them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import attrs
import brotli  # type: ignore[import-untyped]
import zstandard

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Tap, Turns, tap_for
from llmproxy.usage.reader import Body

SSE = b"text/event-stream; charset=utf-8"
JSON = b"application/json"

CODINGS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"br": brotli.compress,
    b"zstd": zstandard.ZstdCompressor().compress,
}


def dumped(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def event(body: Any, name: str | None = None) -> bytes:
    head = b"" if name is None else b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (head, dumped(body))


def named(*bodies: dict[str, Any]) -> bytes:
    """Events whose names are their types, as Anthropic and OpenAI's responses have them."""
    return b"".join(event(body, body["type"]) for body in bodies)


class Watched:
    """A tap, and whether it has told of a first token.

    :param make: makes the tap, given what it is to call then.
    """

    def __init__(self, make: Callable[[Callable[[], None]], Tap | None]) -> None:
        tap = make(self._told)
        assert tap is not None
        self.feed, self.close = tap.feed, tap.close
        self.first_token = False

    def _told(self) -> None:
        assert not self.first_token, "it is told once"
        self.first_token = True


@attrs.define
class Turn:
    """A turn as it is told.

    :ivar number: how many had begun before it.
    :ivar begun: how many messages there were when it began; others, when its first token passed, it was stopped, and it ended.
    """

    number: int
    begun: int
    first_token: int | None = None
    ended: int | None = None
    reading: Reading | None = None
    stopped: int | None = None


class WatchedSocket:
    """A tap that is fed the messages of a socket, out of their frames, and what it tells of turns.

    :param make: makes what takes the messages, given what is to be told.
    """

    def __init__(self, make: Callable[[Turns[Turn]], Body], *messages: dict[str, Any]) -> None:
        self.fed = 0
        self.begun: list[Turn] = []
        self.ended: list[Turn] = []
        self.tap = Tap(make(self))
        self.feed(*messages)

    def feed(self, *messages: dict[str, Any] | bytes) -> None:
        for message in messages:
            self.fed += 1
            self.tap.feed(message if isinstance(message, bytes) else dumped(message))

    def begin(self) -> Turn:
        turn = Turn(len(self.begun), self.fed)
        self.begun.append(turn)
        return turn

    def first_token(self, turn: Turn) -> None:
        assert turn.first_token is None, "it is told once"
        turn.first_token = self.fed

    def stop(self, turn: Turn) -> None:
        assert (turn.stopped, turn.ended) == (None, None), "it is told once"
        turn.stopped = self.fed

    def end(self, turn: Turn, reading: Reading) -> None:
        assert turn.reading is None, "it is told once"
        turn.ended, turn.reading = self.fed, reading
        self.ended.append(turn)

    def close(self) -> Reading:
        reading = self.tap.close(True)
        assert sorted(turn.number for turn in self.ended) == list(range(len(self.begun)))
        return reading

    @property
    def readings(self) -> list[Reading]:
        """Of the turns, in the order in which they ended."""
        return [turn.reading for turn in self.ended if turn.reading is not None]


def readings_of(make: Callable[[Turns[Turn]], Body], *messages: dict[str, Any]) -> list[Reading]:
    """The readings of the turns of a socket, in the order in which they ended, the last of them with the socket."""
    session = WatchedSocket(make, *messages)
    session.close()
    return session.readings


def tapped(family: Family, kind: bytes = JSON, path: bytes = b"", coding: bytes = b"") -> Watched:
    return Watched(lambda told: tap_for(family, path, kind, coding, told))


def read(tap: Tap | Watched, pieces: bytes | Iterable[bytes], whole: bool = True) -> Reading:
    for piece in [pieces] if isinstance(pieces, bytes) else pieces:
        tap.feed(piece)
    return tap.close(whole)


def cut(body: bytes, at: Iterable[int]) -> list[bytes]:
    places = sorted({0, *at, len(body)})
    return [body[start:end] for start, end in pairwise(places)]
