"""Many streams at once, for a while, whose clients come and go as they like: nothing of them is left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import socket
import struct
from collections.abc import Iterator
from multiprocessing.connection import Connection
from random import Random
from typing import Any, ClassVar

import attrs
import pytest

from tests.integration.process import AUTHORIZATION, Proxy, eventually, settings
from tests.integration.wire import PATIENCE, message

STREAMS = 2000
ROUNDS = 2
ROUND = 5.0  # seconds, from when all streams are open
LONG, SHORT = 1000, 3  # events of a stream that nobody sees the end of, and of one that some do
PAUSES = (0.05, 1.0)  # seconds between two events
# Bytes by which the proxy may be larger after the second of two equal rounds than after the first. Later rounds add less and
# less; when an exchange left its objects behind for the collector, each round added 36 million.
KEPT = 15_000_000
GROWTH = 60_000_000  # bytes by which it may be larger than at its start: what the allocator keeps for the next crowd
EVENT = b"data: " + b"x" * 90 + b"\n\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
STREAM = message(
    b"HTTP/1.1 200 OK", b"Content-Type: text/event-stream", b"Transfer-Encoding: chunked", body=CHUNK
)


# The upstream, a process of its own


class _Streams(asyncio.Protocol):
    """One connection of the proxy: each request names the number of the events that answer it, with pauses between them."""

    open_now: ClassVar[set[_Streams]] = set()
    most: ClassVar[int] = 0
    random: ClassVar[Random] = Random(1)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next: asyncio.TimerHandle | None = None
        self._request = b""
        self.open_now.add(self)
        _Streams.most = max(self.most, len(self.open_now))

    def data_received(self, data: bytes) -> None:
        self._request += data
        if self._request.endswith(b"\r\n\r\n"):
            self._left = int(self._request.split(b" ", 2)[1].rpartition(b"/")[2])
            self._request = b""
            self._transport.write(STREAM)
            self._pause()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_now.discard(self)
        if self._next is not None:
            self._next.cancel()

    def _pause(self) -> None:
        self._next = asyncio.get_running_loop().call_later(self.random.uniform(*PAUSES), self._go_on)

    def _go_on(self) -> None:
        self._left -= 1
        if self._left:
            self._transport.write(CHUNK)
            self._pause()
        else:
            self._transport.write(b"0\r\n\r\n")


async def _serve(told: Connection) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Streams, "127.0.0.1", 0, backlog=4096)
    told.send(server.sockets[0].getsockname()[1])
    ended = asyncio.Event()

    def asked() -> None:
        if told.recv() == "end":
            ended.set()
        else:
            told.send((len(_Streams.open_now), _Streams.most))

    loop.add_reader(told.fileno(), asked)
    await ended.wait()
    loop.remove_reader(told.fileno())


def serve(told: Connection) -> None:
    """Serve event streams; answer each ``"count"`` with how many connections are open, and were at most."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(told))


class Crowded:
    """The upstream's process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        self.port: int = self._receive()

    def connections(self) -> tuple[int, int]:
        """How many connections are open now, and were open at most."""
        self._pipe.send("count")
        now, most = self._receive()
        return now, most

    def close(self) -> None:
        self._pipe.send("end")
        self._process.join(10)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        assert self._pipe.poll(30), "the upstream does not answer"
        return self._pipe.recv()


# The clients


@attrs.define
class Seen:
    """What the clients saw.

    :ivar now: streams that are open.
    :ivar most: streams that were open at the same time.
    :ivar whole: streams that were read to their end.
    :ivar left: streams that their client left before that.
    :ivar wrong: what was not a stream.
    """

    now: int = 0
    most: int = 0
    events: int = 0
    whole: int = 0
    left: int = 0
    wrong: list[bytes] = attrs.Factory(list)


class Crowd:
    """Clients that come together, and then go and come as they like.

    :param size: how many there are at the same time.
    """

    def __init__(self, port: int, size: int, random: Random) -> None:
        self._port = port
        self._size = size
        self._random = random
        self._all_here = asyncio.Event()
        self._until = 0.0
        self.seen = Seen()

    async def run(self) -> Seen:
        """Let them come and go for a round."""
        await asyncio.gather(*(self._client() for _ in range(self._size)))
        return self.seen

    async def _client(self) -> None:
        await asyncio.sleep(self._random.uniform(0, 1))
        await self._stream(LONG)
        while asyncio.get_running_loop().time() < self._until:
            await self._stream(self._random.choice((SHORT, LONG)))

    async def _stream(self, events: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        target = b"GET /openai/v1/stream/%d HTTP/1.1" % events
        writer.write(message(target, b"Host: proxy.example", AUTHORIZATION))
        try:
            await self._read(reader)
        except TimeoutError:
            self.seen.left += 1
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            self.seen.wrong.append(repr(error).encode())
        finally:
            _leave(writer, self._random.choice(("close", "reset", "end")))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read a stream to its end, or for some time after all others are there."""
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE * 2)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(head)
        self.seen.now += 1
        self.seen.most = max(self.seen.most, self.seen.now)
        try:
            loop = asyncio.get_running_loop()
            if self.seen.now == self._size and not self._all_here.is_set():
                self._until = loop.time() + ROUND
                self._all_here.set()
            await asyncio.wait_for(self._all_here.wait(), PATIENCE * 2)
            async with _timeout_at(min(self._until, loop.time() + self._random.uniform(0, ROUND))):
                while (size := int(await reader.readline(), 16)) > 0:
                    events = size // len(EVENT)  # those that came at once pass at once
                    if await reader.readexactly(size + 2) != EVENT * events + b"\r\n":
                        raise ValueError("an event that was not sent")
                    self.seen.events += events
                self.seen.whole += 1
        finally:
            self.seen.now -= 1


@contextlib.asynccontextmanager
async def _timeout_at(when: float) -> Any:
    """``asyncio.timeout_at``, which Python 3.10 has not."""
    task = asyncio.current_task()
    assert task is not None
    late: list[bool] = []

    def give_up() -> None:
        late.append(True)
        task.cancel()

    timer = asyncio.get_running_loop().call_at(when, give_up)
    try:
        yield
    except asyncio.CancelledError:
        if late:
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def _leave(writer: asyncio.StreamWriter, how: str) -> None:
    if how == "reset":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        if how == "end":
            with contextlib.suppress(OSError):
                writer.write_eof()
        writer.close()


@attrs.frozen
class Soaked:
    """A soak that is over.

    :ivar size: clients at the same time.
    :ivar rounds: what the clients saw in each round.
    :ivar memory: bytes of the proxy before, and after each round.
    :ivar most: connections that the upstream had at the same time.
    """

    size: int
    rounds: list[Seen]
    memory: list[int]
    most: int


@pytest.fixture(scope="module")
def many_descriptors() -> Iterator[int]:
    """The number of files that each process here may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * STREAMS if hard == resource.RLIM_INFINITY else min(hard, 3 * STREAMS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def soaked(many_descriptors: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soaked]:
    """Two equal rounds, after each of which the proxy has no connection left and still answers."""
    size = min(STREAMS, many_descriptors // 3)
    upstream = Crowded()
    url = f"http://127.0.0.1:{upstream.port}"
    proxy = Proxy(settings(url, url), tmp_path_factory.mktemp("soak"))
    try:
        proxy.ask(b"GET /healthz")
        proxy.hang_up()
        at_rest, memory, rounds = proxy.twistd.sockets, [proxy.twistd.memory], []
        for number in range(ROUNDS):
            rounds.append(asyncio.run(_crowd(proxy.twistd.port, size, Random(number))))
            # The idle connections to the upstream go after some seconds.
            eventually(lambda: proxy.twistd.sockets <= at_rest, "no connection is left")
            eventually(lambda: upstream.connections()[0] == 0, "none at the upstream, either")
            assert proxy.ask(b"GET /healthz").body == b"ok"
            proxy.hang_up()
            memory.append(proxy.twistd.memory)
        yield Soaked(size, rounds, memory, upstream.connections()[1])
    finally:
        proxy.stop()
        upstream.close()


async def _crowd(port: int, size: int, random: Random) -> Seen:
    return await Crowd(port, size, random).run()


@pytest.mark.slow
def test_2000_streams_whose_clients_come_and_go_pass_and_leave_no_connection_behind(soaked: Soaked) -> None:
    assert soaked.most >= soaked.size
    for seen in soaked.rounds:
        assert seen.wrong == []
        assert seen.most == soaked.size
        assert seen.whole > 0
        assert seen.left > soaked.size


@pytest.mark.slow
def test_they_leave_no_memory_behind(soaked: Soaked) -> None:
    before, first, second = soaked.memory
    assert second - first < KEPT, soaked.memory
    assert second - before < GROWTH, soaked.memory
