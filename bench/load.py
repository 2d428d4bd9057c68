"""The load: does one :class:`bench.records.Task`, read from standard input, and prints one :class:`bench.records.Sample`.

It counts only between the two moments at which it reads the CPU time of the processes, so that both are of the same work. It
counts its own CPU time too: where the load is busy all the time, the figure is its own and not that of what it asks.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from bench import wire
from bench.process import allow_many_files, cpu_seconds, is_accounted, resident, waited_seconds
from bench.records import Sample, Task, quantile

_OPENING = 10.0  # seconds in which all connections must be open
_AT_ONCE = (
    32  # connections that are opened at the same time: the queue of a listener is often no longer than 50
)
_HEADS = 0.1  # seconds until the next ones are opened although these have had no answer
_ENOUGH = 100  # errors after which a connection is not made again


class Tally:
    """What has come, and how long each took, in nanoseconds; errors count always, all else only while it is open."""

    def __init__(self) -> None:
        self.open = False
        self.took: list[int] = []
        self.errors = 0
        self.trouble = ""

    def error(self, trouble: str) -> None:
        """Count an error."""
        self.errors += 1
        self.trouble = self.trouble or trouble


class Connection(asyncio.Protocol):
    """A connection that asks and reads what comes; how it goes on is for those that are made of it."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._tally = tally
        self._transport: Any = None
        self._left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self.ask()

    def ask(self) -> None:
        """Send the request."""
        self._asked = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._now = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._tally.error(f"no HTTP: {error}")
            self._transport.abort()

    def on_headers_complete(self) -> None:
        """See httptools."""
        status = self._parser.get_status_code()
        if status != 200:
            self._tally.error(f"status {status}")
        if not self.began.done():
            self.began.set_result(None)

    def connection_lost(self, reason: Exception | None) -> None:
        """See asyncio."""
        if not self._left:
            self.began.cancel()  # does nothing where it had begun
            self.ended()

    def ended(self) -> None:
        """Take note that the other side closed the connection."""
        raise NotImplementedError

    def leave(self) -> None:
        """Close the connection, on purpose."""
        self._left = True
        if self._transport is not None:
            self._transport.abort()


class Asker(Connection):
    """Asks for an answer, again and again.

    :param pause: mean seconds between an answer and the next request.
    :param connect: makes a connection for this, where the other side closed the one before.
    """

    def __init__(self, request: bytes, tally: Tally, pause: float, connect: Any) -> None:
        super().__init__(request, tally)
        self._pause = pause
        self._connect = connect
        self._waits = False

    def ask(self) -> None:
        """Send the request."""
        if not self._transport.is_closing():
            self._waits = True
            super().ask()

    def on_message_complete(self) -> None:
        """See httptools."""
        self._waits = False
        if self._tally.open:
            self._tally.took.append(self._now - self._asked)
        if not self._parser.should_keep_alive():
            self._transport.close()
        elif self._pause:
            # Varied, so that the connections do not fall into step.
            pause = self._pause * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            asyncio.get_running_loop().call_later(pause, self.ask)
        else:
            self.ask()

    def ended(self) -> None:
        """Count it if there was no answer, and go on with a new connection."""
        if self._waits:
            self._tally.error("the connection was lost before the answer")
        if self._tally.errors < _ENOUGH:
            self._again = asyncio.ensure_future(self._connect(self))


class Listener(Connection):
    """Asks for a stream, and reads its events for as long as they come."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        super().__init__(request, tally)
        self._events = wire.EventReader()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        for sent in self._events.read(body):
            if self._tally.open:
                self._tally.took.append(self._now - sent)

    def ended(self) -> None:
        """Count it: the stream has no end of its own."""
        self._tally.error("the stream ended")


async def load(task: Task) -> Sample:
    """Do a task."""
    url = urlsplit(task.base_url)
    host = url.hostname or ""
    model = wire.ANSWER if task.rate is None else wire.events(task.rate)
    request = wire.request(task.base_url, model, task.headers)
    processes = {**task.processes, "load": os.getpid()} if is_accounted() else {}
    before = {name: resident(pid) for name, pid in processes.items()}
    tally = Tally()

    async def connect(connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, host, url.port or 80)
        except OSError as error:
            tally.error(f"no connection: {error.strerror}")
            connection.began.cancel()

    connections: list[Connection] = [
        Asker(request, tally, task.pause, connect) if task.rate is None else Listener(request, tally)
        for _ in range(task.connections)
    ]
    try:
        await asyncio.wait_for(_open(connections, connect), _OPENING)
    except asyncio.TimeoutError:
        tally.error(f"not open after {_OPENING:.0f} seconds")
    opened = sum(each.began.done() and not each.began.cancelled() for each in connections)
    await asyncio.sleep(task.warmup)

    started = time.monotonic()
    used = {name: cpu_seconds(pid) for name, pid in processes.items()}
    kept = {name: waited_seconds(pid) for name, pid in processes.items()}
    tally.open = True
    await asyncio.sleep(task.seconds)
    tally.open = False
    seconds = time.monotonic() - started
    cpu = {name: cpu_seconds(pid) - used[name] for name, pid in processes.items()}
    waited = {name: waited_seconds(pid) - kept[name] for name, pid in processes.items()}
    after = {name: resident(pid) for name, pid in processes.items()}

    for connection in connections:
        connection.leave()
    tally.took.sort()
    p50, p99 = quantile(tally.took, 0.5), quantile(tally.took, 0.99)
    return Sample(
        connections=task.connections,
        opened=opened,
        seconds=seconds,
        expected=None if task.rate is None else task.connections * task.rate * seconds,
        count=len(tally.took),
        p50=None if p50 is None else p50 / 1e9,
        p99=None if p99 is None else p99 / 1e9,
        errors=tally.errors,
        trouble=tally.trouble,
        cpu=cpu,
        waited=waited,
        resident_before=before,
        resident_after=after,
    )


async def _open(connections: list[Connection], connect: Any) -> None:
    """Open connections, a few at a time, and wait until each has the head of its first response, or has failed."""
    for first in range(0, len(connections), _AT_ONCE):
        some = connections[first : first + _AT_ONCE]
        await asyncio.gather(*(connect(each) for each in some))
        # Some proxies hold a head back until there is a body: then the next ones are not kept waiting.
        await asyncio.wait([each.began for each in some], timeout=_HEADS)
    await asyncio.wait([each.began for each in connections])


if __name__ == "__main__":
    allow_many_files()
    gc.disable()  # it would show as delays; this process ends soon
    print(uvloop.run(load(Task.from_json(sys.stdin.read()))).to_json())
