"""A compressed answer: a copy of it is decompressed as it comes, bit by bit, for what reads it."""

from __future__ import annotations

from llmproxy.decoding import Decoder, TooLarge, Undecodable
from llmproxy.usage.model import Reading, Source, unread
from llmproxy.usage.reader import Body

# Bytes that are decompressed at once: no more than 8 MiB can come of them, of which llmproxy.decoding takes no more in a call.
# (Of brotli, more can, and is not read.)
_AT_ONCE = {"gzip": 4096, "x-gzip": 4096, "deflate": 4096, "br": 128, "zstd": 128}


class Decoded(Body):
    """Takes the bytes of a compressed body.

    Where they cannot be decompressed, nothing counts that was: how much that is would depend on the pieces in which they came.

    :param body: takes the content.
    :param decoding: undoes one coding.
    """

    def __init__(self, body: Body, decoding: Decoder) -> None:
        self._body = body
        self.tells_first_token = body.tells_first_token
        self._decoder = decoding
        self._at_once = min(_AT_ONCE[name] for name in decoding.codings)
        self._given_up: Source | None = None

    @property
    def first_token(self) -> bool:
        """See :class:`Body`."""
        return self._body.first_token

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._given_up:
            return
        try:
            for at in range(0, len(data), self._at_once):
                content = self._decoder.feed(data[at : at + self._at_once])
                if content:
                    self._body.feed(content)
        except TooLarge:
            self._given_up = "too_large"
        except Undecodable:
            self._given_up = "undecodable"

    def close(self, whole: bool) -> Reading:
        """Take note that nothing more comes; a coding that has not ended is cut off, whatever was said of its length."""
        if self._given_up:
            return unread(self._given_up, whole)
        try:
            self._decoder.close()
        except Undecodable:
            whole = False
        return self._body.close(whole)
