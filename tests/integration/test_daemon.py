"""The life of the process: daemonized and in the foreground, from its start to its end, and what it says about itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import llmproxy
from tests.integration.process import (
    ANTHROPIC_KEY,
    AUTHORIZATION,
    FOREGROUND,
    OPENAI_KEY,
    SECRETS,
    TOKEN,
    Proxy,
    Twistd,
    command,
    environment,
    eventually,
    refuses,
    settings,
)
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, PATIENCE, Body, Wire, chunked, connect, message

# Nothing listens there, and nothing is asked of it.
SETTINGS = settings("http://127.0.0.1:1", "http://127.0.0.1:1/base")
ANY_PORT = "tcp:0:interface=127.0.0.1"
HEALTHZ = message(b"GET /healthz HTTP/1.1", b"Host: proxy.example")
OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")
HOST = b"Host: proxy.example"
CHUNKED = b"Transfer-Encoding: chunked"


def run(*arguments: str, settings: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a twistd that is to end by itself: to daemonize, or to fail."""
    return subprocess.run(
        command(*arguments),
        env=environment(settings),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


class Daemon:
    """A daemonized twistd, known by its files."""

    def __init__(self, settings: Mapping[str, str], cwd: Path) -> None:
        self.pidfile = cwd / "llmproxy.pid"
        self._logfile = cwd / "llmproxy.log"
        files = (f"--pidfile={self.pidfile}", f"--logfile={self._logfile}")
        options = ("--access-log", "--port", ANY_PORT)
        self.started = run(*files, "llmproxy", *options, settings=settings, cwd=cwd)

    @property
    def log(self) -> str:
        return self._logfile.read_text() if self._logfile.exists() else self.started.stderr

    @property
    def startup_lines(self) -> list[str]:
        return [line for line in self.log.splitlines() if " listens on " in line]

    @property
    def port(self) -> int:
        eventually(lambda: bool(self.startup_lines), self.log)
        return int(self.startup_lines[0].partition("127.0.0.1:")[2].partition(";")[0])

    def terminate(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(self.pidfile.read_text()), signal.SIGTERM)


@contextlib.contextmanager
def daemon(settings: Mapping[str, str], cwd: Path) -> Iterator[Daemon]:
    daemon = Daemon(settings, cwd)
    try:
        yield daemon
    finally:
        daemon.terminate()
        eventually(lambda: not daemon.pidfile.exists(), daemon.log)


@contextlib.contextmanager
def foreground(*arguments: str, settings: Mapping[str, str], cwd: Path) -> Iterator[Twistd]:
    twistd = Twistd(*FOREGROUND, *arguments, settings=settings, cwd=cwd)
    try:
        yield twistd
    finally:
        twistd.stop()


def assert_healthy(client: Wire) -> None:
    client.send(HEALTHZ)
    assert client.response().body == b"ok"
    client.close()


# Daemonized


def test_a_daemon_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    with daemon(SETTINGS, tmp_path) as served:
        assert served.started.returncode == 0, served.started.stderr
        assert int(served.pidfile.read_text()) != os.getpid()
        port = served.port
        assert_healthy(connect(port))
        served.terminate()
        eventually(lambda: not served.pidfile.exists(), served.log)
        assert refuses(port)


def test_a_daemon_streams(tmp_path: Path) -> None:
    upstream = Upstream()
    url = f"http://127.0.0.1:{upstream.port}"
    with daemon(settings(url, url), tmp_path) as served:
        client = connect(served.port)
        client.send(
            message(b"POST /openai/v1/x HTTP/1.1", HOST, AUTHORIZATION, CHUNKED, body=chunked(b"up 1"))
        )
        wire = upstream.accept()
        request = Body(wire, wire.head())
        assert request.exactly(4) == b"up 1"
        client.send(chunked(b"up 2") + LAST_CHUNK)
        assert request.rest() == b"up 2"
        wire.send(message(b"HTTP/1.1 200 OK", CHUNKED, body=chunked(b"down 1")))
        response = Body(client, client.head())
        assert response.exactly(6) == b"down 1"
        wire.send(chunked(b"down 2") + LAST_CHUNK)
        assert response.rest() == b"down 2"
        # A client that leaves is noticed, too.
        client.send(message(b"GET /openai/v1/x HTTP/1.1", HOST, AUTHORIZATION))
        wire.request()
        client.close()
        wire.ending()
    upstream.close()


def test_a_daemon_finishes_what_is_in_flight(tmp_path: Path) -> None:
    upstream = Upstream()
    url = f"http://127.0.0.1:{upstream.port}"
    with daemon(settings(url, url), tmp_path) as served:
        port = served.port
        client = connect(port)
        client.send(message(b"GET /openai/v1/x HTTP/1.1", HOST, AUTHORIZATION))
        wire, _ = upstream.receive()
        served.terminate()
        eventually(lambda: refuses(port), "the listener is closed")
        wire.send(OK)
        assert client.response().body == b"ok"
    upstream.close()


def test_the_log_of_a_daemon_has_one_line_of_what_is_served_where(tmp_path: Path) -> None:
    urls = settings("http://openai.example:8001/v1", "https://anthropic.example")
    with daemon(urls, tmp_path) as served:
        port = served.port
        assert_healthy(connect(port))
    (line,) = served.startup_lines
    for fact in (f"127.0.0.1:{port}", "openai.example:8001", "anthropic.example", llmproxy.__version__):
        assert fact in line


def test_the_log_of_a_daemon_never_tells_a_secret(tmp_path: Path) -> None:
    openai, anthropic = Upstream(), Upstream()
    urls = settings(f"http://127.0.0.1:{openai.port}", f"http://127.0.0.1:{anthropic.port}")
    told_us = "key-of-a-client"
    host, other = b"Host: proxy.example", b"X-Api-Key: " + told_us.encode()
    query = b"?key=%b&token=%b" % (told_us.encode(), TOKEN.encode())
    with daemon(urls, tmp_path) as served:
        port = served.port

        def ask(target: bytes, *headers: bytes) -> Wire:
            client = connect(port)
            client.send(message(b"GET %b%b HTTP/1.1" % (target, query), host, *headers))
            return client

        served_one = ask(b"/openai/v1/models", AUTHORIZATION)
        openai.receive()[0].send(OK)
        assert served_one.response().head.status == 200
        for broken in (b"", b"garbage " + told_us.encode() + b"\r\n\r\n"):
            failed = ask(b"/anthropic/v1/models", AUTHORIZATION)
            wire, _ = anthropic.receive()
            wire.send(broken)
            wire.close()
            assert failed.response().head.status == 502
        truncated = ask(b"/anthropic/v1/models", AUTHORIZATION)
        wire, _ = anthropic.receive()
        wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: 9", b"X-Request: " + told_us.encode()))
        truncated.head()
        wire.reset()
        truncated.ending()
        assert ask(b"/openai/v1/models", AUTHORIZATION, other).response().head.status == 401
        assert (
            ask(b"/openai/v1/models", b"Authorization: Bearer " + told_us.encode()).response().head.status
            == 401
        )
        assert ask(b"/openai/../v1", AUTHORIZATION).response().head.status == 400
        assert ask(b"/nowhere", AUTHORIZATION).response().head.status == 404
        assert ask(b"/healthz").response().body == b"ok"
        malformed = connect(port)
        malformed.send(b"%b %b\r\n%b\r\n\r\n" % (told_us.encode(), query, AUTHORIZATION))
        malformed.to_end()
        # With this the log has reached all that came before.
        eventually(lambda: served.log.count("/models") >= 4, served.log)
    openai.close()
    anthropic.close()
    for secret in (*SECRETS, told_us):
        assert secret not in served.log


# In the foreground


def test_sigterm_ends_with_status_0(tmp_path: Path) -> None:
    with foreground("--port", ANY_PORT, settings=SETTINGS, cwd=tmp_path) as twistd:
        assert_healthy(connect(twistd.port))
        twistd.send_signal(signal.SIGTERM)
        assert twistd.wait() == 0, twistd.log


def test_sigterm_ends_a_process_that_holds_an_idle_connection(tmp_path: Path) -> None:
    with foreground("--port", ANY_PORT, settings=SETTINGS, cwd=tmp_path) as twistd:
        client = connect(twistd.port)
        client.send(HEALTHZ)
        client.response()
        twistd.send_signal(signal.SIGTERM)
        assert twistd.wait() == 0, twistd.log


def test_several_listeners_serve_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    ports = ("--port", ANY_PORT, "--port", "unix:proxy.sock", "-p", ANY_PORT)
    with foreground(*ports, settings=SETTINGS, cwd=tmp_path) as twistd:
        addresses = twistd.started()["addresses"].split(", ")
        assert len(addresses) == 3
        assert "proxy.sock" in addresses[1]
        for address in (addresses[0], addresses[2]):
            assert_healthy(connect(int(address.rpartition(":")[2])))
        sock = socket.socket(socket.AF_UNIX)
        sock.connect("proxy.sock")
        assert_healthy(Wire(sock))


def test_port_is_taken_from_the_environment(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with foreground(settings={**SETTINGS, "PORT": str(port)}, cwd=tmp_path) as twistd:
        assert twistd.port == port, twistd.log
        assert_healthy(connect(port))


def test_an_option_goes_before_the_environment(tmp_path: Path) -> None:
    with foreground("--port", ANY_PORT, settings={**SETTINGS, "PORT": "1"}, cwd=tmp_path) as twistd:
        assert twistd.port != 1
        assert_healthy(connect(twistd.port))


# What is wrong


def test_a_port_in_use_is_one_line_and_status_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = ("--port", f"tcp:{port}:interface=127.0.0.1")
        with foreground(*listen, settings=SETTINGS, cwd=tmp_path) as twistd:
            assert twistd.wait() == 1
    (line,) = [line for line in twistd.log.splitlines() if str(port) in line]
    assert "in use" in line
    assert "Traceback" not in twistd.log


def test_a_port_in_use_fails_before_the_caller_goes_on(tmp_path: Path) -> None:
    pidfile, logfile = tmp_path / "llmproxy.pid", tmp_path / "llmproxy.log"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        files = (f"--pidfile={pidfile}", f"--logfile={logfile}")
        listen = ("--port", f"tcp:{port}:interface=127.0.0.1")
        failed = run(*files, "llmproxy", *listen, settings=SETTINGS, cwd=tmp_path)
    assert failed.returncode == 1
    # The daemon that could not start tells its caller first, and its log as it ends.
    eventually(lambda: str(port) in logfile.read_text(), "the log tells of the port")
    for told in (failed.stderr, logfile.read_text()):
        (line,) = [line for line in told.splitlines() if str(port) in line]
        assert "in use" in line
        assert "Traceback" not in told
    eventually(lambda: not pidfile.exists(), "the pidfile goes")


@pytest.mark.parametrize(
    "how", [["-n", "--pidfile=llmproxy.pid"], ["--pidfile=llmproxy.pid", "--logfile=llmproxy.log"]]
)
def test_all_settings_that_are_missing_are_named_before_anything_starts(
    tmp_path: Path, how: list[str]
) -> None:
    failed = run(*how, "llmproxy", settings={}, cwd=tmp_path)
    assert failed.returncode == 1
    for name in SETTINGS:
        assert name in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_all_settings_that_are_malformed_are_named_without_their_secrets(tmp_path: Path) -> None:
    password = "hunter2hunter2"
    (tmp_path / "token").write_bytes(b"")
    wrong = {
        "OPENAI_BASE_URL": f"https://user:{password}@api.example",
        "OPENAI_API_KEY": f"{OPENAI_KEY} pasted twice {OPENAI_KEY}",
        "ANTHROPIC_BASE_URL": "ftp://api.example",
        "ANTHROPIC_API_KEY": f"{ANTHROPIC_KEY}\n{ANTHROPIC_KEY}",
        "PROXY_TOKEN_FILE": "token",
        "PORT": "70000",
        "UPSTREAM_IDLE_TIMEOUT": "never",
    }
    pidfile = "--pidfile=llmproxy.pid"
    failed = run(pidfile, "--logfile=llmproxy.log", "llmproxy", settings=wrong, cwd=tmp_path)
    assert failed.returncode == 1
    told = failed.stdout + failed.stderr
    for name in wrong:
        assert name in told
    for secret in (*SECRETS, password):
        assert secret not in told
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize("port", ["65536", "nowhere:1"])
def test_a_port_that_is_none_is_named(tmp_path: Path, port: str) -> None:
    failed = run(*FOREGROUND, "--port", port, settings=SETTINGS, cwd=tmp_path)
    assert failed.returncode == 1
    told = failed.stdout + failed.stderr
    assert "--port" in told.splitlines()[-1]  # before it goes the usage, which names it in any case
    assert "Traceback" not in told


# Reloading


@pytest.fixture
def upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    pair = Upstream(), Upstream()
    yield pair
    for upstream in pair:
        upstream.close()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with a file for each secret."""
    for name, secret in (("openai", OPENAI_KEY), ("anthropic", ANTHROPIC_KEY), ("token", TOKEN)):
        (tmp_path / name).write_text(f"{secret}\n")
    return tmp_path


@pytest.fixture
def reloadable(upstreams: tuple[Upstream, Upstream], keys: Path) -> Iterator[Proxy]:
    """A proxy whose secrets are in files."""
    files = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstreams[0].port}",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{upstreams[1].port}",
        "OPENAI_API_KEY_FILE": str(keys / "openai"),
        "ANTHROPIC_API_KEY_FILE": str(keys / "anthropic"),
        "PROXY_TOKEN_FILE": str(keys / "token"),
    }
    proxy = Proxy(files, keys, *upstreams)
    try:
        proxy.twistd.started()
        yield proxy
    finally:
        proxy.stop()


def key_sent(proxy: Proxy, upstream: Upstream) -> bytes:
    """The OpenAI key with which a request goes upstream now."""
    client = proxy.send(b"GET /openai/v1/models")
    wire, request = upstream.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: 2", body=b"ok"))
    assert client.response().body == b"ok"
    (authorization,) = request.head.values(b"authorization")
    return authorization.removeprefix(b"Bearer ")


def test_sighup_reads_a_key_again_and_drops_no_stream(
    reloadable: Proxy, upstreams: tuple[Upstream, Upstream], keys: Path
) -> None:
    openai, _ = upstreams
    streaming = reloadable.send(b"POST /openai/v1/chat/completions", b"Content-Length: 0")
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"before ")))
    body = Body(streaming, streaming.head())
    assert body.exactly(7) == b"before "
    waiting = reloadable.send(b"POST /openai/v1/chat/completions", b"Content-Length: 0")
    unanswered, _ = openai.receive()

    new = "sk-openai-rotated-77aa"
    (keys / "openai").write_text(new)
    reloadable.twistd.send_signal(signal.SIGHUP)
    reloadable.twistd.wait_for("(?i)reloaded")

    assert key_sent(reloadable, openai) == new.encode()
    wire.send(chunked(b"after") + LAST_CHUNK)
    assert body.rest() == b"after"
    unanswered.send(OK)
    assert waiting.response().body == b"ok"
    assert new not in reloadable.twistd.log


def test_a_new_token_counts_for_the_next_request_on_an_open_connection(
    reloadable: Proxy, upstreams: tuple[Upstream, Upstream], keys: Path
) -> None:
    openai, _ = upstreams
    client = reloadable.send(b"GET /openai/v1/models")
    openai.receive()[0].send(OK)
    assert client.response().head.status == 200
    (keys / "token").write_text("another-token-3f81c2")
    reloadable.twistd.send_signal(signal.SIGHUP)
    reloadable.twistd.wait_for("(?i)reloaded")
    client.send(message(b"GET /openai/v1/models HTTP/1.1", b"Host: proxy.example", AUTHORIZATION))
    assert client.response().head.status == 401


@pytest.mark.parametrize("wrong", ["", f"{OPENAI_KEY} and more", None], ids=["empty", "two words", "gone"])
def test_what_is_wrong_at_sighup_changes_nothing(
    reloadable: Proxy, upstreams: tuple[Upstream, Upstream], keys: Path, wrong: str | None
) -> None:
    openai, _ = upstreams
    assert key_sent(reloadable, openai) == OPENAI_KEY.encode()
    if wrong is None:
        (keys / "openai").unlink()
    else:
        (keys / "openai").write_text(wrong)
    (keys / "token").write_text("another-token-3f81c2")
    reloadable.twistd.send_signal(signal.SIGHUP)
    reloadable.twistd.wait_for("OPENAI_API_KEY_FILE")
    # All of the old configuration counts, not only the part whose new one was wrong.
    assert key_sent(reloadable, openai) == OPENAI_KEY.encode()
