"""What is counted of exchanges that are over: endings, times, tokens and cost.

An exchange is counted by a few updates of dicts and lists; the objects of prometheus_client are made only when a scrape comes.

What clients and upstreams name can be anything, and each new name would cost a time series for ever. So the names of clients
and models are taken as they come, up to a bound, and what is beyond it is counted under ``other``: sums stay right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmproxy.exchange import Ending, Exchange
from llmproxy.metrics.histogram import Histogram, family
from llmproxy.unknown import cost_is_unknown, usage_is_unknown

OTHER = "other"
UNKNOWN = "unknown"
# A scrape writes out all series in one turn of the reactor: 3 ms for those of a team, and 40 at these bounds.
MOST_CLIENTS = 200
MOST_MODELS = 50
MOST_ACCOUNTS = 500  # combinations of a client, an upstream and a model
_LONGEST_NAME = 128  # characters

_ACCOUNT = ("client", "upstream", "model")
_Labels = tuple[str, str, str]


class Counts(Collector):
    """Counts exchanges.

    :param most_clients: how many clients get a label of their own.
    :param most_models: the same of models.
    :param most_accounts: the same of their combinations with each other and with upstreams.
    """

    def __init__(
        self,
        most_clients: int = MOST_CLIENTS,
        most_models: int = MOST_MODELS,
        most_accounts: int = MOST_ACCOUNTS,
    ) -> None:
        self._clients = _Names(most_clients)
        self._models = _Names(most_models)
        self._most_accounts = most_accounts
        self._upstreams: dict[str, _Upstream] = {}
        self._accounts: dict[_Labels, _Account] = {}
        # The same, by what stands in exchanges, for those to whom that leads without a detour by `other`.
        self._known: dict[tuple[str | None, str, str | None], _Account] = {}

    def observe(self, exchanges: Iterable[Exchange]) -> None:
        """Count exchanges that are over."""
        upstreams, known = self._upstreams, self._known
        for exchange in exchanges:
            name = exchange.upstream
            upstream = upstreams.get(name)
            if upstream is None:
                upstream = upstreams[name] = _Upstream()
            ending = (exchange.status, exchange.ending)
            upstream.endings[ending] = upstream.endings.get(ending, 0) + 1
            if (duration := exchange.duration) is not None:
                upstream.duration.add(duration)
            if (first_byte := exchange.first_byte) is not None:
                upstream.first_byte.add(first_byte)
            usage_unknown = usage_is_unknown(exchange)
            if usage_unknown:
                upstream.usage_unknown += 1
            if exchange.cost is None and cost_is_unknown(exchange, usage_unknown):
                upstream.cost_unknown += 1
            reading = exchange.reading
            if reading is None:
                continue
            source = reading.source
            upstream.sources[source] = upstream.sources.get(source, 0) + 1
            usage = reading.usage
            first_token = exchange.first_token
            if usage is None and first_token is None:
                continue
            key = (exchange.client, name, reading.model or exchange.asked_model)
            account = known.get(key) or self._account(*key)
            if first_token is not None:
                account.first_token.add(first_token)
            if usage is not None and usage.billable:
                account.input += usage.input_tokens or 0
                account.output += usage.output_tokens or 0
                account.cache_read += usage.cache_read_tokens or 0
                account.cache_write_5m += usage.cache_write_5m_tokens or 0
                account.cache_write_1h += usage.cache_write_1h_tokens or 0
                account.reasoning += usage.reasoning_tokens or 0
                if exchange.cost is None:
                    account.unpriced += 1
                else:
                    account.cost += exchange.cost

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        yield from self._of_upstreams()
        yield from self._of_accounts()

    def _account(self, client: str | None, upstream: str, model: str | None) -> _Account:
        """Find or open the account that an answer is booked on."""
        labels = (self._clients.take(client), upstream, self._models.take(model))
        if labels not in self._accounts and len(self._accounts) >= self._most_accounts:
            labels = (OTHER, upstream, OTHER)
        account = self._accounts.get(labels)
        if account is None:
            first_tokens = self._upstreams[upstream].first_tokens
            first_token = first_tokens.setdefault(labels[2], Histogram())
            account = self._accounts[labels] = _Account(first_token)
        if labels == (client or UNKNOWN, upstream, model or UNKNOWN):
            self._known[client, upstream, model] = account
        return account

    def _of_upstreams(self) -> Iterator[Metric]:
        exchanges = CounterMetricFamily(
            "llmproxy_exchanges",
            "Requests to an upstream, and turns of WebSockets, that are over, by the class of the status that the client was "
            "answered and by how they ended.",
            labels=["upstream", "status_class", "ending"],
        )
        sources = CounterMetricFamily(
            "llmproxy_usage_readings",
            "Answers that were looked at for their usage, by what was found: it was reported, absent, as it is from errors, or "
            "beyond reading.",
            labels=["upstream", "source"],
        )
        usage_unknown = CounterMetricFamily(
            "llmproxy_unknown_usage_exchanges",
            "Exchanges that may have used tokens that are not known, or not all of them; their answers may have been read, or "
            "never come. What was refused is not in here.",
            labels=["upstream"],
        )
        cost_unknown = CounterMetricFamily(
            "llmproxy_unknown_cost_exchanges",
            "Exchanges that cost an unknown amount, since their usage is not known, or no price.",
            labels=["upstream"],
        )
        duration = family("llmproxy_exchange_duration", "From a request's headers to the end of it all.")
        first_byte = family(
            "llmproxy_first_byte_duration", "From a request's headers to the headers of the answer."
        )
        first_token = family(
            "llmproxy_first_token_duration",
            "From a request's headers to the first token of the answer.",
            "model",
        )
        for name, upstream in self._upstreams.items():
            for (status_class, ending), count in _by_class(upstream.endings).items():
                exchanges.add_metric([name, status_class, ending], count)
            for source, count in upstream.sources.items():
                sources.add_metric([name, source], count)
            usage_unknown.add_metric([name], upstream.usage_unknown)
            cost_unknown.add_metric([name], upstream.cost_unknown)
            upstream.duration.show(duration, name)
            upstream.first_byte.show(first_byte, name)
            for model, histogram in upstream.first_tokens.items():
                histogram.show(first_token, name, model)
        yield from (exchanges, sources, usage_unknown, cost_unknown, duration, first_byte, first_token)

    def _of_accounts(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "llmproxy_tokens",
            "Tokens that were used, by kinds that do not overlap: what was read from a cache or written to one is no part of "
            "the input. What was not reported is not in here.",
            labels=[*_ACCOUNT, "kind"],
        )
        reasoning = CounterMetricFamily(
            "llmproxy_reasoning_tokens", "Tokens of reasoning, a part of the output.", labels=_ACCOUNT
        )
        cost = CounterMetricFamily(
            "llmproxy_cost_usd", "Cost of the tokens whose price is known, in US dollars.", labels=_ACCOUNT
        )
        unpriced = CounterMetricFamily(
            "llmproxy_unpriced_exchanges",
            "Answers with usage that cost an unknown amount, which are some of llmproxy_unknown_cost_exchanges.",
            labels=_ACCOUNT,
        )
        for labels, account in self._accounts.items():
            for kind in _KINDS:
                if count := getattr(account, kind):
                    tokens.add_metric([*labels, kind], count)
            if account.reasoning:
                reasoning.add_metric(labels, account.reasoning)
            if account.cost:
                cost.add_metric(labels, account.cost / 1_000_000)
            if account.unpriced:
                unpriced.add_metric(labels, account.unpriced)
        yield from (tokens, reasoning, cost, unpriced)


_KINDS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


class _Upstream:
    """What is counted of one upstream.

    :ivar endings: exchanges, by status and ending.
    :ivar sources: answers, by where their usage comes from.
    :ivar usage_unknown: exchanges; so is ``cost_unknown``.
    :ivar first_tokens: by model.
    """

    __slots__ = (
        "cost_unknown",
        "duration",
        "endings",
        "first_byte",
        "first_tokens",
        "sources",
        "usage_unknown",
    )

    def __init__(self) -> None:
        self.endings: dict[tuple[int | None, Ending | None], int] = {}
        self.sources: dict[str, int] = {}
        self.usage_unknown = self.cost_unknown = 0
        self.duration = Histogram()
        self.first_byte = Histogram()
        self.first_tokens: dict[str, Histogram] = {}


class _Account:
    """What one client used of one model of one upstream: tokens by kind, and cost in micro-dollars.

    :ivar first_token: of the model; other clients have a part in it.
    """

    __slots__ = (*_KINDS, "cost", "first_token", "reasoning", "unpriced")

    def __init__(self, first_token: Histogram) -> None:
        self.first_token = first_token
        self.input = self.output = self.reasoning = 0
        self.cache_read = self.cache_write_5m = self.cache_write_1h = 0
        self.cost = self.unpriced = 0


class _Names:
    """The values of a label: the first so many names stand for themselves, all others are one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: set[str] = set()

    def take(self, name: str | None) -> str:
        """The label's value for a name."""
        if not name:
            return UNKNOWN
        if name in self._taken:
            return name
        if len(self._taken) >= self._most or len(name) > _LONGEST_NAME or not name.isprintable():
            return OTHER
        self._taken.add(name)
        return name


def _by_class(endings: dict[tuple[int | None, Ending | None], int]) -> dict[tuple[str, str], int]:
    """Add up what is of the same class of statuses and ended in the same way, in words fit for labels."""
    counts: dict[tuple[str, str], int] = {}
    for (status, ending), count in endings.items():
        key = (
            "none" if status is None else f"{status // 100}xx",
            UNKNOWN if ending is None else ending.value.replace(" ", "_"),
        )
        counts[key] = counts.get(key, 0) + count
    return counts
