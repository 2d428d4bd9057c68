"""The settings by which a proxy is watched: the ledger and its place, prices, what is recorded, the log and the metrics."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmproxy.config import (
    NO_LEDGER,
    Accounting,
    Config,
    ConfigError,
    Logging,
    PriceOverride,
    load,
    load_ledger,
)
from llmproxy.config.watching import default_ledger, ledger_in, parse_ledger, without_password
from tests.support import ENVIRON

PASSWORD = "hunter2"
POSTGRESQL = f"postgresql://llmproxy:{PASSWORD}@db.example/ledger"


class Given:
    """A configuration file in a directory of its own, beside an environment that is enough."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "llmproxy.toml"

    def load(self, text: str, **environ: str) -> Config:
        self.path.write_text(text)
        return load({**ENVIRON, **environ}, str(self.path))

    def accounting(self, text: str, **environ: str) -> Accounting:
        return self.load(text, **environ).accounting

    def prices(self, text: str) -> tuple[PriceOverride, ...]:
        return self.accounting(text).prices

    def problem(self, text: str, **environ: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(text, **environ)
        (problem,) = caught.value.problems
        return problem


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Given:
    return Given(tmp_path)


def problem(**environ: str) -> str:
    """The one problem of an environment that is otherwise enough."""
    with pytest.raises(ConfigError) as caught:
        load({**ENVIRON, **environ})
    (found,) = caught.value.problems
    return found


class TestTheLedger:
    @pytest.mark.parametrize(
        ("environ", "url"),
        [
            ({"HOME": "/home/me"}, "sqlite:///home/me/.local/state/llmproxy/ledger.sqlite3"),
            ({"HOME": "/home/m e%"}, "sqlite:///home/m%20e%25/.local/state/llmproxy/ledger.sqlite3"),
            ({"HOME": "/h", "XDG_STATE_HOME": "/state"}, "sqlite:///state/llmproxy/ledger.sqlite3"),
            ({"HOME": "/h", "XDG_STATE_HOME": ""}, "sqlite:///h/.local/state/llmproxy/ledger.sqlite3"),
            ({"HOME": "/h", "XDG_STATE_HOME": "state"}, "sqlite:///h/.local/state/llmproxy/ledger.sqlite3"),
            (
                {"STATE_DIRECTORY": "/var/lib/llmproxy", "XDG_STATE_HOME": "/s"},
                "sqlite:///var/lib/llmproxy/ledger.sqlite3",
            ),
            ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "sqlite:///var/lib/a/ledger.sqlite3"),
        ],
    )
    def test_is_in_the_state_directory_unless_something_else_is_said(
        self, environ: dict[str, str], url: str
    ) -> None:
        assert default_ledger(environ) == url
        assert load({**ENVIRON, **environ}).accounting.ledger == url
        assert load_ledger(environ) == url

    def test_is_in_the_home_of_the_user_also_where_the_environment_names_none(self) -> None:
        path = default_ledger({}).removeprefix("sqlite://")
        assert path.startswith("/")
        assert path.endswith("/.local/state/llmproxy/ledger.sqlite3")

    @pytest.mark.parametrize(
        "url",
        [
            "none",
            "sqlite:///var/lib/llmproxy/ledger.sqlite3",
            POSTGRESQL,
            "postgres://db.example/ledger",
            "postgresql:///ledger",
            "postgresql://",
            "postgresql://%2Frun%2Fpostgresql/ledger",
            "postgresql://llmproxy@[::1]:5433,db.example:5432/ledger?target_session_attrs=read-write",
            "postgresql://db.example/ledger?sslmode=verify-full&passfile=/etc/llmproxy/pgpass",
            "postgresql://me:p%40ss%2Fword:2@db.example",
        ],
    )
    def test_is_a_file_or_a_database_or_none(self, file: Given, url: str) -> None:
        assert file.accounting(f'ledger = "{url}"').ledger == url
        assert load({**ENVIRON, "LLMPROXY_LEDGER": url}).accounting.ledger == url

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("sqlite:ledger.sqlite3", "ledger.sqlite3"),
            ("sqlite:data/led%20ger", "data/led%20ger"),
            ("sqlite:led ger", "led%20ger"),
            ("sqlite:../ledger", "../ledger"),
        ],
    )
    def test_a_relative_path_begins_at_the_directory_of_the_file(
        self, file: Given, monkeypatch: pytest.MonkeyPatch, url: str, path: str
    ) -> None:
        expected = f"sqlite://{file.directory}/{path}"
        assert file.accounting(f'ledger = "{url}"').ledger == expected
        monkeypatch.chdir(file.directory)
        assert load(ENVIRON, file.path.name).accounting.ledger == expected
        assert load_ledger({}, file.path.name) == expected

    def test_any_number_of_slashes_from_three_begins_an_absolute_path(self, file: Given) -> None:
        assert file.accounting('ledger = "sqlite:////srv/l%C3%A9dger"').ledger == "sqlite:///srv/l%C3%A9dger"
        assert file.accounting('ledger = "sqlite:///srv/lédger"').ledger == "sqlite:///srv/l%C3%A9dger"

    def test_a_variable_has_no_directory_to_begin_at(self) -> None:
        assert (
            problem(LLMPROXY_LEDGER="sqlite:ledger")
            == "LLMPROXY_LEDGER must name an absolute path: sqlite:///PATH."
        )

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "None",
            "off",
            "ledger.sqlite3",
            "/var/lib/ledger",
            "sqlite",
            "sqlite:",
            "sqlite://",
            "sqlite:///",
            "sqlite://ledger",
            "sqlite:/ledger",
            "sqlite:///ledger/",
            "sqlite:///ledger?mode=ro",
            "sqlite:///led%00ger",
            "mysql://db.example/ledger",
            "postgresql:ledger",
            f"postgresql://me:{PASSWORD}",
            f"postgresql://me:{PASSWORD}/x@db.example/ledger",
            f"postgresql://me:{PASSWORD}?x@db.example/ledger",
            f"postgresql://me:{PASSWORD}#x@db.example/ledger",
            f"postgresql://me:{PASSWORD}@x@db.example/ledger",
            f"postgresql://me:{PASSWORD} x@db.example/ledger",
            f"postgresql://db.example/ledger?password=x@{PASSWORD}",
            f"postgresql://me:{PASSWORD}@db.example/ledger#x",
        ],
    )
    def test_what_is_no_such_url_is_named_by_its_place_and_shows_nothing(self, file: Given, url: str) -> None:
        by_file = file.problem(f'ledger = "{url}"')
        assert by_file.startswith("ledger must be ")
        assert PASSWORD not in by_file
        if url:
            by_variable = problem(LLMPROXY_LEDGER=url)
            assert by_variable.startswith("LLMPROXY_LEDGER must be ")
            assert PASSWORD not in by_variable

    def test_may_come_from_a_file_of_its_own_for_its_password(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text(f"{POSTGRESQL}\n")
        assert load({**ENVIRON, "LLMPROXY_LEDGER_FILE": str(secret)}).accounting.ledger == POSTGRESQL
        assert load_ledger({"LLMPROXY_LEDGER_FILE": str(secret)}) == POSTGRESQL
        secret.write_text(PASSWORD)
        found = problem(LLMPROXY_LEDGER_FILE=str(secret))
        assert found.startswith("LLMPROXY_LEDGER_FILE names a file whose text must be sqlite:///PATH")
        assert PASSWORD not in found

    @pytest.mark.parametrize("none", ["none", " none\n"])
    def test_a_file_of_its_own_comes_before_none(self, tmp_path: Path, none: str) -> None:
        secret = tmp_path / "secret"
        secret.write_text(POSTGRESQL)
        both = {"LLMPROXY_LEDGER": none, "LLMPROXY_LEDGER_FILE": str(secret)}
        config = load({**ENVIRON, **both})
        assert config.accounting.ledger == load_ledger(both) == POSTGRESQL
        assert config.warnings() == []

    def test_none_is_no_way_out_where_that_file_cannot_be_read(self, tmp_path: Path) -> None:
        absent = str(tmp_path / "absent")
        assert problem(LLMPROXY_LEDGER="none", LLMPROXY_LEDGER_FILE=absent) == (
            "LLMPROXY_LEDGER_FILE names a file that cannot be read (No such file or directory)."
        )

    @pytest.mark.parametrize("other", ["None", "", POSTGRESQL, "sqlite:///srv/ledger.sqlite3"])
    def test_beside_a_file_of_its_own_nothing_else_may_stand(self, tmp_path: Path, other: str) -> None:
        secret = tmp_path / "secret"
        secret.write_text(POSTGRESQL)
        assert problem(LLMPROXY_LEDGER=other, LLMPROXY_LEDGER_FILE=str(secret)) == (
            "LLMPROXY_LEDGER and LLMPROXY_LEDGER_FILE are both set; keep one."
        )

    def test_none_gives_way_for_no_other_setting(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("local-token-of-the-team")
        assert problem(PROXY_TOKEN="none", PROXY_TOKEN_FILE=str(secret)) == (
            "PROXY_TOKEN and PROXY_TOKEN_FILE are both set; keep one."
        )

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (POSTGRESQL, "postgresql://llmproxy@db.example/ledger"),
            (f"postgres://:{PASSWORD}@db.example", "postgresql://db.example"),
            (f"postgresql://me@db.example/ledger?password={PASSWORD}", "postgresql://me@db.example/ledger"),
            (f"postgresql://me:{PASSWORD}", "postgresql://..."),
            ("sqlite:///home/me@host/ledger", "sqlite:///home/me@host/ledger"),
            ("none", "none"),
        ],
    )
    def test_is_shown_without_its_password(self, url: str, shown: str) -> None:
        assert without_password(url) == shown
        assert f"ledger={shown}," in repr(Accounting(url))

    def test_no_repr_of_a_configuration_shows_a_password(self, file: Given) -> None:
        config = file.load(f'ledger = "{POSTGRESQL}"')
        assert config.accounting.ledger == POSTGRESQL
        assert PASSWORD not in repr(config)
        assert "db.example" in repr(config)

    def test_the_file_stands_before_a_variable_which_is_warned_of(self, file: Given) -> None:
        config = file.load('ledger = "none"', LLMPROXY_LEDGER=POSTGRESQL)
        assert config.accounting.ledger == NO_LEDGER
        assert config.warnings() == [
            "LLMPROXY_LEDGER is not used: ledger in the configuration file stands in its place."
        ]

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30))
    def test_any_name_of_a_file_survives_encoding(self, name: str) -> None:
        assume(name not in (".", ".."))
        url = ledger_in(Path("/srv"), parse_ledger(f"sqlite:{quote(name)}"))
        assert unquote(urlsplit(url).path) == f"/srv/{name}"
        assert parse_ledger(url) == url


class TestTheLedgerReadAlone:
    def test_needs_nothing_else_to_be_right(self, file: Given) -> None:
        file.path.write_text(
            f'ledger = "{POSTGRESQL}"\nlisten = 0\nx = 1\n[upstreams.openai]\napi_key_env = "ABSENT"'
        )
        assert load_ledger({"PORT": "x"}, str(file.path)) == POSTGRESQL
        assert load_ledger({"LLMPROXY_CONFIG": f" {file.path} "}) == POSTGRESQL

    def test_comes_from_a_variable_where_the_file_says_nothing(self, file: Given) -> None:
        file.path.write_text("listen = [1]")
        assert load_ledger({"LLMPROXY_LEDGER": POSTGRESQL}, str(file.path)) == POSTGRESQL

    def test_is_told_of_where_it_is_wrong(self, file: Given) -> None:
        file.path.write_text("ledger = 3")
        with pytest.raises(ConfigError) as caught:
            load_ledger({"LLMPROXY_LEDGER": "x", "PORT": "x"}, str(file.path))
        assert caught.value.problems == (
            "LLMPROXY_LEDGER must be sqlite:///PATH, sqlite:PATH, postgresql://USER@HOST/NAME or none.",
            'ledger: found 3, but it must be a URL, or "none".',
        )

    def test_needs_a_file_that_can_be_read(self, file: Given) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            load_ledger({}, str(file.path))
        file.path.write_text("=")
        with pytest.raises(ConfigError, match="line 1, column 1"):
            load_ledger({}, str(file.path))
        with pytest.raises(ConfigError, match="LLMPROXY_CONFIG is empty"):
            load_ledger({"LLMPROXY_CONFIG": ""})


def test_what_is_recorded_is_taken_over(file: Given) -> None:
    assert file.accounting(
        """
        ledger = "none"
        ledger_retention = 30
        ledger_backlog = 5
        request_id = false
        session_headers = ["X-Session-Id", "x-trace"]
        """
    ) == Accounting("none", 30, 5, False, (b"x-session-id", b"x-trace"))


def test_how_it_logs_is_taken_over_key_by_key(file: Given) -> None:
    assert file.load('log_format = "json"').logging == Logging("json", "info")
    assert file.load('log_format = "json"', LOG_LEVEL="debug").logging == Logging("json", "debug")
    both = file.load('log_level = "warn"', LOG_LEVEL="debug")
    assert both.logging == Logging("text", "warn")
    assert len(both.warnings()) == 1


@pytest.mark.parametrize(
    ("written", "endpoint"),
    [
        ("9100", "tcp:9100:interface=127.0.0.1"),
        ('"9100"', "tcp:9100:interface=127.0.0.1"),
        ('"tcp:9100:interface=10.0.0.5"', "tcp:9100:interface=10.0.0.5"),
        ('"unix:/run/llmproxy/admin"', "unix:/run/llmproxy/admin"),
    ],
)
def test_metrics_are_on_loopback_unless_an_endpoint_says_otherwise(
    file: Given, written: str, endpoint: str
) -> None:
    assert file.load(f"admin_port = {written}").admin == endpoint
    assert load({**ENVIRON, "ADMIN_PORT": written.strip('"')}).admin == endpoint
    assert file.load("", ADMIN_PORT="9100").admin == "tcp:9100:interface=127.0.0.1"
    assert file.load("").admin is None


class TestSessionHeaders:
    @pytest.mark.parametrize("name", ["Authorization", "x-api-key", "x-goog-api-key", "Api-Key", "cookie"])
    def test_none_that_holds_a_secret_is_recorded(self, file: Given, name: str) -> None:
        assert file.problem(f'session_headers = ["x", "{name}"]') == (
            "session_headers[1] names a header that may hold a secret, which must not be recorded."
        )

    def test_nor_one_that_holds_the_key_for_an_upstream(self, file: Given) -> None:
        upstream = '[upstreams.in-house]\nbase_url = "https://llm.example"\napi_key_env = "PROXY_TOKEN"\ncredential = '
        assert file.problem(f'session_headers = ["x-key"]\n{upstream}"header:X-Key"\n') == (
            "session_headers[0]: the header that holds the key for upstreams.in-house must not be recorded."
        )
        assert file.accounting(f'session_headers = ["x-key"]\n{upstream}"query:X-Key"\n').session_headers


class TestPrices:
    def test_each_table_says_what_it_says_and_leaves_the_rest(self, file: Given) -> None:
        assert file.prices(
            """
            [prices."claude-*"]
            input = 3
            output = 15.0
            cache_read = 0.3
            cache_write_5m = 3.75
            cache_write_1h = 6
            [prices."gpt-audio"]
            input_audio = 32
            output_audio = 0
            """
        ) == (
            PriceOverride(
                "claude-*",
                input=Decimal(3),
                output=Decimal(15),
                cache_read=Decimal("0.3"),
                cache_write_5m=Decimal("3.75"),
                cache_write_1h=Decimal(6),
            ),
            PriceOverride("gpt-audio", input_audio=Decimal(32), output_audio=Decimal(0)),
        )

    def test_those_of_the_file_keep_their_order_for_the_first_that_fits_stands(self, file: Given) -> None:
        text = "".join(f'[prices."{name}"]\ninput = 1\n' for name in ("z*", "a*", "*", "a-b"))
        assert [price.model for price in file.prices(text)] == ["z*", "a*", "*", "a-b"]

    def test_a_service_tier_has_prices_of_its_own(self, file: Given) -> None:
        assert file.prices("[prices.x]\ninput = 2\n[prices.x.tiers.Flex]\ninput = 1\n[prices.y]\n") == (
            PriceOverride("x", input=Decimal(2)),
            PriceOverride("x", "flex", input=Decimal(1)),
        )

    def test_a_table_that_only_has_a_tier_says_nothing_of_the_standard_one(self, file: Given) -> None:
        text = "[prices.x.tiers.flex]\ninput = 1\n[prices.y.tiers.flex]\n[prices.z]\n"
        assert file.prices(text) == (PriceOverride("x", "flex", input=Decimal(1)),)

    @pytest.mark.parametrize("name", ["default", "standard", "Standard", "on_demand", "auto"])
    def test_the_standard_tier_can_be_called_as_answers_call_it(self, file: Given, name: str) -> None:
        prices = file.prices(f"[prices.x]\ninput = 2\n[prices.x.tiers.{name}]\noutput = 1\n")
        assert prices == (PriceOverride("x", None, input=Decimal(2), output=Decimal(1)),)

    @pytest.mark.parametrize(
        ("first", "again", "tier"),
        [
            ("x", "x.tiers.default", "the standard service tier"),
            ("x.tiers.standard", "x.tiers.default", "the standard service tier"),
            ("x.tiers.Flex", "x.tiers.flex", "the service tier flex"),
        ],
    )
    def test_a_price_that_is_given_by_two_names_of_its_tier_is_named(
        self, file: Given, first: str, again: str, tier: str
    ) -> None:
        found = file.problem(f"[prices.{first}]\ninput = 2\n[prices.{again}]\ninput = 2\n")
        assert found == (
            f"prices.{again}.input: prices.{first}.input is the same price, of {tier}; keep one of them."
        )

    @pytest.mark.parametrize(
        "written",
        ["0.1", "0.000000001", "1e-9", "1_0.5", "+2.675", "10000", "10_000.0", "0", "0.10000000000000"],
    )
    def test_they_are_exactly_what_is_written(self, file: Given, written: str) -> None:
        (price,) = file.prices(f"[prices.x]\ninput = {written}\n")
        assert isinstance(price.input, Decimal)
        assert price.input == Decimal(written)

    @pytest.mark.parametrize(
        ("written", "shown"),
        [
            ("-1", "-1"),
            ("-0.5", "-0.5"),
            ("-0.0", "-0.0"),
            ("10000.01", "10000.01"),
            ("1e4000", "inf"),
            ("1e300", "1E+300"),
            ("0.0000000001", "1E-10"),
            ("0." + "1" * 100, "a number of many digits"),
            ("1e-99999999999999999999", "0.0"),
            ("nan", "nan"),
            ("inf", "inf"),
            ("true", "true"),
            ('"1.5"', '"1.5"'),
            ("[1]", "a list"),
            ("2027-01-01", "2027-01-01"),
        ],
    )
    def test_what_is_no_price_is_named_by_its_place(self, file: Given, written: str, shown: str) -> None:
        assert file.problem(f'[prices."a*"]\noutput = {written}\n') == (
            f'prices."a*".output: found {shown}, but it must be a number from 0 to 10000 with at most 9 decimals.'
        )

    @pytest.mark.parametrize("name", ["", " x", "x ", " "])
    def test_a_pattern_that_can_match_no_model_is_named(self, file: Given, name: str) -> None:
        assert file.problem(f'[prices."{name}"]\ninput = 1\n') == (
            f'prices."{name}" cannot be a pattern of models: it is empty, or has a space at its beginning or end.'
        )

    def test_a_tier_that_no_answer_names_is_named(self, file: Given) -> None:
        found = file.problem('[prices.x.tiers."a b"]\ninput = 1\n')
        assert found.startswith('prices.x.tiers."a b" cannot be the name of a service tier')
