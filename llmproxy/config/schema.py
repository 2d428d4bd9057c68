"""The configuration file: its tables and keys, their types, defaults and meanings. They are described here and nowhere else.

docs/configuration.md is generated from this (:mod:`llmproxy.config.reference`), and what is wrong with a file is told in its
words (:mod:`llmproxy.config.file`). Nothing is opened or looked up here. A key that is absent is told from one that repeats its
default by ``model_fields_set``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import attrs
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from llmproxy.config import kinds
from llmproxy.config.kinds import Count, Kind, Seconds
from llmproxy.config.model import DEFAULT_MAX_RESENT_BODY, DEFAULT_PORT, Accounting, Logging, Timeouts
from llmproxy.config.problems import Where
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits

_CLIENT = DownstreamLimits()
_UPSTREAM = UpstreamLimits()
_TIMEOUTS = Timeouts()
_ACCOUNTING = Accounting()
_LOGGING = Logging()


@attrs.frozen
class Sets:
    """Which field of which value a key sets."""

    kind: type
    field: str


class Table(BaseModel):
    """A table of the file. A key that it does not name is refused, and a value is never converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    @classmethod
    def assignments(cls) -> Iterator[tuple[str, Sets]]:
        """The keys that set a field of a value, each with which."""
        for key, field in cls.model_fields.items():
            for sets in field.metadata:
                if isinstance(sets, Sets):
                    yield key, sets

    def settings_of(self, kind: type) -> dict[str, Any]:
        """The fields of a value that the file sets, by their own names."""
        return {
            sets.field: getattr(self, key)
            for key, sets in self.assignments()
            if key in self.model_fields_set and sets.kind is kind
        }


def _key(meaning: str, default: Any = None, absent: str = "") -> Any:
    """Describe a key.

    :param absent: what the default is, in Markdown, where it is not a value that could be written there.
    """
    return Field(default, description=meaning, json_schema_extra={"absent": absent})


_LISTED = "that of the public list"


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
        "Seconds until a request's headers must be complete, else 408; and until a TLS handshake must be.",
        _CLIENT.header_time,
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

    It is made of letters, digits, `.`, `_`, `~` and `-`, begins with a letter or digit, and is none of `healthz`, `readyz` and
    `metrics`.
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
        "The file that holds the key and nothing else; it may be given beside `api_key_env`.", absent="none"
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

    It is made of letters, digits, `.`, `_`, `@`, `+` and `-`, at most 64 of them, and begins with a letter or digit.
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


class RatesTable(Table):
    """Prices in USD per million tokens."""

    input: kinds.Price | None = _key(
        "Of input that is neither read from nor written to a cache.", absent=_LISTED
    )
    output: kinds.Price | None = _key("Of output, reasoning included.", absent=_LISTED)
    cache_read: kinds.Price | None = _key("Of input that is read from a cache.", absent=_LISTED)
    cache_write_5m: kinds.Price | None = _key(
        "Of input that is written to a cache, for 5 minutes where an API has several kinds.", absent=_LISTED
    )
    cache_write_1h: kinds.Price | None = _key("Of input that is written to one for an hour.", absent=_LISTED)
    input_audio: kinds.Price | None = _key("Of input that is sound.", absent=_LISTED)
    output_audio: kinds.Price | None = _key("Of output that is sound.", absent=_LISTED)
    cache_read_audio: kinds.Price | None = _key("Of sound that is read from a cache.", absent=_LISTED)
    input_image: kinds.Price | None = _key("Of input that is images.", absent=f"{_LISTED}, else `input`")
    output_image: kinds.Price | None = _key("Of output that is images.", absent=_LISTED)
    cache_read_image: kinds.Price | None = _key("Of images that are read from a cache.", absent=_LISTED)


class PriceTable(RatesTable):
    """What models cost, in USD per million tokens, where that is in no public list or is not what you pay.

    `GLOB` is a pattern, as in a client's `models`, of the model's name as it was asked for or as it was answered. Of those that
    have a price for the service tier of an answer, the first that fits stands, in the order of the file.
    """

    tiers: Annotated[dict[kinds.TierName, RatesTable], kinds.Kind("a table of tables")] = _key(
        'The same keys for another service tier, by its name in answers: `[prices."GLOB".tiers.flex]`. `default`, `standard`, '
        "`on_demand` and `auto` mean the one of the keys above.",
        {},
        absent="those of the public list",
    )


class File(Table):
    """What concerns the proxy as a whole. These keys stand before the first table."""

    listen: kinds.Listeners = _key(
        'Where to listen: port numbers, for all interfaces, and Twisted endpoints, such as `"tcp:33000:interface=127.0.0.1"`. '
        "Names of files in an endpoint are absolute, or relative to the directory in which the proxy is started. The option "
        "`--port` comes before it.",
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
    ledger: Annotated[kinds.LedgerURL | None, Sets(Accounting, "ledger")] = _key(
        "Where a record of each exchange is kept: `sqlite:///PATH`, or `sqlite:PATH` for a path that is relative as those of "
        "other files; `postgresql://USER@HOST/NAME`, which several proxies may share; or `none`.",
        absent="`ledger.sqlite3` in the state directory",
    )
    ledger_retention: Annotated[kinds.Days | None, Sets(Accounting, "retention_days")] = _key(
        "Days for which records are kept.", absent="for ever"
    )
    ledger_backlog: Annotated[Count, Sets(Accounting, "backlog")] = _key(
        "Records that wait in memory, 1 to 2 kB each, while the ledger cannot be written; beyond that the oldest are dropped.",
        _ACCOUNTING.backlog,
    )
    request_id: Annotated[kinds.Flag, Sets(Accounting, "request_id")] = _key(
        "Whether clients are told the id of the record, as `x-llmproxy-request-id`.", _ACCOUNTING.request_id
    )
    session_headers: Annotated[kinds.RecordedHeaders, Sets(Accounting, "session_headers")] = _key(
        "Headers of requests whose values are recorded, to tell sessions and agents apart. Those of Claude Code are, anyway. "
        "The session of a request is the first that it has of `x-claude-code-session-id` and these, in their order, without "
        "those that have `agent` in their names and not `session`.",
        (),
        absent="none",
    )
    log_format: Annotated[kinds.LogFormat, Sets(Logging, "format")] = _key(
        "What a line of the log looks like. The option `--log-format` comes before it.", _LOGGING.format
    )
    log_level: Annotated[kinds.LogLevel, Sets(Logging, "level")] = _key(
        "The least level of what is logged. The option `--log-level` comes before it.", _LOGGING.level
    )
    admin_port: kinds.AdminPort | None = _key(
        "Where `/metrics` is served, without which nothing is counted: a port, on loopback alone, or a Twisted endpoint. The "
        "option `--admin-port` comes before it.",
        absent="nowhere",
    )
    limits: LimitsTable = LimitsTable()
    defaults: DefaultsTable = DefaultsTable()
    upstreams: dict[kinds.UpstreamName, UpstreamTable] = {}
    clients: dict[kinds.ClientName, ClientTable] = {}
    prices: dict[kinds.Models, PriceTable] = {}


def described(place: Where) -> tuple[type[Table], Where]:
    """The table that a place of the file is in, and where in it."""
    table: type[Table] = File
    while place and place[0] in table.model_fields:
        field = table.model_fields[place[0]].annotation
        named = get_origin(field) is dict
        inner = get_args(field)[-1] if named else field
        if not (isinstance(inner, type) and issubclass(inner, Table)) or len(place) <= named:
            break
        table, place = inner, place[1 + named :]
    return table, place
