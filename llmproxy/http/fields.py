"""Header fields as they stood in a message: names as spelled, values as sent, in their order.

``twisted.web.http_headers.Headers`` keeps a dictionary by canonical names; this is one of them by its interface, but holds the
pairs as they came, which is both exact and, since nothing is canonicalized, quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from twisted.web.http_headers import Headers

Pair = tuple[bytes, bytes]
Informational = Callable[[int, bytes, "Fields"], None]


class Fields(Headers):
    """An ordered list of header fields with the interface of ``Headers``.

    :ivar pairs: names and values; to be read by anyone, and changed only through methods.
    """

    __slots__ = ("_index", "pairs")

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self.pairs = list(pairs)
        self._index: dict[bytes, list[bytes]] | None = None

    def __repr__(self) -> str:
        # Values may be secrets; names tell enough.
        return f"<Fields {[name for name, _ in self.pairs]}>"

    def __eq__(self, other: object) -> bool:
        return self.pairs == other.pairs if isinstance(other, Fields) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other  # Headers has one of its own, by its dictionary

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> Fields:
        """Copy these fields."""
        return Fields(self.pairs)

    def values_of(self, name: bytes) -> Sequence[bytes]:
        """The values of a field in their order; ``name`` is in lower case."""
        # A message is asked for a dozen names, nearly all of which it has not.
        return (self._index or self._indexed()).get(name, ())

    def by_name(self) -> Mapping[bytes, Sequence[bytes]]:
        """The values of all fields, by their names in lower case; not to be kept, nor changed."""
        return self._index or self._indexed()

    def has_none_of(self, names: frozenset[bytes]) -> bool:
        """Tell whether no field has any of some names, which are in lower case."""
        return names.isdisjoint(self._index or self._indexed())

    def without(self, names: frozenset[bytes]) -> Fields:
        """Copy all fields but those of some names, which are in lower case."""
        index = self._index or self._indexed()
        if names.isdisjoint(index):
            kept = Fields(self.pairs)
            kept._index = index.copy()
        else:
            kept = Fields([pair for pair in self.pairs if pair[0].lower() not in names])
            kept._index = {name: values for name, values in index.items() if name not in names}
        return kept

    def settle(self) -> None:
        """Free what was kept for looking fields up; it is made again where that goes on."""
        self._index = None

    def _indexed(self) -> dict[bytes, list[bytes]]:
        index: dict[bytes, list[bytes]] = {}
        for name, value in self.pairs:
            lower = name.lower()
            if lower in index:
                index[lower].append(value)
            else:
                index[lower] = [value]
        self._index = index
        return index

    def hasHeader(self, name: str | bytes) -> bool:
        """Tell whether a field is there, its name in any case."""
        return bool(self.values_of(_name(name).lower()))

    def removeHeader(self, name: str | bytes) -> None:
        """Take out every field of a name."""
        lower = _name(name).lower()
        self.pairs = [pair for pair in self.pairs if pair[0].lower() != lower]
        self._index = None

    def setRawHeaders(self, name: str | bytes, values: Sequence[str | bytes]) -> None:
        """Put fields in the place of all those of a name."""
        self.removeHeader(name)
        for value in values:
            self.addRawHeader(name, value)

    def addRawHeader(self, name: str | bytes, value: str | bytes) -> None:
        """Add a field at the end."""
        spelled, sent = _name(name), _value(value)
        self.pairs.append((spelled, sent))
        if self._index is not None:
            lower = spelled.lower()
            # A new list: the old one may be another's, too.
            self._index[lower] = [*self._index.get(lower, ()), sent]

    def getRawHeaders(self, name: Any, default: Any = None) -> Any:
        """The values of a field, of the type of ``name``, or ``default`` where there are none."""
        values = self.values_of(_name(name).lower())
        if not values:
            return default
        return [value.decode("utf-8") for value in values] if isinstance(name, str) else list(values)

    def getAllRawHeaders(self) -> Iterator[tuple[bytes, Sequence[bytes]]]:
        """Each field by itself, with a list of its one value; a repeated name is repeated."""
        return ((name, [value]) for name, value in self.pairs)


def pairs_of(headers: Headers) -> list[Pair]:
    """The fields of any ``Headers``, in its order."""
    if isinstance(headers, Fields):
        return headers.pairs
    return [(name, value) for name, values in headers.getAllRawHeaders() for value in values]


class OutgoingFields(Fields):
    """The fields of a request to an upstream, and who is told of its interim responses.

    :ivar informational: called with status, reason phrase and fields of each interim response but ``100 Continue``.
    """

    __slots__ = ("informational",)

    def __init__(self, pairs: Iterable[Pair], informational: Informational | None) -> None:
        super().__init__(pairs)
        self.informational = informational


def fields_of(headers: Headers) -> Fields:
    """The fields of any ``Headers``, in its order."""
    return headers if isinstance(headers, Fields) else Fields(pairs_of(headers))


def _name(name: str | bytes) -> bytes:
    return name.encode("ascii") if isinstance(name, str) else name


def _value(value: str | bytes) -> bytes:
    raw = value.encode("utf-8") if isinstance(value, str) else value
    # A line break in a value would end the field, and begin whatever its author likes (RFC 9110 section 5.5).
    return b" ".join(raw.splitlines()) if b"\n" in raw or b"\r" in raw else raw
