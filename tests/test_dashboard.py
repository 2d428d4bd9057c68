"""Whether the dashboard for Grafana asks for what there is; Grafana itself would only show empty panels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmproxy.metrics import Metrics
from tests.metrics_support import Pool, State, exchange, reading

FILE = Path(__file__).parent.parent / "contrib" / "grafana" / "llmproxy.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}

# What Prometheus adds to all that it scrapes, and what Grafana puts in itself.
OF_PROMETHEUS = {"job", "instance"}
OF_GRAFANA = {"__rate_interval", "__range"}

NAME = re.compile(r"\b(?:llmproxy|process)_\w+")
SELECTOR = re.compile(r"\b((?:llmproxy|process)_\w+)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")


@pytest.fixture(scope="module")
def labels() -> dict[str, dict[str, set[str]]]:
    """By the name of a series: its labels, each with the values that it had."""
    state = State(
        exchanges={"openai": 1}, streams={"openai": 1}, pools=[("openai", Pool(open=1, idle=0, waiting=0))]
    )
    metrics = Metrics(state.sources())
    metrics.observe([exchange(), exchange(cost=None, reading=reading(source="absent"))])
    found: dict[str, dict[str, set[str]]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            of_series = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                of_series.setdefault(label, set()).add(value)
    return found


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def targets() -> list[Any]:
    return [
        pytest.param(target, id=f"{panel['title']}, {target['refId']}")
        for panel in panels()
        for target in panel.get("targets", ())
    ]


def queries() -> list[Any]:
    of_panels = [pytest.param(param.values[0]["expr"], id=param.id) for param in targets()]
    of_variables = [
        pytest.param(variable["query"]["query"], id=f"${name}")
        for name, variable in VARIABLES.items()
        if variable["type"] == "query"
    ]
    return of_panels + of_variables


@pytest.mark.parametrize("query", queries())
def test_each_query_names_metrics_and_labels_that_there_are(
    query: str, labels: dict[str, dict[str, set[str]]]
) -> None:
    assert NAME.search(query)
    for name, matchers in SELECTOR.findall(query):
        assert name in labels
        named = [label for label, _ in MATCHER.findall(matchers)]
        assert len(named) == len([part for part in matchers.split(",") if part.strip()])
        assert set(named) <= set(labels[name]) | OF_PROMETHEUS


@pytest.mark.parametrize("target", targets())
def test_each_query_groups_by_labels_of_all_its_metrics_and_names_them_in_its_legend(
    target: dict[str, Any], labels: dict[str, dict[str, set[str]]]
) -> None:
    query, legend = target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    groups = [{label.strip() for label in labels.split(",")} for labels in GROUPING.findall(query)]
    common = set.intersection(*(set(labels[name]) for name in NAME.findall(query))) | OF_PROMETHEUS
    for group in groups:
        assert group <= common
        assert group - {"le"} == legend
    if not groups:
        assert legend <= OF_PROMETHEUS


@pytest.mark.parametrize("query", queries())
def test_a_histogram_is_read_by_its_bounds(query: str) -> None:
    for name in NAME.findall(query):
        assert name.endswith("_bucket") == ("histogram_quantile" in query)
    if "histogram_quantile" in query:
        assert all("le" in group for group in GROUPING.findall(query))


@pytest.mark.parametrize("query", queries())
def test_counters_are_read_by_their_increase_and_gauges_are_not(query: str) -> None:
    if query.startswith("label_values"):
        return
    for match in NAME.finditer(query):
        counts = match[0].endswith(("_total", "_bucket"))
        assert query[: match.start()].endswith(("rate(", "increase(")) == counts


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_single_values_that_there_can_be(
    query: str, labels: dict[str, dict[str, set[str]]]
) -> None:
    known = {
        "status_class": {"1xx", "2xx", "3xx", "4xx", "5xx", "none"},
        "ending": {
            "completed",
            "refused",
            "client_left",
            "upstream_failed",
            "upstream_silent",
            "proxy_failed",
        },
        "kind": labels["llmproxy_tokens_total"]["kind"],
    }
    for label, value in MATCHER.findall(query):
        if not value.startswith("$"):
            assert set(value.split("|")) <= known[label]


@pytest.mark.parametrize("query", queries())
def test_each_variable_that_a_query_uses_is_there(query: str) -> None:
    assert set(re.findall(r"\$\{?(\w+)", query)) <= set(VARIABLES) | OF_GRAFANA


def test_the_data_source_is_a_variable_everywhere() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    sources = [
        holder["datasource"]
        for panel in panels()
        if panel["type"] != "row"
        for holder in (panel, *panel["targets"])
    ]
    sources += [variable["datasource"] for variable in VARIABLES.values() if variable["type"] == "query"]
    assert sources == [wanted] * len(sources)
    assert "__inputs" not in DASHBOARD


def test_it_can_be_imported_into_any_grafana() -> None:
    assert DASHBOARD["id"] is None
    assert (DASHBOARD["title"], DASHBOARD["uid"]) == ("llmproxy", "llmproxy")
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)


def test_panels_fill_rows_of_24_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(
    "metric",
    [
        "llmproxy_exchanges_total",
        "llmproxy_first_token_duration_seconds_bucket",
        "llmproxy_tokens_total",
        "llmproxy_cost_usd_total",
        "llmproxy_open_streams",
        "llmproxy_pool_connections",
        "llmproxy_pool_waiting_requests",
        "llmproxy_unknown_usage_exchanges_total",
        "llmproxy_unknown_cost_exchanges_total",
        "llmproxy_ledger_backlog_records",
        "process_resident_memory_bytes",
    ],
)
def test_what_operators_ask_for_first_is_shown(metric: str) -> None:
    assert any(metric in param.values[0]["expr"] for param in targets())


def test_a_sum_that_prometheus_makes_too_small_says_so() -> None:
    (panel,) = (panel for panel in panels() if "increase(llmproxy_cost" in json.dumps(panel))
    assert "llmproxy usage has the exact sums" in panel["description"]
