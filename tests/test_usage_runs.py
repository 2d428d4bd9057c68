from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from llmproxy.config import PriceOverride
from llmproxy.config.credential import Family
from llmproxy.prices import PriceBook
from llmproxy.usage import Reading, Usage
from tests.ledger_support import exchange
from tests.usage_support import JSON, SSE, cut, dumped, named, read, tapped

FABLE, OPUS, SONNET = "claude-fable-5", "claude-opus-4-8", "claude-sonnet-5"
PRICES = {FABLE: (10, 50), OPUS: (5, 25), SONNET: (2, 10)}
BOOK = PriceBook(
    [
        PriceOverride(f"{model}*", input=Decimal(put_in), output=Decimal(made), cache_read=Decimal(1))
        for model, (put_in, made) in PRICES.items()
    ]
)
_NOT_TOLD: dict[str, Any] = {}


def run(kind: str, model: str | None, put_in: int, made: int, **fields: Any) -> dict[str, Any]:
    named_model = {} if model is None else {"model": model}
    cached = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    return {"type": kind, **named_model, "input_tokens": put_in, "output_tokens": made, **cached, **fields}


def handover(one: str = FABLE, other: str = OPUS, category: str | None = "cyber") -> dict[str, Any]:
    trigger = {"type": "refusal", "category": category}
    return {"type": "fallback", "from": {"model": one}, "to": {"model": other}, "trigger": trigger}


def message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base = {"id": "msg_1", "type": "message", "role": "assistant", "model": OPUS, "stop_reason": "end_turn"}
    return {**base, "content": list(content), **fields}


def usage(*iterations: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Of which the totals are those of the last iteration."""
    totals = {name: value for name, value in iterations[-1].items() if name not in ("type", "model")}
    return {**totals, "iterations": list(iterations), **fields}


def stopped(category: Any) -> dict[str, Any]:
    """How an answer ends that was refused."""
    details = category if category is None else {"type": "refusal", "category": category, "explanation": None}
    return {"stop_reason": "refusal", **({} if category is _NOT_TOLD else {"stop_details": details})}


TEXT = {"type": "text", "text": "Hi!"}
SERVED = run("fallback_message", OPUS, 412, 264)


def whole(body: dict[str, Any]) -> Reading:
    return read(tapped(Family.ANTHROPIC, JSON, b"/v1/messages"), dumped(body))


def streamed(*events: bytes) -> Reading:
    return read(tapped(Family.ANTHROPIC, SSE, b"/v1/messages"), events)


def start(model: str = FABLE, **used: Any) -> bytes:
    return named(
        {
            "type": "message_start",
            "message": message(model=model, stop_reason=None, stop_details=None, usage=used),
        }
    )


def block(index: int, content: dict[str, Any], text: str = "") -> bytes:
    begun = named({"type": "content_block_start", "index": index, "content_block": content})
    said = {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}
    end = named({"type": "content_block_stop", "index": index})
    return begun + (named(said) if text else b"") + end


def end(used: dict[str, Any], **delta: Any) -> bytes:
    delta = {"stop_reason": "end_turn", **delta}
    return named({"type": "message_delta", "delta": delta, "usage": used}, {"type": "message_stop"})


def cost(reading: Reading) -> int | None:
    return BOOK.cost(exchange(reading=reading, asked_model=reading.model))


EMPTY = {"type": "text", "text": ""}


class TestRefusals:
    USED: dict[str, Any] = {"input_tokens": 106, "output_tokens": 1}
    READ = Usage(106, 1)

    def answers(self, ending: dict[str, Any], **used: Any) -> list[Reading]:
        """Whole and streamed, without any output."""
        used = {**self.USED, **used}
        return [
            whole(message(model=FABLE, usage=used, **ending)),
            streamed(start(**used), end({"output_tokens": used["output_tokens"]}, **ending)),
            streamed(start(**used), block(0, EMPTY), end({"output_tokens": used["output_tokens"]}, **ending)),
        ]

    @pytest.mark.parametrize("output", [0, 1])
    @pytest.mark.parametrize("category", ["cyber", "general_harms", None])
    def test_before_any_output_costs_nothing_and_keeps_its_tokens(
        self, category: str | None, output: int
    ) -> None:
        details = {"stop_details": {"type": "refusal", "category": category}}
        for reading in self.answers({"stop_reason": "refusal", **details}, output_tokens=output):
            assert reading.usage == Usage(106, output, billable=False)
            assert (reading.stop_reason, reading.source, reading.parts) == ("refusal", "reported", ())
            assert cost(reading) == 0

    def test_without_any_details_is_one_without_a_category(self) -> None:
        assert [cost(reading) for reading in self.answers(stopped(None))] == [0, 0, 0]

    @pytest.mark.parametrize("category", ["bio", "frontier_llm", "reasoning_extraction"])
    def test_in_some_categories_is_billed_all_the_same(self, category: str) -> None:
        for reading in self.answers(stopped(category)):
            assert reading.usage == self.READ
            assert cost(reading) == 106 * 10 + 50

    @pytest.mark.parametrize("category", ["new", "", 5, "\n", _NOT_TOLD])
    def test_in_a_category_that_nobody_knows_may_be_billed(self, category: Any) -> None:
        for reading in self.answers(stopped(category)):
            assert reading.usage == Usage(106, 1, more=True)
            assert cost(reading) is None

    @pytest.mark.parametrize("details", [{}, {"type": "refusal"}, [], "cyber"])
    def test_details_that_tell_no_category_do_not_tell_that_there_is_none(self, details: Any) -> None:
        for reading in self.answers({"stop_reason": "refusal", "stop_details": details}):
            assert cost(reading) is None

    def test_that_made_output_which_is_not_there_may_be_billed(self) -> None:
        assert [cost(reading) for reading in self.answers(stopped("cyber"), output_tokens=2)] == [None] * 3
        assert [cost(reading) for reading in self.answers(stopped("bio"), output_tokens=2)] == [1160] * 3

    @pytest.mark.parametrize("category", ["cyber", None, "new", _NOT_TOLD])
    def test_after_output_is_billed(self, category: Any) -> None:
        ending = stopped(category)
        used = {"input_tokens": 106, "output_tokens": 7}
        for reading in (
            whole(message(TEXT, model=FABLE, usage=used, **ending)),
            streamed(start(**self.USED), block(0, EMPTY, "Sure"), end({"output_tokens": 7}, **ending)),
            streamed(
                start(**self.USED),
                block(0, {"type": "redacted_thinking", "data": "AAAA"}),
                end({"output_tokens": 7}, **ending),
            ),
        ):
            assert reading.usage == Usage(106, 7)
            assert cost(reading) == 106 * 10 + 7 * 50

    def test_of_which_the_middle_was_not_read_is_billed(self) -> None:
        body = message({"type": "text", "text": "A" * 300_000}, model=FABLE, **stopped("cyber"))
        reading = whole({**body, "usage": {"input_tokens": 106, "output_tokens": 7}})
        assert reading.usage == Usage(106, 7)

    def test_is_read_wherever_its_stream_is_cut_into_pieces(self) -> None:
        body = start(**self.USED) + end({"output_tokens": 1}, **stopped("cyber"))
        for at in range(len(body)):
            reading = read(tapped(Family.ANTHROPIC, SSE), cut(body, [at]))
            assert (reading.outcome, reading.usage) == ("complete", Usage(106, 1, billable=False))

    def test_does_not_make_what_was_run_beside_it_free(self) -> None:
        compaction = run("compaction", None, 900, 80)
        used = {**self.USED, "iterations": [compaction, run("message", None, 106, 1)]}
        reading = whole(message(model=FABLE, usage=used, **stopped("cyber")))
        assert reading.usage == Usage(900, 80, 0, 0)
        assert cost(reading) == 900 * 10 + 80 * 50

    def test_of_another_stop_nothing_is_free(self) -> None:
        assert cost(whole(message(model=FABLE, usage=self.USED))) == 1110


class TestFallbacks:
    PAID = 412 * 5 + 264 * 25

    @pytest.mark.parametrize(
        ("category", "declined"),
        [("cyber", 0), (None, 0), ("general_harms", 0), ("bio", 5350), ("frontier_llm", 5350), ("new", None)],
    )
    def test_one_that_declined_before_any_output_is_billed_by_its_category(
        self, category: str | None, declined: int | None
    ) -> None:
        used = usage(run("message", FABLE, 535, 0), SERVED)
        for reading in (
            whole(message(handover(category=category), TEXT, usage=used)),
            streamed(
                start(OPUS, input_tokens=412, output_tokens=1),
                block(0, handover(category=category)),
                block(1, EMPTY, "Hi!"),
                end(used),
            ),
        ):
            assert (reading.model, reading.outcome) == (OPUS, "complete")
            assert cost(reading) == (None if declined is None else self.PAID + declined)
            tokens = 412 + 535 if declined else 412
            assert reading.usage is not None
            assert (reading.usage.input_tokens, reading.usage.output_tokens) == (tokens, 264)
            assert reading.usage.billable

    def test_whether_it_is_billed_is_not_known_where_its_category_is_not_told(self) -> None:
        used = usage(run("message", FABLE, 535, 0), SERVED)
        untold = {name: value for name, value in handover().items() if name != "trigger"}
        for content in ([untold, TEXT], [TEXT]):
            assert cost(whole(message(*content, usage=used))) is None

    def test_one_that_may_have_made_output_may_be_billed(self) -> None:
        used = usage(run("message", FABLE, 535, 1), SERVED)
        assert cost(whole(message(handover(), TEXT, usage=used))) is None

    DECLINED = run("message", FABLE, 1000, 427, cache_read_input_tokens=300)
    BOTH = PAID + 1000 * 10 + 427 * 50 + 300
    STREAM = (
        start(
            input_tokens=1000,
            cache_read_input_tokens=300,
            cache_creation_input_tokens=4369,
            cache_creation={"ephemeral_5m_input_tokens": 4369, "ephemeral_1h_input_tokens": 0},
            output_tokens=3,
        ),
        block(0, EMPTY, "Part one"),
        block(1, handover()),
        block(2, EMPTY, " part two"),
        end(usage(DECLINED, SERVED)),
    )

    def test_one_that_had_made_output_is_billed_at_its_own_prices(self) -> None:
        for reading in (
            whole(message(handover(), TEXT, usage=usage(self.DECLINED, SERVED))),
            streamed(*self.STREAM),
        ):
            assert reading.usage == Usage(1412, 691, 300, 0)
            assert [part.model for part in reading.parts] == [OPUS, FABLE]
            assert cost(reading) == self.BOTH

    def test_they_are_read_wherever_their_stream_is_cut_into_pieces(self) -> None:
        body = b"".join(self.STREAM)
        for at in range(len(body)):
            assert cost(read(tapped(Family.ANTHROPIC, SSE), cut(body, [at]))) == self.BOTH

    def test_what_the_totals_alone_tell_is_the_answering_models(self) -> None:
        totals = {
            "server_tool_use": {"web_search_requests": 2},
            "output_tokens_details": {"thinking_tokens": 9},
        }
        reading = whole(message(handover(), TEXT, usage=usage(self.DECLINED, SERVED, **totals)))
        answering, declined = [part.usage for part in reading.parts]
        assert answering == Usage(412, 264, 0, 0, None, 9, server_tool_uses={"web_search_requests": 2})
        assert declined == Usage(1000, 427, 300, 0)

    @pytest.mark.parametrize("alias", [OPUS, f"{OPUS}-20260601", f"{OPUS}-latest", f"{OPUS}@20260601", None])
    def test_runs_between_the_answering_models_tools_are_in_its_totals(self, alias: str | None) -> None:
        runs = [self.DECLINED, run("message", alias, 100, 20), run("fallback_message", OPUS, 312, 244)]
        totals = {"input_tokens": 412, "output_tokens": 264}
        reading = whole(message(handover(), TEXT, usage=usage(*runs, **totals)))
        assert cost(reading) == self.BOTH

    def test_the_same_holds_where_nobody_declined(self) -> None:
        runs = [run("message", f"{OPUS}-20260601", 100, 20), run("fallback_message", OPUS, 312, 244)]
        totals = {"input_tokens": 412, "output_tokens": 264}
        reading = whole(message(TEXT, usage=usage(*runs, **totals)))
        assert (cost(reading), reading.parts) == (self.PAID, ())

    def test_a_conversation_that_had_fallen_back_before_is_priced_by_its_totals(self) -> None:
        assert cost(whole(message(TEXT, usage=usage(SERVED)))) == self.PAID
        reading = streamed(start(OPUS, input_tokens=412), block(0, EMPTY, "Hi"), end(usage(SERVED)))
        assert (reading.model, cost(reading)) == (OPUS, self.PAID)

    def test_another_name_of_the_only_model_is_a_gateways(self) -> None:
        used = usage(run("message", OPUS, 412, 264))
        reading = whole(message(TEXT, model=SONNET, usage=used))
        assert (cost(reading), reading.parts) == (412 * 2 + 264 * 10, ())
        used = usage(
            run("message", OPUS, 12, 4), run("message", OPUS, 400, 260), input_tokens=412, output_tokens=264
        )
        assert cost(whole(message(TEXT, model=SONNET, usage=used))) == 412 * 2 + 264 * 10

    @pytest.mark.parametrize(
        ("first", "last", "paid"),
        [
            ("cyber", "cyber", 0),
            ("bio", "cyber", 5350),
            ("cyber", "bio", 400 * 5 + 100 * 2),
            ("bio", "bio", 5350 + 400 * 5 + 100 * 2),
        ],
    )
    def test_where_all_decline_each_is_billed_by_its_category(self, first: str, last: str, paid: int) -> None:
        runs = [
            run("message", FABLE, 535, 0),
            run("message", OPUS, 400, 0),
            run("fallback_message", SONNET, 100, 0),
        ]
        content = [handover(category=first), handover(OPUS, SONNET, last)]
        ending = stopped(last)
        for reading in (
            whole(message(*content, model=SONNET, usage=usage(*runs), **ending)),
            streamed(
                start(SONNET, input_tokens=100),
                block(0, content[0]),
                block(1, content[1]),
                end(usage(*runs), **ending),
            ),
        ):
            assert (cost(reading), reading.stop_reason) == (paid, "refusal")
            assert reading.usage is not None
            assert reading.usage.billable is (paid > 0)

    def test_a_last_one_that_said_nothing_is_not_taken_to_have_said_what_was_said_before_it(self) -> None:
        runs = [self.DECLINED, run("fallback_message", OPUS, 412, 0)]
        reading = streamed(*self.STREAM[:3], end(usage(*runs), **stopped("cyber")))
        assert cost(reading) == self.BOTH - self.PAID
        assert [part.model for part in reading.parts] == [FABLE]
        said = streamed(*self.STREAM[:4], end(usage(self.DECLINED, SERVED), **stopped("cyber")))
        assert cost(said) == self.BOTH

    def test_one_that_ran_tools_before_it_declined_ran_nobody_knows_how_many(self) -> None:
        runs = [run("message", FABLE, 100, 20), run("message", FABLE, 200, 0), SERVED]
        assert cost(whole(message(handover(), TEXT, usage=usage(*runs)))) is None

    def test_how_fast_each_ran_is_not_known(self) -> None:
        used = usage(self.DECLINED, SERVED, speed="fast")
        reading = whole(message(handover(), TEXT, usage=used))
        assert all(part.usage is None or part.usage.more for part in reading.parts)
        free = usage(run("message", FABLE, 535, 0), SERVED, speed="fast")
        assert whole(message(handover(), TEXT, usage=free)).usage == Usage(412, 264, 0, 0, more=True)

    def test_one_that_is_not_among_the_runs_was_billed_nobody_knows_what(self) -> None:
        totals = {"input_tokens": 412, "output_tokens": 264}
        assert cost(whole(message(handover(), TEXT, usage=usage(SERVED)))) is None
        assert cost(whole(message(handover(), TEXT, usage=totals))) is None
        reading = streamed(start(input_tokens=412), *self.STREAM[1:4], end(totals))
        assert reading.usage == Usage(412, 264, more=True)

    def test_a_compaction_was_made_by_nobody_knows_which(self) -> None:
        runs = [run("compaction", None, 900, 80), self.DECLINED, SERVED]
        reading = whole(message(handover(), TEXT, usage=usage(*runs)))
        assert [part.model for part in reading.parts] == [OPUS, FABLE, None]
        assert cost(reading) is None

    def test_the_first_token_is_told_behind_a_block_that_begins_with_content(self) -> None:
        tap = tapped(Family.ANTHROPIC, SSE)
        tap.feed(start(input_tokens=1))
        tap.feed(block(0, {"type": "redacted_thinking", "data": "AAAA"}))
        assert not tap.first_token
        tap.feed(block(1, EMPTY, "Hi"))
        assert tap.first_token


class TestCredits:
    # What the other model had in its cache was moved from the writes to the reads.
    USED = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 4369}
    REDEEMED = {"fallback_credit": {"status": {"type": "redeemed"}}}

    @pytest.mark.parametrize("split", [{}, {"cache_creation": {"ephemeral_5m_input_tokens": 0}}])
    def test_one_that_was_redeemed_is_in_the_counts(self, split: dict[str, Any]) -> None:
        used = {**self.USED, **self.REDEEMED, **split, "cache_creation_input_tokens": 0}
        assert cost(whole(message(TEXT, usage=used))) == 10 * 5 + 5 * 25 + 4369

    @pytest.mark.parametrize(
        ("written", "split", "short", "long", "more"),
        [
            (0, (4369, 0), 0, 0, False),
            (0, (4000, 369), 0, 0, False),
            (100, (4369, 0), 100, 0, False),
            (100, (0, 4369), 0, 100, False),
            (100, (4000, 369), 4000, 369, True),
        ],
    )
    def test_a_split_that_has_more_than_the_total_is_older(
        self, written: int, split: tuple[int, int], short: int, long: int, more: bool
    ) -> None:
        names = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
        parts = dict(zip(names, split, strict=True))
        used = {**self.USED, "cache_creation_input_tokens": written, "cache_creation": parts}
        assert whole(message(TEXT, usage=used)).usage == Usage(10, 5, 4369, short, long, more=more)
