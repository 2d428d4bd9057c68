from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import wire
from bench.__main__ import options, others
from bench.figures import Result, cpu_each, figures, flows, load_bound, most_streams, ratio
from bench.machine import Machine
from bench.records import Sample, Task, quantile
from bench.report import Report

MEGABYTE = 1_000_000


def sample(**changes: Any) -> Sample:
    """Two seconds of 200 streams that flow, through a proxy."""
    made = Sample(
        connections=200,
        opened=200,
        seconds=2.0,
        expected=20_000.0,
        count=20_000,
        p50=0.001,
        p99=0.004,
        errors=0,
        trouble="",
        cpu={"proxy": 0.5, "upstream": 0.2, "load": 0.3},
        waited={"proxy": 0.02},
        resident_before={"proxy": 40 * MEGABYTE},
        resident_after={"proxy": 42 * MEGABYTE},
    )
    return attrs.evolve(made, **changes)


def requests(count: int, **changes: Any) -> Sample:
    return sample(connections=32, opened=32, expected=None, count=count, **changes)


PROXIED = Result(
    many=requests(5_000, cpu={"proxy": 1.0, "upstream": 0.1, "load": 0.2}),
    few=requests(1_000, p50=0.0015, p99=0.005),
    events=sample(),
    rungs=[sample(connections=64, opened=64), sample(), sample(p99=0.2)],
    idle=sample(),
)
OF_LOAD = {"upstream": 0.9, "load": 1.0}
DIRECT = Result(
    many=requests(20_000, cpu=OF_LOAD),
    few=requests(4_000, p50=0.001, p99=0.002),
    events=sample(p50=0.0005, cpu=OF_LOAD),
    rungs=[sample(cpu=OF_LOAD)],
    idle=None,
)
MACHINE = Machine("Linux", "A CPU", 2, 0.5, "CPython 3.13", {"llmproxy": "1.0"}, "abc")


def report(**changes: Any) -> Report:
    made = Report(
        "2026-01-02T03:04:05+00:00", "full", MACHINE, True, True, {"direct": DIRECT, "llmproxy": PROXIED}
    )
    return attrs.evolve(made, **changes)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0), (0.991, 100.0)]
)
def test_a_quantile_is_the_value_at_the_nearest_rank(share: float, expected: float) -> None:
    assert quantile(range(1, 101), share) == expected


def test_there_is_no_quantile_of_nothing() -> None:
    assert quantile([], 0.99) is None


def test_the_figures_of_a_proxy_are_those_of_its_samples() -> None:
    assert figures(PROXIED, DIRECT) == pytest.approx(
        {
            "request_cpu_us": 200.0,
            "requests_per_second": 2_500.0,
            "latency_p50_ms": 1.5,
            "latency_p99_ms": 5.0,
            "added_p50_ms": 0.5,
            "added_p99_ms": 3.0,
            "event_cpu_us": 25.0,
            "event_p50_ms": 1.0,
            "event_p99_ms": 4.0,
            "streams": 200,
            "stream_memory_kb": 10.0,
        }
    )


def test_the_upstream_itself_has_no_added_latency_and_no_costs_of_a_proxy() -> None:
    values = figures(DIRECT, DIRECT)
    missing = {key for key, value in values.items() if value is None}
    assert missing == {"request_cpu_us", "event_cpu_us", "added_p50_ms", "added_p99_ms", "stream_memory_kb"}


def test_a_target_that_answered_nothing_has_no_cpu_time_for_each_answer() -> None:
    assert cpu_each(sample(count=0)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"p99": 0.020},
        {"count": 14_999},
        {"opened": 199},
        {"errors": 1},
        {"count": 0, "p99": None},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_streams_stall_when_events_are_late_or_missing_or_a_stream_fails(changes: dict[str, Any]) -> None:
    assert flows(sample())
    assert not flows(sample(**changes))


def test_the_most_streams_are_those_before_the_first_stall() -> None:
    rungs = [sample(connections=64, opened=64), sample(connections=128, opened=0), sample()]
    assert most_streams(rungs) == 64
    assert most_streams(rungs[1:]) == 0


@pytest.mark.parametrize(
    ("load", "upstream", "shared", "expected"),
    [(1.0, 0.8, True, True), (1.0, 0.7, True, False), (1.0, 0.8, False, False), (0.1, 1.8, False, True)],
)
def test_the_load_limits_a_figure_when_its_core_has_no_time_left(
    load: float, upstream: float, shared: bool, expected: bool
) -> None:
    assert load_bound(sample(cpu={"load": load, "upstream": upstream}), shared) is expected


@pytest.mark.parametrize(
    ("value", "other", "expected"),
    [
        (1.0, 2.0, 0.5),
        (None, 2.0, None),
        (1.0, None, None),
        (1.0, 0.0, None),
        (-0.1, 2.0, None),
        (0.1, -2.0, None),
    ],
)
def test_a_ratio_needs_two_figures_that_have_one(
    value: float | None, other: float | None, expected: float | None
) -> None:
    assert ratio({"a": value}, {"a": other}, "a") == expected


def test_the_table_shows_ratios_and_marks_what_the_load_limits() -> None:
    line = next(line for line in report().table().splitlines() if line.startswith("requests per second"))
    assert line.split()[-4:] == ["/s", "10,000*", "2,500", "0.25"]
    assert any("direct: the load and the upstream had no time left" in note for note in report().notes())


def test_the_notes_tell_where_streams_stall_and_which_errors_came() -> None:
    broken = attrs.evolve(PROXIED, many=requests(1, errors=3, trouble="status 502"))
    notes = report(results={"direct": DIRECT, "llmproxy": broken}).notes()
    assert "llmproxy: 3 errors with 32 connections, the first: status 502" in notes
    assert "llmproxy: 200 streams stall: delay p99 200 ms, 100% of the events came." in notes
    assert "direct: 200 streams are the most that were tried." in notes


def test_the_notes_tell_when_other_work_had_the_core_of_the_proxy() -> None:
    assert not any("noisy" in note for note in report().notes())
    disturbed = attrs.evolve(PROXIED, few=sample(waited={"proxy": 0.5}))
    notes = report(results={"direct": DIRECT, "llmproxy": disturbed}).notes()
    assert "llmproxy: other work had its core for up to 25% of a measurement, so this run is noisy." in notes


def test_the_json_file_holds_figures_ratios_machine_and_samples(tmp_path: Path) -> None:
    report().write(tmp_path / "last.json")
    content = json.loads((tmp_path / "last.json").read_text())
    assert content["figures"]["llmproxy"]["request_cpu_us"] == 200.0
    assert content["ratios"]["llmproxy / direct"]["requests_per_second"] == 0.25
    assert content["machine"]["commit"] == "abc"
    assert content["samples"]["llmproxy"]["few"]["p50"] == 0.0015


def test_what_passes_between_the_processes_arrives_as_it_was() -> None:
    task = Task(
        "http://127.0.0.1:1/v1",
        [("Authorization", "Bearer t")],
        4,
        0.5,
        2.0,
        pause=0.1,
        processes={"proxy": 7},
    )
    read = Task.from_json(task.to_json())
    assert attrs.evolve(read, headers=[(name, value) for name, value in read.headers]) == task
    assert Sample.from_json(sample().to_json()) == sample()


@given(st.lists(st.integers(0, 10**19), max_size=5), st.data())
def test_send_times_are_found_however_a_stream_was_cut(times: list[int], data: st.DataObject) -> None:
    stream = b"".join(wire.event(time).partition(b"\r\n")[2].removesuffix(b"\r\n") for time in times)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = wire.EventReader()
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [time for piece in pieces for time in reader.read(piece)] == times


@pytest.mark.parametrize(("model", "rate"), [(wire.ANSWER, None), (wire.events(50), 50)])
def test_the_upstream_reads_from_a_request_what_the_load_asks_for(model: str, rate: int | None) -> None:
    head, _, body = wire.request("http://127.0.0.1:1/openai/v1/", model, [("X-A", "b")]).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
    assert b"\r\nX-A: b" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert wire.rate_asked(body) == rate


def test_another_proxy_is_named_by_its_url_and_may_have_headers_and_a_process() -> None:
    line = [
        "--upstream-port",
        "8099",
        "--other",
        "a=http://127.0.0.1:1/a=b/v1",
        "--header",
        "X-A: b:c",
        "--pid",
        "a=7",
    ]
    (target,) = others(options().parse_args(line))
    assert (target.name, target.base_url, target.pid) == ("a", "http://127.0.0.1:1/a=b/v1", 7)
    assert list(target.headers) == [("X-A", "b:c")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--other", "a=http://h/v1"], "--other needs --upstream-port"),
        (["--upstream-port", "1", "--other", "a"], "--other a needs a name, '=' and a value"),
        (["--upstream-port", "1", "--other", "direct=http://h/v1"], "--other needs a name of its own"),
        (["--upstream-port", "1", "--other", "a=https://h/v1"], "needs a URL with http:// and a host"),
        (["--pid", "a=1"], "needs the name of an --other"),
    ],
)
def test_options_that_cannot_be_used_are_refused(line: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        others(options().parse_args(line))
