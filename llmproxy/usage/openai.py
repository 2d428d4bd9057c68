"""OpenAI's answers, and those of the many who speak like it.

That is: chat completions, completions, responses, embeddings, images, audio. The shapes are those of
https://platform.openai.com/docs/api-reference, as the ``openai`` SDK types them. In a stream of chat completions, usage comes
only where it was asked for (``stream_options.include_usage``).
"""

from __future__ import annotations

from typing import Any

import attrs

from llmproxy.usage import charges
from llmproxy.usage.fields import Document, count, first, part, parts, text
from llmproxy.usage.model import Usage
from llmproxy.usage.reader import Event, Reader, error_type

# With one of these, a response, or what else is streamed, is over.
_ENDS = frozenset(
    {
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.cancelled",
        "response.done",  # Realtime's
        "image_generation.completed",
        "image_edit.completed",
        "transcript.text.done",
        "speech.audio.done",
    }
)
# So the types of events end that carry a piece of what the model makes.
_PIECES = (".delta", ".partial_image")
# It repeats the whole request, as response.created did.
_REPETITIONS = frozenset({b"response.in_progress", b"response.queued"})
# The status of a response that will not go on.
_STOPPED = frozenset({"completed", "incomplete", "failed", "cancelled"})
# Items of a response's output that are runs of OpenAI's own tools.
_TOOL_CALLS = {
    "web_search_call": "web_search_requests",
    "file_search_call": "file_search_requests",
    "code_interpreter_call": "code_interpreter_requests",
    "image_generation_call": "image_generation_requests",
}
# What a run of the web search may do that is no search.
_NO_SEARCHES = frozenset({"open_page", "find_in_page"})
# Models with this in their names search the web for each request; that has a price of its own, and is told nowhere.
_SEARCHES = "-search-"


class OpenAIReader(Reader):
    """Reads OpenAI's answers."""

    _usage: Usage | None = None

    def ordinary(self, data: bytes) -> bool:
        """Tell whether nothing in these bytes is worth a closer look, fast."""
        # `in` takes twice as long as `find`, and an expression of alternatives even longer. What a model says is rarely taken
        # for one of these, as the quotes in it have backslashes. Nearly every chunk has a finish_reason, of null.
        find = data.find
        return (
            self.first_token
            and find(b'_tokens"') < 0
            and find(b'"error"') < 0
            and find(b"[DONE]") < 0
            and find(b'.completed"') < 0
            and find(b'_reason":"') < 0
            and find(b'_reason": "') < 0
        )

    def event(self, event: Event) -> None:
        """Take an event that is not ordinary."""
        if event.data.startswith(b"[DONE]"):
            self.ended = True
        elif event.name not in _REPETITIONS:
            self._take(event.document(), is_event=True)

    def answer(self, document: Document) -> None:
        """Take a whole answer."""
        self._take(document, is_event=False)

    def usage(self) -> Usage | None:
        """The last usage that was told: where a stream tells several, each includes those before."""
        return self._usage

    def _take(self, document: Document, is_event: bool) -> None:
        kind = document.get("type", "")
        if not isinstance(kind, str):
            return
        answer = part(document.get("response")) or document
        model = text(answer.get("model")) or text(part(document.get("session")).get("model"))
        self.model = model or self.model
        self.response_id = text(answer.get("id")) or self.response_id
        self.service_tier = text(answer.get("service_tier")) or self.service_tier
        for choice in parts(answer.get("choices")):
            self.stop_reason = text(choice.get("finish_reason")) or self.stop_reason
        error = answer.get("error") or document.get("error")
        if kind or "status" in answer:
            error = self._take_status(kind, document, answer, error)
        if error:
            self.error = error_type(error, "type", "code") or self.error
        self._take_usage(answer)
        if is_event and not self.first_token:
            self.first_token = _is_piece(kind, document)

    def _take_status(self, kind: str, document: Document, answer: Document, error: Any) -> Any:
        """Take what the Responses and Realtime APIs tell of an end, and return the error."""
        self.ended = self.ended or kind in _ENDS
        status = text(answer.get("status"))
        details = part(answer.get("status_details"))  # Realtime's
        if status in _STOPPED:
            reason = part(answer.get("incomplete_details")).get("reason") or details.get("reason")
            self.stop_reason = text(reason) or status
        error = error or details.get("error")
        if kind == "error":
            return error or {"code": document.get("code")}
        return error or (status if status == "failed" else None)

    def _take_usage(self, answer: Document) -> None:
        if answer.get("object") == "response.input_tokens":
            self._usage = Usage(input_tokens=count(answer.get("input_tokens")), billable=False)
        if usage := part(answer.get("usage")):
            read = usage_of(usage)
            tells_more = not charges.FIELDS.isdisjoint(usage)
            if tells_more:
                read.told_cost = charges.told_cost(usage)
            if read.known:
                read.server_tool_uses = _tool_uses(answer)
                read.more = self._is_billed_beyond(answer) or (
                    tells_more and charges.is_billed_beyond_tokens(usage)
                )
                self._usage = read if self._usage is None else _goes_on(self._usage, read)

    def _is_billed_beyond(self, answer: Document) -> bool:
        if self.cut and answer.get("object") == "response":
            # Which tools were run stands in the middle, and their sums and the tier at the end, or not.
            return "tool_usage" not in answer or "service_tier" not in answer
        return self.model is not None and _SEARCHES in self.model


def _goes_on(before: Usage, usage: Usage) -> Usage:
    """A usage that comes behind another one: it repeats all tokens, if it has any, but not what is billed beside them."""
    if usage.input_tokens is None and usage.output_tokens is None:
        told = before.told_cost if usage.told_cost is None else usage.told_cost
        return attrs.evolve(before, told_cost=told, more=before.more or usage.more)
    if usage.told_cost is None and before.told_cost is not None:
        if (usage.input_tokens, usage.output_tokens) == (before.input_tokens, before.output_tokens):
            usage.told_cost = before.told_cost
        else:  # it was of fewer
            usage.more = True
    usage.more = usage.more or before.more
    return usage


def usage_of(usage: Document) -> Usage:
    """Read the ``usage`` of any of the APIs, whose names for the same things differ."""
    get = usage.get
    put_in = first(usage, "prompt_tokens", "input_tokens")
    # DeepSeek's and Moonshot's names, which are not among the details.
    cached = first(usage, "prompt_cache_hit_tokens", "cached_tokens")
    read = get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details")
    made = get("completion_tokens_details") or get("output_tokens_details") or get("output_token_details")
    if not read and not made:
        return Usage(_less(put_in, cached), _output(usage, put_in), cached)
    read, made = part(read), part(made)
    told = count(read.get("cached_tokens"))
    cached = cached if told is None else told
    written = count(read.get("cache_write_tokens"))
    reasoning = count(made.get("reasoning_tokens"))
    of_cached = part(read.get("cached_tokens_details"))
    cached_audio = count(of_cached.get("audio_tokens"))
    cached_image = count(of_cached.get("image_tokens"))
    return Usage(
        input_tokens=_less(put_in, cached, written),
        output_tokens=_output(usage, put_in),
        cache_read_tokens=cached,
        cache_write_5m_tokens=written,
        reasoning_tokens=reasoning,
        input_audio_tokens=_less(count(read.get("audio_tokens")), cached_audio),
        output_audio_tokens=count(made.get("audio_tokens")),
        cached_audio_tokens=cached_audio,
        input_image_tokens=_less(count(read.get("image_tokens")), cached_image),
        output_image_tokens=count(made.get("image_tokens")),
        cached_image_tokens=cached_image,
    )


def _output(usage: Document, put_in: int | None) -> int | None:
    """All that was made: the total tells, where there is one.

    Embeddings have nothing else that does. xAI counts reasoning beside the completion, and so does Gemini, which tells its
    thoughts nowhere else in OpenAI's shape.
    """
    made = first(usage, "completion_tokens", "output_tokens")
    total = count(usage.get("total_tokens"))
    return made if total is None or put_in is None else max(made or 0, total - put_in)


def _less(total: int | None, one: int | None, other: int | None = None) -> int | None:
    """A total without those of its parts that are known."""
    return None if total is None else max(0, total - (one or 0) - (other or 0))


def _tool_uses(answer: Document) -> dict[str, int] | None:
    """How often OpenAI's own tools were run for a response, ``None`` where none was."""
    if "output" not in answer and "tool_usage" not in answer:
        return None
    uses: dict[str, int] = {}
    for item in parts(answer.get("output")):
        kind = item.get("type")
        if text(part(item.get("action")).get("type")) in _NO_SEARCHES:
            continue
        if isinstance(kind, str) and (use := _TOOL_CALLS.get(kind)) is not None:
            uses[use] = uses.get(use, 0) + 1
    told = part(answer.get("tool_usage"))
    if first(part(told.get("image_gen")), "total_tokens"):
        uses["image_generation_requests"] = uses.get("image_generation_requests") or 1
    searches = count(part(told.get("web_search")).get("num_requests"))
    if searches is not None:  # those that are billed: opening a page is a call too, and is not
        uses["web_search_requests"] = searches
    return {name: number for name, number in uses.items() if number} or None


def _is_piece(kind: str, document: Document) -> bool:
    """Whether an event carries the first of what the model makes."""
    if kind.endswith(_PIECES):
        return True
    return any(
        choice.get("text") or any(value for key, value in part(choice.get("delta")).items() if key != "role")
        for choice in parts(document.get("choices"))
    )
