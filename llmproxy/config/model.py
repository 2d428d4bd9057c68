"""What the operator set, as frozen values: upstreams, who may use them, what is recorded of it, every bound and timeout.

They are made by the readers of this package, and change nothing by themselves. No ``repr`` shows a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import SplitResult
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import attrs

from llmproxy import values
from llmproxy.config.credential import Credential, Family
from llmproxy.config.watching import NO_LEDGER, LogFormat, LogLevel, without_password
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits
from llmproxy.values import BaseURL

DEFAULT_PORT = 33000
DEFAULT_DRAIN = 30.0  # seconds that requests in flight have to end when the service stops
DEFAULT_MAX_RESENT_BODY = 1024 * 1024  # bytes
DEFAULT_LEDGER_BACKLOG = 10_000  # records

# What APIs call the service that their list prices are for. OpenAI: "default"; Anthropic: "standard"; Groq: "on_demand".
# Gemini: "standard", or on Vertex "ON_DEMAND".
_STANDARD_TIERS = frozenset({"", "auto", "default", "on_demand", "standard", "unspecified"})


class ConfigError(ValueError):
    """A configuration that cannot be used.

    :ivar problems: one sentence for each setting that is missing or malformed; the text of the error holds them all.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "The configuration cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


@attrs.frozen
class Timeouts:
    """How long a silent upstream is waited for once a connection is up, in seconds.

    :ivar first_byte: from sending a request until the response's headers.
    :ivar idle: between two chunks of a response's body.
    """

    first_byte: float = 600.0
    idle: float = 600.0


@attrs.frozen
class Upstream:
    """A provider's API, and how this proxy answers for its clients there.

    :ivar name: the prefix under which clients find it, without slashes.
    :ivar credential: where in a request it wants its key.
    :ivar keys: those that it may be given, each one word of ASCII; none for an upstream that wants none.
    :ivar family: what the usage in its answers looks like.
    :ivar default_headers: names and values that are added where a client sent none of that name.
    :ivar ca_file: certificates to trust in the place of the platform's.
    """

    name: str
    base_url: BaseURL
    credential: Credential
    keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    family: Family = Family.NONE
    default_headers: tuple[tuple[bytes, bytes], ...] = ()
    ca_file: str | None = None
    timeouts: Timeouts = attrs.Factory(Timeouts)
    limits: UpstreamLimits = attrs.Factory(UpstreamLimits)


@attrs.frozen
class Client:
    """A holder of local tokens, and what they open.

    :ivar digests: of the tokens, as :func:`token_digest` makes them; several while one is replaced by another.
    :ivar upstreams: the names of those that may be asked; ``None`` for all.
    :ivar models: patterns of the models that may be asked for, as :mod:`fnmatch` reads them; ``None`` for all.
    :ivar deny_models: patterns of the models that may not, whatever ``models`` says.
    :ivar expires: from when on the tokens are refused, with a time zone; ``None`` for never.
    :ivar networks: where requests may come from; none for anywhere.
    """

    name: str
    digests: tuple[bytes, ...] = attrs.field(repr=False)
    upstreams: frozenset[str] | None = None
    models: tuple[str, ...] | None = None
    deny_models: tuple[str, ...] = ()
    expires: datetime | None = None
    networks: tuple[IPv4Network | IPv6Network, ...] = ()


def token_digest(token: bytes) -> bytes:
    """What is kept of a token: 32 bytes, from which nobody finds it again.

    A plain hash is enough for a token, which is random and long: there is no dictionary of those, as there is of passwords.
    """
    return sha256(token).digest()


def service_tier(name: str | None) -> str | None:
    """A service tier by its name in an answer, in lower case; ``None`` for the one that list prices are for."""
    tier = (name or "").lower()
    return None if tier in _STANDARD_TIERS else tier


@attrs.frozen
class PriceOverride:
    """What the operator says of the prices of some models, in USD per million tokens; ``None`` where nothing is said.

    :ivar model: a pattern, as :mod:`fnmatch` reads it, of the model's name as it was asked for or as it was answered.
    :ivar service_tier: the tier that the prices are for, as :func:`service_tier` names it.
    :ivar cache_write_5m: of what is written to a cache, for 5 minutes where an API has several kinds.
    """

    model: str
    service_tier: str | None = attrs.field(default=None, converter=service_tier)
    input: Decimal | None = None
    output: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write_5m: Decimal | None = None
    cache_write_1h: Decimal | None = None
    input_audio: Decimal | None = None
    output_audio: Decimal | None = None
    cache_read_audio: Decimal | None = None
    input_image: Decimal | None = None
    output_image: Decimal | None = None
    cache_read_image: Decimal | None = None


@attrs.frozen
class Accounting:
    """What is recorded of each exchange, and where.

    :ivar ledger: the URL of the database, an SQLite file's with an absolute path; ``none`` for no ledger, which a configuration
        has that is not read from anywhere.
    :ivar retention_days: how long records are kept; ``None`` for ever.
    :ivar backlog: how many records may wait in memory while the database cannot be written.
    :ivar request_id: whether clients are told the id of the record, as ``x-llmproxy-request-id``.
    :ivar session_headers: names in lower case of headers whose values are recorded, beside those that are known anyway.
    :ivar prices: the first that speaks of a model, at a service tier, stands.
    """

    ledger: str = attrs.field(default=NO_LEDGER, repr=without_password)
    retention_days: int | None = None
    backlog: int = DEFAULT_LEDGER_BACKLOG
    request_id: bool = True
    session_headers: tuple[bytes, ...] = ()
    prices: tuple[PriceOverride, ...] = ()


@attrs.frozen
class Logging:
    """What the log looks like, and the least level that gets into it."""

    format: LogFormat = "text"
    level: LogLevel = "info"


@attrs.frozen
class Config:
    """Everything that the operator can set.

    :ivar listen: Twisted endpoint descriptions.
    :ivar cors_origins: the web pages that may use this proxy, as browsers name them; ``*`` for all.
    :ivar max_resent_body: bytes of a request's body that are held so that it can be sent again with another key.
    :ivar admin: the description of the endpoint on which metrics are served; ``None`` for nowhere.
    :ivar noticed: what is probably not what was meant, and could be seen only while reading.
    """

    upstreams: tuple[Upstream, ...]
    clients: tuple[Client, ...]
    listen: tuple[str, ...] = (f"tcp:{DEFAULT_PORT}",)
    downstream: DownstreamLimits = attrs.Factory(DownstreamLimits)
    https_proxy: SplitResult | None = attrs.field(default=None, repr=False)
    no_proxy: str = ""
    cors_origins: tuple[str, ...] = ()
    max_resent_body: int = DEFAULT_MAX_RESENT_BODY
    accounting: Accounting = attrs.Factory(Accounting)
    logging: Logging = attrs.Factory(Logging)
    admin: str | None = None
    noticed: tuple[str, ...] = ()

    def proxy_for(self, host: str) -> SplitResult | None:
        """The HTTP proxy through which an upstream's host is reached, or ``None`` where it is reached directly."""
        bypassed = proxy_bypass_environment(host, {"no": self.no_proxy})
        return None if bypassed else self.https_proxy

    def base_urls(self) -> Mapping[str, str]:
        """The base URLs of the upstreams, by their names."""
        return {upstream.name: str(upstream.base_url) for upstream in self.upstreams}

    def warnings(self) -> list[str]:
        """Name what works but is probably not what was meant."""
        found = list(self.noticed)
        for upstream in self.upstreams:
            url = upstream.base_url
            if url.path.endswith("/v1"):
                found.append(
                    f"The base URL of {upstream.name} ends in /v1, and so does what SDKs are pointed at: "
                    f"/{upstream.name}/v1/models would become {url.path}/v1/models."
                )
            if upstream.keys and url.scheme == "http" and not values.is_loopback(url.host):
                found.append(
                    f"The key for {upstream.name} goes to {url.host} unencrypted: its base URL is not https."
                )
        return found
