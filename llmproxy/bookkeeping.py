"""Who is told of exchanges, as a configuration says: prices, the ledger, metrics and the access log, over a reload too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater

from llmproxy.access_log import AccessLog
from llmproxy.accounting import Accounting
from llmproxy.config import Config, ConfigError, PriceOverride
from llmproxy.exchange import Ending, Exchange, Observer
from llmproxy.ledger import Database, Ledgers, parse_ledger
from llmproxy.metrics import Metrics, Sources
from llmproxy.prices import PriceBook

_LOOKS, _BETWEEN_LOOKS = 20, 0.05  # seconds: whether all exchanges are over, when it ends


class Bookkeeping:
    """All that happens to the record of an exchange once that is over, and what is known of those that are not.

    :param connections: tells how many connections of clients are open.
    :param pools: tells the connections to upstreams, each pool with the upstream's name.
    :param access_log: write a line for each exchange.
    :ivar metrics: what is shown to Prometheus; exchanges are counted from when it can ask.
    :ivar observer: is to be told of each exchange when it is over; ``None`` where nobody would learn of it.
    :ivar open: the exchanges that are not over, by their ids.
    """

    def __init__(
        self,
        reactor: Any,
        connections: Callable[[], int],
        pools: Callable[[], Iterable[tuple[str, Any]]],
        access_log: bool,
    ) -> None:
        self._reactor = reactor
        self._ledgers = Ledgers(reactor)
        self._priced_by: tuple[Sequence[PriceOverride], Mapping[str, str]] | None = None
        self._upstreams: list[str] = []
        self.open: dict[str, Exchange] = {}
        self.metrics = Metrics(
            Sources(
                connections=connections,
                exchanges=lambda: self._by_upstream(self.open.values()),
                streams=lambda: self._by_upstream(
                    exchange for exchange in self.open.values() if exchange.first_byte is not None
                ),
                pools=pools,
                ledger=lambda: self._ledgers if self._ledgers.any else None,
            )
        )
        self._access_log = AccessLog() if access_log else None
        self._accounting = Accounting(reactor)
        self.observer: Observer | None = None

    def change(self, config: Config) -> None:
        """Go on as another configuration says; what was recorded until now goes to where it was to go."""
        self._accounting.flush()
        self._upstreams = [upstream.name for upstream in config.upstreams]
        accounting = config.accounting
        database = database_of(config)
        # Who would learn of an exchange; what nobody can ask for is not counted.
        metrics = None if config.admin is None else self.metrics
        ledger = None if database is None else self._ledgers
        observers = [observer for observer in (ledger, metrics, self._access_log) if observer is not None]
        self._accounting.observers = observers
        self.observer = self._accounting.add if observers else None
        priced_by = (accounting.prices, config.base_urls())
        if observers and self._priced_by != priced_by:  # a price book costs 30 MB and 0.2 s
            self._priced_by = priced_by
            self._accounting.price = PriceBook(*priced_by).cost
        self._ledgers.change(database, retention=accounting.retention_days, max_waiting=accounting.backlog)

    def cut_off(self) -> None:
        """Note of the exchanges that are not over that it is this proxy that ends them."""
        for exchange in self.open.values():
            exchange.cut_off = True

    @inlineCallbacks
    def close(self) -> Generator[Deferred[Any], Any, None]:
        """Write what is known until now; fires when that is done.

        The last clients are gone before the other ends of their WebSockets are: for these exchanges it waits a moment. An
        upstream that takes nothing of what it was sent may hold one open for longer, which is over then all the same.
        """
        for _ in range(_LOOKS):
            if not self.open:
                break
            yield deferLater(self._reactor, _BETWEEN_LOOKS)
        for exchange in list(self.open.values()):
            if exchange.end is not None:
                exchange.end(Ending.PROXY_FAILED)
        self._accounting.flush()
        yield self._ledgers.close()

    def _by_upstream(self, exchanges: Iterable[Exchange]) -> Mapping[str, int]:
        """Count exchanges; 0 is said of each upstream, too: what is not there is no number to whoever draws it."""
        counts = Counter(dict.fromkeys(self._upstreams, 0))
        counts.update(exchange.upstream for exchange in exchanges)
        return counts


def database_of(config: Config) -> Database | None:
    """Where a configuration wants the ledger.

    :raise ConfigError: where there can be none, such as for want of a driver.
    """
    try:
        return parse_ledger(config.accounting.ledger)
    except ValueError as error:
        raise ConfigError([f"ledger {error}"]) from None
