"""What the operator set: a frozen :class:`Config`, and its readers.

:func:`load` reads all of it. What each source says is read by :mod:`~llmproxy.config.environment` and
:mod:`~llmproxy.config.file`, and put together by :mod:`~llmproxy.config.partial`; the file is described by
:mod:`~llmproxy.config.schema`.
"""

from llmproxy.config.credential import Credential, Family, Place
from llmproxy.config.environment import load_port
from llmproxy.config.model import (
    DEFAULT_DRAIN,
    DEFAULT_MAX_RESENT_BODY,
    DEFAULT_PORT,
    Client,
    Config,
    ConfigError,
    Timeouts,
    Upstream,
    token_digest,
)
from llmproxy.config.reader import FILE_VARIABLE, load

__all__ = [
    "DEFAULT_DRAIN",
    "DEFAULT_MAX_RESENT_BODY",
    "DEFAULT_PORT",
    "FILE_VARIABLE",
    "Client",
    "Config",
    "ConfigError",
    "Credential",
    "Family",
    "Place",
    "Timeouts",
    "Upstream",
    "load",
    "load_port",
    "token_digest",
]
