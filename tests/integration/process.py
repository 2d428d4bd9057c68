"""A real twistd as a child process: started, waited for, and stopped by its process id.

The child gets no more of this environment than PATH. All that it prints is kept, and every wait has a bound and fails with it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The script that pip installed: `python -m twisted` would be `twist`, another program.
TWISTD = Path(sys.executable).with_name("twistd")
PATIENCE = 10.0  # seconds; nothing that works takes nearly as long, even on a busy machine

_STARTED = re.compile(r"llmproxy (?P<version>\S+) listens on (?P<addresses>.+); (?P<upstreams>.+)")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Make the whole environment of a child: the settings of a test, and what Python needs to find the checkout."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **settings}


class Twistd:
    """twistd in the foreground.

    :param arguments: all that follows ``twistd`` on the command line.
    :param settings: the environment variables of the child, beside PATH and PYTHONPATH.
    :param cwd: where it runs, so that nothing is left in the checkout.
    """

    def __init__(self, *arguments: str, settings: Mapping[str, str], cwd: Path) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [TWISTD, *arguments],
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
