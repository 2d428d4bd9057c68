"""Which tap an answer gets: something that is fed a copy of its bytes as they pass, and in the end tells what was used.

A tap is not allowed to cost an answer: it never raises, whatever it is fed, and it holds no more than some tens of kilobytes,
or 8 MiB of an event that matters. The same bytes lead to the same reading, whatever the pieces in which they come. The only
exceptions are compressed bodies that no compressor makes: brotli of which a few bytes stand for megabytes, and zstd that tells
a wrong size beforehand, which libzstd notices in some pieces and not in others.
"""

from __future__ import annotations

from llmproxy.config.credential import Family
from llmproxy.decoding import decoder
from llmproxy.usage.anthropic import AnthropicReader
from llmproxy.usage.decoded import Decoded
from llmproxy.usage.gemini import GeminiReader
from llmproxy.usage.json_array import JSONArray
from llmproxy.usage.json_body import JSONBody
from llmproxy.usage.model import Reading, unread
from llmproxy.usage.openai import OpenAIReader
from llmproxy.usage.reader import Body, Reader
from llmproxy.usage.realtime import Messages
from llmproxy.usage.sse import EventStream

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
)


class Tap:
    """Is fed a copy of an answer, and tells what was used.

    :ivar fault: what went wrong in the tap itself, to be logged: the accounting is lost then, and nothing else.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._take = body.feed
        self._reading: Reading | None = None
        self.fault: Exception | None = None

    @property
    def first_token(self) -> bool:
        """A first piece of what the model makes has passed, in a stream; of other answers it is not known when it did."""
        return self._body.first_token

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body, as they were sent; of a socket, the next message."""
        try:
            self._take(data)
        except Exception as fault:
            # Whatever it is, the answer goes on.
            self._fail(fault)

    def close(self, whole: bool) -> Reading:
        """Tell what was found; nothing more is taken.

        :param whole: the body was delimited as it should be, and nothing of it is missing.
        """
        self._take = _ignore
        if self._reading is None:
            self._reading = self._close(whole)
        return self._reading

    def _close(self, whole: bool) -> Reading:
        if self.fault is None:
            try:
                return self._body.close(whole)
            except Exception as fault:
                self._fail(fault)
        return unread("undecodable", whole)

    def _fail(self, fault: Exception) -> None:
        self.fault = fault
        self._take = _ignore


def _ignore(data: bytes) -> None:
    """Take no more."""


class _Unreadable(Body):
    """An answer that cannot be decompressed."""

    def feed(self, data: bytes) -> None:
        """Take nothing."""

    def close(self, whole: bool) -> Reading:
        """Tell so."""
        return unread("undecodable", whole)


def tap_for(family: Family, path: bytes, content_type: bytes, content_encoding: bytes) -> Tap | None:
    """Choose a tap for an answer, or ``None`` where there is nothing to be read in such an answer.

    :param family: of the upstream.
    :param path: of the request, as the upstream gets it; a query does not matter.
    :param content_type: the value of the answer's header; ``b""`` where it has none.
    :param content_encoding: the value of the answer's header, several joined by commas; ``b""`` where it has none.
    """
    if family is Family.NONE:
        return None
    path = path.partition(b"?")[0].rstrip(b"/")
    reader = next((made for end, made in _BY_PATH if path.endswith(end)), _READERS[family])()
    kind = content_type.partition(b";")[0].strip().lower()
    body: Body
    if kind == b"text/event-stream":
        body = EventStream(reader)
    elif kind != b"application/json" and not kind.endswith(b"+json"):
        return None
    elif path.endswith(b":streamGenerateContent"):
        body = JSONArray(reader)
    else:
        body = JSONBody(reader)
    decoding = decoder(content_encoding)
    if decoding is None or len(decoding.codings) > 1:  # one that is unknown, or several, which nobody sends
        return Tap(_Unreadable(reader))
    return Tap(Decoded(body, decoding) if decoding.codings else body)


def tap_for_messages(family: Family) -> Tap | None:
    """Choose a tap for the messages that an upstream sends through a WebSocket, or ``None`` where none can read them.

    It is fed one whole message at a time, without its frames and inflated.
    """
    return Tap(Messages()) if family is Family.OPENAI else None
