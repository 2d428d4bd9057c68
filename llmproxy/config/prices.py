"""What a table of prices comes to: an override for each service tier that it has prices for."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from llmproxy.config.model import PriceOverride, service_tier
from llmproxy.config.problems import Problems, Where, dotted
from llmproxy.config.schema import PriceTable, RatesTable


def overrides(models: str, table: PriceTable, problems: Problems) -> Iterator[PriceOverride]:
    """Put together what a table says of each service tier, since several names may be those of the same one.

    A tier of which it says nothing has no override: else that would stand before those of later tables.

    :param models: the pattern that is the table's name.
    :param problems: a price that is given twice is added.
    """
    place = ("prices", models)
    tables: list[tuple[Where, str | None, RatesTable]] = [(place, None, table)]
    tables += [((*place, "tiers", name), name, rates) for name, rates in table.tiers.items()]
    tiers: dict[str | None, dict[str, Decimal]] = {}
    places: dict[tuple[str | None, str], Where] = {}
    for where, name, rates in tables:
        tier = service_tier(name)
        for key in RatesTable.model_fields:
            price = getattr(rates, key)
            if price is None:
                continue
            first = places.setdefault((tier, key), (*where, key))
            if first != (*where, key):
                called = "the standard service tier" if tier is None else f"the service tier {tier}"
                problems.add(
                    (*where, key), f"{dotted(first)} is the same price, of {called}; keep one of them."
                )
            tiers.setdefault(tier, {})[key] = price
    for tier, prices in tiers.items():
        yield PriceOverride(models, tier, **prices)
