from __future__ import annotations

from datetime import datetime, timezone
from urllib.parse import urlsplit

import pytest
from genai_prices.data_snapshot import get_snapshot

from llmproxy.config.presets import PRESETS
from llmproxy.rates import PriceLists, Rates
from llmproxy.usage.model import Usage

AT = datetime(2026, 11, 20, tzinfo=timezone.utc)
MINUTE = int(AT.timestamp()) // 60
# A model of each list, by the preset whose list it is.
LISTED = {
    "openai": "gpt-4.1",
    "anthropic": "claude-opus-4-5",
    "gemini": "gemini-2.5-pro",
    "openrouter": "openai/gpt-4.1",
    "groq": "llama-3.3-70b-versatile",
    "mistral": "mistral-large-latest",
    "deepseek": "deepseek-chat",
    "xai": "grok-4",
    "together": "meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "fireworks": "accounts/fireworks/models/deepseek-v3p2",
    "cohere": "command-r-plus",
    "perplexity": "sonar-pro",
}
# Where a list is known by the URL of each customer, and where there is none.
BY_URL, UNLISTED = {"azure-openai"}, {"ollama", "vllm", "lmstudio"}


def found(url: str, model: str) -> Rates | None:
    """What a model costs at an upstream of a base URL."""
    return PriceLists((), {"upstream": url}).rates("upstream", (model,), None, MINUTE)


class TestUpstreams:
    def test_each_preset_has_its_list_or_is_known_to_have_none(self) -> None:
        assert {name for name, preset in PRESETS.items() if preset.price_list} == set(LISTED)
        assert set(LISTED) | BY_URL | UNLISTED == set(PRESETS)
        ids = {provider.id for provider in get_snapshot().providers}
        assert {preset.price_list for preset in PRESETS.values() if preset.price_list} <= ids
        assert not ids & UNLISTED

    @pytest.mark.parametrize("name", LISTED)
    def test_a_preset_has_the_prices_of_its_list(self, name: str) -> None:
        preset = PRESETS[name]
        provider = get_snapshot().find_provider(None, preset.price_list, None)
        model = provider.find_model(LISTED[name])
        assert model is not None
        rates = found(preset.base_url or "", LISTED[name])
        assert rates is not None
        assert rates.by_name == vars(model.get_prices(AT))

    @pytest.mark.parametrize("name", sorted(UNLISTED))
    def test_one_of_this_machine_has_none(self, name: str) -> None:
        assert found(PRESETS[name].base_url or "", "gpt-4.1") is None

    @pytest.mark.parametrize(
        "url", ["https://api.together.ai", "https://api.together.ai/v1", "https://api.together.xyz"]
    )
    def test_a_provider_is_known_by_its_host(self, url: str) -> None:
        assert found(url, LISTED["together"]) is not None

    @pytest.mark.parametrize("url", ["https://team.openai.azure.com", "https://team.services.ai.azure.com"])
    def test_a_customer_s_own_url_is_known_by_its_form(self, url: str) -> None:
        assert found(url, "gpt-4.1") is not None

    @pytest.mark.parametrize("name", LISTED)
    @pytest.mark.parametrize(
        "url", ["https://llm.example", "http://127.0.0.1:8000", "http://api.together.ai"]
    )
    def test_a_preset_that_leads_elsewhere_has_no_list(self, name: str, url: str) -> None:
        assert urlsplit(url)[:2] != urlsplit(PRESETS[name].base_url)[:2]
        rates = PriceLists((), {name: url}).rates(name, (LISTED[name],), None, MINUTE)
        assert rates is None


def test_what_was_used_and_has_no_price_is_told_by_its_key() -> None:
    assert Rates({}).missing(Usage(1, 1, input_audio_tokens=2)) == ["output", "input_audio"]
    assert Rates({}).missing(Usage(0, 0, cache_read_tokens=2)) == ["cache_read"]
