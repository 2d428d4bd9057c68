"""Responses that run at the same time on one socket, and what errors mean there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import Any

import pytest

from llmproxy.usage import Reading, Usage
from llmproxy.usage.in_flight import lane_of
from llmproxy.usage.realtime import Messages
from tests.usage_support import Turn, WatchedSocket, readings_of

Message = dict[str, Any]

Session = partial(WatchedSocket, Messages)
told = partial(readings_of, Messages)


def in_lane(lane: str | None, message: Message) -> Message:
    return message if lane is None else {**message, "stream_id": lane}


def responses_turn(name: str, lane: str | None, tokens: int, tier: str | None) -> list[Message]:
    """A turn of a Responses WebSocket, with its first token in its third message."""
    response: Message = {
        "id": name,
        "object": "response",
        "model": f"gpt-{name}",
        "usage": None,
        "error": None,
    }
    if tier is not None:
        response["service_tier"] = tier
    usage = {"input_tokens": tokens, "output_tokens": 5, "total_tokens": tokens + 5}
    messages: list[Message] = [
        {"type": "response.created", "response": response | {"status": "in_progress"}},
        {"type": "response.output_item.added", "item": {"type": "message"}},
        {"type": "response.output_text.delta", "item_id": "msg", "delta": "x"},
        {"type": "response.output_text.delta", "item_id": "msg", "delta": "y"},
        {"type": "response.completed", "response": response | {"status": "completed", "usage": usage}},
    ]
    return [in_lane(lane, {**message, "sequence_number": at}) for at, message in enumerate(messages)]


def realtime_turn(name: str, lane: str | None, tokens: int, tier: str | None) -> list[Message]:
    """A turn of a Realtime session, with its first token in its third message; it has no tier, and no lane."""
    response: Message = {"id": name, "object": "realtime.response", "status": "in_progress", "usage": None}
    usage = {"input_tokens": tokens, "output_tokens": 5, "total_tokens": tokens + 5}
    return [
        {"type": "response.created", "event_id": "e", "response": response},
        {"type": "response.output_item.added", "event_id": "e", "response_id": name, "item": {}},
        {"type": "response.output_audio.delta", "event_id": "e", "response_id": name, "delta": "AAAA"},
        {"type": "response.output_audio.delta", "event_id": "e", "response_id": name, "delta": "AAAA"},
        {
            "type": "response.done",
            "event_id": "e",
            "response": {**response, "status": "completed", "usage": usage},
        },
    ]


def interleaved(one: list[Message], other: list[Message]) -> Iterator[list[Message]]:
    """All orders in which two sequences may come on one socket."""
    size = len(one) + len(other)
    for places in combinations(range(size), len(one)):
        first, second = iter(one), iter(other)
        yield [next(first) if at in places else next(second) for at in range(size)]


def turns_of(session: WatchedSocket) -> dict[str | None, Turn]:
    return {turn.reading.response_id: turn for turn in session.ended if turn.reading is not None}


def facts(reading: Reading | None) -> tuple[Any, ...]:
    assert reading is not None
    return (reading.model, reading.service_tier, reading.usage, reading.outcome, reading.error)


@pytest.mark.parametrize("lanes", [("a", "b"), (None, "b"), ("a", None)])
def test_two_lanes_share_nothing_in_whatever_order_their_messages_come(
    lanes: tuple[str | None, str | None],
) -> None:
    one = responses_turn("A", lanes[0], 10, "priority")
    other = responses_turn("B", lanes[1], 20, None)
    for messages in interleaved(one, other):
        session = Session(*messages)
        turns = turns_of(session)
        assert sorted(turns, key=str) == ["A", "B"]
        for name, sent in (("A", one), ("B", other)):
            turn = turns[name]
            at = [messages.index(message) + 1 for message in sent]
            assert (turn.begun, turn.first_token, turn.ended) == (at[0], at[2], at[-1])
        assert facts(turns["A"].reading) == ("gpt-A", "priority", Usage(10, 5), "complete", None)
        assert facts(turns["B"].reading) == ("gpt-B", None, Usage(20, 5), "complete", None)
        assert session.close().model is None


def test_neither_do_a_realtime_response_and_one_out_of_band() -> None:
    session_created = {"type": "session.created", "session": {"model": "gpt-realtime"}}
    one, other = realtime_turn("A", None, 10, None), realtime_turn("B", None, 20, None)
    for messages in interleaved(one, other):
        session = Session(session_created, *messages)
        turns = turns_of(session)
        for name, sent in (("A", one), ("B", other)):
            turn = turns[name]
            at = [messages.index(message) + 2 for message in sent]
            assert (turn.begun, turn.first_token, turn.ended) == (at[0], at[2], at[-1])
        assert facts(turns["A"].reading) == ("gpt-realtime", None, Usage(10, 5), "complete", None)
        assert facts(turns["B"].reading) == ("gpt-realtime", None, Usage(20, 5), "complete", None)
        session.close()


def refusal(lane: str | None = None) -> Message:
    error = {"type": "invalid_request_error", "code": "previous_response_not_found", "message": "m"}
    return in_lane(lane, {"type": "error", "status": 400, "error": error})


REFUSED = (None, None, Usage(billable=False), "failed", "invalid_request_error")


@pytest.mark.parametrize("lanes", [("a", "b"), ("a", None), (None, "b")])
@pytest.mark.parametrize("ends", [True, False])
def test_a_refusal_in_one_lane_is_a_turn_of_its_own_while_another_goes_on(
    lanes: tuple[str | None, str | None], ends: bool
) -> None:
    running = responses_turn("A", lanes[0], 10, "flex")
    for at in range(len(running) + 1):
        if not (ends or 0 < at < len(running)):
            continue
        session = Session(*running[:at], *[refusal(lanes[1])] * 3, *(running[at:] if ends else []))
        assert [
            turn.begun for turn in session.ended if turn.reading and turn.reading.response_id is None
        ] == [
            at + 1,
            at + 2,
            at + 3,
        ]
        session.close()
        refused = [reading for reading in session.readings if reading.response_id is None]
        assert [facts(reading) for reading in refused] == [REFUSED] * 3
        (turn,) = (reading for reading in session.readings if reading.response_id == "A")
        expected = (Usage(10, 5), "complete") if ends else (None, "cut")
        assert (turn.usage, turn.outcome, turn.error) == (*expected, None)


ENDING_ERRORS: list[Message] = [
    {"type": "error", "sequence_number": 4, "code": "server_error", "message": "m", "param": None},
    {"type": "error", "sequence_number": 4, "error": {"type": "server_error", "code": "x", "message": "m"}},
    {"type": "error", "status": 500, "error": {"type": "server_error", "code": "x", "message": "m"}},
    {"type": "error", "error": {"type": "server_error"}},
]


@pytest.mark.parametrize("error", ENDING_ERRORS)
@pytest.mark.parametrize("lane", [None, "a"])
def test_an_error_of_a_responses_socket_ends_the_turn_in_its_lane_at_once(
    error: Message, lane: str | None
) -> None:
    first, other = responses_turn("A", lane, 10, None), responses_turn("B", "b", 20, None)
    session = Session(first[0], other[0], first[2], in_lane(lane, error))
    (turn,) = session.ended
    assert (turn.ended, turn.first_token) == (4, 3)
    assert facts(turn.reading) == ("gpt-A", None, None, "failed", "server_error")
    assert turn.reading is not None
    assert (turn.reading.response_id, turn.reading.source) == ("A", "absent")
    # What comes behind it is no turn's: not the pieces, nor a second word of its end.
    failed = {"type": "response.failed", "response": {"id": "A", "object": "response", "status": "failed"}}
    session.feed(first[3], in_lane(lane, failed))
    third = responses_turn("C", lane, 30, None)
    session.feed(*other[1:], *third, refusal(lane))
    session.close()
    assert [facts(reading) for reading in session.readings[1:]] == [
        ("gpt-B", None, Usage(20, 5), "complete", None),
        ("gpt-C", None, Usage(30, 5), "complete", None),
        REFUSED,
    ]


def test_what_was_used_is_not_lost_where_a_response_goes_on_behind_an_error() -> None:
    turn = responses_turn("A", None, 10, None)
    failed, ended = told(*turn[:3], refusal(), *turn[3:])
    assert (failed.outcome, failed.usage, failed.source) == ("failed", None, "absent")
    assert facts(ended) == ("gpt-A", None, Usage(10, 5), "complete", None)


def test_an_id_may_come_again_behind_an_error() -> None:
    turn = responses_turn("A", None, 10, None)
    failed, cut = told(*turn[:3], ENDING_ERRORS[0], *turn[:3])
    assert (failed.response_id, failed.outcome) == ("A", "failed")
    assert (cut.response_id, cut.outcome, cut.source) == ("A", "cut", "absent")


@pytest.mark.parametrize(
    ("lane", "others", "first_token"), [("a", "a", 2), ("a", None, 2), ("a", "b", None), (None, "b", None)]
)
def test_a_piece_without_an_id_is_of_its_lane_or_of_the_only_turn(
    lane: str | None, others: str | None, first_token: int | None
) -> None:
    session = Session(responses_turn("A", lane, 10, None)[0], responses_turn("B", others, 10, None)[2])
    assert [turn.first_token for turn in session.begun] == [first_token]
    session.close()


REALTIME_ERROR: Message = {"type": "error", "event_id": "e", "error": {"type": "invalid_request_error"}}


def test_an_error_of_a_realtime_session_is_of_a_turn_of_which_nothing_more_comes() -> None:
    turn = realtime_turn("A", None, 10, None)
    for at in range(1, len(turn)):
        (reading,) = told(*turn[:at], REALTIME_ERROR, *turn[at:])
        assert (reading.outcome, reading.error, reading.usage) == ("complete", None, Usage(10, 5))
        (reading,) = told(*turn[:at], REALTIME_ERROR)
        assert (reading.outcome, reading.error, reading.source) == (
            "failed",
            "invalid_request_error",
            "absent",
        )
        behind = turn[at:-1]
        (reading,) = told(*turn[:at], REALTIME_ERROR, *behind)
        assert (reading.outcome, reading.error) == (
            ("cut", None) if behind else ("failed", "invalid_request_error")
        )


def test_an_error_tells_by_itself_that_it_is_of_a_realtime_session() -> None:
    turn = realtime_turn("A", None, 10, None)
    for message in (turn[0], turn[-1]):
        message["response"] = {**message["response"], "object": None}
    (reading,) = told(turn[0], REALTIME_ERROR, *turn[1:])
    assert (reading.outcome, reading.usage) == ("complete", Usage(10, 5))
    del turn[0]["response"]["object"]
    error = {name: value for name, value in REALTIME_ERROR.items() if name != "event_id"}
    failed, ended = told(turn[0], error, *turn[1:])
    assert (failed.outcome, ended.outcome) == ("failed", "complete")


def test_a_response_that_begins_without_a_name_is_none_of_those_that_run() -> None:
    turn = responses_turn("A", None, 10, "flex")
    ended, cut = told(*turn[:3], {"type": "response.created", "response": {"model": "other"}}, *turn[4:])
    assert facts(ended) == ("gpt-A", "flex", Usage(10, 5), "complete", None)
    assert (cut.model, cut.response_id, cut.outcome) == ("other", None, "cut")


def test_an_error_among_several_realtime_turns_is_nobodys() -> None:
    one, other = realtime_turn("A", None, 10, None), realtime_turn("B", None, 20, None)
    refused, *cut = told(one[0], other[0], REALTIME_ERROR)
    assert facts(refused) == REFUSED
    assert [(reading.response_id, reading.outcome, reading.error) for reading in cut] == [
        ("A", "cut", None),
        ("B", "cut", None),
    ]


@pytest.mark.parametrize("make", [responses_turn, realtime_turn])
def test_a_model_is_that_of_its_turn_or_of_the_session(make: Callable[..., list[Message]]) -> None:
    def session(model: str) -> Message:
        return {"type": "session.updated", "session": {"model": model}}

    def bare(name: str) -> Message:
        return {"type": "response.created", "response": {"id": name}}

    messages = [*make("A", None, 10, "priority"), bare("B"), session("gpt-realtime"), bare("C"), refusal("x")]
    readings = {reading.response_id: reading for reading in told(*messages)}
    models = {name: (reading.model, reading.service_tier) for name, reading in readings.items()}
    assert models["B"] == (None, None)
    assert models["C"] == models[None] == ("gpt-realtime", None)


def test_a_steer_that_fails_is_no_failure_of_its_response() -> None:
    failed = {"type": "response.steer.failed", "error": {"code": "x", "message": "m"}, "steer": {"id": "s"}}
    turn = responses_turn("A", None, 10, None)
    (reading,) = told(*turn[:3], failed, *turn[3:])
    assert facts(reading) == ("gpt-A", None, Usage(10, 5), "complete", None)


def test_a_turn_that_begins_without_tokens_in_its_words_is_seen_while_another_streams() -> None:
    turn = responses_turn("A", "a", 10, None)
    created = {"type": "response.created", "stream_id": "b", "response": {"id": "B"}}
    session = Session(*turn[:4], created, turn[3])
    assert [begun.begun for begun in session.begun] == [1, 5]
    session.close()


def test_what_a_model_says_hides_no_message() -> None:
    words = ["response.", "response", "usage", "error", "session", 'x.delta"', '"response.created"', ".delta"]
    session = Session(*responses_turn("A", None, 10, None)[:3])
    for at, word in enumerate(words):
        begun, *_, ended = responses_turn(f"r{at}", word, 1, None)
        ended["response"]["output"] = [{"content": [{"text": word}]}]
        session.feed({"type": "response.output_text.delta", "delta": word}, begun, ended)
    session.feed(
        {"type": "session.updated", "session": {"model": "m", "instructions": "response."}}, refusal("x")
    )
    session.close()
    assert [reading.response_id for reading in session.readings] == [
        *(f"r{at}" for at in range(len(words))),
        None,
        "A",
    ]
    assert session.readings[-2].model == "m"


def test_many_turns_leave_nothing_behind() -> None:
    session = Session()
    for number in range(2000):
        turn = responses_turn(f"r{number}", f"lane {number}", 1, None)
        session.feed(turn[0], in_lane(f"lane {number}", ENDING_ERRORS[0]))
    messages = session.tap._body
    assert isinstance(messages, Messages)
    assert len(messages._running) == 0
    assert len(messages._broken_off) == 100
    assert len(session.ended) == 2000


@pytest.mark.parametrize(
    ("told", "lane"), [("a", "a"), (None, None), (7, None), ({}, None), ("é" * 999, "é" * 256)]
)
def test_a_lane_is_any_name_within_bounds(told: Any, lane: str | None) -> None:
    assert lane_of(told) == lane
