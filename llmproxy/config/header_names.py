"""Which headers the settings may name: those to add to requests, and those to record.

Each reader raises ``ValueError`` with a text that goes behind the setting's name.
"""

from __future__ import annotations

import re

from llmproxy.config.credential import Credential

# RFC 9110 section 5.6.2: the name of a header is a token.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_KEYS = frozenset({"authorization", "x-api-key"})
# Where clients send their token, or what else opens a door.
_SECRETS = _KEYS | {"api-key", "cookie", "proxy-authorization", "sec-websocket-protocol", "x-goog-api-key"}


def parse_added(name: str) -> str:
    """Read the name of a header that is added to requests."""
    try:
        Credential.parse(f"header:{name}")  # what cannot carry a key cannot be added either
    except ValueError:
        raise ValueError("is not the name of a header that can be added.") from None
    if name.lower() in _KEYS:
        raise ValueError("is where a key goes; api_key_env and api_key_file set that.")
    return name


def parse_recorded(name: str) -> bytes:
    """Read the name of a header whose values are recorded; it is returned in lower case."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("is not the name of a header.")
    if name.lower() in _SECRETS:
        raise ValueError("names a header that may hold a secret, which must not be recorded.")
    return name.lower().encode("ascii")
