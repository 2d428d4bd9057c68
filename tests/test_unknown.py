"""Whether the ledger's report and the metrics mean the same by what is unknown; one says it in SQL, the others in Python."""

from __future__ import annotations

from itertools import count, product

import attrs
import pytest

from llmproxy.exchange import Ending, Exchange
from llmproxy.ledger.database import SQLite
from llmproxy.ledger.report import Question, ask
from llmproxy.metrics.counts import Counts
from llmproxy.unknown import cost_is_unknown, usage_is_unknown
from llmproxy.usage.model import Reading, Usage, free, unread
from tests.ledger_support import exchange, reading, write

USED = Usage(input_tokens=5, output_tokens=1)
READINGS: tuple[Reading | None, ...] = (
    None,
    free(whole=True),
    free(whole=False),
    *(
        unread(source, whole)
        for source in ("absent", "too_large", "undecodable", "turns", "none")
        for whole in (True, False)
    ),
    *(
        reading(usage, outcome=outcome)
        for usage in (USED, attrs.evolve(USED, billable=False))
        for outcome in ("complete", "cut", "failed")
    ),
    reading(None, outcome="failed", error="overloaded_error"),
)
Written = tuple[list[Exchange], SQLite]

STATUSES = (None, 101, 103, 199, 200, 299, 300, 307, 399, 400, 401, 429, 499, 500, 502, 504, 529)


def cases() -> list[Exchange]:
    """All that an exchange may be, as far as it matters here, each with a client of its own; what cannot be, too."""
    client = count()
    return [
        exchange(
            client=str(next(client)),
            upstream=f"upstream {number % 3}",
            method=method,
            status=status,
            ending=ending,
            first_byte=first_byte,
            reading=read,
            cost=cost,
        )
        for number, (method, status, ending, first_byte, read, cost) in enumerate(
            product(("POST", "GET"), STATUSES, (None, *Ending), (None, 0.1), READINGS, (None, 0))
        )
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    database = SQLite(tmp_path_factory.mktemp("unknown") / "ledger.sqlite3")
    exchanges = cases()
    write(database, exchanges)
    return exchanges, database


def test_the_report_and_the_rules_say_the_same_of_each(written: Written) -> None:
    exchanges, database = written
    [sums] = ask(database, Question(by=("client",)))
    told = {line.key[0]: (line.usage_unknown, line.cost_unknown) for line in sums}
    assert len(told) == len(exchanges)
    for over in exchanges:
        unknown = usage_is_unknown(over)
        assert told[over.client] == (unknown, cost_is_unknown(over, unknown)), over


def test_the_report_and_the_metrics_count_as_many(written: Written) -> None:
    exchanges, database = written
    counts = Counts()
    counts.observe(exchanges)
    shown = {
        family.name: {sample.labels["upstream"]: sample.value for sample in family.samples}
        for family in counts.collect()
        if family.name.startswith("llmproxy_unknown")
    }
    [sums] = ask(database, Question(by=("upstream",)))
    assert shown == {
        "llmproxy_unknown_usage_exchanges": {line.key[0]: line.usage_unknown for line in sums},
        "llmproxy_unknown_cost_exchanges": {line.key[0]: line.cost_unknown for line in sums},
    }
    assert all(0 < value < len(exchanges) / 3 for values in shown.values() for value in values.values())
