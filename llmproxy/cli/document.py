"""The configuration file as text, and a change of its clients: text in, text out.

All that a change does not concern stays as it was written, comments included. Every function here raises ``ValueError`` with a
text to go behind the name of the file, and shows no more of the file than the names of its clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.exceptions import ParseError


def clients_of(text: str) -> Mapping[str, Any]:
    """The tables of the clients by their names, as they stand: nothing is checked."""
    return _clients(_parse(text))


def client_toml(name: str, digest: str, rights: Mapping[str, Any]) -> str:
    """Write a client as the configuration file has it."""
    table = tomlkit.table()
    table["token_sha256"] = digest
    table.update(rights)
    document = tomlkit.document()
    document["clients"] = tomlkit.table(is_super_table=True).append(name, table)
    return tomlkit.dumps(document)


def with_client(text: str, name: str, toml: str) -> str:
    """Add a client at the end: TOML allows that whatever stands before, and no comment changes its place.

    :param toml: from :func:`client_toml`.
    """
    if name in clients_of(text):
        raise ValueError(f"has a client {name} already; `llmproxy client rotate` gives it another token.")
    if text and not text.endswith("\n"):
        text += "\n"
    added = f"\n{toml}" if text else toml
    return text + (added.replace("\n", "\r\n") if "\r\n" in text else added)


def with_token(text: str, name: str, digest: str) -> str:
    """Give a client one more token."""
    document = _parse(text)
    table = _client(document, name)
    known = _digests(table)
    if isinstance(table["token_sha256"], list):
        table["token_sha256"].append(digest)
    else:
        table["token_sha256"] = [*known, digest]
    return document.as_string()


def with_newest_token(text: str, name: str) -> str:
    """Take all tokens from a client but the last that it got."""
    document = _parse(text)
    table = _client(document, name)
    table["token_sha256"] = _digests(table)[-1]
    return document.as_string()


def without_client(text: str, name: str) -> str:
    """Take a client out, but not the comments that follow it: they may be about what comes next."""
    document = _parse(text)
    _client(document, name)
    del document["clients"][name]
    # What is gone, in whole lines. Its first is unlike the one that follows it: no table and no key stands twice.
    before, after = text.split("\n"), document.as_string().split("\n")
    same = (old == new for old, new in zip(before, after, strict=False))
    start = next((number for number, is_same in enumerate(same) if not is_same), len(after))
    end = len(before) - (len(after) - start)
    if before[:start] + before[end:] != after:
        return document.as_string()  # it stood in several places
    while end > start and (not before[end - 1].strip() or before[end - 1].lstrip().startswith("#")):
        end -= 1
    return "\n".join(before[:start] + before[end:])


def _parse(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except ParseError as error:
        raise ValueError(f"is not TOML; the error is in or before its line {error.line}.") from None


def _clients(document: tomlkit.TOMLDocument) -> Mapping[str, Any]:
    clients = document.get("clients", {})
    return clients if isinstance(clients, Mapping) else {}


def _client(document: tomlkit.TOMLDocument, name: str) -> Any:
    clients = _clients(document)
    if name not in clients:
        known = f"it has {', '.join(clients)}" if clients else "it has none"
        # Not by the name that was given: it may be a token, from someone who wants to have that revoked.
        raise ValueError(f"has no client of that name; {known}.")
    return clients[name]


def _digests(client: Any) -> list[str]:
    digests = client.get("token_sha256") if isinstance(client, Mapping) else None
    known = digests if isinstance(digests, list) else [digests]
    if not known or not all(isinstance(digest, str) for digest in known):
        raise ValueError("has no token_sha256 for that client to go on from.")
    return [str(digest) for digest in known]
