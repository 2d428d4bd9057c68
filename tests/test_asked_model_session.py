from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.asked_model import UNDECIDED, Answer, Hidden, Known, SessionGuard
from tests.test_frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    DEFLATE,
    PING,
    PONG,
    TEXT,
    Deflated,
    byte_by_byte,
    frame,
)

KEY = b"\x13\x37\xca\xfe"
MAY = frozenset({"gpt-5", "gpt-5-mini", "gpt-realtime", "gemini-live", "whisper-1"})

APPEND = {"type": "input_audio_buffer.append", "audio": "AAAA"}


def missing(model: str) -> str | None:
    return None if model in MAY else f"You may not ask for {model}."


def guard(model: str | None = None, extensions: bytes = b"", limit: int = 2**20) -> SessionGuard:
    return SessionGuard(model, extensions, missing, limit)


def text(message: dict[str, Any] | bytes, **more: bool) -> bytes:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return frame(TEXT, data, key=KEY, **more)


def control(opcode: int, payload: bytes = b"") -> bytes:
    return frame(opcode, payload, key=KEY)


def create(model: str | None = "gpt-5", **fields: Any) -> dict[str, Any]:
    """One request of the Responses API, as Codex sends it."""
    return {"type": "response.create", **({"model": model} if model else {}), "input": [], **fields}


def answer_of(guarding: SessionGuard) -> Answer:
    return guarding.answer  # which a type checker takes to stay what it was


def refused(guarding: SessionGuard, sent: bytes) -> str:
    """The reason for which nothing of some bytes passes, nor of any that come later."""
    assert guarding.feed(sent) == b""
    answer = answer_of(guarding)
    assert isinstance(answer, Hidden)
    assert answer.reason.endswith(".")
    assert ", 0 held" in repr(guarding)
    assert guarding.feed(text(create()) + control(PING)) == b""
    assert guarding.answer is answer
    return answer.reason


# How a session learns its model


@pytest.mark.parametrize(
    ("message", "model"),
    [
        (create(), "gpt-5"),
        (create("gpt-5-mini", generate=False), "gpt-5-mini"),
        ({"setup": {"model": "models/gemini-live", "tools": []}}, "gemini-live"),
        ({"setup": {"model": "gemini-live"}}, "gemini-live"),
        ({"setup": {"model": "projects/p/publishers/google/models/gemini-live"}}, "gemini-live"),
        ({"type": "session.start", "session": {"model": "gpt-realtime"}}, "gpt-realtime"),
        ({"type": "session.update", "model": "gpt-realtime"}, "gpt-realtime"),
        ({"type": "response.create", "response": {"model": "gpt-5"}}, "gpt-5"),
        (
            {
                "type": "session.update",
                "session": {
                    "type": "transcription",
                    "audio": {"input": {"transcription": {"model": "whisper-1"}}},
                },
            },
            "whisper-1",
        ),
        (
            {
                "type": "transcription_session.update",
                "session": {"input_audio_transcription": {"model": "whisper-1"}},
            },
            "whisper-1",
        ),
    ],
)
def test_the_first_message_can_name_the_model_of_the_session(message: dict[str, Any], model: str) -> None:
    guarding = guard()
    assert answer_of(guarding) == UNDECIDED
    assert guarding.feed(text(message)) == text(message)
    assert answer_of(guarding) == Known(model)
    assert guarding.feed(text(APPEND)) == text(APPEND)
    assert answer_of(guarding) == Known(model)


@pytest.mark.parametrize(
    "message",
    [
        APPEND,
        create(None),
        create(None, prompt={"id": "pmpt_1"}),
        {"type": "response.create"},
        {"setup": {}},
        {"setup": None},
        {"clientContent": {"turns": [{"model": "gpt-5"}]}},
        {"metadata": {"model": "gpt-5"}},
        {"session": {"tools": [{"model": "gpt-5"}]}},
        {
            "type": "session.update",
            "session": {"audio": {"input": {"transcription": {"model": "whisper-1"}}}},
        },
        {"type": "session.start", "session": {"delegation": {"responses": {"model": "gpt-5"}}}},
        {},
    ],
)
def test_without_a_model_in_the_query_a_first_message_that_names_none_is_refused(
    message: dict[str, Any],
) -> None:
    assert "neither in the query nor in the first message" in refused(guard(), text(message))


def test_with_a_model_in_the_query_messages_need_name_none() -> None:
    guarding = guard("gpt-realtime")
    assert answer_of(guarding) == Known("gpt-realtime")
    for message in (
        APPEND,
        {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"input": {"transcription": None}}},
        },
        {
            "type": "session.update",
            "session": {"model": "gpt-realtime", "tools": [{"parameters": {"model": 1}}]},
        },
        {
            "type": "conversation.item.create",
            "item": {"content": [{"text": '"model": "o1-pro"', "model": "o1-pro"}]},
        },
        {"type": "response.create"},
        {"type": "response.create", "event_id": "e1", "response": {"instructions": "Be brief."}},
    ):
        assert guarding.feed(text(message)) == text(message)
    assert answer_of(guarding) == Known("gpt-realtime")


@pytest.mark.parametrize("model", [None, "gpt-5"])
def test_each_request_of_the_responses_api_names_its_model_whatever_the_session_has(
    model: str | None,
) -> None:
    guarding = guard(model)
    sent = (
        text(create("gpt-5")) + text({"type": "response.steer", "input": "No."}) + text(create("gpt-5-mini"))
    )
    assert guarding.feed(sent) == sent
    assert guarding.answer == Known("gpt-5")
    assert "no 'model' at its top level" in refused(guarding, text(create(None, prompt={"id": "pmpt_1"})))


@pytest.mark.parametrize("decoy", ["session", "response", "setup"])
def test_a_model_at_another_place_is_not_that_of_a_request_of_the_responses_api(decoy: str) -> None:
    message = create(None, prompt={"id": "pmpt_1"}, **{decoy: {"model": "gpt-5"}})
    for model in (None, "gpt-5"):
        assert "no 'model' at its top level" in refused(guard(model), text(message))


# Models that are not allowed

OTHER = "You may not ask for o1-pro."


@pytest.mark.parametrize(
    "message",
    [
        create("o1-pro"),
        {"type": "session.update", "session": {"model": "o1-pro"}},
        {"type": "response.create", "response": {"model": "o1-pro"}},
        {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "o1-pro"}}}}},
        {"type": "session.update", "session": {"input_audio_transcription": {"model": "o1-pro"}}},
        {
            "type": "session.start",
            "session": {"model": "gpt-5", "delegation": {"responses": {"model": "o1-pro"}}},
        },
        {"setup": {"model": "models/o1-pro"}},
        {"setup": {"model": "tunedModels/o1-pro"}},
        {"type": "anything", "model": "o1-pro"},
        {"model": "gpt-5", "session": {"audio": {"input": {"transcription": {"model": "o1-pro"}}}}},
    ],
)
def test_a_message_that_names_a_model_that_is_not_allowed_is_refused(message: dict[str, Any]) -> None:
    for model in (None, "gpt-realtime"):
        assert refused(guard(model), text(message)) == OTHER
    guarding = guard()
    assert guarding.feed(text(create())) == text(create())
    assert refused(guarding, text(message)) == OTHER


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b'{"model": "gpt-5", "model": "o1-pro"}', "several models"),
        (b'{"model": "o1-pro", "model": "gpt-5"}', "several models"),
        (b'{"model": "gpt-5", "m\\u006fdel": "o1-pro"}', "several models"),
        (b'{"session": {"model": "gpt-5"}, "session": {"model": "o1-pro"}}', "several models"),
        (b'{"session": {"model": "gpt-5"}, "sess\\u0069on": {"model": "o1-pro"}}', "several models"),
        (b'{"model": "gpt-5", "session": {"model": "o1-pro"}}', "several models"),
        (b'{"model": "gpt-5", "setup": {"model": "models/o1-pro"}}', "several models"),
        (
            b'{"model": "gpt-5", "session": {"audio": {"input": {"transcription": {"model": "o1-pro"}}}, "audio": {}}}',
            OTHER,
        ),
        (b'{"model": "gpt-5", "Model": "o1-pro"}', "taken for 'model'"),
        (b'{"model": "gpt-5", "model[]": "o1-pro"}', "taken for 'model'"),
        (b'{"model": "gpt-5", "m\xc3\xb6del": "o1-pro"}', "taken for 'model'"),
        (b'{"model": "gpt-5", "Session": {"model": "o1-pro"}}', "taken for 'session'"),
        (b'{"model": "gpt-5", "SETUP": {"model": "o1-pro"}}', "taken for 'setup'"),
        (b'{"model": "gpt-5", "response ": {"model": "o1-pro"}}', "taken for 'response'"),
        (b'{"model": "gpt-5", "\xc5\xbfession": {"model": "o1-pro"}}', "taken for 'model'"),
        (b'{"model": "gpt-5", "session": {"MODEL": "o1-pro"}}', "taken for 'model'"),
        (b'{"model": "gpt-5", "session": {"Audio": {}}}', "taken for 'audio'"),
        (b'{"model": "gpt-5", "session": {"audio": {"Input": {}}}}', "taken for 'input'"),
        (b'{"model": "gpt-5", "type": "a", "Type": "response.create"}', "taken for 'type'"),
        (b'{"model": "gpt-5", "type": "a", "type": "response.create"}', "two types"),
        (b'{"session": {"model": "gpt-5", "type": "realtime", "type": "transcription"}}', "two types"),
        (b'{"model": "gpt-5", "models": ["o1-pro"]}', "more models"),
        (b'{"model": "gpt-5", "fallbacks": [{"model": "o1-pro"}]}', "more models"),
        (b'{"model": ["gpt-5"]}', "than a string for the model"),
        (b'{"model": null}', "than a string for the model"),
        (b'{"model": {"model": "gpt-5"}}', "than a string for the model"),
        (b'{"model": "gpt-5", "type": 1}', "than a string for the type"),
        (b'{"setup": {"model": 7}}', "than a string for the model"),
        (b'{"model": "gpt-5", "session": [{"model": "o1-pro"}]}', "where an object"),
        (b'{"model": "gpt-5", "session": "{}"}', "where an object"),
        (b'{"model": ""}', "name of the model"),
        (b'{"model": "gpt-5\\u0000"}', "name of the model"),
        (b'{"setup": {"model": "models/"}}', "name of the model"),
        (
            b'{"model": "gpt-5", "session": {"input_audio_transcription": {"model": "a b"}}}',
            "name of the model",
        ),
        (b"", "not a JSON object"),
        (b" ", "not a JSON object"),
        (b"}", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"null}", "not a JSON object"),
        (b'"}', "not a JSON object"),
        (b'"gpt-5"', "not a JSON object"),
        (b'[{"model": "gpt-5"}]', "not a JSON object"),
        (b'{"model": "gpt-5"', "not a JSON object"),
        (b'{"model": "gpt-5"} {"model": "o1-pro"}', "not a JSON object"),
        (b'{"model": "gpt-5"}"}', "not a JSON object"),
        (b'{"model": "gpt-5"}}', "not a JSON object"),
        (b'{"a": {"model": "gpt-5"}', "not a JSON object"),
        (b'\xef\xbb\xbf{"model": "gpt-5"}', "not a JSON object"),
        ('{"model": "gpt-5"}'.encode("utf-16"), "not a JSON object"),
        (b'{"model": "gpt-5", "a": "\xff"}', "not a JSON object"),
        (b'{"model": "gpt-5", "a": "\xed\xa0\x80"}', "not a JSON object"),
        (b'{"model": "gpt-5", "a": NaN}', "not a JSON object"),
        (b'{"model": "gpt-5", "a": ' + b"1" * 5000 + b"}", "not a JSON object"),
        (b"{'model': 'gpt-5'}", "not a JSON object"),
    ],
)
def test_a_message_that_could_be_read_in_two_ways_or_not_at_all_is_refused(message: bytes, why: str) -> None:
    for model in (None, "gpt-5"):
        assert why in refused(guard(model), text(message))


def test_a_root_of_the_wrong_kind_that_ends_like_an_object_is_refused() -> None:
    assert "where an object" in refused(guard("gpt-5"), text(b'[{"model": "gpt-5"}'))


@pytest.mark.parametrize(
    "message",
    [
        b'{"model": "gpt-5", "model": "gpt-5"}',
        b' \r\n\t{"model": "gpt-5", "metadata": {"Model": 1, "models": [], "session": {"model": 2}}}\n ',
        b'{"model": "gpt-5", "session": {"tools": [{"session": {"model": "o1-pro"}}], "prompt": {"model": 3}}}',
        b'{"model": "gpt-5", "session": null, "response": null, "setup": null}',
        b'{"model": "gpt-5", "input": [[[{"model": "o1-pro"}], {"a": [1, 2.5e3, true, null]}]]}',
        b'{"model": "gpt-5", "a": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    ],
)
def test_what_is_data_is_no_model(message: bytes) -> None:
    guarding = guard()
    assert guarding.feed(text(message)) == text(message)
    assert guarding.answer == Known("gpt-5")


# What is no readable message


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (frame(BINARY, json.dumps(create()).encode(), key=KEY), "binary"),
        (frame(TEXT, json.dumps(create()).encode()), "unmasked"),
        (text(create(), compressed=True), "broken"),
        (frame(CONTINUATION, b"{}", key=KEY), "in the middle"),
        (text(create(), fin=False) + text(create("o1-pro")), "before the last one ended"),
        (b"GET / HTTP/1.1\r\n\r\n", "broken"),
    ],
)
def test_frames_that_cannot_be_read_are_refused(sent: bytes, why: str) -> None:
    assert why in refused(guard("gpt-5"), sent)


def test_an_extension_that_is_not_known_lets_nothing_pass() -> None:
    guarding = guard("gpt-5", b"x-webkit-deflate-frame")
    assert "not known here" in refused(guarding, control(PING))


def test_a_message_that_is_too_large_is_refused_as_soon_as_that_is_known() -> None:
    guarding = guard("gpt-5", limit=1000)
    start = frame(TEXT, b'{"a": "' + b"x" * 2000, fin=False, key=KEY)
    assert guarding.feed(start[:900]) == b""
    assert guarding.answer == Known("gpt-5")
    assert "more than 1000 bytes" in refused(guarding, start[900:])


def test_a_compressed_message_that_inflates_to_too_much_is_refused() -> None:
    guarding = guard("gpt-5", DEFLATE, limit=1000)
    sent = Deflated()(b'{"a": "' + b"x" * 2000 + b'"}')
    assert "more than 1000 bytes" in refused(guarding, text(sent, compressed=True))


def test_a_model_behind_a_last_block_is_not_smuggled() -> None:
    stream = zlib.compressobj(wbits=-15)
    sent = stream.compress(b'{"model": "gpt-5"}') + stream.flush(zlib.Z_FINISH)
    sent += Deflated()(b'{"model": "o1-pro"}')
    assert "last block" in refused(guard(None, DEFLATE), text(sent, compressed=True))


# What passes, and when


def test_a_message_passes_whole_or_not_at_all() -> None:
    guarding = guard()
    sent = text(create())
    assert [guarding.feed(byte) for byte in byte_by_byte(sent)] == [b""] * (len(sent) - 1) + [sent]


def test_messages_before_one_that_is_refused_pass() -> None:
    guarding = guard()
    good, bad = text(create()) + control(PING), text(create("o1-pro"))
    assert guarding.feed(good + bad + good) == good
    assert guarding.answer == Hidden(OTHER)
    assert guarding.feed(good) == b""


def test_control_frames_pass_at_once_before_any_message_and_between_the_fragments_of_one() -> None:
    guarding = guard()
    assert guarding.feed(control(PONG, b"1")) == control(PONG, b"1")
    assert answer_of(guarding) == UNDECIDED
    whole = json.dumps(create()).encode()
    first, last = frame(TEXT, whole[:9], fin=False, key=KEY), frame(CONTINUATION, whole[9:], key=KEY)
    assert guarding.feed(first + control(PONG, b"2") + last[:3]) == control(PONG, b"2")
    assert guarding.feed(last[3:] + control(PING)) == first + last + control(PING)
    assert guarding.answer == Known("gpt-5")


def test_a_close_passes_also_in_the_middle_of_a_message_and_nothing_behind_it() -> None:
    guarding = guard("gpt-5")
    sent = text(create(), fin=False) + control(CLOSE, b"\x03\xe8") + text(create())
    assert guarding.feed(sent) == control(CLOSE, b"\x03\xe8")
    assert guarding.feed(text(create()) + b"garbage") == b""
    assert guarding.answer == Known("gpt-5")
    assert "0 held" in repr(guarding)


def test_compressed_messages_pass_as_they_were_sent() -> None:
    guarding = guard(None, DEFLATE)
    deflated = Deflated()
    for message in (create(), create("gpt-5-mini"), create()):
        sent = text(deflated(json.dumps(message).encode()), compressed=True)
        assert guarding.feed(sent) == sent
    assert refused(guarding, text(deflated(json.dumps(create("o1-pro")).encode()), compressed=True)) == OTHER


def test_the_state_is_shown_without_what_was_said() -> None:
    guarding = guard()
    guarding.feed(text(create(instructions="a secret")) + text(create())[:5])
    assert (
        repr(guarding)
        == f"<SessionGuard Known(model='gpt-5'), {len(text(create(instructions='a secret')))} bytes passed, 5 held>"
    )


# Splits


def fragments(payload: bytes, cuts: Iterable[int], between: bytes, *, compressed: bool) -> bytes:
    edges = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    parts = [payload[start:stop] for start, stop in itertools.pairwise(edges)]
    return between.join(
        frame(
            CONTINUATION if at else TEXT,
            part,
            fin=at == len(parts) - 1,
            compressed=compressed and not at,
            key=KEY,
        )
        for at, part in enumerate(parts)
    )


MESSAGES = st.sampled_from(
    [
        create(),
        create("gpt-5-mini", input=[{"role": "user", "content": "Zürich 😀 " * 5}]),
        APPEND,
        create("o1-pro"),
        create(None),
        {
            "type": "session.update",
            "session": {"audio": {"input": {"transcription": {"model": "whisper-1"}}}},
        },
        {"type": "session.update", "session": {"model": "o1-pro"}},
        {"setup": {"model": "models/gemini-live"}},
    ]
)


@settings(deadline=None)
@given(
    data=st.data(),
    messages=st.lists(MESSAGES, max_size=6),
    model=st.sampled_from([None, "gpt-realtime"]),
    deflate=st.booleans(),
    ping=st.sampled_from([b"", control(PING, b"?")]),
)
def test_however_the_bytes_are_split_the_same_passes(
    data: st.DataObject, messages: list[dict[str, Any]], model: str | None, deflate: bool, ping: bytes
) -> None:
    deflated = Deflated()
    sent = b""
    for message in messages:
        payload = json.dumps(message, ensure_ascii=False).encode()
        payload = deflated(payload) if deflate else payload
        cuts = data.draw(st.lists(st.integers(0, 200), max_size=3))
        sent += fragments(payload, cuts, ping, compressed=deflate)
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=20))), len(sent)]
    pieces = [sent[start:stop] for start, stop in itertools.pairwise(edges)]
    outcomes = []
    for split in ([sent], pieces, byte_by_byte(sent)):
        guarding = guard(model, DEFLATE if deflate else b"")
        outcomes.append((b"".join(guarding.feed(piece) for piece in split), guarding.answer))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    passed, answer = outcomes[0]
    if isinstance(answer, Hidden):
        assert len(passed) < len(sent)
    elif not ping:
        assert passed == sent
    else:
        assert sorted(passed) == sorted(sent)


@settings(deadline=None)
@given(
    before=st.text(max_size=5),
    place=st.sampled_from(["model", "session.model", "response.model", "setup.model"]),
    model=st.text(max_size=8) | st.sampled_from(sorted(MAY)) | st.sampled_from(["o1-pro", "models/o1-pro"]),
    spelling=st.sampled_from([str, str.upper, str.title, lambda key: key + " ", lambda key: key + "[]"]),
    escape=st.booleans(),
)
def test_no_spelling_of_a_place_lets_another_model_pass(
    before: str, place: str, model: str, spelling: Any, escape: bool
) -> None:
    message: Any = model
    for key in reversed(place.split(".")):
        message = {before: 1, spelling(key): message}
    sent = text(json.dumps(message, ensure_ascii=escape).encode())
    guarding = guard("gpt-5")
    if guarding.feed(sent):
        assert model.removeprefix("models/") in MAY
