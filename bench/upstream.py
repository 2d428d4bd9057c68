"""The upstream: a small chat answer, or a stream of events at the rate that is asked for. ``python -m bench.upstream [PORT]``.

It prints the port that it listens on, on 127.0.0.1, and ends when its standard input does, so that it cannot outlive the
process that started it. To be cheap beside what is measured, all streams of one rate share one clock, and an event that could
not be sent in time because its reader is slow is left out, not queued.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import httptools
import uvloop

from bench import wire
from bench.process import allow_many_files

_TURN = 0.001  # seconds


class Wheel:
    """Has every stream of one rate send in its turn, spread evenly so that they do not all send at once.

    :param rate: events a second, a divisor of 1000.
    """

    def __init__(self, rate: int) -> None:
        # One for each millisecond of the period. A dict is a set that keeps its order.
        self._slots: list[dict[Exchange, None]] = [{} for _ in range(1000 // rate)]
        self._added = 0
        self._turned = 0
        self._streams = 0

    def add(self, stream: Exchange) -> dict[Exchange, None]:
        """Have a stream send from now on, until it is removed from the slot that is returned."""
        slot = self._slots[self._added * 7 % len(self._slots)]  # 7 divides no period, so no slot is left out
        self._added += 1
        slot[stream] = None
        return slot

    def turn(self, now: int) -> None:
        """Send what is due.

        :param now: milliseconds. What is late by more than a whole period is left out: the load will miss it.
        """
        slots = len(self._slots)
        for moment in range(max(self._turned, now - slots) + 1, now + 1):
            for stream in self._slots[moment % slots]:
                stream.send()
        self._turned = now


class Wheels:
    """The wheels by their rate, turned once a millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wheels: dict[int, Wheel] = {}
        self._turn()

    def of(self, rate: int) -> Wheel:
        """Return the wheel for a rate."""
        if rate not in self._wheels:
            self._wheels[rate] = Wheel(rate)
        return self._wheels[rate]

    def _turn(self) -> None:
        now = time.monotonic_ns() // 1_000_000
        for wheel in self._wheels.values():
            wheel.turn(now)
        self._loop.call_later(_TURN, self._turn)


class Exchange(asyncio.Protocol):
    """A connection, and the request on it."""

    def __init__(self, wheels: Wheels) -> None:
        self._wheels = wheels
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._body = b""
        self._slot: dict[Exchange, None] = {}
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer; see httptools."""
        body, self._body = self._body, b""
        rate = wire.rate_asked(body)
        if rate is None:
            self._transport.write(wire.COMPLETION)
        else:
            self._transport.write(wire.STREAM_HEAD)
            self._slot = self._wheels.of(rate).add(self)

    def send(self) -> None:
        """Send an event, unless those before it still wait for the reader."""
        if not self._full:
            self._transport.write(wire.event(time.monotonic_ns()))

    def pause_writing(self) -> None:
        """See asyncio."""
        self._full = True

    def resume_writing(self) -> None:
        """See asyncio."""
        self._full = False

    def connection_lost(self, reason: Exception | None) -> None:
        """See asyncio."""
        self._slot.pop(self, None)
        del self._parser  # it refers to this


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    wheels = Wheels(loop)
    server = await loop.create_server(lambda: Exchange(wheels), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    allow_many_files()
    uvloop.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
