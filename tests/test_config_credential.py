from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.credential import Credential, Family, Place
from llmproxy.headers import strip_hop_by_hop
from llmproxy.http.fields import Fields
from llmproxy.http.rules import FRAMING

VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
TOKEN_PUNCTUATION = "!#$%&'*+-.^_`|~"
HOP_BY_HOP = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bearer", (b"Authorization", b"Bearer sk-1")),
        ("x-api-key", (b"x-api-key", b"sk-1")),
        ("header:api-key", (b"api-key", b"sk-1")),
        ("header:Authorization", (b"Authorization", b"sk-1")),
        (f"header:{TOKEN_PUNCTUATION}", (TOKEN_PUNCTUATION.encode(), b"sk-1")),
    ],
)
def test_a_header_carries_the_key(text: str, expected: tuple[bytes, bytes]) -> None:
    credential = Credential.parse(text)
    assert credential.place is Place.HEADER
    assert credential.header("sk-1") == expected


def test_a_query_parameter_carries_the_key() -> None:
    credential = Credential.parse("query:key")
    assert (credential.place, credential.name) == (Place.QUERY, "key")
    assert credential.parameter("AIza-1") == b"key=AIza-1"


@given(st.text(VISIBLE, min_size=1))
def test_any_key_arrives_whole_in_a_query(key: str) -> None:
    carried = Credential.parse("query:key").parameter(key).decode("ascii")
    assert parse_qs(carried, strict_parsing=True, max_num_fields=1) == {"key": [key]}


def test_an_upstream_without_a_key_has_no_place_for_one() -> None:
    assert Credential.parse("none") == Credential(Place.NONE)


@pytest.mark.parametrize("text", ["none", "query:key"])
def test_a_key_that_goes_elsewhere_makes_no_header(text: str) -> None:
    with pytest.raises(ValueError, match="no key goes into a header") as caught:
        Credential.parse(text).header("sk-secret")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["none", "bearer"])
def test_a_key_that_goes_elsewhere_makes_no_query_parameter(text: str) -> None:
    with pytest.raises(ValueError, match="no key goes into a query") as caught:
        Credential.parse(text).parameter("sk-secret")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["bearer", "x-api-key", "header:Api-Key", "query:key", "none"])
def test_a_credential_reads_as_it_was_written(text: str) -> None:
    assert str(Credential.parse(text)) == text


def test_the_long_form_of_a_short_word_means_the_same() -> None:
    assert Credential.parse("header:x-api-key") == Credential.parse("x-api-key")
    assert Credential.parse("header:Authorization") != Credential.parse("bearer")  # it has no scheme


@pytest.mark.parametrize(
    "text", ["", "Bearer", " bearer", "bearer:x", "cookie:x", "none:", "header", "query", ":"]
)
def test_another_word_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be "):
        Credential.parse(text)


@pytest.mark.parametrize(
    "name", ["", "api key", "api:key", "api-key\r\nx", "clé", "a,b", '"a"', "a/b", "\u0661"]
)
def test_a_header_whose_name_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^must be header:NAME"):
        Credential.parse(f"header:{name}")


@pytest.mark.parametrize("name", [*HOP_BY_HOP, "content-length", "host", "expect", "sec-websocket-key"])
@pytest.mark.parametrize("spell", [str.lower, str.title, str.upper])
def test_a_header_that_frames_or_routes_the_request_is_refused(
    name: str, spell: Callable[[str], str]
) -> None:
    with pytest.raises(ValueError, match=r"^names a header that frames or routes the request"):
        Credential.parse(f"header:{spell(name)}")


def test_the_names_tested_above_are_those_that_do_not_reach_an_upstream() -> None:
    assert not strip_hop_by_hop(Fields([(name.encode(), b"x") for name in HOP_BY_HOP])).pairs
    assert {name.decode() for name in FRAMING} <= {*HOP_BY_HOP, "content-length"}


@pytest.mark.parametrize("name", ["", "a b", "a&b", "a=b", "a%20b", "a+b", "a#b", "é", "a\n", "k[]"])
def test_a_parameter_whose_name_is_not_safe_in_a_url_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^must be query:NAME"):
        Credential.parse(f"query:{name}")


@pytest.mark.parametrize("text", ["sk-secret", "bearer sk-secret", "header:sk-secret:x", "query:sk-secret+"])
def test_a_refusal_does_not_show_what_was_found(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Credential.parse(text)
    assert "sk-secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_family_is_named_by_the_word_of_the_setting() -> None:
    assert [Family(word) for word in ("openai", "anthropic", "gemini", "none")] == list(Family)
