from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmproxy.config import Credential
from llmproxy.target import RefusedTarget, Target, seal, split

VISIBLE = st.binary(max_size=60).map(lambda data: bytes(0x21 + byte % 0x5E for byte in data))


@pytest.mark.parametrize(
    ("raw", "prefix", "rest"),
    [
        (b"/openai/v1/models", b"openai", b"/v1/models"),
        (b"/openai", b"openai", b""),
        (b"/openai/", b"openai", b"/"),
        (b"/openai?limit=1", b"openai", b"?limit=1"),
        (b"/", b"", b""),
        (b"/?", b"", b"?"),
        (b"//openai/v1", b"", b"/openai/v1"),
        (b"/openai//evil.example/x", b"openai", b"//evil.example/x"),
        (b"/openai/v1/a%2Fb%20c", b"openai", b"/v1/a%2Fb%20c"),
        (b"/openai/v1/a%2fb%E4%zz%", b"openai", b"/v1/a%2fb%E4%zz%"),
        (b"/openai/v1;x=1/y;", b"openai", b"/v1;x=1/y;"),
        (b"/openai;x/v1", b"openai;x", b"/v1"),
        (b"/openai/v1?", b"openai", b"/v1?"),
        (b"/openai/v1?a=1&a=2&b", b"openai", b"/v1?a=1&a=2&b"),
        (b"/openai/v1?a=../b&c=%2e%2e/d\\", b"openai", b"/v1?a=../b&c=%2e%2e/d\\"),
        (b'/openai/v1?x=[|]"{}`^<>', b"openai", b'/v1?x=[|]"{}`^<>'),
        (b"/openai/v1/.well-known/...", b"openai", b"/v1/.well-known/..."),
        (b"/openai/a..b/c./..d/%2e%2e%2e", b"openai", b"/a..b/c./..d/%2e%2e%2e"),
        (b"/OpenAI/v1", b"OpenAI", b"/v1"),
    ],
)
def test_a_target_is_split_behind_its_first_segment_and_kept_as_it_is(
    raw: bytes, prefix: bytes, rest: bytes
) -> None:
    assert split(raw) == Target(prefix, rest)


@pytest.mark.parametrize(
    "raw",
    [
        b"/openai/../anthropic/v1",
        b"/openai/..",
        b"/openai/.",
        b"/openai/./v1",
        b"/openai/v1/..?x",
        b"/..",
        b"/./openai",
        b"/../openai",
        b"//../openai",
        b"/openai/%2e%2e/anthropic",
        b"/openai/%2E%2e",
        b"/openai/.%2e/anthropic",
        b"/openai/%2e./anthropic",
        b"/openai/%2e",
        b"/openai/v1%2f..%2fx",
        b"/openai/..%2Fanthropic",
        b"/openai/%252e%252e/anthropic",
        b"/openai/%25252e%25252e/anthropic",
        b"/openai/%25%32%65%25%32%65/anthropic",
        b"/openai/..;/anthropic",
        b"/openai/..;x=1/anthropic",
        b"/openai/.;x/anthropic",
        b"/openai/%2e%2e%3bx/anthropic",
        b"/openai/%252e.;x/anthropic",
        b"/openai;x/..;y/anthropic",
        b"/openai/..%3Fx",
        b"/openai/..%3fx/anthropic",
        b"/openai/..%23x",
        b"/openai/%2e%2e%3f",
        b"/openai/.%253Fx",
        b"/openai/v1/..%2523",
    ],
)
def test_a_dot_segment_is_refused_however_it_is_spelled(raw: bytes) -> None:
    with pytest.raises(RefusedTarget, match="dot segment"):
        split(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"/openai\\v1",
        b"/openai/v1\\..\\x",
        b"/openai/%5c",
        b"/openai/%5C..",
        b"/openai/a%255cb",
        b"/\\evil.example",
    ],
)
def test_a_backslash_in_the_path_is_refused_however_it_is_spelled(raw: bytes) -> None:
    with pytest.raises(RefusedTarget, match="backslash"):
        split(raw)


def encoded(path: bytes, times: int) -> bytes:
    """A path with a percent-encoded byte in it, itself encoded so many times over."""
    return path + b"%" + b"25" * (times - 1) + b"61"


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_path_that_is_encoded_a_few_times_over_is_kept_as_it_is(times: int) -> None:
    raw = encoded(b"/openai/v1/", times)
    assert split(raw) == Target(b"openai", raw[len(b"/openai") :])


@pytest.mark.parametrize("times", [4, 5, 1000, 5000])
def test_a_path_that_is_encoded_many_times_over_is_refused(times: int) -> None:
    with pytest.raises(RefusedTarget, match="several times over"):
        split(encoded(b"/openai/v1/", times))


def test_a_query_may_be_encoded_as_often_as_it_likes() -> None:
    raw = encoded(b"/openai/v1?x=", 50)
    assert split(raw).rest == raw[len(b"/openai") :]


@pytest.mark.parametrize(
    "raw", [b"/%6fpenai/v1", b"/openai%2fv1", b"/open%61i", b"/%2e%2e/x", b"/openai%", b"/%68ealthz"]
)
def test_a_prefix_with_encodings_is_refused(raw: bytes) -> None:
    with pytest.raises(RefusedTarget, match="first path segment"):
        split(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"http://proxy/openai/v1",
        b"https://evil.example/",
        b"*",
        b"evil.example:443",
        b"",
        b"openai/v1",
        b"?x",
        b"\\openai",
    ],
)
def test_a_target_that_is_not_in_origin_form_is_refused(raw: bytes) -> None:
    with pytest.raises(RefusedTarget, match="must be a path that starts with '/'"):
        split(raw)


@pytest.mark.parametrize(
    "raw", [b"/openai/\xe4", b"/openai/v1?q=\xff", b"/\x80", b"/openai/ x", b"/openai/\t", b"/openai/\x7f"]
)
def test_a_byte_outside_visible_ascii_is_refused(raw: bytes) -> None:
    with pytest.raises(RefusedTarget, match="outside visible ASCII"):
        split(raw)


@pytest.mark.parametrize("raw", [b"/openai/v1#top", b"/openai#", b"/openai/v1?x=#"])
def test_a_fragment_is_refused(raw: bytes) -> None:
    with pytest.raises(RefusedTarget, match="'#'"):
        split(raw)


@given(st.one_of(st.binary(max_size=60), VISIBLE).map(lambda data: b"/" + data))
def test_an_accepted_target_is_never_changed(raw: bytes) -> None:
    try:
        target = split(raw)
    except RefusedTarget:
        assume(False)
    assert b"/" + target.prefix + target.rest == raw
    assert target.rest[:1] in (b"", b"/", b"?")
    assert not set(b"/?%\\") & set(target.prefix)


@given(VISIBLE)
def test_any_target_of_plain_segments_is_accepted(tail: bytes) -> None:
    raw = b"/openai/x" + bytes(byte for byte in tail if byte not in b"%\\#./")
    assert split(raw) == Target(b"openai", raw[len(b"/openai") :])


def spelled(data: st.DataObject, byte: int, depth: int) -> bytes:
    """One byte, plain or percent-encoded up to so many times."""
    text = bytes([byte])
    for _ in range(data.draw(st.integers(0, depth))):
        form = data.draw(st.sampled_from([b"%%%02x", b"%%%02X"]))
        text = (
            b"".join(form % one for one in text) if data.draw(st.booleans()) else text.replace(b"%", b"%25")
        )
        if text == bytes([byte]):
            text = form % byte
    return text


@given(
    data=st.data(),
    segment=st.sampled_from([b".", b".."]),
    parameters=st.sampled_from([b"", b";", b";x=1", b"%3Fx", b"%23"]),
    before=st.sampled_from([b"/openai", b"/openai/v1", b"/openai/a;b", b"/openai/"]),
    after=st.sampled_from([b"", b"/", b"/anthropic", b"?x=1"]),
)
def test_a_dot_segment_is_refused_in_whatever_encoding(
    data: st.DataObject, segment: bytes, parameters: bytes, before: bytes, after: bytes
) -> None:
    hidden = b"".join(spelled(data, byte, 2) for byte in segment + parameters)
    slash = b"/" if before == b"/openai" else spelled(data, ord("/"), 2)
    with pytest.raises(RefusedTarget, match="dot segment"):
        split(before + slash + hidden + after)


TOKEN = b"llmp_T0k~n.of-alice/="
KEY = Credential.parse("query:key").parameter("AIza+real/&=")


@pytest.mark.parametrize(
    ("raw", "sealed"),
    [
        (b"", b""),
        (b"/v1/models", b"/v1/models"),
        (b"/v1?", b"/v1?"),
        (b"/v1?a=1&a=2&b&c=&&=x", b"/v1?a=1&a=2&b&c=&&=x"),
        (b"/v1?key=another", b"/v1?key=another"),
        (b"/v1?a=%2f%zz+%20;b=[|]?x#", b"/v1?a=%2f%zz+%20;b=[|]?x#"),
        (b"/v1?key=" + TOKEN, b"/v1"),
        (b"/v1?whatever=" + TOKEN, b"/v1"),
        (b"/v1?a=1&key=" + TOKEN, b"/v1?a=1"),
        (b"/v1?key=" + TOKEN + b"&a=1&", b"/v1?a=1&"),
        (b"/v1?a=1&key=" + TOKEN + b"&b=%20&access_token=" + TOKEN, b"/v1?a=1&b=%20"),
        (b"/v1?a=x" + TOKEN, b"/v1?a=x" + TOKEN),
        (b"?key=" + TOKEN + b"&a", b"?a"),
    ],
)
def test_the_token_goes_from_a_query_and_all_else_stays(raw: bytes, sealed: bytes) -> None:
    assert seal(raw, TOKEN, None) == sealed


@pytest.mark.parametrize(
    ("raw", "sealed"),
    [
        (b"/v1", b"/v1?" + KEY),
        (b"/v1?", b"/v1?" + KEY),
        (b"/v1?a=1", b"/v1?a=1&" + KEY),
        (b"/v1?a&&b=", b"/v1?a&&b=&" + KEY),
        (b"/v1?a&", b"/v1?a&&" + KEY),
        (b"/v1?key=" + TOKEN, b"/v1?" + KEY),
        (b"/v1?key=another&a=1&%6bey=one&key", b"/v1?a=1&" + KEY),
        (b"/v1?KEY=1&keys=2&key[]=3", b"/v1?KEY=1&keys=2&key[]=3&" + KEY),
        (b"/v1?other=" + TOKEN + b"&key=" + TOKEN, b"/v1?" + KEY),
    ],
)
def test_the_key_stands_once_in_the_query_behind_what_else_is_there(raw: bytes, sealed: bytes) -> None:
    assert seal(raw, TOKEN, KEY) == sealed


@given(st.data())
def test_the_token_goes_from_a_query_in_whatever_encoding(data: st.DataObject) -> None:
    pairs = data.draw(st.lists(VISIBLE.map(lambda pair: pair.replace(b"&", b"")), max_size=4))
    assume(all(TOKEN not in pair and b"%" not in pair for pair in pairs))
    value = b"".join(
        data.draw(st.sampled_from([bytes([byte]), b"%%%02x" % byte, b"%%%02X" % byte])) for byte in TOKEN
    )
    name = data.draw(st.sampled_from([b"key", b"token", b"", b"a.b%20"]))
    at = data.draw(st.integers(0, len(pairs)))
    raw = b"/v1?" + b"&".join([*pairs[:at], name + b"=" + value, *pairs[at:]])
    kept = b"&".join(pairs)
    assert seal(raw, TOKEN, None) == (b"/v1?" + kept if pairs else b"/v1")


@given(VISIBLE)
def test_a_target_without_the_token_is_never_changed(rest: bytes) -> None:
    raw = b"/v1" + rest
    assert seal(raw, TOKEN, None) == raw


@given(VISIBLE.map(lambda query: query.replace(b"%", b"")))
def test_what_stands_before_the_key_is_never_changed(query: bytes) -> None:
    assume(not any(pair.partition(b"=")[0] == b"key" for pair in query.split(b"&")))
    sealed = seal(b"/v1?" + query, TOKEN, KEY)
    assert sealed == (b"/v1?" + query + b"&" + KEY if query else b"/v1?" + KEY)
