"""``llmproxy client``: tokens for people and tools, and their rights.

A token is shown once, when it is made; the configuration keeps its SHA-256 digest. On standard output is what a program may
read on, such as the token; what explains it to a person is on standard error. How a file is changed is told in
:mod:`llmproxy.cli.edit`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import tomlkit
from twisted.python import usage

from llmproxy.cli import document, edit
from llmproxy.cli.command import Command, CommandError
from llmproxy.cli.table import columns
from llmproxy.config import FILE_VARIABLE, token_digest

_PREFIX = "llmp_"  # tells people, and programs that look for leaked secrets, what this is
_TOKEN_BYTES = 32
_RELOAD = (
    "The proxy goes by this once it reads its configuration again: `systemctl reload llmproxy`, or SIGHUP."
)
_LISTS = ("upstreams", "models", "deny-models", "networks")


def new_token() -> str:
    """Make a token: 256 random bits, in letters, digits, ``-`` and ``_``."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of(token: str) -> str:
    """What the configuration keeps of a token: 64 hexadecimal digits."""
    return token_digest(token.encode("ascii")).hex()


class New(Command):
    """The command line of ``llmproxy client new``."""

    name = "new"
    argument = "NAME"
    longdesc = "Makes a token, shows it once, and shows or writes what belongs into the configuration file."
    optParameters = [
        ["upstreams", None, None, "The upstreams that it may use: NAME,... [default: all]"],
        ["models", None, None, "Patterns of the models that it may use: GLOB,... [default: all]"],
        [
            "deny-models",
            None,
            None,
            "Patterns of models that it may not use, whatever --models says: GLOB,...",
        ],
        [
            "expires",
            None,
            None,
            "The last day of its token, in UTC, such as 2027-01-31; or its end, 2027-01-31T12:00:00Z",
        ],
        ["networks", None, None, "Where its requests may come from: CIDR,... [default: anywhere]"],
        [
            "write",
            "w",
            None,
            "The configuration file to add it to; only the token is then on standard output",
        ],
    ]

    def postOptions(self) -> None:
        """Read the rights."""
        if self["write"] is not None and not self["write"].strip():
            raise usage.UsageError("--write is empty; it takes the name of the configuration file")
        self.rights: dict[str, Any] = {}
        for option in _LISTS:
            if self[option] is not None:
                self.rights[option.replace("-", "_")] = _comma_separated(option, self[option])
        if self["expires"] is not None:
            self.rights["expires"] = _date(self["expires"])

    def run(self, environ: Mapping[str, str]) -> int:
        """Make the client."""
        token = new_token()
        toml = document.client_toml(self.given, digest_of(token), self.rights)
        if self["write"] is not None:
            path = Path(self["write"])
            kept = edit.rewrite(path, lambda text: document.with_client(text, self.given, toml), environ)
            _explain(f"Added {self.given} to {path}.", *_unchecked(kept), _RELOAD)
            print(token)
            return 0
        file = self.config_file(environ)
        if file is None:  # then it is not known which upstreams there are
            others = {name: value for name, value in self.rights.items() if name != "upstreams"}
            edit.check("", document.client_toml(self.given, digest_of(token), others), environ)
        else:
            text, changed = edit.read(
                Path(file), lambda text: (text, document.with_client(text, self.given, toml))
            )
            edit.check(text, changed, environ)
        _explain(f"The token of {self.given}, which is shown only now:")
        print(token)
        _explain(
            f"Add this to {file or 'the configuration file'}, as --write FILE does, and reload the proxy:"
        )
        print(toml, end="")
        return 0


class Rotate(Command):
    """The command line of ``llmproxy client rotate``."""

    name = "rotate"
    argument = "NAME"
    longdesc = "Gives a client another token beside those that it has; --finish ends that."
    optFlags = [["finish", None, "Make no token, but take all from it except the newest"]]

    def run(self, environ: Mapping[str, str]) -> int:
        """Change the file."""
        path = _file_of(self, environ)
        if self["finish"]:
            kept = edit.rewrite(path, lambda text: document.with_newest_token(text, self.given), environ)
            _explain(f"Only the newest token is left to {self.given} in {path}.", *_unchecked(kept), _RELOAD)
            return 0
        token = new_token()
        digest = digest_of(token)
        kept = edit.rewrite(path, lambda text: document.with_token(text, self.given, digest), environ)
        _explain(f"Added a token for {self.given} in {path}.", *_unchecked(kept), _RELOAD)
        print(token)
        return 0


class Revoke(Command):
    """The command line of ``llmproxy client revoke``."""

    name = "revoke"
    argument = "NAME"
    longdesc = "Takes a client, with all its tokens, out of the configuration file."

    def run(self, environ: Mapping[str, str]) -> int:
        """Change the file."""
        path = _file_of(self, environ)
        kept = edit.rewrite(path, lambda text: document.without_client(text, self.given), environ)
        _explain(f"Took {self.given} out of {path}.", *_unchecked(kept), _RELOAD)
        return 0


class List(Command):
    """The command line of ``llmproxy client list``."""

    name = "list"
    longdesc = (
        "Lists the clients of the configuration file; llmproxy check shows those of the environment, too."
    )

    def run(self, environ: Mapping[str, str]) -> int:
        """Print a table."""
        clients = edit.read(_file_of(self, environ), document.clients_of)
        rows = [_row(name, table) for name, table in clients.items()]
        for line in columns([["NAME", "UPSTREAMS", "MODELS", "EXPIRES", "NETWORKS", "TOKENS"], *rows]):
            print(line)
        return 0


class Clients(Command):
    """The command line of ``llmproxy client``."""

    name = "client"
    longdesc = (
        "Looks after the clients in the configuration file, of which each has tokens and rights of its own."
    )
    subCommands = [
        ("new", None, New, "Make a token for a new client."),
        ("list", None, List, "List the clients."),
        ("rotate", None, Rotate, "Give a client another token."),
        ("revoke", None, Revoke, "Take a client out."),
    ]


def _file_of(command: Command, environ: Mapping[str, str]) -> Path:
    file = command.config_file(environ)
    if file is None:
        raise CommandError(
            f"There is no configuration file to look at: give --config FILE, or set {FILE_VARIABLE}."
        )
    return Path(file)


def _row(name: str, table: Any) -> list[str]:
    """What a list says of a client; a file that is not right yet can be listed, too."""
    table = table if isinstance(table, Mapping) else {}
    models = _listed(table.get("models"), "all")
    if table.get("deny_models"):
        models += f" but not {_listed(table['deny_models'], '')}"
    digests = table.get("token_sha256", [])
    return [
        name,
        _listed(table.get("upstreams"), "all"),
        models,
        str(table.get("expires", "never")),
        _listed(table.get("networks"), "anywhere"),
        str(len(digests) if isinstance(digests, list) else 1),
    ]


def _listed(value: Any, otherwise: str) -> str:
    if value is None:
        return otherwise
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _comma_separated(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise usage.UsageError(f"--{option} holds an empty value; it takes values with commas between")
    return items


def _date(text: str) -> date:
    """A date or a date and time, as the configuration file has it."""
    try:
        value = tomlkit.value(text).unwrap()
    except ValueError:
        value = None
    if not isinstance(value, date):
        raise usage.UsageError("--expires takes a date such as 2027-01-31, or 2027-01-31T12:00:00Z")
    return value


def _explain(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _unchecked(problems: Iterable[str]) -> list[str]:
    return [f"Not checked, since it may be otherwise where the proxy runs: {problem}" for problem in problems]
