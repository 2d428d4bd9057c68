"""A process that serves the demo upstream without its pauses, and at its end writes down what it has answered.

``python -m tests.integration.demo_process FILE`` prints the port on which it listens. When it is terminated, FILE has a JSON
object of the tokens that it told in each answer, by the request id that it gave it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed

from llmproxy.demo import site
from llmproxy.demo.anthropic import Anthropic
from llmproxy.demo.api import Answer, Api, ApiResource, Call
from llmproxy.demo.fields import Json
from llmproxy.demo.openai import OpenAI

INTERVAL = 0.002  # seconds between two events of a stream

Counts = tuple[int | None, int | None]
"""Tokens in and out; ``None`` for those that were not told."""


def main(written: Path) -> None:
    """Serve until the process is terminated."""
    reactor: Any = installed
    told: dict[str, Counts] = {}

    class TellingOpenAI(OpenAI):
        def answer(self, call: Call) -> Answer:
            return noted(call, super().answer(call))

    class TellingAnthropic(Anthropic):
        def answer(self, call: Call) -> Answer:
            return noted(call, super().answer(call))

    def noted(call: Call, answer: Answer) -> Answer:
        told[f"req_{call.token}"] = counts([answer] if isinstance(answer, dict) else events(b"".join(answer)))
        return answer

    served: Any = site(reactor)
    apis: dict[bytes, Api] = {b"openai": TellingOpenAI(), b"anthropic": TellingAnthropic()}
    for name, api in apis.items():
        served.resource.putChild(name, ApiResource(api, reactor, INTERVAL))
    listening = reactor.listenTCP(0, served, backlog=1000, interface="127.0.0.1")
    print(listening.getHost().port, flush=True)
    reactor.run()
    written.write_text(json.dumps(told))


def events(stream: bytes) -> list[Json]:
    """Read what the events of a stream carry, with no part of the proxy."""
    lines = (line.removeprefix(b"data: ") for line in stream.split(b"\n") if line.startswith(b"data: "))
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def counts(documents: Iterable[Json]) -> Counts:
    """Read the tokens that the parts of an answer tell, by whatever names; what comes later stands."""
    told: dict[str, Any] = {}
    for document in documents:
        told["input_tokens"] = document.get("input_tokens", told.get("input_tokens"))
        for holder in (document, document.get("message"), document.get("response")):
            usage = holder.get("usage") if isinstance(holder, dict) else None
            told.update(usage or {})
    return (
        told.get("prompt_tokens", told.get("input_tokens")),
        told.get("completion_tokens", told.get("output_tokens")),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
