from __future__ import annotations

import json

import attrs
import pytest
from twisted.logger import LogLevel, capturedLogs

from llmproxy.access_log import AccessLog, fields, line
from llmproxy.exchange import Ending, Exchange
from llmproxy.usage.model import Usage
from tests.metrics_support import COMPLETED, exchange, reading
from tests.support import log_lines

OPEN = Exchange(
    client="default",
    upstream="openai",
    method="POST",
    path="/openai/v1/chat/completions",
    started=1.0,
    id="019364a1b2c3d4e5f60718293a",
)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"status": 200, "sent": 1234, "first_byte": 0.1, "duration": 1.23456, "ending": Ending.COMPLETED},
            "default POST /openai/v1/chat/completions -> openai 200, 1234 bytes in 1.235 s, completed",
        ),
        (
            {"duration": 0.5, "ending": Ending.CLIENT_LEFT},
            "default POST /openai/v1/chat/completions -> openai -, 0 bytes in 0.500 s, client left",
        ),
        (
            {"client": None, "status": 401, "duration": 0.0, "ending": Ending.REFUSED},
            "- POST /openai/v1/chat/completions -> openai 401, 0 bytes in 0.000 s, refused",
        ),
        ({}, "default POST /openai/v1/chat/completions -> openai -, 0 bytes in 0.000 s, open"),
    ],
)
def test_a_line_tells_who_asked_whom_for_what_and_how_it_ended(changes: dict[str, object], told: str) -> None:
    assert line(attrs.evolve(OPEN, **changes)) == f"{told} [019364a1b2c3d4e5f60718293a]"  # type: ignore[arg-type]


def test_a_line_tells_what_was_used_and_what_it_cost() -> None:
    assert line(COMPLETED) == (
        "ann POST /openai/v1/chat/completions -> openai 200, 1234 bytes in 1.235 s, completed, gpt-5-2026-01-01, "
        "10 in, 300 from cache, 40 to cache, 5 to cache for 1 h, 20 out, 1.234567 USD [019364a1b2c3d4e5f60718293a]"
    )


def test_a_line_of_a_turn_tells_of_which_socket_it_was() -> None:
    turn = attrs.evolve(COMPLETED, method="GET", status=101, sent=0, socket="01936400000000000000000000")
    assert line(turn).startswith(
        "ann GET /openai/v1/chat/completions -> openai 101, a turn of 01936400000000000000000000 in 1.235 s, completed, gpt-5"
    )


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"cost": None}, "20 out [019364a1b2c3d4e5f60718293a]"),
        ({"cost": 0}, "20 out, 0.000000 USD [019364a1b2c3d4e5f60718293a]"),
        ({"cost": 45_000_001}, ", 45.000001 USD [019364a1b2c3d4e5f60718293a]"),
        (
            {"cost": None, "reading": reading(usage=Usage(output_tokens=0), model=None)},
            "completed [019364a1b2c3d4e5f60718293a]",
        ),
        (
            {"cost": None, "reading": reading(usage=None)},
            "completed, gpt-5-2026-01-01 [019364a1b2c3d4e5f60718293a]",
        ),
    ],
)
def test_a_line_leaves_out_what_is_not_known(changes: dict[str, object], end: str) -> None:
    assert line(exchange(**changes)).endswith(end)


def test_a_line_repeats_no_text_that_a_client_could_choose_freely() -> None:
    told = line(exchange(asked_model="\x1b[2Jgpt\nforged", labels={"x-session": "\x1b[2J"}))
    assert told.isprintable()
    assert "forged" not in told


def test_the_fields_are_all_that_is_known() -> None:
    assert fields(COMPLETED) == {
        "id": "019364a1b2c3d4e5f60718293a",
        "at": "2026-11-22T18:27:04.056Z",
        "client": "ann",
        "upstream": "openai",
        "method": "POST",
        "path": "/openai/v1/chat/completions",
        "status": 200,
        "ending": "completed",
        "asked_model": "gpt-5",
        "answered_model": "gpt-5-2026-01-01",
        "received": 99,
        "sent": 1234,
        "first_byte": 0.25,
        "first_token": 0.5,
        "duration": 1.234568,
        "reused": True,
        "upstream_request_id": "req_7",
        "cost": 1_234_567,
        "usage_source": "reported",
        "outcome": "complete",
        "response_id": "resp_1",
        "stop_reason": "stop",
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_tokens": 300,
        "cache_write_5m_tokens": 40,
        "cache_write_1h_tokens": 5,
        "reasoning_tokens": 15,
        "server_tool_uses": {"web_search_requests": 1},
        "billable": True,
        "labels.x-claude-code-session-id": "s-1",
    }


def test_the_fields_of_a_refused_exchange_are_few() -> None:
    refused = attrs.evolve(OPEN, status=403, ending=Ending.REFUSED, duration=0.001)
    assert set(fields(refused)) == {
        "id",
        "at",
        "client",
        "upstream",
        "method",
        "path",
        "status",
        "ending",
        "received",
        "sent",
        "duration",
    }


def test_the_fields_are_what_json_can_hold() -> None:
    assert json.loads(json.dumps(fields(COMPLETED))) == fields(COMPLETED)


def test_a_label_hides_no_other_field() -> None:
    found = fields(exchange(labels={"status": "mine", "message": "too", "time": "0"}))
    assert found["status"] == 200
    assert found["labels.status"] == "mine"
    assert not {"message", "time"} & set(found)


def test_each_exchange_is_one_event_for_both_formats() -> None:
    with capturedLogs() as events:
        AccessLog().observe([COMPLETED, exchange(status=404)])
    assert [event["log_level"] for event in events] == [LogLevel.info] * 2
    assert [event["as_json"]()["status"] for event in events] == [200, 404]
    with log_lines() as lines:
        AccessLog().observe([COMPLETED])
    assert lines == [line(COMPLETED)]
