"""The command as an operator runs it: a process of its own, with pipes, before real upstreams."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Background
from tests.integration.process import environment, refuses
from tests.integration.upstream import Upstream
from tests.integration.wire import PATIENCE

KEYS = ("sk-key-1-5c0e7d", "sk-key-2-91ab3f")
FILE = """\
# The proxy of the team.
[upstreams.openai]
base_url = "http://127.0.0.1:{openai}"
api_key_env = ["KEY_1", "KEY_2"]

[upstreams.anthropic]
base_url = "http://127.0.0.1:{anthropic}"
api_key_env = "KEY_1"

[clients.alice]
token_sha256 = "{digest}"
"""


def llmproxy(*words: str, cwd: Path, **kwargs: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "llmproxy.cli", *words],
        env=environment({"KEY_1": KEYS[0], "KEY_2": KEYS[1], **kwargs}),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Traceback" not in done.stderr
    assert not any(key in done.stdout + done.stderr for key in KEYS)
    return done


@pytest.fixture
def upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    pair = Upstream(), Upstream()
    yield pair
    for upstream in pair:
        upstream.close()


@pytest.fixture
def file(tmp_path: Path, upstreams: tuple[Upstream, Upstream]) -> Path:
    path = tmp_path / "llmproxy.toml"
    path.write_text(FILE.format(openai=upstreams[0].port, anthropic=upstreams[1].port, digest="ab" * 32))
    return path


class TestOnline:
    def test_each_key_is_tried_and_one_that_is_refused_fails_the_check(
        self, upstreams: tuple[Upstream, Upstream], file: Path, background: Background
    ) -> None:
        openai, anthropic = upstreams
        checked = background(llmproxy, "check", "--online", "--config", str(file), cwd=file.parent)
        for _ in KEYS:
            wire, asked = openai.receive()
            assert asked.head.line == b"GET /v1/models HTTP/1.1"
            works = asked.head.values(b"authorization") == [f"Bearer {KEYS[0]}".encode()]
            wire.send(
                b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % (b"200 OK" if works else b"401 Unauthorized")
            )
        wire, asked = anthropic.receive()
        assert asked.head.line == b"GET /v1/models HTTP/1.1"
        assert asked.head.values(b"x-api-key") == [KEYS[0].encode()]
        assert asked.head.values(b"anthropic-version") == [b"2023-06-01"]
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{")
        done = checked.result(PATIENCE)
        assert done.returncode == 1
        online = re.sub(r"in \d+ ms", "in N ms", done.stdout.partition("\nOnline\n")[2])
        assert online.splitlines() == [
            "  openai, key 1 of 2     works (200 in N ms)",
            "  openai, key 2 of 2     refuses the key (401 in N ms)",
            "  anthropic, key 1 of 1  works (200 in N ms)",
        ]

    def test_where_all_works_the_status_is_0(
        self, upstreams: tuple[Upstream, Upstream], file: Path, background: Background
    ) -> None:
        checked = background(llmproxy, "check", "--online", cwd=file.parent, LLMPROXY_CONFIG=str(file))
        for upstream in (upstreams[0], *upstreams):
            wire, _ = upstream.receive()
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        done = checked.result(PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")

    def test_an_upstream_that_is_not_there_is_told(
        self, upstreams: tuple[Upstream, Upstream], file: Path, background: Background
    ) -> None:
        for upstream in upstreams:
            upstream.close()
            assert refuses(upstream.port)
        done = llmproxy("check", "--online", "--config", str(file), cwd=file.parent)
        assert done.returncode == 1
        assert done.stdout.count("refused the connection") == 3

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_that_ends_it_before_there_are_answers_is_no_success(
        self, upstreams: tuple[Upstream, Upstream], file: Path, number: signal.Signals
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "llmproxy.cli", "check", "--online", "--config", str(file)],
            env=environment({"KEY_1": KEYS[0], "KEY_2": KEYS[1]}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as checking:
            wires = [upstream.receive() for upstream in upstreams]  # held open, and never answered
            checking.send_signal(number)
            out, error = checking.communicate(timeout=PATIENCE)
        assert len(wires) == 2
        assert "Online" not in out
        assert (checking.returncode, error) == (
            1,
            "llmproxy check: It was stopped before all upstreams had answered.\n",
        )


class TestPipes:
    def test_a_token_can_be_piped_on(self, file: Path) -> None:
        done = llmproxy("client", "new", "carol", "--write", str(file), cwd=file.parent)
        assert re.fullmatch(r"llmp_[A-Za-z0-9_-]{43}\n", done.stdout)
        assert "[clients.carol]" in file.read_text()

    def test_a_reader_that_has_enough_is_no_fault(self, file: Path) -> None:
        file.write_text("".join(f"[clients.c{n}]\n" for n in range(5000)))
        script = '"$0" -m llmproxy.cli client list -c "$1" | head -n 1'
        done = subprocess.run(
            ["/bin/sh", "-c", script, sys.executable, str(file)],
            env=environment({}),
            cwd=file.parent,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.stdout.startswith("NAME")
        assert done.stderr == ""

    def test_a_disk_that_is_full_is_told_in_one_line(self, file: Path) -> None:
        file.write_text("".join(f"[clients.c{n}]\n" for n in range(500)))
        for words in (
            ["client", "list", "-c", str(file)],
            ["env", "openai"],
        ):  # more than is buffered, and less
            with Path("/dev/full").open("w") as full:
                done = subprocess.run(
                    [sys.executable, "-m", "llmproxy.cli", *words],
                    env=environment({}),
                    cwd=file.parent,
                    stdout=full,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=PATIENCE,
                )
            assert done.stderr.endswith(": The output cannot be written: No space left on device.\n")
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)

    def test_lines_for_a_shell_can_be_evaluated(self, file: Path) -> None:
        script = 'eval "$("$0" -m llmproxy.cli env openai --url http://proxy:1)"; echo "$OPENAI_BASE_URL $OPENAI_API_KEY"'
        done = subprocess.run(
            ["/bin/sh", "-c", script, sys.executable],
            env=environment({"LLMPROXY_TOKEN": "llmp_test"}),
            cwd=file.parent,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.stdout, done.stderr) == ("http://proxy:1/openai/v1 llmp_test\n", "")


def test_a_wrong_line_ends_with_status_2_and_a_wrong_configuration_with_1(file: Path) -> None:
    assert llmproxy("clients", cwd=file.parent).returncode == 2
    file.write_text("lisen = [33000]\n")
    done = llmproxy("check", "--config", str(file), cwd=file.parent)
    assert (done.returncode, done.stdout) == (1, "")
    assert "lisen: unknown key; did you mean listen?" in done.stderr
