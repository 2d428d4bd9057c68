"""Content codings undone on a copy of a body, bit by bit and within bounds (RFC 9110 section 8.4).

For whoever must look into a compressed body that passes: the body itself is never touched. What is decoded is only as much as
the bounds allow, since a few bytes can stand for gigabytes. Pure: no reactor, no I/O.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

MAX_PER_CALL = 8 * 2**20  # bytes, of one coding: some 1,000 times what is read from a socket at once
MAX_TOTAL = 256 * 2**20  # bytes, of one coding

_MOST_CODINGS = 4  # nobody stacks more; each costs memory
_MOST_MEMBERS = (
    10_000  # of a gzip or zstd body: each costs some microseconds, also where nothing comes out of it
)
_PIECE = 65536  # bytes of output that are made before the bounds are looked at again
_STEP = 16384  # bytes of input that a coding gets at once: what is behind the end of a member is copied for each member
# RFC 8878 section 3.1.1.2: four bytes can be a block of 128 KiB, and zstandard has no bound on its output. This much input
# cannot become more than 4 MiB.
_ZSTD_STEP = 128
# RFC 9659: as a content coding, no frame may need a larger window.
_ZSTD_WINDOW = 8 * 2**20


class Undecodable(ValueError):
    """A body that is not what its ``Content-Encoding`` says."""


class TooLarge(Undecodable):
    """A body of which more comes out than the bounds allow."""


class _Coding(Protocol):
    """One content coding being undone.

    :ivar step: how many bytes it takes at once.
    :ivar whole: what was fed so far is a complete coded body.
    """

    step: int
    whole: bool

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Decode, and yield the output in pieces of a bounded size; the error is the library's own or :class:`Undecodable`."""
        ...


class Decoder:
    """Undoes the codings of one body.

    :ivar codings: their names in the order in which they are undone; empty for a body that is sent as it is.
    """

    def __init__(
        self, codings: tuple[str, ...], max_per_call: int = MAX_PER_CALL, max_total: int = MAX_TOTAL
    ) -> None:
        self.codings = codings
        self._stages = [_Bounded(name, max_per_call, max_total) for name in codings]

    def feed(self, data: bytes) -> bytes:
        """Decode what came of a body, and return what can be told of its content so far.

        :raise Undecodable: at the first byte that no decoder would take; :class:`TooLarge` beyond the bounds. After either,
            the decoder is of no more use.
        """
        for stage in self._stages:
            data = stage.feed(data)
        return data

    def close(self) -> None:
        """Take note that the body is over.

        :raise Undecodable: where it ended too early.
        """
        for stage in self._stages:
            stage.close()


def decoder(
    content_encoding: bytes, *, max_per_call: int = MAX_PER_CALL, max_total: int = MAX_TOTAL
) -> Decoder | None:
    """Make what undoes the codings of a body, or ``None`` where one of them is unknown (or there are more than four).

    :param content_encoding: the value of the header, several joined by commas: ``b""`` where there is none. Names may be in
        any case (RFC 9110 section 8.4.1), and stand in the order in which the codings were applied.
    :param max_per_call: bytes that one call may make of its data, per coding.
    :param max_total: bytes that a body may come to, per coding. A body without any coding has no bound here.
    """
    names = [name.strip().lower().decode("latin-1") for name in content_encoding.split(b",")]
    applied = tuple(name for name in names if name not in ("", "identity"))
    if len(applied) > _MOST_CODINGS or not all(name in _CODINGS for name in applied):
        return None
    return Decoder(applied[::-1], max_per_call, max_total)


class _Bounded:
    """One coding, its bounds, and its library's errors by one name."""

    def __init__(self, name: str, max_per_call: int, max_total: int) -> None:
        self._name = name
        self._coding = _CODINGS[name]()
        self._max_per_call = max_per_call
        self._left = max_total

    def feed(self, data: bytes) -> bytes:
        if not data:
            return b""
        most = min(self._max_per_call, self._left)
        found: list[bytes] = []
        size = 0
        try:
            for at in range(0, len(data), self._coding.step):
                for piece in self._coding.pieces(data[at : at + self._coding.step]):
                    size += len(piece)
                    if size > most:
                        raise TooLarge(
                            f"More comes out of the {self._name} coding than is read ({most} bytes)."
                        )
                    found.append(piece)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            raise Undecodable(f"It is not in the {self._name} coding.") from None
        self._left -= size
        return b"".join(found)

    def close(self) -> None:
        if not self._coding.whole:
            raise Undecodable(f"It ends in the middle of the {self._name} coding.")


class _Members:
    """A coding whose body is one member after another: gzip (RFC 1952 section 2.2) or zstd (RFC 8878 section 3).

    :param start: makes what decodes a member.
    :param decode: has it decode some bytes.
    """

    def __init__(
        self, start: Callable[[], Any], decode: Callable[[Any, bytes], Iterator[bytes]], step: int
    ) -> None:
        self.step = step
        self.whole = False
        self._start = start
        self._decode = decode
        self._member = start()
        self._members = 1

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                self._member = self._start()
                self._members += 1
                if self._members > _MOST_MEMBERS:
                    raise TooLarge(f"It has more than {_MOST_MEMBERS} members.")
            yield from self._decode(self._member, data)
            self.whole = self._member.eof
            data = self._member.unused_data


def _gzip() -> _Members:
    return _Members(lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), _inflated, _STEP)


def _zstd() -> _Members:
    library = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    return _Members(library.decompressobj, lambda frame, data: iter((frame.decompress(data),)), _ZSTD_STEP)


class _Deflate:
    """RFC 1950 by its name; but some send RFC 1951 alone, and are understood (RFC 9110 section 8.4.1.2)."""

    step = _STEP

    def __init__(self) -> None:
        self._start = b""
        self._stream: zlib._Decompress | None = None
        self.whole = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._start = self._start + data
            window = _deflate_window(data)
            if window is None:
                return
            self._stream = zlib.decompressobj(wbits=window)
        if not self._stream.eof:
            yield from _inflated(self._stream, data)
            data = self._stream.unused_data
            self.whole = self._stream.eof
        if self.whole and data:
            raise Undecodable("It goes on behind the end of the deflate coding.")


def _deflate_window(start: bytes) -> int | None:
    """Tell a zlib stream from a raw one, as a ``wbits``, or ``None`` for want of bytes.

    A stream that is both would be read in two ways, by this and by whoever it is for; so it is neither.
    """
    if len(start) < 2:
        return None
    if start[0] & 0x0F != 8 or (start[0] << 8 | start[1]) % 31:  # RFC 1950 section 2.2
        return -zlib.MAX_WBITS
    if len(start) < 5:
        return None
    # Read as raw deflate, the first byte of a zlib stream begins a stored block: a length and its complement follow.
    if start[1] ^ start[3] == start[2] ^ start[4] == 0xFF:
        raise Undecodable("It can be read as two kinds of the deflate coding.")
    return zlib.MAX_WBITS


def _inflated(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    piece = stream.decompress(data, _PIECE)
    # Output can be left where no input is, so a full piece asks for another. Behind the end, zlib gives back what is left of
    # the input as often as it is asked.
    while (stream.unconsumed_tail or len(piece) == _PIECE) and not stream.eof:
        yield piece
        piece = stream.decompress(stream.unconsumed_tail, _PIECE)
    yield piece


class _Brotli:
    """RFC 7932."""

    step = _STEP

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self.whole = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self.whole:
            raise Undecodable("It goes on behind the end of the br coding.")
        piece = self._stream.process(data, output_buffer_limit=_PIECE)
        while piece or not self._stream.can_accept_more_data():
            yield piece
            piece = self._stream.process(b"", output_buffer_limit=_PIECE)
        self.whole = self._stream.is_finished()


# RFC 9110 section 8.4.1 and the IANA registry of content codings; section 8.4.1.3 gives gzip its second name.
_CODINGS: dict[str, Callable[[], _Coding]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _zstd,
}
