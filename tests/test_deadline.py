from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from llmproxy.deadline import Deadline, Scheduled, SharedClock
from tests.conftest import LoggedFailures


class Watched:
    """A deadline, and the times at which it expired."""

    def __init__(self, shared: bool) -> None:
        self.clock = Clock()
        self.expired: list[float] = []
        self.shared = SharedClock(self.clock) if shared else None
        self.deadline = Deadline(self.shared or self.clock, lambda: self.expired.append(self.clock.seconds()))

    def wait(self, seconds: int) -> list[float]:
        """Let time pass, second by second."""
        self.clock.pump([1.0] * seconds)
        return self.expired

    def calls(self) -> list[object]:
        """What is left in the reactor once the shared clock has let go of what it does not need."""
        if self.shared is not None:
            self.shared.rest()
        return list(self.clock.getDelayedCalls())


@pytest.fixture(params=["a clock of its own", "a shared clock"])
def watched(request: pytest.FixtureRequest) -> Watched:
    return Watched(shared=request.param == "a shared clock")


def test_nothing_is_due_at_first(watched: Watched) -> None:
    assert watched.wait(100) == []


def test_it_expires_once_and_exactly(watched: Watched) -> None:
    watched.deadline.set(5)
    assert watched.wait(4) == []
    assert watched.wait(100) == [5.0]


def test_it_can_be_moved_later(watched: Watched) -> None:
    watched.deadline.set(5)
    watched.wait(3)
    watched.deadline.set(5)
    assert watched.wait(4) == []
    assert watched.wait(100) == [8.0]


def test_it_can_be_moved_to_an_earlier_time(watched: Watched) -> None:
    watched.deadline.set(50)
    watched.wait(1)
    watched.deadline.set(5)
    assert watched.wait(100) == [6.0]
    assert watched.calls() == []


def test_cleared_it_does_not_expire(watched: Watched) -> None:
    watched.deadline.set(5)
    watched.deadline.clear()
    assert watched.wait(100) == []


def test_it_can_be_set_again_after_it_was_cleared(watched: Watched) -> None:
    watched.deadline.set(5)
    watched.deadline.clear()
    watched.wait(1)
    watched.deadline.set(2)
    assert watched.wait(100) == [3.0]


def test_it_can_be_set_again_when_it_has_expired(watched: Watched) -> None:
    watched.deadline.set(5)
    watched.wait(10)
    watched.deadline.set(5)
    assert watched.wait(100) == [5.0, 15.0]


def test_it_can_be_set_by_what_it_calls() -> None:
    clock = Clock()
    times: list[float] = []

    def expired() -> None:
        times.append(clock.seconds())
        if len(times) < 3:
            deadline.set(10)

    deadline = Deadline(clock, expired)
    deadline.set(1)
    clock.pump([1.0] * 50)
    assert times == [1.0, 11.0, 21.0]


@pytest.mark.parametrize("before", [[], [5.0], [5.0, 3.0]])
def test_closed_it_leaves_nothing_behind(watched: Watched, before: list[float]) -> None:
    for seconds in before:
        watched.deadline.set(seconds)
    watched.deadline.close()
    watched.deadline.close()
    assert watched.calls() == []
    assert watched.wait(100) == []


def test_to_move_it_later_costs_no_delayed_call(watched: Watched) -> None:
    for _ in range(100):
        watched.deadline.set(5)
    assert len(watched.calls()) == 1


@given(st.lists(st.floats(0.0, 9.99), max_size=20), st.booleans())
def test_it_expires_exactly_the_time_after_it_was_last_set(pauses: list[float], shared: bool) -> None:
    watched = Watched(shared)
    watched.deadline.set(10)
    for pause in pauses:
        watched.clock.advance(pause)
        watched.deadline.set(10)
    assert watched.expired == []
    last = watched.clock.seconds()
    watched.clock.pump([0.5] * 40)
    (expired,) = watched.expired
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
            shared.call(name, delay)
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
