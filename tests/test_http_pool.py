from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.http.connection import UpstreamConnection
from llmproxy.http.fields import Fields
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.pool import Pool
from tests.upstream_support import OK, Outcome, Wire, read

REFUSED = error.ConnectionRefusedError()


class Attempt:
    """One connection that the pool has asked for, and the test's hand on what comes of it."""

    def __init__(self, make: Callable[[], UpstreamConnection]) -> None:
        self._make = make
        self.cancelled = False
        self.wire = Wire()
        self.connection: Any = None
        self.deferred: Deferred[UpstreamConnection] = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled = True

    def succeed(self) -> UpstreamConnection:
        self.connection = self._make()
        self.wire.connect(self.connection)
        self.deferred.callback(self.connection)
        made: UpstreamConnection = self.connection
        return made

    def fail(self, fault: Exception = REFUSED) -> None:
        self.deferred.errback(Failure(fault))


class World:
    """A pool, its clock, and the connections that it has asked for."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.attempts: list[Attempt] = []
        self.fails_at_once = False
        self.pool = Pool(self.clock, UpstreamLimits(**limits), self._connect)

    def _connect(self, make: Callable[[], UpstreamConnection]) -> Deferred[UpstreamConnection]:
        attempt = Attempt(make)
        self.attempts.append(attempt)
        if self.fails_at_once:
            attempt.fail()
        return attempt.deferred

    def acquire(self) -> Outcome:
        return Outcome(self.pool.acquire())

    def connected(self) -> Attempt:
        """A new connection, in use."""
        outcome = self.acquire()
        attempt = self.attempts[-1]
        attempt.succeed()
        assert outcome.result is attempt.connection
        return attempt

    def idle(self, count: int) -> list[Attempt]:
        """Some connections that were used once, given back in their order."""
        attempts = [self.connected() for _ in range(count)]
        for attempt in attempts:
            exchange(attempt)
        return attempts


def exchange(attempt: Attempt) -> None:
    """Use a connection for one exchange, which gives it back."""
    outcome = Outcome(attempt.connection.send(b"GET", b"/", Fields(), None, None))
    attempt.wire.receive(OK)
    read(outcome.result)


def test_its_repr_counts() -> None:
    world = World(connections=2)
    world.idle(1)
    world.acquire()
    world.acquire()
    assert repr(world.pool) == "<Pool 2 open, 1 idle, 1 waiting>"


class TestReuse:
    def test_there_is_nothing_to_take_at_first(self) -> None:
        assert World().pool.take() is None

    def test_the_most_recently_idle_connection_goes_first(self) -> None:
        world = World()
        first, second, third = world.idle(3)
        assert world.pool.take() is third.connection
        assert world.pool.take() is second.connection
        exchange(third)
        assert world.pool.take() is third.connection
        assert world.pool.take() is first.connection
        assert world.pool.take() is None

    def test_a_connection_is_not_given_to_two(self) -> None:
        world = World()
        world.idle(1)
        assert world.pool.take() is not None
        assert world.pool.take() is None
        assert world.acquire().pending
        assert len(world.attempts) == 2

    def test_a_connection_that_closes_while_idle_is_gone_at_once(self) -> None:
        world = World()
        first, second = world.idle(2)
        second.wire.lose(error.ConnectionDone())
        assert world.pool.take() is first.connection
        assert world.pool.take() is None
        assert repr(world.pool) == "<Pool 1 open, 0 idle, 0 waiting>"

    def test_no_more_than_a_bound_are_kept(self) -> None:
        world = World(idle_connections=2)
        first, second, third = world.idle(3)
        assert third.wire.ending == "closed"
        third.wire.turn()
        assert world.pool.take() is second.connection
        assert world.pool.take() is first.connection
        assert repr(world.pool) == "<Pool 2 open, 0 idle, 0 waiting>"


class TestExpiry:
    def test_an_idle_connection_is_closed_after_its_time(self) -> None:
        world = World(idle=4.0)
        (attempt,) = world.idle(1)
        world.clock.advance(3.9)
        assert attempt.wire.ending == "open"
        world.clock.advance(0.1)
        assert attempt.wire.ending == "closed"
        assert world.pool.take() is None

    def test_each_has_its_own_time_and_all_have_one_timer(self) -> None:
        world = World(idle=4.0)
        attempts = [world.connected() for _ in range(3)]
        for attempt in attempts:
            exchange(attempt)
            assert len(world.clock.getDelayedCalls()) == 1
            world.clock.advance(1)
        ended = []
        for _ in range(4):
            ended.append([attempt.wire.ending for attempt in attempts].count("closed"))
            for attempt in attempts:
                attempt.wire.turn()
            assert len(world.clock.getDelayedCalls()) == (1 if ended[-1] < 3 else 0)
            world.clock.advance(1)
        assert ended == [0, 1, 2, 3]

    def test_use_begins_the_time_anew(self) -> None:
        world = World(idle=4.0)
        (attempt,) = world.idle(1)
        world.clock.advance(3)
        assert world.pool.take() is attempt.connection
        exchange(attempt)
        world.clock.advance(3.5)
        assert attempt.wire.ending == "open"
        world.clock.advance(0.5)
        assert attempt.wire.ending == "closed"

    def test_a_connection_in_use_does_not_expire(self) -> None:
        world = World(idle=4.0)
        (attempt,) = world.idle(1)
        world.pool.take()
        world.clock.advance(100)
        assert attempt.wire.ending == "open"
        assert world.clock.getDelayedCalls() == []


class TestWaiting:
    def test_requests_beyond_the_bound_wait_in_order(self) -> None:
        world = World(connections=1)
        attempt = world.connected()
        first, second = world.acquire(), world.acquire()
        assert len(world.attempts) == 1
        exchange(attempt)
        assert (first.result, second.pending) == (attempt.connection, True)
        exchange(attempt)
        assert second.result is attempt.connection
        exchange(attempt)
        assert world.pool.take() is attempt.connection

    def test_one_that_gives_up_is_passed_over(self) -> None:
        world = World(connections=1)
        attempt = world.connected()
        first, second = world.acquire(), world.acquire()
        first.deferred.cancel()
        assert first.failure.check(CancelledError)
        exchange(attempt)
        assert second.result is attempt.connection
        assert repr(world.pool) == "<Pool 1 open, 0 idle, 0 waiting>"

    def test_a_lost_connection_makes_room_for_a_new_one(self) -> None:
        world = World(connections=1)
        attempt = world.connected()
        waiting = world.acquire()
        attempt.wire.lose(error.ConnectionLost())
        assert len(world.attempts) == 2
        assert waiting.pending
        made = world.attempts[1].succeed()
        assert waiting.result is made

    def test_a_new_connection_goes_to_whoever_waits_longest(self) -> None:
        world = World(connections=2)
        one, other = world.connected(), world.connected()
        first, second = world.acquire(), world.acquire()
        one.wire.lose(error.ConnectionLost())
        exchange(other)
        assert first.result is other.connection
        made = world.attempts[2].succeed()
        assert second.result is made

    def test_a_connection_that_nobody_waits_for_any_more_is_kept(self) -> None:
        world = World(connections=1)
        attempt = world.connected()
        waiting = world.acquire()
        attempt.wire.lose(error.ConnectionLost())
        waiting.deferred.cancel()
        made = world.attempts[1].succeed()
        assert world.pool.take() is made

    def test_an_attempt_that_is_given_up_makes_room(self) -> None:
        world = World(connections=1)
        first, second = world.acquire(), world.acquire()
        first.deferred.cancel()
        assert world.attempts[0].cancelled
        assert first.failure.check(CancelledError)
        made = world.attempts[1].succeed()
        assert second.result is made


class TestFailing:
    def test_a_failure_is_told_and_makes_room(self) -> None:
        world = World(connections=1)
        outcome = world.acquire()
        world.attempts[0].fail()
        assert outcome.failure.value is REFUSED
        assert repr(world.pool) == "<Pool 0 open, 0 idle, 0 waiting>"

    def test_a_failure_of_one_is_not_told_to_those_who_wait(self) -> None:
        world = World(connections=1)
        first, second = world.acquire(), world.acquire()
        world.attempts[0].fail()
        assert len(first.failures) == 1
        assert second.pending
        made = world.attempts[1].succeed()
        assert second.result is made

    def test_each_failure_is_told_to_one_and_costs_one_attempt(self) -> None:
        world = World(connections=1)
        outcomes = [world.acquire() for _ in range(4)]
        for number in range(4):
            assert [outcome.pending for outcome in outcomes] == [at >= number for at in range(4)]
            assert len(world.attempts) == number + 1
            world.attempts[number].fail()
        assert not any(outcome.pending for outcome in outcomes)
        assert len(world.attempts) == 4
        assert repr(world.pool) == "<Pool 0 open, 0 idle, 0 waiting>"

    def test_failures_that_are_known_at_once_reach_all_who_wait(self) -> None:
        world = World(connections=1)
        attempt = world.connected()
        outcomes = [world.acquire() for _ in range(3)]
        world.fails_at_once = True
        attempt.wire.lose(error.ConnectionLost())
        assert [outcome.failure.value for outcome in outcomes] == [REFUSED] * 3
        assert repr(world.pool) == "<Pool 0 open, 0 idle, 0 waiting>"

    def test_a_failure_that_nobody_waits_for_any_more_is_dropped(self) -> None:
        world = World(connections=1)
        attempt = world.connected()
        waiting = world.acquire()
        attempt.wire.lose(error.ConnectionLost())
        waiting.deferred.cancel()
        world.attempts[1].fail()
        assert repr(world.pool) == "<Pool 0 open, 0 idle, 0 waiting>"


class TestClosing:
    def test_idle_connections_are_closed_and_no_timer_is_left(self) -> None:
        world = World()
        attempts = world.idle(2)
        world.pool.close()
        assert [attempt.wire.ending for attempt in attempts] == ["closed", "closed"]
        for attempt in attempts:
            attempt.wire.turn()
        assert world.clock.getDelayedCalls() == []
        assert world.pool.take() is None

    def test_connections_in_use_are_closed_when_they_come_back(self) -> None:
        world = World()
        attempt = world.connected()
        world.pool.close()
        assert attempt.wire.ending == "open"
        exchange(attempt)
        assert attempt.wire.ending == "closed"
        attempt.wire.turn()
        assert world.clock.getDelayedCalls() == []

    def test_those_who_wait_are_served_and_the_other_bounds_hold(self) -> None:
        world = World(connections=1)
        attempt = world.connected()
        first = world.acquire()
        world.pool.close()
        second = world.acquire()
        assert len(world.attempts) == 1
        exchange(attempt)
        assert first.result is attempt.connection
        exchange(attempt)
        assert second.result is attempt.connection

    def test_a_pool_that_was_never_used_can_be_closed(self) -> None:
        world = World()
        world.pool.close()
        assert world.clock.getDelayedCalls() == []


class Pooling(RuleBasedStateMachine):
    """Whatever happens, in whatever order: the bounds hold, and nobody waits while there is room."""

    LIMITS = UpstreamLimits(connections=3, idle_connections=2, idle=4.0)

    def __init__(self) -> None:
        super().__init__()
        self.world = World(**attrs.asdict(self.LIMITS))
        self.outcomes: list[Outcome] = []
        self.used: list[UpstreamConnection] = []

    def collect(self) -> None:
        """Note who has got a connection."""
        for outcome in self.outcomes:
            self.used += outcome.results
            outcome.results.clear()
        self.outcomes = [
            outcome for outcome in self.outcomes if not outcome.failures and not outcome.deferred.called
        ]

    def attempt_of(self, connection: UpstreamConnection) -> Attempt:
        (attempt,) = [attempt for attempt in self.world.attempts if attempt.connection is connection]
        return attempt

    @property
    def connecting(self) -> list[Attempt]:
        return [attempt for attempt in self.world.attempts if not attempt.deferred.called]

    @rule()
    def ask(self) -> None:
        taken = self.world.pool.take()
        if taken is not None:
            self.used.append(taken)
        else:
            self.outcomes.append(self.world.acquire())

    @precondition(lambda self: self.connecting)
    @rule(data=st.data(), succeeds=st.booleans())
    def settle(self, data: Any, succeeds: bool) -> None:
        attempt = data.draw(st.sampled_from(self.connecting))
        if succeeds:
            attempt.succeed()
        else:
            attempt.fail()

    @precondition(lambda self: self.used)
    @rule(data=st.data(), survives=st.booleans())
    def finish(self, data: Any, survives: bool) -> None:
        connection = data.draw(st.sampled_from(self.used))
        self.used.remove(connection)
        if survives:
            exchange(self.attempt_of(connection))
        else:
            self.attempt_of(connection).wire.lose(error.ConnectionLost())

    @precondition(lambda self: self.outcomes)
    @rule(data=st.data())
    def give_up(self, data: Any) -> None:
        outcome = data.draw(st.sampled_from(self.outcomes))
        outcome.deferred.cancel()

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def turn(self) -> None:
        for attempt in self.world.attempts:
            if attempt.connection is not None:
                attempt.wire.turn()

    @invariant()
    def bounds_hold(self) -> None:
        self.collect()
        connected = [
            attempt.connection
            for attempt in self.world.attempts
            if attempt.connection is not None and "closed" not in repr(attempt.connection)
        ]
        assert len(connected) + len(self.connecting) <= self.LIMITS.connections
        assert len(set(map(id, self.used))) == len(self.used)
        idle = len(connected) - len(self.used)
        closing = sum(
            attempt.wire.ending != "open"
            for attempt in self.world.attempts
            if attempt.connection in connected
        )
        assert idle - closing <= self.LIMITS.idle_connections
        assert len(self.world.clock.getDelayedCalls()) <= 1 + closing  # each of which is to end in time

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        self.collect()
        if self.outcomes:
            assert self.connecting or len(self.used) + self.closing() == self.LIMITS.connections

    def closing(self) -> int:
        return sum(
            attempt.connection is not None
            and attempt.wire.ending != "open"
            and "closed" not in repr(attempt.connection)
            for attempt in self.world.attempts
        )


TestPooling = Pooling.TestCase
TestPooling.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
