from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from llmproxy.http.deadline import Deadline


class Watched:
    """A deadline, and the times at which it expired."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.expired: list[float] = []
        self.deadline = Deadline(self.clock, lambda: self.expired.append(self.clock.seconds()))

    def wait(self, seconds: int) -> list[float]:
        """Let time pass, second by second."""
        self.clock.pump([1.0] * seconds)
        return self.expired


@pytest.fixture
def watched() -> Watched:
    return Watched()


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
    assert watched.clock.getDelayedCalls() == []


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
def test_cancelled_it_leaves_nothing_behind(watched: Watched, before: list[float]) -> None:
    for seconds in before:
        watched.deadline.set(seconds)
    watched.deadline.cancel()
    assert watched.clock.getDelayedCalls() == []
    assert watched.wait(100) == []


def test_to_move_it_later_costs_no_delayed_call(watched: Watched) -> None:
    for _ in range(100):
        watched.deadline.set(5)
    assert len(watched.clock.getDelayedCalls()) == 1
