"""What an exchange cost, by the published prices of ``genai-prices`` and by what the operator says of his own.

The price lists are part of that library and as old as its release: nothing is fetched. What a list cannot tell is ``None``,
never a guess: the cost of a model that is in no list, of an upstream that is no provider's own (a machine of yours, another
gateway), of a service tier that is priced by contract, and of an answer that did not come whole, for what is billed then is
told to nobody. Which tokens were used is read by :mod:`llmproxy.usage`. Where the provider itself says what an answer cost, it
cost that, unless the operator's own prices speak of the model.

Money is exact: prices are Decimals in USD per million tokens, which is micro-dollars (1e-6 USD) per token. It is rounded once,
for the whole exchange, to a whole number of micro-dollars, a half to the even neighbour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

import attrs
from twisted.logger import Logger

from llmproxy.config import PriceOverride
from llmproxy.exchange import Exchange
from llmproxy.usage.model import Part, Reading, Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, PriceContext, Provider, TieredPrices

    Rate = Decimal | TieredPrices

_LARGEST_CACHE = 1024  # models; clients choose the names of some
# Lists have prices by the time of the day, and new ones from some day on: at whole minutes, so that all of one have the same.
_MINUTE = 60_000_000_000  # nanoseconds
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
# https://platform.claude.com/docs/en/manage-claude/data-residency: of all tokens, and not of tools.
_US_ONLY = Decimal("1.1")
# What may be the price of each kind of tokens, best first. What has none of its own is paid as what it is a part of: sound and
# images as other tokens, and so is what was read from a cache. Writing to one costs more than other input, so it needs its own.
_PRICES = (
    ("input_mtok",),
    ("output_mtok",),
    ("cache_read_mtok", "input_mtok"),
    ("cache_write_5m_mtok", "cache_write_mtok"),
    ("cache_write_1h_mtok",),
    ("output_reasoning_mtok",),
    ("input_audio_mtok", "input_mtok"),
    ("output_audio_mtok", "output_mtok"),
    ("cache_audio_read_mtok", "cache_read_mtok", "input_mtok"),
    ("input_image_mtok", "input_mtok"),
    ("output_image_mtok", "output_mtok"),
)


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
        self._overrides = tuple(
            attrs.evolve(override, service_tier=_tier(override.service_tier)) for override in overrides
        )
        self._providers = {upstream: self._provider(url) for upstream, url in base_urls.items()}
        self._rates = lru_cache(_LARGEST_CACHE)(self._find_rates)
        self._said: set[tuple[str, str, str | None]] = set()

    def cost(self, exchange: Exchange) -> int | None:
        """The cost of an exchange in micro-dollars; ``None`` where it cannot be known."""
        reading = exchange.reading
        if reading is None or reading.usage is None:
            return None
        if not reading.usage.billable:
            return 0
        if reading.outcome != "complete":
            return None
        if not reading.parts:
            total = self._cost(exchange, reading, exchange.asked_model)
            return None if total is None else round(total)
        costs = [
            # Of others it was not asked for.
            self._cost(exchange, part, exchange.asked_model if part.model == reading.model else None)
            for part in reading.parts
        ]
        known = [cost for cost in costs if cost is not None]
        return round(sum(known, Decimal(0))) if len(known) == len(costs) else None

    def _cost(self, exchange: Exchange, part: Part | Reading, asked: str | None) -> Decimal | None:
        if part.usage is None:
            return None
        told = part.usage.told_cost
        if told is not None and not self._is_overridden(part, asked):
            return told
        minute = exchange.begun_ns // _MINUTE
        rates = self._rates(exchange.upstream, part.model, asked, part.service_tier, minute)
        return None if rates is None else price(part.usage, rates)

    def _find_rates(
        self, upstream: str, answered: str | None, asked: str | None, service_tier: str | None, minute: int
    ) -> Rates | None:
        names = [name for name in (answered, asked) if name]
        if not names:
            return None
        tier = _tier(service_tier)
        at = datetime.fromtimestamp(minute * 60, timezone.utc)
        found = self._listed(upstream, names[0], tier, at)
        for override in self._overrides:
            if _speaks_of(override, names, tier):
                found = {**(found or {}), **_rates_of(override)}
                break
        if found is None:
            self._say_unknown(upstream, names[0], tier)
            return None
        return Rates(found)

    def _is_overridden(self, part: Part | Reading, asked: str | None) -> bool:
        """Tell whether the operator has prices of his own for what ran."""
        names = [name for name in (part.model, asked) if name]
        tier = _tier(part.service_tier)
        return any(_speaks_of(override, names, tier) for override in self._overrides)

    def _listed(
        self, upstream: str, name: str, tier: str | None, at: datetime
    ) -> Mapping[str, Rate | None] | None:
        """The prices of a provider's list for a model; ``None`` where it has none for that model or tier."""
        provider = self._providers.get(upstream)
        model = None if provider is None else self._model(provider, name)
        if provider is None or model is None:
            return None
        if tier is None:
            return vars(model.get_prices(at))
        context = _CONTEXTS.get(tier, {"service_tier": tier})
        # One provider's tiers are not another's that offers its models: those of Azure are not OpenAI's.
        own = any(model is other for other in provider.models)
        return vars(model.get_prices(at, context)) if own and _has_variant(model, context, at) else None

    def _provider(self, url: str) -> Provider | None:
        try:
            return self._snapshot.find_provider(None, None, url)
        except LookupError:
            return None

    def _model(self, provider: Provider, name: str) -> ModelInfo | None:
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


def _tier(name: str | None) -> str | None:
    """A service tier by its name in an answer; ``None`` for the one that list prices are for."""
    tier = (name or "").lower()
    return None if tier in _STANDARD_TIERS else tier


def _speaks_of(override: PriceOverride, names: Sequence[str], tier: str | None) -> bool:
    """Tell whether one of a model's names, at a service tier, is meant."""
    return override.service_tier == tier and any(fnmatchcase(name, override.model) for name in names)


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


class Rates:
    """What a model costs: a price for each kind of tokens.

    :param rates: by the names that ``genai-prices`` gives them: per million tokens, or per thousand uses of a tool.
    """

    __slots__ = ("by_name", "of_request", "of_tokens", "reasoning_apart", "video_apart")

    def __init__(self, rates: Mapping[str, Rate | None]) -> None:
        self.by_name = rates
        self.of_tokens = tuple(_first(rates, names) for names in _PRICES)
        self.of_request = rates.get("requests_kcount")
        self.video_apart = _first(rates, ("input_video_mtok", "output_video_mtok")) is not None
        self.reasoning_apart = rates.get("output_reasoning_mtok") is not None


def price(usage: Usage, rates: Rates) -> Decimal | None:
    """Add up what usage costs, in micro-dollars.

    :return: ``None`` where a number or a price that matters is unknown.
    """
    put_in, made = usage.input_tokens, usage.output_tokens
    if usage.more or (usage.video and rates.video_apart):
        return None
    if put_in is None or (made is None and rates.by_name.get("output_mtok") is not None):
        return None
    read, audio_read = usage.cache_read_tokens or 0, usage.cached_audio_tokens or 0
    written, written_1h = usage.cache_write_5m_tokens or 0, usage.cache_write_1h_tokens or 0
    audio_in, image_in = usage.input_audio_tokens or 0, usage.input_image_tokens or 0
    audio_out, image_out = usage.output_audio_tokens or 0, usage.output_image_tokens or 0
    reasoning = usage.reasoning_tokens or 0 if rates.reasoning_apart else 0
    counts: tuple[int, ...] = (
        put_in - audio_in - image_in,
        (made or 0) - audio_out - image_out - reasoning,
        read - audio_read,
        written,
        written_1h,
    )
    if reasoning or audio_in or audio_out or audio_read or image_in or image_out:
        counts += (reasoning, audio_in, audio_out, audio_read, image_in, image_out)
    total = Decimal(0)
    for count, rate in zip(counts, rates.of_tokens, strict=False):
        if not count:
            continue
        if rate is None or count < 0:  # more parts than there are of the whole: not to be trusted
            return None
        if not isinstance(rate, Decimal):
            rate = _at_length(rate, put_in + read + written + written_1h)
        total += count * rate
    if usage.us_only:
        total *= _US_ONLY
    if isinstance(rates.of_request, Decimal):
        total += rates.of_request * 1000  # USD per thousand, in micro-dollars for one
    if not usage.server_tool_uses:
        return total
    tools = _tools(usage.server_tool_uses, rates.by_name)
    return None if tools is None else total + tools


def _first(rates: Mapping[str, Rate | None], names: Sequence[str]) -> Rate | None:
    for name in names:
        rate = rates.get(name)
        if rate is not None:
            return rate
    return None


def _tools(uses: Mapping[str, int], rates: Mapping[str, Rate | None]) -> Decimal | None:
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
