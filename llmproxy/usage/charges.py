"""What an answer of those who speak like OpenAI says of its own cost, and of what is billed beyond its tokens.

A provider that bills more than tokens (searches, a fee for each request, tools) says in ``usage`` what it charged, all in all:

- OpenRouter: ``cost``, in its credits, which are US dollars; where it used your own key at another provider (``is_byok``), that
  is only its own fee, and the other's bill is ``cost_details.upstream_inference_cost``, which is told with other keys, too.
  https://openrouter.ai/docs/cookbook/administration/usage-accounting
- Perplexity: ``cost.total_cost``, in the ``currency`` that stands beside it. https://docs.perplexity.ai/getting-started/pricing
- xAI: ``cost_in_usd_ticks``, of which 10^10 are a dollar. https://docs.x.ai/developers/cost-tracking

A gateway may pass these on, or say them for itself.
"""

from __future__ import annotations

from decimal import Decimal

from llmproxy.usage.fields import Document, count, money, part

# Fields of what is billed beyond tokens, where they are not empty and not 0. A fee for each request goes by the first of
# Perplexity's, and its deep research pays for citations and searches; Mistral's sound is paid by the hour. What tools were run
# is a field of each provider's own: https://docs.perplexity.ai/api-reference, https://openrouter.ai/docs/client-sdks/python/
# components/bodyservertooluse and https://docs.x.ai/developers/tools/tool-usage-details
_BEYOND_TOKENS = (
    "search_context_size",
    "citation_tokens",
    "num_search_queries",
    "prompt_audio_seconds",
    "tool_calls_details",
    "num_server_side_tools_used",
    "server_side_tool_usage_details",
    "num_sources_used",
    "server_tool_use",
    "server_tool_use_details",
)
_TICKS = "cost_in_usd_ticks"
# One look tells that an answer has none of them, as most have.
FIELDS = frozenset({"cost", _TICKS, *_BEYOND_TOKENS})

_MICRO = 6  # decimals of a dollar
_OF_A_TICK = 10


def told_cost(usage: Document) -> Decimal | None:
    """The whole of what was charged, in micro-dollars; ``None`` where that is not told."""
    ticks = count(usage.get(_TICKS))
    if ticks is not None:
        return Decimal(ticks).scaleb(_MICRO - _OF_A_TICK)
    cost = usage.get("cost")
    if isinstance(cost, dict):
        dollars = money(cost.get("total_cost")) if cost.get("currency", "USD") == "USD" else None
    else:
        dollars = money(cost)
        if dollars is not None and usage.get("is_byok") is True:
            elsewhere = money(part(usage.get("cost_details")).get("upstream_inference_cost"))
            dollars = None if elsewhere is None else dollars + elsewhere
    return None if dollars is None else dollars.scaleb(_MICRO)


def is_billed_beyond_tokens(usage: Document) -> bool:
    """Tell whether the tokens are not all that is billed, or a price list not what it is billed by."""
    # Whose bill it is, is not what a list of this provider tells.
    return usage.get("is_byok") is True or any(_is_used(usage.get(name)) for name in _BEYOND_TOKENS)


def _is_used(value: object) -> bool:
    return any(map(_is_used, value.values())) if isinstance(value, dict) else bool(value)
