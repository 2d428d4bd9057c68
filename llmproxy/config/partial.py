"""What one source says of the configuration, and how the sources come together.

There are two: the environment and the file. Where both say something the file stands, key by key; what neither says comes from
the preset of an upstream's name, and from the defaults. So a table of the file can complete what the environment begins, and a
variable that is not used is told. Only here is it known what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from llmproxy import values
from llmproxy.config.credential import Credential, Family, Place
from llmproxy.config.model import Accounting, Client, Config, Logging, Timeouts, Upstream
from llmproxy.config.presets import PRESETS
from llmproxy.config.problems import Problems, Where, dotted, nearest, shown
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits
from llmproxy.values import BaseURL

_BEARER = Credential.parse("bearer")
_Fields = Mapping[str, Any]  # some fields of a value, by their names


@attrs.frozen
class PartialUpstream:
    """What a source says of an upstream: ``None``, or nothing, where it is silent.

    :ivar enough: there is such an upstream even if no other source speaks of it.
    """

    base_url: BaseURL | None = None
    credential: Credential | None = None
    keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    family: Family | None = None
    default_headers: tuple[tuple[bytes, bytes], ...] = ()
    ca_file: str | None = None
    timeouts: _Fields = attrs.Factory(dict)
    limits: _Fields = attrs.Factory(dict)
    enough: bool = True


@attrs.frozen
class Partial:
    """What a source says of everything: nothing where it is silent.

    :ivar clients: by their names; without digests where only their rights are said.
    :ivar timeouts: fields of :class:`~llmproxy.config.model.Timeouts`; the next four likewise.
    :ivar others: fields of :class:`~llmproxy.config.model.Config` that are none of those above.
    :ivar places: the keys that a file sets.
    :ivar noticed: see :class:`~llmproxy.config.model.Config`.
    :ivar variables: in an environment, those that stand for keys of the file, and which; in a file, those that it names.
    """

    upstreams: Mapping[str, PartialUpstream] = attrs.Factory(dict)
    clients: Mapping[str, Client] = attrs.Factory(dict)
    timeouts: _Fields = attrs.Factory(dict)
    limits: _Fields = attrs.Factory(dict)
    downstream: _Fields = attrs.Factory(dict)
    accounting: _Fields = attrs.field(factory=dict, repr=False)
    logging: _Fields = attrs.Factory(dict)
    others: _Fields = attrs.field(factory=dict, repr=False)
    places: frozenset[Where] = frozenset()
    noticed: tuple[str, ...] = ()
    variables: Mapping[str, tuple[Where, ...]] = attrs.Factory(dict)


def together(file: Partial, environment: Partial, problems: Problems) -> Config:
    """Put together what the sources say; the result is of use only where no problem is found.

    :param problems: those of reading; what is missing or at odds is added.
    """
    timeouts = Timeouts(**{**environment.timeouts, **file.timeouts})
    limits = UpstreamLimits(**{**environment.limits, **file.limits})
    upstreams: list[Upstream] = []
    begun = [name for name, said in environment.upstreams.items() if said.enough]
    names = list(dict.fromkeys([*file.upstreams, *begun]))
    for name in names:
        said = file.upstreams.get(name, PartialUpstream())
        upstream = _upstream(name, said, environment.upstreams.get(name, PartialUpstream()), problems)
        if upstream is not None:
            own = attrs.evolve(timeouts, **said.timeouts), attrs.evolve(limits, **said.limits)
            upstreams.append(attrs.evolve(upstream, timeouts=own[0], limits=own[1]))
    clients = [
        attrs.evolve(said, digests=said.digests or environment.clients[name].digests)
        if name in environment.clients
        else said
        for name, said in {**environment.clients, **file.clients}.items()
    ]
    _check_tokens(clients, problems)
    _check_rights(clients, names, problems)
    accounting = Accounting(**{**environment.accounting, **file.accounting})
    _check_session_headers(accounting.session_headers, upstreams, problems)
    if not (names or problems.at("upstreams")):
        problems.say(
            "There is no upstream. Add a table such as [upstreams.openai] with api_key_env to the file, or set OPENAI_API_KEY."
        )
    if not (clients or problems.at("clients")):
        problems.say(
            "There is no client. Add what `llmproxy client new NAME` prints to the file, or set PROXY_TOKEN."
        )
    return Config(
        tuple(upstreams),
        tuple(clients),
        downstream=DownstreamLimits(**{**environment.downstream, **file.downstream}),
        accounting=accounting,
        logging=Logging(**{**environment.logging, **file.logging}),
        noticed=(*environment.noticed, *_unused(file, environment)),
        **{**environment.others, **file.others},
    )


def _upstream(
    name: str, file: PartialUpstream, environment: PartialUpstream, problems: Problems
) -> Upstream | None:
    place = ("upstreams", name)
    preset = PRESETS.get(name)
    base_url = file.base_url or environment.base_url
    if base_url is None and preset is not None and preset.base_url is not None:
        base_url = values.parse_base_url(preset.base_url)
    credential = file.credential or environment.credential or (preset.credential if preset else _BEARER)
    keys = file.keys or environment.keys
    if base_url is None and not problems.at(*place, "base_url"):
        why = f"the preset {name} has none." if preset else f"{name} is no preset{nearest(name, PRESETS)}"
        problems.add((*place, "base_url"), f"missing, and {why}")
    if credential.place is Place.NONE:
        if file.keys:
            problems.add(
                (*place, "credential"),
                'no key is sent with "none"; say how it is sent, for example "bearer".',
            )
        keys = ()
    elif not (keys or problems.at(*place, "api_key_env") or problems.at(*place, "api_key_file")):
        problems.add(
            (*place, "api_key_env"),
            "missing; name the environment variable that holds the key, or in api_key_file the file that does.",
        )
    if base_url is None:
        return None
    headers = {header.lower(): (header, value) for header, value in environment.default_headers}
    headers.update({header.lower(): (header, value) for header, value in file.default_headers})
    return Upstream(
        name,
        base_url,
        credential,
        keys,
        file.family or environment.family or (preset.family if preset else Family.NONE),
        tuple(headers.values()),
        file.ca_file or environment.ca_file,
    )


def _check_tokens(clients: Iterable[Client], problems: Problems) -> None:
    """Each client has a token, and no two have the same."""
    owners: dict[bytes, str] = {}
    for client in clients:
        place = ("clients", client.name, "token_sha256")
        if not (client.digests or problems.at(*place)):
            problems.add(place, "missing; `llmproxy client new` makes a token and prints what goes here.")
        for digest in client.digests:
            owner = owners.setdefault(digest, client.name)
            if owner != client.name:
                problems.add(place, f"the same token as that of clients.{owner}; each needs its own.")


def _check_rights(clients: Iterable[Client], upstreams: Sequence[str], problems: Problems) -> None:
    """A client is given only upstreams that there are."""
    for client in clients:
        for name in sorted(client.upstreams or ()):
            if name not in upstreams and not problems.at("upstreams", name):
                problems.add(
                    ("clients", client.name, "upstreams"),
                    f"found {shown(name)}, but there is no such upstream{nearest(name, upstreams)}",
                )


def _check_session_headers(
    headers: Sequence[bytes], upstreams: Iterable[Upstream], problems: Problems
) -> None:
    """No header is recorded in which a client of an upstream sends its token."""
    for upstream in upstreams:
        credential = upstream.credential
        for number, header in enumerate(headers):
            if credential.place is Place.HEADER and credential.name.lower().encode("ascii") == header:
                problems.add(
                    ("session_headers", number),
                    f"the header that holds the key for upstreams.{upstream.name} must not be recorded.",
                )


def _unused(file: Partial, environment: Partial) -> list[str]:
    """Tell of the variables that do nothing, since the file says something else in their place."""
    return [
        f"{variable} is not used: {dotted(place)} in the configuration file stands in its place."
        for variable, places in environment.variables.items()
        if variable not in file.variables
        for place in places
        if place in file.places
    ]
