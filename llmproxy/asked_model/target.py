"""The model in a request's target, and which requests need none.

All of this works on a target that :func:`llmproxy.target.split` let through, so on one without dot segments and backslashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import parse_qsl, unquote_to_bytes

import attrs

from llmproxy.asked_model.answer import Hidden, Known, Unreadable, agreed
from llmproxy.config.credential import Family

# RFC 9110 section 9.3: those with which nothing is sent to be worked on.
_ASKING = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE"})
# The parameter of Realtime and Live sessions, and Azure's own name for it
# (https://learn.microsoft.com/azure/ai-services/openai/how-to/realtime-audio-websockets).
_IN_QUERY = frozenset({"model", "deployment"})

# What may be percent-encoded in a path whose segments matter: nothing that could end a segment, a name or the path.
_INNOCENT = re.compile(rb"[0-9A-Za-z._~@+ -]*")

_TWO_WAYS = "The path is spelled so that the model in it could be read in two ways."


def may_name_none(method: bytes, *, has_body: bool, is_websocket: bool) -> bool:
    """Tell whether a request may do without a model, for a client that may use only some.

    Lists of models and files are read, and things deleted, without any model being run. But a WebSocket runs one that it names
    later, in a frame.

    :param has_body: also where its length is not known yet.
    """
    return method in _ASKING and not has_body and not is_websocket


def model_of_target(family: Family, target: bytes) -> Known | Hidden | None:
    """The model that the path or the query names, ``None`` where neither does.

    :param target: as the upstream gets it, without what stands in its base URL: for example
        ``b"/v1beta/models/gemini-3-pro:generateContent?alt=sse"``.
    """
    path, _, query = target.partition(b"?")
    try:
        model = agreed([*_in_path(family, path), *_in_query(query)])
    except Unreadable as error:
        return Hidden(str(error))
    return None if model is None else Known(model)


def model_of_path(family: Family, path: bytes) -> Known | Hidden | None:
    """The model that a path names, by the rules of the upstream's family; see :func:`model_of_target`."""
    return model_of_target(family, path.partition(b"?")[0])


def model_of_query(query: bytes) -> Known | Hidden | None:
    """The model that a query names, which is what stands behind the ``?``; see :func:`model_of_target`."""
    return model_of_target(Family.NONE, b"/?" + query)


def _in_query(query: bytes) -> Iterator[str]:
    # Nearly all queries are free of it, but its letters can be percent-encoded.
    if not query:
        return
    try:
        # Some servers still take `;` for `&`.
        pairs = parse_qsl(query.replace(b";", b"&").decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise Unreadable("The query is not percent-encoded UTF-8.") from None
    for name, value in pairs:
        if name in _IN_QUERY:
            yield value
        elif name.partition("[")[0].strip().lower() in _IN_QUERY:
            raise Unreadable(
                "The query has a key that could be taken for 'model'; spell it exactly so, once."
            )


def _in_path(family: Family, path: bytes) -> Iterator[str]:
    rule = _RULES.get(family)
    if rule is None or rule.sign not in _decoded_fully(path).lower():
        return
    # Servers differ in whether they decode before or after they look for what they serve, and in what they make of empty
    # segments. So it is looked for in the decoded form, and what then could be either is refused.
    segments = []
    for raw in path.split(b"/"):
        decoded = unquote_to_bytes(raw)
        if decoded != raw and not _INNOCENT.fullmatch(decoded.replace(b":", b"", raw.count(b":"))):
            raise Unreadable(_TWO_WAYS)
        if raw:
            segments.append(decoded.decode("latin-1"))
    yield from rule.find(segments)


def _decoded_fully(path: bytes) -> bytes:
    while (decoded := unquote_to_bytes(path)) != path:
        path = decoded
    return path


def _gemini(segments: list[str]) -> Iterator[str]:
    """``.../models/NAME:verb`` or ``.../tunedModels/NAME:verb`` (https://ai.google.dev/api/generate-content)."""
    *collection, last = segments
    name, _, verb = last.partition(":")
    if verb == "download":  # of a file
        return
    kind = collection[-1].lower() if collection else ""
    if kind not in ("models", "tunedmodels") or not verb or ":" in "".join(collection) + verb:
        raise Unreadable("The path calls a method, but of nothing that is known to be a model.")
    yield name


def _azure(segments: list[str]) -> Iterator[str]:
    """``/openai/deployments/NAME/...`` (https://learn.microsoft.com/azure/ai-services/openai/reference)."""
    # Some servers drop parameters (`;x`) before they look for what they serve.
    plain = [segment.partition(";")[0].lower() for segment in segments]
    if plain[0] == "openai":
        del plain[0], segments[0]
    if plain[:1] == ["deployments"] and len(segments) > 2:
        if plain[1] != segments[1].lower():
            raise Unreadable(_TWO_WAYS)
        yield segments[1]


@attrs.frozen
class _Rule:
    """How a family's paths name a model.

    :ivar sign: without this in it, a path does not.
    :ivar find: yields the model from the decoded segments of another.
    """

    sign: bytes
    find: Callable[[list[str]], Iterator[str]]


_RULES: Mapping[Family, _Rule] = {
    Family.GEMINI: _Rule(b":", _gemini),
    Family.OPENAI: _Rule(b"deployments", _azure),
}
