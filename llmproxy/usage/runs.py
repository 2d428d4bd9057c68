"""The runs of models that Anthropic bills for an answer, and which of them it does not, or not as the totals say.

Its pages below https://platform.claude.com/docs/en tell how:

- build-with-claude/refusals-and-fallback: where a model declines and another answers in its place, the totals are of the one
  that answered alone. ``usage.iterations`` has each attempt, and every one that made output is billed, at the rates of its
  model. A refusal before any output is billed in some categories, and not in others, on every platform that sells Claude.
- build-with-claude/fallback-credit: what the model that answers need not pay for its cache is in the counts: what would have
  been written to it stands there as read. So they are priced as they are.
- build-with-claude/compaction and agents-and-tools/tool-use/advisor-tool: these are billed beside the totals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from llmproxy.usage.fields import Document, count, part, parts, text
from llmproxy.usage.model import Part, Usage

# The types of iterations: those that the totals are of, unless it is a model's that declined, and those beside them.
_FALLBACK = "fallback_message"
_IN_TOTALS = ("message", _FALLBACK)
_BESIDE_TOTALS = ("compaction", "advisor_message")

# Why a model refused, for which it is billed though it made no output; and why it may have, and is not billed, `None` being no
# category. It has been so since September 2026, and others may come.
_BILLED = frozenset({"bio", "frontier_llm", "reasoning_extraction"})
_NOT_BILLED = frozenset({None, "cyber", "general_harms"})
_FAST = "fast"  # a speed that has prices of its own, and is told in the place of a tier
UNTOLD = ""  # a category that nobody knows

# One model's names differ in this: claude-x, claude-x-latest, claude-x-20260601, and claude-x@20260601 in Google's cloud.
_VERSION = re.compile(r"(?:[-@](?:\d{8}|latest|default))?\Z")


@attrs.define
class Answer:
    """What a message tells of how it came to be.

    :ivar usage: as it was told, each field the last time.
    :ivar refusal: the category of the refusal with which it ended.
    :ivar made_output: the model that it is of has said something; where others declined, behind the last of them.
    :ivar handovers: for each model that declined, the category for which it did.
    """

    model: str | None
    service_tier: str | None
    usage: Document
    refused: bool
    refusal: str | None
    made_output: bool
    handovers: Sequence[str | None]


def category_of(details: object) -> str | None:
    """The category of a refusal; ``None`` where it is said to have none, and :data:`UNTOLD` where nothing is said."""
    if not isinstance(details, dict) or "category" not in details:
        return UNTOLD
    category = details["category"]
    return None if category is None else text(category) or UNTOLD


def is_one_run(iterations: object) -> bool:
    """Tell whether an answer that is no refusal took one run of a model, by the ``iterations`` that its usage has, if any."""
    return not iterations or (
        isinstance(iterations, list) and len(iterations) == 1 and part(iterations[0]).get("type") == "message"
    )


def runs(answer: Answer) -> list[Part]:
    """The runs that are billed, at least one. Where it is not known what is billed, its usage is unknown or has ``more``."""
    iterations = parts(answer.usage.get("iterations"))
    declined = _declined(answer, iterations)
    answering = _answering(answer, iterations, declined)
    billed = _is_billed_for_refusing(answer, answering) if answer.refused else True
    # More may have declined than are told; and how fast each of several models ran is not.
    unsure = len(answer.handovers) > len(declined) or (bool(declined) and answer.service_tier == _FAST)
    for usage in answering:
        usage.more = usage.more or unsure or billed is None
    found = [Part(answer.model, answer.service_tier, usage) for usage in answering if billed is not False]
    found += _billed_of(answer, declined)
    found += [
        _beside(answer, iteration, bool(declined))
        for iteration in iterations
        if iteration.get("type") not in _IN_TOTALS
    ]
    nothing = attrs.evolve(tokens(answer.usage), billable=False)
    return found or [Part(answer.model, answer.service_tier, nothing)]


def total(found: Sequence[Part]) -> Usage:
    """All that is known to have been used by some runs."""
    used = [run.usage for run in found if run.usage is not None]
    return sum(used[1:], used[0]) if used else Usage()


def tokens(usage: Document) -> Usage:
    """Read a ``usage``, or what is told of one of its iterations."""
    split = part(usage.get("cache_creation"))
    short, long = count(split.get("ephemeral_5m_input_tokens")), count(split.get("ephemeral_1h_input_tokens"))
    written, unclear = count(usage.get("cache_creation_input_tokens")), False
    if written is not None:
        # The split may be missing, or be older than the total.
        told = (short or 0) + (long or 0)
        unclear = 0 < written < told and bool(short and long)
        if written >= told:
            short = (short or 0) + written - told
        elif not unclear:
            short, long = written if short else 0, written if long else long
    uses = {name: count(value) for name, value in part(usage.get("server_tool_use")).items() if text(name)}
    return Usage(
        input_tokens=count(usage.get("input_tokens")),
        output_tokens=count(usage.get("output_tokens")),
        cache_read_tokens=count(usage.get("cache_read_input_tokens")),
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
        reasoning_tokens=count(part(usage.get("output_tokens_details")).get("thinking_tokens")),
        server_tool_uses={name: number for name, number in uses.items() if number} or None,
        us_only=usage.get("inference_geo") == "us",
        more=unclear,
    )


def _declined(answer: Answer, iterations: Sequence[Document]) -> list[list[Document]]:
    """The attempts of models that declined, in their order, each with its runs: several where it used tools."""
    answered = [text(each.get("model")) for each in iterations if each.get("type") == _FALLBACK]
    if not answered and not answer.handovers:
        return []  # another name may be a gateway's
    own = _unversioned((answered[-1] if answered else None) or answer.model)
    attempts: list[list[Document]] = []
    model = None
    for iteration in iterations:
        name = _unversioned(text(iteration.get("model")))
        if iteration.get("type") != "message" or name in (None, own):
            continue
        if name != model:
            attempts.append([])
        attempts[-1].append(iteration)
        model = name
    return attempts


def _answering(
    answer: Answer, iterations: Sequence[Document], declined: Sequence[Sequence[Document]]
) -> list[Usage]:
    """What the model that answered took: the totals, or, where others declined, its own runs.

    The totals of a stream may still have parts that its start told of a model that declined since then.
    """
    totals = tokens(answer.usage)
    others = [iteration for attempt in declined for iteration in attempt]
    its = [each for each in iterations if each.get("type") in _IN_TOTALS and each not in others]
    if not others or not its:
        return [totals]
    read = [_run(answer, iteration) for iteration in its]
    read[-1].reasoning_tokens, read[-1].server_tool_uses = totals.reasoning_tokens, totals.server_tool_uses
    return read


def _billed_of(answer: Answer, declined: Sequence[Sequence[Document]]) -> list[Part]:
    """What is billed, or may be, of those that declined."""
    are_told = len(answer.handovers) == len(declined)
    found: list[Part] = []
    for place, attempt in enumerate(declined):
        output = sum(count(iteration.get("output_tokens")) or 0 for iteration in attempt)
        category = answer.handovers[place] if are_told else UNTOLD
        billed = _is_billed(category, output > 1 or (None if output else False))
        # Several runs of it used tools, of which the totals tell nothing. How fast a model ran is told of one alone: where that
        # was not fast, none is taken to have been.
        is_known = billed and len(attempt) == 1 and answer.service_tier != _FAST
        if billed is False:
            continue
        found += [
            Part(
                model=text(iteration.get("model")),
                service_tier=answer.service_tier,
                usage=_run(answer, iteration) if is_known else None,
            )
            for iteration in attempt
        ]
    return found


def _beside(answer: Answer, iteration: Document, is_others: bool) -> Part:
    kind = iteration.get("type")
    # A compaction is the requested model's, which did not answer where others declined.
    own = answer.model if kind == "compaction" and not is_others else None
    usage = _run(answer, iteration) if kind in _BESIDE_TOTALS else None
    return Part(text(iteration.get("model")) or own, answer.service_tier, usage)


def _run(answer: Answer, iteration: Document) -> Usage:
    return tokens({"inference_geo": answer.usage.get("inference_geo"), **iteration})


def _is_billed_for_refusing(answer: Answer, answering: Sequence[Usage]) -> bool | None:
    output = sum(usage.output_tokens or 0 for usage in answering)
    # 1 may be told where there is none:
    # https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-fallback-credit.html
    return _is_billed(answer.refusal, answer.made_output or (None if output > 1 else False))


def _is_billed(category: str | None, made_output: bool | None) -> bool | None:
    """Tell whether a model that refused is billed, ``None`` where that is not known.

    :param made_output: it said something before; ``None`` where that is not known.
    """
    if made_output or category in _BILLED:
        return True
    return None if made_output is None or category not in _NOT_BILLED else False


def _unversioned(model: str | None) -> str | None:
    return None if model is None else _VERSION.sub("", model)
