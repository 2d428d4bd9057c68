"""A real twistd as a child process: started, waited for, and stopped by its process id.

The child gets no more of this environment than PATH. All that it prints is kept, and every wait has a bound and fails with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.integration.upstream import Upstream
from tests.integration.wire import PATIENCE, Message, Wire, connect, message

ROOT = Path(__file__).resolve().parents[2]
# The script that pip installed: `python -m twisted` would be `twist`, another program.
TWISTD = Path(sys.executable).with_name("twistd")

# What the tests' proxies are set to; the log must hold none of them.
TOKEN = "local-token-5d1f0c7a"
OPENAI_KEY = "sk-openai-9b3e6642"
ANTHROPIC_KEY = "sk-ant-c41d8f05"
SECRETS = (TOKEN, OPENAI_KEY, ANTHROPIC_KEY)
AUTHORIZATION = b"Authorization: Bearer " + TOKEN.encode()

FOREGROUND = ("-n", "--pidfile=", "llmproxy")
LOOPBACK = ("--port", "tcp:0:interface=127.0.0.1")

# The reactor to test with, by its name for twistd; without one, it is the proxy's own choice.
REACTOR = os.environ.get("LLMPROXY_TEST_REACTOR") or None

_STARTED = re.compile(r"llmproxy (?P<version>\S+) listens on (?P<addresses>.+); (?P<upstreams>.+)")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Make the whole environment of a child: the settings of a test, and what Python needs to find the checkout.

    There is no ledger unless a test wants one: by default it would be in the home of whoever runs the tests.
    """
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LLMPROXY_LEDGER": "none",
        "LLMPROXY_REQUEST_ID": "off",
        **settings,
    }


def settings(openai: str, anthropic: str, **others: str) -> dict[str, str]:
    """Make the settings of a proxy from the base URLs of its upstreams, and others by their names."""
    return {
        "OPENAI_BASE_URL": openai,
        "OPENAI_API_KEY": OPENAI_KEY,
        "ANTHROPIC_BASE_URL": anthropic,
        "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
        "PROXY_TOKEN": TOKEN,
        **others,
    }


def command(*arguments: str, reactor: str | None = REACTOR) -> list[str]:
    """Make the command line of a twistd.

    :param reactor: to run on, by its name for twistd.
    """
    return [str(TWISTD), *([] if reactor is None else [f"--reactor={reactor}"]), *arguments]


def with_descriptors(command: list[str], soft: int, hard: int) -> list[str]:
    """Make a command that may open so many files at most."""
    return ["/bin/sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "sh", *command]


class Twistd:
    """twistd in the foreground.

    :param arguments: all that follows ``twistd`` on the command line, but for its reactor.
    :param settings: the environment variables of the child, beside PATH and PYTHONPATH.
    :param cwd: where it runs, so that nothing is left in the checkout.
    :param reactor: to run on, by its name for twistd.
    :param descriptors: the soft and the hard limit of files that it may open.
    """

    def __init__(
        self,
        *arguments: str,
        settings: Mapping[str, str],
        cwd: Path,
        reactor: str | None = REACTOR,
        descriptors: tuple[int, int] | None = None,
    ) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        started_by = command(*arguments, reactor=reactor)
        self._process = subprocess.Popen(
            started_by if descriptors is None else with_descriptors(started_by, *descriptors),
            env=environment(settings),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def processes(self) -> list[Twistd]:
        """Itself; for the report of a test that failed."""
        return [self]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def memory(self) -> int:
        """Bytes of memory that are resident now."""
        return self._memory("VmRSS")

    @property
    def most_memory(self) -> int:
        """Bytes of memory that were resident when they were most."""
        return self._memory("VmHWM")

    @property
    def sockets(self) -> int:
        """How many sockets it has open."""
        count = 0
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += str(descriptor.readlink()).startswith("socket:")
        return count

    @property
    def log(self) -> str:
        """All that was printed until now."""
        with self._changed:
            return "".join(self._lines)

    def started(self) -> re.Match[str]:
        """Wait for the startup line, and return its ``version``, ``addresses`` and ``upstreams``."""
        return self.wait_for(_STARTED)

    @property
    def port(self) -> int:
        """The port of the first listener that has one."""
        found = re.search(r":(\d+)(,|$)", self.started()["addresses"])
        assert found, self.log
        return int(found[1])

    def wait_for(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """Wait until what was printed holds a pattern."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found.extend(re.compile(pattern).finditer("".join(self._lines)))
            return bool(found) or self._ended

        with self._changed:
            self._changed.wait_for(look, PATIENCE)
        assert found, f"twistd did not print {pattern!r}, but:\n{self.log}"
        return found[0]

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, and return its status."""
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"twistd still runs after {PATIENCE} seconds:\n{self.log}") from None
        self._reader.join(PATIENCE)
        return status

    def stop(self) -> None:
        """End it if it still runs, by force if it must be."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(PATIENCE)

    def _memory(self, which: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{which}:")[2].split()[0]) * 1024

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for what no event tells."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.02)


def refuses(port: int) -> bool:
    """Tell whether nobody listens on a port of loopback."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


class Proxy:
    """A proxy in the foreground on a port of loopback, and the upstreams behind it.

    :param upstreams: those whose connections are closed after each test.
    :param options: of the proxy, beside where it listens.
    :param descriptors: the soft and the hard limit of files that it may open.
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        cwd: Path,
        *upstreams: Upstream,
        options: Sequence[str] = (),
        reactor: str | None = REACTOR,
        descriptors: tuple[int, int] | None = None,
    ) -> None:
        arguments = (*FOREGROUND, *LOOPBACK, "--access-log", *options)
        self.twistd = Twistd(*arguments, settings=settings, cwd=cwd, reactor=reactor, descriptors=descriptors)
        self._upstreams = upstreams
        self._clients: list[Wire] = []

    @property
    def processes(self) -> list[Twistd]:
        return [self.twistd]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.twistd.port}"

    def connect(self, receive_buffer: int | None = None, source: str = "127.0.0.1") -> Wire:
        """Connect a client; see :func:`~tests.integration.wire.connect`."""
        client = connect(self.twistd.port, receive_buffer, source)
        self._clients.append(client)
        return client

    def send(self, line: bytes, *headers: bytes, body: bytes = b"") -> Wire:
        """Connect a client that sends a request with the token.

        :param line: method and target.
        """
        client = self.connect()
        client.send(message(line + b" HTTP/1.1", b"Host: proxy.example", AUTHORIZATION, *headers, body=body))
        return client

    def ask(self, line: bytes, *headers: bytes, body: bytes = b"") -> Message:
        """Send a request that the proxy will answer itself, and return the answer."""
        return self.send(line, *headers, body=body).response(line.partition(b" ")[0])

    def hang_up(self) -> None:
        """Close the connections of all clients and upstreams."""
        while self._clients:
            self._clients.pop().close()
        for upstream in self._upstreams:
            upstream.hang_up()

    def stop(self) -> None:
        """End the process; whatever the tests have done, its log must tell of no secret and of no fault of its own."""
        self.twistd.stop()
        for upstream in self._upstreams:
            upstream.close()
        told = [word for word in (*SECRETS, "Traceback", "Unhandled") if word in self.twistd.log]
        assert not told, self.twistd.log


@contextlib.contextmanager
def running(
    cwd: Path,
    *upstreams: Upstream,
    options: Sequence[str] = (),
    reactor: str | None = REACTOR,
    descriptors: tuple[int, int] | None = None,
    **others: str,
) -> Iterator[Proxy]:
    """Run a proxy between its start and its end, with one upstream or two, and other settings by their names."""
    openai, anthropic = upstreams[0], upstreams[-1]
    urls = settings(f"http://127.0.0.1:{openai.port}", f"http://127.0.0.1:{anthropic.port}", **others)
    proxy = Proxy(urls, cwd, *upstreams, options=options, reactor=reactor, descriptors=descriptors)
    try:
        proxy.twistd.started()
        yield proxy
    finally:
        proxy.hang_up()
        proxy.stop()
