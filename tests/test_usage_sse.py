from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmproxy.usage import Reading, Usage, sse
from llmproxy.usage.fields import Document
from llmproxy.usage.reader import Event, Reader
from llmproxy.usage.sse import HELD, LIMIT, EventStream
from tests.usage_support import cut


class Seen(Reader):
    """Keeps the events that have a mark in them."""

    def __init__(self, mark: bytes = b"") -> None:
        super().__init__()
        self._mark = mark
        self.events: list[Event] = []

    def ordinary(self, data: bytes) -> bool:
        return self._mark not in data

    def event(self, event: Event) -> None:
        self.events.append(event)

    def answer(self, document: Document) -> None:
        raise AssertionError

    def usage(self) -> Usage | None:
        return Usage(input_tokens=1)


def events(pieces: Iterable[bytes], mark: bytes = b"") -> list[Event]:
    return outcome(pieces, mark)[0]


def outcome(pieces: Iterable[bytes], mark: bytes) -> tuple[list[Event], Reading]:
    reader = Seen(mark)
    stream = EventStream(lambda: reader)
    for piece in pieces:
        stream.feed(piece)
    reading = stream.close(True)
    return reader.events, reading


STREAM = """\
\N{BOM}: hello

event: a
data: {"x":
data:  "é\N{OCTOPUS}"}
id: 7


data:b

:ping

event:c
data
retry: 5

data: last""".replace("\N{BOM}", "\ufeff").encode()
EVENTS = [
    Event(b"", b""),
    Event(b"a", '{"x":\n "é\N{OCTOPUS}"}'.encode()),
    Event(b"", b"b"),
    Event(b"", b""),
    Event(b"c", b""),
    Event(b"", b"last"),
]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_all_line_ends_comments_and_fields_are_understood_wherever_the_stream_is_cut(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    assert events([stream]) == EVENTS
    assert events(cut(stream, range(len(stream)))) == EVENTS
    for at in range(1, len(stream)):
        assert events(cut(stream, [at])) == EVENTS


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"data: x", b":", b"event: e", b"\xef\xbb\xbf"]), max_size=16),
    st.data(),
)
@example([b"data: x", b"\r", b"\n", b"\r", b"\n", b"data: x"], None)
def test_line_ends_of_all_kinds_mixed_are_understood_wherever_the_stream_is_cut(
    tokens: list[bytes], data: st.DataObject | None
) -> None:
    stream = b"".join(tokens)
    places = range(len(stream)) if data is None else data.draw(st.sets(st.integers(0, len(stream))))
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    expected = sum(any(group) for _, group in itertools.groupby(lines, bool))
    assert events([stream]) == events(cut(stream, places))
    assert len(events([stream])) == expected


def test_an_event_is_told_when_its_blank_line_has_come() -> None:
    reader = Seen()
    stream = EventStream(lambda: reader)
    stream.feed(b"data: x\n")
    assert reader.events == []
    stream.feed(b"\n")
    assert reader.events == [Event(b"", b"x")]


def test_only_the_events_with_a_marker_are_looked_at() -> None:
    stream = b"data: x\n\n" * 3 + b"data: MARK\n\n" + b"data: y\n\n" * 3
    assert events([stream], b"MARK") == [Event(b"", b"MARK")]


def large(size: int, mark_at: int, mark: bytes = b"MARK") -> bytes:
    """An event of so many bytes, with a mark in it at that place."""
    body = bytearray(b"data:" + b"x" * (size - 5))
    body[mark_at : mark_at + len(mark)] = mark
    return bytes(body)


@pytest.mark.parametrize("step", [1000, HELD - 1, HELD, HELD + 1, 10**8])
@pytest.mark.parametrize(
    ("size", "mark_at", "expected"),
    [
        pytest.param(HELD, HELD // 2, HELD - 5, id="of what is held, a mark anywhere"),
        pytest.param(HELD + 1, HELD - 4, HELD + 1 - 5, id="larger, a mark at the start"),
        pytest.param(HELD + 1, HELD - 3, HELD // 2, id="larger, a mark at the end"),
        pytest.param(10 * HELD, 9 * HELD + HELD // 2, HELD // 2, id="much larger, a mark at the end"),
        pytest.param(10 * HELD, 9 * HELD + HELD // 2 - 1, None, id="much larger, a mark before the end"),
        pytest.param(10 * HELD, 10, 10 * HELD - 5, id="much larger, a mark at the start"),
        pytest.param(LIMIT, 10, LIMIT - 5, id="as large as can be"),
    ],
)
def test_of_a_large_event_all_is_held_or_the_end_or_nothing(
    size: int, mark_at: int, expected: int | None, step: int
) -> None:
    stream = b"data: 1\n\n" + large(size, mark_at) + b"\n\ndata: MARK\n\n"
    found = events(cut(stream, range(0, len(stream), step)), b"MARK")
    sizes = [len(event.data) for event in found]
    assert sizes == ([4] if expected is None else [expected, 4])


@given(
    st.lists(st.sampled_from([b"\n\n", b"\n", b"\r", b"MARK", b"data:", b"x" * 5, b"x" * 30]), max_size=30),
    st.data(),
)
def test_events_of_all_sizes_are_the_same_wherever_the_stream_is_cut(
    tokens: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(tokens)
    places = data.draw(st.sets(st.integers(0, len(stream))))
    with mock.patch.multiple(sse, HELD=24, LIMIT=80, _TAIL=12):
        assert outcome([stream], b"MARK") == outcome(cut(stream, places), b"MARK")


@pytest.mark.parametrize("step", [HELD, 10**8])
def test_an_event_beyond_all_bounds_costs_the_usage_and_not_the_rest(step: int) -> None:
    body = large(LIMIT + 1, 10) + b"\n\n" + b"data: MARK\n\n"
    found, reading = outcome(cut(body, range(0, len(body), step)), b"MARK")
    assert (reading.source, reading.usage) == ("too_large", None)
    assert found == [Event(b"", b"MARK")]


def test_an_ordinary_event_may_be_of_any_size() -> None:
    reader = Seen(b"MARK")
    stream = EventStream(lambda: reader)
    for _ in range(2 * LIMIT // HELD):
        stream.feed(b"x" * HELD)
    stream.feed(b"\n\n")
    assert stream.close(True).source == "reported"


def held_at_most(head: bytes, pieces: int) -> int:
    """The bytes that a stream holds more than before, at most, while an event of that many pieces of 16 KiB passes."""
    stream = EventStream(lambda: Seen(b"MARK"))
    piece = b"x" * 2**14
    stream.feed(head)
    tracemalloc.start()
    for _ in range(pieces):
        stream.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_an_ordinary_event_holds_little() -> None:
    # While it is cut back, the end of it is there twice; a bytearray grows by an eighth more than it needs.
    assert held_at_most(b"data: ", 2000) < 4 * HELD


def test_an_event_that_matters_holds_no_more_than_the_limit() -> None:
    assert held_at_most(b"data: MARK", 2000) < 1.3 * LIMIT
