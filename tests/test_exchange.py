from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.exchange import Ending, first_id, last_id, new_id

_MILLISECOND = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def test_each_ending_has_a_text_of_its_own() -> None:
    assert len({ending.value for ending in Ending}) == len(Ending) == 6


@given(st.integers(0, 2**63))
def test_ids_sort_by_the_time_to_the_millisecond(begun_ns: int) -> None:
    at = _EPOCH + timedelta(microseconds=begun_ns // 1000)
    made = new_id(begun_ns)
    assert first_id(at) <= made <= last_id(at) < first_id(at + _MILLISECOND)
    assert len(first_id(at)) == len(made) == len(last_id(at)) == 26


def test_no_id_is_of_a_time_before_1970() -> None:
    assert first_id(datetime.min.replace(tzinfo=timezone.utc)) <= new_id(0)
