"""What the tests of the taps share: server-sent events and JSON to feed, and a tap that is fed them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import brotli  # type: ignore[import-untyped]
import zstandard

from llmproxy.config.credential import Family
from llmproxy.usage import Reading, Tap, tap_for

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


def tapped(family: Family, kind: bytes = JSON, path: bytes = b"", coding: bytes = b"") -> Watched:
    return Watched(lambda told: tap_for(family, path, kind, coding, told))


def read(tap: Tap | Watched, pieces: bytes | Iterable[bytes], whole: bool = True) -> Reading:
    for piece in [pieces] if isinstance(pieces, bytes) else pieces:
        tap.feed(piece)
    return tap.close(whole)


def cut(body: bytes, at: Iterable[int]) -> list[bytes]:
    places = sorted({0, *at, len(body)})
    return [body[start:end] for start, end in pairwise(places)]
