"""What the operator set: a frozen :class:`Config`, and its readers.

:func:`load` reads all of it, :func:`load_port` and :func:`load_ledger` one setting each. What each source says is read by
:mod:`~llmproxy.config.environment` and :mod:`~llmproxy.config.file`, and put together by :mod:`~llmproxy.config.partial`; the
file is described by :mod:`~llmproxy.config.schema`.
"""

from llmproxy.config.credential import Credential, Family, Place
from llmproxy.config.environment import load_port
from llmproxy.config.model import (
    DEFAULT_DRAIN,
    DEFAULT_LEDGER_BACKLOG,
    DEFAULT_MAX_RESENT_BODY,
    DEFAULT_PORT,
    Accounting,
    Client,
    Config,
    ConfigError,
    Logging,
    PriceOverride,
    Timeouts,
    Upstream,
    service_tier,
    token_digest,
)
from llmproxy.config.reader import FILE_VARIABLE, load, load_ledger
from llmproxy.config.watching import NO_LEDGER, parse_admin_port, parse_log_format, parse_log_level

__all__ = [
    "DEFAULT_DRAIN",
    "DEFAULT_LEDGER_BACKLOG",
    "DEFAULT_MAX_RESENT_BODY",
    "DEFAULT_PORT",
    "FILE_VARIABLE",
    "NO_LEDGER",
    "Accounting",
    "Client",
    "Config",
    "ConfigError",
    "Credential",
    "Family",
    "Logging",
    "Place",
    "PriceOverride",
    "Timeouts",
    "Upstream",
    "load",
    "load_ledger",
    "load_port",
    "parse_admin_port",
    "parse_log_format",
    "parse_log_level",
    "service_tier",
    "token_digest",
]
