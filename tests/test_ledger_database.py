from __future__ import annotations

import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from llmproxy.ledger import parse_ledger, schema
from llmproxy.ledger.database import Database, PostgreSQL, SQLite
from llmproxy.ledger.row import COLUMNS

PASSWORD = "s3cret-4f1d"


def opened(database: Database) -> sqlite3.Connection:
    """A connection that can be written to."""
    arguments, keywords = database.arguments()
    connection: sqlite3.Connection = sqlite3.connect(*arguments, **keywords)
    database.opened(connection)
    return connection


class TestSetting:
    def test_a_file_is_named_by_three_slashes(self) -> None:
        assert parse_ledger("sqlite:///var/lib/ledger.sqlite") == SQLite(Path("/var/lib/ledger.sqlite"))

    def test_four_are_what_other_programs_want_and_mean_the_same(self) -> None:
        assert parse_ledger("sqlite:////var/lib/ledger.sqlite") == SQLite(Path("/var/lib/ledger.sqlite"))

    def test_a_path_may_hold_anything(self) -> None:
        assert parse_ledger("sqlite:///a%20b/%3F%23%25") == SQLite(Path("/a b/?#%"))

    def test_none_is_no_ledger(self) -> None:
        assert parse_ledger("none") is None

    @pytest.mark.parametrize(
        "text",
        [
            "sqlite://",
            "sqlite:///",
            "sqlite://ledger.sqlite",
            "sqlite:///a?mode=ro",
            "sqlite:///a#b",
            "sqlite:///a%00",
        ],
    )
    def test_a_file_must_have_an_absolute_path(self, text: str) -> None:
        with pytest.raises(ValueError, match="must name an absolute path"):
            parse_ledger(text)

    @pytest.mark.parametrize(
        "text", ["", "None", "ledger.sqlite", "sqlite:/a", "mysql://host/a", "/var/a", "sqlite"]
    )
    def test_what_is_no_ledger_is_told_so(self, text: str) -> None:
        with pytest.raises(ValueError, match='must be "sqlite:///PATH"'):
            parse_ledger(text)

    @pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
    def test_a_server_is_shown_without_its_password(self, scheme: str) -> None:
        database = parse_ledger(f"{scheme}://alice:{PASSWORD}@db.example:5433/usage?sslmode=require")
        assert isinstance(database, PostgreSQL)
        assert str(database) == "postgresql://alice@db.example:5433/usage"
        assert PASSWORD not in repr(database)
        assert database.has_password
        assert database.conninfo["password"] == PASSWORD

    def test_a_server_need_not_have_one(self) -> None:
        database = parse_ledger("postgresql:///usage?host=/run/postgresql")
        assert database is not None
        assert not database.has_password
        assert str(database) == "postgresql:///run/postgresql/usage"

    @pytest.mark.parametrize(
        "text", ["postgresql://a:{}@[::1/x", "postgresql://a:{}@h/x?nonsense=1", "postgresql://a:%zz{}@h/x"]
    )
    def test_a_url_that_cannot_be_read_is_not_shown(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a URL that libpq can read") as caught:
            parse_ledger(text.format(PASSWORD))
        assert PASSWORD not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_server_needs_psycopg(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(ValueError, match=r"pip install 'psycopg\[binary\]'"):
            parse_ledger("postgresql://host/name")

    def test_what_the_url_says_of_the_connection_is_kept(self) -> None:
        database = parse_ledger("postgresql://host/name?connect_timeout=60")
        assert database is not None
        _, keywords = database.arguments()
        assert (keywords["connect_timeout"], keywords["application_name"]) == ("60", "llmproxy")


class TestSQLite:
    @pytest.fixture
    def database(self, tmp_path: Path) -> SQLite:
        return SQLite(tmp_path / "ledger.sqlite")

    def test_only_its_owner_can_read_it(self, database: SQLite) -> None:
        with closing(opened(database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO llmproxy_migrations VALUES (99, 'now')")
            connection.commit()
            files = [file for file in database.path.parent.iterdir() if file.name.startswith("ledger.sqlite")]
            assert len(files) == 3
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    def test_who_reads_does_not_stop_who_writes(self, database: SQLite) -> None:
        with closing(opened(database)) as writer, database.read() as reader:
            assert schema.version(reader.cursor()) == len(schema.MIGRATIONS)
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("INSERT INTO llmproxy_migrations VALUES (99, 'now')")
            writer.commit()
            assert schema.version(reader.cursor()) == len(schema.MIGRATIONS), "what it reads is of one moment"

    def test_who_reads_cannot_write(self, database: SQLite) -> None:
        opened(database).close()
        with (
            database.read() as reader,
            pytest.raises(sqlite3.OperationalError, match="readonly"),
        ):
            reader.execute("DELETE FROM llmproxy_migrations")

    def test_who_reads_makes_no_file(self, database: SQLite) -> None:
        with pytest.raises(sqlite3.OperationalError), database.read() as reader:
            reader.execute("SELECT 1 FROM llmproxy_migrations")
        assert not database.path.exists()


class TestSchema:
    def test_it_has_a_column_for_all_that_is_recorded(self, tmp_path: Path) -> None:
        with closing(opened(SQLite(tmp_path / "ledger"))) as connection:
            columns = connection.execute("PRAGMA table_info(llmproxy_exchanges)").fetchall()
        assert sorted(column[1] for column in columns) == sorted(COLUMNS)

    def test_a_ledger_is_brought_up_to_date_once(self, tmp_path: Path) -> None:
        for _ in range(2):
            with closing(opened(SQLite(tmp_path / "ledger"))) as connection:
                numbers = connection.execute("SELECT number FROM llmproxy_migrations").fetchall()
        assert numbers == [(number,) for number in range(1, len(schema.MIGRATIONS) + 1)]

    def test_one_that_is_older_gets_what_it_lacks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = SQLite(tmp_path / "ledger")
        opened(database).close()
        added = ("ALTER TABLE llmproxy_exchanges ADD COLUMN added {json}",)
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
        with closing(opened(database)) as connection:
            assert schema.version(connection.cursor()) == len(schema.MIGRATIONS)
            connection.execute("SELECT added FROM llmproxy_exchanges")

    def test_one_of_before_images_from_a_cache_gets_their_column(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = SQLite(tmp_path / "ledger")
        with monkeypatch.context() as patched:
            patched.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:4])
            opened(database).close()
        with closing(opened(database)) as connection:
            assert schema.version(connection.cursor()) >= 5
            connection.execute("SELECT cached_image_tokens FROM llmproxy_exchanges")

    def test_one_that_is_newer_can_be_used(self, tmp_path: Path) -> None:
        database = SQLite(tmp_path / "ledger")
        with closing(opened(database)) as connection:
            connection.execute("INSERT INTO llmproxy_migrations VALUES (99, 'later')")
        opened(database).close()

    def test_a_migration_that_fails_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = SQLite(tmp_path / "ledger")
        monkeypatch.setattr(schema, "MIGRATIONS", (("CREATE TABLE half (a)", "NONSENSE"),))
        with pytest.raises(sqlite3.OperationalError, match="NONSENSE"):
            opened(database)
        with closing(sqlite3.connect(database.path)) as connection:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
