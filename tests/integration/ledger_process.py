"""A process that keeps a ledger, for tests that end it or take its disk.

``python -m tests.integration.ledger_process NAME SECONDS`` records an exchange every five milliseconds, and prints the id of
each. The ledger is that of ``LLMPROXY_LEDGER``.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import globalLogBeginner, textFileLogObserver

from llmproxy.ledger import open_ledger, parse_ledger
from llmproxy.usage.model import Usage
from tests.ledger_support import exchange, reading

INTERVAL = 0.005  # seconds


def main(name: str, seconds: float) -> None:
    """Record for some time, end the ledger, and tell what became of it."""
    reactor = installed
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    room = os.environ.get("ROOM")
    if room is not None:  # bytes that a file may have
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
    database = parse_ledger(os.environ["LLMPROXY_LEDGER"])
    assert database is not None
    ledger = open_ledger(database, reactor)
    count = 0
    slowest = 0.0

    def record() -> None:
        nonlocal count, slowest
        began = time.perf_counter()
        usage = Usage(input_tokens=1, output_tokens=2)
        ledger.record(exchange(id=f"{name}-{count:06}", client=name, reading=reading(usage), cost=3))
        slowest = max(slowest, time.perf_counter() - began)
        print(f"{name}-{count:06}", flush=True)
        count += 1

    async def run() -> None:
        ledger.start()
        recording = LoopingCall(record)
        recording.clock = reactor
        ended = recording.start(INTERVAL)
        await deferLater(reactor, seconds)
        if room is not None:
            print(f"full: {ledger.failing}, backlog {ledger.backlog}", flush=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        recording.stop()
        await ended
        await ledger.close()
        print(f"recorded {count}, dropped {ledger.dropped}, slowest {slowest:.3f}", flush=True)
        reactor.stop()

    def begin() -> None:
        Deferred.fromCoroutine(run())

    reactor.callWhenRunning(begin)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
