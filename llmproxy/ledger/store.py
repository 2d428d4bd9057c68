"""The one thread that writes to the ledger's database, and the connection that it keeps.

The thread is adbapi's own, not one of the reactor's pool, in which names are resolved: a database that hangs must not hold up
requests. Whatever fails, the connection is given up with it, and what comes next is tried on another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred

from llmproxy.ledger.database import Database
from llmproxy.ledger.row import Row, insertions

_PATIENCE = 30.0  # seconds until a connection on which nothing comes to an end is given up

_PRUNE = """
    DELETE FROM llmproxy_exchanges
    WHERE id IN (SELECT id FROM llmproxy_exchanges WHERE id < ? ORDER BY id LIMIT ?)
"""

_T = TypeVar("_T")


class _Pool(adbapi.ConnectionPool):
    """Connections that a database is prepared for."""

    database: Database

    def connect(self) -> Any:
        """Connect where the thread has no connection yet."""
        if not self.connections:
            self.database.prepare()
        return super().connect()


class _Connection(adbapi.Connection):
    """A connection that does not outlive a failure."""

    def rollback(self) -> None:
        """End the transaction, and the connection, which may be why it failed."""
        with contextlib.suppress(Exception):
            # A cursor may be held with the failure: SQLite would close only when that goes, and keep its locks until then.
            super().rollback()
        self._pool.disconnect(self._connection)


class Store:
    """Writes rows, and deletes old ones, one transaction after the other.

    The database is connected to when it is first needed, and brought up to date then.

    :param reactor: that gives the time, and is told what came of things.
    """

    def __init__(self, database: Database, reactor: Any) -> None:
        self._database = database
        self._reactor = reactor
        self._opening: Any = None  # a connection that the pool does not know yet
        arguments, keywords = database.arguments()
        self._pool = _Pool(
            database.module,
            *arguments,
            **keywords,
            cp_min=1,
            cp_max=1,
            cp_name="llmproxy ledger",
            cp_openfun=self._open,
            cp_reactor=reactor,
        )
        self._pool.connectionFactory = _Connection
        self._pool.database = database

    def __str__(self) -> str:
        return str(self._database)

    def insert(self, rows: Sequence[Row]) -> Deferred[None]:
        """Write rows; those that are there already stay as they are. With no rows, see whether the database can be written.

        :return: fails with what the database says.
        """

        def insert(cursor: Any) -> None:
            self._database.check(cursor)  # here alone: a failure to prune is told to nobody
            self._database.begin(cursor)
            for statement, values in insertions(rows):
                cursor.executemany(self._database.sql(statement), values)

        return self._run(insert)

    def prune(self, before: str, most: int) -> Deferred[int]:
        """Delete the oldest of the rows that were made before a time.

        :param before: what their ids sort before; see :func:`~llmproxy.exchange.first_id`.
        :param most: how many at once.
        :return: fires with how many there were.
        """

        def prune(cursor: Any) -> int:
            self._database.begin(cursor)
            cursor.execute(self._database.sql(_PRUNE), (before, most))
            return int(cursor.rowcount)

        return self._run(prune)

    def close(self) -> None:
        """Give up the connection and the thread; not before what was asked for has ended, for this waits for it."""
        self._pool.close()

    def _run(self, interaction: Callable[[Any], _T]) -> Deferred[_T]:
        running: Deferred[_T] = self._pool.runInteraction(interaction)
        watchdog = self._reactor.callLater(_PATIENCE, self._abort)

        def ended(result: Any) -> Any:
            if watchdog.active():
                watchdog.cancel()
            return result

        return running.addBoth(ended)

    def _open(self, connection: Any) -> None:
        self._opening = connection
        try:
            self._database.opened(connection)
        except Exception:
            with contextlib.suppress(Exception):
                connection.rollback()
            connection.close()
            raise
        finally:
            self._opening = None

    def _abort(self) -> None:
        for connection in [*self._pool.connections.values(), self._opening]:
            if connection is not None:
                self._database.abort(connection)
