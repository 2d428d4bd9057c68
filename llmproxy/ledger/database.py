"""The databases that a ledger can be in, and all in which they differ. The rest of the ledger speaks the SQL of both.

``sqlite:///var/lib/llmproxy/ledger.sqlite3`` is a file on this machine, ``postgresql://user@host/name`` a server that several
proxies may share, and ``none`` no ledger. No ``repr`` and no error shows a password.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import attrs

from llmproxy.ledger import schema
from llmproxy.ledger.sqlite_reading import reading

_BUSY = 5.0  # seconds that SQLite waits for another process that writes
_CONNECT = 5  # seconds that libpq waits for each address of a server
_STATEMENT = 10_000  # milliseconds after which PostgreSQL ends a statement
_MIGRATION_LOCK = 0x6C6C_6D70_726F_7879  # "llmproxy": advisory locks are all of a database's programs'
_OWNER_ONLY = 0o600
# PostgreSQL sorts by the language of a database, and to some languages two letters that are digits here are one: in Danish,
# "aa" comes behind "z".
_IDS_BY_BYTES = 'ALTER TABLE llmproxy_exchanges ALTER COLUMN id TYPE TEXT COLLATE "C"'


class Database(Protocol):
    """A database, of which connections and cursors are those of its DB-API module.

    :ivar module: the name of that.
    :ivar day: the expression for the day of an exchange in UTC, as ``YYYY-MM-DD``.
    :ivar tables: the query for how many tables of a name there are.
    """

    module: str
    day: str
    tables: str

    def __str__(self) -> str:
        """Say where it is, without a password."""

    @property
    def has_password(self) -> bool:
        """Whether it was given with a password."""

    def arguments(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """What to give to the module's ``connect`` for writing."""

    def prepare(self) -> None:
        """Make what must be there before there can be a connection for writing."""

    def opened(self, connection: Any) -> None:
        """Make a new connection ready for writing, and the ledger up to date."""

    def check(self, cursor: Any) -> None:
        """Fail where what is written would not be found again, though the database would take it."""

    def begin(self, cursor: Any) -> None:
        """Begin a transaction that writes."""

    def begin_alone(self, cursor: Any) -> None:
        """Begin a transaction in which no other process migrates."""

    def abort(self, connection: Any) -> None:
        """End, from another thread, what a connection is waiting for; it fails there."""

    def read(self) -> AbstractContextManager[Any]:
        """Connect for a transaction in which all that is read is of one moment; the end of the context closes it."""

    def sql(self, text: str) -> str:
        """Turn SQL with ``?`` for values, and what :mod:`llmproxy.ledger.schema` has in braces, into that of this database."""


def parse_ledger(text: str) -> Database | None:
    """Read the setting that says where the ledger is.

    :return: ``None`` for ``none``.
    :raise ValueError: with a text that goes behind the name of the setting, and shows no password.
    """
    scheme, separator, _ = text.partition("://")
    if text == "none":
        return None
    if separator and scheme == "sqlite":
        return _sqlite(text)
    if separator and scheme in ("postgresql", "postgres"):
        return _postgresql(text)
    raise ValueError('must be "sqlite:///PATH", "postgresql://USER@HOST/NAME" or "none".')


class _Connection(sqlite3.Connection):
    """A connection for writing.

    :ivar file: what it has open.
    """

    file: os.stat_result


@attrs.frozen
class SQLite:
    """A file. One process writes at a time, and all that read see what was there when they began (WAL)."""

    path: Path
    module = "sqlite3"
    day = "substr(at, 1, 10)"
    tables = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
    has_password = False

    def __str__(self) -> str:
        return str(self.path)

    def arguments(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Transactions are begun by hand; and adbapi closes connections from a thread that is not theirs."""
        return (str(self.path),), {
            "timeout": _BUSY,
            "isolation_level": None,
            "check_same_thread": False,
            "factory": _Connection,
        }

    def prepare(self) -> None:
        """Make the directory, as the XDG Base Directory Specification has it of the default one."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def opened(self, connection: Any) -> None:
        """Keep a new file to its owner, while nothing is in it; SQLite gives its other files the same mode."""
        connection.file = self.path.stat()
        if connection.file.st_size == 0:
            self.path.chmod(_OWNER_ONLY)
        connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode this keeps the file whole whatever happens, and loses nothing that was committed when a process is
        # killed; a loss of power may take the last commits. https://www.sqlite.org/pragma.html#pragma_synchronous
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, self)

    def check(self, cursor: Any) -> None:
        """See whether the file still has its name: without it, it takes what is written all the same."""
        try:
            same = os.path.samestat(self.path.stat(), cursor.connection.file)
        except FileNotFoundError:
            same = False
        if not same:
            # The log is found by its name, and what is in it would be taken for a part of the file that is there now.
            with contextlib.suppress(sqlite3.Error):
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            raise sqlite3.OperationalError("the file was removed or replaced")

    def begin(self, cursor: Any) -> None:
        """Begin as a writer: a reader that becomes one does not wait for others, but fails."""
        cursor.execute("BEGIN IMMEDIATE")

    def begin_alone(self, cursor: Any) -> None:
        """Begin as every writer does, for there is only one."""
        self.begin(cursor)

    def abort(self, connection: Any) -> None:
        """End the statement that runs."""
        connection.interrupt()

    def read(self) -> AbstractContextManager[Any]:
        """Connect without making a file where there is none."""
        return reading(self.path)

    def sql(self, text: str) -> str:
        """Times and JSON are text: in UTC, so that it sorts; and all text sorts by its bytes."""
        return text.replace("{time}", "TEXT").replace("{json}", "TEXT").replace("{ids_by_bytes}", "")


@attrs.frozen
class PostgreSQL:
    """A database of a PostgreSQL server."""

    conninfo: Mapping[str, Any] = attrs.field(repr=False)  # by libpq's names, with the password
    module = "psycopg"
    day = "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    tables = "SELECT COUNT(to_regclass(?))"

    def __str__(self) -> str:
        user, host, port, name = (self.conninfo.get(key, "") for key in ("user", "host", "port", "dbname"))
        return f"postgresql://{f'{user}@' if user else ''}{host}{f':{port}' if port else ''}/{name}"

    @property
    def has_password(self) -> bool:
        """Whether the URL has one; libpq has other ways to be given it."""
        return "password" in self.conninfo

    def arguments(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """What the URL says, and what it leaves open."""
        defaults = {
            "application_name": "llmproxy",
            "connect_timeout": _CONNECT,
            "tcp_user_timeout": _STATEMENT,
            # Poolers such as PgBouncer give each transaction another session, which knows of no prepared statements.
            "prepare_threshold": None,
        }
        return (), {**defaults, **self.conninfo}

    def prepare(self) -> None:
        """Make nothing: databases are their administrator's."""

    def opened(self, connection: Any) -> None:
        """Nothing is set for a session, which a pooler would give to others."""
        _migrate(connection, self)

    def check(self, cursor: Any) -> None:
        """A server's database that was dropped fails by itself."""

    def begin(self, cursor: Any) -> None:
        """Bound the statements of the transaction, which psycopg begins by itself."""
        cursor.execute(f"SET LOCAL statement_timeout = {_STATEMENT}")

    def begin_alone(self, cursor: Any) -> None:
        """Wait for an advisory lock, which the end of the transaction gives back."""
        self.begin(cursor)
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))

    def abort(self, connection: Any) -> None:
        """Shut the socket: libpq waits for an answer for as long as the server's kernel keeps its connection up."""
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as shared:
            shared.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        """Connect for a transaction that cannot write."""
        import psycopg

        _, keywords = self.arguments()
        with contextlib.closing(psycopg.connect(**keywords)) as connection:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            yield connection

    def sql(self, text: str) -> str:
        """A value is ``%s`` for psycopg."""
        text = text.replace("{ids_by_bytes}", _IDS_BY_BYTES)
        return text.replace("?", "%s").replace("{time}", "TIMESTAMPTZ").replace("{json}", "JSONB")


def _migrate(connection: Any, database: Database) -> None:
    cursor = connection.cursor()
    database.begin_alone(cursor)
    schema.migrate(cursor, database)
    cursor.close()
    connection.commit()


def _sqlite(text: str) -> SQLite:
    url = urlsplit(text)
    path = Path(unquote(url.path))
    if url.netloc or url.query or url.fragment or path.name == "" or "\0" in str(path):
        raise ValueError(
            'must name an absolute path, with three slashes: "sqlite:///var/lib/llmproxy/ledger.sqlite3".'
        )
    return SQLite(Path("/") / str(path).lstrip("/"))


def _postgresql(text: str) -> PostgreSQL:
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise ValueError("needs psycopg for PostgreSQL: pip install 'psycopg[binary]'.") from None
    try:
        return PostgreSQL(conninfo_to_dict(text))
    except ProgrammingError:  # its text has what it could not read, which may be the password
        raise ValueError(
            "is not a URL that libpq can read; special characters in its parts are written as %XX: "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME."
        ) from None
