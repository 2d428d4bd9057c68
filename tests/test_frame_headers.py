from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.frame_headers import DataSeen
from tests.test_frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, byte_by_byte, frame

KEYS = st.sampled_from([b"", b"mask", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff"])


@pytest.mark.parametrize("key", [b"", b"mask"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70000])
def test_frames_of_all_sizes_are_walked_through(size: int, key: bytes) -> None:
    seen = DataSeen()
    for _ in range(2):
        assert seen.feed(frame(TEXT, b"\x89" * size, key=key))
        assert not seen.feed(frame(PING, b"\x81" * 125, key=key))


@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY])
def test_each_byte_of_a_message_is_of_it(opcode: int) -> None:
    seen = DataSeen()
    sent = byte_by_byte(frame(opcode, b"some words" * 20, fin=False, compressed=True, key=b"mask"))
    assert all(seen.feed(byte) for byte in sent)


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_no_byte_of_a_control_frame_is_of_a_message(opcode: int) -> None:
    seen = DataSeen()
    assert not any(seen.feed(byte) for byte in byte_by_byte(frame(opcode, b"\x81\x81", key=b"mask") * 3))


def test_control_frames_may_come_with_messages_and_between_their_frames() -> None:
    ping, text = frame(PING, b"\x81", key=b"mask"), frame(TEXT, b"words", fin=False, key=b"mask")
    for at in range(len(ping) + 1):
        seen = DataSeen()
        assert seen.feed(text + ping[:at])
        assert seen.feed(ping[at:] + frame(CONTINUATION, b"", key=b"mask"))
        assert not seen.feed(ping)


def test_nothing_is_nothing() -> None:
    seen = DataSeen()
    assert not seen.feed(b"")
    assert seen.feed(b"\x81")
    assert not seen.feed(b"")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG]), st.binary(max_size=300), KEYS
        )
    ),
    st.lists(st.integers(0, 2000)),
)
def test_the_pieces_do_not_matter(sent: list[tuple[int, bytes, bytes]], places: list[int]) -> None:
    of_message: list[bool] = []
    data = b""
    for opcode, payload, key in sent:
        one = frame(opcode, payload[:125] if opcode >= CLOSE else payload, key=key)
        of_message += [opcode < CLOSE] * len(one)
        data += one
    seen = DataSeen()
    borders = [0, *sorted(place for place in places if place < len(data)), len(data)]
    for start, end in pairwise(borders):
        assert seen.feed(data[start:end]) == any(of_message[start:end])


@given(st.lists(st.binary(max_size=40)))
def test_what_is_no_frame_is_no_error_and_nothing_is_held(pieces: list[bytes]) -> None:
    seen = DataSeen()
    for piece in pieces:
        seen.feed(piece)
        assert len(seen._head) < 14
