from __future__ import annotations

from typing import Any

import pytest
from twisted.web.http_headers import Headers

from llmproxy.http.fields import Fields, OutgoingFields, pairs_of

PAIRS = [(b"x-One", b"1"), (b"X-Two", b"2"), (b"X-ONE", b"3")]


@pytest.fixture
def fields() -> Fields:
    return Fields(PAIRS)


def test_they_are_kept_as_they_came(fields: Fields) -> None:
    assert fields.pairs == PAIRS
    assert pairs_of(fields) == PAIRS
    assert list(fields.getAllRawHeaders()) == [(name, [value]) for name, value in PAIRS]


def test_they_are_headers_for_whoever_takes_headers(fields: Fields) -> None:
    assert isinstance(fields, Headers)


def test_no_value_is_shown_by_repr() -> None:
    assert repr(Fields([(b"Authorization", b"Bearer secret")])) == "<Fields [b'Authorization']>"


@pytest.mark.parametrize("name", ["x-one", b"x-one", "X-One", b"X-ONE"])
def test_names_are_found_in_any_case(fields: Fields, name: Any) -> None:
    assert fields.hasHeader(name)
    assert not fields.hasHeader(name + name)
    fields.removeHeader(name)
    assert fields.pairs == [(b"X-Two", b"2")]
    assert not fields.hasHeader(name)


def test_values_are_of_the_type_of_the_name(fields: Fields) -> None:
    assert fields.getRawHeaders(b"x-one") == [b"1", b"3"]
    assert fields.getRawHeaders("x-one") == ["1", "3"]
    assert fields.getRawHeaders(b"x-none") is None
    assert fields.getRawHeaders("x-none", "nothing") == "nothing"


def test_values_are_found_in_their_order(fields: Fields) -> None:
    assert list(fields.values_of(b"x-one")) == [b"1", b"3"]
    assert list(fields.values_of(b"x-none")) == []


def test_what_a_caller_does_with_a_list_of_values_changes_nothing(fields: Fields) -> None:
    fields.getRawHeaders(b"x-one").append(b"4")
    assert fields.getRawHeaders(b"x-one") == [b"1", b"3"]


def test_what_is_added_is_found(fields: Fields) -> None:
    assert not fields.hasHeader(b"x-three")
    fields.addRawHeader("X-Three", "3")
    fields.addRawHeader(b"x-three", b"4")
    assert fields.getRawHeaders(b"x-three") == [b"3", b"4"]
    assert fields.pairs[-2:] == [(b"X-Three", b"3"), (b"x-three", b"4")]


def test_what_is_set_takes_the_place_of_all_of_its_name(fields: Fields) -> None:
    assert fields.hasHeader(b"x-one")
    fields.setRawHeaders(b"X-one", [b"5", b"6"])
    assert fields.pairs == [(b"X-Two", b"2"), (b"X-one", b"5"), (b"X-one", b"6")]
    assert fields.getRawHeaders(b"x-one") == [b"5", b"6"]


def test_text_is_encoded() -> None:
    fields = Fields()
    fields.addRawHeader("X-Text", "caf\xe9")
    assert fields.pairs == [(b"X-Text", b"caf\xc3\xa9")]


@pytest.mark.parametrize("value", [b"a\r\nX-Two: b", b"a\nX-Two: b", b"a\rX-Two: b"])
def test_a_line_break_in_a_value_begins_no_other_field(value: bytes) -> None:
    fields = Fields()
    fields.addRawHeader(b"X-One", value)
    fields.setRawHeaders("X-Two", [value.decode("ascii")])
    assert fields.pairs == [(b"X-One", b"a X-Two: b"), (b"X-Two", b"a X-Two: b")]


def test_a_copy_is_independent(fields: Fields) -> None:
    copied = fields.copy()
    assert copied == fields
    copied.addRawHeader(b"X-More", b"")
    assert copied != fields
    assert fields.pairs == PAIRS


def test_they_equal_fields_only(fields: Fields) -> None:
    assert fields == Fields(PAIRS)
    assert fields != Fields(reversed(PAIRS))
    assert fields != PAIRS
    with pytest.raises(TypeError):
        hash(fields)


def test_the_pairs_of_other_headers_are_read_too() -> None:
    headers = Headers({b"x-one": [b"1", b"3"]})
    assert [(name.lower(), value) for name, value in pairs_of(headers)] == [
        (b"x-one", b"1"),
        (b"x-one", b"3"),
    ]


def test_outgoing_fields_know_who_is_told_of_interim_responses() -> None:
    def informational(code: int, phrase: bytes, fields: Fields) -> None:
        """Nobody calls it here."""

    assert OutgoingFields(PAIRS, informational).informational is informational
    assert OutgoingFields(PAIRS, None).pairs == PAIRS
