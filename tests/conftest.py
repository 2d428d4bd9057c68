"""What holds for every test: nothing is logged as a failure, and the reactor is left as it was found."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
from twisted.internet._signals import _FDWaker
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(ILogObserver)
class LoggedFailures:
    """The failures that were logged during a test; those that are expected are to be taken out."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.events.append(event)

    def flush(self, *kinds: type[BaseException]) -> list[Failure]:
        """Take out the failures of some kinds and return them; they no longer fail the test."""
        gc.collect()  # a Deferred logs the failure that nobody handled when it goes
        flushed = [event for event in self.events if event["log_failure"].check(*kinds)]
        self.events = [event for event in self.events if event not in flushed]
        return [event["log_failure"] for event in flushed]


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[LoggedFailures]:
    """Fail the test that logs a failure, or leaves a delayed call or a selectable behind in the real reactor."""
    logged = LoggedFailures()
    globalLogPublisher.addObserver(logged)
    before = _in_reactor()
    yield logged
    gc.collect()
    globalLogPublisher.removeObserver(logged)
    left = [thing for thing in _in_reactor() if thing not in before]
    problems = [event["log_failure"].getTraceback() for event in logged.events] + [
        f"left in the reactor: {x}" for x in left
    ]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def pytest_collection_finish() -> None:
    """Keep what was imported out of every later collection: the SDKs' modules alone would make each cost 0.2 s."""
    gc.collect()
    gc.freeze()


def _in_reactor() -> list[object]:
    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is None:
        return []
    found = [*reactor.getDelayedCalls(), *reactor.getReaders(), *reactor.getWriters()]
    # A reactor that runs for the first time gets wakers of its own, and keeps them.
    return [thing for thing in found if not isinstance(thing, _FDWaker)]
