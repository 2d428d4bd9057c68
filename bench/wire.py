"""What the load and the upstream tell each other through a proxy: chat requests, and events that carry their send time.

All of it is in the bodies, so that it survives a proxy that rewrites paths, headers or JSON: the request's model says which
answer is wanted, and the text of an event says when it was sent. Both sides read the same clock, that of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

PATH = "/chat/completions"  # after the base URL, as the OpenAI SDKs add it

ANSWER = "answer"
"""The model that answers at once."""

_EVENTS = re.compile(rb'"model": ?"events-(\d+)"')
_SENT = re.compile(rb"sent (\d{20})")

_COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "answer",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A short answer, as a chat model gives it. " * 3},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 31, "total_tokens": 40},
    }
).encode()

COMPLETION = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_COMPLETION),
    _COMPLETION,
)
"""The whole answer to a request for :data:`ANSWER`."""

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
"""How a stream of events begins. It has no end: the client leaves when it has seen enough."""

_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"events",'
    b'"choices":[{"index":0,"delta":{"content":"sent %020d"},"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT % 0), _EVENT)


def events(rate: int) -> str:
    """Name the model that streams so many events a second."""
    return f"events-{rate}"


def rate_asked(body: bytes) -> int | None:
    """Return how many events a second the body of a request asks for; None where it asks for an answer at once."""
    found = _EVENTS.search(body)
    return int(found[1]) if found else None


def event(now: int) -> bytes:
    """Make an event, as a chunk of a chunked body.

    :param now: what :func:`time.monotonic_ns` says.
    """
    return _CHUNK % now


def request(base_url: str, model: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Make a whole chat request.

    :param base_url: what an OpenAI SDK would be given.
    """
    url = urlsplit(base_url)
    body = json.dumps(
        {
            "model": model,
            "stream": model != ANSWER,
            "messages": [{"role": "user", "content": "Hello, proxy!"}],
        }
    )
    lines = [
        f"POST {url.path.rstrip('/')}{PATH} HTTP/1.1",
        f"Host: {url.netloc}",
        "User-Agent: llmproxy-bench",
        "Accept: application/json, text/event-stream",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join([*lines, "", body]).encode()


class EventReader:
    """Finds the send times in a stream's body, however it was cut on its way."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> list[int]:
        """Take the next bytes of the body, and return the send times, in nanoseconds, of the events that they end."""
        data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            self._rest = data
            return []
        self._rest = data[end:]
        return [int(sent) for sent in _SENT.findall(data, 0, end)]
