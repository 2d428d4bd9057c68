"""Changes to the configuration file: made whole, or not at all.

What is to be written is first put beside the file and read by the loader itself; only where that finds nothing wrong does it
take the file's place, in one step. Comments and formatting stay, and so do the file's mode and owner.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from llmproxy import config
from llmproxy.cli.command import CommandError

# Keys, and upstreams that come with them, are often in the environment of the service alone: who edits the file need not have
# them.
_ONLY_HERE = re.compile(r"upstreams\.[^: ]+\.api_key_(env|file)\b|There is no upstream\b")
_T = TypeVar("_T")


def read(path: Path, understand: Callable[[str], _T]) -> _T:
    """Read a configuration file.

    :param understand: makes of its text what is wanted; raises ``ValueError`` with a text to go behind the file's name.
    :raise CommandError: where it cannot be read or understood.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not text in UTF-8.") from None
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return understand(text)
    except ValueError as problem:
        raise CommandError(f"{path} {problem}") from None


def check(text: str, changed: str, environ: Mapping[str, str]) -> None:
    """Let the loader read a text of which nothing is written.

    :param text: what there was before; its own problems are not the change's.
    :raise CommandError: naming what is wrong with the change.
    """
    with _scratch() as directory:
        file = Path(directory, "llmproxy.toml")
        file.write_bytes(text.encode("utf-8"))
        known = _problems(environ, file)
        file.write_bytes(changed.encode("utf-8"))
        found = [problem for problem in _problems(environ, file) if problem not in known]
    if found:
        raise CommandError("\n  - ".join(["This could not be used:", *found]))


@contextmanager
def _scratch() -> Iterator[str]:
    try:
        with tempfile.TemporaryDirectory() as directory:
            yield directory
    except OSError as error:
        raise CommandError(
            f"There is no folder for a temporary file, to try the change in: {error.strerror}; TMPDIR names one."
        ) from None


def rewrite(path: Path, change: Callable[[str], str], environ: Mapping[str, str]) -> Sequence[str]:
    """Change a configuration file.

    Two of these at once wait for each other, so that neither is lost.

    :param path: a symbolic link is followed, and stays one.
    :param change: makes the new text of the old; raises ``ValueError`` with a text to go behind the file's name.
    :return: problems that the file had before, and that it may have only here.
    :raise CommandError: where it cannot be done; the file is then as it was.
    """
    try:
        target = path.resolve(strict=True)
        directory = os.open(target.parent, os.O_RDONLY)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        text = read(path, change)
        tolerated = [problem for problem in _problems(environ, target) if _ONLY_HERE.match(problem)]
        beside = _write_beside(target, text)
        try:
            found = [
                problem.replace(str(beside), str(path))
                for problem in _problems(environ, beside)
                if problem not in tolerated
            ]
            if found:
                raise CommandError(
                    "\n  - ".join([f"{path} was not changed; it could not be used any more:", *found])
                )
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        os.fsync(directory)  # the new name, too, is to outlast a power cut
    except OSError as error:
        raise CommandError(f"{path} cannot be changed: {error.strerror}.") from None
    finally:
        os.close(directory)
    return tolerated


def _problems(environ: Mapping[str, str], path: Path) -> Sequence[str]:
    try:
        config.load(environ, str(path))
    except config.ConfigError as error:
        return error.problems
    return ()


def _write_beside(target: Path, text: str) -> Path:
    """Write a text to a new file in the directory of another, with that one's mode and owner."""
    like = target.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            made = os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, like.st_mode & 0o7777)
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)
