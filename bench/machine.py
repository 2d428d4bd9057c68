"""What a run ran on: without it, its figures mean nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import attrs

from bench.targets import ROOT

_LIBRARIES = ("llmproxy", "Twisted", "treq", "httptools", "uvloop")


@attrs.frozen
class Machine:
    """The machine, and the software that was measured on it.

    :ivar cpu: its model.
    :ivar cpus: how many of them this run may use.
    :ivar load_before: processes that wanted a CPU in the minute before the run: the work of others, which makes noise.
    :ivar commit: of the checkout; with a plus where files of llmproxy differ from it. Empty where there is no git.
    """

    system: str
    cpu: str
    cpus: int
    load_before: float
    python: str
    libraries: dict[str, str]
    commit: str


def describe() -> Machine:
    """Look at this machine."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu(),
        cpus=len(affinity),
        load_before=round(os.getloadavg()[0], 2),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        libraries={name: metadata.version(name) for name in _LIBRARIES},
        commit=_commit(),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "llmproxy", "twisted")
    return f"{commit}+" if commit and changed else commit


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - our own
