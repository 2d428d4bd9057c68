"""The configuration from the environment: the one place that knows the names of environment variables.

All of it is read before anything is complained about, so that one message names everything that is missing or malformed. No
message shows a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llmproxy import values
from llmproxy.config import watching
from llmproxy.config.model import DEFAULT_PORT, Client, ConfigError, token_digest
from llmproxy.config.partial import Partial, PartialUpstream
from llmproxy.config.problems import Problems, Where

_T = TypeVar("_T")
_Parse = Callable[[str], Any]

# The variables that set the fields of each value, and how their text is read. But for its prefix, each has the name of the key
# of the file for which it stands.
_TIMEOUTS = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT": ("first_byte", values.parse_seconds),
    "UPSTREAM_IDLE_TIMEOUT": ("idle", values.parse_seconds),
}
_UPSTREAM = {
    "UPSTREAM_CONNECT_TIMEOUT": ("connect", values.parse_seconds),
    "UPSTREAM_MAX_CONNECTIONS": ("connections", values.parse_count),
    "UPSTREAM_MAX_IDLE_CONNECTIONS": ("idle_connections", values.parse_count),
    "UPSTREAM_KEEP_ALIVE": ("idle", values.parse_seconds),
}
_DOWNSTREAM = {
    "CLIENT_MAX_TARGET": ("target", values.parse_count),
    "CLIENT_MAX_HEADERS": ("headers", values.parse_count),
    "CLIENT_HEADER_TIMEOUT": ("header_time", values.parse_seconds),
    "CLIENT_BODY_TIMEOUT": ("body_idle", values.parse_seconds),
    "CLIENT_KEEP_ALIVE": ("keep_alive", values.parse_seconds),
    "CLIENT_MAX_CONNECTIONS": ("connections", values.parse_count),
    "CLIENT_MAX_CONNECTIONS_PER_ADDRESS": ("connections_per_address", values.parse_count),
}
# The tables of the file for which they stand.
_TABLES = {"UPSTREAM": "defaults", "CLIENT": "limits"}

_SHORT_TOKEN = 16  # characters
_SHORT = f"The token of client 'default' has fewer than {_SHORT_TOKEN} characters; it can be guessed."


def read(environ: Mapping[str, str], problems: Problems, alone: bool) -> Partial:
    """Read what the environment says.

    :param environ: names and values. A secret ``NAME`` may come from the file that ``NAME_FILE`` names.
    :param problems: what is malformed is added; and what is missing, where the environment is alone.
    :param alone: there is no configuration file, so that the five settings without which nothing works are required.
    """
    read = _Reader(environ, problems)
    openai = ("upstreams", "openai")
    anthropic = ("upstreams", "anthropic")
    openai_url = read.setting("OPENAI_BASE_URL", values.parse_base_url, (*openai, "base_url"), alone)
    openai_key = read.secret("OPENAI_API_KEY", [(*openai, "api_key_env"), (*openai, "api_key_file")], alone)
    anthropic_url = read.setting("ANTHROPIC_BASE_URL", values.parse_base_url, (*anthropic, "base_url"), alone)
    anthropic_key = read.secret(
        "ANTHROPIC_API_KEY", [(*anthropic, "api_key_env"), (*anthropic, "api_key_file")], alone
    )
    token = read.secret("PROXY_TOKEN", [("clients", "default", "token_sha256")], alone)
    version = read.setting(
        "ANTHROPIC_VERSION", values.parse_word, (*anthropic, "headers", "anthropic-version")
    )
    port = read.setting("PORT", values.parse_port, ("listen",))
    openai_ca = read.setting("OPENAI_CA_FILE", values.parse_ca_file, (*openai, "ca_file"))
    anthropic_ca = read.setting("ANTHROPIC_CA_FILE", values.parse_ca_file, (*anthropic, "ca_file"))
    others = {
        "listen": None if port is None else (f"tcp:{port}",),
        "https_proxy": read.customary("https_proxy", values.parse_proxy),
        "no_proxy": read.customary("no_proxy", str),
        "admin": read.setting("ADMIN_PORT", watching.parse_admin_port, ("admin_port",)),
    }
    accounting = {
        "ledger": read.ledger(),
        "retention_days": read.setting(
            "LLMPROXY_LEDGER_RETENTION", watching.parse_days, ("ledger_retention",)
        ),
        "request_id": read.setting("LLMPROXY_REQUEST_ID", watching.parse_switch, ("request_id",)),
    }
    logging = {
        "format": read.setting("LOG_FORMAT", watching.parse_log_format, ("log_format",)),
        "level": read.setting("LOG_LEVEL", watching.parse_log_level, ("log_level",)),
    }
    timeouts = read.group(_TIMEOUTS)
    downstream = read.group(_DOWNSTREAM)
    limits = read.group(_UPSTREAM)
    headers = () if version is None else ((b"anthropic-version", version.encode("ascii")),)
    upstreams = {
        "openai": PartialUpstream(
            openai_url,
            keys=_some(openai_key),
            ca_file=openai_ca,
            enough=read.has("OPENAI_BASE_URL", "OPENAI_API_KEY"),
        ),
        "anthropic": PartialUpstream(
            anthropic_url,
            keys=_some(anthropic_key),
            default_headers=headers,
            ca_file=anthropic_ca,
            enough=read.has("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
        ),
    }
    digests = tuple(token_digest(text.encode("ascii")) for text in _some(token))
    return Partial(
        upstreams=upstreams,
        clients={"default": Client("default", digests)} if read.has("PROXY_TOKEN") else {},
        timeouts=timeouts,
        limits=limits,
        downstream=downstream,
        accounting=_said(accounting),
        logging=_said(logging),
        others=_said(others),
        noticed=(_SHORT,) if token is not None and len(token) < _SHORT_TOKEN else (),
        variables=read.places,
    )


def load_port(environ: Mapping[str, str]) -> int:
    """Read only where to listen, for a proxy that needs no other setting.

    :raise ConfigError: where ``PORT`` is malformed.
    """
    problems = Problems()
    port = _Reader(environ, problems).setting("PORT", values.parse_port, ("listen",))
    if problems.sentences:
        raise ConfigError(problems.sentences)
    return DEFAULT_PORT if port is None else port


def read_ledger(environ: Mapping[str, str], problems: Problems) -> str:
    """Read only where the ledger is."""
    return _Reader(environ, problems).ledger()


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in fields.items() if value is not None}


def _some(text: str | None) -> tuple[str, ...]:
    return () if text is None else (text,)


class _Reader:
    """Reads settings one by one, and gathers what is wrong with them.

    :ivar places: for each variable that is set, the keys of the file for which it stands.
    """

    def __init__(self, environ: Mapping[str, str], problems: Problems) -> None:
        self._environ = environ
        self._problems = problems
        self.places: dict[str, tuple[Where, ...]] = {}

    def has(self, *names: str) -> bool:
        """Tell whether one of some settings is there, be it malformed."""
        return any(name in self.places or f"{name}_FILE" in self.places for name in names)

    def setting(
        self, name: str, parse: Callable[[str], _T], place: Where, required: bool = False
    ) -> _T | None:
        """A setting that may be absent, unless it is required, but not empty; ``None`` too after a problem was noted."""
        if name in self._environ:
            return self._parsed(name, parse, [place])
        if required:
            self._problems.say(f"{name} is not set.", place)
        return None

    def customary(self, name: str, parse: Callable[[str], _T]) -> _T | None:
        """A setting that other programs share: by custom in either case, lower case first, and none where it is empty."""
        for spelled in (name, name.upper()):
            if self._environ.get(spelled, "").strip():
                return self._parsed(spelled, parse, [(name,)])
        return None

    def group(self, names: Mapping[str, tuple[str, _Parse]]) -> dict[str, Any]:
        """The fields of a value that are set."""
        return _said(
            {field: self.setting(name, parse, _place(name)) for name, (field, parse) in names.items()}
        )

    def ledger(self) -> str:
        """The URL of the ledger, in which a password may be; where it is not set, that of the default."""
        url = self.secret(
            "LLMPROXY_LEDGER",
            [("ledger",)],
            False,
            watching.parse_absolute_ledger,
            # A container image says none, so as to write nothing unasked, and who runs it cannot unset what an image sets.
            yielding=watching.NO_LEDGER,
        )
        return url or watching.default_ledger(self._environ)

    def secret(
        self,
        name: str,
        places: Sequence[Where],
        required: bool,
        parse: Callable[[str], str] = values.parse_word,
        yielding: str | None = None,
    ) -> str | None:
        """A secret, from ``name`` or from the file that ``name_FILE`` names.

        :param yielding: the one text of ``name`` beside which there may be a file, which then counts.
        """
        from_file = f"{name}_FILE"
        both = name in self._environ and from_file in self._environ
        if both and self._environ[name].strip() != yielding:
            self.places[name] = ()
            self._problems.say(f"{name} and {from_file} are both set; keep one.", *places)
        elif from_file in self._environ:
            return self._parsed(from_file, lambda path: _held(path, parse), places)
        elif name in self._environ:
            return self._parsed(name, parse, places)
        elif required:
            self._problems.say(f"{name} is not set (nor is {from_file}).", *places)
        return None

    def _parsed(self, name: str, parse: Callable[[str], _T], places: Sequence[Where]) -> _T | None:
        self.places[name] = tuple(places)
        text = self._environ[name].strip()
        if not text:
            self._problems.say(f"{name} is empty.", *places)
            return None
        try:
            return parse(text)
        except ValueError as problem:
            self._problems.say(f"{name} {problem}", *places)
            return None


def _held(path: str, parse: Callable[[str], str]) -> str:
    """Read a secret from the file that holds it."""
    text = values.read_secret_file(path)
    try:
        return parse(text)
    except ValueError as problem:
        raise ValueError(f"names a file whose text {problem}") from None


def _place(name: str) -> Where:
    """The key of the file for which a variable stands that has its name."""
    prefix, _, key = name.partition("_")
    return _TABLES[prefix], key.lower()
