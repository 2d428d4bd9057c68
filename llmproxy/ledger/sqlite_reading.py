"""Reading a ledger in an SQLite file: while a proxy writes to it, after it was closed, and where nothing may be written.

SQLite reads a file in WAL mode with the help of two others beside it, the log (``-wal``) and its index (``-shm``), which it
makes where they are not, and leaves behind. While a proxy has the file open, there is a log; the last one to close it in order
takes that away. So a file without a log has all that was written, and is read as one that does not change: that needs no other
file, and leaves none. https://www.sqlite.org/wal.html#readonly
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BUSY = 5.0  # seconds that SQLite waits for another process
# What SQLite says where it can neither make nor use the files beside it; Python tells the codes only since 3.11.
_NOT_BESIDE = ("unable to open database file", "attempt to write a readonly database")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect for a transaction in which all that is read is of one moment; no file is made where there is none.

    :raise sqlite3.Error: where the file cannot be read; at the end, too, where what was read may be of several moments.
    """
    path = Path(os.path.realpath(path))  # it is there that SQLite looks for the log
    log = path.with_name(f"{path.name}-wal")
    if not os.path.exists(log):  # noqa: PTH110  (in a directory that may not be looked into, pathlib's raises)
        with _unchanging(path) as connection:
            yield connection
        return
    try:
        connection = _connect(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if str(error) not in _NOT_BESIDE:
            raise
        if _size(log):
            raise sqlite3.OperationalError(
                f"what was written last is in {log}, and SQLite reads that only where it may write beside it; ask as the user "
                "of the proxy, or copy both files to where you may write"
            ) from None
        with _unchanging(path) as connection:  # the log has nothing, or was taken away by now
            yield connection
        return
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _unchanging(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect to a file that nobody writes to, and see in the end that nobody did: SQLite itself looks for no such change."""
    before = _state(path)
    connection = _connect(path, "mode=ro&immutable=1")
    try:
        yield connection
    finally:
        connection.close()
        # A proxy that has been started since writes to a log first, and from there to this file.
        if _state(path) != before:
            raise sqlite3.OperationalError("a proxy began to write to it meanwhile; ask again")


def _connect(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, timeout=_BUSY, isolation_level=None)
    try:
        connection.execute("BEGIN")
        connection.execute("PRAGMA schema_version").fetchall()  # what is wrong shows when something is read
    except BaseException:
        connection.close()
        raise
    return connection


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
