from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import attrs
import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred, fail, inlineCallbacks, succeed
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock

from llmproxy.cli.check import online, report
from llmproxy.cli.online import Finding
from llmproxy.config import Config, Credential, Family, Upstream
from llmproxy.values import parse_base_url
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

    def test_prices_that_are_of_no_use_without_another_are_named(self, shell: Shell) -> None:
        shell.file.write_text(
            f"""{FILE}
            [prices."qwen3:*"]
            input = 0.05
            [prices."whole"]
            input = 1
            output = 1
            [prices."gpt-4.1*"]
            input = 1
            tiers.priority.output = 1
            tiers.contract.output = 1
            [prices."gpt-4o-2024-*"]
            output = 1
            [prices."claude-opus-4-5"]
            output = 1
            """
        )
        ran = shell.run("check", "-c", str(shell.file))
        rest = "no price list of an upstream seems to have one: the cost of answers with such tokens is recorded as unknown."
        assert (ran.status, section(ran.out, "Warnings")) == (
            0,
            [
                [f'prices."qwen3:*" sets no price of output, and {rest}'],
                [f'prices."gpt-4.1*".tiers.contract sets no price of input, and {rest}'],
                [f"prices.claude-opus-4-5 sets no price of input, and {rest}"],
            ],
        )

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

    def test_where_no_file_was_named_it_says_how_one_is(self, shell: Shell) -> None:
        error = shell.refused("check")
        assert "\n  - OPENAI_BASE_URL is not set.\n" in error
        assert error.endswith(
            "\nNo configuration file was read: --config FILE or LLMPROXY_CONFIG names one.\n"
        )
        shell.environ["LLMPROXY_CONFIG"] = str(shell.file.with_name("missing.toml"))
        assert "No configuration file was read" not in shell.refused("check")

    @pytest.mark.parametrize("words", [["check"], ["client", "list"], ["client", "new", "carol"], ["usage"]])
    def test_a_directory_is_no_file(self, shell: Shell, words: list[str]) -> None:
        error = shell.refused(*words, "-c", str(shell.file.parent))
        assert f"{shell.file.parent} cannot be read" in error
        assert "Is a directory" in error

    def test_nobody_is_asked_where_the_configuration_is_wrong(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmproxy.cli.check._ask", lambda _: pytest.fail("asked"))
        shell.file.write_text("listen = 3\n")
        shell.refused("check", "--online", "-c", str(shell.file))


def test_without_online_nobody_is_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmproxy.cli.check._ask", lambda _: pytest.fail("asked"))
    assert shell.run("check", "-c", str(shell.file)).status == 0


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


class Models(BaseHTTPRequestHandler):
    """An upstream's list of models, for those who have the right key."""

    def do_GET(self) -> None:
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {KEY}" else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """One on loopback, which has no key yet."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as served:
        thread = Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = parse_base_url(f"http://127.0.0.1:{served.server_port}")
        yield Upstream("team", url, Credential.parse("bearer"), family=Family.OPENAI)
        served.shutdown()
        thread.join()


@inlineCallbacks
def fails(upstream: Upstream, *keys: str) -> Generator[Deferred[Any], Any, Any]:
    """Ask an upstream with some keys; fires with whether requests of clients would fail."""
    from twisted.internet import reactor

    failed = yield online(reactor, Config((attrs.evolve(upstream, keys=keys),), ()))
    yield deferLater(reactor, 0)  # connections that were aborted end in the next turn
    return failed


class TestOnline:
    @pytest_twisted.inlineCallbacks
    def test_each_key_is_told_of_and_one_that_is_refused_is_a_failure(
        self, upstream: Upstream, capsys: pytest.CaptureFixture[str]
    ) -> Generator[Deferred[Any], Any, None]:
        assert (yield fails(upstream, KEY, "sk-revoked")) is True
        printed = re.sub(r"in \d+ ms", "in N ms", capsys.readouterr().out)
        assert printed == (
            "\nOnline\n"
            "  team, key 1 of 2  works (200 in N ms)\n"
            "  team, key 2 of 2  refuses the key (401 in N ms)\n"
        )

    @pytest_twisted.inlineCallbacks
    def test_where_all_works_nothing_fails(
        self, upstream: Upstream, capsys: pytest.CaptureFixture[str]
    ) -> Generator[Deferred[Any], Any, None]:
        assert (yield fails(upstream, KEY)) is False
        assert "works (200" in capsys.readouterr().out


class TestStatusOfOnline:
    """With a reactor that is run in its name, as there can be but one in a process."""

    @pytest.fixture(autouse=True)
    def react(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stand_in(main: Callable[[Any], Any]) -> None:
            """End as react does, where the reactor stops once there is nothing to wait for."""
            failures: list[Any] = []
            main(MemoryReactorClock()).addErrback(failures.append)
            raise SystemExit(int(bool(failures)))

        monkeypatch.setattr("twisted.internet.task.react", stand_in)

    def found(self, monkeypatch: pytest.MonkeyPatch, findings: Deferred[list[Finding]]) -> None:
        monkeypatch.setattr("llmproxy.cli.check.ask_all", lambda *_: findings)

    @pytest.mark.parametrize("failed", [False, True])
    def test_it_tells_whether_something_would_fail(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch, failed: bool
    ) -> None:
        self.found(monkeypatch, succeed([Finding("openai, key 1 of 1", "judged", failed)]))
        ran = shell.run("check", "--online", "-c", str(shell.file))
        assert section(ran.out, "Online") == [["openai, key 1 of 1", "judged"]]
        assert (ran.status, ran.err) == (int(failed), "")

    def test_it_fails_where_the_reactor_was_stopped_before_all_had_answered(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.found(monkeypatch, Deferred())
        ran = shell.run("check", "--online", "-c", str(shell.file))
        assert "Online" not in ran.out
        assert (ran.status, ran.err) == (
            1,
            "llmproxy check: It was stopped before all upstreams had answered.\n",
        )

    def test_it_fails_where_asking_failed(self, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found(monkeypatch, fail(KeyError("bug")))
        ran = shell.run("check", "--online", "-c", str(shell.file))
        assert (ran.status, ran.err) == (1, "")
