from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from llmproxy.idle import IdleTimer


class Timer:
    """An idle timer of 10 seconds, its clock, and when it expired."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.expired: list[float] = []
        self.idle = IdleTimer(self.clock, 10.0, lambda: self.expired.append(self.clock.seconds()))


@pytest.fixture
def timer() -> Timer:
    return Timer()


def test_it_expires_once_after_the_time(timer: Timer) -> None:
    timer.idle.start()
    timer.clock.advance(9.99)
    assert timer.expired == []
    timer.clock.pump([0.01, 100, 100])
    assert timer.expired == [10.0]
    assert timer.clock.getDelayedCalls() == []


def test_it_does_not_run_before_it_is_started(timer: Timer) -> None:
    timer.idle.touch()
    timer.clock.advance(100)
    assert timer.expired == []


def test_a_touch_puts_it_off_by_the_whole_time(timer: Timer) -> None:
    timer.idle.start()
    timer.clock.advance(6)
    timer.idle.touch()
    timer.clock.pump([4, 5.5])
    assert timer.expired == []
    timer.clock.advance(0.5)
    assert timer.expired == [16.0]


def test_many_touches_need_one_delayed_call(timer: Timer) -> None:
    timer.idle.start()
    (before,) = timer.clock.getDelayedCalls()
    for _ in range(100):
        timer.clock.advance(0.01)
        timer.idle.touch()
    assert timer.clock.getDelayedCalls() == [before]


def test_a_second_start_begins_anew(timer: Timer) -> None:
    timer.idle.start()
    timer.clock.advance(6)
    timer.idle.start()
    assert len(timer.clock.getDelayedCalls()) == 1
    timer.clock.pump([4, 6])
    assert timer.expired == [16.0]


def test_stopped_it_does_not_expire_and_leaves_nothing_in_the_reactor(timer: Timer) -> None:
    timer.idle.start()
    timer.idle.stop()
    timer.idle.stop()
    assert timer.clock.getDelayedCalls() == []
    timer.clock.advance(100)
    assert timer.expired == []


def test_it_can_be_started_after_a_stop_and_after_it_expired(timer: Timer) -> None:
    timer.idle.start()
    timer.idle.stop()
    timer.clock.advance(5)
    timer.idle.start()
    timer.clock.advance(10)
    timer.idle.start()
    timer.clock.advance(10)
    assert timer.expired == [15.0, 25.0]


@given(st.lists(st.floats(0.0, 9.99), max_size=20))
def test_it_expires_exactly_the_time_after_the_last_touch(pauses: list[float]) -> None:
    timer = Timer()
    timer.idle.start()
    for pause in pauses:
        timer.clock.advance(pause)
        timer.idle.touch()
    assert timer.expired == []
    last = timer.clock.seconds()
    timer.clock.pump([0.5] * 40)
    (expired,) = timer.expired
    assert last + 10 - 1e-6 <= expired <= last + 10.5 + 1e-6
