"""An embedded upstream that makes up its answers, so that llmproxy can be tried and tested without a key.

It speaks as much of OpenAI (below ``/openai/v1``) and of Anthropic (below ``/anthropic/v1``) as their own
clients need: chat completions, responses, embeddings, messages, token counts and models, plain and streamed
at a human pace. The keys that it asks for are constants and no secret, so serve it on loopback only. Binding
a port is left to the caller.

    words.py                        what is said: from a prompt to a reply
    chat.py, responses.py,
    embeddings.py, messages.py      how it is said: one API each, from a request body to JSON or to events
    openai.py, anthropic.py         the two providers: paths, keys, models, errors
    fields.py, api.py, sse.py       what they share: reading a body, answering a request, pacing a stream
"""

from __future__ import annotations

from llmproxy.demo.anthropic import ANTHROPIC_KEY
from llmproxy.demo.openai import OPENAI_KEY
from llmproxy.demo.server import site, upstream

__all__ = ["ANTHROPIC_KEY", "OPENAI_KEY", "site", "upstream"]
