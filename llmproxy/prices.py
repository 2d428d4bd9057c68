"""What an exchange cost, by the published prices of ``genai-prices`` and by what the operator says of his own.

The price lists are part of that library and as old as its release: nothing is fetched. What a list cannot tell is ``None``,
never a guess: the cost of a model that is in no list, of an upstream that is no provider's own (a machine of yours, another
gateway), of a service tier that is priced by contract, and of an answer that did not come whole, for what is billed then is
told to nobody. Which tokens were used is read by :mod:`llmproxy.usage`.

Money is exact: prices are Decimals in USD per million tokens, which is micro-dollars (1e-6 USD) per token. It is rounded once,
for the whole exchange, to a whole number of micro-dollars, a half to the even neighbour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from twisted.logger import Logger

from llmproxy.config import PriceOverride
from llmproxy.exchange import Exchange
from llmproxy.usage.model import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, PriceContext, Provider, TieredPrices

    Rate = Decimal | TieredPrices

_LARGEST_CACHE = 1024  # models; clients choose the names of some
_MOST_SAID = 1000  # models that are told to be unknown; after that the log has had enough

# What APIs call the service that their list prices are for. OpenAI: "default"; Anthropic: "standard"; Groq: "on_demand".
# Gemini: "standard", or on Vertex "ON_DEMAND".
_STANDARD_TIERS = frozenset({"", "auto", "default", "on_demand", "standard", "unspecified"})
# How the price lists name what APIs call a service tier, where that differs. Anthropic's fast mode is a speed.
_CONTEXTS: Mapping[str, PriceContext] = {
    "batch": {"processing": "batch"},
    "fast": {"service_tier": "fast", "speed": "fast"},
    "on_demand_flex": {"service_tier": "flex"},
    "on_demand_priority": {"service_tier": "priority"},
}
# The price of each use of a provider's own tool, by its name in the usage; "" where tokens alone are paid for. Others, such as
# containers that are paid by the hour, cannot be told from how often they were used.
# https://platform.claude.com/docs/en/about-claude/pricing#tool-use-pricing
_TOOL_RATES = {
    "file_search_requests": "storage_searches_kcount",
    "web_fetch_requests": "",
    "web_search_requests": "web_searches_kcount",
}


class PriceBook:
    """The prices that hold for the upstreams of a configuration. Made at the start: it reads its lists for 0.2 s.

    :param overrides: the first that speaks of a model is taken.
    :param base_urls: of the upstreams, by their names; they tell whose list holds.
    """

    _log = Logger()

    def __init__(self, overrides: Sequence[PriceOverride] = (), base_urls: Mapping[str, str] = {}) -> None:
        # 30 MB, which not every program that imports an override should have to hold.
        from genai_prices.data_snapshot import get_snapshot

        self._snapshot = get_snapshot()
        self._overrides = tuple(overrides)
        self._providers = {upstream: self._provider(url) for upstream, url in base_urls.items()}
        self._model = lru_cache(_LARGEST_CACHE)(self._find_model)
        self._said: set[tuple[str, str, str | None]] = set()

    def cost(self, exchange: Exchange) -> int | None:
        """The cost of an exchange in micro-dollars; ``None`` where it cannot be known."""
        reading = exchange.reading
        if reading is None or reading.usage is None:
            return None
        if not reading.usage.billable:
            return 0
        names = [name for name in (reading.model, exchange.asked_model) if name]
        if reading.outcome != "complete" or not names:
            return None
        tier: str | None = (reading.service_tier or "").lower()
        if tier in _STANDARD_TIERS:
            tier = None
        rates = self._rates(exchange, names, tier)
        if rates is None:
            self._say_unknown(exchange.upstream, names[0], tier)
            return None
        total = price(reading.usage, rates)
        return None if total is None else int(total.to_integral_value(ROUND_HALF_EVEN))

    def _rates(self, exchange: Exchange, names: Sequence[str], tier: str | None) -> Mapping[str, Rate] | None:
        listed = self._listed(exchange, names[0], tier)
        for override in self._overrides:
            if _speaks_of(override, names, tier):
                return {**(listed or {}), **_rates_of(override)}
        return listed

    def _listed(self, exchange: Exchange, name: str, tier: str | None) -> Mapping[str, Rate] | None:
        """The prices of a provider's list for a model; ``None`` where it has none for that model or tier."""
        provider = self._providers.get(exchange.upstream)
        model = None if provider is None else self._model(provider.id, name)
        if provider is None or model is None:
            return None
        if tier is None:
            # A list of prices goes by the time: of the day, or until they were changed.
            at_all_times = not isinstance(model.prices, list)
            return vars(model.prices if at_all_times else model.get_prices(exchange.at))
        at = exchange.at
        context = _CONTEXTS.get(tier, {"service_tier": tier})
        # One provider's tiers are not another's that offers its models: those of Azure are not OpenAI's.
        own = any(model is other for other in provider.models)
        return vars(model.get_prices(at, context)) if own and _has_variant(model, context, at) else None

    def _provider(self, url: str) -> Provider | None:
        try:
            return self._snapshot.find_provider(None, None, url)
        except LookupError:
            return None

    def _find_model(self, provider_id: str, name: str) -> ModelInfo | None:
        provider = self._snapshot.find_provider(None, provider_id, None)
        return provider.find_model(name, all_providers=self._snapshot.providers)

    def _say_unknown(self, upstream: str, model: str, tier: str | None) -> None:
        if (upstream, model, tier) in self._said or len(self._said) >= _MOST_SAID:
            return
        self._said.add((upstream, model, tier))
        self._log.warn(
            "No price is known for model {model!r}{at_tier} of {upstream}: the cost of what it answers is recorded as unknown. "
            "[prices] in the configuration can tell it.",
            model=model,
            at_tier="" if tier is None else f" at service tier {tier!r}",
            upstream=upstream,
        )


def _speaks_of(override: PriceOverride, names: Sequence[str], tier: str | None) -> bool:
    """Tell whether one of a model's names, at a service tier, is meant."""
    return override.service_tier == tier and any(fnmatchcase(name, override.model) for name in names)


@cache
def _rates_of(override: PriceOverride) -> Mapping[str, Decimal]:
    """The prices that it has, by their names in the lists; what it leaves out stays as the list has it."""
    named = {
        "input_mtok": override.input,
        "output_mtok": override.output,
        "cache_read_mtok": override.cache_read,
        "cache_write_5m_mtok": override.cache_write_5m,
        "cache_write_1h_mtok": override.cache_write_1h,
        "input_audio_mtok": override.input_audio,
        "output_audio_mtok": override.output_audio,
    }
    return {name: price for name, price in named.items() if price is not None}


def price(usage: Usage, rates: Mapping[str, Rate]) -> Decimal | None:
    """Add up what usage costs, in micro-dollars.

    What has no price of its own is paid as what it is a part of: sound as other input, and so is what was read from a cache,
    where a list gives no discount for it. Writing to a cache costs more than other input, so it needs a price of its own.

    :param rates: by the names that ``genai-prices`` gives them: per million tokens, or per thousand uses of a tool.
    :return: ``None`` where a number or a price that matters is unknown.
    """
    read, written = usage.cache_read_tokens or 0, usage.cache_write_5m_tokens or 0
    written_1h = usage.cache_write_1h_tokens or 0
    audio_read = usage.cached_audio_tokens or 0
    audio_in, image_in = usage.input_audio_tokens or 0, usage.input_image_tokens or 0
    audio_out, image_out = usage.output_audio_tokens or 0, usage.output_image_tokens or 0
    reasoning = usage.reasoning_tokens or 0 if "output_reasoning_mtok" in rates else 0
    if usage.input_tokens is None or (usage.output_tokens is None and rates.get("output_mtok") is not None):
        return None
    counts: list[tuple[int, tuple[str, ...]]] = [
        (usage.input_tokens - audio_in - image_in, ("input_mtok",)),
        (read - audio_read, ("cache_read_mtok", "input_mtok")),
        (written, ("cache_write_5m_mtok", "cache_write_mtok")),
        (written_1h, ("cache_write_1h_mtok",)),
        ((usage.output_tokens or 0) - audio_out - image_out - reasoning, ("output_mtok",)),
    ]
    if audio_in or image_in or audio_read or audio_out or image_out or reasoning:
        counts += [
            (audio_in, ("input_audio_mtok", "input_mtok")),
            (image_in, ("input_image_mtok", "input_mtok")),
            (audio_read, ("cache_audio_read_mtok", "cache_read_mtok", "input_mtok")),
            (audio_out, ("output_audio_mtok", "output_mtok")),
            (image_out, ("output_image_mtok", "output_mtok")),
            (reasoning, ("output_reasoning_mtok",)),
        ]
    context = usage.input_tokens + read + written + written_1h
    total = Decimal(0)
    for count, names in counts:
        if not count:
            continue
        rate = _first(rates, names)
        if rate is None or count < 0:  # more parts than there are of the whole: not to be trusted
            return None
        total += count * (rate if isinstance(rate, Decimal) else _at_length(rate, context))
    tools = _tools(usage.server_tool_uses or {}, rates)
    return None if tools is None else total + tools


def _first(rates: Mapping[str, Rate], names: Sequence[str]) -> Rate | None:
    for name in names:
        rate = rates.get(name)
        if rate is not None:
            return rate
    return None


def _tools(uses: Mapping[str, int], rates: Mapping[str, Rate]) -> Decimal | None:
    total = Decimal(0)
    for tool, count in uses.items():
        name = _TOOL_RATES.get(tool)
        if not count or name == "":
            continue
        rate = None if name is None else rates.get(name)
        if not isinstance(rate, Decimal):
            return None
        total += count * rate * 1000  # USD per thousand, in micro-dollars for one
    return total


def _at_length(rate: TieredPrices, context: int) -> Decimal:
    """The price where all tokens cost more once the context is longer than a bound."""
    for tier in reversed(rate.tiers):
        if context > tier.start:
            return tier.price
    return rate.base


def _has_variant(model: ModelInfo, context: PriceContext, at: datetime) -> bool:
    return any(
        all(context.get(key) == value for key, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in model.price_variants or ()
    )
