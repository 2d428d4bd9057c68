"""``llmproxy usage``: what was used and what it cost, out of the ledger.

It reads the database that a proxy writes to, also while it does.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import attrs
import tomlkit
from twisted.python import usage

from llmproxy import config
from llmproxy.cli.command import Command, CommandError
from llmproxy.cli.table import columns
from llmproxy.ledger import Database, parse_ledger
from llmproxy.ledger.database import SQLite
from llmproxy.ledger.report import DIMENSIONS, LedgerError, Question, Sum, ask

_AGO = re.compile(r"([0-9]{1,6})([dh])")
_DAY = timedelta(days=1)
_UNITS = {"d": "days", "h": "hours"}
# What is written for programs, in this order.
_FIELDS = (
    *("requests", "errors", "input_tokens", "output_tokens", "reasoning_tokens", "cache_read_tokens"),
    *(
        "cache_write_5m_tokens",
        "cache_write_1h_tokens",
        "cache_hit_share",
        "cost",
        "usage_unknown",
        "cost_unknown",
    ),
    *("first_token_p50", "first_token_p99"),
)
_NAMES = {"cost": "cost_micro_usd"}


class Usage(Command):
    """The command line of ``llmproxy usage``."""

    name = "usage"
    longdesc = (
        "Adds up what was used and what it cost. Days and times are in UTC. In the table, a + behind a number says that there "
        "was more, and that it is not known how much; --json has null, and --csv nothing, for what is unknown."
    )
    optParameters = [
        [
            "by",
            None,
            "client",
            f"What to add up by: one or more of {', '.join(DIMENSIONS)}, with commas between them.",
        ],
        [
            "since",
            None,
            None,
            "The first day, such as 2027-01-31, or a time, 2027-01-31T12:00:00Z, or how long ago: 7d, 12h. [default: all]",
        ],
        [
            "until",
            None,
            None,
            "The last day; or a time, or how long ago, before which it was. [default: now]",
        ],
        ["client", None, None, "The client that alone counts. [default: all]"],
        [
            "ledger",
            None,
            None,
            "The ledger, such as sqlite:///var/lib/llmproxy/ledger.sqlite3. [default: that of the configuration]",
        ],
    ]
    optFlags = [["json", None, "Write JSON"], ["csv", None, "Write CSV"]]

    def postOptions(self) -> None:
        """Read what is asked."""
        by = tuple(self["by"].split(","))
        if not set(by) <= set(DIMENSIONS) or len(set(by)) < len(by):
            raise usage.UsageError(f"--by takes {', '.join(DIMENSIONS)}, each at most once")
        if self["json"] and self["csv"]:
            raise usage.UsageError("--json and --csv exclude each other")
        self.question = Question(
            by=by,
            since=None if self["since"] is None else _moment("since", self["since"]),
            until=None if self["until"] is None else _moment("until", self["until"], _DAY),
            client=self["client"],
        )

    def run(self, environ: Mapping[str, str]) -> int:
        """Print the sums.

        :raise CommandError: where there is no ledger that can be read.
        :raise llmproxy.config.ConfigError: where the configuration does not tell which it is.
        """
        question = self.question
        database = self._ledger(environ)
        try:
            sums, [total] = ask(database, question, attrs.evolve(question, by=()))
        except LedgerError as error:
            raise CommandError(_unreadable(database) or str(error)) from None
        if self["json"]:
            json.dump(_document(question, sums, total), sys.stdout, indent=2)
            print()
        elif self["csv"]:
            lines = csv.writer(sys.stdout, lineterminator="\n")
            lines.writerow([*question.by, *(_NAMES.get(field, field) for field in _FIELDS)])
            lines.writerows([*line.key, *(getattr(line, field) for field in _FIELDS)] for line in sums)
        else:
            for text in table(question.by, sums, total):
                print(text)
        return 0

    def _ledger(self, environ: Mapping[str, str]) -> Database:
        given = self["ledger"]
        if given is not None and not given.strip():
            raise CommandError("--ledger is empty.")
        try:
            database = parse_ledger(given or config.load_ledger(environ, self.config_file(environ)))
        except config.ConfigError as error:
            raise CommandError(str(error)) from None
        except ValueError as problem:
            raise CommandError(f"{'--ledger' if given else 'ledger'} {problem}") from None
        if database is None:
            raise CommandError("The ledger is none: there is nothing to read; --ledger names another.")
        if given and database.has_password:
            raise CommandError(
                "A password does not belong on a command line, which others can see; set LLMPROXY_LEDGER."
            )
        return database


def _unreadable(database: Database) -> str | None:
    """Why a ledger's file cannot be read, which SQLite does not tell; ``None`` where the reason is another."""
    if not isinstance(database, SQLite):
        return None
    try:
        with database.path.open("rb"):
            return None
    except FileNotFoundError:
        return f"There is no ledger at {database}; a proxy makes it when it starts."
    except OSError as error:
        return f"The ledger {database} cannot be read: {error.strerror}."


def table(by: Sequence[str], sums: Sequence[Sum], total: Sum) -> Iterator[str]:
    """Write sums for people, as lines.

    :param total: of all of them.
    """
    if not sums:
        yield "The ledger has no exchange of which this is asked."
        return
    lines = [*sums, attrs.evolve(total, key=("total", *[""] * (len(by) - 1)))] if len(sums) > 1 else sums
    keys = [list(by), *([_key(value) for value in line.key] for line in lines)]
    cells = [list(_COLUMNS), *([write(line) for write in _COLUMNS.values()] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [map(str.rjust, row, widths) for row in cells]
    yield from columns([[*key, *row] for key, row in zip(keys, numbers, strict=True)])
    if total.usage_unknown or total.cost_unknown:
        yield ""
        yield (
            f"+ and more: of {total.requests} requests, the tokens of {total.usage_unknown} and the cost of "
            f"{total.cost_unknown} are not known, or not whole."
        )


def _key(value: str | None) -> str:
    return "-" if value is None else value


def _tokens(field: str) -> Callable[[Sum], str]:
    return lambda line: _at_least(getattr(line, field), line.usage_unknown, "{:,}".format)


def _cost(line: Sum) -> str:
    return _at_least(line.cost, line.cost_unknown, _dollars)


def _dollars(micro: int) -> str:
    """To a hundredth of a cent; what is less is not nothing."""
    return "<0.0001" if 0 < micro <= 50 else f"{Decimal(micro).scaleb(-6):,.4f}"


def _at_least(value: int | None, unknown: int, write: Callable[[int], str]) -> str:
    if value is None:
        return "unknown" if unknown else "-"
    return write(value) + "+" * bool(unknown)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


_COLUMNS: Mapping[str, Callable[[Sum], str]] = {
    "requests": lambda line: f"{line.requests:,}",
    "errors": lambda line: f"{line.errors:,}",
    "input": _tokens("input_tokens"),
    "cache read": _tokens("cache_read_tokens"),
    "cache write": _tokens("cache_write_tokens"),
    "output": _tokens("output_tokens"),
    "cache hits": lambda line: "-" if line.cache_hit_share is None else f"{line.cache_hit_share:.0%}",
    "cost USD": _cost,
    "first token p50 s": lambda line: _seconds(line.first_token_p50),
    "p99 s": lambda line: _seconds(line.first_token_p99),
}


def _document(question: Question, sums: Sequence[Sum], total: Sum) -> dict[str, Any]:
    return {
        "since": None if question.since is None else question.since.isoformat(),
        "until": None if question.until is None else question.until.isoformat(),
        "client": question.client,
        "by": question.by,
        "rows": [{**dict(zip(question.by, line.key, strict=True)), **_fields(line)} for line in sums],
        "total": _fields(total),
    }


def _fields(line: Sum) -> dict[str, Any]:
    return {_NAMES.get(field, field): getattr(line, field) for field in _FIELDS}


def _moment(option: str, text: str, into_day: timedelta = timedelta(0)) -> datetime:
    """A time; where it is a day, so much after its beginning."""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return datetime.now(timezone.utc) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        value = tomlkit.value(text).unwrap()
        if isinstance(value, datetime):
            return (
                value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
            )
        if isinstance(value, date):
            return datetime.combine(value, time.min, timezone.utc) + into_day
    except (ValueError, OverflowError):
        pass
    raise usage.UsageError(f"--{option} takes a date such as 2027-01-31, 2027-01-31T12:00:00Z, 7d or 12h")
