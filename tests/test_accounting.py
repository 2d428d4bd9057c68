from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from twisted.internet.task import Clock

from llmproxy.accounting import Accounting
from llmproxy.exchange import Exchange
from tests.conftest import LoggedFailures
from tests.metrics_support import exchange

LATEST = 0.5  # seconds after which an observer must have been told


class Observer:
    """Keeps what it is told, with the costs of then."""

    def __init__(self) -> None:
        self.told: list[list[Exchange]] = []

    def observe(self, exchanges: Sequence[Exchange], /) -> None:
        self.told.append(list(exchanges))


class Broken(Observer):
    def observe(self, exchanges: Sequence[Exchange], /) -> None:
        raise ZeroDivisionError


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer() -> Observer:
    return Observer()


def accounting(
    clock: Clock, *observers: Observer, price: Callable[[Exchange], int | None] = lambda _: 7
) -> Accounting:
    return Accounting(clock, price, observers)


def some(count: int) -> list[Exchange]:
    return [exchange(id=f"{number:026}", cost=None) for number in range(count)]


def test_who_ends_an_exchange_waits_for_nobody(clock: Clock, observer: Observer) -> None:
    books = accounting(clock, observer, price=lambda _: 1 // 0)
    books.add(exchange())
    assert observer.told == []
    assert len(clock.getDelayedCalls()) == 1
    clock.getDelayedCalls()[0].cancel()


def test_all_that_ended_meanwhile_is_told_at_once_in_order_and_priced(
    clock: Clock, observer: Observer
) -> None:
    books = accounting(clock, observer)
    first, *others = ended = some(5)
    books.add(first)
    clock.advance(0.1)
    for each in others:
        books.add(each)
    clock.advance(LATEST - 0.1)
    assert observer.told == [ended]
    assert [each.cost for each in ended] == [7] * 5
    assert clock.getDelayedCalls() == []


def test_many_are_told_at_once_and_not_later(clock: Clock, observer: Observer) -> None:
    books = accounting(clock, observer)
    ended = some(200)
    for each in ended:
        books.add(each)
        clock.advance(0)
        assert len(books._waiting) < 100
    clock.advance(LATEST)
    assert [each for told in observer.told for each in told] == ended
    assert max(map(len, observer.told)) < 100


def test_each_time_only_what_is_new_is_told(clock: Clock, observer: Observer) -> None:
    books = accounting(clock, observer)
    first, second = some(2)
    for each in (first, second):
        books.add(each)
        clock.advance(LATEST)
    assert observer.told == [[first], [second]]


def test_what_waits_can_be_told_at_once(clock: Clock, observer: Observer) -> None:
    books = accounting(clock, observer)
    first, second = some(2)
    books.add(first)
    books.flush()
    assert observer.told == [[first]]
    assert clock.getDelayedCalls() == []
    books.add(second)
    clock.advance(LATEST)
    assert observer.told == [[first], [second]]


def test_nobody_is_told_of_nothing(clock: Clock, observer: Observer) -> None:
    accounting(clock, observer).flush()
    assert observer.told == []


def test_a_price_of_later_is_that_of_what_is_told_later(clock: Clock, observer: Observer) -> None:
    books = accounting(clock, observer)
    books.add(exchange())
    books.flush()
    books.price = lambda _: None
    books.add(exchange())
    books.flush()
    assert [each.cost for (each,) in observer.told] == [7, None]


def test_an_observer_that_fails_hides_nothing_from_the_others(
    clock: Clock, observer: Observer, logged_failures: LoggedFailures
) -> None:
    books = accounting(clock, Broken(), observer)
    ended = some(2)
    for each in ended:
        books.add(each)
    clock.advance(LATEST)
    assert observer.told == [ended]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_a_price_that_fails_is_unknown_and_the_others_are_found(
    clock: Clock, observer: Observer, logged_failures: LoggedFailures
) -> None:
    first, second = some(2)
    books = accounting(clock, observer, price=lambda each: 7 // (each is not first))
    books.add(first)
    books.add(second)
    clock.advance(LATEST)
    assert observer.told == [[first, second]]
    assert [first.cost, second.cost] == [None, 7]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
