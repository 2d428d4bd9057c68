from __future__ import annotations

import re

import pytest

from llmproxy.cli.check import report
from llmproxy.cli.online import Finding
from tests.cli_support import DIGESTS, FILE, KEY, Shell, shell

__all__ = ["shell"]  # a fixture


def section(text: str, title: str) -> list[list[str]]:
    """The rows of a section of the output, their cells apart."""
    rows = text.partition(f"\n{title}\n")[2].partition("\n\n")[0].splitlines()
    return [re.split(" {2,}", row.strip()) for row in rows]


class TestGood:
    def test_it_tells_what_upstreams_come_to_with_their_presets(self, shell: Shell) -> None:
        ran = shell.run("check", "-c", str(shell.file))
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.startswith("It can be used, and listens on tcp:33001:interface=127.0.0.1.\n")
        assert section(ran.out, "Upstreams") == [
            ["/openai/", "https://api.openai.com", "credential bearer", "1 key", "api openai"]
        ]

    def test_it_tells_what_clients_may_do(self, shell: Shell) -> None:
        shell.file.write_text(
            FILE.replace(
                'upstreams = ["openai"]', 'upstreams = ["openai"]\ndeny_models = ["gpt-4*"]'
            ).replace("models=[", "networks = ['10.0.0.0/8']\nmodels=[")
        )
        ran = shell.run("check", "-c", str(shell.file))
        assert section(ran.out, "Clients") == [
            ["alice", "all upstreams", "models gpt-*, o?", "never expires", "from 10.0.0.0/8", "1 token"],
            [
                "bob",
                "upstreams openai",
                "all models but not gpt-4*",
                "expires 2127-01-31 23:59:59 UTC",
                "from anywhere",
                "2 tokens",
            ],
        ]

    def test_no_key_and_no_digest_is_shown(self, shell: Shell) -> None:
        out = shell.run("check", "-c", str(shell.file)).out
        assert KEY not in out
        assert not any(digest in out for digest in DIGESTS)

    def test_an_upstream_without_a_key_says_so(self, shell: Shell) -> None:
        shell.file.write_text(f"{FILE}[upstreams.ollama]\n")
        assert section(shell.run("check", "-c", str(shell.file)).out, "Upstreams")[1] == [
            *("/ollama/", "http://127.0.0.1:11434", "credential none", "no keys", "api openai")
        ]

    def test_warnings_are_told(self, shell: Shell) -> None:
        shell.file.write_text(
            FILE.replace("[upstreams.openai]", '[upstreams.openai]\nbase_url = "http://openai.example/v1"')
        )
        ran = shell.run("check", "-c", str(shell.file))
        assert ran.status == 0
        warnings = ran.out.partition("\nWarnings\n")[2]
        assert "ends in /v1" in warnings
        assert "unencrypted" in warnings

    def test_where_there_is_no_warning_there_is_no_such_section(self, shell: Shell) -> None:
        assert "Warnings" not in shell.run("check", "-c", str(shell.file)).out

    def test_the_environment_alone_is_checked_too(self, shell: Shell) -> None:
        shell.environ.update(
            OPENAI_BASE_URL="https://openai.example",
            OPENAI_API_KEY=KEY,
            ANTHROPIC_BASE_URL="https://anthropic.example",
            ANTHROPIC_API_KEY=KEY,
            PROXY_TOKEN="local-token-of-the-team",
        )
        ran = shell.run("check")
        assert ran.status == 0
        assert [row[0] for row in section(ran.out, "Upstreams")] == ["/openai/", "/anthropic/"]
        assert [row[0] for row in section(ran.out, "Clients")] == ["default"]
        assert "local-token-of-the-team" not in ran.out


class TestWrong:
    def test_each_problem_is_told_with_its_place(self, shell: Shell) -> None:
        shell.file.write_text(FILE.replace("models=", "modles=").replace("0x2000", "0"))
        del shell.environ["TEAM_OPENAI_KEY"]
        error = shell.refused("check", "-c", str(shell.file))
        for place in ("clients.alice.modles", "limits.max_target", "upstreams.openai.api_key_env"):
            assert f"\n  - {place}" in error

    def test_a_secret_in_the_wrong_place_is_not_shown(self, shell: Shell) -> None:
        shell.file.write_text(
            FILE.replace("api_key_env", f'api_key = "{KEY}"\napi_key_env').replace(
                f"'{DIGESTS[0]}'", "'llmp_token'"
            )
        )
        error = shell.refused("check", "-c", str(shell.file))
        assert "upstreams.openai.api_key:" in error
        assert "clients.alice.token_sha256" in error
        assert "llmp_token" not in error

    def test_nobody_is_asked_where_the_configuration_is_wrong(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.cli.check._ask", lambda _: pytest.fail("asked"))
        shell.file.write_text("listen = 3\n")
        shell.refused("check", "--online", "-c", str(shell.file))


def test_without_online_nobody_is_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmproxy.cli.check._ask", lambda _: pytest.fail("asked"))
    assert shell.run("check", "-c", str(shell.file)).status == 0


def test_the_status_of_online_is_that_of_asking(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmproxy.cli.check._ask", lambda _: 1)
    assert shell.run("check", "--online", "-c", str(shell.file)).status == 1


def test_what_was_found_is_told_in_columns() -> None:
    findings = [
        Finding("openai, key 1 of 1", "works (200 in 5 ms)"),
        Finding("local, no key", "refused", failed=True),
    ]
    assert list(report(findings)) == [
        "\nOnline",
        "  openai, key 1 of 1  works (200 in 5 ms)",
        "  local, no key       refused",
    ]
