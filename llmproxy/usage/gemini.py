"""Gemini's answers: generateContent, whole, as server-sent events and as an array that grows; embeddings; counted tokens.

The shapes are those of https://ai.google.dev/api/generate-content; those of its Live API are read by
:mod:`~llmproxy.usage.live`. Every piece of a stream tells the usage so far, so that only
the last one is read. Numbers that are 0 are left out. What a stream ends with is a reason to finish, and nothing behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmproxy.usage.fields import Document, count, first, part, parts, text
from llmproxy.usage.model import Usage
from llmproxy.usage.reader import Event, Reader, error_type

# Their searches are paid for once for a prompt, and those of later models each.
# https://ai.google.dev/gemini-api/docs/google-search#pricing
_PAID_BY_PROMPT = ("gemini-1", "gemini-2")


class GeminiReader(Reader):
    """Reads Gemini's answers."""

    _usage: Usage | None = None
    _latest: Event | None = None
    _searches = 0

    def ordinary(self, data: bytes) -> bool:
        """Tell whether nothing in these bytes is worth a closer look, fast."""
        find = data.find
        return self.first_token and find(b'TokenCount"') < 0 and not _is_urgent(data)

    def event(self, event: Event) -> None:
        """Take an event that is not ordinary: at once, or, where it tells nothing but usage, if no later one does."""
        if self.first_token and not _is_urgent(event.data):
            self._latest = event
        else:
            self._latest = None
            self._take(event.document())

    def answer(self, document: Document) -> None:
        """Take a whole answer."""
        self._take(document)

    def usage(self) -> Usage | None:
        """The last usage that was told."""
        self._catch_up()
        if self._usage is not None and self._searches:
            return self._usage + Usage(server_tool_uses={"web_search_requests": self._searches})
        return self._usage

    def complete(self, whole: bool) -> bool:
        """Tell whether a stream is complete."""
        self._catch_up()
        return whole and self.stop_reason is not None

    def _catch_up(self) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            self._take(latest.document())

    def _take(self, document: Document) -> None:
        self.model = text(document.get("modelVersion")) or self.model
        self.response_id = text(document.get("responseId")) or self.response_id
        self.error = error_type(document.get("error"), "status", "code") or self.error
        self.stop_reason = text(part(document.get("promptFeedback")).get("blockReason")) or self.stop_reason
        searches = 0
        for candidate in parts(document.get("candidates")):
            self.stop_reason = text(candidate.get("finishReason")) or self.stop_reason
            if part(candidate.get("content")).get("parts"):
                self.first_token = True
            searches += len(queries_of(candidate))
        if searches and self.model is not None and self.model.startswith(_PAID_BY_PROMPT):
            searches = 1
        self._searches = max(self._searches, searches)
        self._take_usage(document)

    def _take_usage(self, document: Document) -> None:
        counts = part(document.get("usageMetadata"))
        self.service_tier = tier_of(counts) or self.service_tier
        usage = usage_of(counts)
        if usage.known:
            self._usage = usage
        elif "totalTokens" in document:  # countTokens
            self._usage = Usage(input_tokens=count(document["totalTokens"]), billable=False)


def usage_of(counts: Document) -> Usage:
    """Read a ``usageMetadata``; the Live API, but not all of its versions, calls candidates a response."""
    prompt, cached = count(counts.get("promptTokenCount")), count(counts.get("cachedContentTokenCount"))
    tools = count(counts.get("toolUsePromptTokenCount"))  # what tools found, put in beside the prompt
    made = first(counts, "candidatesTokenCount", "responseTokenCount")
    thoughts = count(counts.get("thoughtsTokenCount"))
    total = count(counts.get("totalTokenCount"))
    if made is None and thoughts is None and total is not None and prompt is not None:
        made = max(0, total - prompt - (tools or 0))
    read, cache = _by_modality(counts, "promptTokensDetails"), _by_modality(counts, "cacheTokensDetails")
    out = _by_modality(counts, "candidatesTokensDetails") or _by_modality(counts, "responseTokensDetails")
    return Usage(
        input_tokens=None if prompt is None else max(0, prompt - (cached or 0)) + (tools or 0),
        output_tokens=None if made is None and thoughts is None else (made or 0) + (thoughts or 0),
        cache_read_tokens=cached,
        reasoning_tokens=thoughts,
        input_audio_tokens=_fresh(read, cache, "AUDIO"),
        output_audio_tokens=out.get("AUDIO"),
        cached_audio_tokens=cache.get("AUDIO"),
        input_image_tokens=_fresh(read, cache, "IMAGE"),
        output_image_tokens=out.get("IMAGE"),
        cached_image_tokens=cache.get("IMAGE"),
        video=bool(read.get("VIDEO") or out.get("VIDEO")),
    )


def tier_of(counts: Document) -> str | None:
    """The service tier that a ``usageMetadata`` tells, in Gemini's word or in Vertex'."""
    return text(counts.get("serviceTier")) or text(counts.get("trafficType"))


def queries_of(content: Document) -> list[str]:
    """What was searched the web for."""
    queries = part(content.get("groundingMetadata")).get("webSearchQueries")
    return (
        [query for query in queries if query and isinstance(query, str)] if isinstance(queries, list) else []
    )


def _is_urgent(data: bytes) -> bool:
    find = data.find
    return find(b'"finishReason"') >= 0 or find(b'"error"') >= 0 or find(b'"blockReason"') >= 0


def _by_modality(counts: Document, name: str) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for item in parts(counts.get(name)):
        modality, number = text(item.get("modality")), count(item.get("tokenCount"))
        if modality is not None and number is not None:
            found[modality] = number
    return found


def _fresh(read: Mapping[str, int], cache: Mapping[str, int], modality: str) -> int | None:
    """What was put in of a modality, without what came out of a cache."""
    return max(0, read[modality] - cache.get(modality, 0)) if modality in read else None
