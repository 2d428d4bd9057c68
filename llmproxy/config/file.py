"""The configuration from a file: TOML, checked against :mod:`llmproxy.config.schema`.

What is wrong is taken out once it is noted, and the rest is read on: so one message names all of it. Names of files are
relative to the directory of the configuration file. Keys come from the variables and files that it names; no message shows one.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import attrs
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmproxy import values
from llmproxy.config.model import Accounting, Client, Logging, Timeouts
from llmproxy.config.partial import Partial, PartialUpstream
from llmproxy.config.prices import overrides
from llmproxy.config.problems import Problems, Where, nearest, shown
from llmproxy.config.schema import ClientTable, File, UpstreamTable, described, kind_of
from llmproxy.config.watching import ledger_in
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# How tomllib says where.
_WHERE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
# Keys that have the name of the field of Config which they set.
_OTHERS = ("listen", "cors_origins", "max_resent_body", "https_proxy")


def read(path: str, environ: Mapping[str, str], problems: Problems) -> Partial | None:
    """Read what a file says.

    :param environ: where the variables are that it names.
    :param problems: what is wrong with it is added.
    :return: nothing where it is no TOML.
    """
    data = _parse(path, problems)
    if data is None:
        return None
    file = _check(data, problems)
    read = _Referred(environ, Path(path).parent, problems)
    others = {key: getattr(file, key) for key in _OTHERS if key in file.model_fields_set}
    if "no_proxy" in file.model_fields_set:
        others["no_proxy"] = ",".join(file.no_proxy)
    if "admin_port" in file.model_fields_set:
        others["admin"] = file.admin_port
    accounting = file.settings_of(Accounting)
    if file.ledger is not None:
        accounting["ledger"] = ledger_in(Path(path).parent, file.ledger)
    if "prices" in file.model_fields_set:
        accounting["prices"] = tuple(
            override for item in file.prices.items() for override in overrides(*item, problems)
        )
    return Partial(
        upstreams={name: _upstream(name, table, read) for name, table in file.upstreams.items()},
        clients={name: _client(name, table) for name, table in file.clients.items()},
        timeouts=file.defaults.settings_of(Timeouts),
        limits=file.defaults.settings_of(UpstreamLimits),
        downstream=file.limits.settings_of(DownstreamLimits),
        accounting=accounting,
        logging=file.settings_of(Logging),
        others=others,
        places=frozenset(_places(data)),
        variables={name: () for table in file.upstreams.values() for name in table.api_key_env or ()},
    )


def read_ledger(path: str, problems: Problems) -> str | None:
    """Read only where a file says that the ledger is; ``None`` where it does not, or where something is wrong with that."""
    data = _parse(path, problems) or {}
    file = _check({key: value for key, value in data.items() if key == "ledger"}, problems)
    return None if file.ledger is None else ledger_in(Path(path).parent, file.ledger)


def _parse(path: str, problems: Problems) -> dict[str, Any] | None:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        problems.say(f"{path} cannot be read ({error.strerror}).")
        return None
    except UnicodeDecodeError as error:
        problems.say(f"{path} is not text in UTF-8 (byte {error.start}).")
        return None
    try:
        return tomllib.loads(text, parse_float=_number)
    except ValueError as error:
        problems.say(f"{path}: {_located(str(error), text)}")
        return None


def _number(text: str) -> Decimal | float:
    """Read a number with a point or an exponent just as it is written, for a price may be one."""
    number = float(text)
    try:
        return Decimal(text) if math.isfinite(number) else number
    except InvalidOperation:  # its exponent has too many digits
        return number


def _located(error: str, text: str) -> str:
    """Put where an error of TOML is before what it is."""
    found = _WHERE.fullmatch(error)
    if found is None:
        return error
    lines = text.split("\n")
    line, column = found[2] or len(lines), found[3] or len(lines[-1]) + 1
    return f"line {line}, column {column}: {found[1]}."


def _check(data: dict[str, Any], problems: Problems) -> File:
    """Take out of the data what is wrong, noting it, until the rest is right."""
    try:
        return File.model_validate(data)
    except ValidationError as invalid:
        errors = [(_written(error["loc"], data), error) for error in invalid.errors(include_url=False)]
    for place, error in errors:
        _note(place, error, problems)
        _take_out(place, data)
    return _check(data, problems)


def _note(place: Where, error: ErrorDetails, problems: Problems) -> None:
    """Say what pydantic found, in the words of the schema."""
    value, kind = error["input"], error["type"]
    if kind == "value_error":
        problems.refuse(place, error["ctx"]["error"])
    elif kind == "extra_forbidden":
        table, _ = described(place[:-1])
        problems.add(place, f"unknown key{nearest(place[-1], table.model_fields)}")
    elif kind != "too_short" or not value:  # items that were refused are missed by pydantic, too
        problems.add(place, f"found {shown(value)}, but it must be {_allowed(place)}.")


def _written(place: Where, data: Any) -> Where:
    """What there is in the file of a place of pydantic's.

    Pydantic adds ``[key]`` where a key is wrong and not its value, and ``0`` where a text is taken for a list of one.
    """
    for depth, part in enumerate(place):
        inside = isinstance(data, list) if isinstance(part, int) else isinstance(data, dict) and part in data
        if not inside:
            return place[:depth]
        data = data[part]
    return place


def _take_out(place: Where, data: dict[str, Any]) -> None:
    """Delete the key at a place; a list with a wrong item goes as a whole."""
    *above, key = [part for part in place if isinstance(part, str)]
    for part in above:
        data = data.get(part, {})
    data.pop(key, None)


def _allowed(place: Where) -> str:
    """What the value at a place may be, in words that go behind "it must be"."""
    table, rest = described(place)
    kind = kind_of(table.model_fields[rest[0]]) if rest else None
    if kind is None:
        return "a table"
    return kind.item if len(rest) > 1 else kind.text


def _places(table: Mapping[str, Any], above: Where = ()) -> Iterator[Where]:
    """The keys that hold values, the names of headers in lower case."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _places(value, (*above, key))
        else:
            yield (*above, key.lower() if above[2:] == ("headers",) else key)


def _client(name: str, table: ClientTable) -> Client:
    return Client(
        name,
        tuple(bytes.fromhex(digest) for digest in table.token_sha256 or ()),
        None if table.upstreams is None else frozenset(table.upstreams),
        table.models,
        table.deny_models,
        table.expires,
        table.networks or (),
    )


def _upstream(name: str, table: UpstreamTable, read: _Referred) -> PartialUpstream:
    place = ("upstreams", name)
    keys = [
        *read.each((*place, "api_key_env"), table.api_key_env or (), read.variable),
        *read.each((*place, "api_key_file"), table.api_key_file or (), read.secret_file),
    ]
    ca_files = () if table.ca_file is None else (table.ca_file,)
    return PartialUpstream(
        table.base_url,
        table.credential,
        tuple(dict.fromkeys(keys)),
        table.api,
        tuple((header.encode("ascii"), value.encode("ascii")) for header, value in table.headers.items()),
        next(iter(read.each((*place, "ca_file"), ca_files, read.ca_file)), None),
        table.settings_of(Timeouts),
        table.settings_of(UpstreamLimits),
    )


@attrs.frozen
class _Referred:
    """Reads what the file only names."""

    _environ: Mapping[str, str] = attrs.field(repr=False)
    _directory: Path
    _problems: Problems

    def each(self, place: Where, names: tuple[str, ...], read: Callable[[str], str]) -> list[str]:
        """Read what is named at a place, noting what cannot be read."""
        places = [place] if len(names) == 1 else [(*place, number) for number in range(len(names))]
        found = [self._one(at, name, read) for at, name in zip(places, names, strict=True)]
        return [text for text in found if text is not None]

    def _one(self, place: Where, name: str, read: Callable[[str], str]) -> str | None:
        try:
            return read(name)
        except ValueError as error:
            self._problems.refuse(place, error)
            return None

    def variable(self, name: str) -> str:
        """The key in an environment variable."""
        value = self._environ.get(name, "").strip()
        if not value:
            raise ValueError("names an environment variable that is not set.")
        try:
            return values.parse_word(value)
        except ValueError as error:
            raise ValueError(f"names an environment variable that {error}") from None

    def secret_file(self, name: str) -> str:
        """The key in a file."""
        return values.read_secret_file(str(self._directory / name))

    def ca_file(self, name: str) -> str:
        """The name of a file of certificates."""
        return values.parse_ca_file(str(self._directory / name))
