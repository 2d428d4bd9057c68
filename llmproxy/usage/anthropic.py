"""Anthropic's answers: messages, whole and streamed, and counted tokens.

The shapes are those of https://platform.claude.com/docs/en/api/messages, as the ``anthropic`` SDK types them. In a stream,
usage is told at the start and again at the end, and each time for all that was before: of each field, the last value that is
not null counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmproxy.usage.fields import Document, count, part, parts, text
from llmproxy.usage.model import Part, Usage
from llmproxy.usage.reader import Event, Reader, error_type
from llmproxy.usage.runs import UNTOLD, Answer, category_of, is_one_run, runs, tokens, total

# Blocks of these types begin empty, and what they have comes in deltas.
_EMPTY_AT_FIRST = frozenset({"text", "thinking"})


class AnthropicReader(Reader):
    """Reads Anthropic's answers."""

    # Of the class until they are set, as those of Reader.
    _counted: int | None = None
    _made_output = False  # by the model that goes on to answer
    _refusal: str | None = UNTOLD
    _handovers: Sequence[str | None] = ()

    def __init__(self) -> None:
        self._usage: dict[str, Any] = {}

    def ordinary(self, data: bytes) -> bool:
        """Tell whether nothing in these bytes is worth a closer look, fast."""
        # `in` takes twice as long as `find`. What a model says is rarely taken for one of these, as the quotes in it have
        # backslashes.
        find = data.find
        return (
            self._made_output
            and self.first_token
            and find(b'"message_') < 0
            and find(b'"error"') < 0
            and find(b'"fallback"') < 0
        )

    def event(self, event: Event) -> None:
        """Take an event that is not ordinary."""
        document = event.document()
        kind = document.get("type")
        if kind == "message_start":
            self._take_message(part(document.get("message")))
        elif kind == "message_delta":
            self._take_message({**part(document.get("delta")), "usage": document.get("usage")})
        elif kind == "message_stop":
            self.ended = True
        elif kind == "content_block_delta":
            delta = part(document.get("delta"))
            if any(delta[key] for key in delta if key != "type"):
                self.first_token = self._made_output = True
        elif kind == "content_block_start":
            self._take_block(part(document.get("content_block")))
        elif kind == "error":
            self.error = error_type(document.get("error") or kind, "type")

    def answer(self, document: Document) -> None:
        """Take a whole answer: a message, counted tokens, or an error."""
        self.error = error_type(document.get("error"), "type")
        self._take_message(document)
        for block in parts(document.get("content")):
            self._take_block(block, is_whole=True)
        # What is too large to be read whole has said something.
        self._made_output = self._made_output or "content" not in document
        self._counted = count(document.get("input_tokens"))

    def usage(self) -> Usage | None:
        """What was told of each field last, of each run of a model that is billed."""
        usage = tokens(self._usage) if self._is_one_run() else total(self._runs())
        if usage.known:
            return usage
        return None if self._counted is None else Usage(input_tokens=self._counted, billable=False)

    def parts(self) -> Sequence[Part]:
        """The runs of models that are billed, where that is another than the one that answered, or more."""
        if self._is_one_run():
            return ()
        found = self._runs()
        return found if len(found) > 1 or found[0].model != self.model else ()

    def _is_one_run(self) -> bool:
        """Tell whether the totals are all there is to be read, as of most answers."""
        return (
            self.stop_reason != "refusal"
            and not self._handovers
            and is_one_run(self._usage.get("iterations"))
        )

    def _runs(self) -> list[Part]:
        return runs(
            Answer(
                model=self.model,
                service_tier=self.service_tier,
                usage=self._usage,
                refused=self.stop_reason == "refusal",
                refusal=self._refusal,
                made_output=self._made_output,
                handovers=self._handovers,
            )
        )

    def _take_block(self, block: Document, is_whole: bool = False) -> None:
        kind = block.get("type")
        if kind == "fallback":
            # Another model goes on from here: than that of message_start, but not than that of a whole message.
            if not is_whole:
                self.model = text(part(block.get("to")).get("model")) or self.model
            self._handovers = (*self._handovers, category_of(block.get("trigger")))
            self._made_output = False
        elif is_whole or kind not in _EMPTY_AT_FIRST:
            self._made_output = True

    def _take_message(self, message: Document) -> None:
        usage = part(message.get("usage"))
        for name, value in usage.items():
            if isinstance(value, dict):
                self._usage[name] = {**part(self._usage.get(name)), **_told(value)}
            elif value is not None:
                self._usage[name] = value
        self.model = text(message.get("model")) or self.model
        self.response_id = text(message.get("id")) or self.response_id
        self.stop_reason = text(message.get("stop_reason")) or self.stop_reason
        if self.stop_reason == "refusal" and "stop_details" in message:
            details = message["stop_details"]
            self._refusal = None if details is None else category_of(details)
        # What is made faster has other prices, so it is told like a tier; Anthropic has a field of its own for it.
        fast = "fast" if usage.get("speed") == "fast" else None
        self.service_tier = fast or self.service_tier or text(usage.get("service_tier"))


def _told(fields: Document) -> Document:
    return {name: value for name, value in fields.items() if value is not None}
