"""Which tap an answer gets: something that is fed a copy of its bytes as they pass, and in the end tells what was used.

A tap is not allowed to cost an answer: it never raises, whatever it is fed, and it holds no more than some tens of kilobytes,
or 8 MiB of an event that matters. The same bytes lead to the same reading, whatever the pieces in which they come. The only
exceptions are compressed bodies that no compressor makes: brotli of which a few bytes stand for megabytes, and zstd that tells
a wrong size beforehand, which libzstd notices in some pieces and not in others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial

from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.credential import Family
from llmproxy.decoding import Decoder, decoder
from llmproxy.frames import FrameError
from llmproxy.usage.anthropic import AnthropicReader
from llmproxy.usage.decoded import Decoded
from llmproxy.usage.framed import Framed
from llmproxy.usage.gemini import GeminiReader
from llmproxy.usage.json_array import JSONArray
from llmproxy.usage.json_body import JSONBody
from llmproxy.usage.live import LiveMessages
from llmproxy.usage.model import Reading, free, unread
from llmproxy.usage.openai import OpenAIReader
from llmproxy.usage.reader import Body, Reader
from llmproxy.usage.realtime import Messages
from llmproxy.usage.sse import EventStream
from llmproxy.usage.turns import T, Turns

_READERS: dict[Family, type[Reader]] = {
    Family.OPENAI: OpenAIReader,
    Family.ANTHROPIC: AnthropicReader,
    Family.GEMINI: GeminiReader,
}
# Many an upstream offers APIs of several families, and their paths tell them apart.
_BY_PATH: tuple[tuple[bytes, type[Reader]], ...] = (
    (b"/chat/completions", OpenAIReader),
    (b"/responses", OpenAIReader),
    (b"/messages", AnthropicReader),
    (b"/messages/count_tokens", AnthropicReader),
    (b":generateContent", GeminiReader),
    (b":streamGenerateContent", GeminiReader),
    (b"/embeddings", OpenAIReader),
)
# What is posted for nothing: files, moderations, and requests that only change or stop what was made before, and show its usage
# again.
_FREE = re.compile(
    rb"/(files|uploads(/[^/]+/(parts|complete|cancel))?|batches/[^/]+/cancel|moderations"
    rb"|chat/completions/[^/]+|responses/[^/]+/cancel)$"
)
# Where batches are made, by OpenAI's and Anthropic's APIs, and Mistral's: what one will use is told to whoever asks later. The
# answer to this has a usage at OpenAI already, of none of its requests.
_BATCHES = (b"/batches", b"/batch/jobs")
# Google's Live API, in the spelling of Gemini's own API and of Vertex'; with an ephemeral token, its method has a longer name
# (https://ai.google.dev/gemini-api/docs/ephemeral-tokens).
_LIVE = re.compile(rb"[./]BidiGenerateContent(Constrained)?/?$")


class Tap:
    """Is fed a copy of an answer, and tells what was used.

    :param on_first_token: called once, when a first piece of what the model makes has passed, in a stream; of other answers it
        is not known when it did.
    """

    __slots__ = ("_body", "_broken", "_on_first_token", "_reading", "_take")

    _log = Logger()

    def __init__(self, body: Body, on_first_token: Callable[[], None] | None = None) -> None:
        self._body = body
        self._take = body.feed
        self._on_first_token = on_first_token if body.tells_first_token else None
        self._reading: Reading | None = None
        self._broken = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body, or of the upstream's side of a socket, as they were sent."""
        try:
            self._take(data)
        except Exception:
            # Whatever it is, the answer goes on.
            self._fail()
            return
        if self._on_first_token is not None and self._body.first_token:
            tell, self._on_first_token = self._on_first_token, None
            tell()

    def close(self, whole: bool) -> Reading:
        """Tell what was found; nothing more is taken.

        :param whole: the body was delimited as it should be, and nothing of it is missing.
        """
        self._take = _ignore
        if self._reading is None:
            self._reading = self._close(whole)
        return self._reading

    def _close(self, whole: bool) -> Reading:
        if not self._broken:
            try:
                return self._body.close(whole)
            except Exception:
                self._fail()
        return unread("undecodable", whole)

    def _fail(self) -> None:
        """Something is wrong in the tap itself: the accounting is lost, and nothing else."""
        self._log.failure("An answer's usage could not be read", Failure())
        self._broken = True
        self._on_first_token = None
        self._take = _ignore


def _ignore(data: bytes) -> None:
    """Take no more."""


class _Free(Body):
    """An answer that costs nothing, whatever it says."""

    def feed(self, data: bytes) -> None:
        """Take nothing."""

    def close(self, whole: bool) -> Reading:
        """Tell so."""
        return free(whole)


class _Unreadable(Body):
    """What cannot be read."""

    def feed(self, data: bytes) -> None:
        """Take nothing."""

    def close(self, whole: bool) -> Reading:
        """Tell so."""
        return unread("undecodable", whole)


def tap_for(
    family: Family,
    path: bytes,
    content_type: bytes,
    content_encoding: bytes,
    on_first_token: Callable[[], None] | None = None,
) -> Tap | None:
    """Choose a tap for an answer, or ``None`` where there is nothing to be read in such an answer.

    :param family: of the upstream.
    :param path: of the request, as the upstream gets it; a query does not matter.
    :param content_type: the value of the answer's header; ``b""`` where it has none.
    :param content_encoding: the value of the answer's header, several joined by commas; ``b""`` where it has none.
    :param on_first_token: see :class:`Tap`.
    """
    make = _maker(family, path, content_type, content_encoding)
    return None if make is None else Tap(make(), on_first_token)


def is_live(family: Family, path: bytes) -> bool:
    """Tell whether a WebSocket is one of Gemini's Live API, whose first message names the model; see :func:`tap_for_socket`."""
    return family is not Family.NONE and _LIVE.search(path) is not None


def tap_for_socket(family: Family, path: bytes, extensions: bytes, turns: Turns[T]) -> Tap | None:
    """Choose a tap for what an upstream sends through a WebSocket, or ``None`` where there is nothing to be read in it.

    :param family: of the upstream.
    :param path: of the request, without its query.
    :param extensions: the ``Sec-WebSocket-Extensions`` of the 101 answer, several joined by commas.
    :param turns: is told of those that it carries.
    """
    try:
        if is_live(family, path):
            return Tap(Framed(LiveMessages(turns), extensions))
        if family is Family.OPENAI:
            return Tap(Framed(Messages(turns), extensions))
    except FrameError:
        return Tap(_Unreadable())
    return None


# What is asked for goes by a few paths, and is answered in a few types; a path may also hold ids, of which there is no end.
@lru_cache(512)
def _maker(
    family: Family, path: bytes, content_type: bytes, content_encoding: bytes
) -> Callable[[], Body] | None:
    if family is Family.NONE:
        return None
    path = path.partition(b"?")[0].rstrip(b"/")
    if _FREE.search(path):
        return _Free
    if path.endswith(_BATCHES):
        return None
    reader = next((made for end, made in _BY_PATH if path.endswith(end)), _READERS[family])
    kind = content_type.partition(b";")[0].strip().lower()
    body: Callable[[type[Reader]], Body]
    if kind == b"text/event-stream":
        body = EventStream
    elif kind != b"application/json" and not kind.endswith(b"+json"):
        return None
    elif path.endswith(b":streamGenerateContent"):
        body = JSONArray
    else:
        body = JSONBody
    decoding = decoder(content_encoding)
    if decoding is None or len(decoding.codings) > 1:  # one that is unknown, or several, which nobody sends
        return _Unreadable
    if codings := decoding.codings:
        return lambda: Decoded(body(reader), Decoder(codings))
    return partial(body, reader)
