"""What is measured: the upstream itself, llmproxy before it, and proxies that somebody else has started."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from bench.process import Children, Cores

ROOT = Path(__file__).resolve().parents[1]

DIRECT = "direct"
"""The name of the upstream itself among the targets."""

OURS = "llmproxy"
"""The name of llmproxy among them."""

_STARTING = 20.0  # seconds
_LISTENS = re.compile(r"llmproxy \S+ listens on 127\.0\.0\.1:(\d+)")


class CannotStart(Exception):
    """A process that the run needs did not start; the message says why."""


@attrs.frozen
class Target:
    """Something that can be asked.

    :ivar name: for people.
    :ivar base_url: as an OpenAI SDK would be given it.
    :ivar headers: to send along. They may hold secrets.
    :ivar pid: of the proxy, for its CPU time and memory, if it is known.
    """

    name: str
    base_url: str
    headers: Sequence[tuple[str, str]] = attrs.field(default=(), repr=False)
    pid: int | None = None


def python_environ() -> dict[str, str]:
    """Make the environment that Python needs to find this checkout, and no more of our own."""
    return {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT)}


def start_upstream(children: Children, cores: Cores, port: int) -> tuple[Target, int]:
    """Start the upstream.

    :param port: to listen on; 0 for any that is free.
    :return: the target that it is itself, and its process id.
    """
    command = [sys.executable, "-m", "bench.upstream", str(port)]
    process = children.start(command, cores.upstream, python_environ(), ROOT)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    line = process.stdout.readline()
    if not line:
        raise CannotStart(f"The upstream did not start; is port {port} in use?")
    return Target(DIRECT, f"http://127.0.0.1:{int(line)}/v1"), process.pid


def start_llmproxy(children: Children, cores: Cores, upstream: Target, scratch: Path) -> Target:
    """Start llmproxy as its users do, with its settings in the environment.

    :param scratch: a folder to run in, for its log.
    """
    token = secrets.token_hex(16)
    base_url = upstream.base_url.removesuffix("/v1")
    settings = {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": secrets.token_hex(16),
        "ANTHROPIC_BASE_URL": base_url,
        "ANTHROPIC_API_KEY": secrets.token_hex(16),
        "PROXY_TOKEN": token,
        # What a ledger costs is measured by naming one.
        "LLMPROXY_LEDGER": os.environ.get("LLMPROXY_LEDGER", "none"),
    }
    # The script that pip installed: `python -m twisted` would be `twist`, another program.
    twistd = Path(sys.executable).with_name("twistd")
    command = [twistd, "-n", "--pidfile=", "llmproxy", "--port", "tcp:0:interface=127.0.0.1", "--drain", "1"]
    log = scratch / "llmproxy.log"
    process = children.start(
        [str(word) for word in command], cores.proxy, {**python_environ(), **settings}, scratch, log
    )
    end = time.monotonic() + _STARTING
    while not (listens := _LISTENS.search(log.read_text())):
        if process.poll() is not None or time.monotonic() > end:
            raise CannotStart(f"llmproxy did not start:\n{log.read_text()}")
        time.sleep(0.05)
    authorization = ("Authorization", f"Bearer {token}")
    return Target(OURS, f"http://127.0.0.1:{listens[1]}/openai/v1", (authorization,), process.pid)
