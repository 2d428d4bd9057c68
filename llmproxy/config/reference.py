"""The reference of the configuration file, as Markdown, from its schema: ``python -m llmproxy.config.reference``.

What it writes is docs/configuration.md, and a test holds the two together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from typing import Any

from pydantic.fields import FieldInfo

from llmproxy.config.presets import PRESETS, Preset
from llmproxy.config.schema import (
    ClientTable,
    DefaultsTable,
    File,
    LimitsTable,
    PriceTable,
    Table,
    UpstreamTable,
    kind_of,
)

_HEAD = """
# Configuration

<!-- Made by `python -m llmproxy.config.reference` from llmproxy/config/schema.py and presets.py: change those, not this. -->

llmproxy is set up by environment variables, by a file, or by both. The file is named by `--config FILE` or by the variable
`LLMPROXY_CONFIG`; it is [TOML](https://toml.io/en/v1.0.0) in UTF-8. `contrib/llmproxy.example.toml` is one to start from.
`llmproxy check` tells what a configuration comes to.

    twistd -n llmproxy --config /etc/llmproxy/llmproxy.toml

Everything that is wrong, in the file and in the environment, is named in one message, each with its place: nothing starts, and
on a reload (SIGHUP) nothing changes. A reload reads the file again, and all files that it names.

**No secret need be in the file.** Keys come from environment variables and files that it names; of tokens it holds SHA-256
digests. The password of a ledger in PostgreSQL may stand in its URL here, but is better kept where libpq finds it (`passfile`),
or with the whole URL in `LLMPROXY_LEDGER` or a file that `LLMPROXY_LEDGER_FILE` names. Names of files are relative to the
directory of the configuration file, but for those in endpoints.

**The state directory** is where the ledger is, unless something else is said: `$STATE_DIRECTORY`, which systemd sets, else
`$XDG_STATE_HOME/llmproxy`, else `~/.local/state/llmproxy`.

**The file and the environment.** Without a file, the environment works by itself, as the README describes. With one, none of
its variables is required, and each stands for a key of the file:

| variable | stands for |
|---|---|
| `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `OPENAI_CA_FILE` | `base_url`, `api_key_env`, `ca_file` of `[upstreams.openai]` |
| `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY`, `ANTHROPIC_CA_FILE` | the same of `[upstreams.anthropic]` |
| `ANTHROPIC_VERSION` | `headers.anthropic-version` of `[upstreams.anthropic]` |
| `PROXY_TOKEN` | `token_sha256` of `[clients.default]` |
| `PORT`, `ADMIN_PORT` | `listen`, `admin_port` |
| `LLMPROXY_LEDGER`, `LLMPROXY_LEDGER_RETENTION` | `ledger`, with an absolute path; `ledger_retention` |
| `LOG_FORMAT`, `LOG_LEVEL` | `log_format`, `log_level` |
| `LLMPROXY_REQUEST_ID`, `on` or `off` | `request_id` |
| `CLIENT_...` | the keys of `[limits]`: `CLIENT_KEEP_ALIVE` is `keep_alive` |
| `UPSTREAM_...` | the keys of `[defaults]`: `UPSTREAM_KEEP_ALIVE` is `keep_alive` |
| `HTTPS_PROXY`, `NO_PROXY` | `https_proxy`, `no_proxy` |

A base URL or a key is enough for an upstream, and a token for the client `default`, without a table in the file. Where there is
a table, the two complete each other. Where both set the same key the file stands, and a warning at the start and on each reload
names the variable that is not used. `OPENAI_API_KEY_FILE` and its like stand for what they stand for without `_FILE`, and only
one of the two may be set; but `LLMPROXY_LEDGER=none`, which the container image sets, gives way to `LLMPROXY_LEDGER_FILE`.
"""

_SECTIONS: Mapping[str, type[Table]] = {
    "Top level": File,
    "`[limits]`": LimitsTable,
    "`[defaults]`": DefaultsTable,
    "`[upstreams.NAME]`": UpstreamTable,
    "`[clients.NAME]`": ClientTable,
    '`[prices."GLOB"]`': PriceTable,
}

_PRESETS = """
## Presets

An upstream of one of these names takes from here what its table leaves out, so that it needs only its key; the last three need
none. An upstream of any other name is described by its table alone.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([_HEAD.strip("\n"), *_sections(), _PRESETS.rstrip("\n"), "", *_presets(), ""])


def _sections() -> Iterator[str]:
    for title, table in _SECTIONS.items():
        yield from ["", f"## {title}", "", cleandoc(table.__doc__ or ""), ""]
        yield from ["| key | type | default | meaning |", "|---|---|---|---|"]
        inherited = DefaultsTable.model_fields if table is UpstreamTable else {}
        own = {key: field for key, field in table.model_fields.items() if key not in inherited}
        for key, field in own.items():
            kind = kind_of(field)
            if kind is not None:
                yield f"| `{key}` | {_cell(kind.text)} | {_default(field)} | {_cell(field.description or '')} |"
        if inherited:
            keys = ", ".join(f"`{key}`" for key in inherited)
            yield f"| {keys} | | those of `[defaults]` | As there, for this upstream alone. |"


def _default(field: FieldInfo) -> str:
    extra: Any = field.json_schema_extra
    default: Any = field.default
    if extra["absent"] or default is None:
        return str(extra["absent"])
    return f"`{default:g}`" if isinstance(default, float) else f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _presets() -> Iterator[str]:
    yield from ["| name | `base_url` | `credential` | `api` | documentation |", "|---|---|---|---|---|"]
    yield from map(_preset, PRESETS.values())


def _preset(preset: Preset) -> str:
    base_url = "required" if preset.base_url is None else f"`{preset.base_url}`"
    return f'| `{preset.name}` | {base_url} | `"{preset.credential}"` | `"{preset.family.value}"` | <{preset.source}> |'


if __name__ == "__main__":
    sys.stdout.write(reference())
