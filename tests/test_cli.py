from __future__ import annotations

import sys

import pytest

from llmproxy import __version__
from llmproxy.cli.main import main
from tests.cli_support import FILE, Ran, Shell, shell

__all__ = ["shell"]  # a fixture


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "llmproxy: one of these must follow: client, check, env, usage; see llmproxy --help\n"),
            (["client"], "llmproxy client: one of these must follow: new, list, rotate, revoke; "),
            (["serve"], "llmproxy: Unknown command: serve; "),
            (["client", "new"], "llmproxy client new: it takes one NAME; "),
            (["client", "new", "a", "b"], "llmproxy client new: it takes one NAME; "),
            (["client", "list", "a"], "llmproxy client list: it takes no arguments; "),
            (["check", "--colour"], "llmproxy check: option --colour not recognized; "),
            (["check", "--config"], "llmproxy check: option --config requires argument; "),
            (["client", "new", "a", "--write", " "], "llmproxy client new: --write is empty; "),
            (["client", "new", "a\udcff"], "llmproxy: it holds bytes that are no text in UTF-8; "),
            (["usage", "--client", "a\udcff"], "llmproxy: it holds bytes that are no text in UTF-8; "),
        ],
    )
    def test_a_line_that_is_not_understood_is_told_in_one_line_with_status_2(
        self, shell: Shell, words: list[str], said: str
    ) -> None:
        error = shell.refused(*words, status=2)
        assert error.startswith(said)
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            ([], "Usage: llmproxy COMMAND [options]"),
            (["client"], "Usage: llmproxy client COMMAND [options]"),
            (["client", "new"], "Usage: llmproxy client new NAME [options]"),
            (["client", "list"], "Usage: llmproxy client list [options]"),
            (["client", "rotate"], "Usage: llmproxy client rotate NAME [options]"),
            (["client", "revoke"], "Usage: llmproxy client revoke NAME [options]"),
            (["check"], "Usage: llmproxy check [options]"),
            (["env"], "Usage: llmproxy env TOOL [options]"),
        ],
    )
    def test_each_command_has_a_help_of_its_own(self, shell: Shell, words: list[str], line: str) -> None:
        ran = shell.run(*words, "--help")
        assert ran == shell.run(*words, "-h")
        assert ran.status == 0
        assert ran.out.splitlines()[0] == line
        assert "--config" in ran.out

    def test_the_help_of_a_group_names_its_commands(self, shell: Shell) -> None:
        for words, commands in (
            ([], ("client", "check", "env")),
            (["client"], ("new", "list", "rotate", "revoke")),
        ):
            text = shell.run(*words, "--help").out
            assert all(f"    {command} " in text for command in commands)

    def test_version_is_the_proxys_own(self, shell: Shell) -> None:
        for words in ([], ["client", "new"]):
            assert shell.run(*words, "--version").out == f"llmproxy {__version__}\n"


class TestEnd:
    def test_an_operator_who_breaks_it_off_is_shown_nothing(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken_off(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("llmproxy.config.load", broken_off)
        assert shell.run("check") == Ran(130, "", "")

    def test_nothing_is_done_where_nothing_can_be_shown(
        self, shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = shell.file_version()
        monkeypatch.setattr(sys, "stdout", None)
        assert main(["client", "new", "carol", "--write", str(shell.file)]) == 1
        assert capsys.readouterr().err == "llmproxy: There is no standard output to write to.\n"
        assert shell.file_version() == before


class TestConfigurationFile:
    @pytest.mark.parametrize(
        "words",
        [
            ["--config", "FILE", "client", "list"],
            ["client", "--config=FILE", "list"],
            ["client", "list", "-c", "FILE"],
        ],
    )
    def test_it_is_named_at_any_place_of_the_line(self, shell: Shell, words: list[str]) -> None:
        ran = shell.run(*(word.replace("FILE", str(shell.file)) for word in words))
        assert ran.status == 0
        assert "alice" in ran.out

    def test_it_is_named_by_the_environment(self, shell: Shell) -> None:
        shell.environ["LLMPROXY_CONFIG"] = str(shell.file)
        assert "alice" in shell.run("client", "list").out

    def test_the_line_comes_before_the_environment_and_its_end_before_its_beginning(
        self, shell: Shell
    ) -> None:
        other = shell.file.with_name("other.toml")
        other.write_text(FILE.replace("alice", "carol"))
        shell.environ["LLMPROXY_CONFIG"] = str(shell.file)
        assert "carol" in shell.run("client", "list", "--config", str(other)).out
        assert "carol" in shell.run("-c", str(shell.file), "client", "list", "-c", str(other)).out

    @pytest.mark.parametrize(
        "words", [["client", "list"], ["client", "revoke", "bob"], ["client", "rotate", "bob"]]
    )
    def test_without_one_there_is_nothing_to_look_at(self, shell: Shell, words: list[str]) -> None:
        assert "give --config FILE, or set LLMPROXY_CONFIG" in shell.refused(*words)

    def test_a_name_that_is_empty_is_refused(self, shell: Shell) -> None:
        assert "--config is empty" in shell.refused("client", "list", "--config", "")
        shell.environ["LLMPROXY_CONFIG"] = " "
        for words in (["client", "list"], ["check"], ["env", "openai"]):
            assert "LLMPROXY_CONFIG is empty" in shell.refused(*words)

    def test_one_that_is_not_there_is_named(self, shell: Shell) -> None:
        missing = shell.file.with_name("missing.toml")
        assert shell.refused("client", "list", "-c", str(missing)) == (
            f"llmproxy client list: {missing} cannot be read: No such file or directory.\n"
        )
        assert str(missing) in shell.refused("check", "-c", str(missing))

    def test_one_that_is_not_toml_is_told_by_its_line_and_not_by_its_text(self, shell: Shell) -> None:
        shell.file.write_text('listen = [33000]\napi_key = "sk-secret-in-the-wrong-place\n')
        error = shell.refused("client", "list", "-c", str(shell.file))
        assert "line 2" in error
        assert "secret" not in error

    def test_one_that_is_not_text_is_refused(self, shell: Shell) -> None:
        shell.file.write_bytes(b"\xff\xfe")
        assert "is not text in UTF-8" in shell.refused("client", "list", "-c", str(shell.file))


def test_options_may_stand_before_and_behind_an_argument(shell: Shell) -> None:
    for words in (
        ["--url", "http://a:1", "openai"],
        ["openai", "--url", "http://a:1"],
        ["openai", "--url=http://a:1"],
    ):
        assert "http://a:1/openai/v1" in shell.run("env", *words).out


def test_behind_two_dashes_all_is_argument(shell: Shell) -> None:
    assert "it takes one TOOL" in shell.refused("env", "openai", "--", "--url=http://a:1", status=2)
