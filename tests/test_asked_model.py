from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import random
import zlib

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.asked_model import (
    UNDECIDED,
    Answer,
    Hidden,
    Known,
    ModelReader,
    may_name_none,
    model_of_path,
    model_of_query,
    model_of_target,
)
from llmproxy.asked_model.json_body import JSONBody
from llmproxy.config.credential import Family

JSON = b"application/json"
FORM = b"multipart/form-data; boundary=XbX"
CHAT = b'{"messages": [{"role": "user", "content": "\\"model\\": \\u00e9"}], "model": "gpt-5", "n": 1.5e3}'


def part(name: str, value: str = "x", more: str = "", headers: str = "") -> bytes:
    return (
        f'--XbX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n{value}\r\n'.encode()
    )


END = b"--XbX--\r\n"
AUDIO = part("file", "RIFF\x00--Xb\r\n--Xb", '; filename="a.wav"', "Content-Type: audio/wav\r\n")
TRANSCRIPTION = AUDIO + part("model", "whisper-1") + part("language", "en") + END


class Read:
    """What came of a body: what would have been passed on, and the answers in their order."""

    def __init__(self, reader: ModelReader, *pieces: bytes) -> None:
        self.passed = b""
        self.answers: list[Answer] = [reader.answer]
        for piece in pieces:
            self._take(reader, reader.feed(piece))
        self.before_close = reader.answer
        self._take(reader, reader.close())
        self.answer = reader.answer

    def _take(self, reader: ModelReader, data: bytes) -> None:
        assert not data or isinstance(reader.answer, Known)
        self.passed += data
        if reader.answer != self.answers[-1]:
            self.answers.append(reader.answer)


def read(*pieces: bytes, kind: bytes = JSON, coding: bytes = b"", limit: int = 2**20) -> Read:
    return Read(ModelReader(kind, coding, limit), *pieces)


def answer_of(reader: ModelReader) -> Answer:
    return reader.answer  # which a type checker takes to stay what it was


def reason(answer: Answer | None) -> str:
    assert isinstance(answer, Hidden)
    assert answer.reason.endswith(".")
    return answer.reason


def byte_by_byte(body: bytes) -> list[bytes]:
    return [body[at : at + 1] for at in range(len(body))]


# JSON bodies


def test_the_model_is_known_as_soon_as_it_is_named_and_the_body_passes_from_there() -> None:
    reader = ModelReader(JSON)
    assert reader.feed(b'{"max_tokens": 1, "model": "gpt-') == b""
    assert answer_of(reader) == UNDECIDED
    assert reader.feed(b'5"') == b'{"max_tokens": 1, "model": "gpt-5"'
    assert answer_of(reader) == Known("gpt-5")
    assert reader.feed(b', "messages": [') == b', "messages": ['
    assert reader.feed(b"]}") == b"]}"
    assert reader.close() == b""
    assert answer_of(reader) == Known("gpt-5")


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (CHAT, "gpt-5"),
        (b'{"model":"gpt-5"}', "gpt-5"),
        (b' \r\n\t{ "model" : "gpt-5" } \n', "gpt-5"),
        (b'{"mod\\u0065l": "g\\u0070t-5"}', "gpt-5"),
        (b'{"\\u006D\\u006f\\u0064\\u0065\\u006c": "openai\\/gpt-5"}', "openai/gpt-5"),
        (b'{"a": {"model": "o1"}, "b": [{"model": "o3"}], "model": "gpt-5"}', "gpt-5"),
        (b'{"model": "gpt-5", "metadata": {"Model": 1, "model": null}}', "gpt-5"),
        (b'{"model": "gpt-5", "model": "gpt-5"}', "gpt-5"),
        (b'{"model": "gpt-5", "m\\u006fdel": "gpt-5"}', "gpt-5"),
        (b'{"model_name": "a", "mode": "b", "amodel": "c", "model": "gpt-5"}', "gpt-5"),
        (b'{"model": "arn:aws:bedrock:eu-1::x/y.z_1@2~3+4"}', "arn:aws:bedrock:eu-1::x/y.z_1@2~3+4"),
        ('{"model": "gpt-5", "prompt": "Zürich 😀 \u2028"}'.encode(), "gpt-5"),
        (b'{"model": "gpt-5", "seed": 9223372036854775807, "x": -0.1E-5}', "gpt-5"),
        (b'{"model": "' + b"m" * 256 + b'"}', "m" * 256),
    ],
)
def test_a_json_body_names_its_model(body: bytes, model: str) -> None:
    for pieces in ([body], byte_by_byte(body)):
        found = read(*pieces)
        assert found.answers == [UNDECIDED, Known(model)]
        assert found.passed == body


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no body"),
        (b'{"messages": []}', "no 'model'"),
        (b'{"a": {"model": "gpt-5"}}', "no 'model'"),
        (b"{}", "no 'model'"),
        (b"  ", "ends in the middle"),
        (b'{"model": 5}', "not a string"),
        (b'{"model": null}', "not a string"),
        (b'{"model": ["gpt-5"]}', "not a string"),
        (b'{"model": {"model": "gpt-5"}}', "not a string"),
        (b'{"model": ""}', "name of the model"),
        (b'{"model": "gpt 5"}', "name of the model"),
        (b'{"model": "gpt-5\\n"}', "name of the model"),
        (b'{"model": "gpt-5\\u0000"}', "name of the model"),
        (b'{"model": "gpt-5\\ud800"}', "name of the model"),
        (b'{"model": "\\ud83d\\u0067pt-5"}', "name of the model"),
        (b'{"model": "' + b"m" * 257 + b'"}', "name of the model"),
        ('{"model": "gpt-\uff15"}'.encode(), "name of the model"),
        (b'{"Model": "gpt-5"}', "taken for 'model'"),
        (b'{"MODEL": "gpt-5"}', "taken for 'model'"),
        (b'{"model ": "gpt-5"}', "taken for 'model'"),
        (b'{"model[]": "gpt-5"}', "taken for 'model'"),
        (b'{"model\\u0000x": "gpt-5"}', "taken for 'model'"),
        ('{"model\u017f": "gpt-5"}'.encode(), "taken for 'model'"),
        (b'{"mod\\ud800el": "gpt-5"}', "taken for 'model'"),
        (b'["model", "gpt-5"]', "not a JSON object"),
        (b'[{"model": "gpt-5"}]', "not a JSON object"),
        (b'"gpt-5"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b'\xef\xbb\xbf{"model": "gpt-5"}', "not JSON"),
        ('{"model": "gpt-5"}'.encode("utf-16"), "not JSON"),
        ('{"model": "gpt-5"}'.encode("utf-16-le"), "not JSON"),
        ('{"model": "gpt-5"}'.encode("utf-32"), "not JSON"),
        (b"{'model': 'gpt-5'}", "not JSON"),
        (b'{model: "gpt-5"}', "not JSON"),
        (b'{/* "model": "o1", */ "model": "gpt-5"}', "not JSON"),
        (b'{"a": "\xc1\xad", "model": "gpt-5"}', "not JSON"),
        (b'{"\xff": 1, "model": "gpt-5"}', "not JSON"),
        (b'{"a": "\n", "model": "gpt-5"}', "not JSON"),
        (b'{"a": NaN, "model": "gpt-5"}', "not JSON"),
        (b'{"a": 18446744073709551616, "model": "gpt-5"}', "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b', "model": "gpt-5"}', "not JSON"),
        (b'{"a": 1e999, "model": "gpt-5"}', "not JSON"),
        (b'{"models": ["o1"], "model": "gpt-5"}', "more models"),
        (b"model=gpt-5", "not JSON"),
    ],
)
def test_a_json_body_that_hides_its_model_is_refused_before_any_of_it_passes(body: bytes, why: str) -> None:
    for pieces in ([body], byte_by_byte(body)):
        found = read(*pieces)
        assert why in reason(found.answer)
        assert found.passed == b""


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (b', "model": "o1-pro"}', "several models"),
        (b', "mod\\u0065l": "o1-pro"}', "several models"),
        (b', "model": null}', "not a string"),
        (b', "Model": "gpt-5"}', "taken for 'model'"),
        (b', "MODEL": "o1-pro"}', "taken for 'model'"),
        (b', "model": "gpt-5?"}', "name of the model"),
        (b', "models": ["o1-pro"]}', "more models, in 'models'"),
        (b', "fallbacks": [{"model": "o1-pro"}]}', "more models, in 'fallbacks'"),
        (b', "fallback_models": ["o1-pro"]}', "more models"),
        (b'} {"model": "o1-pro"}', "not JSON"),
        (b'}\n{"model": "gpt-5"}', "not JSON"),
        (b"} trailing", "not JSON"),
        (b"}\x00", "not JSON"),
        (b"}]", "not JSON"),
        (b'}"', "not JSON"),
        (b'}"}', "not JSON"),
        (b"} }", "not JSON"),
        (b"}tr", "not JSON"),
        (b"}1", "not JSON"),
        (b"}\x0b", "not JSON"),
        (b",}", "not JSON"),
        (b', "a": 1', "ends in the middle"),
        (b', "model": "o1-pr', "ends in the middle"),
    ],
)
def test_a_body_that_turns_out_to_say_two_things_never_passes_to_its_end(rest: bytes, why: str) -> None:
    start = b'{"messages": [], "model": "gpt-5"'
    found = read(start, *byte_by_byte(rest))
    assert found.answers[:2] == [UNDECIDED, Known("gpt-5")]
    assert why in reason(found.answer)
    assert len(found.answers) == 3
    assert (start + rest).startswith(found.passed)
    # What an upstream got by then is no whole request, or one for the allowed model alone.
    assert b'o1-pro"' not in found.passed
    with contextlib.suppress(json.JSONDecodeError):
        assert json.loads(found.passed) == {"messages": [], "model": "gpt-5"}
    assert read(start + rest).answer == found.answer


def test_nothing_comes_after_a_refusal() -> None:
    reader = ModelReader(JSON)
    reader.feed(b"[")
    first = reader.answer
    assert reason(first)
    assert reader.feed(b'{"model": "gpt-5"}') == b""
    assert reader.close() == b""
    assert reader.answer is first


KEYS = st.sampled_from(["model", "mod\\u0065l", "Model", "models", "messages", "a", "\\u0000", "é"])
VALUES = st.recursive(
    st.sampled_from(
        ['"gpt-5"', '"o1"', '"\\u0067pt-5"', "1", "-1.5e3", "null", "true", '""', '"é😀"', '"\\"}"']
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(KEYS, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f'"{key}": {value}' for key, value in pairs) + "}"
        ),
    ),
    max_leaves=8,
)
BODIES = st.one_of(
    st.lists(st.tuples(KEYS, VALUES), max_size=5).map(
        lambda pairs: ("{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}").encode()
    ),
    VALUES.map(str.encode),
    st.binary(max_size=40),
)


@given(BODIES, st.lists(st.integers(0, 200), max_size=8), st.sampled_from([2**20, 30]))
def test_any_split_of_a_body_gives_the_same_answer(body: bytes, cuts: list[int], limit: int) -> None:
    whole = read(body, limit=limit)
    ends = [0, *sorted(cuts), len(body)]
    split = read(*[body[start:end] for start, end in itertools.pairwise(ends) if end > start], limit=limit)
    assert split.answer == whole.answer
    assert body.startswith(split.passed)
    if isinstance(whole.answer, Known):
        assert split.passed == body


@given(BODIES)
def test_a_known_model_is_what_each_way_to_read_the_body_gives(body: bytes) -> None:
    answer = read(body).answer
    if isinstance(answer, Known):
        first = dict(reversed(json.loads(body, object_pairs_hook=list)))
        assert json.loads(body)["model"] == first["model"] == answer.model
        assert [key for key in first if key.lower() == "model"] == ["model"]


# Long tokens


def test_the_middle_of_an_image_passes_as_it_comes() -> None:
    reader = ModelReader(JSON)
    assert reader.feed(b'{"model": "gpt-5", "image": "')
    for _ in range(100):
        assert len(reader.feed(b"iVBORw0K" * 2048)) == 16384
    assert reader.feed(b'"}') + reader.close() == b'"}'
    assert reader.answer == Known("gpt-5")


def test_a_long_text_is_held_up_by_no_more_than_a_part_of_itself() -> None:
    reader = ModelReader(JSON)
    sent = len(start := b'{"model": "gpt-5", "text": "')
    passed = len(reader.feed(start))
    piece = b'\\"quoted\\" {text} ' * 60
    for _ in range(1000):
        sent += len(piece)
        passed += len(reader.feed(piece))
        assert sent - passed <= sent / 2 + 8192
    passed += len(reader.feed(b'"}')) + len(reader.close())
    assert passed == sent + 2
    assert reader.answer == Known("gpt-5")


def test_a_second_model_behind_a_long_token_is_found() -> None:
    for filling in (b"iVBORw0K" * 100, b'\\"' * 400, b"\\\\" * 400):
        reader = ModelReader(JSON)
        passed = reader.feed(b'{"model": "gpt-5", "text": "')
        for _ in range(300):
            passed += reader.feed(filling)
        for piece in byte_by_byte(b'", "model": "o1-pro"}'):
            passed += reader.feed(piece)
        passed += reader.close()
        assert "several models" in reason(reader.answer)
        assert b"o1-pro" not in passed
        assert not passed.endswith(b"}")


def test_a_second_model_in_single_quotes_behind_a_gap_does_not_pass() -> None:
    # Some parsers take them, and this one is told of a long gap only now and then.
    reader = ModelReader(JSON)
    passed = reader.feed(b'{"model": "gpt-5"')
    for _ in range(300):
        passed += reader.feed(b" " * 1000)
    for piece in (b" ", b",", b"'model'", b": 'o1-pro'", b"}"):
        passed += reader.feed(piece)
    passed += reader.close()
    assert "not JSON" in reason(reader.answer)
    assert b"model'" not in passed


def test_the_model_behind_a_long_token_is_found() -> None:
    body = b'{"text": "' + b"x" * 300_000 + b'", "model": "gpt-5"}'
    found = read(*(body[at : at + 1000] for at in range(0, len(body), 1000)))
    assert found.answer == Known("gpt-5")
    assert found.passed == body


def test_a_token_under_way_is_not_read_again_and_again() -> None:
    reader = ModelReader(JSON)
    reader.feed(b'{"model": "gpt-5", "text": "')
    for _ in range(20_000):
        reader.feed(b'\\"')
    body = reader._body
    assert isinstance(body, JSONBody)
    # Four times the token, and its first 4 KiB again for each piece of two bytes.
    assert body._work <= 4 * 40_030 + 4096 * 2048


def test_a_token_that_fills_memory_is_refused_though_the_model_is_known() -> None:
    reader = ModelReader(JSON, limit=10_000)
    reader.feed(b'{"model": "gpt-5", "short": [' + b'"' + b"x" * 5000 + b'",' * 1)
    for _ in range(10):
        reader.feed(b'"' + b"y" * 5000 + b'",')
    assert reader.answer == Known("gpt-5")
    reader.feed(b'"')
    for _ in range(30):
        reader.feed(b"z" * 1000)
    assert "more than 10000 bytes" in reason(reader.answer)


# Limits


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_model_that_comes_too_late_is_hidden(size: int) -> None:
    start = b'{"messages": "' + b"x" * 960 + b'", "model": "m"'
    body = start + b', "n": 1' * 500 + b"}"
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert read(*pieces, limit=len(start)).answer == Known("m")
    late = read(*pieces, limit=len(start) - 1)
    assert f"within {len(start) - 1} bytes" in reason(late.answer)
    assert late.passed == b""


def test_a_body_that_goes_on_for_long_behind_its_model_passes() -> None:
    pieces = [b'{"model": "gpt-5", "messages": ["x"', *[b', "abc"'] * 2000, b"]}"]
    found = read(*pieces, limit=1000)
    assert found.answer == Known("gpt-5")
    assert found.passed == b"".join(pieces)


def test_bytes_from_which_nothing_comes_count_too() -> None:
    reader = ModelReader(JSON, b"gzip", limit=10_000)
    for _ in range(10_000 // 20 + 1):
        assert reader.feed(gzip.compress(b"", mtime=0)) == b""
    assert "within 10000 bytes" in reason(reader.answer)


# Compressed bodies

PACKED = {
    "gzip": gzip.compress(CHAT, mtime=0),
    "deflate": zlib.compress(CHAT),
    "br": brotli.compress(CHAT),
    "zstd": zstandard.ZstdCompressor().compress(CHAT),
    "gzip, zstd": zstandard.ZstdCompressor().compress(gzip.compress(CHAT, mtime=0)),
    "identity": CHAT,
    "": CHAT,
}


@pytest.mark.parametrize("coding", list(PACKED))
def test_a_compressed_body_is_read_in_a_copy_and_passes_as_it_came(coding: str) -> None:
    body = PACKED[coding]
    for pieces in ([body], byte_by_byte(body)):
        found = read(*pieces, coding=coding.encode())
        assert found.answer == Known("gpt-5")
        assert found.passed == body


@pytest.mark.parametrize(
    ("coding", "body", "why"),
    [
        (b"compress", CHAT, "not known here"),
        (b"gzip", CHAT, "cannot be decompressed"),
        (b"gzip", PACKED["gzip"] + b"junk", "cannot be decompressed"),
        (b"gzip", PACKED["gzip"] + gzip.compress(b'{"model": "o1-pro"}', mtime=0), "not JSON"),
        (b"gzip", gzip.compress(b'{"a": "' + bytes(3_000_000), mtime=0), "too large"),
        (b"br", brotli.compress(b"{" + b" " * 50_000_000), "too large"),
        (b"zstd", zstandard.ZstdCompressor().compress(b"{" + b" " * 50_000_000), "too large"),
        (b"", PACKED["gzip"], "not JSON"),
    ],
)
def test_a_compressed_body_that_cannot_be_read_is_refused(coding: bytes, body: bytes, why: str) -> None:
    found = read(body, coding=coding)
    assert why in reason(found.answer)
    assert found.passed == b""


def test_a_compressed_body_that_is_not_whole_is_not_completed() -> None:
    found = read(PACKED["gzip"][:-1], coding=b"gzip")
    assert found.before_close == Known("gpt-5")
    assert "cannot be decompressed" in reason(found.answer)


def test_a_second_model_in_a_compressed_body_is_found_before_its_end_passes() -> None:
    noise = random.Random(4)
    text = "".join(noise.choices("abcdefghijklmnop", k=60_000))
    for coding, packed in (
        (
            b"gzip",
            gzip.compress(body := f'{{"model": "gpt-5", "a": "{text}", "model": "o1"}}'.encode(), mtime=0),
        ),
        (b"br", brotli.compress(body)),
        (b"zstd", zstandard.ZstdCompressor().compress(body)),
    ):
        found = read(*(packed[at : at + 100] for at in range(0, len(packed), 100)), coding=coding)
        assert "several models" in reason(found.answer)
        assert len(found.passed) < len(packed)


# Content types


@pytest.mark.parametrize(
    "kind",
    [
        b"",
        b"application/json",
        b"Application/JSON; charset=UTF-8",
        b'application/json;charset="utf-8"',
        b"application/json ; x=y; charset=us-ascii",
        b"application/json;",
        b"application/vnd.api+json",
        b"text/json",
        b"text/plain;charset=UTF-8",
    ],
)
def test_json_is_read_by_each_name_that_upstreams_take_it_by(kind: bytes) -> None:
    assert read(CHAT, kind=kind).answer == Known("gpt-5")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (b"application/json; charset=utf-16", "not in UTF-8"),
        (b"application/json; charset=utf-7", "not in UTF-8"),
        (b"application/json; charset=utf-8; charset=utf-7", "twice"),
        (b"application/json, text/plain", "cannot be understood"),
        (b"application/json; charset", "cannot be understood"),
        (b"json", "cannot be understood"),
        (b"\xff/\xfe", "cannot be understood"),
        (b"application/x-www-form-urlencoded", "send it as application/json"),
        (b"application/octet-stream", "send it as application/json"),
        (b"multipart/mixed; boundary=XbX", "send it as application/json"),
        (b"audio/wav", "send it as application/json"),
    ],
)
def test_a_body_of_another_kind_is_refused_at_once(kind: bytes, why: str) -> None:
    reader = ModelReader(kind)
    assert why in reason(reader.answer)
    assert reader.feed(CHAT) == b""
    assert reader.close() == b""


# Forms


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (TRANSCRIPTION, "whisper-1"),
        (TRANSCRIPTION[:-2], "whisper-1"),
        (part("model", "whisper-1") + AUDIO + END, "whisper-1"),
        (part("model", "m") + part("model", "m") + END, "m"),
        (part("model", "m", headers="Content-Type: text/plain; charset=utf-8\r\n") + END, "m"),
        (part("model", "m") + part("timestamp_granularities[]", "word") + END, "m"),
        # As .NET's MultipartFormDataContent writes it.
        (b"--XbX\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n" + END, "m"),
        (
            part("a", "b", "; filename=a.mp3; filename*=utf-8''a%20b.mp3") + part("model", "m") + END,
            "m",
        ),
        (part("image[]", "\x00" * 9, '; filename="ü b.png"') + part("model", "m") + END, "m"),
    ],
)
def test_a_form_names_its_model_wherever_the_field_stands(body: bytes, model: str) -> None:
    for pieces in ([body], byte_by_byte(body)):
        found = read(*pieces, kind=FORM)
        assert found.answers == [UNDECIDED, Known(model)], found.answer
        assert found.passed == body


def test_a_form_passes_from_the_end_of_the_field() -> None:
    reader = ModelReader(FORM)
    assert reader.feed(part("model", "whisper-1")) == b""
    assert reader.feed(b"--XbX\r") == b""
    assert reader.feed(b"\n") == part("model", "whisper-1") + b"--XbX\r\n"
    assert reader.answer == Known("whisper-1")


MODEL = part("model", "m")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not whole"),
        (END, "no field 'model'"),
        (AUDIO + END, "no field 'model'"),
        (MODEL, "not whole"),
        (MODEL + b"--XbX-", "not whole"),
        (MODEL + part("model", "o1") + END, "several models"),
        (part("model", "") + END, "name of the model"),
        (part("model", "m\r\n") + END, "name of the model"),
        (part("model", " m") + END, "name of the model"),
        (part("model", "ü") + END, "name of the model"),
        (part("model", "m" * 2000) + END, "more than 1024"),
        (part("Model", "m") + END, "taken for 'model'"),
        (part("model[]", "m") + END, "taken for 'model'"),
        (part("model[0]", "m") + END, "taken for 'model'"),
        (part(" model", "m") + END, "taken for 'model'"),
        (MODEL + part("models", "m") + END, "more models"),
        (part("model", "m", '; filename="m.txt"') + END, "not plain text"),
        (part("model", "m", headers="Content-Type: application/json\r\n") + END, "not plain text"),
        (part("model", "m", headers="Content-Type: text/plain; charset=utf-16\r\n") + END, "not plain text"),
        (part("model", "m", headers="Content-Transfer-Encoding: base64\r\n") + END, "not plain text"),
        # Headers of parts that could be read in two ways
        (part("mod%65l", "o1") + MODEL + END, "two ways"),
        (part('a\\"; name=\\"model', "o1") + MODEL + END, "two ways"),
        (part("a", "o1", '; name="model"') + MODEL + END, "two ways"),
        (part("a", "o1", "; name*=utf-8''model") + MODEL + END, "two ways"),
        (part("a", "o1", '; filename="\\"; name=\\"model"') + MODEL + END, "two ways"),
        (
            part("a", "o1", headers='Content-Disposition: form-data; name="model"\r\n') + MODEL + END,
            "two ways",
        ),
        (
            part("a", "o1", headers='X: y\nContent-Disposition: form-data; name="model"\r\n') + MODEL + END,
            "two ways",
        ),
        (part("a", "o1", '\r\n ; name="model"') + MODEL + END, "delimited"),
        (b'--XbX\r\nContent-Disposition: attachment; name="model"\r\n\r\nm\r\n' + END, "delimited"),
        (b"--XbX\r\nX: y\r\n\r\nm\r\n" + END, "delimited"),
        (b"--XbX\r\nContent-Disposition: form-data\r\n\r\nm\r\n" + END, "delimited"),
        # Delimiters that only some parsers would see
        (b"preamble\r\n" + MODEL + END, "delimited"),
        (b"\r\n" + MODEL + END, "delimited"),
        (b'{"model": "o1"}\r\n' + MODEL + END, "delimited"),
        (
            part("a", 'x\n--XbX\nContent-Disposition: form-data; name="model"\n\no1') + MODEL + END,
            "delimited",
        ),
        (part("a", "x--XbX--") + MODEL + END, "delimited"),
        (part("a", "x\r\n--XbX \r\n") + MODEL + END, "delimited"),
        (part("a", "x\r\n--XbXX") + MODEL + END, "delimited"),
        (part("a", "x", headers="X: --XbX\r\n") + MODEL + END, "delimited"),
        (b"--XbX\r\n" + MODEL + END, "delimited"),
        (MODEL + END + b"\r\n", "delimited"),
        (MODEL + END + part("model", "o1") + END, "delimited"),
        (MODEL + b"--XbX--x", "delimited"),
        (MODEL + END.replace(b"\r\n", b"\n"), "delimited"),
        (CHAT, "delimited"),
    ],
)
def test_a_form_that_hides_its_model_or_can_be_read_in_two_ways_is_refused(body: bytes, why: str) -> None:
    at_once = read(body, kind=FORM)
    assert why in reason(at_once.answer)
    assert at_once.passed == b""
    slowly = read(*byte_by_byte(body), kind=FORM)
    assert why in reason(slowly.answer)
    assert b"o1" not in slowly.passed
    # What passed while there was nothing wrong with it is no whole form, or one without what was wrong with it.
    assert b"--XbX--" not in slowly.passed or slowly.passed.startswith(MODEL + b"--XbX--")


@pytest.mark.parametrize(
    "boundary",
    [
        b"",
        b"boundary=",
        b"boundary=a; boundary=b",
        b'boundary="a:b"',
        b'boundary="a b"',
        b"boundary=" + b"x" * 71,
    ],
)
def test_a_form_without_a_usable_boundary_is_refused_at_once(boundary: bytes) -> None:
    assert reason(ModelReader(b"multipart/form-data; " + boundary).answer)


def test_a_quoted_boundary_is_taken() -> None:
    assert read(TRANSCRIPTION, kind=b'multipart/form-data; boundary="XbX"').answer == Known("whisper-1")


PARTS = st.sampled_from(
    [
        AUDIO,
        MODEL,
        MODEL,
        part("model", "o1"),
        part("a", "b\r\n"),
        part("a", "\r\n--Xb"),
        END,
        b"--XbX",
        b"\r\n",
        b"x",
    ]
)


@settings(max_examples=300)
@given(st.lists(PARTS, max_size=6).map(b"".join), st.lists(st.integers(0, 400), max_size=8))
def test_any_split_of_a_form_gives_the_same_answer(body: bytes, cuts: list[int]) -> None:
    whole = read(body, kind=FORM)
    ends = [0, *sorted(cuts), len(body)]
    split = read(*[body[start:end] for start, end in itertools.pairwise(ends) if end > start], kind=FORM)
    assert type(split.answer) is type(whole.answer)
    if isinstance(whole.answer, Known):
        assert split.answer == whole.answer
        assert split.passed == body


# Targets


@pytest.mark.parametrize(
    ("family", "path", "model"),
    [
        (Family.GEMINI, b"/v1beta/models/gemini-3-pro:generateContent", "gemini-3-pro"),
        (Family.GEMINI, b"/v1/models/gemini-3-pro:streamGenerateContent", "gemini-3-pro"),
        (Family.GEMINI, b"/v1beta/tunedModels/mine-1:generateContent", "mine-1"),
        (Family.GEMINI, b"/models/gemini-embedding:batchEmbedContents", "gemini-embedding"),
        (Family.GEMINI, b"//v1beta//models/gemini-3-pro:countTokens/", "gemini-3-pro"),
        (Family.GEMINI, b"/v1beta/models/gemini%2D3-pro:generateContent", "gemini-3-pro"),
        (Family.GEMINI, b"/v1beta/%6dodels/gemini-3-pro:generateContent", "gemini-3-pro"),
        (Family.GEMINI, b"/v1beta/Models/gemini-3-pro:generateContent", "gemini-3-pro"),
        (Family.GEMINI, b"/v1/projects/p/locations/l/publishers/google/models/g-3:predict", "g-3"),
        (Family.GEMINI, b"/v1beta/models", None),
        (Family.GEMINI, b"/v1beta/models/gemini-3-pro", None),
        (Family.GEMINI, b"/v1beta/openai/chat/completions", None),
        (Family.GEMINI, b"/v1beta/files/abc:download", None),
        (Family.GEMINI, b"/upload/v1beta/files", None),
        (Family.GEMINI, b"/", None),
        (Family.OPENAI, b"/openai/deployments/my-gpt/chat/completions", "my-gpt"),
        (Family.OPENAI, b"/deployments/my-gpt/embeddings", "my-gpt"),
        (Family.OPENAI, b"/OpenAI/Deployments/my-gpt/chat/completions", "my-gpt"),
        (Family.OPENAI, b"/openai//deployments/my-gpt/chat/completions", "my-gpt"),
        (Family.OPENAI, b"/openai/deployment%73/my%2dgpt/chat/completions", "my-gpt"),
        (Family.OPENAI, b"/openai;a=b/deployments;c/my-gpt/chat/completions", "my-gpt"),
        (Family.OPENAI, b"/openai/deployments", None),
        (Family.OPENAI, b"/openai/deployments/my-gpt", None),
        (Family.OPENAI, b"/v1/chat/completions", None),
        (Family.OPENAI, b"/v1/models/org%2Fname", None),
        (Family.OPENAI, b"/v1/x/openai/deployments/my-gpt/chat", None),
        (Family.OPENAI, b"/v1beta/models/gemini-3-pro:generateContent", None),
        (Family.ANTHROPIC, b"/openai/deployments/my-gpt/chat", None),
        (Family.NONE, b"/v1beta/models/gemini-3-pro:generateContent", None),
    ],
)
def test_a_path_names_a_model_by_the_rules_of_its_family(
    family: Family, path: bytes, model: str | None
) -> None:
    assert model_of_path(family, path) == (None if model is None else Known(model))


@pytest.mark.parametrize(
    ("family", "path"),
    [
        (Family.GEMINI, b"/v1beta/models%2Fgemini-3-pro:generateContent"),
        (Family.GEMINI, b"/v1beta/models/a%2Fgemini-3-pro:generateContent"),
        (Family.GEMINI, b"/v1beta/models/gemini-3-pro%3AgenerateContent"),
        (Family.GEMINI, b"/v1beta/models/a%3Ab:generateContent"),
        (Family.GEMINI, b"/v1beta/models/gemini%252D3:generateContent"),
        (Family.GEMINI, b"/v1beta/models/gemini-3%00:generateContent"),
        (Family.GEMINI, b"/v1beta/models/gemini%3F:generateContent"),
        (Family.GEMINI, b"/v1beta/models/g%C3%A9:generateContent"),
        (Family.GEMINI, b"/v1beta/models/a:b:generateContent"),
        (Family.GEMINI, b"/v1beta/models/:generateContent"),
        (Family.GEMINI, b"/v1beta/models/gemini-3-pro:"),
        (Family.GEMINI, b"/v1beta/models/gemini-3-pro:generateContent/more"),
        (Family.GEMINI, b"/v1beta/dynamic/secret:generateContent"),
        (Family.GEMINI, b"/models:generateContent"),
        (Family.GEMINI, b"/v1/projects/p/locations/l/endpoints/7:generateContent"),
        (Family.OPENAI, b"/openai%2Fdeployments/my-gpt/chat/completions"),
        (Family.OPENAI, b"/openai/deployments%2fmy-gpt/chat/completions"),
        (Family.OPENAI, b"/openai/deployments/my%2Fgpt/chat/completions"),
        (Family.OPENAI, b"/openai/deployments/my-gpt%3Bx/chat/completions"),
        (Family.OPENAI, b"/openai/deployments/my-gpt;x/chat/completions"),
        (Family.OPENAI, b"/openai/%2564eployments/my-gpt/chat/completions"),
    ],
)
def test_a_path_that_could_be_read_in_two_ways_hides_its_model(family: Family, path: bytes) -> None:
    assert reason(model_of_path(family, path))


@pytest.mark.parametrize(
    ("query", "model"),
    [
        (b"model=gpt-realtime", "gpt-realtime"),
        (b"a=b&model=gpt-realtime&c", "gpt-realtime"),
        (b"api-version=1&deployment=my-gpt", "my-gpt"),
        (b"mod%65l=gpt%2Drealtime", "gpt-realtime"),
        (b"model=m&model=m", "m"),
        (b"model=m;model=m", "m"),
        (b"", None),
        (b"limit=1000&models=x&modelling=y", None),
    ],
)
def test_a_query_names_a_model(query: bytes, model: str | None) -> None:
    assert model_of_query(query) == (None if model is None else Known(model))


@pytest.mark.parametrize(
    "query",
    [
        b"model=m&model=o1",
        b"model=m&mod%65l=o1",
        b"model=m;model=o1",
        b"model=m&deployment=o1",
        b"model=m&Model=m",
        b"model[]=m",
        b"model%20=m",
        b"model=",
        b"model",
        b"model=%C3%A9",
        b"model=a+b",
        b"model=%FF",
        b"x=%FF",
        b"x=\xff",
    ],
)
def test_a_query_that_could_be_read_in_two_ways_hides_its_model(query: bytes) -> None:
    assert reason(model_of_query(query))


def test_path_and_query_may_not_differ() -> None:
    path = b"/v1beta/models/gemini-3-pro:generateContent"
    assert model_of_target(Family.GEMINI, path + b"?alt=sse") == Known("gemini-3-pro")
    assert model_of_target(Family.GEMINI, path + b"?model=gemini-3-pro") == Known("gemini-3-pro")
    assert "several models" in reason(model_of_target(Family.GEMINI, path + b"?model=gemini-2"))


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"DELETE"])
def test_who_asks_without_a_body_needs_no_model(method: bytes) -> None:
    assert may_name_none(method, has_body=False, is_websocket=False)
    assert not may_name_none(method, has_body=True, is_websocket=False)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"QUERY", b"get"])
def test_other_methods_need_one(method: bytes) -> None:
    assert not may_name_none(method, has_body=False, is_websocket=False)


def test_a_websocket_needs_one() -> None:
    assert not may_name_none(b"GET", has_body=False, is_websocket=True)


# What is shown


def test_a_reader_shows_its_answer_and_nothing_of_the_body() -> None:
    reader = ModelReader(JSON)
    reader.feed(b'{"secret": "hush", "model": "gpt-5"')
    assert repr(reader) == "<ModelReader Known(model='gpt-5'), 35 bytes read>"
    reader.feed(b"hush")
    assert "hush" not in repr(reader)
    assert "hush" not in reason(reader.answer)
