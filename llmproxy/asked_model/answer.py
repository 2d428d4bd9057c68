"""What is known of the model that a request asks for, and what a name and a key look like that mean one thing to everybody."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

# Visible ASCII, as all names of models are. Without the question mark, which the JSON parser puts for half a surrogate pair,
# and without the quote and the backslash, which forms escape in several ways. It goes into messages and logs: so it is short.
_NAME = re.compile(r"[!#->@-\[\]-~]{1,256}")
# Keys of the top level that are read alike by all: not with NUL (which ends a C string), nor with characters that fold to ASCII
# letters, nor with what stands for half a surrogate pair.
_KEY = re.compile(r"[ -~]*")
_MODEL = "model"
# With these, a request names models that are run where the first one fails: OpenRouter's, Anthropic's and others'
# (https://openrouter.ai/docs/guides/routing/model-fallbacks, https://docs.litellm.ai/docs/proxy/client_side_fallbacks).
_FALLBACKS = frozenset({"models", "fallbacks", "fallback_models"})
# Gemini's models are resources of these, as in the paths of the same API.
_COLLECTIONS = frozenset({"models", "tunedModels"})


class Unreadable(ValueError):
    """A request that hides its model; the text says how, in a sentence for the client."""


@attrs.frozen
class Undecided:
    """The model may still come."""


@attrs.frozen
class Known:
    """The request asks for this model, and for no other so far.

    :ivar model: 1 to 256 visible ASCII characters, as sent.
    """

    model: str


@attrs.frozen
class Hidden:
    """Which model the request asks for cannot be told, and never will be.

    :ivar reason: why, in a sentence for the client.
    """

    reason: str


Answer = Undecided | Known | Hidden
UNDECIDED: Final = Undecided()


def checked_name(name: str) -> str:
    """Return the name of a model if it is one.

    :raise Unreadable: where it is not.
    """
    if not _NAME.fullmatch(name):
        raise Unreadable("The name of the model is empty, too long, or holds characters that no model has.")
    return name


def name_of_resource(resource: str) -> str:
    """The name of a model of Gemini's by that of its resource, ``models/NAME``, also where it is given without a collection."""
    collection, _, last = resource.rpartition("/")
    return last if collection.rpartition("/")[2] in _COLLECTIONS else resource


def is_model(key: str) -> bool:
    """Tell whether a key of a JSON object's top level, or the name of a form's field, is that of the model.

    :raise Unreadable: where some parsers would take it for that, and where it names more models.
    """
    if key == _MODEL:
        return True
    # Some form parsers make an array of `name[]`, and trim spaces.
    stem = key.partition("[")[0].strip(" ").lower()
    if stem == _MODEL or "?" in key or not _KEY.fullmatch(key):
        raise Unreadable("The body has a key that could be taken for 'model'; spell it exactly so, once.")
    if stem in _FALLBACKS:
        raise Unreadable(f"The body names more models, in {stem!r}; a client with a list may ask for one.")
    return False


def agreed(names: Iterable[str]) -> str | None:
    """The one name that was given, once or several times; ``None`` where there is none.

    :raise Unreadable: where names differ, or one cannot be a model's.
    """
    distinct = {checked_name(name) for name in names}
    if len(distinct) > 1:
        raise Unreadable("The request names several models; it may name one.")
    return distinct.pop() if distinct else None
