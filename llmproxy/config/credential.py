"""How an upstream is given its key, and what its usage looks like: the two things in which providers' APIs differ here.

A :class:`Credential` says only where a key goes. Which keys there are, and which of them a request takes, is decided elsewhere.
"""

from __future__ import annotations

import re
from enum import Enum
from urllib.parse import quote

import attrs

# RFC 9110 section 5.6.2: the name of a header is a token.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 3986 section 2.3: what means the same in a query whether it is percent-encoded or not.
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")
# Headers that frame or route a message, or that end at the next hop: a key in one would not arrive, or would change what the
# request is. Hop-by-hop: RFC 9110 section 7.6.1; the others: sections 7.2, 8.6 and 10.1.1, and RFC 6455 section 11.3.
_RESERVED_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_RESERVED_PREFIX = "sec-websocket-"


class Family(Enum):
    """What the usage in an API's answers looks like; the values are the words of the setting ``api``."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"
    NONE = "none"  # none that is known: nothing is read from the answers

    __hash__ = object.__hash__  # caches ask for it all the time, and Enum's own is a function in Python


class Place(Enum):
    """Which part of a request carries the key."""

    HEADER = "header"
    QUERY = "query"
    NONE = "none"


@attrs.frozen
class Credential:
    """Where an upstream wants its key.

    :ivar name: of the header or query parameter; empty where there is no key.
    :ivar scheme: what stands before the key in a header, its space included; often empty.
    """

    place: Place
    name: str = ""
    scheme: str = ""

    @classmethod
    def parse(cls, text: str) -> Credential:
        """Read the setting: ``bearer``, ``x-api-key``, ``header:NAME``, ``query:NAME`` or ``none``.

        :raise ValueError: with a text to go behind the setting's name. It shows nothing of what was found, which may be a key
            that was meant for another setting.
        """
        if text in _WORDS:
            return _WORDS[text]
        kind, _, name = text.partition(":")
        if kind == "header":
            return cls(Place.HEADER, _header_name(name))
        if kind == "query":
            return cls(Place.QUERY, _query_name(name))
        raise ValueError("must be bearer, x-api-key, header:NAME, query:NAME or none.")

    def header(self, key: str) -> tuple[bytes, bytes]:
        """The name and value of the header that carries a key.

        :param key: one word of ASCII, as all keys are.
        :raise ValueError: where the key does not go into a header.
        """
        self._expect(Place.HEADER)
        return self.name.encode("ascii"), f"{self.scheme}{key}".encode("ascii")

    def parameter(self, key: str) -> bytes:
        """The ``name=value`` that carries a key in a query, percent-encoded.

        :raise ValueError: where the key does not go into the query.
        """
        self._expect(Place.QUERY)
        return f"{self.name}={quote(key, safe='')}".encode("ascii")

    def _expect(self, place: Place) -> None:
        if self.place is not place:
            raise ValueError(f"The credential is {self}: no key goes into a {place.value}.")

    def __str__(self) -> str:
        """The text of the setting that means this."""
        for word, credential in _WORDS.items():
            if self == credential:
                return word
        return f"{self.place.value}:{self.name}"


_WORDS = {
    "bearer": Credential(Place.HEADER, "Authorization", "Bearer "),  # RFC 6750 section 2.1
    "x-api-key": Credential(Place.HEADER, "x-api-key"),
    "none": Credential(Place.NONE),
}


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError("must be header:NAME with the name of a header, such as header:api-key.")
    if name.lower() in _RESERVED_HEADERS or name.lower().startswith(_RESERVED_PREFIX):
        raise ValueError("names a header that frames or routes the request; no key can be sent in it.")
    return name


def _query_name(name: str) -> str:
    if not _UNRESERVED.fullmatch(name):
        raise ValueError(
            "must be query:NAME with the name of a parameter in letters, digits, '-', '.', '_' and '~'."
        )
    return name
