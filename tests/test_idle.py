from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from llmproxy.idle import IdleTimer, Scheduled, SharedClock
from tests.conftest import LoggedFailures


class Timer:
    """An idle timer of 10 seconds, its clock, and when it expired."""

    def __init__(self, shared: bool) -> None:
        self.clock = Clock()
        self.expired: list[float] = []
        self.shared = SharedClock(self.clock) if shared else None
        self.idle = IdleTimer(
            self.shared or self.clock, 10.0, lambda: self.expired.append(self.clock.seconds())
        )

    def calls(self) -> list[object]:
        """What is left in the reactor once the shared clock has let go of what it does not need."""
        if self.shared is not None:
            self.shared.rest()
        return list(self.clock.getDelayedCalls())


@pytest.fixture(params=["a clock of its own", "a shared clock"])
def timer(request: pytest.FixtureRequest) -> Timer:
    return Timer(shared=request.param == "a shared clock")


def test_it_expires_once_after_the_time(timer: Timer) -> None:
    timer.idle.start()
    timer.clock.advance(9.99)
    assert timer.expired == []
    timer.clock.pump([0.01, 100, 100])
    assert timer.expired == [10.0]
    assert timer.calls() == []


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
    (before,) = timer.calls()
    for _ in range(100):
        timer.clock.advance(0.01)
        timer.idle.touch()
    assert timer.calls() == [before]


def test_a_second_start_begins_anew(timer: Timer) -> None:
    timer.idle.start()
    timer.clock.advance(6)
    timer.idle.start()
    assert len(timer.calls()) == 1
    timer.clock.pump([4, 6])
    assert timer.expired == [16.0]


def test_stopped_it_does_not_expire_and_leaves_nothing_in_the_reactor(timer: Timer) -> None:
    timer.idle.start()
    timer.idle.stop()
    timer.idle.stop()
    assert timer.calls() == []
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


@given(st.lists(st.floats(0.0, 9.99), max_size=20), st.booleans())
def test_it_expires_exactly_the_time_after_the_last_touch(pauses: list[float], shared: bool) -> None:
    timer = Timer(shared)
    timer.idle.start()
    for pause in pauses:
        timer.clock.advance(pause)
        timer.idle.touch()
    assert timer.expired == []
    last = timer.clock.seconds()
    timer.clock.pump([0.5] * 40)
    (expired,) = timer.expired
    assert last + 10 - 1e-6 <= expired <= last + 10.5 + 1e-6


class Shared:
    """A shared clock, and the names of the calls that it made."""

    def __init__(self) -> None:
        self.below = Clock()
        self.clock = SharedClock(self.below)
        self.called: list[str] = []

    def call(self, name: str, delay: float, then: Callable[[], object] = lambda: None) -> Scheduled:
        def called() -> None:
            self.called.append(name)
            then()

        return self.clock.callLater(delay, called)


@pytest.fixture
def shared() -> Shared:
    return Shared()


class TestSharedClock:
    def test_it_tells_the_time_of_the_clock_beneath(self, shared: Shared) -> None:
        shared.below.advance(7)
        assert shared.clock.seconds() == 7

    def test_each_call_comes_at_its_time_whatever_the_order(self, shared: Shared) -> None:
        for name, delay in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
            assert shared.call(name, delay).getTime() == delay
        for count in range(4):
            assert shared.called == ["a", "b", "c"][:count]
            shared.below.advance(1)
        assert shared.called == ["a", "b", "c"]

    def test_many_calls_need_one_delayed_call_of_the_reactor(self, shared: Shared) -> None:
        for number in range(100):
            shared.call(str(number), 1 + number % 7)
        assert len(shared.below.getDelayedCalls()) == 1
        shared.below.advance(3)
        assert len(shared.below.getDelayedCalls()) == 1
        shared.below.pump([1] * 5)
        assert len(shared.called) == 100
        assert shared.below.getDelayedCalls() == []

    def test_a_call_that_was_cancelled_does_not_come(self, shared: Shared) -> None:
        cancelled = shared.call("cancelled", 1)
        shared.call("kept", 2)
        cancelled.cancel()
        cancelled.cancel()
        shared.below.pump([1, 1])
        assert shared.called == ["kept"]

    def test_a_call_may_cancel_another_that_is_due_with_it(self, shared: Shared) -> None:
        calls: list[Scheduled] = []
        for name, other in (("a", 1), ("b", 0)):
            calls.append(shared.call(name, 1, lambda other=other: calls[other].cancel()))  # type: ignore[misc]
        shared.below.advance(1)
        assert len(shared.called) == 1

    def test_a_call_may_ask_for_another(self, shared: Shared) -> None:
        shared.call("a", 1, lambda: shared.call("b", 1))
        shared.call("c", 5)
        shared.below.pump([1, 1, 3])
        assert shared.called == ["a", "b", "c"]

    def test_an_exception_in_one_call_is_logged_and_does_not_lose_the_others(
        self, shared: Shared, logged_failures: LoggedFailures
    ) -> None:
        shared.call("broken", 1, lambda: 1 // 0)
        shared.call("kept", 2)
        shared.below.advance(1)
        assert len(logged_failures.flush(ZeroDivisionError)) == 1
        shared.below.advance(1)
        assert shared.called == ["broken", "kept"]

    def test_closed_it_calls_nothing_and_leaves_nothing_in_the_reactor(self, shared: Shared) -> None:
        shared.call("a", 1)
        shared.clock.close()
        shared.clock.close()
        assert shared.below.getDelayedCalls() == []
        shared.below.advance(1)
        assert shared.called == []

    def test_it_rests_only_where_nothing_is_to_come(self, shared: Shared) -> None:
        call = shared.call("a", 1)
        shared.clock.rest()
        assert len(shared.below.getDelayedCalls()) == 1
        call.cancel()
        shared.clock.rest()
        assert shared.below.getDelayedCalls() == []
