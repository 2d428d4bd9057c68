"""What ``llmproxy check`` tells beside upstreams and clients."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.cli_support import FILE, Ran, Shell, shell
from tests.test_cli_check import section

__all__ = ["shell"]  # a fixture

PASSWORD = "hunter2"
DEFAULTS = [
    ["ledger", "sqlite:///state/llmproxy/ledger.sqlite3"],
    ["ledger_retention", "for ever"],
    ["request_id", "true"],
    ["log_format", "text"],
    ["log_level", "info"],
    ["admin_port", "nowhere"],
]
LIMITS = "Limits that are not the default"
PRICES = "Prices in USD per million tokens"

Check = Callable[..., Ran]


@pytest.fixture
def check(shell: Shell) -> Check:
    """Check the configuration file with some lines before it and some behind, and with some variables set."""
    shell.environ["XDG_STATE_HOME"] = "/state"

    def run(before: str = "", behind: str = "", **environ: str) -> Ran:
        shell.environ.update(environ)
        shell.file.write_text(f"{before}\n{FILE}\n{behind}\n")
        ran = shell.run("check", "-c", str(shell.file))
        assert (ran.status, ran.err) == (0, "")
        assert PASSWORD not in ran.out
        return ran

    return run


def test_what_matters_to_everybody_is_told_also_where_nothing_is_set(check: Check) -> None:
    assert section(check().out, "Settings") == DEFAULTS


def test_it_stands_before_the_upstreams_and_clients(check: Check) -> None:
    titles = [
        line
        for line in check(behind='[prices."x"]\ninput = 1\noutput = 1').out.splitlines()[1:]
        if line[:1].isalpha()
    ]
    assert titles == ["Settings", "Upstreams", LIMITS, PRICES, "Clients"]


@pytest.mark.parametrize(
    ("line", "key", "told"),
    [
        ('ledger = "sqlite:///srv/ledger.sqlite3"', "ledger", "sqlite:///srv/ledger.sqlite3"),
        ("ledger_retention = 400", "ledger_retention", "400 days"),
        ("ledger_retention = 1", "ledger_retention", "1 day"),
        ("ledger_backlog = 500", "ledger_backlog", "500"),
        ("request_id = false", "request_id", "false"),
        ('session_headers = ["X-Session-Id", "x-agent"]', "session_headers", "x-session-id, x-agent"),
        ('log_format = "json"', "log_format", "json"),
        ('log_level = "warn"', "log_level", "warn"),
        ("admin_port = 9100", "admin_port", "tcp:9100:interface=127.0.0.1"),
        ('cors_origins = ["https://chat.example", "*"]', "cors_origins", "https://chat.example, *"),
        ("max_resent_body = 0", "max_resent_body", "0"),
        ('https_proxy = "http://proxy.example:3128"', "https_proxy", "http://proxy.example:3128"),
        ('no_proxy = ["localhost", ".example"]', "no_proxy", "localhost, .example"),
    ],
)
def test_a_key_of_the_file_is_told_with_what_it_comes_to(
    check: Check, line: str, key: str, told: str
) -> None:
    rows = dict(section(check(line).out, "Settings"))
    assert rows.pop(key) == told
    assert rows.items() <= dict(DEFAULTS).items()


@pytest.mark.parametrize(
    ("variable", "value", "row"),
    [
        ("LLMPROXY_LEDGER_RETENTION", "90", ["ledger_retention", "90 days"]),
        ("LLMPROXY_REQUEST_ID", "off", ["request_id", "false"]),
        ("LOG_FORMAT", "json", ["log_format", "json"]),
        ("ADMIN_PORT", "tcp:9100", ["admin_port", "tcp:9100"]),
        ("no_proxy", "localhost,.example", ["no_proxy", "localhost, .example"]),
    ],
)
def test_a_variable_is_told_by_the_key_for_which_it_stands(
    check: Check, variable: str, value: str, row: list[str]
) -> None:
    assert row in section(check(**{variable: value}).out, "Settings")


def test_without_a_ledger_nothing_is_told_of_how_it_is_kept(check: Check) -> None:
    rows = section(check("ledger_retention = 3\nledger_backlog = 5", LLMPROXY_LEDGER="none").out, "Settings")
    assert rows[:2] == [["ledger", "none"], ["request_id", "true"]]


def test_no_password_is_told(check: Check) -> None:
    ran = check(
        LLMPROXY_LEDGER=f"postgresql://llmproxy:{PASSWORD}@db.example/ledger?sslpassword={PASSWORD}",
        HTTPS_PROXY=f"http://user:{PASSWORD}@proxy.example:3128",
    )
    rows = dict(section(ran.out, "Settings"))
    assert rows["ledger"] == "postgresql://llmproxy@db.example/ledger"
    assert rows["https_proxy"] == "http://proxy.example:3128"


class TestLimits:
    def test_those_of_clients_are_told_beside_their_default(self, check: Check) -> None:
        assert section(check().out, LIMITS) == [["clients", "max_target", "8192 instead of 16384"]]

    def test_what_concerns_all_upstreams_is_told_once(self, check: Check) -> None:
        ran = check(behind="[defaults]\nkeep_alive = 2.5\nidle_timeout = 86400\n[upstreams.ollama]")
        assert section(ran.out, LIMITS)[1:] == [
            ["all upstreams", "idle_timeout", "86400 instead of 600"],
            ["all upstreams", "keep_alive", "2.5 instead of 4"],
        ]

    def test_what_concerns_some_upstreams_names_them(self, check: Check) -> None:
        ran = check(
            behind="[upstreams.ollama]\nmax_connections = 4\n[upstreams.vllm]\nmax_connections = 4\n"
            "[upstreams.lmstudio]\nmax_connections = 1\nfirst_byte_timeout = 60"
        )
        assert section(ran.out, LIMITS)[1:] == [
            ["/ollama/, /vllm/", "max_connections", "4 instead of 4096"],
            ["/lmstudio/", "first_byte_timeout", "60 instead of 600"],
            ["/lmstudio/", "max_connections", "1 instead of 4096"],
        ]

    def test_an_upstream_that_goes_back_to_the_default_is_not_told(self, check: Check) -> None:
        ran = check(behind="[defaults]\nkeep_alive = 2\n[upstreams.ollama]\nkeep_alive = 4")
        assert section(ran.out, LIMITS)[1:] == [["/openai/", "keep_alive", "2 instead of 4"]]

    def test_where_all_are_the_default_there_is_no_such_section(self, shell: Shell) -> None:
        shell.file.write_text(FILE.replace("max_target = 0x2000", "max_target = 16384"))
        assert LIMITS not in shell.run("check", "-c", str(shell.file)).out


class TestPrices:
    def test_each_pattern_is_told_with_its_prices_as_they_are_written(self, check: Check) -> None:
        ran = check(
            behind='[prices."claude-*"]\ninput = 2.70\noutput = 13\n'
            '[prices."gpt-audio-*"]\ninput_audio = 32\ntiers.flex = { input_audio = 0.000000001 }'
        )
        assert section(ran.out, PRICES) == [
            ["claude-*", "input 2.70, output 13"],
            ["gpt-audio-*", "input_audio 32"],
            ["gpt-audio-*, tier flex", "input_audio 0.000000001"],
        ]

    def test_a_pattern_that_has_prices_for_a_tier_alone_is_told_with_that(self, check: Check) -> None:
        ran = check(behind='[prices."gpt-*"]\ntiers.flex = { input = 1 }')
        assert section(ran.out, PRICES) == [["gpt-*, tier flex", "input 1"]]

    def test_where_there_are_none_there_is_no_such_section(self, check: Check) -> None:
        assert PRICES not in check().out


class TestRefused:
    def test_a_ledger_for_which_there_is_no_driver(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        shell.environ["LLMPROXY_LEDGER"] = f"postgresql://me:{PASSWORD}@db.example/ledger"
        problem = shell.refused("check", "-c", str(shell.file))
        assert "\n  - ledger needs psycopg for PostgreSQL" in problem
        assert PASSWORD not in problem

    def test_a_ledger_that_its_driver_cannot_understand(self, shell: Shell) -> None:
        shell.environ["LLMPROXY_LEDGER"] = f"postgresql://me:{PASSWORD}@db.example/ledger?colour=red"
        problem = shell.refused("check", "-c", str(shell.file))
        assert "\n  - ledger is not a URL that libpq can read" in problem
        assert PASSWORD not in problem
