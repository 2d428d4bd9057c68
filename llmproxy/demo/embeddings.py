"""OpenAI's embeddings: from the body of a `POST /v1/embeddings` to one vector for each input.

The vectors depend on nothing but their input, and mean nothing.
"""

from __future__ import annotations

import base64
import math
import random
import struct

from llmproxy.demo.fields import BadField, Json, positive, required
from llmproxy.demo.words import count

DIMENSIONS = 1536
"""The length of a vector that `dimensions` does not shorten: that of text-embedding-3-small."""

_INPUT = "a string, or a non-empty array of strings or of tokens"


def answer(body: Json) -> Json:
    """Answer `body`, or raise `BadField`."""
    model = required(body, "model", str)
    dimensions = positive(body, "dimensions") or DIMENSIONS
    if dimensions > DIMENSIONS:
        raise BadField("dimensions", f"at most {DIMENSIONS}")
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise BadField("encoding_format", "'float' or 'base64'")
    inputs = _inputs(body)
    tokens = sum(count(text) if isinstance(text, str) else len(text) for text in inputs)
    packed = [_vector(str(text), dimensions) for text in inputs]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector).decode("ascii")
            if encoding == "base64"
            else list(struct.unpack(f"<{dimensions}f", vector)),
        }
        for index, vector in enumerate(packed)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _inputs(body: Json) -> list[str] | list[list[int]]:
    """Return the texts or token lists of `body`, whether it has one or several."""
    given = body.get("input")
    if given is None:
        raise BadField("input")
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise BadField("input", _INPUT)
    if all(isinstance(item, str) for item in given):
        return given
    lists = given if isinstance(given[0], list) else [given]
    for tokens in lists:
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise BadField("input", _INPUT)
    return lists


def _vector(text: str, dimensions: int) -> bytes:
    """Make a vector of length 1, as little-endian 32-bit floats: what the base64 form carries."""
    chance = random.Random(text)  # noqa: S311 - the same vector each time, and nothing to protect
    values = [chance.uniform(-1, 1) for _ in range(dimensions)]
    length = math.hypot(*values)
    return struct.pack(f"<{dimensions}f", *(value / length for value in values))
