"""The messages of a WebSocket of Gemini's Live API, whose turns run one after the other (https://ai.google.dev/api/live).

Where a turn begins and ends, and what it used:

- It begins with the first that the model makes for it (``modelTurn``, ``toolCall``), or with usage, which some models tell of a
  prompt before they answer it. Transcripts begin none: they come in no order with the rest, also behind a turn's end.
- ``turnComplete`` ends it, also where it was interrupted: the model then goes through ``interrupted > turn_complete``. Work in
  the background of which nothing is said ends with the ``interactionStatus`` of ``IDLE``
  (https://ai.google.dev/gemini-api/docs/live-api/thinking).
- A ``toolCall`` does not: what the model says once the client has answered it belongs to the same turn.
- ``usageMetadata`` stands beside any other content, or alone. Each tells what one run of the model took, not the session so far
  (https://github.com/pydantic/pydantic-ai/pull/7269), and each run is billed, with all of its context anew: their sum is what
  comes on the bill (https://discuss.ai.google.dev/t/173248). A turn has several where tools are called, where the model thinks
  in the background, and where the prompt is told first and the answer piece by piece (gemini-3.1-flash-live-preview). A second
  one of the same prompt is the first one again, further on: another run would have read what the first had made, too.
- Where it comes alone (https://github.com/BerriAI/litellm/pull/26590), behind a turn that ended without any, it is that turn's.

No message names a model; the client's first one does (:mod:`llmproxy.asked_model.setup`). Live models cost the same at any
length of their context, so the runs of a turn need no prices of their own. Tokens of which no modality is told, as of some of
each prompt (https://github.com/pipecat-ai/pipecat/pull/5052), count as text.
"""

from __future__ import annotations

from typing import Generic

import attrs

from llmproxy.usage.fields import Document, count, part, text
from llmproxy.usage.gemini import queries_of, tier_of, usage_of
from llmproxy.usage.json_text import document
from llmproxy.usage.model import Reading, Source, Usage, unread
from llmproxy.usage.reader import MessageBody
from llmproxy.usage.turns import T, Turns

_MOST_QUERIES = 1000  # of a turn; there are a few


@attrs.define
class _Turn(Generic[T]):
    """A turn that is not over.

    :ivar had_token: a first piece of what the model makes has passed.
    :ivar stopped: the model is done with it, and what it used was not told yet.
    :ivar run: what was told of the run of the model under way, and ``prompt``, how long its prompt is.
    :ivar earlier: what the runs before took.
    :ivar queries: hashes of what the web was searched for.
    """

    turn: T
    had_token: bool = False
    stopped: bool = False
    prompt: int | None = None
    run: Usage = attrs.Factory(Usage)
    earlier: Usage = attrs.Factory(Usage)
    queries: set[int] = attrs.Factory(set)
    service_tier: str | None = None
    stop_reason: str | None = None

    def take(self, counts: Document, usage: Usage) -> None:
        """Take a ``usageMetadata``, and what it tells."""
        self.service_tier = tier_of(counts) or self.service_tier
        prompt = count(counts.get("promptTokenCount"))
        if not prompt:
            self.run += usage
            return
        if prompt != self.prompt:
            self.earlier += self.run
        self.prompt, self.run = prompt, usage

    def take_reasons(self, content: Document) -> None:
        """Take why it stops, and what was searched for; pieces may repeat it."""
        if content.get("interrupted") is True:
            self.stop_reason = "interrupted"
        self.stop_reason = text(content.get("turnCompleteReason")) or self.stop_reason
        if len(self.queries) < _MOST_QUERIES:
            self.queries.update(map(hash, queries_of(content)[:_MOST_QUERIES]))

    @property
    def usage(self) -> Usage | None:
        """What it used, as far as that was told; ``None`` where nothing was."""
        usage = self.earlier + self.run
        return usage if usage.known else None

    def reading(self) -> Reading:
        """Sum up."""
        usage = self.usage
        if usage is not None and self.had_token and not usage.output_tokens:
            usage.output_tokens = None  # only the prompt was told of, though there is an answer
        if usage is not None and self.queries:
            usage.server_tool_uses = {"web_search_requests": len(self.queries)}
        return Reading(
            model=None,
            response_id=None,
            stop_reason=self.stop_reason,
            service_tier=self.service_tier,
            usage=usage,
            source="absent" if usage is None else "reported",
            outcome="complete" if self.stopped else "cut",
        )


class LiveMessages(MessageBody, Generic[T]):
    """Takes the messages of a socket, one whole message at a time, as the upstream sent it."""

    tells_first_token = False  # the turns do

    def __init__(self, turns: Turns[T]) -> None:
        self._turns = turns
        self._turn: _Turn[T] | None = None
        self._told: Document = {}  # the last usage

    def feed(self, data: bytes) -> None:
        """Take a message."""
        if self._ordinary(data):
            return
        message = document(data)
        content, counts = part(message.get("serverContent")), part(message.get("usageMetadata"))
        usage = usage_of(counts)
        made = bool(part(content.get("modelTurn")).get("parts")) or "toolCall" in message
        ends = content.get("turnComplete") is True
        idle = "IDLE" in (content.get("interactionStatus"), message.get("interactionStatus"))
        # A turn that has stopped makes nothing more; its usage may come with a second word of its end, or alone.
        goes_on = made or "generationComplete" in content
        goes_on = goes_on or (usage.known and not ends and "serverContent" in message)
        if goes_on and self._turn is not None and self._turn.stopped:
            self._end(self._turn)
        if self._turn is None:
            told_again = usage.known and not goes_on and counts == self._told
            if told_again or not (goes_on or usage.known or (ends and not idle)):
                return
            self._turn = _Turn(self._turns.begin())
        turn = self._turn
        if usage.known:
            turn.take(counts, usage)
            self._told = counts
        if made and not turn.had_token:
            turn.had_token = True
            self._turns.first_token(turn.turn)
        turn.take_reasons(content)
        if ends or (idle and not turn.had_token) or turn.stopped:
            self._stop(turn)

    def skip(self, start: bytes) -> None:
        """Take note of a message that is too large to be read.

        It may have had usage, and the end of the turn that runs: so what comes behind it is no more of that turn.
        """
        source: Source = "too_large"
        if self._turn is None:
            self._turns.end(self._turns.begin(), unread(source, False))
        else:
            turn, self._turn = self._turn, None
            self._turns.end(turn.turn, attrs.evolve(turn.reading(), usage=None, source=source))

    def close(self, whole: bool) -> Reading:
        """Take note that the socket is closed, and with it a turn that has not ended."""
        if self._turn is not None:
            self._end(self._turn)
        return unread("turns", True)

    def _ordinary(self, data: bytes) -> bool:
        """Tell whether nothing in a message is worth a closer look, fast: most are a piece of sound, behind the first."""
        find = data.find
        return (
            find(b'TokenCount"') < 0
            and find(b'"turnComplete"') < 0
            and find(b'"interrupted"') < 0
            and find(b'"interactionStatus"') < 0
            and find(b'"groundingMetadata"') < 0
            and (
                (self._turn is not None and self._turn.had_token and not self._turn.stopped)
                or (
                    find(b'"modelTurn"') < 0 and find(b'"toolCall"') < 0 and find(b'"generationComplete"') < 0
                )
            )
        )

    def _stop(self, turn: _Turn[T]) -> None:
        """The model is done with a turn, which is over once it is known what it used."""
        if turn.usage is not None:
            turn.stopped = True
            self._end(turn)
        elif not turn.stopped:
            turn.stopped = True
            self._turns.stop(turn.turn)

    def _end(self, turn: _Turn[T]) -> None:
        self._turn = None
        self._turns.end(turn.turn, turn.reading())
