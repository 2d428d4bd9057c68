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

# The types of iterations, each a run of a model: those that the totals are of, and those that are billed beside them.
# https://platform.claude.com/docs/en/build-with-claude/compaction and .../agents-and-tools/tool-use/advisor-tool
_IN_TOTALS = ("message", "fallback_message")
_BESIDE_TOTALS = ("compaction", "advisor_message")


class AnthropicReader(Reader):
    """Reads Anthropic's answers."""

    _counted: int | None = None

    def __init__(self) -> None:
        self._usage: dict[str, Any] = {}

    def ordinary(self, data: bytes) -> bool:
        """Tell whether nothing in these bytes is worth a closer look, fast."""
        # `in` takes twice as long as `find`. What a model says is rarely taken for one of these, as the quotes in it have
        # backslashes.
        find = data.find
        return (
            self.first_token and find(b'"message_') < 0 and find(b'"error"') < 0 and find(b'"fallback"') < 0
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
            self.first_token = self.first_token or any(delta[key] for key in delta if key != "type")
        elif kind == "content_block_start":
            # Another model than the one of message_start goes on from here.
            block = part(document.get("content_block"))
            if block.get("type") == "fallback":
                self.model = text(part(block.get("to")).get("model")) or self.model
        elif kind == "error":
            self.error = error_type(document.get("error") or kind, "type")

    def answer(self, document: Document) -> None:
        """Take a whole answer: a message, counted tokens, or an error."""
        self.error = error_type(document.get("error"), "type")
        self._take_message(document)
        self._counted = count(document.get("input_tokens"))

    def usage(self) -> Usage | None:
        """What was told of each field last."""
        usage = _tokens(self._usage)
        for ran in self._beside():
            if ran.usage is not None:
                usage += ran.usage
        if usage.known:
            return usage
        return None if self._counted is None else Usage(input_tokens=self._counted, billable=False)

    def parts(self) -> Sequence[Part]:
        """The runs of models that it took, where that is more than one."""
        beside = self._beside()
        return (Part(self.model, self.service_tier, _tokens(self._usage)), *beside) if beside else ()

    def _beside(self) -> list[Part]:
        """What was run beside what the totals are of: they are of the model that answers, and of each of its turns."""
        return [
            self._run(iteration)
            for iteration in parts(self._usage.get("iterations"))
            if iteration.get("type") not in _IN_TOTALS
        ]

    def _run(self, iteration: Document) -> Part:
        kind = iteration.get("type")
        own = self.model if kind == "compaction" else None
        model = text(iteration.get("model")) or own
        usage = _tokens({"inference_geo": self._usage.get("inference_geo"), **iteration})
        return Part(model, self.service_tier, usage if kind in _BESIDE_TOTALS else None)

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
        # What is made faster has other prices, so it is told like a tier; Anthropic has a field of its own for it.
        fast = "fast" if usage.get("speed") == "fast" else None
        self.service_tier = fast or self.service_tier or text(usage.get("service_tier"))


def _tokens(usage: Document) -> Usage:
    """Read a ``usage``, or what is told of one of its iterations."""
    split = part(usage.get("cache_creation"))
    short, long = count(split.get("ephemeral_5m_input_tokens")), count(split.get("ephemeral_1h_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    if written is not None:
        # The split may be missing, or be older than the total.
        short = max(short or 0, written - (long or 0))
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
    )


def _told(fields: Document) -> Document:
    return {name: value for name, value in fields.items() if value is not None}
