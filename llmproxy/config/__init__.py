"""What the operator set: a frozen :class:`Config`, and its readers."""

from llmproxy.config.environment import load, load_port
from llmproxy.config.model import (
    DEFAULT_DRAIN,
    DEFAULT_PORT,
    Client,
    Config,
    ConfigError,
    Timeouts,
    Upstream,
)

__all__ = [
    "DEFAULT_DRAIN",
    "DEFAULT_PORT",
    "Client",
    "Config",
    "ConfigError",
    "Timeouts",
    "Upstream",
    "load",
    "load_port",
]
