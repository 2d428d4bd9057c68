from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config import (
    DEFAULT_PORT,
    BaseURL,
    Client,
    ConfigError,
    Timeouts,
    Upstream,
    load,
    load_port,
    parse_base_url,
    parse_port,
)
from tests.support import ANTHROPIC_KEY, CONFIG, ENVIRON, OPENAI_KEY, TOKEN

REQUIRED = ["OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "PROXY_TOKEN"]
SECRETS = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "PROXY_TOKEN"]


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    return caught.value.problems


def problem(**changed: str) -> str:
    """The one problem of an otherwise good environment."""
    (found,) = problems({**ENVIRON, **changed})
    return found


def test_the_five_required_settings_are_enough() -> None:
    config = load(ENVIRON)
    openai, anthropic = config.upstreams
    assert openai == Upstream(
        "openai", BaseURL("https", "openai.example", 443, ""), "Authorization", OPENAI_KEY
    )
    assert anthropic == Upstream(
        "anthropic", BaseURL("https", "anthropic.example", 443, "/base"), "x-api-key", ANTHROPIC_KEY
    )
    assert config.clients == (Client("default", TOKEN),)
    assert config.port == DEFAULT_PORT == 33000
    assert config.timeouts == Timeouts(connect=10.0, first_byte=600.0, idle=600.0)


def test_optional_settings_are_used() -> None:
    config = load(
        {
            **ENVIRON,
            "PORT": "8080",
            "ANTHROPIC_VERSION": "2023-06-01",
            "UPSTREAM_CONNECT_TIMEOUT": "1",
            "UPSTREAM_FIRST_BYTE_TIMEOUT": "2.5",
            "UPSTREAM_IDLE_TIMEOUT": "86400",
        }
    )
    assert config.port == 8080
    assert config.timeouts == Timeouts(connect=1.0, first_byte=2.5, idle=86400.0)
    openai, anthropic = config.upstreams
    assert openai.default_headers == ()
    assert anthropic.default_headers == ((b"anthropic-version", b"2023-06-01"),)


def test_space_around_a_value_is_no_part_of_it() -> None:
    assert load({name: f" {value}\n" for name, value in ENVIRON.items()}) == load(ENVIRON)


def test_a_config_cannot_be_changed() -> None:
    config = load(ENVIRON)
    for thing in (
        config,
        config.timeouts,
        config.clients[0],
        config.upstreams[0],
        config.upstreams[0].base_url,
    ):
        name = attrs.fields(type(thing))[0].name
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(thing, name, None)


def test_no_secret_is_shown_by_repr() -> None:
    shown = repr(load(ENVIRON)) + repr(CONFIG.upstreams) + repr(CONFIG.clients)
    assert "openai.example" in shown
    for secret in (OPENAI_KEY, ANTHROPIC_KEY, TOKEN.decode("ascii")):
        assert secret not in shown


def test_all_that_is_missing_is_named_at_once() -> None:
    found = problems({})
    assert len(found) == len(REQUIRED)
    for name, text in zip(REQUIRED, found, strict=True):
        assert text.startswith(f"{name} is not set")


def test_all_that_is_malformed_is_named_at_once_in_the_text_of_the_error() -> None:
    environ = {
        **dict.fromkeys(REQUIRED, ""),
        "PORT": "70000",
        "ANTHROPIC_VERSION": "two words",
        "UPSTREAM_CONNECT_TIMEOUT": "soon",
        "UPSTREAM_FIRST_BYTE_TIMEOUT": "0",
        "UPSTREAM_IDLE_TIMEOUT": "nan",
    }
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert len(caught.value.problems) == len(environ)
    for name in environ:
        assert f"  - {name} " in str(caught.value)


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_an_empty_required_setting_is_named(name: str, value: str) -> None:
    assert problem(**{name: value}) == f"{name} is empty."


@pytest.mark.parametrize("name", ["PORT", "ANTHROPIC_VERSION", "UPSTREAM_IDLE_TIMEOUT"])
def test_an_empty_optional_setting_is_named_too(name: str) -> None:
    assert problem(**{name: ""}) == f"{name} is empty."


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
        ("https://[::zz]", ""),
        ("https://host/a b", "has a path with characters that must be percent-encoded"),
        ("https://host/ä", "has a path with characters that must be percent-encoded"),
        ("https://host/a\\b", "has a path with characters that must be percent-encoded"),
    ],
)
@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"])
def test_a_base_url_that_cannot_be_used_is_named(name: str, url: str, words: str) -> None:
    assert problem(**{name: url}).startswith(f"{name} {words}")


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
    assert CONFIG.upstreams[1].base_url.join(rest) == url


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_out_of_range_is_named(port: str) -> None:
    assert problem(PORT=port).startswith(f"PORT is out of range: {port}")


@pytest.mark.parametrize("port", ["http", "-1", "+80", "80.0", "8_0", "٨٠", "0x50", "8 0"])
def test_a_port_that_is_no_number_is_named(port: str) -> None:
    assert problem(PORT=port) == f"PORT is not a port number: {port!r}."


@given(st.integers(1, 65535))
def test_each_port_is_read(port: int) -> None:
    assert parse_port(str(port)) == port


@pytest.mark.parametrize(
    "name", ["UPSTREAM_CONNECT_TIMEOUT", "UPSTREAM_FIRST_BYTE_TIMEOUT", "UPSTREAM_IDLE_TIMEOUT"]
)
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
def test_a_timeout_that_cannot_be_used_is_named(name: str, seconds: str, words: str) -> None:
    assert problem(**{name: seconds}).startswith(f"{name} {words}: ")


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", ["two words", "line\nbreak", "schlüssel", "tab\tbed", "nul\0"])
def test_a_secret_that_is_not_one_word_is_named_without_being_shown(name: str, value: str) -> None:
    text = problem(**{name: value})
    assert text.startswith(f"{name} holds a space")
    assert value not in text
    assert repr(value)[1:-1] not in text


@pytest.mark.parametrize(
    "url", ["https://user:hunter2@host", "https://hunter2@host", "user:hunter2@host", "hunter2"]
)
def test_no_secret_in_a_base_url_is_shown_by_an_error(url: str) -> None:
    assert "hunter2" not in problem(OPENAI_BASE_URL=url)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "  "])
def test_a_secret_may_come_from_a_file(tmp_path: Path, name: str, ending: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(ENVIRON[name].encode("ascii") + ending.encode("ascii"))
    environ = {**ENVIRON, f"{name}_FILE": str(file)}
    del environ[name]
    assert load(environ) == load(ENVIRON)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_is_given_twice_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    file.write_text("another")
    assert problem(**{f"{name}_FILE": str(file)}) == f"{name} and {name}_FILE are both set; keep one."


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
def test_a_secret_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    environ = {**ENVIRON, "OPENAI_API_KEY_FILE": str(file)}
    del environ["OPENAI_API_KEY"]
    (text,) = problems(environ)
    assert text.startswith(f"OPENAI_API_KEY_FILE {words}")
    assert "hunter" not in text


def test_a_secret_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent", "No such file or directory"), (tmp_path, "Is a directory")):
        environ = {**ENVIRON, "PROXY_TOKEN_FILE": str(path)}
        del environ["PROXY_TOKEN"]
        assert problems(environ) == (
            f"PROXY_TOKEN_FILE names a file that cannot be read: {path} ({reason}).",
        )


def test_an_empty_name_of_a_secret_file_is_named() -> None:
    environ = {**ENVIRON, "PROXY_TOKEN_FILE": ""}
    del environ["PROXY_TOKEN"]
    assert problems(environ) == ("PROXY_TOKEN_FILE is empty.",)


def test_the_port_can_be_read_alone() -> None:
    assert load_port({}) == DEFAULT_PORT
    assert load_port({"PORT": "80"}) == 80
    with pytest.raises(ConfigError, match="PORT is out of range"):
        load_port({"PORT": "0"})


def test_a_good_config_has_no_warnings() -> None:
    assert load(ENVIRON).warnings() == []
    assert (
        load(
            {**ENVIRON, "OPENAI_BASE_URL": "http://127.0.0.1:1", "ANTHROPIC_BASE_URL": "http://[::1]"}
        ).warnings()
        == []
    )
    assert load({**ENVIRON, "OPENAI_BASE_URL": "http://localhost"}).warnings() == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"PROXY_TOKEN": "a" * 15}, "fewer than 16 characters"),
        ({"OPENAI_BASE_URL": "https://host/v1"}, "The base URL of openai ends in /v1"),
        ({"OPENAI_BASE_URL": "http://host.example"}, "The key for openai goes to host.example unencrypted"),
        ({"ANTHROPIC_BASE_URL": "http://10.0.0.1"}, "The key for anthropic goes to 10.0.0.1 unencrypted"),
    ],
)
def test_what_is_probably_not_meant_is_warned_of_without_secrets(changed: dict[str, str], words: str) -> None:
    (warning,) = load({**ENVIRON, **changed}).warnings()
    assert words in warning
    assert "aaa" not in warning


def test_the_key_goes_into_the_header_that_its_upstream_reads() -> None:
    openai, anthropic = load(ENVIRON).upstreams
    assert openai.credential_header() == (b"Authorization", [b"Bearer sk-openai-real"])
    assert anthropic.credential_header() == (b"x-api-key", [b"sk-ant-real"])
