from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.asked_model.setup import _LONGEST, SetupGlance
from tests.test_frames import Deflated, frame
from tests.usage_support import dumped

TEXT, BINARY, CONTINUATION, CLOSE, PING = 1, 2, 0, 8, 9
KEY = b"mask"


def setup(model: Any = "models/gemini-live", **more: Any) -> bytes:
    return dumped({"setup": {"model": model, **more}})


def glanced(*pieces: bytes, extensions: bytes = b"") -> tuple[str | None, bool]:
    """The model, and whether it was over."""
    glance = SetupGlance(extensions)
    for piece in pieces:
        glance.feed(piece)
    return glance.model, glance.over


@pytest.mark.parametrize(
    ("named", "model"),
    [
        ("models/gemini-live", "gemini-live"),
        ("gemini-live", "gemini-live"),
        ("tunedModels/mine", "mine"),
        ("projects/p/locations/us-central1/publishers/google/models/gemini-live", "gemini-live"),
        ("projects/p/locations/us-central1/endpoints/7", "projects/p/locations/us-central1/endpoints/7"),
    ],
)
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_the_model_is_called_as_in_lists_of_prices(named: str, model: str, kind: int) -> None:
    assert glanced(frame(kind, setup(named), key=KEY)) == (model, True)


def test_it_is_read_wherever_the_message_is_cut() -> None:
    sent = frame(PING, b"ping", key=KEY) + frame(TEXT, setup(tools=[{"model": "none"}]), key=KEY)
    assert glanced(*(sent[at : at + 1] for at in range(len(sent)))) == ("gemini-live", True)
    for at in range(len(sent)):
        assert glanced(sent[:at], sent[at:]) == ("gemini-live", True)
        assert glanced(sent[:at]) == (None, False)


def test_it_is_read_in_fragments_and_compressed() -> None:
    message = setup()
    for at in range(len(message)):
        first = frame(TEXT, message[:at], fin=False, key=KEY)
        assert glanced(first, frame(PING, b"", key=KEY), frame(CONTINUATION, message[at:], key=KEY)) == (
            "gemini-live",
            True,
        )
    compressed = frame(BINARY, Deflated()(message), compressed=True, key=KEY)
    agreed = b"permessage-deflate; client_no_context_takeover; server_max_window_bits=10"
    assert glanced(compressed, extensions=agreed) == ("gemini-live", True)


def test_only_the_first_message_is_read() -> None:
    assert glanced(frame(TEXT, setup(), key=KEY) + frame(TEXT, setup("other"), key=KEY)) == (
        "gemini-live",
        True,
    )
    assert glanced(frame(TEXT, b"{}", key=KEY), frame(TEXT, setup(), key=KEY)) == (None, True)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        dumped({"setup": None}),
        dumped({"setup": []}),
        dumped({"setup": {}}),
        dumped({"clientContent": {"model": "models/gemini-live"}}),
        setup(None),
        setup(7),
        setup(""),
        setup("models/"),
        setup("models/x" * 40),
        setup("models/new\nline"),
        b"[" * 100_000,
    ],
)
def test_what_names_no_model_leaves_it_unknown(message: bytes) -> None:
    assert glanced(frame(TEXT, message, key=KEY)) == (None, True)


def test_a_close_and_what_is_no_frame_end_it() -> None:
    assert glanced(frame(CLOSE, b"", key=KEY) + frame(TEXT, setup(), key=KEY)) == (None, True)
    assert glanced(b"\xff\xff", frame(TEXT, setup(), key=KEY)) == (None, True)
    assert glanced(frame(TEXT, setup(), key=KEY), extensions=b"x-unheard-of") == (None, True)


def test_a_message_beyond_its_bound_is_given_up() -> None:
    large = setup(systemInstruction="x" * _LONGEST)
    assert glanced(frame(TEXT, large, key=KEY)) == (None, True)
    half = frame(TEXT, large, key=KEY)[: 3 * _LONGEST // 4]
    assert glanced(half) == (None, False)
    assert glanced(frame(TEXT, setup(systemInstruction="x" * (_LONGEST - 100)), key=KEY)) == (
        "gemini-live",
        True,
    )


@given(st.lists(st.binary(max_size=80)))
def test_nothing_is_an_error(pieces: list[bytes]) -> None:
    assert glanced(*pieces)[0] is None
