"""A real PostgreSQL server on a port of loopback, with its data in a directory of its own.

PostgreSQL does not run as root: there, it runs as ``nobody``. Debian has its programs in the package ``postgresql``, outside of
the PATH.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from tests.integration.process import eventually

PASSWORD = "pg-s3cret-81c2"
_PATIENCE = 60  # seconds for what takes less than two


def programs() -> Path | None:
    """The directory of the server's programs, of the newest version; ``None`` where there is none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    directories = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(directories, key=lambda path: float(path.parent.name), default=None)


class Server:
    """A server that can be stopped, frozen and started again with the same data, on the same port."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        # Not below the directory of pytest, which is its user's alone.
        self._directory = Path(tempfile.mkdtemp(prefix="llmproxy-postgresql-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._directory, pwd.getpwnam(self._user).pw_uid, -1)
        password = self._directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        # Held, so that nobody else is given it; with this option, Linux lets the server have it, too.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        subprocess.run(
            [
                self._programs / "initdb",
                f"--pgdata={self._directory}/data",
                "--username=llmproxy",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--no-sync",
                "--no-locale",
                "--encoding=UTF8",
            ],
            check=True,
            capture_output=True,
            timeout=_PATIENCE,
            **self._as_user(),
        )

    def url(self, name: str = "postgres") -> str:
        """Of a database."""
        return f"postgresql://llmproxy:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    *("-D", f"{self._directory}/data"),
                    *("-p", str(self.port)),
                    *("-c", "listen_addresses=127.0.0.1"),
                    *("-c", "unix_socket_directories="),
                    *("-c", "fsync=off"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_user(),
            )
        eventually(self._answers, "PostgreSQL answers")

    def stop(self) -> None:
        """End it at once, with the connections that it has."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_PATIENCE)
            self._process = None

    def freeze(self) -> None:
        """Let it hang, connections and all."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        self.stop()
        self._reserved.close()
        shutil.rmtree(self._directory)

    def create(self, name: str, language: str | None = None) -> str:
        """Make a database, and return its URL.

        :param language: that it sorts by; otherwise it sorts by bytes.
        """
        sorts = "" if language is None else f" TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE '{language}'"
        with closing(psycopg.connect(self.url(), autocommit=True)) as connection:
            connection.execute(f'CREATE DATABASE "{name}"{sorts}')
        return self.url(name)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            psycopg.connect(self.url()).close()
        except psycopg.OperationalError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            os.kill(process, number)

    def _as_user(self) -> dict[str, Any]:
        # What root would hand down is of no use to another user, or cannot be entered by it.
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        return {"user": self._user, "cwd": self._directory, "env": environment}


def server() -> Iterator[Server]:
    """Run a server, for a fixture; see :func:`programs` for whether it can be."""
    found = programs()
    assert found is not None
    running = Server(found)
    try:
        running.start()
        yield running
    finally:
        running.remove()
