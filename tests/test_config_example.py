"""The example file, the reference that is made from the schema, and what becomes of the example when it is changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from datetime import date, datetime, time, timezone
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import trustme
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config import Config, ConfigError, load
from llmproxy.config.problems import Where, dotted
from llmproxy.config.reference import reference
from llmproxy.config.schema import ClientTable, DefaultsTable, File, LimitsTable, PriceTable, UpstreamTable

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "contrib" / "llmproxy.example.toml").read_text()
DATA: dict[str, Any] = tomlkit.parse(EXAMPLE).unwrap()
ENVIRON = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_API_KEY_2", "AZURE_OPENAI_API_KEY", "TEAM_KEY"), "sk-1")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the files that the example names."""
    made = tmp_path_factory.mktemp("example")
    (made / "anthropic_api_key").write_text("sk-2")
    trustme.CA().cert_pem.write_to_path(str(made / "ca.pem"))
    return made


def load_text(text: str, directory: Path) -> Config:
    path = directory / "llmproxy.toml"
    path.write_text(text)
    return load(ENVIRON, str(path))


def test_the_example_can_be_used(directory: Path) -> None:
    config = load_text(EXAMPLE, directory)
    assert [upstream.name for upstream in config.upstreams] == list(DATA["upstreams"])
    assert [client.name for client in config.clients] == ["alice", "ci"]
    assert len(config.accounting.prices) == len(DATA["prices"]) + 1  # one of them for a tier
    assert config.warnings() == []


def test_the_example_shows_every_key() -> None:
    assert set(DATA) == set(File.model_fields)
    assert set(DATA["limits"]) == set(LimitsTable.model_fields)
    assert set(DATA["defaults"]) == set(DefaultsTable.model_fields)
    shown = {key for table in DATA["upstreams"].values() for key in table}
    assert shown >= set(UpstreamTable.model_fields) - set(DefaultsTable.model_fields)
    assert {key for table in DATA["clients"].values() for key in table} == set(ClientTable.model_fields)
    assert {key for table in DATA["prices"].values() for key in table} == set(PriceTable.model_fields)


def test_the_page_about_the_file_is_made_from_the_schema() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


@pytest.mark.parametrize("table", [File, LimitsTable, DefaultsTable, UpstreamTable, ClientTable, PriceTable])
def test_every_key_is_on_it_with_its_meaning(table: Any) -> None:
    for key, field in table.model_fields.items():
        if field.description is None:
            assert f"## `[{key}" in reference()
        else:
            assert f"`{key}`" in reference()
            assert field.description in reference()


def places(value: Any, above: Where = ()) -> Iterator[Where]:
    """All places in some data: tables, keys and items of lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*above, key)
        yield from places(below, (*above, key))


VALUES = st.one_of(
    st.sampled_from(
        [
            True,
            False,
            "",
            "x",
            [],
            {},
            [[]],
            {"x": 1},
            0,
            -1,
            2**31 + 1,
            10**30,
            0.0,
            -0.5,
            math.nan,
            math.inf,
        ]
    ),
    st.sampled_from([date(2027, 1, 1), time(1, 2, 3), datetime(2027, 1, 1, tzinfo=timezone.utc)]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20),
    st.lists(st.one_of(st.integers(0, 9), st.text("ab*/:.", max_size=5)), max_size=3),
)
NAMES = st.one_of(
    st.sampled_from(["healthz", "metrics", "[key]", "x", "", "a b", "openai", "listen"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8),
)


def within(data: Any, place: Where) -> Any:
    for part in place:
        data = data[part]
    return data


@given(st.sampled_from(list(places(DATA))), st.sampled_from(["removed", "renamed", "changed"]), VALUES, NAMES)
def test_any_one_change_can_be_used_or_its_place_is_named(
    directory: Path, place: Where, change: str, value: Any, name: str
) -> None:
    data = copy.deepcopy(DATA)
    around, part = within(data, place[:-1]), place[-1]
    changed = [place]
    if change == "changed":
        around[part] = value
    elif change == "removed" or not isinstance(part, str):
        del around[part]
    else:
        moved = around.pop(part)
        around[name] = moved
        changed.append((*place[:-1], name))
    try:
        config = load_text(tomlkit.dumps(data), directory)
    except ConfigError as error:
        # Nothing else is wrong with it: whatever is told is about this place, or about what refers to it by its name.
        for problem in error.problems:
            named = [dotted(at) for at in changed] + [f'"{at[-1]}"' for at in changed]
            named += [dotted(place[:2]), f"There is no {str(part)[:-1]}."]
            assert any(words in problem for words in named), problem
    else:
        assert isinstance(config, Config)
