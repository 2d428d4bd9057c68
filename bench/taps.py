"""What a tap costs: microseconds for each event, fed alone as it mostly comes, or for a whole answer. ``python -m bench.taps``.

The budget is 2 microseconds for an ordinary event of 150 bytes.
"""

from __future__ import annotations

import gzip
import json
import timeit
import zlib
from collections.abc import Callable

from llmproxy.config.credential import Family
from llmproxy.usage import Tap, tap_for

_ROUNDS = 5  # the best of which counts
_EVENTS = 20_000

_CHAT = (
    b'data: {"id":"chatcmpl-9x","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":'
    b'[{"index":0,"delta":{"content":" lantern"},"finish_reason":null}]}\n\n'
)
_RESPONSES = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"msg_1",'
    b'"output_index":0,"content_index":0,"delta":" lantern"}\n\n'
)
_MESSAGES = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":" lanterns over the harbour"}}\n\n'
)
_GEMINI = (
    b'data: {"candidates":[{"content":{"parts":[{"text":" lantern"}],"role":"model"},"index":0}],"usageMetadata":'
    b'{"promptTokenCount":11,"candidatesTokenCount":7,"totalTokenCount":18,"promptTokensDetails":[{"modality":"TEXT",'
    b'"tokenCount":11}]},"modelVersion":"gemini-3-pro","responseId":"r1"}\n\n'
)
_EMBEDDINGS = json.dumps(
    {
        "object": "list",
        "data": [{"object": "embedding", "index": n, "embedding": [0.0123456789] * 1536} for n in range(100)],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 800, "total_tokens": 800},
    }
).encode()
_MESSAGE = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5",
        "content": [{"type": "text", "text": "Lanterns over the harbour. " * 100}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 12, "output_tokens": 600},
    }
).encode()


def main() -> None:
    """Measure, and print a table."""
    rows: list[tuple[str, float]] = []
    for name, family, event in (
        ("chat completions, SSE", Family.OPENAI, _CHAT),
        ("responses, SSE", Family.OPENAI, _RESPONSES),
        ("messages, SSE", Family.ANTHROPIC, _MESSAGES),
        ("gemini, SSE", Family.GEMINI, _GEMINI),
    ):
        rows.append((f"{name}: event of {len(event)} bytes", _of_an_event(family, event)))
        rows.append((f"{name}: one of 100 in a read", _of_an_event(family, event * 100) / 100))
        rows.append((f"{name}: event in gzip, flushed", _of_a_packed_event(family, event)))
    rows.append((f"messages, JSON of {len(_MESSAGE)} bytes", _of_an_answer(Family.ANTHROPIC, _MESSAGE)))
    rows.append(("the same in gzip", _of_an_answer(Family.ANTHROPIC, gzip.compress(_MESSAGE), b"gzip")))
    rows.append((f"embeddings, JSON of {len(_EMBEDDINGS)} bytes", _of_an_answer(Family.OPENAI, _EMBEDDINGS)))
    for name, microseconds in rows:
        print(f"{name:45} {microseconds:10.2f} us")


def _of_an_event(family: Family, data: bytes) -> float:
    tap = _tap(family, b"text/event-stream")
    tap.feed(data)
    return _microseconds(lambda: tap.feed(data), _EVENTS * 150 // len(data))


def _of_a_packed_event(family: Family, event: bytes) -> float:
    packing = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    packed = [packing.compress(event) + packing.flush(zlib.Z_SYNC_FLUSH) for _ in range(_EVENTS)]
    best = float("inf")
    for _ in range(_ROUNDS):
        tap = _tap(family, b"text/event-stream", b"gzip")
        started = timeit.default_timer()
        for data in packed:
            tap.feed(data)
        best = min(best, timeit.default_timer() - started)
    return best / _EVENTS * 1e6


def _of_an_answer(family: Family, body: bytes, coding: bytes = b"") -> float:
    pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]

    def answer() -> None:
        tap = _tap(family, b"application/json", coding)
        for piece in pieces:
            tap.feed(piece)
        if tap.close(True).source != "reported":
            raise ValueError("The tap found no usage.")

    return _microseconds(answer, 200)


def _tap(family: Family, kind: bytes, coding: bytes = b"") -> Tap:
    tap = tap_for(family, b"", kind, coding)
    if tap is None:
        raise ValueError("There is no tap for this.")
    return tap


def _microseconds(run: Callable[[], None], times: int) -> float:
    return min(timeit.repeat(run, number=times, repeat=_ROUNDS)) / times * 1e6


if __name__ == "__main__":
    main()
