"""The settings by which a proxy is watched, as people write them: where its ledger and its metrics are, and how it logs.

As in :mod:`llmproxy.values`, each reader takes the text of one setting and raises ``ValueError`` with a text that goes behind
the setting's name; none shows a password. A ledger's URL is checked here so far that its password can be told from the rest:
what can be connected to is known to the ledger alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, unquote

from llmproxy import values

NO_LEDGER = "none"
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warn", "error"]
MAX_DAYS = 36500

_LEDGER_FILE = "ledger.sqlite3"
# As in URLs of files, three slashes begin an absolute path (RFC 8089 section 2); behind two, a host would stand (RFC 3986
# section 3.2), so a relative path has none.
_SQLITE = re.compile(r"sqlite:(?P<root>///+)?(?P<path>[^/?#][^?#]*[^/?#]|[^/?#])")
# What libpq reads, but for what it takes unencoded in a password: there, nobody could tell where the password ends.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]*)(?::[0-9]*)?"
_POSTGRESQL = re.compile(
    rf"postgres(?:ql)?://(?:(?P<user>[^\s:@/?#]*)(?::[^\s@/?#]*)?@)?(?P<hosts>{_HOST}(?:,{_HOST})*)(?P<name>/[^\s@/?#]*)?"
    r"(?:\?[^\s@#]*)?"
)


def parse_ledger(text: str) -> str:
    """Read the URL of a ledger.

    :return: the same, or ``none``; the path of an SQLite file may be relative.
    """
    if text == NO_LEDGER or _POSTGRESQL.fullmatch(text):
        return text
    if text.startswith("postgres"):
        raise ValueError(
            "must be like postgresql://USER:PASSWORD@HOST:PORT/NAME, with special characters in its parts as %XX."
        )
    sqlite = _SQLITE.fullmatch(text)
    if sqlite is None or "\0" in unquote(text):
        raise ValueError("must be sqlite:///PATH, sqlite:PATH, postgresql://USER@HOST/NAME or none.")
    return text if sqlite["root"] is None else _sqlite(Path("/", unquote(sqlite["path"])))


def parse_absolute_ledger(text: str) -> str:
    """Read the URL of a ledger where there is no directory that its path could be relative to."""
    url = parse_ledger(text)
    if _is_relative(url):
        raise ValueError("must name an absolute path: sqlite:///PATH.")
    return url


def ledger_in(directory: Path, url: str) -> str:
    """Make the path of a ledger's URL absolute, as seen from a directory."""
    return _sqlite(directory.absolute() / unquote(url.partition(":")[2])) if _is_relative(url) else url


def default_ledger(environ: Mapping[str, str]) -> str:
    """The URL of the ledger where nothing else is said: a file in the state directory.

    That is the one that systemd made (``STATE_DIRECTORY``, systemd.exec(5)), else the user's own (XDG Base Directory
    Specification, which has relative paths ignored).
    """
    made = Path(environ.get("STATE_DIRECTORY", "").partition(":")[0])
    if made.is_absolute():
        return _sqlite(made / _LEDGER_FILE)
    state = Path(environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        state = Path("/", environ.get("HOME") or os.path.expanduser("~"), ".local", "state")  # noqa: PTH111 - never raises
    return _sqlite(state / "llmproxy" / _LEDGER_FILE)


def without_password(url: str) -> str:
    """The URL of a ledger as it may be shown."""
    found = _POSTGRESQL.fullmatch(url)
    if found is not None:
        user = f"{found['user']}@" if found["user"] else ""
        return f"postgresql://{user}{found['hosts']}{found['name'] or ''}"
    return "postgresql://..." if url.startswith("postgres") else url


def parse_admin_port(text: str) -> str:
    """Read where metrics are served: a port, on loopback alone, or a Twisted endpoint description, which is returned."""
    return (
        values.parse_listener(text) if ":" in text else f"tcp:{values.parse_port(text)}:interface=127.0.0.1"
    )


def parse_switch(text: str) -> bool:
    """Read whether something is to be done."""
    if text not in ("on", "off"):
        raise ValueError(f"must be on or off, not {text!r}.")
    return text == "on"


def parse_days(text: str) -> int:
    """Read a number of days."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_DAYS):
        raise ValueError(f"is not a whole number of days from 1 to {MAX_DAYS}: {text!r}.")
    return int(text)


def _one_of(kind: Any) -> Callable[[str], Any]:
    words = get_args(kind)

    def parse(text: str) -> Any:
        if text not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}.")
        return text

    return parse


parse_log_format: Callable[[str], LogFormat] = _one_of(LogFormat)
parse_log_level: Callable[[str], LogLevel] = _one_of(LogLevel)


def _is_relative(url: str) -> bool:
    found = _SQLITE.fullmatch(url)
    return found is not None and found["root"] is None


def _sqlite(path: Path) -> str:
    return f"sqlite://{quote(os.fsencode(path))}"
