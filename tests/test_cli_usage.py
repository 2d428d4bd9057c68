from __future__ import annotations

import csv
import errno
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from llmproxy.ledger.database import SQLite
from llmproxy.usage.model import Usage
from tests.cli_support import Shell, shell
from tests.ledger_support import NOON, everyday, exchange, reading, write

__all__ = ["shell"]  # a fixture


@pytest.fixture
def ledger(tmp_path: Path, shell: Shell) -> SQLite:
    """A ledger that the environment names, and that is empty."""
    database = SQLite(tmp_path / "ledger.sqlite3")
    write(database, [])
    shell.environ["LLMPROXY_LEDGER"] = f"sqlite://{database.path}"
    return database


class TestTable:
    def test_everyday_exchanges(self, shell: Shell, ledger: SQLite) -> None:
        write(ledger, everyday())
        ran = shell.run("usage")
        assert (ran.status, ran.err) == (0, "")
        assert ran.out == (
            "client  requests  errors  input  cache read  cache write  output  cache hits  cost USD  first token p50 s  p99 s\n"
            "alice          5       0    500       1,500          250     100         67%   0.0060+               0.20   0.40\n"
            "bob            5       1   100+        300+          50+     20+         67%   unknown                  -      -\n"
            "carol          1       1      -           -            -       -           -         -                  -      -\n"
            "total         11       2   600+      1,800+         300+    120+         67%   0.0060+               0.20   0.40\n"
            "\n"
            "+ and more: of 11 requests, the tokens of 3 and the cost of 4 are not known, or not whole.\n"
        )

    def test_one_line_is_its_own_total_and_what_is_known_needs_no_remark(
        self, shell: Shell, ledger: SQLite
    ) -> None:
        usage = Usage(input_tokens=1_234_567, output_tokens=1)
        write(ledger, [exchange(reading=reading(usage), cost=1_234_567_890)])
        lines = shell.run("usage").out.splitlines()
        assert len(lines) == 2
        assert lines[1].split() == [
            "alice",
            "1",
            "0",
            "1,234,567",
            "-",
            "-",
            "1",
            "-",
            "1,234.5679",
            "-",
            "-",
        ]

    @pytest.mark.parametrize(
        ("micro", "shown"), [(0, "0.0000"), (1, "<0.0001"), (50, "<0.0001"), (51, "0.0001")]
    )
    def test_a_small_cost_does_not_look_like_none(
        self, shell: Shell, ledger: SQLite, micro: int, shown: str
    ) -> None:
        write(ledger, [exchange(reading=reading(Usage(1, 1)), cost=micro)])
        assert f" {shown} " in shell.run("usage").out

    def test_several_keys_have_columns_of_their_own(self, shell: Shell, ledger: SQLite) -> None:
        write(ledger, [exchange(method="GET"), exchange(method="GET", client=None, asked_model=None)])
        lines = shell.run("usage", "--by", "client,model,day").out.splitlines()
        assert [line.split()[:4] for line in lines] == [
            ["client", "model", "day", "requests"],
            ["alice", "model-1", "2026-11-20", "1"],
            ["-", "-", "2026-11-20", "1"],
            ["total", "2", "0", "-"],
        ]

    def test_nothing_is_told_in_words(self, shell: Shell, ledger: SQLite) -> None:
        assert shell.run("usage", "--client", "nobody").out == (
            "The ledger has no exchange of which this is asked.\n"
        )


class TestPrograms:
    def test_json_has_all_and_null_for_what_is_unknown(self, shell: Shell, ledger: SQLite) -> None:
        write(ledger, everyday())
        document = json.loads(shell.run("usage", "--json", "--by", "client", "--since", "2026-11-20").out)
        assert document["by"] == ["client"]
        assert (document["since"], document["until"]) == ("2026-11-20T00:00:00+00:00", None)
        assert document["rows"][1]["client"] == "bob"
        assert document["rows"][1]["cost_micro_usd"] is None
        assert document["rows"][0] == {
            "client": "alice",
            "requests": 5,
            "errors": 0,
            "input_tokens": 500,
            "output_tokens": 100,
            "reasoning_tokens": None,
            "cache_read_tokens": 1500,
            "cache_write_5m_tokens": 250,
            "cache_write_1h_tokens": None,
            "cache_hit_share": 1500 / 2250,
            "cost_micro_usd": 6000,
            "usage_unknown": 0,
            "cost_unknown": 1,
            "first_token_p50": 0.2,
            "first_token_p99": 0.4,
        }
        assert document["total"]["requests"] == 11

    def test_csv_has_the_same_without_a_total(self, shell: Shell, ledger: SQLite) -> None:
        write(ledger, everyday())
        rows = list(csv.DictReader(shell.run("usage", "--csv", "--by", "upstream,client").out.splitlines()))
        assert [(row["upstream"], row["client"]) for row in rows] == [
            ("anthropic", "alice"),
            ("anthropic", "bob"),
            ("anthropic", "carol"),
        ]
        assert (rows[0]["cost_micro_usd"], rows[1]["cost_micro_usd"]) == ("6000", "")

    def test_without_exchanges_they_are_whole_all_the_same(self, shell: Shell, ledger: SQLite) -> None:
        assert json.loads(shell.run("usage", "--json").out)["rows"] == []
        assert shell.run("usage", "--csv").out.startswith("client,requests,errors,")


class TestTimes:
    @pytest.mark.parametrize(
        ("options", "days"),
        [
            (["--since", "2026-11-20"], "20 21 22"),
            (["--until", "2026-11-20"], "19 20"),
            (["--since", "2026-11-20", "--until", "2026-11-21"], "20 21"),
            (["--since", "2026-11-20T12:00:00Z"], "20 21 22"),
            (["--since", "2026-11-20T12:00:01Z"], "21 22"),
            (["--since", "2026-11-20T14:00:00+02:00", "--until", "2026-11-21T12:00:00Z"], "20"),
        ],
    )
    def test_days_are_whole_and_times_exact(
        self, shell: Shell, ledger: SQLite, options: Sequence[str], days: str
    ) -> None:
        write(ledger, [exchange(at=NOON.replace(day=day)) for day in range(19, 23)])
        rows = json.loads(shell.run("usage", "--json", "--by", "day", *options).out)["rows"]
        assert [row["day"] for row in rows] == [f"2026-11-{day}" for day in days.split()]

    def test_the_last_moment_of_a_day_is_in_it(self, shell: Shell, ledger: SQLite) -> None:
        write(ledger, [exchange(at=datetime(2026, 11, 20, 23, 59, 59, 999_999, timezone.utc))])
        assert json.loads(shell.run("usage", "--json", "--until", "2026-11-20").out)["total"]["requests"] == 1

    def test_a_time_may_be_told_by_how_long_ago_it_was(self, shell: Shell, ledger: SQLite) -> None:
        now = datetime.now(timezone.utc)
        write(ledger, [exchange(at=now - timedelta(hours=hours)) for hours in (1, 30, 100)])
        for since, count in (("2h", 1), ("2d", 2), ("30d", 3)):
            total = json.loads(shell.run("usage", "--json", "--since", since).out)["total"]
            assert total["requests"] == count


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (["--by", "colour"], "--by takes client, model, upstream, day, session"),
            (["--by", "day,day"], "each at most once"),
            (["--by", ""], "--by takes"),
            (["--since", "yesterday"], "--since takes a date"),
            (["--since", "12:00:00"], "--since takes a date"),
            (["--until", "999999d"], "--until takes a date"),
            (["--until", "9999-12-31"], "--until takes a date"),
            (["--json", "--csv"], "exclude each other"),
            (["more"], "it takes no arguments"),
        ],
    )
    def test_what_cannot_be_understood(
        self, shell: Shell, ledger: SQLite, words: Sequence[str], problem: str
    ) -> None:
        assert problem in shell.refused("usage", *words, status=2)

    def test_the_ledger_is_off(self, shell: Shell) -> None:
        shell.environ["LLMPROXY_LEDGER"] = "none"
        assert "The ledger is none: there is nothing to read" in shell.refused("usage")

    def test_what_is_named_is_no_ledger(self, shell: Shell) -> None:
        assert '--ledger must be "sqlite:///PATH"' in shell.refused("usage", "--ledger", "ledger.sqlite3")
        shell.environ["LLMPROXY_LEDGER"] = "ledger.sqlite3"
        assert "LLMPROXY_LEDGER must be" in shell.refused("usage")

    def test_the_configuration_names_a_server_and_psycopg_is_missing(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        shell.environ["LLMPROXY_LEDGER"] = "postgresql://127.0.0.1/x"
        assert "ledger needs psycopg for PostgreSQL" in shell.refused("usage")

    def test_a_ledger_that_is_not_there(self, shell: Shell, tmp_path: Path) -> None:
        file = tmp_path / "absent.sqlite3"
        problem = shell.refused("usage", "--ledger", f"sqlite://{file}")
        assert problem == f"llmproxy usage: There is no ledger at {file}; a proxy makes it when it starts.\n"
        assert not file.exists()

    def test_a_directory_in_the_place_of_a_ledger(self, shell: Shell, tmp_path: Path) -> None:
        problem = shell.refused("usage", "--ledger", f"sqlite://{tmp_path}")
        assert problem == f"llmproxy usage: The ledger {tmp_path} cannot be read: Is a directory.\n"

    def test_a_ledger_of_somebody_else(self, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)  # who runs the tests may be root
        problem = shell.refused("usage", "--ledger", f"sqlite://{shell.file}")
        assert problem == f"llmproxy usage: The ledger {shell.file} cannot be read: Permission denied.\n"

    def test_a_file_that_is_no_ledger(self, shell: Shell) -> None:
        problem = shell.refused("usage", "--ledger", f"sqlite://{shell.file}")
        assert problem == f"llmproxy usage: The ledger {shell.file} cannot be read: file is not a database.\n"

    def test_an_empty_file(self, shell: Shell, tmp_path: Path) -> None:
        file = tmp_path / "empty.sqlite3"
        file.touch()
        assert shell.refused("usage", "--ledger", f"sqlite://{file}") == (
            f"llmproxy usage: There is no ledger in {file} yet, for it lacks the tables; a proxy makes them when it starts.\n"
        )

    def test_a_ledger_with_an_empty_name(self, shell: Shell, ledger: SQLite) -> None:
        for empty in ("", " "):
            assert shell.refused("usage", "--ledger", empty) == "llmproxy usage: --ledger is empty.\n"

    def test_a_password_on_the_command_line(self, shell: Shell) -> None:
        problem = shell.refused("usage", "--ledger", "postgresql://alice:s3cret@127.0.0.1/x")
        assert "set LLMPROXY_LEDGER" in problem
        assert "s3cret" not in problem


class TestWhichLedger:
    def test_an_option_comes_first(self, shell: Shell, ledger: SQLite) -> None:
        write(ledger, [exchange()])
        shell.environ["LLMPROXY_LEDGER"] = "none"
        assert "alice" in shell.run("usage", "--ledger", f"sqlite://{ledger.path}").out

    def test_the_configuration_file_may_name_it(self, shell: Shell, ledger: SQLite) -> None:
        write(ledger, [exchange()])
        del shell.environ["LLMPROXY_LEDGER"]
        shell.file.write_text(f'ledger = "sqlite:{ledger.path.name}"\n{shell.file.read_text()}')
        assert "alice" in shell.run("usage", "--config", str(shell.file)).out

    def test_it_is_in_the_state_directory_where_nothing_is_said(self, shell: Shell, tmp_path: Path) -> None:
        shell.environ["STATE_DIRECTORY"] = str(tmp_path)
        write(SQLite(tmp_path / "ledger.sqlite3"), [exchange()])
        assert "alice" in shell.run("usage").out
