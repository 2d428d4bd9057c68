"""What a configuration comes to beside its upstreams and clients, in rows of text.

Everything is called by its key of the configuration file, also where a variable of the environment set it: so it is found in
docs/configuration.md. What matters to everybody is always told, the rest where it is not the default. No password is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult

import attrs

from llmproxy.config import NO_LEDGER, Accounting, Config, PriceOverride
from llmproxy.config.schema import DefaultsTable, LimitsTable, Table
from llmproxy.config.watching import without_password

_RATES = [field.name for field in attrs.fields(PriceOverride) if field.name not in ("model", "service_tier")]


def settings(config: Config) -> Iterator[list[str]]:
    """Tell what concerns the proxy as a whole: keys, and what they come to."""
    yield from _accounting(config.accounting)
    yield ["log_format", config.logging.format]
    yield ["log_level", config.logging.level]
    yield ["admin_port", config.admin or "nowhere"]
    if config.cors_origins:
        yield ["cors_origins", ", ".join(config.cors_origins)]
    if config.max_resent_body != attrs.fields(Config).max_resent_body.default:
        yield ["max_resent_body", str(config.max_resent_body)]
    if config.https_proxy is not None:
        yield ["https_proxy", _without_user(config.https_proxy)]
    if config.no_proxy:
        yield ["no_proxy", ", ".join(host.strip() for host in config.no_proxy.split(","))]


def limits(config: Config) -> Iterator[list[str]]:
    """Tell the limits and timeouts that are not the default: for whom, the key, and both values."""
    yield from (["clients", *row] for row in _changed(LimitsTable, config.downstream))
    concerned: dict[tuple[str, str], list[str]] = {}
    for upstream in config.upstreams:
        for row in _changed(DefaultsTable, upstream.limits, upstream.timeouts):
            concerned.setdefault(row, []).append(f"/{upstream.name}/")
    for row, names in concerned.items():
        yield ["all upstreams" if len(names) == len(config.upstreams) else ", ".join(names), *row]


def prices(config: Config) -> Iterator[list[str]]:
    """Tell the operator's own prices: of which models, at which tier, and what they are."""
    for override in config.accounting.prices:
        rates = [(name, getattr(override, name)) for name in _RATES]
        told = ", ".join(f"{name} {rate:f}" for name, rate in rates if rate is not None)
        if told:
            tier = "" if override.service_tier is None else f", tier {override.service_tier}"
            yield [f"{override.model}{tier}", told]


def _accounting(accounting: Accounting) -> Iterator[list[str]]:
    default = Accounting()
    yield ["ledger", without_password(accounting.ledger)]
    if accounting.ledger != NO_LEDGER:
        days = accounting.retention_days
        yield ["ledger_retention", "for ever" if days is None else f"{days} day{'s' * (days != 1)}"]
        if accounting.backlog != default.backlog:
            yield ["ledger_backlog", str(accounting.backlog)]
    yield ["request_id", "true" if accounting.request_id else "false"]
    if accounting.session_headers:
        yield ["session_headers", ", ".join(header.decode("ascii") for header in accounting.session_headers)]


def _changed(table: type[Table], *found: Any) -> Iterator[tuple[str, str]]:
    """The keys of a table whose values are not the default.

    :param found: the values whose fields the table sets, one of each kind.
    """
    of_kind = {type(value): value for value in found}
    for key, sets in table.assignments():
        value, default = getattr(of_kind[sets.kind], sets.field), getattr(sets.kind(), sets.field)
        if value != default:
            yield key, f"{_number(value)} instead of {_number(default)}"


def _number(value: float) -> str:
    return f"{value:.15g}"


def _without_user(url: SplitResult) -> str:
    """The URL of an HTTP proxy as it may be shown."""
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
