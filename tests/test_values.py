from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.values import (
    BaseURL,
    is_loopback,
    parse_base_url,
    parse_ca_file,
    parse_count,
    parse_port,
    parse_proxy,
    parse_seconds,
    parse_word,
    read_secret_file,
)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("openai.example", "must begin with https:// or http:// and a host"),
        ("ftp://openai.example", "must begin with https:// or http:// and a host"),
        ("https:openai.example", "must begin with https:// or http:// and a host"),
        ("https:///v1", "must begin with https:// or http:// and a host"),
        ("https://", "must begin with https:// or http:// and a host"),
        ("https://host:port", "is not a URL that can be read"),
        ("https://host:65536", "is not a URL that can be read"),
        ("https://[::1", "is not a URL that can be read"),
        ("https://host:0", "is out of range"),
        ("https://key@host", "must not hold a user name or password"),
        ("https://user:key@host", "must not hold a user name or password"),
        ("https://host/v1?a=b", "must not hold a query or fragment"),
        ("https://host/v1?", "must not hold a query or fragment"),
        ("https://host/#top", "must not hold a query or fragment"),
        ("https://a b", "has a host that is no host name or address"),
        ("https://höst", "has a host that is no host name or address"),
        ("https://ho_st,x", "has a host that is no host name or address"),
        ("https://:443", "has a host that is no host name or address"),
        ("https://[::zz]", "(is not a URL|has a host that)"),
        ("https://host/a b", "has a path with characters that must be percent-encoded"),
        ("https://host/ä", "has a path with characters that must be percent-encoded"),
        ("https://host/a\\b", "has a path with characters that must be percent-encoded"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        parse_base_url(url)


@pytest.mark.parametrize(
    ("url", "expected", "host_header"),
    [
        ("https://api.openai.com", BaseURL("https", "api.openai.com", 443, ""), b"api.openai.com"),
        ("https://api.openai.com/", BaseURL("https", "api.openai.com", 443, ""), b"api.openai.com"),
        ("https://api.openai.com:443", BaseURL("https", "api.openai.com", 443, ""), b"api.openai.com"),
        ("HTTPS://API.openai.com", BaseURL("https", "api.openai.com", 443, ""), b"api.openai.com"),
        ("http://10.0.0.1", BaseURL("http", "10.0.0.1", 80, ""), b"10.0.0.1"),
        ("http://host:443", BaseURL("http", "host", 443, ""), b"host:443"),
        ("https://host:8443/a/b%20c//", BaseURL("https", "host", 8443, "/a/b%20c"), b"host:8443"),
        ("http://[::1]", BaseURL("http", "::1", 80, ""), b"[::1]"),
        ("http://[2001:db8::1]:8080/x", BaseURL("http", "2001:db8::1", 8080, "/x"), b"[2001:db8::1]:8080"),
    ],
)
def test_a_base_url_is_read(url: str, expected: BaseURL, host_header: bytes) -> None:
    assert parse_base_url(url) == expected
    assert expected.netloc == host_header
    assert parse_base_url(str(expected)) == expected


@pytest.mark.parametrize(
    ("rest", "url"),
    [
        (b"/v1/models", b"https://anthropic.example/base/v1/models"),
        (b"//evil.example/x", b"https://anthropic.example/base//evil.example/x"),
        (b"/", b"https://anthropic.example/base/"),
        (b"/a%2Fb;c?", b"https://anthropic.example/base/a%2Fb;c?"),
    ],
)
def test_a_base_url_is_joined_byte_for_byte(rest: bytes, url: bytes) -> None:
    assert BaseURL("https", "anthropic.example", 443, "/base").join(rest) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host",
        "https://hunter2@host",
        "user:hunter2@host",
        "hunter2",
        "https://hunter2:x@",
    ],
)
def test_no_secret_in_a_base_url_is_shown_by_an_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|is|has) ") as caught:
        parse_base_url(url)
    assert "hunter2" not in str(caught.value)


@given(st.integers(1, 65535))
def test_each_port_is_read(port: int) -> None:
    assert parse_port(str(port)) == port


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    with pytest.raises(ValueError, match=f"^is out of range: {port} "):
        parse_port(port)


@pytest.mark.parametrize("port", ["http", "-1", "+80", "80.0", "8_0", "٨٠", "0x50", "8 0", ""])
def test_a_port_that_is_no_number_is_refused(port: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a port number: ") as caught:
        parse_port(port)
    assert repr(port) in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [("1", 1.0), ("2.5", 2.5), ("1e-3", 0.001), ("86400", 86400.0)])
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ("ten", "is not a number of seconds"),
        ("10s", "is not a number of seconds"),
        ("0", "is out of range"),
        ("-1", "is out of range"),
        ("inf", "is out of range"),
        ("nan", "is out of range"),
        ("86401", "is out of range"),
    ],
)
def test_a_time_that_cannot_be_used_is_refused(seconds: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}: "):
        parse_seconds(seconds)


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("10000", 10_000), (str(2**31), 2**31)])
def test_a_count_is_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "many", "٨", "1_000", str(2**31 + 1), ""])
def test_a_count_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a whole number of at least 1: "):
        parse_count(text)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
def test_a_word_of_visible_ascii_is_read(word: str) -> None:
    assert parse_word(word) == word


@pytest.mark.parametrize("text", ["two words", "line\nbreak", "schlüssel", "tab\tbed", "nul\0", ""])
def test_what_is_not_one_word_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^holds a space, a line break or a character outside ASCII"
    ) as caught:
        parse_word(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"  "])
def test_a_secret_is_read_from_its_file_without_what_ends_the_line(tmp_path: Path, ending: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"hunter2" + ending)
    assert read_secret_file(str(file)) == "hunter2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names an empty file"),
        (b" \n", "names an empty file"),
        (b"\xff\xfe", "names a file that is not text"),
        (b"hunter2 hunter3", "holds a space"),
        (b"hunter2\nhunter3\n", "holds a space"),
    ],
)
def test_a_secret_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        read_secret_file(str(file))
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"), [("hunter2", "No such file or directory"), ("", "Is a directory")]
)
def test_a_secret_file_that_cannot_be_read_is_refused_with_the_reason_but_not_its_path(
    tmp_path: Path, name: str, reason: str
) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=r"^names a file that cannot be read") as caught:
        read_secret_file(str(path))
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_the_name_of_a_file_of_certificates_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    assert parse_ca_file(str(file)) == str(file)


def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificates")
    with pytest.raises(ValueError, match=r"^names a file that holds no PEM certificates"):
        parse_ca_file(str(file))


@pytest.mark.parametrize(
    ("name", "reason"), [("absent", "No such file or directory"), ("", "Is a directory")]
)
def test_the_name_of_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^names a file that cannot be read.*{reason}"):
        parse_ca_file(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "host", "port", "user"),
    [
        ("http://proxy.example:3128", "proxy.example", 3128, None),
        ("http://proxy.example", "proxy.example", None, None),
        ("proxy.example:3128", "proxy.example", 3128, None),
        ("http://[::1]:3128/", "::1", 3128, None),
        ("http://user:hunter2@proxy.example:3128", "proxy.example", 3128, "user"),
    ],
)
def test_the_url_of_an_http_proxy_is_read(text: str, host: str, port: int | None, user: str | None) -> None:
    url = parse_proxy(text)
    assert (url.hostname, url.port, url.username) == (host, port, user)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@proxy.example",
        "socks5://user:hunter2@proxy.example",
        "http://",
        "http://user:hunter2@",
        "http://user:hunter2@host:port",
        "http://user:hunter2@host:99999",
        "http://user:hunter2@[::1",
    ],
)
def test_what_is_no_http_proxy_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not the URL of an HTTP proxy") as caught:
        parse_proxy(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("::2", False),
        ("localhost.example", False),
    ],
)
def test_a_host_that_is_this_machine_is_known(host: str, here: bool) -> None:
    assert is_loopback(host) is here
