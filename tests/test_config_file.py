from __future__ import annotations

import sys
from ipaddress import ip_network
from pathlib import Path

import attrs
import pytest
import trustme

from llmproxy.config import (
    Client,
    Config,
    ConfigError,
    Credential,
    Family,
    Timeouts,
    Upstream,
    load,
    token_digest,
)
from llmproxy.config.presets import PRESETS
from llmproxy.http.limits import DownstreamLimits, UpstreamLimits
from llmproxy.values import BaseURL

KEY = "sk-a-real-key"
ENVIRON = {"KEY": KEY, "KEY_2": "sk-another-real-key"}
TOKEN = b"llmp_the-token-of-alice"
DIGEST = token_digest(TOKEN).hex()
OTHER_DIGEST = token_digest(b"llmp_another-token").hex()
# An upstream and a client: the least that a file can hold.
UPSTREAM = '[upstreams.openai]\napi_key_env = "KEY"\n'
CLIENT = f'[clients.alice]\ntoken_sha256 = "{DIGEST}"\n'


class Given:
    """A configuration file in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "llmproxy.toml"

    def load(self, text: str, **environ: str) -> Config:
        self.path.write_text(text)
        return load({**ENVIRON, **environ}, str(self.path))

    def problems(self, text: str, **environ: str) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            self.load(text, **environ)
        return caught.value.problems

    def upstream(self, text: str, **environ: str) -> Upstream:
        """The first of the upstreams."""
        return self.load(text + CLIENT, **environ).upstreams[0]

    def client(self, keys: str) -> Client:
        """The one client, with some more keys."""
        (client,) = self.load(UPSTREAM + CLIENT + keys).clients
        return client


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path)


class TestUpstreams:
    def test_a_preset_needs_only_its_key(self, given: Given) -> None:
        assert given.upstream(UPSTREAM) == Upstream(
            "openai",
            BaseURL("https", "api.openai.com", 443, ""),
            Credential.parse("bearer"),
            (KEY,),
            Family.OPENAI,
        )

    @pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.base_url])
    def test_each_preset_stands_behind_its_name(self, given: Given, name: str) -> None:
        preset = PRESETS[name]
        upstream = given.upstream(
            f"[upstreams.{name}]\n" + ('api_key_env = "KEY"\n' if preset.needs_key else "")
        )
        assert str(upstream.base_url) == preset.base_url
        assert (upstream.credential, upstream.family) == (preset.credential, preset.family)
        assert upstream.keys == ((KEY,) if preset.needs_key else ())

    def test_what_a_table_says_stands_before_the_preset(self, given: Given) -> None:
        upstream = given.upstream(
            """
            [upstreams.ollama]
            base_url = "http://10.0.0.7:1234/x/"
            credential = "header:X-Key"
            api_key_env = "KEY"
            api = "anthropic"
            """
        )
        assert upstream == Upstream(
            "ollama",
            BaseURL("http", "10.0.0.7", 1234, "/x"),
            Credential.parse("header:X-Key"),
            (KEY,),
            Family.ANTHROPIC,
        )

    def test_any_other_name_needs_a_url_and_is_sent_a_bearer_token(self, given: Given) -> None:
        upstream = given.upstream(
            '[upstreams.In-house_2.x~]\nbase_url = "https://llm.example"\napi_key_env = "KEY"\n'.replace(
                "In-house_2.x~", '"In-house_2.x~"'
            )
        )
        assert upstream == Upstream(
            "In-house_2.x~",
            BaseURL("https", "llm.example", 443, ""),
            Credential.parse("bearer"),
            (KEY,),
            Family.NONE,
        )

    def test_keys_come_from_variables_and_files_in_order_and_each_counts_once(
        self, given: Given, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text("sk-in-a-file\n")
        (tmp_path / "same").write_text(KEY)
        upstream = given.upstream(
            f"""
            [upstreams.openai]
            api_key_file = ["key", "{tmp_path}/same"]
            api_key_env = ["KEY", "KEY_2"]
            """
        )
        assert upstream.keys == (KEY, "sk-another-real-key", "sk-in-a-file")

    def test_headers_and_certificates_are_taken_over(self, given: Given, tmp_path: Path) -> None:
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        upstream = given.upstream(
            UPSTREAM + 'ca_file = "ca.pem"\nheaders = { OpenAI-Project = "a b", x = "1" }\n'
        )
        assert upstream.ca_file == str(tmp_path / "ca.pem")
        assert upstream.default_headers == ((b"OpenAI-Project", b"a b"), (b"x", b"1"))

    def test_timeouts_and_limits_are_its_own_else_those_of_defaults(self, given: Given) -> None:
        config = given.load(
            f"""
            [defaults]
            idle_timeout = 20
            max_connections = 30
            [upstreams.openai]
            api_key_env = "KEY"
            idle_timeout = 40.5
            keep_alive = 50
            [upstreams.ollama]
            {CLIENT}"""
        )
        openai, ollama = config.upstreams
        assert openai.timeouts == Timeouts(idle=40.5)
        assert openai.limits == UpstreamLimits(connections=30, idle=50)
        assert ollama.timeouts == Timeouts(idle=20)
        assert ollama.limits == UpstreamLimits(connections=30)

    def test_no_repr_shows_a_key(self, given: Given) -> None:
        config = given.load(UPSTREAM + CLIENT)
        assert config.upstreams[0].keys == (KEY,)
        assert KEY not in repr(config)
        assert DIGEST not in repr(config)


class TestClients:
    def test_a_token_is_enough_and_opens_everything(self, given: Given) -> None:
        assert given.client("") == Client("alice", (token_digest(TOKEN),))

    def test_rights_are_taken_over(self, given: Given) -> None:
        client = given.client(
            """
            upstreams = ["openai"]
            models = ["gpt-*"]
            deny_models = ["gpt-4"]
            networks = ["10.0.0.0/8", "2001:db8::1"]
            """
        )
        assert client == Client(
            "alice",
            (token_digest(TOKEN),),
            frozenset({"openai"}),
            ("gpt-*",),
            ("gpt-4",),
            None,
            (ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128")),
        )

    def test_several_tokens_in_either_case_of_letters_are_taken(self, given: Given) -> None:
        (client,) = given.load(
            UPSTREAM + f'[clients.alice]\ntoken_sha256 = ["{DIGEST.upper()}", "{OTHER_DIGEST}"]\n'
        ).clients
        assert client.digests == (bytes.fromhex(DIGEST), bytes.fromhex(OTHER_DIGEST))

    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("2027-01-31", "2027-01-31T23:59:59.999999+00:00"),
            ("9999-12-31", "9999-12-31T23:59:59.999999+00:00"),
            ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00+00:00"),
            ("2027-01-31 12:00:00+02:00", "2027-01-31T10:00:00+00:00"),
            ("2027-01-31T12:00:00", "2027-01-31T12:00:00+00:00"),
        ],
    )
    def test_a_day_that_it_expires_on_is_still_good_and_times_are_utc(
        self, given: Given, written: str, meant: str
    ) -> None:
        expires = given.client(f"expires = {written}\n").expires
        assert expires is not None
        assert expires.isoformat() == meant


class TestTopLevel:
    def test_everything_is_taken_over(self, given: Given) -> None:
        config = given.load(
            f"""
            listen = [8080, "tcp:8081:interface=127.0.0.1"]
            cors_origins = ["https://App.example", "http://localhost:3000", "app://obsidian.md"]
            max_resent_body = 0
            https_proxy = "http://proxy.example:3128"
            no_proxy = ["localhost", ".example"]
            {UPSTREAM}{CLIENT}"""
        )
        assert config.listen == ("tcp:8080", "tcp:8081:interface=127.0.0.1")
        assert config.cors_origins == ("https://app.example", "http://localhost:3000", "app://obsidian.md")
        assert config.max_resent_body == 0
        assert config.proxy_for("api.openai.com") is config.https_proxy is not None
        assert config.proxy_for("llm.example") is None

    def test_what_is_not_said_is_the_default(self, given: Given) -> None:
        config = given.load(UPSTREAM + CLIENT, LLMPROXY_LEDGER="none")
        assert config == Config(config.upstreams, config.clients)

    @pytest.mark.parametrize(
        ("key", "field"),
        [
            ("max_target", "target"),
            ("max_headers", "headers"),
            ("header_timeout", "header_time"),
            ("body_timeout", "body_idle"),
            ("keep_alive", "keep_alive"),
            ("max_connections", "connections"),
            ("max_connections_per_address", "connections_per_address"),
        ],
    )
    def test_each_limit_changes_what_its_variable_changes(self, given: Given, key: str, field: str) -> None:
        by_file = given.load(f"[limits]\n{key} = 7\n{UPSTREAM}{CLIENT}")
        by_variable = given.load(UPSTREAM + CLIENT, **{f"CLIENT_{key.upper()}": "7"})
        assert by_file == by_variable
        assert by_file.downstream == attrs.evolve(DownstreamLimits(), **{field: 7})

    @pytest.mark.parametrize(
        "key",
        [
            "connect_timeout",
            "first_byte_timeout",
            "idle_timeout",
            "max_connections",
            "max_idle_connections",
            "keep_alive",
        ],
    )
    def test_each_default_changes_what_its_variable_changes(self, given: Given, key: str) -> None:
        by_file = given.load(f"[defaults]\n{key} = 7\n{UPSTREAM}{CLIENT}")
        assert by_file == given.load(UPSTREAM + CLIENT, **{f"UPSTREAM_{key.upper()}": "7"})
        assert by_file != given.load(UPSTREAM + CLIENT)


class TestWithTheEnvironment:
    def test_a_key_there_is_an_upstream_and_a_token_a_client(self, given: Given) -> None:
        config = given.load("", OPENAI_API_KEY="sk-1", PROXY_TOKEN="the-token-of-the-team")
        (openai,) = config.upstreams
        assert (str(openai.base_url), openai.keys) == ("https://api.openai.com", ("sk-1",))
        assert config.clients == (Client("default", (token_digest(b"the-token-of-the-team"),)),)
        assert config.warnings() == []

    def test_a_short_token_is_warned_of(self, given: Given) -> None:
        (warning,) = given.load(UPSTREAM, PROXY_TOKEN="short").warnings()
        assert "fewer than 16 characters" in warning

    def test_both_stand_side_by_side(self, given: Given) -> None:
        config = given.load(UPSTREAM + CLIENT, ANTHROPIC_API_KEY="sk-1", PROXY_TOKEN="the-token-of-the-team")
        assert [upstream.name for upstream in config.upstreams] == ["openai", "anthropic"]
        assert {client.name for client in config.clients} == {"alice", "default"}

    def test_a_table_completes_what_the_environment_says(self, given: Given, tmp_path: Path) -> None:
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        config = given.load(
            """
            [upstreams.anthropic]
            idle_timeout = 1200
            headers = { x = "1" }
            [clients.default]
            upstreams = ["anthropic"]
            """,
            ANTHROPIC_BASE_URL="https://anthropic.example",
            ANTHROPIC_API_KEY="sk-1",
            ANTHROPIC_VERSION="2023-06-01",
            ANTHROPIC_CA_FILE=str(tmp_path / "ca.pem"),
            PROXY_TOKEN="the-token-of-the-team",
        )
        (anthropic,), (client,) = config.upstreams, config.clients
        assert (str(anthropic.base_url), anthropic.keys) == ("https://anthropic.example", ("sk-1",))
        assert anthropic.default_headers == ((b"anthropic-version", b"2023-06-01"), (b"x", b"1"))
        assert (anthropic.timeouts.idle, anthropic.ca_file) == (1200, str(tmp_path / "ca.pem"))
        assert client.digests == (token_digest(b"the-token-of-the-team"),)
        assert client.upstreams == frozenset({"anthropic"})
        assert config.warnings() == []

    def test_a_variable_that_is_no_upstream_by_itself_completes_a_table(self, given: Given) -> None:
        text = CLIENT + '[upstreams.anthropic]\napi_key_env = "KEY"\n'
        (anthropic,) = given.load(text, ANTHROPIC_VERSION="2023-06-01").upstreams
        assert anthropic.default_headers == ((b"anthropic-version", b"2023-06-01"),)
        (openai,) = given.load(UPSTREAM + CLIENT, ANTHROPIC_VERSION="2023-06-01").upstreams
        assert openai.name == "openai"

    def test_where_both_set_a_key_the_file_stands_and_the_variable_is_warned_of(self, given: Given) -> None:
        config = given.load(
            f"""
            listen = [8080]
            https_proxy = "http://by-file.example"
            [limits]
            keep_alive = 7
            [defaults]
            keep_alive = 8
            [upstreams.openai]
            base_url = "https://by-file.example"
            api_key_env = "KEY"
            [upstreams.anthropic]
            headers = {{ Anthropic-Version = "by-file" }}
            [clients.default]
            token_sha256 = "{DIGEST}"
            """,
            PORT="1",
            HTTPS_PROXY="http://by-variable.example",
            CLIENT_KEEP_ALIVE="1",
            UPSTREAM_KEEP_ALIVE="1",
            OPENAI_BASE_URL="https://by-variable.example",
            OPENAI_API_KEY="sk-by-variable",
            ANTHROPIC_API_KEY="sk-1",
            ANTHROPIC_VERSION="by-variable",
            PROXY_TOKEN="token-by-variable",
        )
        openai, anthropic = config.upstreams
        assert (openai.base_url.host, openai.keys) == ("by-file.example", (KEY,))
        assert anthropic.default_headers == ((b"Anthropic-Version", b"by-file"),)
        assert config.clients == (Client("default", (token_digest(TOKEN),)),)
        assert (config.listen, config.downstream.keep_alive, openai.limits.idle) == (("tcp:8080",), 7, 8)
        assert "by-variable" not in repr(config.https_proxy)
        places = {
            "PORT": "listen",
            "HTTPS_PROXY": "https_proxy",
            "CLIENT_KEEP_ALIVE": "limits.keep_alive",
            "UPSTREAM_KEEP_ALIVE": "defaults.keep_alive",
            "OPENAI_BASE_URL": "upstreams.openai.base_url",
            "OPENAI_API_KEY": "upstreams.openai.api_key_env",
            "ANTHROPIC_VERSION": "upstreams.anthropic.headers.anthropic-version",
            "PROXY_TOKEN": "clients.default.token_sha256",
        }
        assert set(config.warnings()) == {
            f"{variable} is not used: {place} in the configuration file stands in its place."
            for variable, place in places.items()
        }

    def test_an_empty_list_stands_before_a_variable_too(self, given: Given) -> None:
        config = given.load("no_proxy = []\n" + UPSTREAM + CLIENT, NO_PROXY="*", HTTPS_PROXY="proxy.example")
        assert config.proxy_for("api.openai.com") is not None
        assert len(config.warnings()) == 1

    def test_a_variable_that_the_file_itself_names_is_used(self, given: Given, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("sk-in-a-file")
        config = given.load(
            '[upstreams.openai]\napi_key_env = ["OPENAI_API_KEY"]\napi_key_file = "key"\n' + CLIENT,
            OPENAI_API_KEY="sk-1",
        )
        assert config.upstreams[0].keys == ("sk-1", "sk-in-a-file")
        assert config.warnings() == []

    def test_the_variable_names_the_file(self, given: Given) -> None:
        by_path = given.load(UPSTREAM + CLIENT)
        assert load({**ENVIRON, "LLMPROXY_CONFIG": f" {given.path} "}) == by_path

    def test_an_empty_variable_is_named(self) -> None:
        with pytest.raises(ConfigError, match="LLMPROXY_CONFIG is empty"):
            load({"LLMPROXY_CONFIG": " "})

    def test_what_is_malformed_there_is_told_once_and_beside_what_is_wrong_in_the_file(
        self, given: Given
    ) -> None:
        assert given.problems(
            "listen = 3", OPENAI_API_KEY="", PROXY_TOKEN="two words", CLIENT_KEEP_ALIVE="0"
        ) == (
            "OPENAI_API_KEY is empty.",
            "PROXY_TOKEN holds a space, a line break or a character outside ASCII; it must be one word.",
            "CLIENT_KEEP_ALIVE is out of range: 0 (more than 0, and at most 86400 seconds).",
            "listen: found 3, but it must be a list of at least one port or endpoint.",
        )

    def test_a_secret_that_is_given_twice_is_named(self, given: Given) -> None:
        assert given.problems(UPSTREAM, PROXY_TOKEN="a", PROXY_TOKEN_FILE="b") == (
            "PROXY_TOKEN and PROXY_TOKEN_FILE are both set; keep one.",
        )


SECONDS = "a number of seconds, more than 0 and at most 86400"
COUNT = "a whole number from 1 to 2147483648"
DATE = "a date or a date with a time, without quotes"
PRICE = "a number from 0 to 10000 with at most 9 decimals"
ORIGIN = 'an origin such as "https://app.example", without a path, or "*"'

# A line in place of the one with KEY, of an otherwise good file, and the one problem that it makes.
WRONG = {
    # unknown keys
    'api_key = "x"': "upstreams.openai.api_key: unknown key; did you mean api_key_env?",
    "Base_URL = 1": "upstreams.openai.Base_URL: unknown key; did you mean base_url?",
    "zebra = 1": "upstreams.openai.zebra: unknown key.",
    # types and bounds
    "idle_timeout = 0": f"upstreams.openai.idle_timeout: found 0, but it must be {SECONDS}.",
    "idle_timeout = 86401": f"upstreams.openai.idle_timeout: found 86401, but it must be {SECONDS}.",
    "idle_timeout = nan": f"upstreams.openai.idle_timeout: found nan, but it must be {SECONDS}.",
    "idle_timeout = inf": f"upstreams.openai.idle_timeout: found inf, but it must be {SECONDS}.",
    "idle_timeout = true": f"upstreams.openai.idle_timeout: found true, but it must be {SECONDS}.",
    'idle_timeout = "10s"': f'upstreams.openai.idle_timeout: found "10s", but it must be {SECONDS}.',
    "max_connections = 1.0": f"upstreams.openai.max_connections: found 1.0, but it must be {COUNT}.",
    f"max_connections = {10**30}": (
        f"upstreams.openai.max_connections: found a number beyond 64 bits, but it must be {COUNT}."
    ),
    "ca_file = 2027-01-01": "upstreams.openai.ca_file: found 2027-01-01, but it must be a string.",
    "ca_file = []": "upstreams.openai.ca_file: found an empty list, but it must be a string.",
    "headers = 1": "upstreams.openai.headers: found 1, but it must be a table of strings.",
    "headers = { x = 1 }": "upstreams.openai.headers.x: found 1, but it must be a string.",
    "api_key_file = []": (
        "upstreams.openai.api_key_file: found an empty list, but it must be a string or a list of strings."
    ),
    'api_key_file = ["", "x"]': (
        'upstreams.openai.api_key_file[0]: found "", but it must be a string that is not empty.'
    ),
    # words
    'api = "opnai"': (
        'upstreams.openai.api: found "opnai", but it must be "openai", "anthropic", "gemini" or "none".'
    ),
    'credential = "basic"': (
        "upstreams.openai.credential must be bearer, x-api-key, header:NAME, query:NAME or none."
    ),
    "credential = 3": (
        'upstreams.openai.credential: found 3, but it must be "bearer", "x-api-key", "header:NAME", "query:NAME" or "none".'
    ),
    'base_url = "x"': "upstreams.openai.base_url must begin with https:// or http:// and a host.",
    'headers = { Host = "x" }': "upstreams.openai.headers.Host is not the name of a header that can be added.",
    'headers = { "a b" = "x" }': 'upstreams.openai.headers."a b" is not the name of a header that can be added.',
    'headers = { Authorization = "x" }': (
        "upstreams.openai.headers.Authorization is where a key goes; api_key_env and api_key_file set that."
    ),
    'headers = { x = "a\\nb" }': (
        "upstreams.openai.headers.x is empty, or holds a character that cannot stand in a header."
    ),
    'headers = { x = "" }': (
        "upstreams.openai.headers.x is empty, or holds a character that cannot stand in a header."
    ),
}


class TestProblems:
    @pytest.mark.parametrize("line", WRONG)
    def test_a_wrong_key_of_an_upstream_is_named_with_what_is_allowed(self, given: Given, line: str) -> None:
        assert given.problems(f"{UPSTREAM}{line}\n{CLIENT}") == (WRONG[line],)

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("models = 3", "clients.alice.models: found 3, but it must be a list of at least one string."),
            ('models = "a"', 'clients.alice.models: found "a", but it must be a list of at least one string.'),
            ("models = []", "clients.alice.models: found an empty list, but it must be a list of at least one string."),
            ("models = [{}]", "clients.alice.models[0]: found a table, but it must be a string that is not empty."),
            ("modles = 1", "clients.alice.modles: unknown key; did you mean models?"),
            (
                'upstreams = ["opnai"]',
                'clients.alice.upstreams: found "opnai", but there is no such upstream; did you mean openai?',
            ),
            ('upstreams = ["x"]', 'clients.alice.upstreams: found "x", but there is no such upstream.'),
            (
                'expires = "2027-01-01"',
                f'clients.alice.expires: found "2027-01-01", but it must be {DATE}.',
            ),
            (
                "expires = 12:00:00",
                f"clients.alice.expires: found 12:00:00, but it must be {DATE}.",
            ),
            (
                "expires = 0001-01-01T00:00:00+01:00",
                f"clients.alice.expires: found 0001-01-01T00:00:00+01:00, but it must be {DATE}.",
            ),
            (
                'networks = ["10.0.0.0/8", "10.1.2.3/8"]',
                "clients.alice.networks[1] has bits set behind its prefix; the network of 10.1.2.3/8 is 10.0.0.0/8.",
            ),
            (
                'networks = ["office"]',
                'clients.alice.networks[0]: found "office", but it must be a network such as "10.0.0.0/8", or an address.',
            ),
            (
                "networks = [8]",
                'clients.alice.networks[0]: found 8, but it must be a network such as "10.0.0.0/8", or an address.',
            ),
        ],
    )  # fmt: skip
    def test_a_wrong_key_of_a_client_is_named_with_what_is_allowed(
        self, given: Given, line: str, problem: str
    ) -> None:
        assert given.problems(f"{UPSTREAM}{CLIENT}{line}\n") == (problem,)

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("listen = []", "listen: found an empty list, but it must be a list of at least one port or endpoint."),
            ("listen = [0]", "listen[0] is out of range: 0 (a port is 1 to 65535)."),
            ("listen = [true]", "listen[0]: found true, but it must be a port or the description of a Twisted endpoint."),
            ('listen = ["a"]', "listen[0] is not a port number: 'a'."),
            (
                'cors_origins = ["https://a.example/"]',
                f'cors_origins[0]: found "https://a.example/", but it must be {ORIGIN}.',
            ),
            ("max_resent_body = -1", "max_resent_body: found -1, but it must be a whole number of bytes from 0 to 2147483648."),
            ('https_proxy = "socks5://x"', "https_proxy is not the URL of an HTTP proxy, such as http://proxy.example:3128."),
            ("ledger = 1", 'ledger: found 1, but it must be a URL, or "none".'),
            ('ledger = "x"', "ledger must be sqlite:///PATH, sqlite:PATH, postgresql://USER@HOST/NAME or none."),
            ("ledger_retention = 0", "ledger_retention: found 0, but it must be a whole number of days from 1 to 36500."),
            ("ledger_backlog = 0", f"ledger_backlog: found 0, but it must be {COUNT}."),
            ('request_id = "yes"', 'request_id: found "yes", but it must be true or false.'),
            ('log_format = "xml"', 'log_format: found "xml", but it must be "text" or "json".'),
            ('log_level = "warning"', 'log_level: found "warning", but it must be "debug", "info", "warn" or "error".'),
            ("admin_port = 0", "admin_port is out of range: 0 (a port is 1 to 65535)."),
            ("admin_port = true", "admin_port: found true, but it must be a port or the description of a Twisted endpoint."),
            ('session_headers = "x"', 'session_headers: found "x", but it must be a list of names of headers.'),
            ("session_headers = [1]", "session_headers[0]: found 1, but it must be the name of a header."),
            ('session_headers = ["a b"]', "session_headers[0] is not the name of a header."),
            (
                'session_headers = ["x", "Cookie"]',
                "session_headers[1] names a header that may hold a secret, which must not be recorded.",
            ),
            ("prices = 1", "prices: found 1, but it must be a table."),
            ("prices.x = 1", "prices.x: found 1, but it must be a table."),
            ("prices.x.inptu = 1", "prices.x.inptu: unknown key; did you mean input?"),
            ("prices.x.tiers = 1", "prices.x.tiers: found 1, but it must be a table of tables."),
            ("prices.x.tiers.flex = 1", "prices.x.tiers.flex: found 1, but it must be a table."),
            ("prices.x.tiers.flex.tiers = {}", "prices.x.tiers.flex.tiers: unknown key."),
            ("prices.x.tiers.flex.input = -1", f"prices.x.tiers.flex.input: found -1, but it must be {PRICE}."),
            ("limits = 1", "limits: found 1, but it must be a table."),
            ("upstreams = 1", "upstreams: found 1, but it must be a table."),
            ("upstreams.openai = 1", "upstreams.openai: found 1, but it must be a table."),
            ("clients.alice = []", "clients.alice: found an empty list, but it must be a table."),
            ("client.alice = 1", "client: unknown key; did you mean clients?"),
            ("limits.keepalive = 1", "limits.keepalive: unknown key; did you mean keep_alive?"),
            ("defaults.max_target = 1", "defaults.max_target: unknown key."),
        ],
    )  # fmt: skip
    def test_a_wrong_key_at_the_top_is_named_with_what_is_allowed(
        self, given: Given, line: str, problem: str
    ) -> None:
        # Each is told alone: what is missing only since it could not be read is not.
        rest = (UPSTREAM if "upstreams" not in line else "") + (CLIENT if "clients" not in line else "")
        assert given.problems(f"{line}\n{rest}") == (problem,)

    @pytest.mark.parametrize("name", ["healthz", "readyz", "metrics"])
    def test_no_upstream_has_the_name_of_a_path_of_the_proxys_own(self, given: Given, name: str) -> None:
        (problem,) = given.problems(f"{CLIENT}[upstreams.{name}]\n")
        assert (
            problem
            == f"upstreams.{name} cannot be the name of an upstream: /{name} is a path of this proxy's own."
        )

    @pytest.mark.parametrize("name", ["a/b", "a b", "..", "", "é", "a%20", "[key]", "a\\n"])
    def test_an_upstreams_name_is_a_part_of_a_url(self, given: Given, name: str) -> None:
        (problem,) = given.problems(f'{CLIENT}[upstreams."{name}"]\n')
        assert problem.startswith('upstreams."')
        assert "cannot be the name of an upstream, which stands in URLs" in problem

    @pytest.mark.parametrize("name", ["a b", "", "a\\nb", "a" * 65])
    def test_a_clients_name_is_one_word(self, given: Given, name: str) -> None:
        (problem,) = given.problems(f'{UPSTREAM}[clients."{name}"]\n')
        assert "cannot be the name of a client" in problem

    @pytest.mark.parametrize("name", ["a", "alice@example.com", "ci-2", "a" * 64])
    def test_other_names_of_clients_are_good(self, given: Given, name: str) -> None:
        config = given.load(f'{UPSTREAM}[clients."{name}"]\ntoken_sha256 = "{DIGEST}"')
        assert config.clients[0].name == name

    def test_a_key_called_as_pydantic_calls_keys_is_only_unknown(self, given: Given) -> None:
        assert given.problems(f'"[key]" = 1\n{UPSTREAM}"[key]" = 2\n{CLIENT}') == (
            'upstreams.openai."[key]": unknown key.',
            '"[key]": unknown key.',
        )

    @pytest.mark.parametrize(
        ("table", "problem"),
        [
            ("[upstreams.opnai]\n", "upstreams.opnai.base_url: missing, and opnai is no preset; did you mean openai?"),
            ("[upstreams.in-house]\n", "upstreams.in-house.base_url: missing, and in-house is no preset."),
            ("[upstreams.azure-openai]\n", "upstreams.azure-openai.base_url: missing, and the preset azure-openai has none."),
        ],
    )  # fmt: skip
    def test_a_missing_base_url_is_named(self, given: Given, table: str, problem: str) -> None:
        assert given.problems(f'{CLIENT}{table}api_key_env = "KEY"\n') == (problem,)

    @pytest.mark.parametrize("table", ["[upstreams.groq]", '[upstreams.ollama]\ncredential = "bearer"'])
    def test_a_missing_key_is_named(self, given: Given, table: str) -> None:
        (problem,) = given.problems(f"{CLIENT}{table}\n")
        assert problem.endswith(
            ".api_key_env: missing; name the environment variable that holds the key, or in api_key_file the file that does."
        )

    def test_a_key_that_is_not_sent_is_named(self, given: Given) -> None:
        assert given.problems(f'{CLIENT}[upstreams.ollama]\napi_key_env = "KEY"\n') == (
            'upstreams.ollama.credential: no key is sent with "none"; say how it is sent, for example "bearer".',
        )

    def test_a_missing_token_is_named(self, given: Given) -> None:
        assert given.problems(f"{UPSTREAM}[clients.bob]\n") == (
            "clients.bob.token_sha256: missing; `llmproxy client new` makes a token and prints what goes here.",
        )

    def test_a_token_of_two_clients_is_named(self, given: Given) -> None:
        table = f'[clients.bob]\ntoken_sha256 = ["{OTHER_DIGEST}", "{DIGEST}"]\n'
        assert given.problems(UPSTREAM + CLIENT + table) == (
            "clients.bob.token_sha256: the same token as that of clients.alice; each needs its own.",
        )
        (problem,) = given.problems(UPSTREAM + CLIENT, PROXY_TOKEN=TOKEN.decode())
        assert "the same token" in problem

    def test_without_any_upstream_or_client_it_says_what_to_do(self, given: Given) -> None:
        first, second = given.problems("")
        assert first.startswith("There is no upstream. Add a table such as [upstreams.openai]")
        assert second.startswith("There is no client. Add what `llmproxy client new NAME` prints")

    def test_all_is_told_at_once(self, given: Given) -> None:
        problems = given.problems(
            """
            listen = [0, 1, "x"]
            [limits]
            keep_alive = 0
            [upstreams.openai]
            idle_timeout = "x"
            base_ulr = "x"
            [clients.alice]
            models = [1, 2]
            upstreams = ["opnai"]
            """,
            PORT="x",
        )
        places = [problem.split(" ")[0].rstrip(":") for problem in problems]
        assert places == [
            "PORT",
            "listen[0]",
            "listen[2]",
            "limits.keep_alive",
            "upstreams.openai.idle_timeout",
            "upstreams.openai.base_ulr",
            "clients.alice.models[0]",
            "clients.alice.models[1]",
            "upstreams.openai.api_key_env",
            "clients.alice.token_sha256",
            "clients.alice.upstreams",
        ]


class TestReferredTo:
    @pytest.mark.parametrize("value", [None, "", " "])
    def test_a_variable_that_is_not_set_is_named_by_its_place(self, given: Given, value: str | None) -> None:
        environ = {} if value is None else {"MY_KEY": value}
        assert given.problems(f'{CLIENT}[upstreams.openai]\napi_key_env = "MY_KEY"\n', **environ) == (
            "upstreams.openai.api_key_env names an environment variable that is not set.",
        )

    def test_one_of_several_is_named_by_its_number(self, given: Given) -> None:
        assert given.problems(f'{CLIENT}[upstreams.openai]\napi_key_env = ["KEY", "MY_KEY"]\n') == (
            "upstreams.openai.api_key_env[1] names an environment variable that is not set.",
        )

    def test_a_variable_that_holds_no_key_is_named_but_not_its_value(self, given: Given) -> None:
        (problem,) = given.problems(UPSTREAM + CLIENT, KEY="hunter2 hunter3")
        assert problem.startswith(
            "upstreams.openai.api_key_env names an environment variable that holds a space"
        )
        assert "hunter" not in problem

    def test_a_file_that_cannot_be_read_is_named_by_its_place(self, given: Given, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        assert given.problems(f'{CLIENT}[upstreams.openai]\napi_key_file = ["absent", "empty", "."]\n') == (
            "upstreams.openai.api_key_file[0] names a file that cannot be read (No such file or directory).",
            "upstreams.openai.api_key_file[1] names an empty file.",
            "upstreams.openai.api_key_file[2] names a file that cannot be read (Is a directory).",
        )

    def test_certificates_that_cannot_be_read_are_named(self, given: Given, tmp_path: Path) -> None:
        (tmp_path / "no.pem").write_text("no certificate")
        (problem,) = given.problems(f'{UPSTREAM}ca_file = "no.pem"\n{CLIENT}')
        assert problem.startswith("upstreams.openai.ca_file names a file that holds no PEM certificates: /")
        assert problem.endswith("/no.pem.")


SECRETS = [
    "sk-proj-4f7d",
    "llmp_Zm9vYmFyYmF6",
    "gsk_0123456789abcdef",
    "AIzaSyD4f7d0123456789abcdef0123456789abc",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "text",
    [
        '[upstreams.openai]\napi_key = "SECRET"\n',
        '[upstreams.openai]\napi_key_env = "SECRET"\n',
        '[upstreams.openai]\napi_key_env = ["KEY", "SECRET"]\n',
        '[upstreams.openai]\napi_key_file = "SECRET"\n',
        '[upstreams.openai]\ncredential = "SECRET"\n',
        '[upstreams.openai]\napi = "SECRET"\n',
        '[upstreams.openai]\nbase_url = "SECRET"\n',
        '[upstreams.openai]\nbase_url = "https://SECRET@host"\n',
        '[upstreams.openai]\nca_file = "SECRET"\n',
        '[upstreams.openai]\nidle_timeout = "SECRET"\n',
        '[upstreams.openai]\nheaders = { Authorization = "Bearer SECRET" }\n',
        '[upstreams.openai]\nheaders = { x = "SECRET\\n" }\n',
        '[upstreams.openai]\nheaders = "SECRET"\n',
        '[clients.alice]\ntoken_sha256 = "SECRET"\n',
        '[clients.alice]\ntoken_sha256 = ["SECRET"]\n',
        '[clients.alice]\ntoken = "SECRET"\n',
        '[clients.alice]\nmodels = "SECRET"\n',
        '[clients.alice]\nupstreams = ["SECRET"]\n',
        '[clients.alice]\nnetworks = ["SECRET"]\n',
        '[clients.alice]\nexpires = "SECRET"\n',
        'listen = ["SECRET"]\n',
        'listen = ["tcp:SECRET"]\n',
        'listen = "SECRET"\n',
        'cors_origins = ["SECRET"]\n',
        'https_proxy = "ftp://user:SECRET@host"\n',
        'no_proxy = "SECRET"\n',
        'ledger = "SECRET"\n',
        'ledger = "postgresql://user:SECRET@host/name with spaces"\n',
        'ledger = ["postgresql://user:SECRET@host/name"]\n',
        'ledger_retention = "postgresql://user:SECRET@host/name"\n',
        'admin_port = "SECRET"\n',
        'session_headers = ["SECRET SECRET"]\n',
        'log_level = "SECRET"\n',
        '[prices.x]\ninput = "SECRET"\n',
        'key = "SECRET\n',
    ],
)
def test_a_secret_in_a_wrong_place_is_in_no_message(given: Given, text: str, secret: str) -> None:
    found = given.problems(text.replace("SECRET", secret))
    assert found
    assert not any(secret in problem for problem in found)


class TestNoTOML:
    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("listen = [1]\n[limits\n", "line 2, column 8: "),
            ("listen = ", "line 1, column 10: "),
            ("listen = [1,\n", "line 2, column 1: "),
            ("a = 1\na = 2\n", "line 2, column 6: "),
            ("\n\na = 'é' x", "line 3, column 9: "),
        ],
    )
    def test_the_line_and_column_are_named(self, given: Given, text: str, where: str) -> None:
        (problem,) = given.problems(text)
        assert problem.startswith(f"{given.path}: {where}")
        assert "(at " not in problem

    def test_what_is_malformed_in_the_environment_is_told_beside_it(self, given: Given) -> None:
        first, second = given.problems("=", PORT="x")
        assert first == "PORT is not a port number: 'x'."
        assert second.startswith(f"{given.path}: line 1, column 1: ")

    @pytest.mark.skipif(not hasattr(sys, "get_int_max_str_digits"), reason="any number of digits is read")
    def test_a_number_that_cannot_be_read_is_a_problem_too(self, given: Given) -> None:
        (problem,) = given.problems("a = " + "1" * 5000)
        assert problem.startswith(f"{given.path}: ")
        assert len(problem) < 300

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        for path, why in ((tmp_path / "absent", "No such file or directory"), (tmp_path, "Is a directory")):
            with pytest.raises(ConfigError) as caught:
                load({}, str(path))
            assert caught.value.problems == (f"{path} cannot be read ({why}).",)

    def test_a_file_in_another_encoding_is_named(self, given: Given) -> None:
        given.path.write_bytes("a = 'é'".encode("latin-1"))
        with pytest.raises(ConfigError, match=r"is not text in UTF-8 \(byte 5\)"):
            load({}, str(given.path))
