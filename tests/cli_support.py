"""A run of the ``llmproxy`` command within the process of the test, and a configuration for it."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from llmproxy.cli.main import main
from llmproxy.config.model import token_digest

KEY = "sk-openai-real-8d2c6b1f"
DIGESTS = [token_digest(b"token %d" % n).hex() for n in range(4)]

# With comments and formatting that no writer of TOML would make by itself.
FILE = f"""\
# The proxy of the team.
listen = ["tcp:33001:interface=127.0.0.1"]   # behind nginx

[upstreams.openai]
api_key_env = "TEAM_OPENAI_KEY"  # from the vault

# The people.

[clients.alice]
token_sha256 = '{DIGESTS[0]}' # her laptop
models=["gpt-*",
   "o?",  # for evaluation
]

# Bob has two machines.
[clients.bob]
token_sha256 = [ "{DIGESTS[1]}", "{DIGESTS[2]}" ]
upstreams = ["openai"]
expires = 2127-01-31

# How much they may ask.
[limits]
max_target = 0x2000
"""


@attrs.frozen
class Ran:
    """What came of a run: its exit status, and what it printed."""

    status: int
    out: str
    err: str


class Shell:
    """Runs commands in an environment that a test sets.

    :ivar environ: what the command sees of the environment.
    :ivar file: a configuration file, :data:`FILE`.
    """

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str], environ: dict[str, str]) -> None:
        self.environ = environ
        self.file = directory / "llmproxy.toml"
        self.file.write_text(FILE)
        self._capsys = capsys

    def run(self, *words: str) -> Ran:
        """Run a command; of what it printed, nothing may be a secret."""
        self._capsys.readouterr()
        try:
            status = main(words)
        except SystemExit as end:  # --help and --version end so
            status = int(end.code or 0)
        printed = self._capsys.readouterr()
        assert KEY not in printed.out + printed.err
        return Ran(status, printed.out, printed.err)

    def file_version(self) -> tuple[int, int, bytes]:
        """What tells whether the file was written or replaced, even by the same text; that it was read does not count."""
        found = self.file.stat()
        return found.st_ino, found.st_mtime_ns, self.file.read_bytes()

    def refused(self, *words: str, status: int = 1) -> str:
        """Run a command that must fail, and return what it says."""
        ran = self.run(*words)
        assert (ran.status, ran.out) == (status, ""), ran
        assert "Traceback" not in ran.err
        return ran.err


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    environ = {"TEAM_OPENAI_KEY": KEY}
    monkeypatch.setattr(os, "environ", environ)
    return Shell(tmp_path, capsys, environ)
