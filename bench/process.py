"""The processes of a run: started on a core of their own, stopped by their id, and what the kernel accounts to them."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import attrs

_PATIENCE = 5.0  # seconds that a process has to end after it was asked to


def allow_many_files() -> None:
    """Raise the limit of open files, one for each connection, as far as this process may."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(
        ValueError, OSError
    ):  # a limit that cannot be had shows as connections that fail
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@attrs.frozen
class Cores:
    """Which core, by its number, each side runs on; None where the system decides."""

    proxy: int | None
    load: int | None
    upstream: int | None

    @classmethod
    def choose(cls) -> Cores:
        """Give the proxy a core of its own, and the load and the upstream one each if there are enough."""
        free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(free) < 2:
            return cls(None, None, None)
        return cls(free[0], free[1], free[min(2, len(free) - 1)])

    @property
    def shared(self) -> bool:
        """Whether the load and the upstream may run on the same core."""
        return self.load == self.upstream


class Children:
    """Starts processes, and stops those that still run when the block ends, however it ends."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._started:
            self.stop(self._started[-1])

    def start(
        self,
        command: Sequence[str],
        core: int | None,
        environ: Mapping[str, str],
        cwd: Path,
        log: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a process.

        :param core: to run it on.
        :param environ: all of its environment.
        :param log: a file for all that it prints; without it, its standard output is a pipe.
        """
        with contextlib.ExitStack() as files:
            # A session of its own: Ctrl-C is for this process, which then stops the others in order.
            process = subprocess.Popen(  # noqa: S603 - commands of our own
                command,
                env=environ,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if log is None else files.enter_context(log.open("w")),
                stderr=None if log is None else subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        if core is not None:
            with contextlib.suppress(ProcessLookupError):  # ended already, which its user will notice
                os.sched_setaffinity(process.pid, {core})
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        """End a process, by force if it must be."""
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._started.remove(process)


def is_accounted() -> bool:
    """Tell whether this system has the accounts of processes where they are looked for, in ``/proc``."""
    return Path("/proc/self/stat").exists()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, of user and system, that a process and those below it have used, ended threads included."""
    ticks = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):  # ended meanwhile
            # The name, in parentheses, may hold spaces. See proc_pid_stat(5): fields 14 and 15.
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def waited_seconds(pid: int) -> float:
    """Return for how long a process and those below it could have run while others had the core; 0 where it is not known."""
    waited = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            # See Documentation/scheduler/sched-stats in the kernel: the second field, in nanoseconds.
            waited += int(Path(f"/proc/{each}/schedstat").read_text().split()[1])
    return waited / 1e9


def resident(pid: int) -> int:
    """Return the bytes of memory that a process and those below it hold."""
    pages = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tree(pid: int) -> Iterable[int]:
    pids = [pid]
    for each in pids:  # grows while it is read
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
    return pids
