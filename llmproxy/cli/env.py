"""``llmproxy env TOOL``: the lines that point a tool at this proxy.

All that is known about tools is one table. The lines name an environment variable that holds the token; the token itself is
neither asked for nor shown.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping

import attrs
from twisted.python import usage

from llmproxy import config, values
from llmproxy.cli.command import Command, CommandError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UPSTREAMS = ("openai", "anthropic")
# How tokens and keys begin: one that was given for a name must not get into the lines.
_SECRET = re.compile(r"llmp_|sk[-_]", re.IGNORECASE)
_DEFAULT = f"tcp:{config.DEFAULT_PORT}"
_COLON = re.compile(r"(?<!\\):")  # in an endpoint description, a backslash keeps a colon from being one


@attrs.frozen
class Tool:
    """What a tool wants to be told.

    :ivar lines: with the fields ``{openai}`` and ``{anthropic}``, base URLs without ``/v1``; ``{openai_v1}`` and
        ``{anthropic_v1}``, with it; and ``{token}``, the name of the variable. The URLs come quoted.
    :ivar quote: quotes a string as the language of the lines does.
    """

    lines: str
    quote: Callable[[str], str] = shlex.quote

    @property
    def upstreams(self) -> list[str]:
        """The names of the upstreams that the lines lead to."""
        return [name for name in _UPSTREAMS if f"{{{name}" in self.lines]


# A JSON string of ASCII is one in TOML, YAML, Python and JavaScript, too.
TOOLS: Mapping[str, Tool] = {
    # https://code.claude.com/docs/en/llm-gateway
    "claude-code": Tool(
        """\
export ANTHROPIC_BASE_URL={anthropic}
export ANTHROPIC_AUTH_TOKEN="${token}"
"""
    ),
    # https://developers.openai.com/codex/config-advanced
    "codex": Tool(
        """\
# ~/.codex/config.toml
model_provider = "llmproxy"

[model_providers.llmproxy]
name = "llmproxy"
base_url = {openai_v1}
env_key = "{token}"
wire_api = "responses"
""",
        json.dumps,
    ),
    # https://github.com/openai/openai-python#configuring-the-http-client
    "openai": Tool(
        """\
export OPENAI_BASE_URL={openai_v1}
export OPENAI_API_KEY="${token}"
"""
    ),
    # https://github.com/anthropics/anthropic-sdk-python#configuring-the-http-client
    "anthropic": Tool(
        """\
export ANTHROPIC_BASE_URL={anthropic}
export ANTHROPIC_API_KEY="${token}"
"""
    ),
    # https://aider.chat/docs/llms/openai-compat.html; Anthropic's models go through LiteLLM, which adds /v1/messages.
    "aider": Tool(
        """\
export OPENAI_API_BASE={openai_v1}
export OPENAI_API_KEY="${token}"
export ANTHROPIC_BASE_URL={anthropic}
export ANTHROPIC_API_KEY="${token}"
"""
    ),
    # https://llm.datasette.io/en/stable/other-models.html
    "llm": Tool(
        """\
# extra-openai-models.yaml in the directory of "llm logs path", once for each model.
# "llm keys set llmproxy" asks for the token, which is what ${token} holds.
- model_id: llmproxy/gpt-5
  model_name: gpt-5
  api_base: {openai_v1}
  api_key_name: llmproxy
""",
        json.dumps,
    ),
    # https://docs.langchain.com/oss/python/integrations/chat/openai and .../anthropic. Without stream_usage, ChatOpenAI
    # asks for the usage of a stream on the provider's own URL only.
    "langchain": Tool(
        """\
import os

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

token = os.environ["{token}"]
openai = ChatOpenAI(model="gpt-5", base_url={openai_v1}, api_key=token, stream_usage=True)
anthropic = ChatAnthropic(model="claude-sonnet-4-5", base_url={anthropic}, api_key=token)
""",
        json.dumps,
    ),
    # https://ai-sdk.dev/providers/ai-sdk-providers/openai and .../anthropic
    "vercel-ai": Tool(
        """\
import {{ createAnthropic }} from "@ai-sdk/anthropic";
import {{ createOpenAI }} from "@ai-sdk/openai";

const apiKey = process.env.{token};
const openai = createOpenAI({{ baseURL: {openai_v1}, apiKey }});
const anthropic = createAnthropic({{ baseURL: {anthropic_v1}, apiKey }});
""",
        json.dumps,
    ),
}


class Env(Command):
    """The command line of ``llmproxy env``."""

    name = "env"
    argument = "TOOL"
    longdesc = f"Prints the lines that point a tool at the proxy. The tools: {', '.join(TOOLS)}."
    optParameters = [
        [
            "url",
            None,
            None,
            "The proxy, such as http://proxy:33000. [default: its first listener, on this machine]",
        ],
        ["token-env", None, "LLMPROXY_TOKEN", "The environment variable that holds the token."],
    ]

    def postOptions(self) -> None:
        """Check what was given."""
        if self.given not in TOOLS:
            raise usage.UsageError(f"TOOL must be one of {', '.join(TOOLS)}")
        if self["url"] is not None:
            try:
                self["url"] = str(values.parse_base_url(self["url"]))
            except ValueError as problem:
                raise usage.UsageError(f"--url {problem}") from None
        if not _VARIABLE.fullmatch(self["token-env"]) or _SECRET.match(self["token-env"]):
            raise usage.UsageError(
                "--token-env takes the name of an environment variable, never a token itself"
            )

    def run(self, environ: Mapping[str, str]) -> int:
        """Print the lines, and tell of those that lead nowhere, as far as that can be known here."""
        tool, url, lacking = TOOLS[self.given], self["url"], set[str]()
        if url is None:
            known = _configuration(environ, self.config_file(environ))
            url = proxy_url((_DEFAULT,) if known is None else known.listen)
            if known is not None:
                lacking = set(tool.upstreams) - {upstream.name for upstream in known.upstreams}
        told = [f"There is no upstream {name!r} in the configuration" for name in sorted(lacking)]
        if len(lacking) == len(tool.upstreams):
            raise CommandError(
                f"{'. '.join(told)}, and {self.given} needs one. --url says that another proxy is meant."
            )
        print(lines_for(tool, url, self["token-env"]), end="")
        for sentence in told:
            print(f"{self.line}: {sentence}: the lines that name it lead nowhere.", file=sys.stderr)
        return 0


def lines_for(tool: Tool, url: str, token_variable: str) -> str:
    """Make the lines that point a tool at a proxy.

    :param url: of the proxy, without a slash at its end.
    :param token_variable: the name of the environment variable that holds the token.
    """
    return tool.lines.format(
        openai=tool.quote(f"{url}/openai"),
        openai_v1=tool.quote(f"{url}/openai/v1"),
        anthropic=tool.quote(f"{url}/anthropic"),
        anthropic_v1=tool.quote(f"{url}/anthropic/v1"),
        token=token_variable,
    )


def _configuration(environ: Mapping[str, str], file: str | None) -> config.Config | None:
    """The configuration that is here, which for most users of a proxy is none."""
    try:
        return config.load(environ, file)
    except config.ConfigError:
        if file is not None:
            raise CommandError(f"{file} cannot be used, as llmproxy check tells; give --url.") from None
        return None


def proxy_url(listen: Iterable[str]) -> str:
    """The URL at which a proxy is reached from its own machine.

    :param listen: its listeners, as descriptions of Twisted endpoints.
    :raise CommandError: where none can be told.
    """
    for description in listen:
        url = listener_url(description)
        if url is not None:
            return url
    raise CommandError(
        "The proxy listens on no TCP port that can be told from its configuration; give --url."
    )


def listener_url(description: str) -> str | None:
    """The URL of a listener, or ``None`` where it has no port.

    :param description: of a Twisted endpoint, such as ``tcp:33000:interface=127.0.0.1``.
    """
    kind, *fields = [field.replace("\\", "") for field in _COLON.split(description)]
    if kind not in ("tcp", "tcp6", "ssl"):
        return None
    named = dict(field.split("=", 1) for field in fields if "=" in field)
    port = named.get("port", fields[0])
    host = named.get("interface") or "localhost"
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    scheme = "https" if kind == "ssl" else "http"
    return str(values.parse_base_url(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"))
