"""What is known of the tokens that an answer used (:class:`Usage`), and all that was read out of an answer (:class:`Reading`).

What a provider did not say is ``None``, never 0: a bill of which a part is unknown must not look like a small one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import attrs

# Where the usage of an exchange comes from: the provider said it; it did not; the answer was too large, or not readable, to be
# accounted; such a request costs nothing; it opened a socket, whose turns are told by themselves; or ("none") nobody looked, as
# there is nothing to be read in such an answer.
Source = Literal["reported", "absent", "too_large", "undecodable", "free", "turns", "none"]

# How an answer ended: with what its API ends an answer with; before that; or with an error, be it one after a status of 200.
Outcome = Literal["complete", "cut", "failed"]


# Both are made for every answer, and `frozen` would more than double what that costs; they are never changed all the same.


@attrs.define
class Usage:
    """The tokens of one answer, in parts that do not overlap and that a price can be put on.

    ``input_tokens``, ``cache_read_tokens`` and both kinds of cache writes add up to all that was put in. The other counts are
    parts of one of those: audio and images of what stands before them in their names, reasoning of the output.

    :ivar input_tokens: neither read from a cache nor written to one.
    :ivar output_tokens: all output, reasoning included.
    :ivar cache_write_5m_tokens: written to a cache at its usual, shorter time to live; also where no time was told.
    :ivar cache_write_1h_tokens: written to a cache for an hour.
    :ivar reasoning_tokens: part of ``output_tokens``.
    :ivar input_audio_tokens: part of ``input_tokens``; so are the ``input_image_tokens``.
    :ivar cached_audio_tokens: part of ``cache_read_tokens``; so are the ``cached_image_tokens``.
    :ivar server_tool_uses: how often the provider's own tools were run, by names such as ``web_search_requests``.
    :ivar billable: it costs something; counting tokens beforehand does not.
    :ivar us_only: it was kept within the US, for which Anthropic has a surcharge.
    :ivar video: some of the tokens are of video; how many is not told here.
    :ivar more: something is billed beyond the tokens and uses that are told here, so that no price list tells what it costs.
    :ivar told_cost: what the provider itself says that all of it cost, in micro-dollars, not rounded.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    cached_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    cached_image_tokens: int | None = None
    server_tool_uses: Mapping[str, int] | None = None
    billable: bool = True
    us_only: bool = False
    video: bool = False
    more: bool = False
    told_cost: Decimal | None = None

    @property
    def known(self) -> bool:
        """Whether anything was reported at all."""
        return (
            self.input_tokens is not None
            or self.server_tool_uses is not None
            or self.told_cost is not None
            or any(getattr(self, name) is not None for name in COUNTS)
        )

    def __add__(self, other: Usage) -> Usage:
        """The usage of both: what is unknown of one of them counts as nothing, of both it stays unknown.

        A cost is told of the sum only where it is of each that used anything; else no price list tells it either.
        """
        sums: dict[str, Any] = {name: _sum(getattr(self, name), getattr(other, name)) for name in COUNTS}
        mine, its = self.server_tool_uses, other.server_tool_uses
        if mine is not None or its is not None:
            mine, its = mine or {}, its or {}
            sums["server_tool_uses"] = {
                name: mine.get(name, 0) + its.get(name, 0) for name in {**mine, **its}
            }
        told = _told_of_both(self, other)
        told_of_one = told is None and (self.told_cost is not None or other.told_cost is not None)
        return Usage(
            **sums,
            billable=self.billable or other.billable,
            us_only=self.us_only or other.us_only,
            video=self.video or other.video,
            more=self.more or other.more or told_of_one,
            told_cost=told,
        )


# The names of the fields that are numbers of tokens.
COUNTS = tuple(field.name for field in attrs.fields(Usage) if field.name.endswith("_tokens"))


@attrs.define
class Part:
    """One of several runs of models that an answer took, each of which is billed by itself.

    :ivar model: that ran, as the provider named it.
    :ivar service_tier: in the provider's word.
    :ivar usage: ``None`` where it is not known.
    """

    model: str | None
    service_tier: str | None
    usage: Usage | None


@attrs.define
class Reading:
    """What a tap found in an answer. Texts are ASCII, printable and short, whatever was sent.

    :ivar model: the model that answered, as the provider named it.
    :ivar stop_reason: why the model stopped, in the provider's word.
    :ivar service_tier: in the provider's word: ``priority``, ``flex``, ``batch`` and the like.
    :ivar usage: given where ``source`` is ``"reported"`` or ``"free"``, and only there.
    :ivar error: the type of the error, where ``outcome`` is ``"failed"``.
    :ivar parts: where it took several runs of models; the ``usage`` is the sum of what is known of them.
    """

    model: str | None
    response_id: str | None
    stop_reason: str | None
    service_tier: str | None
    usage: Usage | None
    source: Source
    outcome: Outcome
    error: str | None = None
    parts: Sequence[Part] = ()


def unread(source: Source, whole: bool) -> Reading:
    """The reading of an answer that was not read.

    :param source: why.
    :param whole: nothing of it is missing, as far as can be told.
    """
    return Reading(None, None, None, None, None, source, "complete" if whole else "cut")


def free(whole: bool) -> Reading:
    """The reading of what costs nothing, whatever was answered, if anything was.

    :param whole: nothing of the answer is missing.
    """
    return Reading(None, None, None, None, Usage(billable=False), "free", "complete" if whole else "cut")


def _sum(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def _told_of_both(one: Usage, other: Usage) -> Decimal | None:
    if one.told_cost is None or other.told_cost is None:
        known, rest = (other, one) if one.told_cost is None else (one, other)
        return None if rest.known or rest.more else known.told_cost
    return one.told_cost + other.told_cost
