"""What each kind of tokens costs at a model: by the price lists of ``genai-prices``, and by what the operator says of his own.

The price lists are part of that library and as old as its release: nothing is fetched. Whose list holds for an upstream is told
by its base URL alone. What the tokens of an answer come to is added up by :mod:`llmproxy.prices`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmproxy.config import PriceOverride
from llmproxy.config.presets import PRESETS
from llmproxy.usage.model import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, PriceContext, Provider, TieredPrices

    Rate = Decimal | TieredPrices

_LARGEST_CACHE = 1024  # models; clients choose the names of some

# How the price lists name what APIs call a service tier, where that differs. Anthropic's fast mode is a speed.
_CONTEXTS: Mapping[str, PriceContext] = {
    "batch": {"processing": "batch"},
    "fast": {"service_tier": "fast", "speed": "fast"},
    "on_demand_flex": {"service_tier": "flex"},
    "on_demand_priority": {"service_tier": "priority"},
}
# The price lists of presets, by the schemes and hosts of their base URLs. The lists know some by other hosts alone.
_LISTS = {
    urlsplit(preset.base_url)[:2]: preset.price_list
    for preset in PRESETS.values()
    if preset.base_url is not None and preset.price_list is not None
}
# The kinds of tokens, by their keys in [prices], and how the price lists name what they cost. Reasoning has no key.
_KINDS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write_5m": "cache_write_5m_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "input_audio": "input_audio_mtok",
    "output_audio": "output_audio_mtok",
    "cache_read_audio": "cache_audio_read_mtok",
    "input_image": "input_image_mtok",
    "output_image": "output_image_mtok",
    "cache_read_image": "cache_image_read_mtok",
}
# What is paid as text where it has no price of its own: images that are put in, everywhere. Sound, and images that are made,
# cost many times as much at most models: without a price they are unknown, but for the models of these lists.
_IMAGES_READ = frozenset({"input_image"})
_AS_TEXT: Mapping[str, frozenset[str]] = {
    # The page has a price of sound wherever that is another: "$0.30 (text / image / video)" and "$1.00 (audio)" of one model,
    # "$0.30 (text / image / video / audio)" of another. All that models for speech make is sound, and the one price is its.
    # https://ai.google.dev/gemini-api/docs/pricing
    "google": _IMAGES_READ | {"input_audio", "output_audio"},
    # All that gpt-image-1, its mini and 2 make is images, and the one price is theirs; those that write have two.
    # https://developers.openai.com/api/docs/pricing
    "openai": _IMAGES_READ | {"output_image"},
    # "Prompt text, audio and image tokens - Charged at prompt token price": https://docs.x.ai/developers/rate-limits
    "x-ai": _IMAGES_READ | {"input_audio"},
}


class Rates:
    """What a model costs: a price for each kind of tokens.

    :param rates: by the names that ``genai-prices`` gives them: per million tokens, or per thousand uses of a tool.
    :param as_text: the kinds of sound and images that are paid as text where they have no price.
    :ivar of_tokens: the prices of what :meth:`counts` tells, in the same order; ``None`` where they are unknown.
    """

    __slots__ = ("as_text", "by_name", "of_request", "of_tokens", "reasoning_apart", "video_apart")

    def __init__(self, rates: Mapping[str, Rate | None], as_text: frozenset[str] = _IMAGES_READ) -> None:
        self.by_name, self.as_text = rates, as_text
        prices = {kind: rates.get(name) for kind, name in _KINDS.items()}
        if prices["cache_write_5m"] is None:  # costs more than other input, and never becomes that
            prices["cache_write_5m"] = rates.get("cache_write_mtok")
        for what in ("audio", "image"):
            _complete(prices, what, as_text)
        if prices["cache_read"] is None:
            prices["cache_read"] = prices["input"]
        reasoning = rates.get("output_reasoning_mtok")
        self.of_tokens = (*prices.values(), reasoning)
        self.of_request = rates.get("requests_kcount")
        self.video_apart = any(
            rates.get(name) is not None for name in ("input_video_mtok", "output_video_mtok")
        )
        self.reasoning_apart = reasoning is not None

    def counts(self, usage: Usage) -> tuple[int, ...]:
        """How many tokens are paid by each price; without those at the end that are 0, as most are.

        A number below 0 says that there are more parts than there is of the whole.
        """
        audio_in, audio_out = usage.input_audio_tokens or 0, usage.output_audio_tokens or 0
        image_in, image_out = usage.input_image_tokens or 0, usage.output_image_tokens or 0
        audio_read, image_read = usage.cached_audio_tokens or 0, usage.cached_image_tokens or 0
        reasoning = usage.reasoning_tokens or 0 if self.reasoning_apart else 0
        counts = (
            (usage.input_tokens or 0) - audio_in - image_in,
            (usage.output_tokens or 0) - audio_out - image_out - reasoning,
            (usage.cache_read_tokens or 0) - audio_read - image_read,
            usage.cache_write_5m_tokens or 0,
            usage.cache_write_1h_tokens or 0,
        )
        if audio_in or audio_out or audio_read or image_in or image_out or image_read or reasoning:
            return (*counts, audio_in, audio_out, audio_read, image_in, image_out, image_read, reasoning)
        return counts

    def missing(self, usage: Usage) -> list[str]:
        """The kinds of tokens that were used and have no price, by their keys in ``[prices]``."""
        paid = zip(_KINDS, self.counts(usage), self.of_tokens, strict=False)
        return [kind for kind, count, rate in paid if count > 0 and rate is None]


def _complete(prices: dict[str, Rate | None], what: str, as_text: frozenset[str]) -> None:
    """Find the prices of sound or of images that have none of their own, where they are those of something else."""
    put_in, made, read = f"input_{what}", f"output_{what}", f"cache_read_{what}"
    own, cached = prices[put_in], prices["cache_read"]
    if own is None and put_in in as_text:
        prices[put_in] = prices["input"]
    if prices[made] is None and made in as_text:
        prices[made] = prices["output"]
    if prices[read] is not None or prices[put_in] is None:
        return
    if cached is None:  # nothing is cheaper for having been in a cache
        prices[read] = prices[put_in]
    elif own is None:
        prices[read] = cached


class PriceLists:
    """The price lists that hold for some upstreams, and the operator's own prices. It reads the lists for 0.2 s.

    :param overrides: the first that speaks of a model is taken.
    :param base_urls: of the upstreams, by their names; they tell whose list holds.
    :ivar rates: :meth:`find`, which remembers what it found.
    """

    def __init__(self, overrides: Sequence[PriceOverride], base_urls: Mapping[str, str]) -> None:
        # 30 MB, which not every program that imports an override should have to hold.
        from genai_prices.data_snapshot import get_snapshot

        self._snapshot = get_snapshot()
        self._overrides = tuple(overrides)
        self._providers = {upstream: self._provider(url) for upstream, url in base_urls.items()}
        self.rates = lru_cache(_LARGEST_CACHE)(self.find)

    def find(self, upstream: str, names: tuple[str, ...], tier: str | None, minute: int) -> Rates | None:
        """Find what a model costs at an upstream; ``None`` where neither a list nor the operator says anything of it.

        :param names: of the model, the one that answered first.
        :param tier: as :func:`llmproxy.config.service_tier` names it.
        :param minute: in whole minutes since 1970: lists have prices by the time of the day, and new ones from some day on.
        """
        listed = self._listed(upstream, names[0], tier, datetime.fromtimestamp(minute * 60, timezone.utc))
        override = self.override(names, tier)
        return listed if override is None else _overridden(listed, override)

    def override(self, names: Sequence[str], tier: str | None) -> PriceOverride | None:
        """The operator's own prices of a model at a service tier, ``None`` where he has none."""
        return next((known for known in self._overrides if _speaks_of(known, names, tier)), None)

    def gaps(self, at: datetime) -> Iterator[tuple[PriceOverride, list[str]]]:
        """Find where the operator sets the price of input or of output alone, and no list is known to have the other one.

        Which models his pattern will meet is not known: those of the lists are looked for by their ids, and by the pattern's
        own text. The keys that are not set come with the override.
        """
        for override in self._overrides:
            unset = [kind for kind in ("input", "output") if getattr(override, kind) is None]
            if unset and not any(self._is_listed(upstream, override, at) for upstream in self._providers):
                yield override, unset

    def _is_listed(self, upstream: str, override: PriceOverride, at: datetime) -> bool:
        provider = self._providers[upstream]
        if provider is None:
            return False
        ids = {provider.id, *(provider.fallback_model_providers or ())}
        models = (model.id for known in self._snapshot.providers if known.id in ids for model in known.models)
        names = (name for name in models if fnmatchcase(name, override.model))
        return any(
            self._listed(upstream, name, override.service_tier, at) is not None
            for name in (*names, override.model, override.model.replace("*", ""))
        )

    def _listed(self, upstream: str, name: str, tier: str | None, at: datetime) -> Rates | None:
        """The prices of a provider's list for a model; ``None`` where it has none for that model or tier."""
        provider = self._providers.get(upstream)
        model = None if provider is None else self._model(provider, name)
        if provider is None or model is None:
            return None
        if tier is None:
            return Rates(vars(model.get_prices(at)), self._as_text(model))
        context = _CONTEXTS.get(tier, {"service_tier": tier})
        # One provider's tiers are not another's that offers its models: those of Azure are not OpenAI's.
        own = any(model is other for other in provider.models)
        if not (own and _has_variant(model, context, at)):
            return None
        return Rates(vars(model.get_prices(at, context)), self._as_text(model))

    def _as_text(self, model: ModelInfo) -> frozenset[str]:
        """What is paid as text at a model where it has no price; also where another provider offers it."""
        for provider in self._snapshot.providers:
            if provider.id in _AS_TEXT and any(model is own for own in provider.models):
                return _AS_TEXT[provider.id]
        return _IMAGES_READ

    def _provider(self, url: str) -> Provider | None:
        for price_list in dict.fromkeys((_LISTS.get(urlsplit(url)[:2]), None)):
            with suppress(LookupError):
                return self._snapshot.find_provider(None, price_list, url)
        return None

    def _model(self, provider: Provider, name: str) -> ModelInfo | None:
        return provider.find_model(name, all_providers=self._snapshot.providers)


def _speaks_of(override: PriceOverride, names: Sequence[str], tier: str | None) -> bool:
    """Tell whether one of a model's names, at a service tier, is meant."""
    return override.service_tier == tier and any(fnmatchcase(name, override.model) for name in names)


def _overridden(listed: Rates | None, override: PriceOverride) -> Rates:
    """What the operator says; what he leaves out stays as the list has it."""
    prices = {name: getattr(override, kind) for kind, name in _KINDS.items()}
    known = {name: price for name, price in prices.items() if price is not None}
    return Rates(known) if listed is None else Rates({**listed.by_name, **known}, listed.as_text)


def _has_variant(model: ModelInfo, context: PriceContext, at: datetime) -> bool:
    return any(
        all(context.get(key) == value for key, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in model.price_variants or ()
    )
