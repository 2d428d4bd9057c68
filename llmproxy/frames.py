"""The messages of one direction of a WebSocket (RFC 6455), read out of a copy of the bytes that pass.

Frames are read by wsproto, compressed messages (RFC 7692) by zlib. What messages mean, and whether a text is UTF-8, is left to
whoever asks for them. Nothing is ever answered or sent here. Pure: no reactor, no I/O.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from enum import Enum

import attrs
from wsproto.extensions import Extension
from wsproto.frame_protocol import Frame, FrameDecoder, FrameProtocol, Opcode, ParseFailed, RsvBits

_DEFLATE = "permessage-deflate"
# RFC 7692 section 7.1, as an answer has them. How large a window may be does not matter to a reader that has the largest.
_PARAMETER = re.compile(
    r'(?:server|client)_(?:no_context_takeover|max_window_bits[ \t]*=[ \t]*("?)(?:[89]|1[0-5])\1)'
)
# RFC 7692 section 7.2.2: what the sender took from the end of each message.
_TAIL = b"\x00\x00\xff\xff"
# Bytes that the frames of a message may have beyond twice its limit: as sent, one can be longer than its content. Without that
# bound, empty fragments, and compressed ones out of which nothing comes, would have no end.
_SLACK = 1024
_LONGEST_CONTROL = 2 + 4 + 125  # bytes, RFC 6455 sections 5.2 and 5.5
_START = 1024  # bytes that are kept of a message that is skipped
_PIECE = 64 * 2**10  # bytes that are inflated at a time of one
# Bytes beyond its limit to which a message may be inflated so as to be skipped: what shares a window with the next one cannot
# be left out, and all others wait meanwhile, for some 60 ms.
_MOST_SKIPPED = 32 * 2**20


class FrameError(ValueError):
    """Bytes out of which no messages can be read; the text says why, in a sentence."""


class MessageTooLarge(FrameError):
    """A message of more bytes than are read."""


class Kind(Enum):
    """What a message is. Pings, pongs and closes can stand between the frames of another message."""

    TEXT = "text"
    BINARY = "binary"
    CONTROL = "control"


@attrs.define
class Message:
    """One whole message, or control frame.

    :ivar kind: what it is.
    :ivar data: its content, unmasked and inflated; of a text, UTF-8 that nobody has checked yet.
    :ivar size: bytes of its frames, as sent, without control frames between them.
    :ivar end: bytes of this direction up to its end.
    :ivar skipped: it is too large, and the data are only its start.
    """

    kind: Kind
    data: bytes
    size: int
    end: int
    skipped: bool = False


class FrameReader:
    """Reads the messages of one direction.

    :param extensions: the ``Sec-WebSocket-Extensions`` of the 101 answer, several joined by commas; empty where it has none.
    :param from_client: whether this is what the client sends, which is masked, or what the server sends, which is not.
    :param limit: bytes that a message may have. What is held is about that much, or twice as much where fragments are joined.
    :param skips: a message beyond the limit is skipped, and only its start is told, whatever its size. That is for looking on,
        and not for whoever decides by what was read.
    :raise FrameError: for extensions that are not known here.
    :ivar closed: the direction was closed; what comes behind that is no part of the session, and not read
        (RFC 6455 section 1.4).
    """

    def __init__(self, extensions: bytes, *, from_client: bool, limit: int, skips: bool = False) -> None:
        self.closed = False
        self._skips = skips
        self._skipping = False  # the message under way
        self._limit = limit
        self._longest = 2 * limit + _SLACK
        agreed = _agreed(extensions, from_client, limit, skips)
        # As wsproto has it, a client is one that reads what a server sends.
        self._decoder = FrameDecoder(not from_client, agreed)
        self._fed = 0  # bytes
        self._at = 0  # bytes up to the end of the last frame that was whole
        self._begun = False  # a message is under way
        self._kind = Kind.TEXT  # of it
        self._data = bytearray()  # of it, inflated
        self._size = 0  # bytes of its frames that are whole, as sent

    @property
    def unfinished(self) -> int:
        """How many of the bytes that were fed belong to a frame, or to a message, of which more must come."""
        return self._size + self._fed - self._at

    def feed(self, data: bytes) -> Iterator[Message]:
        """Read on. The bytes count as read only where all messages are taken from what this returns.

        :return: the messages that are whole now, and control frames.
        :raise FrameError: behind those before it, at the first frame that is none, or message that cannot be inflated;
            :class:`MessageTooLarge` beyond the limit, unless such are skipped. After either, the reader is of no more use.
        """
        if self.closed:
            return
        decoder = self._decoder
        decoder.receive_bytes(data)
        self._fed += len(data)
        while (frame := self._next()) is not None:
            payload = frame.payload
            # For the type checker: only a later stage of wsproto's has other kinds.
            assert isinstance(payload, (bytes, bytearray))  # noqa: S101
            control = frame.opcode.iscontrol()
            if not control:
                self._take(frame.opcode, payload)
            if not frame.frame_finished:
                continue
            end = self._fed - len(decoder.buffer)
            size = end - self._at
            self._at = end
            if control:
                self.closed = frame.opcode is Opcode.CLOSE
                yield Message(Kind.CONTROL, bytes(payload), size, end)
                if self.closed:
                    self._fed = end
                    return
                continue
            self._size += size
            if self._size > self._longest:
                self._exceed()
            if frame.message_finished:
                yield self._finish(end)
        # A frame that is not whole yet may still turn out to be a control frame, which belongs to no message.
        if self.unfinished > self._longest + _LONGEST_CONTROL:
            self._exceed()

    def _next(self) -> Frame | None:
        """The next frame, or as much as there is of one with data."""
        try:
            return self._decoder.process_buffer()
        except ParseFailed as error:
            raise FrameError(f"A WebSocket frame is broken: {error}.") from None

    def _take(self, opcode: Opcode, payload: bytes | bytearray) -> None:
        """Take a piece of a message; all but the first piece of its first frame are continuations."""
        if self._begun is (opcode is not Opcode.CONTINUATION):
            raise FrameError("A WebSocket message begins in the middle, or before the last one ended.")
        if not self._begun:
            self._begun = True
            self._kind = Kind.TEXT if opcode is Opcode.TEXT else Kind.BINARY
        if self._skipping:
            return
        self._data += payload
        if len(self._data) > self._limit:
            self._exceed()

    def _exceed(self) -> None:
        """The message under way is too large."""
        if not self._skips:
            raise _too_large(self._limit)
        self._skipping = True
        del self._data[_START:]

    def _finish(self, end: int) -> Message:
        message = Message(self._kind, bytes(self._data), self._size, end, self._skipping)
        self._begun = self._skipping = False
        self._data.clear()
        self._size = 0
        return message


class _Inflate(Extension):
    """The reading half of permessage-deflate, within bounds.

    wsproto's own inflates whatever comes, and takes a fragment behind a control frame for one that is not compressed.

    :param limit: bytes that a message may have.
    :param takeover: a message may refer to those before it.
    :param skips: of a message beyond the limit, what is more than a byte beyond it is thrown away.
    """

    name = _DEFLATE

    def __init__(self, limit: int, takeover: bool, skips: bool) -> None:
        self._limit = limit
        self._skips = skips
        self._takeover = takeover
        self._stream: zlib._Decompress | None = None
        self._room = 0  # bytes that may still come out of the message under way
        self._message = False  # that is compressed
        self._frame = False  # this one belongs to it

    def offer(self) -> bool:
        """Nothing is: both ends have agreed."""
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> RsvBits:
        """Learn of a frame, several times where its header comes in pieces; tell which reserved bits it may have."""
        begins = opcode in (Opcode.TEXT, Opcode.BINARY)
        if begins:
            self._message = rsv.rsv1
            self._room = self._limit
        self._frame = self._message and not opcode.iscontrol()
        return RsvBits(begins, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes:
        """Inflate a piece."""
        return self._inflated(data) if self._frame else data

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | None:
        """Inflate what a message's end stands for."""
        if not (self._frame and fin):
            return None
        data = self._inflated(_TAIL)
        if not self._takeover:
            self._stream = None
        return data

    def _inflated(self, data: bytes) -> bytes:
        if self._stream is None:
            self._stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        if self._room < 0 and not self._takeover:
            return b""  # it is skipped, and no other message refers to it
        try:
            # A byte more than may come, to tell.
            found = self._stream.decompress(data, max(self._room, 0) + 1)
            self._room -= len(found)
            if self._room < 0:
                self._exceed(self._stream)
        except zlib.error:
            raise FrameError("A WebSocket message is not compressed as was agreed.") from None
        if self._stream.eof:
            # RFC 7692 section 7.2.3.5 allows it, nobody does it, and readers differ in whether they go on behind it.
            raise FrameError("A WebSocket message has a last block of deflate, behind which it would go on.")
        return found

    def _exceed(self, stream: zlib._Decompress) -> None:
        """The message is too large: what is left of a piece is only inflated for those that refer to it."""
        if not self._skips:
            raise _too_large(self._limit)
        # Behind a last block, zlib leaves the rest as it is, each time.
        while self._takeover and stream.unconsumed_tail and not stream.eof:
            self._room -= len(stream.decompress(stream.unconsumed_tail, _PIECE))
            if self._room < -_MOST_SKIPPED:
                raise _too_large(self._limit)


def _agreed(extensions: bytes, from_client: bool, limit: int, skips: bool) -> list[Extension]:
    """What both ends agreed to, for one direction."""
    name, *parameters = (part.strip(" \t") for part in extensions.decode("latin-1").split(";"))
    if not name and not parameters:
        return []
    if name != _DEFLATE or not all(_PARAMETER.fullmatch(parameter) for parameter in parameters):
        raise FrameError("The WebSocket has an extension, or a parameter of one, that is not known here.")
    alone = f"{'client' if from_client else 'server'}_no_context_takeover"
    return [_Inflate(limit, takeover=alone not in parameters, skips=skips)]


def _too_large(limit: int) -> MessageTooLarge:
    return MessageTooLarge(f"A WebSocket message has more than {limit} bytes.")
