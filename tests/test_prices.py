from __future__ import annotations

import itertools
from datetime import datetime, timezone
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage as ListedUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ConditionalPrice, ModelInfo, Tier, TieredPrices, TimeOfDateConstraint
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config import PriceOverride, load
from llmproxy.prices import PriceBook, price
from llmproxy.rates import Rates
from llmproxy.usage.model import Part, Usage
from tests.ledger_support import Lines, exchange, lines, reading

__all__ = ["lines"]  # a fixture

# Prices of lists change with releases; those of models that are history do not.
SONNET = "claude-sonnet-4-20250514"  # 3 USD of input, 15 of output, 3.75 and 6 to write to a cache, 0.3 to read from it
BASE_URLS = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "azure": "https://team.openai.azure.com",
    "gateway": "https://llm.example",
    "openrouter": "https://openrouter.ai/api",
    "xai": "https://api.x.ai",
    "gemini": "https://generativelanguage.googleapis.com",
}
AT = datetime(2026, 11, 20, tzinfo=timezone.utc)
ONE = Decimal(1)
RATES = {"input_mtok": ONE, "output_mtok": 10 * ONE}


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook(base_urls=BASE_URLS)


def cost(
    book: PriceBook,
    usage: Usage | None,
    model: str | None = SONNET,
    upstream: str = "anthropic",
    **changes: Any,
) -> int | None:
    asked = changes.pop("asked_model", None)
    read = reading(usage, model=model, **changes)
    return book.cost(exchange(upstream=upstream, reading=read, asked_model=asked, at=AT))


class TestLists:
    def test_input_and_output_have_their_prices(self, book: PriceBook) -> None:
        assert cost(book, Usage(input_tokens=1000, output_tokens=100)) == 3000 + 1500

    def test_cache_reads_and_both_kinds_of_writes_have_theirs(self, book: PriceBook) -> None:
        usage = Usage(
            input_tokens=0,
            output_tokens=0,
            cache_read_tokens=1000,
            cache_write_5m_tokens=100,
            cache_write_1h_tokens=10,
        )
        assert cost(book, usage) == 300 + 375 + 60

    def test_an_hour_in_anthropics_cache_costs_twice_the_input(self, book: PriceBook) -> None:
        for model in ("claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5"):
            hour = cost(book, Usage(input_tokens=0, output_tokens=0, cache_write_1h_tokens=1000), model)
            plain = cost(book, Usage(input_tokens=1000, output_tokens=0), model)
            assert hour is not None
            assert plain is not None
            assert hour == 2 * plain > 0

    def test_what_openai_read_from_its_cache_is_not_paid_as_input(self, book: PriceBook) -> None:
        usage = Usage(input_tokens=0, output_tokens=0, cache_read_tokens=1000)
        assert cost(book, usage, "gpt-4o-2024-08-06", "openai") == 1250

    @pytest.mark.parametrize(
        "model", ["gemini-live-2.5-flash-preview", "gemini-2.5-flash-native-audio-preview-09-2025"]
    )
    def test_sound_has_its_own_in_a_live_session_whose_model_only_its_client_names(
        self, book: PriceBook, model: str
    ) -> None:
        usage = Usage(1000, 300, input_audio_tokens=600, output_audio_tokens=200)
        paid = 400 * 0.5 + 600 * 3 + 100 * 2 + 200 * 12
        assert cost(book, usage, None, "gemini", asked_model=model) == paid

    @pytest.mark.skipif(
        version("genai-prices").startswith("0.1."), reason="these lists, the last for Python 3.10, lack them"
    )
    @pytest.mark.parametrize(
        "model", ["gemini-live-2.5-flash-preview", "gemini-2.5-flash-native-audio-preview-09-2025"]
    )
    def test_so_have_images_and_video_there(self, book: PriceBook, model: str) -> None:
        usage = Usage(1000, 300, input_image_tokens=100)
        assert cost(book, usage, None, "gemini", asked_model=model) == 900 * 0.5 + 100 * 3 + 300 * 2
        usage.video = True  # which is not counted apart
        assert cost(book, usage, None, "gemini", asked_model=model) is None

    @pytest.mark.parametrize("upstream", ["openai", "azure"])
    @pytest.mark.parametrize("model", ["gpt-4o-audio-preview", "gpt-4o-mini-audio-preview-2024-12-17"])
    def test_sound_is_not_paid_as_text_where_a_list_leaves_out_its_price(
        self, book: PriceBook, model: str, upstream: str
    ) -> None:
        assert cost(book, Usage(100, 100, output_audio_tokens=0), model, upstream) is not None
        assert cost(book, Usage(100, 100, output_audio_tokens=90), model, upstream) is None
        assert cost(book, Usage(100, 100, input_audio_tokens=90), model, upstream) is None

    def test_a_gateway_s_list_leaves_out_the_prices_of_sound_and_of_images_that_are_made(
        self, book: PriceBook
    ) -> None:
        assert cost(book, Usage(10, 10, input_audio_tokens=5), "openai/gpt-audio", "openrouter") is None
        model = "google/gemini-2.5-flash-image"
        assert cost(book, Usage(100, 100, input_image_tokens=90), model, "openrouter") is not None
        assert cost(book, Usage(10, 10, output_image_tokens=5), model, "openrouter") is None

    @pytest.mark.parametrize(
        ("model", "usage", "paid"),
        [
            # Their output is priced as "$10.00 (audio)" and "$20.00 (audio)".
            ("gemini-2.5-flash-preview-tts", Usage(100, 1000, output_audio_tokens=1000), 50 + 10_000),
            ("gemini-2.5-pro-preview-tts", Usage(100, 1000, output_audio_tokens=1000), 100 + 20_000),
            # One price of text, images, video and sound.
            ("gemini-2.5-pro", Usage(1000, 0, input_audio_tokens=900), 1250),
            ("gemini-2.5-pro", Usage(0, 0, cache_read_tokens=1000, cached_audio_tokens=900), 125),
            # Input is priced as "$0.30 (text / image / video)" and "$1.00 (audio)".
            ("gemini-2.5-flash", Usage(1000, 0, input_audio_tokens=900), 30 + 900),
            ("gemini-2.5-flash", Usage(0, 0, cache_read_tokens=1000, cached_audio_tokens=900), 3 + 90),
            ("gemini-2.5-flash-image", Usage(0, 1290, output_image_tokens=1290), 38_700),
        ],
    )
    def test_the_one_price_of_a_model_of_google_s_is_that_of_its_sound(
        self, book: PriceBook, model: str, usage: Usage, paid: int
    ) -> None:
        assert cost(book, usage, model, "gemini") == paid

    @pytest.mark.parametrize(
        ("model", "usage", "paid"),
        [
            (
                "gpt-audio",
                Usage(1000, 1000, input_audio_tokens=900, output_audio_tokens=900),
                29_050 + 58_600,
            ),
            ("gpt-4o-transcribe", Usage(1000, 100, input_audio_tokens=900), 250 + 5400 + 1000),
            ("gpt-4o-mini-tts", Usage(100, 1000), 60 + 12_000),
            ("gpt-image-1", Usage(50, 4160, input_image_tokens=40, output_image_tokens=4160), 450 + 166_400),
            ("gpt-image-1", Usage(0, 0, cache_read_tokens=1000, cached_image_tokens=900), 125 + 2250),
            ("gpt-realtime", Usage(0, 0, cache_read_tokens=1000, cached_image_tokens=900), 40 + 450),
            (
                "gpt-realtime-mini",
                Usage(0, 0, cache_read_tokens=1000, cached_image_tokens=500, cached_audio_tokens=400),
                6 + 40 + 120,
            ),
        ],
    )
    def test_sound_and_images_have_their_own_at_openai(
        self, book: PriceBook, model: str, usage: Usage, paid: int
    ) -> None:
        assert cost(book, usage, model, "openai") == paid

    def test_sound_that_is_put_in_is_paid_as_text_at_xai(self, book: PriceBook) -> None:
        assert cost(book, Usage(1000, 0, input_audio_tokens=900), "grok-4", "xai") == 3000

    def test_searches_are_paid_each(self, book: PriceBook) -> None:
        usage = Usage(
            input_tokens=0,
            output_tokens=0,
            server_tool_uses={
                "web_search_requests": 3,
                "web_fetch_requests": 9,
                "code_execution_requests": 0,
            },
        )
        assert cost(book, usage) == 30_000

    def test_another_tool_makes_the_cost_unknown(self, book: PriceBook) -> None:
        usage = Usage(input_tokens=1, output_tokens=1, server_tool_uses={"code_execution_requests": 1})
        assert cost(book, usage) is None

    def test_an_embedding_has_no_output(self, book: PriceBook) -> None:
        assert cost(book, Usage(input_tokens=1_000_000), "text-embedding-3-small", "openai") == 20_000

    def test_all_costs_more_once_the_context_is_long(self, book: PriceBook) -> None:
        long = Usage(input_tokens=1, output_tokens=0, cache_read_tokens=200_000)
        assert cost(book, long, "claude-sonnet-4-5") == 120_006

    def test_counting_tokens_costs_nothing(self, book: PriceBook) -> None:
        assert cost(book, Usage(input_tokens=5000, billable=False), "no-such-model") == 0

    def test_the_asked_model_is_taken_where_no_other_is_known(self, book: PriceBook) -> None:
        assert cost(book, Usage(input_tokens=1000, output_tokens=0), None, asked_model=SONNET) == 3000

    @given(st.tuples(*[st.integers(0, 50_000)] * 5))
    def test_the_sum_is_that_of_the_library(self, book: PriceBook, counts: tuple[int, ...]) -> None:
        plain, output, read, written, written_1h = counts
        usage = Usage(plain, output, read, written, written_1h)
        for upstream, model in (("anthropic", "claude-sonnet-4-5"), ("anthropic", "claude-opus-4-5")):
            theirs = calc_price(
                ListedUsage(
                    input_tokens=plain + read + written + written_1h,
                    output_tokens=output,
                    cache_read_tokens=read,
                    cache_write_tokens=written + written_1h,
                    cache_write_1h_tokens=written_1h,
                ),
                model,
                provider_api_url=BASE_URLS[upstream],
                genai_request_timestamp=AT,
            )
            assert cost(book, usage, model, upstream) == round(theirs.total_price * 1_000_000)


class TestTimes:
    USAGE = Usage(input_tokens=1_000_000, output_tokens=0)

    def test_a_price_holds_from_its_minute_on(self) -> None:
        book = PriceBook(base_urls={"deepseek": "https://api.deepseek.com"})
        times = (
            datetime(2025, 8, 1, 16, 29, 59, 999_999, timezone.utc),
            datetime(2025, 8, 1, 16, 30, 0, 0, timezone.utc),
            datetime(2025, 8, 1, 16, 30, 59, 999_999, timezone.utc),
        )
        read = reading(self.USAGE, model="deepseek-reasoner")
        day, night, still_night = [
            book.cost(exchange(upstream="deepseek", reading=read, at=at)) or 0 for at in times
        ]
        assert day > night == still_night > 0

    def test_lists_change_at_whole_minutes(self) -> None:
        models = [model for provider in get_snapshot().providers for model in provider.models]
        conditions = [price.constraint for model in models for price in _conditional(model)]
        conditions += [variant.constraint for model in models for variant in model.price_variants or ()]
        times = [
            time
            for condition in conditions
            if isinstance(condition, TimeOfDateConstraint)
            for time in (condition.start_time, condition.end_time)
        ]
        assert times
        assert all(time.second == time.microsecond == 0 for time in times)


def _conditional(model: ModelInfo) -> list[ConditionalPrice]:
    return model.prices if isinstance(model.prices, list) else []


class TestTiers:
    USAGE = Usage(input_tokens=1_000_000, output_tokens=0)

    @pytest.mark.parametrize("name", ["standard", "default", "auto", "on_demand", "ON_DEMAND", None])
    def test_the_standard_tier_has_many_names(self, book: PriceBook, name: str | None) -> None:
        assert cost(book, self.USAGE, "gpt-4.1", "openai", service_tier=name) == 2_000_000

    @pytest.mark.parametrize(
        ("name", "expected"), [("flex", None), ("priority", 3_500_000), ("batch", 1_000_000)]
    )
    def test_others_have_prices_of_their_own(self, book: PriceBook, name: str, expected: int | None) -> None:
        assert cost(book, self.USAGE, "gpt-4.1", "openai", service_tier=name) == expected

    def test_anthropics_batches_cost_half(self, book: PriceBook) -> None:
        standard = cost(book, self.USAGE, "claude-opus-4-5")
        batch = cost(book, self.USAGE, "claude-opus-4-5", service_tier="batch")
        assert standard is not None
        assert batch == standard // 2

    def test_what_a_contract_sets_is_unknown(self, book: PriceBook) -> None:
        assert cost(book, self.USAGE, service_tier="priority") is None

    def test_one_providers_tiers_are_not_those_of_another_with_its_models(self, book: PriceBook) -> None:
        assert cost(book, self.USAGE, "gpt-4.1", "azure") is not None
        assert cost(book, self.USAGE, "gpt-4.1", "azure", service_tier="priority") is None


class TestUnknown:
    USAGE = Usage(input_tokens=10, output_tokens=10)

    def test_nothing_was_read(self, book: PriceBook) -> None:
        assert book.cost(exchange(reading=None)) is None
        assert cost(book, None) is None

    @pytest.mark.parametrize("outcome", ["cut", "failed"])
    def test_an_answer_that_did_not_come_whole(self, book: PriceBook, outcome: str) -> None:
        assert cost(book, self.USAGE, outcome=outcome) is None

    def test_an_upstream_that_is_no_providers_own(self, book: PriceBook) -> None:
        assert cost(book, self.USAGE, upstream="gateway") is None
        assert cost(book, self.USAGE, upstream="not configured") is None

    def test_no_model_is_named(self, book: PriceBook) -> None:
        assert cost(book, self.USAGE, None) is None

    @pytest.mark.parametrize("usage", [Usage(output_tokens=1), Usage(input_tokens=1)])
    def test_a_number_that_matters_is_missing(self, book: PriceBook, usage: Usage) -> None:
        assert cost(book, usage) is None

    def test_an_unknown_model_is_told_once(self, lines: Lines) -> None:
        book = PriceBook(base_urls=BASE_URLS)
        for _ in range(3):
            assert cost(book, self.USAGE, "brand-new") is None
        assert cost(book, self.USAGE, "brand-newer") is None
        told = [line for line in lines() if "No price" in line]
        assert len(told) == 2
        assert "'brand-new' of anthropic" in told[0]

    def test_a_price_that_is_missing_is_told_once_with_its_key(self, lines: Lines) -> None:
        book = PriceBook(
            [PriceOverride("qwen3:*", input=ONE), PriceOverride("*", "flex", output=ONE)], BASE_URLS
        )
        for _ in range(3):
            assert cost(book, self.USAGE, "qwen3:8b", "gateway") is None
            assert cost(book, Usage(10, 0), "qwen3:8b", "gateway") == 10
        assert cost(book, self.USAGE, "qwen3:8b", "gateway", service_tier="flex") is None
        sound = Usage(10, 10, input_audio_tokens=5, output_audio_tokens=5)
        assert cost(book, sound, "gpt-4o-audio-preview", "openai") is None
        told = [line for line in lines() if "No price" in line]
        assert [line.partition("No price")[2] for line in told] == [
            f" of {kind} is known for model {model}: the cost of what it answers with such tokens is recorded as unknown. "
            f"{kind} of [prices] in the configuration can tell it."
            for kind, model in [
                ("output", "'qwen3:8b' of gateway"),
                ("input", "'qwen3:8b' at service tier 'flex' of gateway"),
                ("input_audio", "'gpt-4o-audio-preview' of openai"),
                ("output_audio", "'gpt-4o-audio-preview' of openai"),
            ]
        ]

    def test_what_is_unknown_for_another_reason_is_not_said_to_lack_a_price(self, lines: Lines) -> None:
        book = PriceBook(base_urls=BASE_URLS)
        assert cost(book, Usage(10, 10, more=True)) is None
        assert cost(book, Usage(10, None)) is None
        assert cost(book, Usage(1, 1, input_audio_tokens=2), "gpt-audio", "openai") is None
        assert not [line for line in lines() if "No price" in line]

    def test_clients_that_make_up_models_do_not_fill_the_log(self, lines: Lines) -> None:
        book = PriceBook(base_urls=BASE_URLS)
        for number in range(1500):
            cost(book, self.USAGE, f"model {number}", "gateway")
        assert len([line for line in lines() if "No price" in line]) == 1000


class TestParts:
    ONE = Usage(input_tokens=1000, output_tokens=0)

    def test_each_is_priced_by_itself(self) -> None:
        book = PriceBook([PriceOverride("dear", input=100 * ONE), PriceOverride("cheap", input=ONE)])
        parts = [Part("dear", None, self.ONE), Part("cheap", None, self.ONE)]
        assert cost(book, self.ONE + self.ONE, "cheap", "gateway", parts=parts) == 101_000

    def test_each_has_its_own_tier(self, book: PriceBook) -> None:
        parts = [Part("gpt-4.1", tier, self.ONE) for tier in (None, "priority")]
        assert cost(book, self.ONE + self.ONE, "gpt-4.1", "openai", parts=parts) == 2000 + 3500

    def test_the_length_of_a_context_is_that_of_each(self, book: PriceBook) -> None:
        long = Usage(input_tokens=150_000, output_tokens=0)
        assert (
            cost(book, long + long, "claude-sonnet-4-5", parts=[Part("claude-sonnet-4-5", None, long)] * 2)
            == 900_000
        )

    def test_one_that_is_unknown_makes_all_of_it_unknown(self, book: PriceBook) -> None:
        parts = [Part(SONNET, None, self.ONE), Part(SONNET, None, None)]
        assert cost(book, self.ONE, parts=parts) is None

    def test_the_name_that_was_asked_for_stands_for_the_model_that_answered_alone(self) -> None:
        book = PriceBook([PriceOverride("ours", input=ONE), PriceOverride("advisor", input=5 * ONE)])
        parts = [Part("m", None, self.ONE), Part("advisor", None, self.ONE)]
        assert cost(book, self.ONE, "m", "gateway", parts=parts, asked_model="ours") == 6000

    def test_they_are_rounded_together(self) -> None:
        book = PriceBook([PriceOverride("*", input=Decimal("0.3"))])
        part = Part("m", None, Usage(input_tokens=1, output_tokens=0))
        assert cost(book, self.ONE, "m", "gateway", parts=[part] * 5) == 2


class TestOverrides:
    USAGE = Usage(input_tokens=1000, output_tokens=1000)

    def test_a_model_that_no_list_has_is_added(self) -> None:
        book = PriceBook([PriceOverride("llama-*", input=Decimal("0.5"), output=ONE)], BASE_URLS)
        assert cost(book, self.USAGE, "llama-3", "gateway") == 1500
        assert cost(book, self.USAGE, "other", "gateway") is None

    def test_what_is_left_out_is_as_in_the_list(self) -> None:
        book = PriceBook([PriceOverride("claude-*", output=ONE)], BASE_URLS)
        assert cost(book, self.USAGE) == 3000 + 1000

    def test_sound_stays_paid_as_text_where_the_list_says_so(self) -> None:
        book = PriceBook([PriceOverride("gemini-*", input=ONE)], BASE_URLS)
        assert cost(book, Usage(1000, 0, input_audio_tokens=900), "gemini-2.5-pro", "gemini") == 1000

    def test_every_kind_of_token_can_have_a_price(self) -> None:
        override = PriceOverride(
            "*",
            input=ONE,
            output=2 * ONE,
            cache_read=3 * ONE,
            cache_write_5m=4 * ONE,
            cache_write_1h=5 * ONE,
            input_audio=6 * ONE,
            output_audio=7 * ONE,
            cache_read_audio=8 * ONE,
            input_image=9 * ONE,
            output_image=10 * ONE,
            cache_read_image=11 * ONE,
        )
        usage = Usage(
            input_tokens=100 + 2,
            output_tokens=100 + 2,
            cache_read_tokens=100 + 2,
            cache_write_5m_tokens=100,
            cache_write_1h_tokens=100,
            input_audio_tokens=1,
            output_audio_tokens=1,
            cached_audio_tokens=1,
            input_image_tokens=1,
            output_image_tokens=1,
            cached_image_tokens=1,
        )
        dear = sum(range(6, 12))
        assert cost(PriceBook([override], BASE_URLS), usage) == 100 * (1 + 2 + 3 + 4 + 5) + dear

    def test_the_first_that_matches_is_taken(self) -> None:
        overrides = [
            PriceOverride("a*", input=ONE, output=ONE),
            PriceOverride("*", input=5 * ONE, output=ONE),
        ]
        book = PriceBook(overrides)
        assert (cost(book, self.USAGE, "abc"), cost(book, self.USAGE, "bcd")) == (2000, 6000)

    def test_the_name_that_was_asked_for_may_be_meant(self) -> None:
        book = PriceBook([PriceOverride("our-deployment", input=ONE, output=ONE)])
        assert cost(book, self.USAGE, "gpt-9", asked_model="our-deployment") == 2000

    def test_it_speaks_of_one_tier(self) -> None:
        prices = PriceOverride("claude-*", service_tier="priority", input=ONE, output=ONE)
        book = PriceBook([prices], BASE_URLS)
        assert cost(book, self.USAGE) == 18_000
        assert cost(book, self.USAGE, service_tier="priority") == 2000

    def test_one_of_another_tier_does_not_stand_before_those_of_the_standard_one(
        self, tmp_path: Path, lines: Lines
    ) -> None:
        book = _configured(
            tmp_path,
            """
            [prices."claude-sonnet-*".tiers.priority]
            input = 9
            [prices."claude-*"]
            input = 1
            [prices."new-*".tiers.flex]
            input = 1
            """,
        )
        assert cost(book, Usage(1000, 0)) == 1000
        assert cost(book, Usage(1000, 0), service_tier="priority") == 9000
        assert cost(book, Usage(1000, 0), "new-model") is None
        assert any("No price is known for model 'new-model' of anthropic" in line for line in lines())

    @pytest.mark.parametrize("name", ["default", "standard", "auto", "Default"])
    def test_the_usual_tier_may_be_called_by_its_name(self, name: str) -> None:
        prices = PriceOverride("claude-*", service_tier=name, input=ONE, output=ONE)
        book = PriceBook([prices], BASE_URLS)
        assert cost(book, self.USAGE, service_tier="standard") == cost(book, self.USAGE) == 2000


class TestToldCosts:
    TOLD = Usage(input_tokens=1000, output_tokens=100, told_cost=Decimal("20560.5"))

    def test_what_the_provider_says_that_it_cost_is_the_cost(self, book: PriceBook) -> None:
        assert cost(book, self.TOLD) == 20_560

    def test_it_needs_no_price_and_misses_none(self, lines: Lines) -> None:
        book = PriceBook(base_urls=BASE_URLS)
        assert cost(book, self.TOLD, "brand-new", "gateway") == 20_560
        assert cost(book, self.TOLD, None, "gateway") == 20_560
        assert cost(book, Usage(told_cost=Decimal(7)), "brand-new", service_tier="special") == 7
        assert not [line for line in lines() if "No price" in line]

    def test_it_has_what_is_billed_beyond_tokens(self, book: PriceBook) -> None:
        usage = Usage(1, 1, more=True, server_tool_uses={"x_searches": 3}, told_cost=Decimal(5000))
        assert cost(book, usage) == 5000

    def test_a_half_is_rounded_to_the_even_neighbour(self, book: PriceBook) -> None:
        costs = [cost(book, Usage(told_cost=Decimal(told))) for told in ("0.5", "1.5", "2.5", "2.5000001")]
        assert costs == [0, 2, 2, 3]

    def test_the_operators_own_price_of_the_model_comes_first(self) -> None:
        book = PriceBook([PriceOverride("ours-*", input=ONE, output=ONE)], BASE_URLS)
        assert cost(book, self.TOLD, "ours-1") == 1100
        assert cost(book, self.TOLD, "m", asked_model="ours-1") == 1100
        assert cost(book, self.TOLD, "theirs") == 20_560
        assert cost(book, self.TOLD, "ours-1", service_tier="flex") == 20_560
        assert cost(book, Usage(1, 1, more=True, told_cost=Decimal(1)), "ours-1") is None

    def test_it_is_of_answers_that_came_whole(self, book: PriceBook) -> None:
        assert cost(book, self.TOLD, outcome="cut") is None

    def test_each_part_may_have_its_own(self, book: PriceBook) -> None:
        listed = Usage(input_tokens=1000, output_tokens=0)
        parts = [Part(SONNET, None, listed), Part(SONNET, None, self.TOLD)]
        assert cost(book, listed + self.TOLD, parts=parts) == 3000 + 20_560
        assert cost(book, listed + self.TOLD) is None


def _configured(directory: Path, prices: str) -> PriceBook:
    """The price book of a configuration file."""
    file = directory / "llmproxy.toml"
    file.write_text(prices)
    environ = {"ANTHROPIC_API_KEY": "key", "OPENAI_API_KEY": "key", "PROXY_TOKEN": "token"}
    return PriceBook(load(environ, str(file)).accounting.prices, BASE_URLS)


def total(usage: Usage, **rates: Decimal) -> Decimal | None:
    return price(usage, Rates({**RATES, **rates}))


class TestSum:
    def test_what_is_billed_beyond_it_makes_the_cost_unknown(self) -> None:
        assert total(Usage(1, 1, more=True)) is None

    def test_video_is_paid_as_other_tokens_unless_it_has_a_price(self) -> None:
        assert total(Usage(1, 1, video=True)) == 11
        assert total(Usage(1, 1, video=True), input_video_mtok=ONE) is None

    def test_within_the_us_tokens_cost_a_tenth_more_and_tools_do_not(self) -> None:
        usage = Usage(100, 0, server_tool_uses={"web_search_requests": 1}, us_only=True)
        assert total(usage, web_searches_kcount=10 * ONE) == 110 + 10_000

    def test_a_request_may_have_a_price_of_its_own(self) -> None:
        assert total(Usage(1, 1), requests_kcount=12 * ONE) == 11 + 12_000

    def test_a_half_is_rounded_to_the_even_neighbour(self) -> None:
        book = PriceBook([PriceOverride("*", input=Decimal("0.5"), output=ONE)])
        costs = [cost(book, Usage(input_tokens=count, output_tokens=0)) for count in (1, 2, 3, 5)]
        assert costs == [0, 1, 2, 2]

    def test_it_is_rounded_once(self) -> None:
        book = PriceBook([PriceOverride("*", input=Decimal("0.3"), output=Decimal("0.3"))])
        assert cost(book, Usage(input_tokens=1, output_tokens=1)) == 1

    def test_images_that_are_put_in_are_paid_as_other_tokens_where_they_have_no_price(self) -> None:
        usage = Usage(10, 10, input_image_tokens=3)
        assert total(usage) == 110
        assert total(usage, input_image_mtok=2 * ONE) == 113

    @pytest.mark.parametrize("kind", ["input_audio", "output_audio", "output_image"])
    def test_sound_and_images_that_are_made_need_a_price_where_they_are_not_known_to_be_paid_as_text(
        self, kind: str
    ) -> None:
        counts: dict[str, Any] = {f"{kind}_tokens": 3}
        usage = Usage(10, 10, **counts)
        assert total(usage) is None
        as_text = frozenset({kind})
        assert price(usage, Rates(RATES, as_text)) == 110
        assert price(usage, Rates({**RATES, f"{kind}_mtok": 0 * ONE}, as_text)) == (
            80 if "out" in kind else 107
        )

    @pytest.mark.parametrize("what", ["audio", "image"])
    def test_what_comes_from_a_cache_has_a_price_by_what_it_is(self, what: str) -> None:
        counts: dict[str, Any] = {f"cached_{what}_tokens": 4}
        usage = Usage(0, 0, cache_read_tokens=10, **counts)
        as_text = frozenset({f"input_{what}"})

        def paid(**rates: Decimal) -> Decimal | None:
            return price(usage, Rates({**RATES, **rates}, as_text))

        half, apart, cached = ONE / 2, f"input_{what}_mtok", f"cache_{what}_read_mtok"
        assert paid(**{"cache_read_mtok": half, cached: ONE / 4}) == 4
        assert paid(cache_read_mtok=half) == 5
        assert paid() == 10
        assert paid(**{apart: 2 * ONE}) == 6 + 8
        assert paid(**{apart: 2 * ONE, "cache_read_mtok": half}) is None
        assert paid(**{apart: 2 * ONE, "cache_read_mtok": half, cached: ONE}) == 3 + 4

    def test_sound_from_a_cache_is_unknown_where_sound_is(self) -> None:
        assert total(Usage(0, 0, cache_read_tokens=10, cached_audio_tokens=4), cache_read_mtok=ONE) is None

    def test_reasoning_is_output_unless_it_has_a_price(self) -> None:
        usage = Usage(input_tokens=0, output_tokens=10, reasoning_tokens=4)
        assert total(usage) == 100
        assert total(usage, output_reasoning_mtok=ONE) == 64

    @pytest.mark.parametrize("name", ["cache_write_5m_tokens", "cache_write_1h_tokens"])
    def test_writing_to_a_cache_without_a_price_is_unknown(self, name: str) -> None:
        counts: dict[str, Any] = {name: 1}
        usage = Usage(input_tokens=0, output_tokens=0, **counts)
        assert total(usage) is None

    def test_an_hour_is_not_paid_as_five_minutes(self) -> None:
        usage = Usage(input_tokens=0, output_tokens=0, cache_write_1h_tokens=1)
        assert total(usage, cache_write_mtok=ONE) is None

    def test_parts_that_are_more_than_the_whole_are_not_believed(self) -> None:
        assert total(Usage(input_tokens=1, output_tokens=1, input_audio_tokens=2)) is None

    def test_the_length_of_the_context_chooses_the_price(self) -> None:
        tiers = TieredPrices(base=ONE, tiers=[Tier(100, 2 * ONE), Tier(200, 3 * ONE)])
        totals = [
            price(Usage(input_tokens=count, output_tokens=0), Rates({"input_mtok": tiers}))
            for count in (100, 101, 201)
        ]
        assert totals == [100, 202, 603]

    def test_no_float_comes_in(self) -> None:
        for count, rate in itertools.product((1, 3, 7**20), (Decimal("0.1"), Decimal("0.30"))):
            assert (
                price(Usage(input_tokens=count, output_tokens=0), Rates({"input_mtok": rate})) == count * rate
            )
