from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate

from llmproxy.frames import FrameError, FrameReader, Kind, Message, MessageTooLarge

DEFLATE = b"permessage-deflate"
ALONE = b"permessage-deflate; client_no_context_takeover; server_no_context_takeover"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

DELTA = b'{"type":"response.output_text.delta","delta":"Z\xc3\xbcrich"}'


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, compressed: bool = False, key: bytes = b""
) -> bytes:
    """One frame, made by hand: a reader that shares its library with what made its frames would prove little."""
    size, mask = len(payload), 0x80 if key else 0
    head = bytes([fin << 7 | compressed << 6 | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 2**16:
        head += bytes([mask | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask | 127]) + size.to_bytes(8, "big")
    if key:
        pad = (key * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
    return head + key + payload


class Deflated:
    """Compresses the messages of one direction."""

    def __init__(self, takeover: bool = True, window: int = 15) -> None:
        self._takeover = takeover
        self._window = window
        self._stream = zlib.compressobj(wbits=-window)

    def __call__(self, data: bytes) -> bytes:
        if not self._takeover:
            self._stream = zlib.compressobj(wbits=-self._window)
        found = self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        assert found.endswith(b"\x00\x00\xff\xff")
        return found[:-4]


def reader(extensions: bytes = b"", *, from_client: bool = False, limit: int = 2**20) -> FrameReader:
    return FrameReader(extensions, from_client=from_client, limit=limit)


def read(reading: FrameReader, pieces: Iterable[bytes]) -> tuple[list[Message], FrameError | None]:
    """All messages up to the first error, and that."""
    found: list[Message] = []
    try:
        for piece in pieces:
            for message in reading.feed(piece):
                found.append(message)  # noqa: PERF402 - extending by all of them would lose those before an error
    except FrameError as error:
        return found, error
    return found, None


def byte_by_byte(sent: bytes) -> list[bytes]:
    return [sent[at : at + 1] for at in range(len(sent))]


def contents(messages: Iterable[Message]) -> list[tuple[Kind, bytes]]:
    return [(message.kind, message.data) for message in messages]


def test_messages_are_read_whole_and_say_where_they_ended() -> None:
    first, second = frame(TEXT, DELTA), frame(BINARY, b"\x00\xff")
    reading = reader()
    assert list(reading.feed(first + second)) == [
        Message(Kind.TEXT, DELTA, size=len(first), end=len(first)),
        Message(Kind.BINARY, b"\x00\xff", size=len(second), end=len(first + second)),
    ]
    assert reading.unfinished == 0


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
def test_every_length_of_a_frame_is_read_masked_and_not(size: int) -> None:
    data = bytes(at % 251 for at in range(size))
    assert contents(reader().feed(frame(BINARY, data))) == [(Kind.BINARY, data)]
    masked = frame(BINARY, data, key=b"\x01\x80\xfe\x07")
    assert contents(reader(from_client=True).feed(masked)) == [(Kind.BINARY, data)]


def test_what_is_not_whole_yet_is_counted() -> None:
    sent = frame(TEXT, b"{", fin=False) + frame(PING, b"!") + frame(CONTINUATION, b"}")
    reading = reader()
    counted = []
    for byte in byte_by_byte(sent):
        list(reading.feed(byte))
        counted.append(reading.unfinished)
    # Three bytes, then three of a ping that is over at once, then three to the end.
    assert counted == [1, 2, 3, 4, 5, 3, 4, 5, 0]


def test_fragments_make_one_message_and_control_frames_between_them_come_first() -> None:
    parts = [
        frame(TEXT, DELTA[:20], fin=False),
        frame(PING, b"are you there"),
        frame(CONTINUATION, b"", fin=False),
        frame(PONG, b""),
        frame(CONTINUATION, DELTA[20:]),
    ]
    ends = [len(b"".join(parts[: at + 1])) for at in range(len(parts))]
    assert list(reader().feed(b"".join(parts))) == [
        Message(Kind.CONTROL, b"are you there", size=len(parts[1]), end=ends[1]),
        Message(Kind.CONTROL, b"", size=len(parts[3]), end=ends[3]),
        Message(Kind.TEXT, DELTA, size=len(parts[0] + parts[2] + parts[4]), end=ends[4]),
    ]


def test_a_close_ends_the_direction_and_what_is_behind_it_is_not_read() -> None:
    reading = reader()
    sent = frame(TEXT, b"1", fin=False) + frame(CLOSE, b"\x03\xe8bye") + b"\xff\xff not a frame"
    assert contents(reading.feed(sent)) == [(Kind.CONTROL, b"\x03\xe8bye")]
    assert reading.closed
    assert reading.unfinished == len(frame(TEXT, b"1"))
    assert list(reading.feed(b"\xff\xff")) == []


# Compressed messages


@pytest.mark.parametrize("window", [9, 12, 15])
@pytest.mark.parametrize("from_client", [False, True])
def test_compressed_messages_are_inflated_with_those_before_them(window: int, from_client: bool) -> None:
    agreed = f"permessage-deflate; client_max_window_bits={window}; server_max_window_bits={window}"
    deflated = Deflated(window=window)
    key = b"abcd" if from_client else b""
    sent = [frame(TEXT, deflated(DELTA * 9), compressed=True, key=key) for _ in range(5)]
    assert len(sent[1]) < len(sent[0])  # it does refer to the first
    reading = reader(agreed.encode(), from_client=from_client)
    assert contents(reading.feed(b"".join(sent))) == [(Kind.TEXT, DELTA * 9)] * 5


def test_without_context_takeover_each_message_is_inflated_alone() -> None:
    sent = frame(TEXT, Deflated()(DELTA), compressed=True) * 3
    assert contents(reader(ALONE).feed(sent)) == [(Kind.TEXT, DELTA)] * 3


@pytest.mark.parametrize("from_client", [False, True])
def test_only_the_parameter_of_the_same_direction_counts(from_client: bool) -> None:
    other = b"server" if from_client else b"client"
    deflated, key = Deflated(), b"abcd" if from_client else b""
    sent = b"".join(frame(TEXT, deflated(DELTA * 9), compressed=True, key=key) for _ in range(2))
    reading = reader(DEFLATE + b"; " + other + b"_no_context_takeover", from_client=from_client)
    assert contents(reading.feed(sent)) == [(Kind.TEXT, DELTA * 9)] * 2


def test_compressed_messages_may_be_fragmented_with_control_frames_between_and_plain_messages_around() -> (
    None
):
    deflated = Deflated()
    first, second = deflated(DELTA * 3), deflated(DELTA * 4)
    sent = [
        frame(TEXT, b"plain"),
        frame(PING, b"0"),
        frame(TEXT, first[:7], fin=False, compressed=True),
        frame(PING, b"1"),
        frame(CONTINUATION, b"", fin=False),
        frame(CONTINUATION, first[7:]),
        frame(TEXT, b"plain", fin=False),
        frame(PONG, b"2"),
        frame(CONTINUATION, b" too"),
        frame(BINARY, second, compressed=True),
    ]
    assert contents(reader(DEFLATE).feed(b"".join(sent))) == [
        (Kind.TEXT, b"plain"),
        (Kind.CONTROL, b"0"),
        (Kind.CONTROL, b"1"),
        (Kind.TEXT, DELTA * 3),
        (Kind.CONTROL, b"2"),
        (Kind.TEXT, b"plain too"),
        (Kind.BINARY, DELTA * 4),
    ]


def test_what_another_end_of_a_websocket_writes_is_read() -> None:
    theirs = PerMessageDeflate()
    theirs.finalize(DEFLATE.decode())
    client = Connection(ConnectionType.CLIENT, [theirs])
    events: list[Event] = [
        TextMessage("Zür", message_finished=False),
        TextMessage("ich" * 1000),
        Ping(b"?"),
        BytesMessage(b"\xff" * 70000),
        CloseConnection(1000, "bye"),
    ]
    sent = b"".join(client.send(event) for event in events)
    assert contents(reader(DEFLATE, from_client=True).feed(sent)) == [
        (Kind.TEXT, ("Zür" + "ich" * 1000).encode()),
        (Kind.CONTROL, b"?"),
        (Kind.BINARY, b"\xff" * 70000),
        (Kind.CONTROL, b"\x03\xe8bye"),
    ]


# What was agreed


@pytest.mark.parametrize(
    "extensions",
    [
        b"",
        b" ",
        b"permessage-deflate",
        b" permessage-deflate ;server_no_context_takeover; server_max_window_bits=8 ",
        b'permessage-deflate; client_max_window_bits = "15"; client_no_context_takeover',
    ],
)
def test_what_can_be_agreed_to_is_known(extensions: bytes) -> None:
    assert contents(reader(extensions).feed(frame(TEXT, b"x"))) == [(Kind.TEXT, b"x")]


@pytest.mark.parametrize(
    "extensions",
    [
        b"x-webkit-deflate-frame",
        b"permessage-bzip2",
        b"Permessage-Deflate",
        b"permessage-deflate, permessage-deflate",
        b"permessage-deflate; server_max_window_bits=15, x-other",
        b"x-other, permessage-deflate",
        b"permessage-deflate; server_max_window_bits=7",
        b"permessage-deflate; server_max_window_bits=16",
        b"permessage-deflate; client_max_window_bits",
        b'permessage-deflate; client_max_window_bits="15',
        b"permessage-deflate; client_no_context_takeover=1",
        b"permessage-deflate; dictionary=x",
        b"permessage-deflate;",
        b";",
        b"\xff",
    ],
)
def test_an_extension_that_is_not_known_is_an_error(extensions: bytes) -> None:
    with pytest.raises(FrameError, match="not known here"):
        reader(extensions)


# What cannot be read


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (frame(TEXT, b"x", key=b"abcd"), "masked"),
        (frame(3, b"x"), "opcode"),
        (frame(11, b""), "opcode"),
        (frame(TEXT, b"x", compressed=True), "Reserved bit"),
        (b"\xa1\x01x", "Reserved bit"),
        (b"\x91\x01x", "Reserved bit"),
        (frame(PING, b"", fin=False), "fragment"),
        (frame(PING, b"x" * 126), "Control frame"),
        (b"\x81\x7e\x00\x01x", "Payload length"),
        (b"\x81\x7f\x00\x00\x00\x00\x00\x00\x00\x01x", "Payload length"),
        (b"\x81\x7f\xff\x00\x00\x00\x00\x00\x00\x01x", "length"),
        (frame(CONTINUATION, b"x"), "in the middle"),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), "before the last one ended"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "broken"),
    ],
)
def test_a_broken_frame_is_an_error_behind_the_messages_before_it(sent: bytes, why: str) -> None:
    sent = frame(TEXT, b"before") + sent
    for pieces in ([sent], byte_by_byte(sent)):
        found, error = read(reader(), pieces)
        assert contents(found) == [(Kind.TEXT, b"before")]
        assert why in str(error)
        assert str(error).endswith(".")


def test_a_client_that_does_not_mask_is_an_error() -> None:
    with pytest.raises(FrameError, match="unmasked"):
        list(reader(from_client=True).feed(frame(TEXT, b"x")))


@pytest.mark.parametrize(
    "sent",
    [
        frame(TEXT, b"\xff\xff\xff", compressed=True),
        frame(TEXT, Deflated()(DELTA * 9), compressed=True) + frame(TEXT, b"\x07", compressed=True),
        frame(CONTINUATION, b"x", compressed=True),
        frame(PING, b"x", compressed=True),
        frame(TEXT, b"", fin=False, compressed=True) + frame(CONTINUATION, b"", compressed=True),
    ],
)
def test_what_is_not_compressed_as_agreed_is_an_error(sent: bytes) -> None:
    with pytest.raises(FrameError):
        list(reader(DEFLATE).feed(sent))


def test_a_message_that_refers_to_one_before_it_against_what_was_agreed_is_an_error() -> None:
    deflated = Deflated()
    sent = b"".join(frame(TEXT, deflated(DELTA * 9), compressed=True) for _ in range(2))
    with pytest.raises(FrameError, match="not compressed as"):
        list(reader(ALONE).feed(sent))


@pytest.mark.parametrize("extensions", [DEFLATE, ALONE])
def test_a_last_block_is_an_error_since_some_readers_would_go_on_behind_it(extensions: bytes) -> None:
    stream = zlib.compressobj(wbits=-15)
    last = stream.compress(b"{}") + stream.flush(zlib.Z_FINISH)
    for more in (b"", b"\x00", Deflated()(b"more")):
        with pytest.raises(FrameError, match="last block"):
            list(reader(extensions).feed(frame(TEXT, last + more, compressed=True)))


# Bounds


@pytest.mark.parametrize("fragment", [1, 10, 100])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_message_may_have_as_many_bytes_as_the_limit_and_no_more(fragment: int, compressed: bool) -> None:
    def sent(size: int) -> bytes:
        data = Deflated()(b"x" * size) if compressed else b"x" * size
        pieces = [data[at : at + fragment] for at in range(0, len(data), fragment)]
        return b"".join(
            frame(
                CONTINUATION if at else TEXT,
                piece,
                fin=at == len(pieces) - 1,
                compressed=compressed and not at,
            )
            for at, piece in enumerate(pieces)
        )

    extensions = DEFLATE if compressed else b""
    assert contents(reader(extensions, limit=100).feed(sent(100))) == [(Kind.TEXT, b"x" * 100)]
    with pytest.raises(MessageTooLarge, match="more than 100 bytes"):
        list(reader(extensions, limit=100).feed(sent(101)))


def test_the_limit_holds_for_each_message_alone() -> None:
    deflated = Deflated()
    sent = b"".join(frame(TEXT, deflated(b"x" * 100), compressed=True) for _ in range(50))
    assert len(list(reader(DEFLATE, limit=100).feed(sent))) == 50


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("extensions", "fragment"),
    [
        (b"", frame(CONTINUATION, b"", fin=False)),
        (DEFLATE, frame(CONTINUATION, b"\x00\x00\x00\xff\xff" * 20, fin=False)),
    ],
)
def test_fragments_without_content_do_not_go_on_for_ever(
    extensions: bytes, fragment: bytes, split: bool
) -> None:
    sent = frame(TEXT, b"", fin=False, compressed=bool(extensions)) + fragment * 2000
    found, error = read(reader(extensions, limit=100), byte_by_byte(sent) if split else [sent])
    assert not found
    assert isinstance(error, MessageTooLarge)


def test_one_frame_without_content_ends_before_it_is_whole() -> None:
    sent = frame(TEXT, b"\x00\x00\x00\xff\xff" * 1000, compressed=True)
    with pytest.raises(MessageTooLarge):
        list(reader(DEFLATE, limit=100).feed(sent[:2000]))


@pytest.mark.parametrize("size", [300, 3000])
def test_frames_without_content_count_the_same_whether_they_come_at_once_or_not(size: int) -> None:
    between = (frame(CONTINUATION, b"", fin=False) * 10 + frame(PING, b"x" * 125)) * (size // 20)
    sent = frame(TEXT, b"{", fin=False) + between + frame(CONTINUATION, b"}")
    sent += frame(TEXT, b"x" * 100) * 100  # what follows does not
    at_once, bit_by_bit = (read(reader(limit=100), pieces) for pieces in ([sent], byte_by_byte(sent)))
    assert at_once[0] == bit_by_bit[0]
    assert type(at_once[1]) is type(bit_by_bit[1])
    assert isinstance(at_once[1], MessageTooLarge) == (size == 3000)


def test_a_bomb_is_not_inflated_beyond_the_limit() -> None:
    bomb = frame(TEXT, Deflated()(b"\x00" * (256 * 2**20)), compressed=True)
    reading = reader(DEFLATE, limit=2**20)
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge):
            list(reading.feed(bomb))
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


# Skipping

# Beyond a limit of 2000 bytes, whose end the next message refers to where it may; deflate makes little of it.
LARGE = b'{"type":"large","x":"' + Random(1).randbytes(5000).hex().encode() + b'"}'
SKIPPED = [(Kind.TEXT, DELTA, False), (Kind.TEXT, LARGE[:1024], True), (Kind.TEXT, LARGE[-1500:], False)]


def skipping(extensions: bytes = b"", limit: int = 2000) -> FrameReader:
    return FrameReader(extensions, from_client=False, limit=limit, skips=True)


def around_large(takeover: bool | None, fragment: int) -> bytes:
    """A message that is too large among others that are not.

    :param takeover: of the compression, which there is none of without.
    :param fragment: bytes of each of its frames.
    """
    deflated = (lambda data: data) if takeover is None else Deflated(takeover)
    compressed = takeover is not None
    sent = b""
    for data in (DELTA, LARGE, LARGE[-1500:]):
        payload = deflated(data)
        pieces = [payload[at : at + fragment] for at in range(0, len(payload), fragment)]
        for at, piece in enumerate(pieces):
            sent += frame(
                CONTINUATION if at else TEXT,
                piece,
                fin=at == len(pieces) - 1,
                compressed=compressed and not at,
            )
            sent += frame(PING, b"")
    return sent


@pytest.mark.parametrize("fragment", [700, 10**6])
@pytest.mark.parametrize(("extensions", "takeover"), [(b"", None), (DEFLATE, True), (ALONE, False)])
def test_a_message_beyond_the_limit_is_skipped_wherever_it_is_cut(
    extensions: bytes, takeover: bool | None, fragment: int
) -> None:
    sent = around_large(takeover, fragment)
    splits = [[sent], byte_by_byte(sent), *([sent[:at], sent[at:]] for at in range(1, len(sent)))]
    for pieces in splits:
        found, error = read(skipping(extensions), pieces)
        told = [(one.kind, one.data, one.skipped) for one in found if one.kind is not Kind.CONTROL]
        assert (told, error) == (SKIPPED, None)
    ((*_, last), _) = read(skipping(extensions), [sent])
    assert last.end == len(sent)


@pytest.mark.parametrize("takeover", [True, False])
def test_what_is_skipped_is_not_held(takeover: bool) -> None:
    deflated = Deflated(takeover)
    large = deflated(b"\x00" * (24 * 2**20))
    sent = frame(TEXT, large, compressed=True) + frame(TEXT, deflated(DELTA), compressed=True)
    plain = skipping(limit=2**20)
    compressed = skipping(DEFLATE if takeover else ALONE, limit=2**20)
    block = b"\x00" * 2**16
    tracemalloc.start()
    try:
        assert [len(one.data) for one in compressed.feed(sent)] == [1024, len(DELTA)]
        list(plain.feed(bytes([0x81, 127]) + (2**30).to_bytes(8, "big")))
        for _ in range(2**14):
            found = list(plain.feed(block))
        assert [(len(one.data), one.skipped, one.size) for one in found] == [(1024, True, 2**30 + 10)]
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert contents(plain.feed(frame(TEXT, DELTA))) == [(Kind.TEXT, DELTA)]


def test_a_bomb_is_skipped_up_to_a_bound_where_later_messages_refer_to_it() -> None:
    deflated = Deflated()
    reading = skipping(DEFLATE, limit=1000)
    with pytest.raises(MessageTooLarge):
        list(reading.feed(frame(TEXT, deflated(b"\x00" * 33 * 2**20), compressed=True)))
    alone = Deflated(takeover=False)
    sent = frame(TEXT, alone(b"\x00" * 2**20), compressed=True) + frame(TEXT, alone(DELTA), compressed=True)
    assert [one.skipped for one in skipping(ALONE, limit=1000).feed(sent)] == [True, False]


def test_fragments_without_content_are_skipped_too() -> None:
    sent = frame(TEXT, b"{", fin=False) + frame(CONTINUATION, b"", fin=False) * 5000
    sent += frame(CONTINUATION, b"}") + frame(TEXT, DELTA)
    for pieces in ([sent], byte_by_byte(sent)):
        found, error = read(skipping(), pieces)
        assert ([(one.data, one.skipped) for one in found], error) == ([(b"{", True), (DELTA, False)], None)


def test_what_is_skipped_must_be_compressed_as_was_agreed() -> None:
    large = Deflated()(LARGE)
    broken = frame(TEXT, large[:-200] + b"\xff" * 200, compressed=True)
    with pytest.raises(FrameError, match="not compressed"):
        list(skipping(DEFLATE).feed(broken))


@pytest.mark.parametrize("behind", [b"", b"\x00", b"\x00" * 100_000], ids=len)
@pytest.mark.parametrize("size", [2000, 2001, 2004, 5000, 500_000])
def test_a_last_block_ends_what_is_skipped_whatever_stands_behind_it(size: int, behind: bytes) -> None:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    payload = compressor.compress(b"x" * size) + compressor.flush(zlib.Z_FINISH) + behind
    sent = frame(TEXT, payload, compressed=True)
    for pieces in ([sent], [*byte_by_byte(sent[:1000]), sent[1000:]]):
        _, error = read(skipping(DEFLATE), pieces)
        assert error is not None
        assert "last block" in str(error)


def test_what_was_read_is_not_held() -> None:
    sent = frame(BINARY, b"x" * 60000) * 20
    reading = reader()
    list(reading.feed(sent))
    tracemalloc.start()
    try:
        for _ in range(20):
            list(reading.feed(sent))
        assert tracemalloc.get_traced_memory()[0] < 2**17
    finally:
        tracemalloc.stop()


# Splits

KEYS = st.sampled_from([b"\x00\x00\x00\x00", b"abcd", b"\xff\x00\x81\x7f"])


@st.composite
def traffic(draw: st.DrawFn, from_client: bool, deflate: bool) -> tuple[bytes, list[tuple[Kind, bytes]]]:
    """What one side sends, and what it says by that."""
    deflated = Deflated()
    sent = bytearray()
    said: list[tuple[Kind, bytes]] = []

    def add(opcode: int, payload: bytes, fin: bool = True, compressed: bool = False) -> None:
        key = draw(KEYS) if from_client else b""
        sent.extend(frame(opcode, payload, fin=fin, compressed=compressed, key=key))

    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(list(Kind)))
        data = draw(st.binary(max_size=40)) * draw(st.sampled_from([1, 1, 9]))
        if kind is Kind.CONTROL:
            add(PING, data[:125])
            said.append((kind, data[:125]))
            continue
        compressed = deflate and draw(st.booleans())
        payload = deflated(data) if compressed else data
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        opcode = TEXT if kind is Kind.TEXT else BINARY
        for at, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
            add(
                CONTINUATION if at else opcode,
                payload[start:stop],
                stop == len(payload) and at == len(cuts),
                compressed and not at,
            )
            if at < len(cuts) and draw(st.booleans()):
                add(PONG, b"pong")
                said.append((Kind.CONTROL, b"pong"))
        said.append((kind, data))
    return bytes(sent), said


@settings(deadline=None)
@given(data=st.data(), from_client=st.booleans(), deflate=st.booleans())
def test_however_the_bytes_are_split_the_same_messages_are_read(
    data: st.DataObject, from_client: bool, deflate: bool
) -> None:
    sent, said = data.draw(traffic(from_client, deflate))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=20)))
    pieces = [sent[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    extensions = DEFLATE if deflate else b""
    for split in ([sent], pieces, byte_by_byte(sent)):
        reading = reader(extensions, from_client=from_client)
        found = [message for piece in split for message in reading.feed(piece)]
        assert contents(found) == said
        assert sum(message.size for message in found) == len(sent)
        assert reading.unfinished == 0


@settings(deadline=None)
@given(sent=st.binary(max_size=60), data=st.data(), deflate=st.booleans())
def test_however_garbage_is_split_it_ends_the_same(sent: bytes, data: st.DataObject, deflate: bool) -> None:
    cut = data.draw(st.integers(0, len(sent)))
    outcomes = []
    for split in ([sent], [sent[:cut], sent[cut:]], byte_by_byte(sent)):
        found, error = read(reader(DEFLATE if deflate else b"", limit=30), split)
        outcomes.append((found, type(error)))
    assert outcomes[0] == outcomes[1] == outcomes[2]
