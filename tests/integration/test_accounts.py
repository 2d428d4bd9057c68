"""Ten thousand exchanges of all kinds, whose clients often leave before the end: the ledger has each one, and is right."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest

from llmproxy.demo import ANTHROPIC_KEY, OPENAI_KEY
from llmproxy.ledger import parse_ledger
from llmproxy.ledger.report import Question, ask
from tests.integration.demo_process import Counts, counts, events
from tests.integration.process import FOREGROUND, ROOT, Twistd
from tests.integration.wire import PATIENCE, message

EXCHANGES = 10_000
CONNECTIONS = 48  # of clients, at the same time
LEAVING = 0.2  # of the clients would not wait for the end of an answer
PATIENT = 0.06  # seconds after which the most patient of those have left
SESSIONS = 50
MODELS = ("demo-large", "demo-small", "unpriced")
CLIENTS = ("alice", "bob", "carol")
WRONG = "a-token-of-nobody"
# USD per million tokens, so micro-dollars per token.
PRICES = {"input": 1, "output": 10}
NOTHING: Counts = (None, None)


def token_of(client: str) -> str:
    return f"token-of-{client}"


def configuration(port: int) -> str:
    upstreams = "".join(
        f'[upstreams.{name}]\nbase_url = "http://127.0.0.1:{port}/{name}"\n'
        for name in ("openai", "anthropic")
    )
    clients = "".join(
        f'[clients.{name}]\ntoken_sha256 = "{hashlib.sha256(token_of(name).encode()).hexdigest()}"\n'
        for name in CLIENTS
    )
    prices = '[prices."demo-*"]\n' + "".join(f"{kind} = {price}\n" for kind, price in PRICES.items())
    return f'listen = ["tcp:0:interface=127.0.0.1"]\n{upstreams}{clients}{prices}'


# What is asked


@attrs.frozen
class Ask:
    """One request.

    :ivar number: which it is; it is sent as the id of an agent.
    :ivar client: ``None`` for a token that nobody has.
    :ivar model: that it names.
    :ivar body: a JSON object, or what is none.
    :ivar patience: seconds after which the client leaves, whatever it has read; ``None`` where it waits.
    :ivar refused: the proxy answers it, and not the upstream.
    """

    number: int
    client: str | None
    model: str | None
    line: str
    body: bytes
    patience: float | None
    refused: bool

    @property
    def session(self) -> str:
        return f"session-{self.number % SESSIONS}"

    @property
    def counts_only(self) -> bool:
        return self.line.endswith("/count_tokens")

    def sent(self) -> bytes:
        headers = [
            "Host: proxy.example",
            f"Authorization: Bearer {WRONG if self.client is None else token_of(self.client)}",
            "Content-Type: application/json",
            f"Content-Length: {len(self.body)}",
            "Anthropic-Version: 2023-06-01",
            f"X-Claude-Code-Session-Id: {self.session}",
            f"X-Claude-Code-Agent-Id: {self.number}",
        ]
        return message(f"{self.line} HTTP/1.1".encode(), *map(str.encode, headers), body=self.body)


class Asking:
    """Makes up requests."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def make(self, number: int) -> Ask:
        random = self._random
        # The weight of each kind, and what makes the line and the body of one.
        made: Sequence[tuple[int, Any]] = (
            (12, self._chat),
            (12, self._responses),
            (12, self._messages),
            (3, self._count_tokens),
            (2, self._models),
            (1, self._unknown_path),
            (1, self._broken),
        )
        (kind,) = random.choices([kind for _, kind in made], [weight for weight, _ in made])
        line, body = kind()
        client: str | None = random.choice(CLIENTS)
        if random.random() < 0.05:
            client = None
        if random.random() < 0.02:
            line = f"{line.split()[0]} /openai"  # where no API is
        refused = client is None or line.endswith("/openai")
        leaves = not refused and random.random() < LEAVING
        return Ask(
            number,
            client,
            body.get("model") if isinstance(body, dict) else None,
            line,
            b"" if body is None else json.dumps(body).encode(),
            random.uniform(0, PATIENT) if leaves else None,
            refused,
        )

    def _words(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": "word " * self._random.randrange(1, 60)}]

    def _given(self, limit: str, **fields: Any) -> dict[str, Any]:
        random = self._random
        if random.random() < 0.9:
            fields[limit] = random.randrange(1, 15)
        return {"model": random.choice(MODELS), "stream": random.random() < 0.5, **fields}

    def _chat(self) -> tuple[str, Any]:
        body = self._given("max_completion_tokens", messages=self._words())
        if body["stream"] and self._random.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        return "POST /openai/v1/chat/completions", body

    def _responses(self) -> tuple[str, Any]:
        return "POST /openai/v1/responses", self._given("max_output_tokens", input=self._words())

    def _messages(self) -> tuple[str, Any]:
        return "POST /anthropic/v1/messages", {"max_tokens": 40} | self._given(
            "max_tokens", messages=self._words()
        )

    def _count_tokens(self) -> tuple[str, Any]:
        model = self._random.choice(MODELS)
        return "POST /anthropic/v1/messages/count_tokens", {"model": model, "messages": self._words()}

    def _models(self) -> tuple[str, Any]:
        return f"GET /{self._random.choice(('openai', 'anthropic'))}/v1/models", None

    def _unknown_path(self) -> tuple[str, Any]:
        return f"POST /{self._random.choice(('openai', 'anthropic'))}/v1/unheard-of", {"model": MODELS[0]}

    def _broken(self) -> tuple[str, Any]:
        return "POST /openai/v1/chat/completions", {"model": MODELS[0], "messages": "none"}


# The clients


@attrs.define
class Seen:
    """What a client saw of an exchange.

    :ivar status: ``None`` where it left before it was answered; so are all others.
    :ivar id: what the proxy called the exchange.
    :ivar body: as much of it as was read.
    :ivar whole: all of it was.
    :ivar last: nothing more is answered on the connection.
    """

    ask: Ask
    status: int | None = None
    id: str | None = None
    kind: str | None = None
    body: bytearray = attrs.Factory(bytearray)
    whole: bool = False
    last: bool = False

    @property
    def counts(self) -> Counts:
        """The tokens that the answer told."""
        content = bytes(self.body)
        streamed = self.kind is not None and self.kind.startswith("text/event-stream")
        return counts(events(content) if streamed else [json.loads(content)])


class Client:
    """Sends one request after the other, on a connection for as long as that is good."""

    def __init__(self, port: int, asks: Iterator[Ask], random: Random) -> None:
        self._port = port
        self._asks = asks
        self._random = random
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> list[Seen]:
        seen = [await self._exchange(ask) for ask in self._asks]
        self._leave("close")
        return seen

    async def _exchange(self, ask: Ask) -> Seen:
        if self._connection is None:
            self._connection = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._connection
        seen = Seen(ask)
        writer.write(ask.sent())
        reading = asyncio.ensure_future(self._read(reader, seen))
        done, _ = await asyncio.wait([reading], timeout=PATIENCE if ask.patience is None else ask.patience)
        if done:
            await reading
            if seen.last:
                self._leave("close")
        else:
            assert ask.patience is not None, f"no answer to {ask}"
            self._leave(self._random.choice(("close", "reset", "end")))
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
                await reading
        return seen

    async def _read(self, reader: asyncio.StreamReader, seen: Seen) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        seen.status, seen.id = int(lines[0].split()[1]), headers.get("x-llmproxy-request-id")
        seen.kind = headers.get("content-type")
        seen.last = headers.get("connection") == "close"
        if "content-length" in headers:
            await self._take(reader, seen, int(headers["content-length"]))
        else:
            assert headers["transfer-encoding"] == "chunked"
            while size := int(await reader.readline(), 16):
                await self._take(reader, seen, size)
                assert await reader.readexactly(2) == b"\r\n"
            assert await reader.readline() == b"\r\n"
        seen.whole = True

    async def _take(self, reader: asyncio.StreamReader, seen: Seen, size: int) -> None:
        while size:
            data = await reader.read(size)
            assert data, f"cut off: {seen}"
            seen.body += data
            size -= len(data)

    def _leave(self, how: str) -> None:
        if self._connection is None:
            return
        _, writer = self._connection
        self._connection = None
        if how == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        if how == "end":
            with contextlib.suppress(OSError):
                writer.write_eof()
        writer.close()


async def all_asked(port: int) -> list[Seen]:
    asking = Asking(Random(1))
    asks = (asking.make(number) for number in range(EXCHANGES))
    clients = [Client(port, asks, Random(number)) for number in range(CONNECTIONS)]
    return [seen for client in await asyncio.gather(*(client.run() for client in clients)) for seen in client]


# What became of it


@attrs.frozen
class Accounts:
    """What each side knows of all exchanges, now that they are over.

    :ivar seen: what the clients saw.
    :ivar told: the tokens that the upstream has told, by the request id that it gave.
    :ivar rows: those of the ledger.
    :ivar ledger: its URL.
    """

    seen: list[Seen]
    told: Mapping[str, Counts]
    rows: list[dict[str, Any]]
    ledger: str
    twistd: Twistd

    @property
    def processes(self) -> list[Twistd]:
        return [self.twistd]

    def pairs(self) -> Iterator[tuple[Seen, dict[str, Any]]]:
        """What was seen of each exchange, with its row."""
        by_id = {row["id"]: row for row in self.rows}
        by_number = {int(row["labels"]["x-claude-code-agent-id"]): row for row in self.rows if row["labels"]}
        for seen in self.seen:
            yield seen, by_number[seen.ask.number] if seen.id is None else by_id[seen.id]

    def completed(self) -> Iterator[tuple[Seen, dict[str, Any]]]:
        """Those that the upstream has answered, and of which the client was sent all."""
        return ((seen, row) for seen, row in self.pairs() if row["ending"] == "completed")


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Accounts:
    """All is asked, the proxy is told to stop, and only then its ledger is read."""
    folder = tmp_path_factory.mktemp("accounts")
    with upstream(folder / "told.json") as port:
        file, ledger = folder / "llmproxy.toml", folder / "ledger.sqlite3"
        file.write_text(configuration(port))
        settings = {
            "OPENAI_API_KEY": OPENAI_KEY,
            "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
            "LLMPROXY_LEDGER": f"sqlite:///{ledger}",
            "LLMPROXY_REQUEST_ID": "on",
        }
        twistd = Twistd(*FOREGROUND, "--config", str(file), settings=settings, cwd=folder)
        try:
            seen = asyncio.run(all_asked(twistd.port))
            twistd.send_signal(signal.SIGTERM)
            assert twistd.wait() == 0
        finally:
            twistd.stop()
    told = {
        name: (counts[0], counts[1])
        for name, counts in json.loads((folder / "told.json").read_text()).items()
    }
    return Accounts(seen, told, rows_of(ledger), settings["LLMPROXY_LEDGER"], twistd)


@contextlib.contextmanager
def upstream(told: Path) -> Iterator[int]:
    """Run the demo upstream, and yield its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.demo_process", str(told)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        cwd=told.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        try:
            yield int(output.readline())
        finally:
            process.terminate()
            process.wait(PATIENCE)


def rows_of(ledger: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM llmproxy_exchanges")]
    return [{**row, "labels": json.loads(row["labels"] or "{}")} for row in rows]


def counted(row: Mapping[str, Any]) -> Counts:
    return row["input_tokens"], row["output_tokens"]


@pytest.mark.slow
class TestAccounts:
    def test_every_exchange_has_one_row(self, accounts: Accounts) -> None:
        assert len(accounts.seen) == len(accounts.rows) == EXCHANGES
        assert len({row["id"] for row in accounts.rows}) == EXCHANGES
        assert len({row["id"] for _, row in accounts.pairs()}) == EXCHANGES

    def test_an_answer_names_its_row(self, accounts: Accounts) -> None:
        for seen, row in accounts.pairs():
            assert (seen.id is None) == (seen.status is None)
            if seen.status is not None:
                assert (row["id"], row["status"]) == (seen.id, seen.status)

    def test_each_row_says_who_asked_what(self, accounts: Accounts) -> None:
        for seen, row in accounts.pairs():
            asked = seen.ask
            method, path = asked.line.split()
            assert (row["method"], row["path"], row["client"]) == (method, path, asked.client)
            if not asked.refused:
                assert row["asked_model"] == asked.model
                assert row["received"] == len(asked.body)
                assert row["session"] == row["labels"]["x-claude-code-session-id"] == asked.session

    def test_the_ending_is_the_right_one(self, accounts: Accounts) -> None:
        endings: dict[str, Counter[str]] = defaultdict(Counter)
        for seen, row in accounts.pairs():
            kind = "refused" if seen.ask.refused else "whole" if seen.whole else "left"
            endings[kind][row["ending"]] += 1
        assert set(endings["refused"]) == {"refused"}
        assert set(endings["whole"]) == {"completed"}
        # What a client has not read yet when it leaves may all have been sent to it.
        assert set(endings["left"]) <= {"client left", "completed"}
        assert endings["left"]["client left"] > EXCHANGES / 50
        assert endings["whole"]["completed"] > EXCHANGES / 2
        assert endings["refused"]["refused"] > EXCHANGES / 50

    def test_the_bytes_of_an_answer_are_counted(self, accounts: Accounts) -> None:
        for seen, row in accounts.completed():
            if seen.whole:
                assert row["sent"] == len(seen.body)
        assert all(row["sent"] >= len(seen.body) for seen, row in accounts.pairs() if not seen.ask.refused)

    def test_the_usage_of_what_was_completed_is_what_the_upstream_told_and_the_client_read(
        self, accounts: Accounts
    ) -> None:
        for seen, row in accounts.completed():
            told = accounts.told.get(row["upstream_request_id"], NOTHING)  # it tells none with an error
            assert counted(row) == told, row
            if seen.whole:
                assert seen.counts == told
            if told != NOTHING:
                assert (row["answered_model"] or row["asked_model"]) == seen.ask.model
                assert row["usage_source"] == "reported"

    def test_the_sums_by_client_and_model_are_those_of_the_upstream(self, accounts: Accounts) -> None:
        told: dict[Any, Counter[str]] = defaultdict(Counter)
        written: dict[Any, Counter[str]] = defaultdict(Counter)
        for seen, row in accounts.completed():
            for kind, of_upstream, of_row in zip(
                PRICES, accounts.told.get(row["upstream_request_id"], NOTHING), counted(row), strict=True
            ):
                told[seen.ask.client, seen.ask.model][kind] += of_upstream or 0
                written[row["client"], row["asked_model"]][kind] += of_row or 0
        assert written == told
        assert len(told) > len(CLIENTS) * len(MODELS)
        assert min(sums["output"] for (_, model), sums in told.items() if model is not None) > 1000

    def test_the_report_adds_up_all_rows(self, accounts: Accounts) -> None:
        database = parse_ledger(accounts.ledger)
        assert database is not None
        [[total], by_client] = ask(database, Question(), Question(by=("client",)))
        assert total.requests == sum(line.requests for line in by_client) == EXCHANGES
        for kind in ("input_tokens", "output_tokens", "cost"):
            whole = sum(row[kind] or 0 for row in accounts.rows if row["billable"])
            assert getattr(total, kind) == sum(getattr(line, kind) or 0 for line in by_client) == whole

    def test_what_was_left_has_no_more_than_what_had_passed_and_no_invented_zero(
        self, accounts: Accounts
    ) -> None:
        left = [row for _, row in accounts.pairs() if row["ending"] == "client left"]
        for row in left:
            tokens_in, tokens_out = accounts.told.get(row["upstream_request_id"], NOTHING)
            assert row["input_tokens"] in (None, tokens_in)
            assert row["output_tokens"] is None or 1 <= row["output_tokens"] <= (tokens_out or 0)
            if row["usage_source"] != "reported":
                assert {row[name] for name in row if name.endswith("_tokens")} == {None}
        # Anthropic tells the input at the start, OpenAI all at the end.
        assert {row["upstream"] for row in left if row["input_tokens"]} >= {"anthropic"}
        assert {row["upstream"] for row in left if row["input_tokens"] is None} == {"openai", "anthropic"}

    def test_the_cost_is_that_of_the_tokens(self, accounts: Accounts) -> None:
        for seen, row in accounts.completed():
            tokens_in, tokens_out = counted(row)
            if tokens_in is None:
                expected = None
            elif seen.ask.counts_only:
                expected = 0
            elif seen.ask.model == "unpriced":
                expected = None
            else:
                assert tokens_out is not None
                expected = tokens_in * PRICES["input"] + tokens_out * PRICES["output"]
            assert row["cost"] == expected

    def test_the_log_tells_of_no_fault(self, accounts: Accounts) -> None:
        for word in ("Traceback", "Unhandled", "failed", "cannot"):
            assert word not in accounts.twistd.log
