from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from llmproxy.config import (
    DEFAULT_MAX_RESENT_BODY,
    DEFAULT_PORT,
    NO_LEDGER,
    Accounting,
    ConfigError,
    Credential,
    Family,
    Logging,
    Timeouts,
    Upstream,
    load,
    load_port,
)
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits
from llmproxy.values import BaseURL
from tests.support import ANTHROPIC_KEY, CONFIG, ENVIRON, OPENAI_KEY, TOKEN, client_with

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
        "openai",
        BaseURL("https", "openai.example", 443, ""),
        Credential.parse("bearer"),
        (OPENAI_KEY,),
        Family.OPENAI,
    )
    assert anthropic == Upstream(
        "anthropic",
        BaseURL("https", "anthropic.example", 443, "/base"),
        Credential.parse("x-api-key"),
        (ANTHROPIC_KEY,),
        Family.ANTHROPIC,
    )
    assert config.clients == (client_with(TOKEN),)
    assert config.listen == (f"tcp:{DEFAULT_PORT}",) == ("tcp:33000",)
    assert (config.cors_origins, config.max_resent_body) == ((), DEFAULT_MAX_RESENT_BODY)
    assert openai.timeouts == anthropic.timeouts == Timeouts(first_byte=600.0, idle=600.0)
    assert openai.limits == anthropic.limits == UpstreamLimits()
    assert config.downstream == DownstreamLimits()
    assert (config.https_proxy, config.no_proxy) == (None, "")
    assert attrs.evolve(config.accounting, ledger=NO_LEDGER) == Accounting()
    assert (config.logging, config.admin) == (Logging("text", "info"), None)


def test_optional_settings_are_used(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    config = load(
        {
            **ENVIRON,
            "PORT": "8080",
            "ANTHROPIC_VERSION": "2023-06-01",
            "OPENAI_CA_FILE": str(ca_file),
            "LLMPROXY_LEDGER": "sqlite:///srv/ledger",
            "LLMPROXY_LEDGER_RETENTION": "90",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "error",
            "ADMIN_PORT": "9100",
        }
    )
    assert config.accounting == Accounting("sqlite:///srv/ledger", retention_days=90)
    assert config.logging == Logging("json", "error")
    assert config.admin == "tcp:9100:interface=127.0.0.1"
    assert config.listen == ("tcp:8080",)
    openai, anthropic = config.upstreams
    assert openai.default_headers == ()
    assert anthropic.default_headers == ((b"anthropic-version", b"2023-06-01"),)
    assert (openai.ca_file, anthropic.ca_file) == (str(ca_file), None)
    (anthropic,) = load({**ENVIRON, "ANTHROPIC_CA_FILE": str(ca_file)}).upstreams[1:]
    assert anthropic.ca_file == str(ca_file)


# The group of each setting that is a number, its name there, and its default.
SECONDS = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT": ("timeouts", "first_byte", 600.0),
    "UPSTREAM_IDLE_TIMEOUT": ("timeouts", "idle", 600.0),
    "UPSTREAM_CONNECT_TIMEOUT": ("limits", "connect", 10.0),
    "UPSTREAM_KEEP_ALIVE": ("limits", "idle", 4.0),
    "CLIENT_HEADER_TIMEOUT": ("downstream", "header_time", 30.0),
    "CLIENT_BODY_TIMEOUT": ("downstream", "body_idle", 60.0),
    "CLIENT_KEEP_ALIVE": ("downstream", "keep_alive", 75.0),
}
COUNTS = {
    "UPSTREAM_MAX_CONNECTIONS": ("limits", "connections", 4096),
    "UPSTREAM_MAX_IDLE_CONNECTIONS": ("limits", "idle_connections", 256),
    "CLIENT_MAX_TARGET": ("downstream", "target", 16 * 1024),
    "CLIENT_MAX_HEADERS": ("downstream", "headers", 64 * 1024),
    "CLIENT_MAX_CONNECTIONS": ("downstream", "connections", 10_000),
    "CLIENT_MAX_CONNECTIONS_PER_ADDRESS": ("downstream", "connections_per_address", 10_000),
}
WATCHING = ["LLMPROXY_LEDGER", "LLMPROXY_LEDGER_RETENTION", "LOG_FORMAT", "LOG_LEVEL", "ADMIN_PORT"]


@pytest.mark.parametrize("name", [*SECONDS, *COUNTS])
def test_each_number_changes_what_it_names_and_nothing_else(name: str) -> None:
    group, field, default = {**SECONDS, **COUNTS}[name]
    before = load(ENVIRON)
    after = load({**ENVIRON, name: "7"})
    holders: Any = (before,) if group == "downstream" else before.upstreams
    changed = []
    for holder in holders:
        assert getattr(getattr(holder, group), field) == default
        settings = attrs.evolve(getattr(holder, group), **{field: 7})
        changed.append(attrs.evolve(holder, **{group: settings}))
    expected = changed[0] if group == "downstream" else attrs.evolve(before, upstreams=tuple(changed))
    assert after == expected


@pytest.mark.parametrize("name", SECONDS)
def test_a_time_that_is_not_above_zero_is_named(name: str) -> None:
    assert problem(**{name: "0"}).startswith(f"{name} is out of range: 0 ")


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_not_whole_is_named(name: str) -> None:
    assert problem(**{name: "1.5"}) == f"{name} is not a whole number of at least 1: '1.5'."


@pytest.mark.parametrize("name", ["OPENAI_CA_FILE", "ANTHROPIC_CA_FILE"])
def test_a_file_of_certificates_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    found = problem(**{name: str(absent)})
    assert found.startswith(f"{name} names a file that cannot be read")
    assert "No such file or directory" in found


def test_space_around_a_value_is_no_part_of_it() -> None:
    assert load({name: f" {value}\n" for name, value in ENVIRON.items()}) == load(ENVIRON)


def test_a_config_cannot_be_changed() -> None:
    config = load(ENVIRON)
    for thing in (
        config,
        config.accounting,
        config.logging,
        config.clients[0],
        config.upstreams[0].timeouts,
        config.upstreams[0],
        config.upstreams[0].base_url,
    ):
        name = attrs.fields(type(thing))[0].name
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(thing, name, None)


def test_no_secret_is_shown_by_repr() -> None:
    config = load(ENVIRON)
    shown = repr(config) + repr(CONFIG.upstreams) + repr(CONFIG.clients)
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
        "OPENAI_CA_FILE": "/nowhere/ca.pem",
        **dict.fromkeys([*SECONDS, *COUNTS, *WATCHING], "many"),
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


@pytest.mark.parametrize(
    "name", ["PORT", "ANTHROPIC_VERSION", "OPENAI_CA_FILE", *SECONDS, *COUNTS, *WATCHING]
)
def test_an_empty_optional_setting_is_named_too(name: str) -> None:
    assert problem(**{name: ""}) == f"{name} is empty."


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"])
def test_a_base_url_that_cannot_be_used_is_named(name: str) -> None:
    assert problem(**{name: "openai.example"}).startswith(f"{name} must begin with https:// or http://")


@pytest.mark.parametrize(
    ("port", "words"), [("65536", "is out of range: 65536"), ("http", "is not a port number: 'http'")]
)
def test_a_port_that_cannot_be_used_is_named(port: str, words: str) -> None:
    assert problem(PORT=port).startswith(f"PORT {words}")


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


def test_a_secret_file_that_cannot_be_used_is_named_but_not_its_path(tmp_path: Path) -> None:
    environ = {**ENVIRON, "PROXY_TOKEN_FILE": str(tmp_path / "absent")}
    del environ["PROXY_TOKEN"]
    assert problems(environ) == (
        "PROXY_TOKEN_FILE names a file that cannot be read (No such file or directory).",
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


class TestHTTPProxy:
    @pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
    def test_upstreams_are_reached_through_it(self, name: str) -> None:
        found = load({**ENVIRON, name: "http://proxy.example:3128"}).proxy_for("api.openai.com")
        assert found is not None
        assert (found.hostname, found.port) == ("proxy.example", 3128)

    @pytest.mark.parametrize("environ", [{}, {"HTTPS_PROXY": ""}, {"HTTP_PROXY": "http://proxy.example"}])
    def test_without_one_they_are_reached_directly(self, environ: dict[str, str]) -> None:
        assert load({**ENVIRON, **environ}).proxy_for("api.openai.com") is None

    @pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
    @pytest.mark.parametrize(
        ("no_proxy", "host", "bypassed"),
        [
            ("*", "api.openai.com", True),
            ("api.openai.com", "api.openai.com", True),
            ("openai.com", "api.openai.com", True),
            (".openai.com", "api.openai.com", True),
            ("localhost, .OPENAI.com", "API.openai.com", True),
            ("127.0.0.1", "127.0.0.1", True),
            ("openai.com", "api.notopenai.com", False),
            ("anthropic.com", "api.openai.com", False),
            ("", "api.openai.com", False),
        ],
    )
    def test_hosts_that_are_named_are_reached_directly(
        self, name: str, no_proxy: str, host: str, bypassed: bool
    ) -> None:
        config = load({**ENVIRON, "HTTPS_PROXY": "proxy.example:3128", name: no_proxy})
        assert (config.proxy_for(host) is None) is bypassed

    def test_its_password_is_shown_by_no_repr_and_no_error(self) -> None:
        url = "http://user:hunter2@proxy.example:3128"
        assert "hunter2" not in repr(load({**ENVIRON, "HTTPS_PROXY": url}))
        assert "hunter2" not in problem(HTTPS_PROXY=f"{url}x")

    def test_one_that_cannot_be_used_is_named(self) -> None:
        assert problem(HTTPS_PROXY="socks5://proxy.example").lower().startswith("https_proxy is not the url")


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"OPENAI_BASE_URL": "http://127.0.0.1:1", "ANTHROPIC_BASE_URL": "http://[::1]"},
        {"OPENAI_BASE_URL": "http://localhost"},
        {"OPENAI_BASE_URL": "https://host/v1beta", "ANTHROPIC_BASE_URL": "https://host/v1/x"},
        {"PROXY_TOKEN": "a" * 16},
    ],
)
def test_a_good_config_has_no_warnings(changed: dict[str, str]) -> None:
    assert load({**ENVIRON, **changed}).warnings() == []


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


def test_an_unencrypted_upstream_without_a_key_is_not_warned_of() -> None:
    upstream = Upstream("x", BaseURL("http", "host", 80, ""), Credential.parse("none"))
    assert attrs.evolve(CONFIG, upstreams=(upstream,)).warnings() == []
