"""The configuration file: its tables and keys, their types, defaults and meanings. They are described here and nowhere else.

docs/configuration.md is generated from this (:mod:`llmproxy.config.reference`), and what is wrong with a file is told in its
words (:mod:`llmproxy.config.file`). Nothing is opened or looked up here. A key that is absent is told from one that repeats its
default by ``model_fields_set``.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import attrs
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from llmproxy.config import kinds
from llmproxy.config.kinds import Count, Kind, Seconds
from llmproxy.config.model import DEFAULT_MAX_RESENT_BODY, DEFAULT_PORT, Timeouts
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits

_CLIENT = DownstreamLimits()
_UPSTREAM = UpstreamLimits()
_TIMEOUTS = Timeouts()


@attrs.frozen
class Sets:
    """Which field of which value a number sets."""

    kind: type
    field: str


class Table(BaseModel):
    """A table of the file. A key that it does not name is refused, and a value is never converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    def settings_of(self, kind: type) -> dict[str, Any]:
        """The fields of a value that the file sets, by their own names."""
        return {
            sets.field: getattr(self, key)
            for key in self.model_fields_set
            for sets in type(self).model_fields[key].metadata
            if isinstance(sets, Sets) and sets.kind is kind
        }


def _key(meaning: str, default: Any = None, absent: str = "") -> Any:
    """Describe a key.

    :param absent: what the default is, in Markdown, where it is not a value that could be written there.
    """
    return Field(default, description=meaning, json_schema_extra={"absent": absent})


def kind_of(field: FieldInfo) -> Kind | None:
    """What a key may be; ``None`` for a table."""
    # pydantic keeps what is annotated, but not of one of the types of a union.
    annotated = [part for kind in get_args(field.annotation) for part in getattr(kind, "__metadata__", ())]
    return next((part for part in [*field.metadata, *annotated] if isinstance(part, Kind)), None)


class LimitsTable(Table):
    """How much a client may ask of a connection."""

    max_target: Annotated[Count, Sets(DownstreamLimits, "target")] = _key(
        "Bytes of a request target, else 414.", _CLIENT.target
    )
    max_headers: Annotated[Count, Sets(DownstreamLimits, "headers")] = _key(
        "Bytes of a request's headers, else 431.", _CLIENT.headers
    )
    header_timeout: Annotated[Seconds, Sets(DownstreamLimits, "header_time")] = _key(
        "Seconds until a request's headers must be complete, else 408.", _CLIENT.header_time
    )
    body_timeout: Annotated[Seconds, Sets(DownstreamLimits, "body_idle")] = _key(
        "Seconds that a client may be silent within a request's body, else 408.", _CLIENT.body_idle
    )
    keep_alive: Annotated[Seconds, Sets(DownstreamLimits, "keep_alive")] = _key(
        "Seconds that a client's connection may be idle.", _CLIENT.keep_alive
    )
    max_connections: Annotated[Count, Sets(DownstreamLimits, "connections")] = _key(
        "Connections that are open from all clients.", _CLIENT.connections
    )
    max_connections_per_address: Annotated[Count, Sets(DownstreamLimits, "connections_per_address")] = _key(
        "Connections that are open from one IP address.", _CLIENT.connections_per_address
    )


class DefaultsTable(Table):
    """How upstreams are waited for and how many connections they get, for those that say nothing else themselves."""

    connect_timeout: Annotated[Seconds, Sets(UpstreamLimits, "connect")] = _key(
        "Seconds until a connection must be up, TLS included.", _UPSTREAM.connect
    )
    first_byte_timeout: Annotated[Seconds, Sets(Timeouts, "first_byte")] = _key(
        "Seconds until the headers of a response must have come; an upload that goes on prolongs it.",
        _TIMEOUTS.first_byte,
    )
    idle_timeout: Annotated[Seconds, Sets(Timeouts, "idle")] = _key(
        "Seconds that an upstream may be silent within a response.", _TIMEOUTS.idle
    )
    max_connections: Annotated[Count, Sets(UpstreamLimits, "connections")] = _key(
        "Connections that are open to an upstream; further requests wait in order.", _UPSTREAM.connections
    )
    max_idle_connections: Annotated[Count, Sets(UpstreamLimits, "idle_connections")] = _key(
        "Connections that are kept open to an upstream.", _UPSTREAM.idle_connections
    )
    keep_alive: Annotated[Seconds, Sets(UpstreamLimits, "idle")] = _key(
        "Seconds for which those are kept; some upstreams drop theirs after 5.", _UPSTREAM.idle
    )


class UpstreamTable(DefaultsTable):
    """A provider's API. `NAME` is the prefix under which clients find it: `/NAME/v1/...` goes to `base_url` + `/v1/...`.

    It is made of letters, digits, `.`, `_`, `~` and `-`, and is none of `healthz`, `readyz` and `metrics`.
    """

    base_url: kinds.URL | None = _key(
        "Where the API begins: what stands before the path that clients send, so without `/v1`.",
        absent="the preset's, else required",
    )
    credential: kinds.Style | None = _key(
        "How the key is sent: as `Authorization: Bearer`, as the header `x-api-key`, as the header or query parameter `NAME`, "
        "or not at all.",
        absent='the preset\'s, else `"bearer"`',
    )
    api_key_env: kinds.Variables | None = _key(
        "The environment variable that holds the key. Requests spread over several keys, and one that is refused rests.",
        absent="required, here or as `api_key_file`, unless no key is sent",
    )
    api_key_file: kinds.Files | None = _key(
        "The file that holds the key and nothing else; it may be given beside `api_key_env`."
    )
    api: kinds.API | None = _key(
        "Which API it speaks, which tells what usage looks like in its answers.",
        absent='the preset\'s, else `"none"`',
    )
    headers: kinds.Headers = _key(
        "Headers that are added to requests in which the client sent none of that name. No key belongs here.",
        {},
        absent="none",
    )
    ca_file: kinds.Text | None = _key("PEM certificates to trust.", absent="the platform's")


class ClientTable(Table):
    """A person or a tool, with tokens of its own. `NAME` is what logs call it.

    It is made of letters, digits, `.`, `_`, `@`, `+` and `-`, at most 64 of them.
    """

    token_sha256: kinds.Digests | None = _key(
        "The SHA-256 digest of its token in hexadecimal; several while a token is being replaced. `llmproxy client new NAME` "
        "makes a token and prints its digest.",
        absent="required",
    )
    upstreams: kinds.SomeTexts | None = _key("The upstreams that it may ask.", absent="all")
    models: kinds.SomeTexts | None = _key(
        "The models that it may ask for. Patterns: `*` stands for any text, `?` for one character, `[...]` for one of those.",
        absent="all",
    )
    deny_models: kinds.Texts = _key(
        "The models that it may not ask for, whatever `models` says; patterns as there.", (), absent="none"
    )
    expires: kinds.Expiry | None = _key(
        "From when on its tokens are refused. A date means: after that day. Times without an offset, and days, are UTC.",
        absent="never",
    )
    networks: kinds.Networks | None = _key(
        "The addresses and networks that it may ask from.", absent="anywhere"
    )


class File(Table):
    """What concerns the proxy as a whole. These keys stand before the first table."""

    listen: kinds.Listeners = _key(
        'Where to listen: port numbers, for all interfaces, and Twisted endpoints, such as `"tcp:33000:interface=127.0.0.1"`. '
        "The option `--port` comes before it.",
        (DEFAULT_PORT,),
    )
    cors_origins: kinds.Origins = _key(
        'The web pages from which browsers may use this proxy, such as `"https://app.example"`; `"*"` for all.',
        (),
        absent="none",
    )
    max_resent_body: kinds.Size = _key(
        "Bytes of a request's body that are held, so that the request can be sent again with another key of the same upstream.",
        DEFAULT_MAX_RESENT_BODY,
    )
    https_proxy: kinds.ProxyURL | None = _key(
        "The HTTP proxy through which https upstreams are reached (CONNECT).", absent="none"
    )
    no_proxy: kinds.Texts = _key(
        "Hosts and domains that are reached directly all the same.", (), absent="none"
    )
    limits: LimitsTable = LimitsTable()
    defaults: DefaultsTable = DefaultsTable()
    upstreams: dict[kinds.UpstreamName, UpstreamTable] = {}
    clients: dict[kinds.ClientName, ClientTable] = {}
