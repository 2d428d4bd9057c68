from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.exchange import Exchange
from llmproxy.ledger.row import COLUMNS, insertions, row_of
from llmproxy.usage.model import COUNTS, Usage
from tests.ledger_support import complete, exchange, reading


def named(given: Exchange) -> dict[str, Any]:
    """What is known in the row of an exchange, by the names of its columns."""
    row = zip(COLUMNS, row_of(given), strict=True)
    return {column: value for column, value in row if value is not None}


class TestRow:
    def test_all_that_is_known_is_in_it(self) -> None:
        given = complete()
        assert given.reading is not None
        assert given.reading.usage is not None
        row = named(given)
        counts = {name: getattr(given.reading.usage, name) for name in COUNTS}
        assert None not in counts.values()
        assert row == {
            "id": "id-1",
            "at": "2026-11-20T12:00:00.000000+00:00",
            "client": "alice",
            "upstream": "anthropic",
            "method": "POST",
            "path": "/anthropic/v1/messages",
            "status": 200,
            "ending": "upstream failed",
            "asked_model": "model-1",
            "answered_model": "model-1-2026",
            "received": 10,
            "sent": 20,
            "first_byte": 0.5,
            "first_token": 0.75,
            "duration": 2.0,
            "reused": True,
            "upstream_request_id": "req_1",
            "session": "session",
            "socket": "id-0",
            "labels": '{"x-claude-code-agent-id":"agent","x-claude-code-session-id":"session"}',
            "cost": 123,
            "usage_source": "reported",
            "outcome": "failed",
            "error": "overloaded_error",
            "response_id": "msg_1",
            "stop_reason": "end_turn",
            "service_tier": "standard",
            "billable": True,
            **counts,
            "server_tool_uses": '{"web_search_requests":2}',
        }

    def test_what_is_unknown_is_not_in_it_and_never_0(self) -> None:
        row = named(exchange(reading=reading(Usage(input_tokens=0))))
        assert row["input_tokens"] == 0
        assert row.keys().isdisjoint({"output_tokens", "cost"})
        row = named(exchange(status=None, duration=None, ending=None))
        assert row.keys().isdisjoint({"status", "duration", "ending", "usage_source", "billable", "labels"})

    @pytest.mark.parametrize("microsecond", [0, 1, 999_999])
    @pytest.mark.parametrize("second", [0, 59])
    def test_the_time_is_in_utc_to_the_microsecond(self, second: int, microsecond: int) -> None:
        at = datetime(2025, 12, 31, 23, 59, second, microsecond, timezone.utc)
        given = exchange(at=at)
        assert named(given)["at"] == at.isoformat(timespec="microseconds")
        assert given.at == at

    @pytest.mark.parametrize(
        "name",
        [
            "x-claude-code-session-id",
            "session_id",
            "x-opencode-session",
            "x-conversation-id",
            "x-agent-session",
        ],
    )
    def test_the_first_label_that_is_no_agents_is_the_session(self, name: str) -> None:
        labels = {"x-claude-code-agent-id": "a", name: "s", "x-session-id": "other"}
        assert named(exchange(labels=labels))["session"] == "s"

    @pytest.mark.parametrize(
        "name",
        ["x-claude-code-agent-id", "x-claude-code-parent-agent-id", "X-Agent-Tag", "user-agent", "agent"],
    )
    def test_the_label_of_an_agent_names_none(self, name: str) -> None:
        assert "session" not in named(exchange(labels={name: "s"}))

    @pytest.mark.parametrize("name", ["x-reagent", "x-agents-of-change", "x-agency-id"])
    def test_an_agent_is_a_word(self, name: str) -> None:
        assert named(exchange(labels={name: "s"}))["session"] == "s"

    def test_a_label_without_a_value_names_none(self) -> None:
        assert named(exchange(labels={"x-session-id": "", "x-thread": "t"}))["session"] == "t"


class TestCleaning:
    def test_text_is_cut(self) -> None:
        row = named(exchange(asked_model="m" * 1000, path="/" * 5000))
        assert (len(row["asked_model"]), len(row["path"])) == (256, 1024)

    @pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\ud800", "\u202e"])
    def test_what_cannot_be_printed_is_replaced(self, character: str) -> None:
        assert named(exchange(asked_model=f"a{character}b"))["asked_model"] == "a\ufffdb"
        assert json.loads(named(exchange(labels={"x-id": character}))["labels"]) == {"x-id": "\ufffd"}

    def test_other_scripts_stay(self) -> None:
        assert named(exchange(asked_model="模型-ü"))["asked_model"] == "模型-ü"

    @pytest.mark.parametrize("number", [-1, 2**63])
    def test_a_number_that_no_database_holds_is_unknown(self, number: int) -> None:
        row = named(
            exchange(cost=number, reading=reading(Usage(input_tokens=number, server_tool_uses={"x": number})))
        )
        assert row.keys().isdisjoint({"input_tokens", "cost"})
        assert row["server_tool_uses"] == '{"x":null}'

    @given(st.text(), st.integers(), st.dictionaries(st.text(), st.text()))
    def test_whatever_came_can_be_written(self, text: str, number: int, labels: dict[str, str]) -> None:
        usage = Usage(number, number, server_tool_uses={"tool": number})
        row = row_of(
            exchange(
                asked_model=text,
                path=text,
                upstream_request_id=text,
                labels=labels,
                cost=number,
                reading=reading(usage),
            )
        )
        assert len(row) == len(COLUMNS)
        for value in row:
            if isinstance(value, str):
                assert "\0" not in value
                value.encode()
            elif isinstance(value, int):
                assert 0 <= value < 2**63


class TestInsertions:
    def test_exchanges_of_a_kind_are_written_by_one_statement(self) -> None:
        given = {"a": "openai", "b": "anthropic", "c": "openai"}
        rows = [row_of(exchange(id=name, upstream=upstream)) for name, upstream in given.items()]
        written = [values for _, values in insertions(rows)]
        assert [[row[0] for row in each] for each in written] == [["a", "c"], ["b"]]

    def test_a_column_of_which_nothing_is_known_is_left_out(self) -> None:
        rows = [row_of(exchange(id="a")), row_of(exchange(id="b", cost=1)), row_of(exchange(id="c"))]
        ((statement, values),) = insertions(rows)
        columns = statement[statement.index("(") + 1 : statement.index(")")].split(", ")
        assert {"cost", "status"} <= set(columns)
        assert set(columns).isdisjoint({"labels", "input_tokens", "billable"})
        assert [row[columns.index("cost")] for row in values] == [None, 1, None]
        assert {len(row) for row in values} == {len(columns)} == {statement.count("?")}

    @pytest.mark.parametrize("number", [24, 25, 26, 74, 75, 100])
    def test_many_are_written_by_few_and_each_once(self, number: int) -> None:
        rows = [row_of(exchange(id=f"{name:03}")) for name in range(number)]
        ids = []
        for statement, values in insertions(rows):
            width = statement[: statement.index(")")].count(",") + 1
            assert all(len(each) == statement.count("?") for each in values)
            ids += [each[at] for each in values for at in range(0, len(each), width)]
        assert ids == [row[0] for row in rows]

    def test_all_columns_of_many_rows_are_not_too_much_for_an_old_sqlite(self) -> None:
        rows = [row_of(attrs.evolve(complete(), id=str(name))) for name in range(100)]
        assert max(statement.count("?") for statement, _ in insertions(rows)) <= 999

    def test_of_nothing_there_are_none(self) -> None:
        assert list(insertions([])) == []
