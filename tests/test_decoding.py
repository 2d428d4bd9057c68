from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.decoding import TooLarge, Undecodable, decoder


def raw_deflate(data: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packing.compress(data) + packing.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


PACK: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "identity": (b"identity", bytes),
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b"x-gzip", gzip.compress),
    "deflate": (b"deflate", zlib.compress),
    "raw deflate": (b"deflate", raw_deflate),
    "br": (b"br", brotli.compress),
    "zstd": (b"zstd", zstd),
}
COMPRESSED = [name for name in PACK if name != "identity"]
TEXT = b'{"model": "m", "input": "' + bytes(range(32, 127)) * 40 + b'"}'


def decoded(coding: bytes, *pieces: bytes) -> bytes:
    decoding = decoder(coding)
    assert decoding is not None
    found = b"".join(decoding.feed(piece) for piece in pieces)
    decoding.close()
    return found


@given(st.sampled_from(list(PACK)), st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=6))
def test_a_body_is_decoded_however_it_is_cut(name: str, body: bytes, cuts: list[int]) -> None:
    coding, pack = PACK[name]
    packed = pack(body)
    ends = [0, *sorted(cuts), len(packed)]
    pieces = [packed[start:end] for start, end in itertools.pairwise(ends)]
    assert decoded(coding, *pieces) == body


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_body_is_decoded_byte_by_byte(name: str) -> None:
    coding, pack = PACK[name]
    assert decoded(coding, *(bytes([byte]) for byte in pack(TEXT))) == TEXT


@pytest.mark.parametrize("name", COMPRESSED)
def test_what_can_be_told_of_a_body_is_told_before_its_end(name: str) -> None:
    coding, pack = PACK[name]
    decoding = decoder(coding)
    assert decoding is not None
    body = b"".join(b"%d," % number for number in range(200_000))
    packed = pack(body)
    assert body.startswith(decoding.feed(packed[: len(packed) // 2])[:1000] or b"nothing")


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_members_follow_each_other(name: str) -> None:
    coding, pack = PACK[name]
    assert decoded(coding, pack(b"one ") + pack(b"") + pack(b"two"), pack(b" three")) == b"one two three"


@pytest.mark.parametrize("size", [65535, 65536, 65537, 10**6])
@pytest.mark.parametrize("name", ["gzip", "x-gzip", "zstd"])
def test_a_member_follows_one_that_is_decoded_in_several_pieces(name: str, size: int) -> None:
    coding, pack = PACK[name]
    first, second = b"a" * size, bytes(range(256)) * 400
    assert decoded(coding, pack(first) + pack(second)) == first + second


@pytest.mark.parametrize("size", [65535, 65536, 65537, 10**6])
@pytest.mark.parametrize("name", COMPRESSED)
def test_bytes_behind_a_body_that_is_decoded_in_several_pieces_are_undecodable(name: str, size: int) -> None:
    coding, pack = PACK[name]
    with pytest.raises(Undecodable):
        decoded(coding, pack(b"a" * size) + b"x")


def test_a_skippable_zstd_frame_is_skipped() -> None:
    assert decoded(b"zstd", b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(b"x")) == b"x"


def test_codings_are_undone_in_the_reverse_of_their_order() -> None:
    assert decoded(b"gzip, br", brotli.compress(gzip.compress(TEXT, mtime=0))) == TEXT
    assert decoded(b"GZip ,identity,, Zstd", zstd(gzip.compress(TEXT, mtime=0))) == TEXT
    with pytest.raises(Undecodable):
        decoded(b"gzip, br", gzip.compress(brotli.compress(TEXT), mtime=0))


@pytest.mark.parametrize("coding", [b"", b"identity", b" , Identity"])
def test_a_body_without_a_coding_is_left_as_it_is(coding: bytes) -> None:
    assert decoded(coding, b"abc", b"", b"def") == b"abcdef"


@pytest.mark.parametrize("coding", [b"compress", b"gzip, aes128gcm", b"gzip;q=1", b"\xff", b"br,br,br,br,br"])
def test_there_is_no_decoder_for_codings_that_nobody_knows(coding: bytes) -> None:
    assert decoder(coding) is None


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_body_that_is_not_in_its_coding_is_undecodable(name: str) -> None:
    with pytest.raises(Undecodable):
        decoded(PACK[name][0], b"\xff\xfe plain text, of some length at least")


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_body_that_ends_too_early_is_undecodable_at_its_end(name: str) -> None:
    coding, pack = PACK[name]
    decoding = decoder(coding)
    assert decoding is not None
    decoding.feed(pack(TEXT)[:-1])
    with pytest.raises(Undecodable, match="ends in the middle"):
        decoding.close()


@pytest.mark.parametrize("name", COMPRESSED)
def test_an_empty_body_is_not_in_any_coding(name: str) -> None:
    with pytest.raises(Undecodable):
        decoded(PACK[name][0], b"")


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("junk", [b"junk", b"\x00"])
@pytest.mark.parametrize("at_once", [True, False])
def test_bytes_behind_the_end_are_undecodable(name: str, junk: bytes, at_once: bool) -> None:
    coding, pack = PACK[name]
    packed = pack(TEXT)
    with pytest.raises(Undecodable):
        decoded(coding, *([packed + junk] if at_once else [packed, junk]))


def test_what_can_be_read_as_two_kinds_of_deflate_is_undecodable() -> None:
    # A zlib stream, and a stored block of raw deflate whose length's complement is right.
    assert zlib.decompressobj(wbits=-15).decompress(b"\x78\x01\x00\xfe\xffx") == b"x"
    with pytest.raises(Undecodable, match="two kinds"):
        decoded(b"deflate", b"\x78\x01\x00\xfe\xffx")


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_bomb_is_too_large_for_one_call(name: str) -> None:
    coding, pack = PACK[name]
    decoding = decoder(coding, max_per_call=100_000)
    assert decoding is not None
    with pytest.raises(TooLarge, match="100000 bytes"):
        decoding.feed(pack(bytes(20_000_000)))


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_body_that_grows_slowly_is_too_large_in_all(name: str) -> None:
    coding, pack = PACK[name]
    packed = pack(b"".join(b"%d," % number for number in range(100_000)))
    decoding = decoder(coding, max_total=400_000)
    assert decoding is not None
    sizes: list[int] = []
    with pytest.raises(TooLarge):
        sizes.extend(len(decoding.feed(packed[at : at + 1000])) for at in range(0, len(packed), 1000))
    assert 0 < sum(sizes) <= 400_000


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_bounds_themselves_are_allowed(name: str) -> None:
    coding, pack = PACK[name]
    decoding = decoder(coding, max_per_call=70_000, max_total=70_000)
    assert decoding is not None
    assert len(decoding.feed(pack(bytes(70_000)))) == 70_000


def test_each_of_stacked_codings_is_bounded() -> None:
    bomb = gzip.compress(gzip.compress(bytes(50_000_000), mtime=0), mtime=0)
    decoding = decoder(b"gzip, gzip")
    assert decoding is not None
    with pytest.raises(TooLarge):
        decoding.feed(bomb)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_body_of_nothing_but_empty_members_is_too_large(name: str) -> None:
    coding, pack = PACK[name]
    decoding = decoder(coding)
    assert decoding is not None
    with pytest.raises(TooLarge, match="members"):
        decoding.feed(pack(b"") * 10_001)


def test_a_zstd_frame_that_wants_a_larger_window_than_the_standard_allows_is_undecodable() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=27)
    packing = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    with pytest.raises(Undecodable):
        decoded(b"zstd", packing.compress(TEXT) + packing.flush())
