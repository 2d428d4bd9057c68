"""The tables of the ledger, as numbered migrations for SQLite and PostgreSQL alike.

A migration that was released is never changed; another one follows it. It takes nothing away that is written or read by name,
and what it adds may be NULL or has a default: so a proxy that is older than the ledger can go on writing to it while others are
being replaced.

``{time}`` and ``{json}`` are the types that a database has for these, and ``{ids_by_bytes}`` is a statement that not every one
needs; see :mod:`llmproxy.ledger.database`. Sizes are in bytes, times in seconds, ``cost`` in micro-dollars. NULL is unknown, or
does not apply; it is never written as 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmproxy.ledger.database import Database

# Each is a tuple of statements; the number of one is its place, from 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE llmproxy_exchanges (
            id TEXT PRIMARY KEY,
            at {time} NOT NULL,
            client TEXT,
            upstream TEXT,
            method TEXT NOT NULL,
            path TEXT NOT NULL,
            status INTEGER,
            ending TEXT,
            asked_model TEXT,
            answered_model TEXT,
            received BIGINT,
            sent BIGINT,
            first_byte DOUBLE PRECISION,
            first_token DOUBLE PRECISION,
            duration DOUBLE PRECISION,
            reused BOOLEAN,
            upstream_request_id TEXT,
            session TEXT,
            labels {json},
            cost BIGINT,
            usage_source TEXT,
            outcome TEXT,
            error TEXT,
            response_id TEXT,
            stop_reason TEXT,
            service_tier TEXT,
            billable BOOLEAN,
            input_tokens BIGINT,
            output_tokens BIGINT,
            cache_read_tokens BIGINT,
            cache_write_5m_tokens BIGINT,
            cache_write_1h_tokens BIGINT,
            reasoning_tokens BIGINT,
            input_audio_tokens BIGINT,
            output_audio_tokens BIGINT,
            cached_audio_tokens BIGINT,
            input_image_tokens BIGINT,
            output_image_tokens BIGINT,
            server_tool_uses {json}
        )
        """,
        "CREATE INDEX llmproxy_exchanges_at ON llmproxy_exchanges (at)",
    ),
    # Ids sort by time, too, and a second index took a fifth of the room and a quarter of the time of writing.
    ("DROP INDEX llmproxy_exchanges_at",),
    # The turns of a WebSocket have rows of their own, with the id of that of the socket.
    ("ALTER TABLE llmproxy_exchanges ADD COLUMN socket TEXT",),
    # What is kept, and what is shown, goes by how ids compare.
    ("{ids_by_bytes}",),
    # Images that were read from a cache have a price of their own.
    ("ALTER TABLE llmproxy_exchanges ADD COLUMN cached_image_tokens BIGINT",),
)


def migrate(cursor: Any, database: Database) -> None:
    """Bring a ledger up to date, in a transaction in which nobody else does.

    :param cursor: of the DB-API, in a transaction that :meth:`Database.begin_alone` has begun.
    """
    cursor.execute(
        database.sql(
            "CREATE TABLE IF NOT EXISTS llmproxy_migrations (number INTEGER PRIMARY KEY, applied {time} NOT NULL)"
        )
    )
    for number in range(version(cursor) + 1, len(MIGRATIONS) + 1):
        for statement in filter(None, map(database.sql, MIGRATIONS[number - 1])):
            cursor.execute(statement)
        cursor.execute(
            database.sql("INSERT INTO llmproxy_migrations (number, applied) VALUES (?, CURRENT_TIMESTAMP)"),
            (number,),
        )


def exists(cursor: Any, database: Database) -> bool:
    """Whether there is a ledger in a database, of whatever version."""
    cursor.execute(database.sql(database.tables), ("llmproxy_migrations",))
    return bool(cursor.fetchone()[0])


def version(cursor: Any) -> int:
    """The number of the last migration that a ledger has had."""
    cursor.execute("SELECT MAX(number) FROM llmproxy_migrations")
    return cursor.fetchone()[0] or 0
