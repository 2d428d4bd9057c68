from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from llmproxy.keyring import REFUSALS, Key, Keyring

REFUSED_REST = 300
LIMITED_REST = 10
LONGEST_REST = 3600
A_SUNDAY = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 section 5.6.7


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1000)
    return clock


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-9")
        time.tzset()
        yield
    time.tzset()


def make_ring(clock: Clock, count: int = 3) -> Keyring:
    return Keyring(
        [f"sk-{number}" for number in range(1, count + 1)],
        clock.seconds,
        lambda: A_SUNDAY + clock.seconds() - 1000,
    )


def chosen(ring: Keyring) -> Key:
    key = ring.choose()
    assert key is not None
    return key


def turns(ring: Keyring, count: int) -> list[int]:
    return [chosen(ring).number for _ in range(count)]


def put_to_rest(ring: Keyring, number: int, status: int = 401, retry_after: str | None = None) -> None:
    while (key := chosen(ring)).number != number:
        pass
    ring.report(key, status, retry_after)


def rest_after(
    clock: Clock, retry_after: str | bytes | None, retry_after_ms: str | bytes | None = None
) -> float:
    ring = make_ring(clock, 1)
    return ring.report(chosen(ring), 429, retry_after, retry_after_ms)


def is_resting(ring: Keyring, number: int) -> bool:
    return f"[{number}]" in repr(ring)


class TestTurns:
    def test_keys_are_used_in_turn(self, clock: Clock) -> None:
        assert turns(make_ring(clock), 7) == [1, 2, 3, 1, 2, 3, 1]

    def test_one_key_is_used_always(self, clock: Clock) -> None:
        assert turns(make_ring(clock, 1), 3) == [1, 1, 1]

    def test_without_keys_there_is_none_to_use(self, clock: Clock) -> None:
        assert make_ring(clock, 0).choose() is None

    def test_a_key_that_is_given_twice_counts_once(self, clock: Clock) -> None:
        assert turns(Keyring(["sk-1", "sk-2", "sk-1"], clock.seconds), 4) == [1, 2, 1, 2]

    def test_a_resting_key_is_left_out_and_the_others_share_its_turns_evenly(self, clock: Clock) -> None:
        ring = make_ring(clock, 4)
        put_to_rest(ring, 2)
        assert Counter(turns(ring, 30)) == {1: 10, 3: 10, 4: 10}

    def test_a_key_that_has_rested_takes_its_turns_again(self, clock: Clock) -> None:
        ring = make_ring(clock)
        put_to_rest(ring, 2)
        clock.advance(REFUSED_REST - 1)
        assert set(turns(ring, 6)) == {1, 3}
        clock.advance(1)
        assert set(turns(ring, 6)) == {1, 2, 3}

    @given(rests=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([401, 403, 429])), max_size=8))
    def test_no_key_that_is_awake_waits_longer_than_one_round(self, rests: list[tuple[int, int]]) -> None:
        clock = Clock()
        ring = make_ring(clock, 4)
        keys = [chosen(ring) for _ in range(4)]
        for place, status in rests:
            ring.report(keys[place], status)
        awake = {key.number for place, key in enumerate(keys) if place not in {place for place, _ in rests}}
        if awake:
            assert sorted(turns(ring, len(awake))) == sorted(awake)


class TestTrying:
    def test_a_refused_request_goes_to_each_other_key_once(self, clock: Clock) -> None:
        ring = make_ring(clock)
        tried: list[Key] = []
        while (key := ring.choose(tried)) is not None:
            ring.report(key, 401)
            tried.append(key)
        assert [key.number for key in tried] == [1, 2, 3]

    def test_a_key_that_was_tried_is_not_taken_again_though_it_is_awake(self, clock: Clock) -> None:
        ring = make_ring(clock, 1)
        key = chosen(ring)
        assert ring.report(key, 429, "0") == 0
        assert ring.choose([key]) is None
        assert ring.choose() == key

    def test_where_all_rest_a_first_attempt_gets_the_key_that_wakes_first(self, clock: Clock) -> None:
        ring = make_ring(clock)
        put_to_rest(ring, 1, 401)
        put_to_rest(ring, 2, 429, "20")
        put_to_rest(ring, 3, 429, "30")
        assert turns(ring, 3) == [2, 2, 2]

    def test_where_all_rest_there_is_no_second_attempt(self, clock: Clock) -> None:
        ring = make_ring(clock)
        for number in (1, 2, 3):
            put_to_rest(ring, number)
        assert ring.choose([chosen(ring)]) is None

    def test_a_key_that_is_refused_though_it_was_to_wake_first_lets_another_be_first(
        self, clock: Clock
    ) -> None:
        ring = make_ring(clock, 2)
        put_to_rest(ring, 1, 429, "20")
        put_to_rest(ring, 2, 429, "30")
        ring.report(chosen(ring), 429, "40")
        assert turns(ring, 2) == [2, 2]


class TestResting:
    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize("retry_after", [None, "1", "9999999"])
    def test_a_refused_key_rests_for_five_minutes_whatever_the_answer_asks(
        self, clock: Clock, status: int, retry_after: str | None
    ) -> None:
        ring = make_ring(clock, 1)
        assert ring.report(chosen(ring), status, retry_after) == REFUSED_REST
        clock.advance(REFUSED_REST - 0.1)
        assert is_resting(ring, 1)
        clock.advance(0.1)
        assert not is_resting(ring, 1)

    @pytest.mark.parametrize("status", sorted(set(range(100, 600)) - REFUSALS))
    def test_other_answers_say_nothing_against_a_key(self, clock: Clock, status: int) -> None:
        ring = make_ring(clock, 1)
        assert ring.report(chosen(ring), status, "60", "60000") == 0
        assert not is_resting(ring, 1)

    def test_a_limited_key_rests_for_as_long_as_the_answer_asks(self, clock: Clock) -> None:
        ring = make_ring(clock, 1)
        assert ring.report(chosen(ring), 429, "7") == 7
        clock.advance(6.9)
        assert is_resting(ring, 1)
        clock.advance(0.1)
        assert not is_resting(ring, 1)

    def test_of_answers_that_come_together_the_longest_rest_counts(self, clock: Clock) -> None:
        ring = make_ring(clock, 1)
        for asked in ("20", "30", "1"):
            ring.report(chosen(ring), 429, asked)
        ring.report(chosen(ring), 200)
        clock.advance(29)
        assert is_resting(ring, 1)
        clock.advance(1)
        assert not is_resting(ring, 1)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("7", 7),
            (b"7", 7),
            (" 7 ", 7),
            ("1.5", 1.5),
            ("0", 0),
            ("3600", LONGEST_REST),
            ("3601", LONGEST_REST),
            ("9" * 400, LONGEST_REST),
        ],
    )
    def test_it_may_be_a_number_of_seconds(self, clock: Clock, value: str | bytes, seconds: float) -> None:
        assert rest_after(clock, value) == seconds

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("Sun, 06 Nov 1994 08:50:07 GMT", 30),  # IMF-fixdate
            (b"Sun, 06 Nov 1994 08:50:07 GMT", 30),
            ("Sunday, 06-Nov-94 08:50:07 GMT", 30),  # RFC 850
            ("Sun Nov  6 08:50:07 1994", 30),  # asctime
            ("Sun, 06 Nov 1994 09:50:07 +0100", 30),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
            ("Sat, 05 Nov 1994 08:49:37 GMT", 0),
            ("Mon, 07 Nov 1994 08:49:37 GMT", LONGEST_REST),
            ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_REST),
        ],
    )
    def test_it_may_be_a_date(self, clock: Clock, value: str | bytes, seconds: float) -> None:
        assert rest_after(clock, value) == seconds

    def test_a_date_without_a_zone_is_in_utc_wherever_the_machine_is(
        self, clock: Clock, far_east: None
    ) -> None:
        assert rest_after(clock, "Sun Nov  6 08:50:07 1994") == 30

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "",
            "soon",
            "-1",
            "+7",
            "1e3",
            "inf",
            "nan",
            "7 seconds",
            "7, 8",
            "\u0667",
            b"\xff",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 +999999999999999999",
        ],
    )
    def test_where_it_cannot_be_read_the_rest_is_short(self, clock: Clock, value: str | bytes | None) -> None:
        assert rest_after(clock, value) == LIMITED_REST

    @pytest.mark.parametrize(
        ("milliseconds", "seconds"),
        [("1500", 1.5), (b"1500", 1.5), ("0", 0), ("250.5", 0.2505), ("9" * 400, LONGEST_REST)],
    )
    def test_milliseconds_are_preferred(
        self, clock: Clock, milliseconds: str | bytes, seconds: float
    ) -> None:
        assert rest_after(clock, "60", milliseconds) == pytest.approx(seconds)

    def test_milliseconds_that_cannot_be_read_leave_the_seconds(self, clock: Clock) -> None:
        assert rest_after(clock, "60", "soon") == 60

    @given(
        value=st.one_of(st.text(), st.binary(), st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [-+\w]+"))
    )
    def test_whatever_it_is_the_rest_is_bounded(self, value: str | bytes) -> None:
        assert 0 <= rest_after(Clock(), value) <= LONGEST_REST


class TestReload:
    def test_a_key_that_stays_rests_on_though_its_number_changes(self, clock: Clock) -> None:
        old = Keyring(["sk-a", "sk-b"], clock.seconds)
        put_to_rest(old, 2)
        new = Keyring(["sk-b", "sk-a", "sk-c"], clock.seconds)
        new.adopt(old)
        assert is_resting(new, 1)
        clock.advance(REFUSED_REST)
        assert set(turns(new, 3)) == {1, 2, 3}

    def test_a_key_that_went_and_came_back_is_awake(self, clock: Clock) -> None:
        first, second, third = (Keyring(keys, clock.seconds) for keys in (["sk-a"], ["sk-b"], ["sk-a"]))
        put_to_rest(first, 1)
        second.adopt(first)
        third.adopt(second)
        assert not is_resting(third, 1)

    def test_what_the_new_keyring_learns_does_not_change_the_old(self, clock: Clock) -> None:
        old, new = make_ring(clock, 1), make_ring(clock, 1)
        new.adopt(old)
        put_to_rest(new, 1)
        assert not is_resting(old, 1)


class TestRepresentation:
    def test_a_key_is_shown_by_its_number_alone(self, clock: Clock) -> None:
        assert repr(chosen(make_ring(clock))) == "Key(number=1)"

    def test_a_keyring_shows_which_keys_rest(self, clock: Clock) -> None:
        ring = make_ring(clock)
        put_to_rest(ring, 2)
        assert repr(ring) == "<Keyring of 3, resting: [2]>"
