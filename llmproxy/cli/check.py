"""``llmproxy check``: whether a configuration can be used, and what it comes to.

It shows what was understood, defaults and presets included, and never a key, a token or a digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import Deferred

from llmproxy import config
from llmproxy.cli.command import Command, CommandError
from llmproxy.cli.online import Finding, ask_all
from llmproxy.cli.table import columns
from llmproxy.config.problems import dotted
from llmproxy.http import reactor as engine_reactor


class Check(Command):
    """The command line of ``llmproxy check``."""

    name = "check"
    longdesc = (
        "Reads the configuration as the proxy does, and says what is wrong with it or what it comes to."
    )
    optFlags = [["online", None, "Ask each upstream for its list of models, once with each key"]]

    def run(self, environ: Mapping[str, str]) -> int:
        """Print what the configuration comes to.

        :raise CommandError: where it cannot be used and may be another than was meant.
        :raise llmproxy.config.ConfigError: where it cannot be used.
        """
        file = self.config_file(environ)
        try:
            configuration = config.load(environ, file)
        except config.ConfigError as error:
            if file is not None:
                raise
            raise CommandError(
                f"{error}\nNo configuration file was read: --config FILE or {config.FILE_VARIABLE} names one."
            ) from None
        # What the proxy would refuse at its start, such as a database for which there is no driver. The import takes a moment,
        # which other commands would wait for, too.
        from llmproxy.bookkeeping import database_of

        database_of(configuration)
        for line in describe(configuration):
            print(line)
        return _ask(configuration) if self["online"] else 0


def describe(configuration: config.Config) -> Iterator[str]:
    """Say in lines what a configuration comes to."""
    # Not before now: the schema of the file takes 0.1 s, which other commands would wait for, too.
    from llmproxy.cli import settings

    yield f"It can be used, and listens on {', '.join(configuration.listen)}."
    yield from _section("Settings", list(settings.settings(configuration)))
    yield from _section("Upstreams", [_upstream(upstream) for upstream in configuration.upstreams])
    yield from _section("Limits that are not the default", list(settings.limits(configuration)))
    yield from _section("Prices in USD per million tokens", list(settings.prices(configuration)))
    yield from _section("Clients", [_client(client) for client in configuration.clients])
    warnings = [*configuration.warnings(), *_price_gaps(configuration)]
    yield from _section("Warnings", [[warning] for warning in warnings])


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """Say in lines what came of asking the upstreams."""
    yield from _section("Online", [[finding.subject, finding.text] for finding in findings])


def _section(title: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield f"\n{title}"
        yield from (f"  {line}" for line in columns(rows))


def _upstream(upstream: config.Upstream) -> list[str]:
    return [
        f"/{upstream.name}/",
        f"{upstream.base_url}",
        f"credential {upstream.credential}",
        _counted(len(upstream.keys), "key"),
        f"api {upstream.family.value}",
    ]


def _price_gaps(configuration: config.Config) -> Iterator[str]:
    """Name the prices without which, as far as can be told before there is traffic, the operator's others are of no use."""
    overrides = configuration.accounting.prices
    if not overrides:
        return
    # It reads the price lists, which takes a moment.
    from llmproxy.rates import PriceLists

    lists = PriceLists(overrides, configuration.base_urls())
    for override, unset in lists.gaps(datetime.now(timezone.utc)):
        tier = () if override.service_tier is None else ("tiers", override.service_tier)
        yield (
            f"{dotted(('prices', override.model, *tier))} sets no price of {' or '.join(unset)}, and no price list of an "
            "upstream seems to have one: the cost of answers with such tokens is recorded as unknown."
        )


def _client(client: config.Client) -> list[str]:
    models = "all models" if client.models is None else f"models {', '.join(client.models)}"
    if client.deny_models:
        models += f" but not {', '.join(client.deny_models)}"
    return [
        client.name,
        "all upstreams" if client.upstreams is None else f"upstreams {', '.join(sorted(client.upstreams))}",
        models,
        "never expires" if client.expires is None else f"expires {client.expires:%Y-%m-%d %H:%M:%S} UTC",
        f"from {', '.join(map(str, client.networks))}" if client.networks else "from anywhere",
        _counted(len(client.digests), "token"),
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def online(reactor: Any, configuration: config.Config) -> Deferred[bool]:
    """Ask the upstreams, and print what comes of it.

    :return: fires with whether requests of clients would fail.
    """

    def tell(findings: list[Finding]) -> bool:
        for line in report(findings):
            print(line)
        return any(finding.failed for finding in findings)

    return ask_all(reactor, configuration).addCallback(tell)


def _ask(configuration: config.Config) -> int:
    """Run a reactor for as long as upstreams are asked."""
    engine_reactor.install()
    from twisted.internet.task import react

    outcomes: list[bool] = []
    try:
        react(lambda reactor: online(reactor, configuration).addCallback(outcomes.append))
    except SystemExit as end:  # how react ends, always
        if not (outcomes or end.code):  # nor is it a fault to react that a signal stops the reactor
            raise CommandError("It was stopped before all upstreams had answered.") from None
        return int(outcomes != [False])
