"""The kinds of values that the configuration file holds: how each is read, and the words that say what it may be.

They are made of pydantic's parts. A value of another type or beyond its bounds is told by the words of its :class:`Kind`; one
that is wrong in its own way raises ValueError with a text that goes behind the key. Which key is of which kind is said in
:mod:`llmproxy.config.schema`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timezone
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any
from urllib.parse import SplitResult

import attrs
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from llmproxy import values
from llmproxy.config import header_names, watching
from llmproxy.config.credential import Credential, Family
from llmproxy.values import BaseURL

# Paths of this proxy's own, which no upstream can have.
RESERVED_NAMES = frozenset({"healthz", "readyz", "metrics"})

# RFC 3986 section 2.3: what is never percent-encoded.
_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]*")
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
# RFC 6454 section 6.2. Browsers write it in lower case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~:\[\]-]+|\*")
# RFC 9110 section 5.5, without what is obsolete.
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")
_MODELS = re.compile(r"\S(.*\S)?", re.DOTALL)
_TIER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DAY = 86400  # seconds
_LARGEST = 2**31
_LARGEST_PRICE = 10_000  # USD per million tokens, far above what anybody asks
_SMALLEST_STEP = Decimal("1e-9")


@attrs.frozen
class Kind:
    """What a key may be, in words that go behind "it must be".

    :ivar item: the same for an item of it, where it is a list.
    """

    text: str
    item: str = ""


def _wrong_kind() -> PydanticCustomError:
    return PydanticCustomError("wrong_kind", "not of this kind")


def _text(parse: Callable[[str], Any]) -> PlainValidator:
    """Read a value from text with a function that raises ValueError."""

    def validate(value: Any) -> Any:
        if not isinstance(value, str):
            raise _wrong_kind()
        return parse(value)

    return PlainValidator(validate)


def _matching(pattern: re.Pattern[str], text: str) -> AfterValidator:
    """Let through what matches a pattern; ``text`` goes behind the key where it does not."""

    def validate(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(text)
        return value

    return AfterValidator(validate)


def _list(value: Any) -> Any:
    if not isinstance(value, list):
        raise _wrong_kind()
    return tuple(value)


def _one_or_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _list(value)


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"cannot be the name of an upstream: /{name} is a path of this proxy's own.")
    return name


def _port(parse: Callable[[str], str]) -> PlainValidator:
    """Read where to listen from a number or from text."""

    def validate(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise _wrong_kind()
        return parse(str(value))

    return PlainValidator(validate)


def _float(value: Any) -> Any:
    """What the file's numbers with a point are turned into, but for prices."""
    return float(value) if isinstance(value, Decimal) else value


def _price(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise _wrong_kind()
    price = Decimal(value)
    if price.is_signed() or price > _LARGEST_PRICE or price != price.quantize(_SMALLEST_STEP):
        raise _wrong_kind()
    return price


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as problem:
        if "host bits" in str(problem):
            raise ValueError(
                "has bits set behind its prefix; the network of 10.1.2.3/8 is 10.0.0.0/8."
            ) from None
        raise _wrong_kind() from None


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text.lower()):
        raise _wrong_kind()
    return text.lower()


def _family(text: str) -> Family:
    try:
        return Family(text)
    except ValueError:
        raise _wrong_kind() from None


def _expiry(value: Any) -> datetime:
    if isinstance(value, datetime):
        try:
            return (
                value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
            )
        except OverflowError:
            raise _wrong_kind() from None
    if isinstance(value, date):
        return datetime.combine(value, time.max, timezone.utc)
    raise _wrong_kind()


Seconds = Annotated[
    float,
    BeforeValidator(_float),
    Field(gt=0, le=_DAY),
    Kind(f"a number of seconds, more than 0 and at most {_DAY}"),
]
Count = Annotated[int, Field(ge=1, le=_LARGEST), Kind(f"a whole number from 1 to {_LARGEST}")]
Size = Annotated[int, Field(ge=0, le=_LARGEST), Kind(f"a whole number of bytes from 0 to {_LARGEST}")]
Days = Annotated[
    int, Field(ge=1, le=watching.MAX_DAYS), Kind(f"a whole number of days from 1 to {watching.MAX_DAYS}")
]
Flag = Annotated[bool, Kind("true or false")]
Price = Annotated[
    Decimal,
    PlainValidator(_price),
    Kind(f"a number from 0 to {_LARGEST_PRICE} with at most 9 decimals"),
]
Text = Annotated[str, Field(min_length=1), Kind("a string")]
URL = Annotated[BaseURL, _text(values.parse_base_url), Kind("a URL")]
ProxyURL = Annotated[SplitResult, _text(values.parse_proxy), Kind("the URL of an HTTP proxy")]
LedgerURL = Annotated[str, _text(watching.parse_ledger), Kind('a URL, or "none"')]
LogFormat = Annotated[watching.LogFormat, Kind('"text" or "json"')]
LogLevel = Annotated[watching.LogLevel, Kind('"debug", "info", "warn" or "error"')]
AdminPort = Annotated[
    str, _port(watching.parse_admin_port), Kind("a port or the description of a Twisted endpoint")
]
Style = Annotated[
    Credential,
    _text(Credential.parse),
    Kind('"bearer", "x-api-key", "header:NAME", "query:NAME" or "none"'),
]
API = Annotated[
    Family,
    _text(_family),
    Kind(", ".join(f'"{family.value}"' for family in Family).replace(', "none"', ' or "none"')),
]
Expiry = Annotated[datetime, PlainValidator(_expiry), Kind("a date or a date with a time, without quotes")]
HeaderName = Annotated[str, AfterValidator(header_names.parse_added)]
HeaderValue = Annotated[
    str, _matching(_HEADER_VALUE, "is empty, or holds a character that cannot stand in a header.")
]
Headers = Annotated[dict[HeaderName, HeaderValue], Kind("a table of strings", "a string")]
UpstreamName = Annotated[
    str,
    _matching(
        _UPSTREAM_NAME,
        "cannot be the name of an upstream, which stands in URLs: only letters, digits, '.', '_', '~' and '-', the first a "
        "letter or digit.",
    ),
    AfterValidator(_not_reserved),
]
ClientName = Annotated[
    str,
    _matching(
        _CLIENT_NAME,
        "cannot be the name of a client: only letters, digits, '.', '_', '@', '+' and '-', the first a letter or digit, and at "
        "most 64.",
    ),
]
Models = Annotated[
    str,
    _matching(_MODELS, "cannot be a pattern of models: it is empty, or has a space at its beginning or end."),
]
TierName = Annotated[
    str,
    _matching(
        _TIER,
        "cannot be the name of a service tier: only letters, digits, '.', '_' and '-', and at most 64.",
    ),
]

Texts = Annotated[
    tuple[Text, ...], BeforeValidator(_list), Kind("a list of strings", "a string that is not empty")
]
SomeTexts = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_list),
    Kind("a list of at least one string", "a string that is not empty"),
]
Files = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_list),
    Kind("a string or a list of strings", "a string that is not empty"),
]
Variables = Annotated[
    tuple[
        Annotated[
            str,
            _matching(
                _VARIABLE,
                "is not the name of an environment variable. The key itself must not stand in this file.",
            ),
        ],
        ...,
    ],
    Field(min_length=1),
    BeforeValidator(_one_or_list),
    Kind("a string or a list of strings", "a string"),
]
Digests = Annotated[
    tuple[
        Annotated[
            str,
            _matching(
                _DIGEST,
                "is not a SHA-256 digest in 64 hexadecimal digits. The token itself must not stand in this file; "
                "`llmproxy client new` prints what goes here.",
            ),
        ],
        ...,
    ],
    Field(min_length=1),
    BeforeValidator(_one_or_list),
    Kind("a string or a list of strings", "a string"),
]
Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, _text(_network)], ...],
    Field(min_length=1),
    BeforeValidator(_list),
    Kind("a list of at least one network or address", 'a network such as "10.0.0.0/8", or an address'),
]
RecordedHeaders = Annotated[
    tuple[Annotated[bytes, _text(header_names.parse_recorded)], ...],
    BeforeValidator(_list),
    Kind("a list of names of headers", "the name of a header"),
]
Origins = Annotated[
    tuple[Annotated[str, _text(_origin)], ...],
    BeforeValidator(_list),
    Kind("a list of origins", 'an origin such as "https://app.example", without a path, or "*"'),
]
Listeners = Annotated[
    tuple[Annotated[str, _port(values.parse_listener)], ...],
    Field(min_length=1),
    BeforeValidator(_list),
    Kind("a list of at least one port or endpoint", "a port or the description of a Twisted endpoint"),
]
