from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import pytest

from llmproxy.config.credential import Credential, Family, Place
from llmproxy.config.presets import PRESETS, Preset
from llmproxy.http.fields import Fields
from llmproxy.values import is_loopback, parse_base_url

LOCAL = {"ollama", "vllm", "lmstudio"}
each_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())


def names(presets: Sequence[Preset]) -> set[str]:
    return {preset.name for preset in presets}


def test_these_providers_are_known() -> None:
    assert set(PRESETS) == {
        "openai",
        "anthropic",
        "gemini",
        "azure-openai",
        "openrouter",
        "groq",
        "mistral",
        "deepseek",
        "xai",
        "together",
        "fireworks",
        "cohere",
        "perplexity",
        *LOCAL,
    }


def test_a_preset_is_found_by_its_name() -> None:
    assert all(preset.name == name for name, preset in PRESETS.items())


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["openai"] = PRESETS["groq"]  # type: ignore[index]


def test_only_azure_has_a_base_url_that_the_operator_must_give() -> None:
    assert names([preset for preset in PRESETS.values() if preset.base_url is None]) == {"azure-openai"}


@each_preset
def test_a_base_url_reads_as_one_and_is_written_as_it_is_used(preset: Preset) -> None:
    if preset.base_url is not None:
        assert str(parse_base_url(preset.base_url)) == preset.base_url


@each_preset
def test_a_base_url_leaves_the_version_to_the_clients(preset: Preset) -> None:
    if preset.base_url is not None:
        assert not parse_base_url(preset.base_url).path.endswith(("/v1", "/v1beta"))


@each_preset
def test_a_key_never_leaves_the_machine_unencrypted(preset: Preset) -> None:
    if preset.base_url is not None:
        url = parse_base_url(preset.base_url)
        assert url.scheme == "https" or is_loopback(url.host)


@each_preset
def test_what_runs_on_this_machine_and_nothing_else_works_without_a_key(preset: Preset) -> None:
    local = preset.base_url is not None and is_loopback(parse_base_url(preset.base_url).host)
    assert local == (preset.name in LOCAL)
    assert preset.needs_key == (not local)
    assert (preset.credential.place is Place.NONE) == local


@each_preset
def test_a_key_goes_into_a_header_where_no_url_shows_it(preset: Preset) -> None:
    assert preset.credential.place is not Place.QUERY


@each_preset
def test_a_credential_can_be_written_as_a_setting(preset: Preset) -> None:
    assert Credential.parse(str(preset.credential)) == preset.credential


@each_preset
def test_a_source_is_a_page_over_https(preset: Preset) -> None:
    source = urlsplit(preset.source)
    assert source.scheme == "https"
    assert source.hostname
    assert not source.query
    assert not source.fragment


@each_preset
def test_default_headers_carry_no_credential(preset: Preset) -> None:
    headers = Fields(preset.default_headers)
    assert not headers.values_of(b"authorization")
    assert not headers.values_of(preset.credential.name.lower().encode("ascii"))


@pytest.mark.parametrize(
    ("name", "path", "url"),
    [
        ("openai", "/v1/responses", "https://api.openai.com/v1/responses"),
        ("anthropic", "/v1/messages", "https://api.anthropic.com/v1/messages"),
        (
            "gemini",
            "/v1beta/models/m:generateContent",
            "https://generativelanguage.googleapis.com/v1beta/models/m:generateContent",
        ),
        ("openrouter", "/v1/chat/completions", "https://openrouter.ai/api/v1/chat/completions"),
        ("groq", "/v1/chat/completions", "https://api.groq.com/openai/v1/chat/completions"),
        ("mistral", "/v1/chat/completions", "https://api.mistral.ai/v1/chat/completions"),
        ("deepseek", "/v1/chat/completions", "https://api.deepseek.com/v1/chat/completions"),
        ("xai", "/v1/responses", "https://api.x.ai/v1/responses"),
        ("together", "/v1/chat/completions", "https://api.together.ai/v1/chat/completions"),
        ("fireworks", "/v1/chat/completions", "https://api.fireworks.ai/inference/v1/chat/completions"),
        ("cohere", "/v2/chat", "https://api.cohere.com/v2/chat"),
        ("perplexity", "/v1/responses", "https://api.perplexity.ai/v1/responses"),
        ("ollama", "/v1/chat/completions", "http://127.0.0.1:11434/v1/chat/completions"),
        ("vllm", "/v1/chat/completions", "http://127.0.0.1:8000/v1/chat/completions"),
        ("lmstudio", "/v1/chat/completions", "http://127.0.0.1:1234/v1/chat/completions"),
    ],
)
def test_a_client_s_own_path_makes_the_url_that_the_provider_documents(
    name: str, path: str, url: str
) -> None:
    base_url = PRESETS[name].base_url
    assert base_url is not None
    assert parse_base_url(base_url).join(path.encode("ascii")) == url.encode("ascii")


def test_keys_go_where_each_provider_wants_them() -> None:
    unusual = {
        name: str(preset.credential) for name, preset in PRESETS.items() if str(preset.credential) != "bearer"
    }
    assert unusual == {
        "anthropic": "x-api-key",
        "gemini": "header:x-goog-api-key",
        "azure-openai": "header:api-key",
        "ollama": "none",
        "vllm": "none",
        "lmstudio": "none",
    }


def test_most_report_usage_as_openai_does() -> None:
    unusual = {name: preset.family for name, preset in PRESETS.items() if preset.family is not Family.OPENAI}
    assert unusual == {"anthropic": Family.ANTHROPIC, "gemini": Family.GEMINI, "cohere": Family.NONE}
