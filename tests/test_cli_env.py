from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import tomlkit

from llmproxy.cli.env import TOOLS, lines_for, listener_url
from tests.cli_support import KEY, Shell, shell

__all__ = ["shell"]  # a fixture

URL = "http://proxy:33000"
OPENAI, ANTHROPIC = f"{URL}/openai", f"{URL}/anthropic"


def sourced(lines: str, *names: str) -> dict[str, str]:
    """What a shell's environment holds after it has read some lines."""
    script = lines + "".join(f'printf "%s\\n" "${name}"\n' for name in names)
    done = subprocess.run(
        ["/bin/sh", "-e"],
        input=script,
        env={"LLMPROXY_TOKEN": "llmp_test"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(names, done.stdout.splitlines(), strict=True))


class TestTools:
    @pytest.mark.parametrize(
        ("tool", "expected"),
        [
            ("claude-code", {"ANTHROPIC_BASE_URL": ANTHROPIC, "ANTHROPIC_AUTH_TOKEN": "llmp_test"}),
            ("anthropic", {"ANTHROPIC_BASE_URL": ANTHROPIC, "ANTHROPIC_API_KEY": "llmp_test"}),
            ("openai", {"OPENAI_BASE_URL": f"{OPENAI}/v1", "OPENAI_API_KEY": "llmp_test"}),
            (
                "aider",
                {
                    "OPENAI_API_BASE": f"{OPENAI}/v1",
                    "OPENAI_API_KEY": "llmp_test",
                    "ANTHROPIC_BASE_URL": ANTHROPIC,
                    "ANTHROPIC_API_KEY": "llmp_test",
                },
            ),
        ],
    )
    def test_a_shell_that_reads_the_lines_has_what_the_tool_wants(
        self, shell: Shell, tool: str, expected: dict[str, str]
    ) -> None:
        lines = shell.run("env", tool, "--url", URL).out
        assert sourced(lines, *expected) == expected

    def test_codex_gets_a_provider_of_its_own_in_toml(self, shell: Shell) -> None:
        settings = tomlkit.parse(shell.run("env", "codex", "--url", URL).out).unwrap()
        provider = settings["model_providers"][settings["model_provider"]]
        assert settings["model_provider"] != "openai"  # the built-in one, which a file cannot change
        assert (provider["base_url"], provider["env_key"]) == (f"{OPENAI}/v1", "LLMPROXY_TOKEN")
        assert provider["wire_api"] == "responses"

    def test_langchain_gets_python(self, shell: Shell) -> None:
        lines = shell.run("env", "langchain", "--url", URL).out
        calls = {
            node.func.id: {word.arg: word.value for word in node.keywords}
            for node in ast.walk(ast.parse(lines))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert ast.literal_eval(calls["ChatOpenAI"]["base_url"]) == f"{OPENAI}/v1"
        assert ast.literal_eval(calls["ChatOpenAI"]["stream_usage"]) is True
        assert ast.literal_eval(calls["ChatAnthropic"]["base_url"]) == ANTHROPIC
        assert 'os.environ["LLMPROXY_TOKEN"]' in lines

    def test_llm_gets_yaml(self, shell: Shell) -> None:
        lines = shell.run("env", "llm", "--url", URL).out
        settings = dict(re.findall(r"^[- ] (\w+): (.+)$", lines, re.MULTILINE))
        assert json.loads(settings["api_base"]) == f"{OPENAI}/v1"
        assert settings["api_key_name"] == "llmproxy"
        assert "llm keys set llmproxy" in lines
        assert set(settings) == {"model_id", "model_name", "api_base", "api_key_name"}

    def test_the_vercel_ai_sdk_gets_javascript_with_a_v1_for_both(self, shell: Shell) -> None:
        lines = shell.run("env", "vercel-ai", "--url", URL).out
        assert f'createOpenAI({{ baseURL: "{OPENAI}/v1", apiKey }})' in lines
        assert f'createAnthropic({{ baseURL: "{ANTHROPIC}/v1", apiKey }})' in lines
        assert "apiKey = process.env.LLMPROXY_TOKEN;" in lines

    @pytest.mark.parametrize("tool", TOOLS)
    def test_each_names_the_variable_that_holds_the_token_or_asks_for_it(
        self, shell: Shell, tool: str
    ) -> None:
        lines = shell.run("env", tool, "--url", URL, "--token-env", "TEAM_TOKEN").out
        assert "TEAM_TOKEN" in lines
        assert "LLMPROXY_TOKEN" not in lines
        assert lines.endswith("\n")
        assert not lines.endswith("\n\n")

    def test_the_readme_knows_the_same_tools(self) -> None:
        readme = Path(__file__).parents[1].joinpath("README.md").read_text()
        table = readme.partition("### Point a client at it")[2].partition("\n### ")[0].lower()
        names = {"claude-code": "claude code", "vercel-ai": "vercel ai"}
        assert [tool for tool in TOOLS if names.get(tool, tool) not in table] == []

    def test_an_unknown_tool_is_refused_with_those_that_are_known(self, shell: Shell) -> None:
        error = shell.refused("env", "cursor", status=2)
        assert all(tool in error for tool in TOOLS)


class TestURL:
    def test_it_may_end_in_a_slash(self, shell: Shell) -> None:
        assert (
            shell.run("env", "openai", "--url", f"{URL}/").out == shell.run("env", "openai", "--url", URL).out
        )

    @pytest.mark.parametrize(
        "url", ["proxy:33000", "ftp://proxy", "http://me:hunter2@proxy", "http://proxy?x=1", ""]
    )
    def test_one_that_cannot_be_used_is_refused(self, shell: Shell, url: str) -> None:
        error = shell.refused("env", "openai", "--url", url, status=2)
        assert "--url " in error
        assert "hunter2" not in error

    def test_what_it_holds_is_no_command_to_a_shell(self, shell: Shell) -> None:
        lines = shell.run("env", "openai", "--url", "http://proxy/$(id);'x'&").out
        assert sourced(lines, "OPENAI_BASE_URL") == {"OPENAI_BASE_URL": "http://proxy/$(id);'x'&/openai/v1"}

    def test_it_is_that_of_the_configurations_first_listener(self, shell: Shell) -> None:
        lines = shell.run("env", "openai", "-c", str(shell.file)).out
        assert "OPENAI_BASE_URL=http://127.0.0.1:33001/openai/v1\n" in lines

    def test_without_a_configuration_it_is_the_default_port_of_this_machine(self, shell: Shell) -> None:
        assert "=http://localhost:33000/openai/v1\n" in shell.run("env", "openai").out

    def test_a_configuration_that_cannot_be_used_is_named(self, shell: Shell) -> None:
        shell.file.write_text("listen = true\n")
        assert f"{shell.file} cannot be used" in shell.refused("env", "openai", "-c", str(shell.file))
        assert shell.run("env", "openai", "-c", str(shell.file), "--url", URL).status == 0

    @pytest.mark.parametrize(
        ("description", "url"),
        [
            ("tcp:33000", "http://localhost:33000"),
            ("tcp:80", "http://localhost"),
            ("tcp:port=33000:interface=10.0.0.5", "http://10.0.0.5:33000"),
            ("tcp:33000:interface=0.0.0.0", "http://localhost:33000"),
            (r"tcp:33000:interface=\:\:1", "http://[::1]:33000"),
            (r"tcp6:33000:interface=\:\:", "http://localhost:33000"),
            ("ssl:443:privateKey=key.pem:certKey=cert.pem", "https://localhost"),
            ("ssl:port=8443:privateKey=key.pem", "https://localhost:8443"),
            ("unix:/run/llmproxy.sock", None),
            ("systemd:domain=INET:index=0", None),
        ],
    )
    def test_a_listener_has_the_url_at_which_its_own_machine_reaches_it(
        self, description: str, url: str | None
    ) -> None:
        assert listener_url(description) == url

    def test_the_first_listener_that_has_a_port_counts(self, shell: Shell) -> None:
        shell.file.write_text(shell.file.read_text().replace('"tcp:33001', '"unix:/tmp/a.sock", "tcp:33002'))
        assert "=http://127.0.0.1:33002/openai/v1\n" in shell.run("env", "openai", "-c", str(shell.file)).out

    def test_where_none_has_a_port_it_must_be_given(self, shell: Shell) -> None:
        shell.file.write_text(
            shell.file.read_text().replace("tcp:33001:interface=127.0.0.1", "unix:/tmp/a.sock")
        )
        assert "give --url" in shell.refused("env", "openai", "-c", str(shell.file))


class TestUpstreams:
    def test_lines_that_lead_nowhere_are_told_of(self, shell: Shell) -> None:
        ran = shell.run("env", "aider", "-c", str(shell.file))
        assert "ANTHROPIC_BASE_URL=http://127.0.0.1:33001/anthropic\n" in ran.out
        assert ran.err == (
            "llmproxy env: There is no upstream 'anthropic' in the configuration: the lines that name it lead nowhere.\n"
        )

    def test_a_tool_that_is_left_with_none_is_refused(self, shell: Shell) -> None:
        error = shell.refused("env", "claude-code", "-c", str(shell.file))
        assert "no upstream 'anthropic' in the configuration, and claude-code needs one" in error

    @pytest.mark.parametrize("tool", ["openai", "codex", "llm"])
    def test_of_those_that_are_there_nothing_is_told(self, shell: Shell, tool: str) -> None:
        assert shell.run("env", tool, "-c", str(shell.file)).err == ""

    def test_another_proxys_are_not_known(self, shell: Shell) -> None:
        ran = shell.run("env", "claude-code", "-c", str(shell.file), "--url", URL)
        assert (ran.status, ran.err) == (0, "")


@pytest.mark.parametrize(
    "name", ["llmp_abcdefghijklmnop", "sk-ant-0123456789", "sk_live_0123", "A B", "1A", ""]
)
def test_what_may_be_a_token_is_not_taken_for_the_name_of_a_variable_and_not_shown(
    shell: Shell, name: str
) -> None:
    error = shell.refused("env", "openai", f"--token-env={name}", status=2)
    assert "never a token itself" in error
    assert not name or name not in error


def test_a_key_of_the_environment_is_not_shown(shell: Shell) -> None:
    shell.environ.update(OPENAI_API_KEY=KEY, LLMPROXY_TOKEN="llmp_real")
    for tool in TOOLS:
        assert "llmp_real" not in lines_for(TOOLS[tool], URL, "LLMPROXY_TOKEN")
        assert "llmp_real" not in shell.run("env", tool).out
