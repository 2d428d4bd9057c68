"""When things pass: at once, no faster than the client reads, and no longer than it stays."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from random import Random

import anthropic as anthropic_sdk
import openai as openai_sdk
import pytest

from tests.integration.conftest import Background
from tests.integration.process import AUTHORIZATION, TOKEN, Proxy
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, PATIENCE, Body, chunked, message

EVENT_STREAM = message(
    b"HTTP/1.1 200 OK", b"Content-Type: text/event-stream; charset=utf-8", b"Transfer-Encoding: chunked"
)
# More than all buffers of the kernel on the way from the upstream to the client can hold.
LARGE = Random(7).randbytes(1_000_000) * 64


@pytest.fixture(autouse=True)
def _no_other_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def stream_events(upstream: Upstream, events: list[bytes], seen: threading.Semaphore) -> None:
    """Answer a request with events, each after the first only when the client has seen the one before."""
    wire, _ = upstream.receive()
    wire.send(EVENT_STREAM)
    for event in events[:-1]:
        wire.send(chunked(event))
        assert seen.acquire(timeout=PATIENCE), f"held back: {event!r}"
    wire.send(chunked(events[-1]) + LAST_CHUNK)


def test_headers_arrive_before_any_byte_of_the_body_was_sent(proxy: Proxy, openai: Upstream) -> None:
    for framing in (b"Transfer-Encoding: chunked", b"Content-Length: 10", b"X-Close-Delimited: 1"):
        client = proxy.send(b"GET /openai/v1/models")
        wire, _ = openai.receive()
        wire.send(message(b"HTTP/1.1 200 OK", framing))
        assert client.head().status == 200


def test_each_chunk_arrives_before_the_next_was_sent(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"POST /openai/v1/chat/completions", b"Content-Length: 2", body=b"{}")
    wire, _ = openai.receive()
    wire.send(EVENT_STREAM)
    body = Body(client, client.head())
    for piece in (b"data: 1\n\n", b"data: ", b"2", b"\n", b"\n", b": ping\n\n", b"data: [DONE]\n\n"):
        wire.send(chunked(piece))
        assert body.exactly(len(piece)) == piece
    wire.send(LAST_CHUNK)
    assert body.rest() == b""


def test_openai_sees_the_first_delta_before_the_last_was_sent(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    def delta(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        chunk = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        return b"data: %b\n\n" % json.dumps(chunk).encode()

    events = [delta("one "), delta("two "), delta("thr\u00e9\u00e9"), b"data: [DONE]\n\n"]
    seen = threading.Semaphore(0)
    served = background(stream_events, openai, events, seen)
    with openai_sdk.OpenAI(base_url=f"{proxy.url}/openai/v1", api_key=TOKEN, max_retries=0) as client:
        text = ""
        for chunk in client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "count"}], stream=True, timeout=PATIENCE * 2
        ):
            text += chunk.choices[0].delta.content or ""
            seen.release()
    served.result()
    assert text == "one two thr\u00e9\u00e9"


def test_anthropic_sees_the_first_delta_before_the_last_was_sent(
    proxy: Proxy, anthropic: Upstream, background: Background
) -> None:
    def event(name: str, **fields: object) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps({"type": name, **fields}).encode())

    def delta(text: str) -> bytes:
        return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    started = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
    usage = {"input_tokens": 1, "output_tokens": 1}
    events = [
        event(
            "message_start", message={**started, "stop_reason": None, "stop_sequence": None, "usage": usage}
        ),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        delta("one "),
        delta("two"),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=usage),
        event("message_stop"),
    ]
    seen = threading.Semaphore(0)
    served = background(stream_events, anthropic, events, seen)
    text = ""
    with anthropic_sdk.Anthropic(base_url=f"{proxy.url}/anthropic", api_key=TOKEN, max_retries=0) as client:
        for got in client.messages.create(
            model="m",
            max_tokens=9,
            messages=[{"role": "user", "content": "count"}],
            stream=True,
            timeout=PATIENCE * 2,
        ):
            if got.type == "content_block_delta" and got.delta.type == "text_delta":
                text += got.delta.text
            seen.release()
    served.result()
    assert text == "one two"


def test_many_streams_at_once_do_not_mix(proxy: Proxy, openai: Upstream) -> None:
    clients = [proxy.send(b"GET /openai/v1/%d" % number) for number in range(20)]
    wires = {}
    for _ in clients:
        wire, request = openai.receive()
        wires[request.head.line] = wire
        wire.send(EVENT_STREAM)
    bodies = [Body(client, client.head()) for client in clients]
    for turn in (b"first", b"second"):
        for number in reversed(range(20)):
            wires[b"GET /v1/%d HTTP/1.1" % number].send(chunked(b"%d %b" % (number, turn)))
    for number, body in enumerate(bodies):
        assert body.exactly(len(b"%d first" % number)) == b"%d first" % number
        wires[b"GET /v1/%d HTTP/1.1" % number].send(LAST_CHUNK)
        assert body.rest() == b"%d second" % number


@pytest.mark.parametrize(
    ("framing", "encode"),
    [
        (b"Content-Length: %d" % len(LARGE), lambda body: body),
        (b"Transfer-Encoding: chunked", lambda body: chunked(body) + LAST_CHUNK),
    ],
    ids=["length", "chunked"],
)
def test_a_client_that_reads_slowly_pauses_its_upstream(
    proxy: Proxy, openai: Upstream, background: Background, framing: bytes, encode: Callable[[bytes], bytes]
) -> None:
    client = proxy.connect(receive_buffer=16384)
    client.send(message(b"GET /openai/v1/files HTTP/1.1", b"Host: proxy.example", AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", framing))
    body = Body(client, client.head())
    encoded = encode(LARGE)
    sent = wire.send_until_blocked(encoded, quiet=1.0)
    assert sent < len(encoded) / 2
    sending = background(wire.send, encoded[sent:])
    assert body.rest() == LARGE
    sending.result()


def test_a_paused_stream_holds_up_no_other(proxy: Proxy, openai: Upstream) -> None:
    stalled = proxy.connect(receive_buffer=16384)
    stalled.send(message(b"GET /openai/v1/files HTTP/1.1", b"Host: proxy.example", AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(LARGE)))
    assert wire.send_until_blocked(LARGE, quiet=0.5) < len(LARGE)
    client = proxy.send(b"GET /openai/v1/models")
    other, _ = openai.receive()
    other.send(message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok"))
    assert client.response().body == b"ok"
    stalled.close()


def test_a_client_that_leaves_before_the_headers_ends_its_upstream_request(
    proxy: Proxy, openai: Upstream
) -> None:
    client = proxy.send(b"POST /openai/v1/chat/completions", b"Content-Length: 2", body=b"{}")
    wire, _ = openai.receive()
    client.close()
    wire.ending()


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize(
    "framing", [b"Transfer-Encoding: chunked", b"Content-Length: 1000", b"X-Close-Delimited: 1"]
)
def test_a_client_that_leaves_within_the_body_ends_its_upstream_request(
    proxy: Proxy, openai: Upstream, framing: bytes, leave: str
) -> None:
    client = proxy.send(b"GET /openai/v1/models")
    wire, _ = openai.receive()
    part = b"part"
    wire.send(message(b"HTTP/1.1 200 OK", framing, body=chunked(part) if b"chunked" in framing else part))
    assert Body(client, client.head()).exactly(4) == part
    getattr(client, leave)()
    wire.ending()


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("more", [1, 5])
def test_a_client_that_leaves_with_requests_behind_its_first_ends_its_upstream_request(
    proxy: Proxy, openai: Upstream, leave: str, more: int
) -> None:
    client = proxy.send(b"GET /openai/v1/1")
    wire, _ = openai.receive()
    client.send(message(b"DELETE /openai/v1/2 HTTP/1.1", b"Host: proxy.example", AUTHORIZATION) * more)
    wire.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"part")))
    assert Body(client, client.head()).exactly(4) == b"part"
    getattr(client, leave)()
    wire.wait_for_reset(patience=3.0)
    assert openai.waiting() == 0


def test_a_client_that_leaves_unread_bytes_behind_ends_its_upstream_request(
    proxy: Proxy, openai: Upstream
) -> None:
    client = proxy.connect(receive_buffer=16384)
    client.send(message(b"GET /openai/v1/files HTTP/1.1", b"Host: proxy.example", AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(LARGE)))
    wire.send_until_blocked(LARGE, quiet=0.5)
    client.close()
    wire.ending()
