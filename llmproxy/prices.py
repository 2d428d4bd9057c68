"""What an exchange cost.

What cannot be known is ``None``, never a guess: the cost of a model that is in no price list, of an upstream that is no
provider's own (a machine of yours, another gateway), of a service tier that is priced by contract, and of an answer that did
not come whole, for what is billed then is told to nobody. Which tokens were used is read by :mod:`llmproxy.usage`, and what
each of them costs is found by :mod:`llmproxy.rates`. Where the provider itself says what an answer cost, it cost that, unless
the operator's own prices speak of the model.

Money is exact: prices are Decimals in USD per million tokens, which is micro-dollars (1e-6 USD) per token. It is rounded once,
for the whole exchange, to a whole number of micro-dollars, a half to the even neighbour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from twisted.logger import Logger

from llmproxy.config import PriceOverride, service_tier
from llmproxy.exchange import Exchange
from llmproxy.rates import PriceLists, Rates
from llmproxy.usage.model import Part, Reading, Usage

if TYPE_CHECKING:
    from genai_prices.types import TieredPrices

    from llmproxy.rates import Rate

# Lists have prices by the time of the day, and new ones from some day on: at whole minutes, so that all of one have the same.
_MINUTE = 60_000_000_000  # nanoseconds
_MOST_SAID = 1000  # models that are told to be unknown; after that the log has had enough

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


class PriceBook:
    """The prices that hold for the upstreams of a configuration. Made at the start: it reads its lists for 0.2 s.

    :param overrides: the first that speaks of a model is taken.
    :param base_urls: of the upstreams, by their names; they tell whose list holds.
    """

    _log = Logger()

    def __init__(self, overrides: Sequence[PriceOverride] = (), base_urls: Mapping[str, str] = {}) -> None:
        lists = PriceLists(overrides, base_urls)
        self._rates, self._override = lists.rates, lists.override
        self._said: set[tuple[str, str, str | None, str | None]] = set()

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
        names = tuple(name for name in (part.model, asked) if name)
        tier = service_tier(part.service_tier)
        told = part.usage.told_cost
        if told is not None and self._override(names, tier) is None:
            return told
        if not names:
            return None
        rates = self._rates(exchange.upstream, names, tier, exchange.begun_ns // _MINUTE)
        if rates is None:
            self._say_unknown(exchange.upstream, names[0], tier)
            return None
        cost = price(part.usage, rates)
        if cost is None:
            for kind in rates.missing(part.usage):
                self._say_unknown(exchange.upstream, names[0], tier, kind)
        return cost

    def _say_unknown(self, upstream: str, model: str, tier: str | None, kind: str | None = None) -> None:
        """Say once that a model has no price, or none for a kind of tokens, by its key in ``[prices]``."""
        said = (upstream, model, tier, kind)
        if said in self._said or len(self._said) >= _MOST_SAID:
            return
        self._said.add(said)
        self._log.warn(
            "No {price} is known for model {model!r}{at_tier} of {upstream}: the cost of what it answers {with_it}is "
            "recorded as unknown. {key} in the configuration can tell it.",
            price="price" if kind is None else f"price of {kind}",
            model=model,
            at_tier="" if tier is None else f" at service tier {tier!r}",
            upstream=upstream,
            with_it="" if kind is None else "with such tokens ",
            key="[prices]" if kind is None else f"{kind} of [prices]",
        )


def price(usage: Usage, rates: Rates) -> Decimal | None:
    """Add up what usage costs, in micro-dollars.

    :return: ``None`` where a number or a price that matters is unknown.
    """
    put_in, made = usage.input_tokens, usage.output_tokens
    if usage.more or (usage.video and rates.video_apart):
        return None
    if put_in is None or (made is None and rates.by_name.get("output_mtok") is not None):
        return None
    total = Decimal(0)
    for count, rate in zip(rates.counts(usage), rates.of_tokens, strict=False):
        if not count:
            continue
        if rate is None or count < 0:  # more parts than there are of the whole: not to be trusted
            return None
        if not isinstance(rate, Decimal):
            read, written = usage.cache_read_tokens or 0, usage.cache_write_5m_tokens or 0
            rate = _at_length(rate, put_in + read + written + (usage.cache_write_1h_tokens or 0))
        total += count * rate
    if usage.us_only:
        total *= _US_ONLY
    if isinstance(rates.of_request, Decimal):
        total += rates.of_request * 1000  # USD per thousand, in micro-dollars for one
    if not usage.server_tool_uses:
        return total
    tools = _tools(usage.server_tool_uses, rates.by_name)
    return None if tools is None else total + tools


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
