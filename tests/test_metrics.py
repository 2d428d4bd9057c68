from __future__ import annotations

import platform

import attrs
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from llmproxy import __version__
from llmproxy.exchange import Ending, Exchange
from llmproxy.metrics import Metrics
from llmproxy.metrics.counts import Counts
from llmproxy.metrics.histogram import BUCKETS
from llmproxy.usage.model import Usage
from tests.metrics_support import USAGE, Ledger, Pool, State, exchange, reading


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def metrics(state: State) -> Metrics:
    return Metrics(state.sources(), lambda: 1000.0)


def value(where: Metrics | CollectorRegistry, name: str, **labels: str) -> float | None:
    """The value of a series; ``None`` where there is none."""
    return (where.registry if isinstance(where, Metrics) else where).get_sample_value(name, labels)


def series(metrics: Metrics, name: str) -> list[dict[str, str]]:
    """The labels of all series of a name."""
    return [
        sample.labels
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    ]


def counting(counts: Counts) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(counts)
    return registry


# Endings


@pytest.mark.parametrize(
    ("changes", "status_class", "ending"),
    [
        ({}, "2xx", "completed"),
        ({"status": 204}, "2xx", "completed"),
        ({"status": 101}, "1xx", "completed"),
        ({"status": 404}, "4xx", "completed"),
        ({"status": 401, "ending": Ending.REFUSED}, "4xx", "refused"),
        ({"status": 529}, "5xx", "completed"),
        ({"status": 502, "ending": Ending.UPSTREAM_FAILED}, "5xx", "upstream_failed"),
        ({"status": 200, "ending": Ending.UPSTREAM_SILENT}, "2xx", "upstream_silent"),
        ({"status": 500, "ending": Ending.PROXY_FAILED}, "5xx", "proxy_failed"),
        ({"status": None, "ending": Ending.CLIENT_LEFT}, "none", "client_left"),
        ({"ending": None}, "2xx", "unknown"),
    ],
)
def test_an_exchange_is_counted_by_upstream_status_class_and_ending(
    metrics: Metrics, changes: dict[str, object], status_class: str, ending: str
) -> None:
    metrics.observe([exchange(**changes)])
    assert series(metrics, "llmproxy_exchanges_total") == [
        {"upstream": "openai", "status_class": status_class, "ending": ending}
    ]


def test_statuses_of_one_class_are_added_up(metrics: Metrics) -> None:
    metrics.observe([exchange(status=status) for status in (400, 404, 429, 200)])
    metrics.observe([exchange(status=404)])
    labels = {"upstream": "openai", "ending": "completed"}
    assert value(metrics, "llmproxy_exchanges_total", status_class="4xx", **labels) == 4
    assert value(metrics, "llmproxy_exchanges_total", status_class="2xx", **labels) == 1


def test_a_batch_may_be_empty(metrics: Metrics) -> None:
    metrics.observe([])
    assert series(metrics, "llmproxy_exchanges_total") == []


# Times


@pytest.mark.parametrize(
    ("field", "name", "labels"),
    [
        ("duration", "llmproxy_exchange_duration_seconds", {}),
        ("first_byte", "llmproxy_first_byte_duration_seconds", {}),
        ("first_token", "llmproxy_first_token_duration_seconds", {"model": "gpt-5-2026-01-01"}),
    ],
)
def test_a_histogram_is_cumulative_and_its_bounds_are_inclusive(
    metrics: Metrics, field: str, name: str, labels: dict[str, str]
) -> None:
    metrics.observe([exchange(**{field: seconds}) for seconds in (0.0, 0.05, 0.4, 0.5, 600.0, 601.0)])
    metrics.observe([exchange(**{field: None})])
    counts = {
        bound: value(metrics, f"{name}_bucket", le=bound, upstream="openai", **labels)
        for bound in ("0.05", "0.35", "0.5", "300.0", "600.0", "+Inf")
    }
    assert counts == {"0.05": 2, "0.35": 2, "0.5": 4, "300.0": 4, "600.0": 5, "+Inf": 6}
    assert value(metrics, f"{name}_count", upstream="openai", **labels) == 6
    assert value(metrics, f"{name}_sum", upstream="openai", **labels) == pytest.approx(1201.95)


def test_the_buckets_suit_first_tokens_and_answers_of_ten_minutes() -> None:
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert BUCKETS[0] <= 0.05
    assert BUCKETS[-1] == 600
    assert len([bound for bound in BUCKETS if 0.1 <= bound <= 5]) >= 8


def test_first_tokens_of_clients_are_taken_together_by_model(metrics: Metrics) -> None:
    metrics.observe([exchange(client="ann"), exchange(client="bob"), exchange(upstream="azure")])
    name = "llmproxy_first_token_duration_seconds_count"
    assert value(metrics, name, upstream="openai", model="gpt-5-2026-01-01") == 2
    assert value(metrics, name, upstream="azure", model="gpt-5-2026-01-01") == 1


def test_a_first_token_counts_though_no_usage_was_reported(metrics: Metrics) -> None:
    metrics.observe([exchange(reading=reading(usage=None, source="absent"), cost=None)])
    metrics.observe([exchange(reading=reading(usage=None, source="absent"), cost=None, first_token=None)])
    name = "llmproxy_first_token_duration_seconds_count"
    assert value(metrics, name, upstream="openai", model="gpt-5-2026-01-01") == 1
    assert series(metrics, "llmproxy_tokens_total") == []


# Tokens and cost


def test_tokens_are_counted_by_client_upstream_model_and_kind(metrics: Metrics) -> None:
    metrics.observe([exchange(), exchange()])
    metrics.observe([exchange(client="bob", reading=reading(usage=Usage(input_tokens=7)))])
    ann = {"client": "ann", "upstream": "openai", "model": "gpt-5-2026-01-01"}
    assert {
        kind: value(metrics, "llmproxy_tokens_total", kind=kind, **ann)
        for kind in ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
    } == {"input": 20, "output": 40, "cache_read": 600, "cache_write_5m": 80, "cache_write_1h": 10}
    bob = {**ann, "client": "bob"}
    assert value(metrics, "llmproxy_tokens_total", kind="input", **bob) == 7
    assert value(metrics, "llmproxy_tokens_total", kind="output", **bob) is None  # unknown, not 0


def test_reasoning_is_counted_apart_as_it_is_a_part_of_the_output(metrics: Metrics) -> None:
    metrics.observe([exchange()])
    labels = series(metrics, "llmproxy_reasoning_tokens_total")
    assert labels == [{"client": "ann", "upstream": "openai", "model": "gpt-5-2026-01-01"}]
    assert value(metrics, "llmproxy_reasoning_tokens_total", **labels[0]) == 15
    assert {labels["kind"] for labels in series(metrics, "llmproxy_tokens_total")} == {
        "input",
        "output",
        "cache_read",
        "cache_write_5m",
        "cache_write_1h",
    }


def test_cost_is_in_dollars_and_exact_over_many_exchanges(metrics: Metrics) -> None:
    metrics.observe([exchange(cost=1)] * 1000 + [exchange(cost=1_234_567)])
    labels = {"client": "ann", "upstream": "openai", "model": "gpt-5-2026-01-01"}
    assert value(metrics, "llmproxy_cost_usd_total", **labels) == 1.235567


def test_an_unknown_cost_is_counted_as_unknown_and_not_as_nothing(metrics: Metrics) -> None:
    metrics.observe([exchange(cost=None), exchange(cost=None), exchange(cost=0)])
    labels = {"client": "ann", "upstream": "openai", "model": "gpt-5-2026-01-01"}
    assert value(metrics, "llmproxy_unpriced_exchanges_total", **labels) == 2
    assert value(metrics, "llmproxy_cost_usd_total", **labels) is None


def test_what_is_not_billable_was_not_used(metrics: Metrics) -> None:
    metrics.observe([exchange(reading=reading(usage=attrs.evolve(USAGE, billable=False)), cost=None)])
    assert series(metrics, "llmproxy_tokens_total") == []
    assert series(metrics, "llmproxy_unpriced_exchanges_total") == []


@pytest.mark.parametrize(
    ("changes", "usage", "cost"),
    [
        ({}, 0, 0),
        ({"cost": None}, 0, 1),
        ({"reading": reading(outcome="cut"), "cost": None}, 1, 1),
        ({"reading": reading(usage=None, source="absent"), "cost": None}, 1, 1),
        # A refusal costs nothing, though it tells of no usage; what nobody answered or reads may have cost something.
        ({"status": 429, "reading": reading(usage=None, source="absent"), "cost": None}, 0, 0),
        ({"reading": None, "first_token": None, "cost": None}, 1, 1),
        (
            {
                "status": 502,
                "ending": Ending.UPSTREAM_FAILED,
                "reading": None,
                "first_byte": None,
                "first_token": None,
                "cost": None,
            },
            1,
            1,
        ),
    ],
)
def test_what_is_not_known_is_counted_by_upstream(
    metrics: Metrics, changes: dict[str, object], usage: int, cost: int
) -> None:
    metrics.observe([exchange(**changes)] * 2)
    assert value(metrics, "llmproxy_unknown_usage_exchanges_total", upstream="openai") == 2 * usage
    assert value(metrics, "llmproxy_unknown_cost_exchanges_total", upstream="openai") == 2 * cost


@pytest.mark.parametrize("source", ["reported", "absent", "too_large", "undecodable", "none"])
def test_where_usage_comes_from_is_counted(metrics: Metrics, source: str) -> None:
    metrics.observe([exchange(reading=reading(source=source))])
    assert value(metrics, "llmproxy_usage_readings_total", upstream="openai", source=source) == 1


def test_an_exchange_that_nobody_read_used_nothing(metrics: Metrics) -> None:
    metrics.observe([exchange(reading=None, cost=None, first_token=None)])
    assert series(metrics, "llmproxy_usage_readings_total") == []
    assert series(metrics, "llmproxy_tokens_total") == []


@pytest.mark.parametrize(
    ("answered", "asked", "label"),
    [
        ("gpt-5-2026-01-01", "gpt-5", "gpt-5-2026-01-01"),
        (None, "gpt-5", "gpt-5"),
        (None, None, "unknown"),
        (None, "", "unknown"),
        (None, "x" * 128, "x" * 128),
        (None, "x" * 129, "other"),
        (None, "line\nbreak", "other"),
    ],
)
def test_the_model_is_the_one_that_answered_or_else_was_asked(
    metrics: Metrics, answered: str | None, asked: str | None, label: str
) -> None:
    metrics.observe([exchange(asked_model=asked, reading=reading(model=answered))] * 2)
    (labels,) = series(metrics, "llmproxy_cost_usd_total")
    assert labels["model"] == label
    assert value(metrics, "llmproxy_cost_usd_total", **labels) == pytest.approx(2 * 1.234567)


def test_a_client_that_is_not_known_has_a_label_all_the_same(metrics: Metrics) -> None:
    metrics.observe([exchange(client=None)])
    assert [labels["client"] for labels in series(metrics, "llmproxy_cost_usd_total")] == ["unknown"]


# Bounds


def used(client: str, model: str, upstream: str = "openai") -> Exchange:
    return exchange(client=client, upstream=upstream, reading=reading(model=model), cost=1_000_000)


def test_models_beyond_the_bound_are_counted_as_other_and_none_is_lost() -> None:
    registry = counting(counts := Counts(most_models=2))
    counts.observe([used("ann", model) for model in ("a", "b", "c", "d", "a", "c")])
    labels = {"client": "ann", "upstream": "openai"}
    assert {
        model: value(registry, "llmproxy_cost_usd_total", model=model, **labels)
        for model in ("a", "b", "c", "d", "other")
    } == {"a": 2, "b": 1, "c": None, "d": None, "other": 3}


def test_clients_beyond_the_bound_are_counted_as_other_and_none_is_lost() -> None:
    registry = counting(counts := Counts(most_clients=1))
    counts.observe([used(client, "a") for client in ("ann", "bob", "ann", "cid")])
    labels = {"upstream": "openai", "model": "a"}
    assert value(registry, "llmproxy_cost_usd_total", client="ann", **labels) == 2
    assert value(registry, "llmproxy_cost_usd_total", client="other", **labels) == 2


def test_combinations_beyond_the_bound_are_counted_as_other_for_each_upstream() -> None:
    registry = counting(counts := Counts(most_accounts=2))
    counts.observe([used("ann", "a"), used("bob", "a"), used("ann", "b"), used("bob", "b"), used("ann", "a")])
    counts.observe([used("ann", "a", upstream="azure")])
    other = {"client": "other", "model": "other"}
    assert value(registry, "llmproxy_cost_usd_total", client="ann", model="a", upstream="openai") == 2
    assert value(registry, "llmproxy_cost_usd_total", upstream="openai", **other) == 2
    assert value(registry, "llmproxy_cost_usd_total", upstream="azure", **other) == 1


def test_however_many_names_come_the_series_and_the_memory_are_bounded() -> None:
    registry = counting(counts := Counts(most_clients=5, most_models=5, most_accounts=10))
    counts.observe([used(f"client {number % 97}", f"model {number}") for number in range(5000)])
    costs = [
        sample
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "llmproxy_cost_usd_total"
    ]
    assert len(costs) <= 11
    assert sum(sample.value for sample in costs) == 5000
    assert len(counts._known) <= 11


# Gauges


def test_gauges_tell_what_is_the_case_when_they_are_asked(metrics: Metrics, state: State) -> None:
    assert value(metrics, "llmproxy_client_connections") == 0
    state.connections = 7
    state.exchanges = {"openai": 3, "anthropic": 0}
    state.streams = {"openai": 2}
    assert value(metrics, "llmproxy_client_connections") == 7
    assert value(metrics, "llmproxy_open_exchanges", upstream="openai") == 3
    assert value(metrics, "llmproxy_open_exchanges", upstream="anthropic") == 0
    assert value(metrics, "llmproxy_open_streams", upstream="openai") == 2


def test_the_pools_of_one_upstream_are_added_up(metrics: Metrics, state: State) -> None:
    state.pools = [("openai", Pool(5, 2, 0)), ("anthropic", Pool(1, 1, 0)), ("openai", Pool(3, 0, 4))]
    assert value(metrics, "llmproxy_pool_connections", upstream="openai") == 8
    assert value(metrics, "llmproxy_pool_idle_connections", upstream="openai") == 2
    assert value(metrics, "llmproxy_pool_waiting_requests", upstream="openai") == 4
    assert value(metrics, "llmproxy_pool_connections", upstream="anthropic") == 1


def test_the_ledger_tells_how_it_is_doing(metrics: Metrics, state: State) -> None:
    state.ledger = Ledger(backlog=3, dropped=2, failures=1)
    assert value(metrics, "llmproxy_ledger_backlog_records") == 3
    assert value(metrics, "llmproxy_ledger_dropped_records_total") == 2
    assert value(metrics, "llmproxy_ledger_write_failures_total") == 1


def test_nothing_is_told_of_a_ledger_where_there_is_none(metrics: Metrics, state: State) -> None:
    state.ledger = None
    assert "ledger" not in generate_latest(metrics.registry).decode()


# Reloads, process, build


def test_reloads_are_counted_and_the_last_good_one_is_dated(state: State) -> None:
    times = [1000.0]
    metrics = Metrics(state.sources(), lambda: times[0])
    last_good = "llmproxy_config_last_reload_success_timestamp_seconds"
    assert value(metrics, "llmproxy_config_last_reload_successful") == 1
    assert value(metrics, last_good) == 1000
    times[0] = 2000.0
    metrics.reloaded(True)
    times[0] = 3000.0
    metrics.reloaded(False)
    metrics.reloaded(False)
    assert value(metrics, "llmproxy_config_reloads_total", result="good") == 1
    assert value(metrics, "llmproxy_config_reloads_total", result="bad") == 2
    assert value(metrics, "llmproxy_config_last_reload_successful") == 0
    assert value(metrics, last_good) == 2000
    metrics.reloaded(True)
    assert value(metrics, "llmproxy_config_last_reload_successful") == 1


def test_the_versions_are_told(metrics: Metrics) -> None:
    (labels,) = series(metrics, "llmproxy_build_info")
    assert labels["version"] == __version__
    assert labels["python_version"] == platform.python_version()


@pytest.mark.skipif(platform.system() != "Linux", reason="they are read from /proc")
def test_the_process_is_measured(metrics: Metrics) -> None:
    memory = value(metrics, "process_resident_memory_bytes")
    assert memory is not None
    assert memory > 1_000_000


# What a scraper gets


def test_prometheus_and_openmetrics_can_read_all_of_it(metrics: Metrics, state: State) -> None:
    state.pools = [("openai", Pool(5, 2, 0))]
    metrics.observe([exchange(), exchange(client='a"b\\c\nd', status=None, ending=Ending.CLIENT_LEFT)])
    text = {family.name for family in parse_text(generate_latest(metrics.registry).decode())}
    openmetrics = {
        family.name for family in parse_openmetrics(generate_openmetrics(metrics.registry).decode())
    }
    assert {"llmproxy_exchanges", "llmproxy_cost_usd", "llmproxy_pool_connections"} <= text & openmetrics


def test_each_metric_is_ours_or_the_processs_and_documented(metrics: Metrics) -> None:
    for family in metrics.registry.collect():
        assert family.name.startswith(("llmproxy_", "process_"))
        assert family.documentation.endswith(".")


def test_two_proxies_in_one_process_count_apart(state: State) -> None:
    one, other = Metrics(state.sources()), Metrics(state.sources())
    one.observe([exchange()])
    assert series(one, "llmproxy_exchanges_total") != []
    assert series(other, "llmproxy_exchanges_total") == []
