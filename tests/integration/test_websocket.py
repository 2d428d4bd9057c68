"""WebSockets: authorized and keyed like any request, and after the 101 two streams of bytes that pace and end each other."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from random import Random

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from tests.integration.conftest import Background
from tests.integration.process import AUTHORIZATION, OPENAI_KEY, TOKEN, Proxy, eventually, running, settings
from tests.integration.upstream import Upstream
from tests.integration.wire import BLOCK, PATIENCE, Ending, Flood, Wire, message

BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER_TOKEN = Subprotocol(f"openai-insecure-api-key.{TOKEN}")
REALTIME, BETA = Subprotocol("realtime"), Subprotocol("openai-beta.realtime-v1")
GROWTH = 20_000_000  # bytes that a proxy may need for a tunnel that carries any number
BLOCKS = 200  # of a million bytes
LATE = 5  # of them: more than the kernel takes from the proxy, and no more than it takes of both

HANDSHAKE = (
    b"Host: proxy.example",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
SWITCHING = message(
    b"HTTP/1.1 101 Switching Protocols",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
)


# With a real client and a real server


class EchoServer:
    """A WebSocket server in a thread. It sends back each message, refuses what asks it to, and keeps the handshakes.

    :ivar handshakes: the requests, in their order.
    :ivar ended: released for each connection that is over.
    """

    def __init__(self) -> None:
        self.handshakes: list[Request] = []
        self.ended = threading.Semaphore(0)
        self._server: Server = serve(
            self._serve,
            "127.0.0.1",
            0,
            subprotocols=[REALTIME],
            select_subprotocol=self._select,
            process_request=self._admit,
            max_size=None,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)

    def _select(self, connection: ServerConnection, offered: object) -> Subprotocol | None:
        return REALTIME if offered else None

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request)
        if not request.path.endswith("/refused"):
            return None
        response = connection.respond(HTTPStatus.FORBIDDEN, "not for you\n")
        response.headers["X-Request-Id"] = "req_9"
        return response

    def _serve(self, connection: ServerConnection) -> None:
        try:
            for received in connection:
                if received == "goodbye":
                    connection.close(4001, "as you wish")
                    break
                connection.send(received)
        except ConnectionClosed:
            pass
        finally:
            self.ended.release()


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def in_front(echo: EchoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose upstreams are both the server."""
    url = f"http://127.0.0.1:{echo.port}"
    proxy = Proxy(settings(url, url), tmp_path_factory.mktemp("websocket"))
    try:
        proxy.twistd.started()
        yield proxy
    finally:
        proxy.stop()


def open_socket(
    proxy: Proxy,
    headers: dict[str, str] | None = None,
    subprotocols: list[Subprotocol] | None = None,
    path: str = "/openai/v1/realtime?model=m",
) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{proxy.twistd.port}{path}",
        sock=socket.create_connection(("127.0.0.1", proxy.twistd.port)),
        additional_headers=headers,
        subprotocols=subprotocols,
        max_size=None,
        open_timeout=PATIENCE,
        close_timeout=PATIENCE,
    )


def rows(connection: sqlite3.Connection, wanted: str) -> list[tuple[object, ...]]:
    """What a ledger has, which is nothing before its proxy has made the tables."""
    try:
        return connection.execute(wanted).fetchall()
    except sqlite3.OperationalError:
        return []


def test_a_turn_is_in_the_ledger_while_its_socket_is_open_and_outlives_a_kill(
    echo: EchoServer, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite3"
    url = f"http://127.0.0.1:{echo.port}"
    proxy = Proxy(settings(url, url, LLMPROXY_LEDGER=f"sqlite://{ledger}"), tmp_path)
    try:
        proxy.twistd.started()
        with open_socket(proxy, BEARER, path="/openai/v1/responses") as client:
            for number in range(2):
                response = {"id": f"resp_{number}", "model": "gpt-5-mini"}
                usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
                for event in (
                    {"type": "response.created", "response": response},
                    {"type": "response.output_text.delta", "delta": "Hello"},
                    {"type": "response.completed", "response": {**response, "usage": usage}},
                ):
                    client.send(json.dumps(event))
                    assert json.loads(client.recv(PATIENCE)) == event
            with closing(sqlite3.connect(ledger)) as connection:
                wanted = (
                    "SELECT response_id, answered_model, input_tokens, output_tokens, first_token > 0, ending "
                    "FROM llmproxy_exchanges WHERE socket IS NOT NULL ORDER BY response_id"
                )
                eventually(lambda: len(rows(connection, wanted)) == 2, "two turns are in the ledger")
                proxy.twistd.send_signal(signal.SIGKILL)
                proxy.twistd.wait()
                assert rows(connection, wanted) == [
                    (f"resp_{number}", "gpt-5-mini", 1000, 100, 1, "completed") for number in range(2)
                ]
    finally:
        proxy.stop()


def test_lanes_of_one_socket_are_in_the_ledger_apart_with_their_costs_and_a_refusal(
    echo: EchoServer, tmp_path: Path
) -> None:
    """The messages are OpenAI's, of two responses at a time; here, the client had sent the same."""
    ledger, url = tmp_path / "ledger.sqlite3", f"http://127.0.0.1:{echo.port}"
    (tmp_path / "llmproxy.toml").write_text(
        "[prices.slow]\ninput = 1\noutput = 10\n[prices.quick]\ninput = 0.1\noutput = 1\n"
    )
    environment = settings(url, url, LLMPROXY_LEDGER=f"sqlite://{ledger}")
    proxy = Proxy(environment, tmp_path, options=("--config", str(tmp_path / "llmproxy.toml")))

    def tells(kind: str, model: str, **more: object) -> dict[str, object]:
        response = {"id": f"resp_{model}", "object": "response", "model": model, "usage": None, **more}
        return {"type": f"response.{kind}", "response": response, "stream_id": model}

    def piece(lane: str) -> dict[str, object]:
        return {"type": "response.output_text.delta", "delta": "Hello", "stream_id": lane}

    usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
    refused = {"type": "error", "status": 400, "error": {"type": "invalid_request_error"}, "stream_id": "x"}
    try:
        proxy.twistd.started()
        with open_socket(proxy, BEARER, path="/openai/v1/responses") as client:
            for message in (
                tells("created", "slow"),
                tells("created", "quick"),
                piece("quick"),
                refused,
                tells("completed", "quick", usage=usage),
                piece("slow"),
                tells("completed", "slow", usage=usage),
            ):
                client.send(json.dumps(message))
                client.recv(PATIENCE)
        with closing(sqlite3.connect(ledger)) as connection:
            wanted = (
                "SELECT answered_model, usage_source, outcome, error, input_tokens, cost, first_token > 0 "
                "FROM llmproxy_exchanges WHERE socket IS {} NULL ORDER BY answered_model"
            )
            eventually(lambda: len(rows(connection, wanted.format(""))) == 1, "the socket is in the ledger")
            assert rows(connection, wanted.format("NOT")) == [
                (None, "free", "failed", "invalid_request_error", None, 0, None),
                ("quick", "reported", "complete", None, 1000, 100 + 100, 1),
                ("slow", "reported", "complete", None, 1000, 1000 + 1000, 1),
            ]
            ((_, source, *_, cost, _),) = rows(connection, wanted.format(""))
            assert (source, cost) == ("turns", None)
    finally:
        proxy.stop()


def test_each_turn_of_a_live_session_is_in_the_ledger_with_its_model_and_its_cost(
    echo: EchoServer, tmp_path: Path
) -> None:
    """The messages are Gemini's, in binary frames, as its server sends them; here, the client had sent the same."""
    ledger, url = tmp_path / "ledger.sqlite3", f"http://127.0.0.1:{echo.port}"
    (tmp_path / "llmproxy.toml").write_text(
        f'[upstreams.gemini]\nbase_url = "{url}"\napi_key_env = "OPENAI_API_KEY"\n'
        '[prices."gemini-live-*"]\ninput = 1\noutput = 10\ninput_audio = 3\noutput_audio = 20\n'
    )
    environment = settings(url, url, LLMPROXY_LEDGER=f"sqlite://{ledger}")
    proxy = Proxy(environment, tmp_path, options=("--config", str(tmp_path / "llmproxy.toml")))
    path = "/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
    counts = {
        "promptTokenCount": 100,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 40},
            {"modality": "AUDIO", "tokenCount": 60},
        ],
        "responseTokenCount": 30,
        "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 30}],
        "thoughtsTokenCount": 5,
        "totalTokenCount": 130,
    }
    sound = {"serverContent": {"modelTurn": {"parts": [{"inlineData": {"data": "A" * 10_000}}]}}}
    call = {
        "toolCall": {"functionCalls": []},
        "usageMetadata": {"promptTokenCount": 70, "totalTokenCount": 70},
    }
    end = {"serverContent": {"turnComplete": True}, "usageMetadata": counts}
    try:
        proxy.twistd.started()
        with open_socket(proxy, BEARER, path=path) as client:
            client.send(json.dumps({"setup": {"model": "models/gemini-live-2.5-flash-preview"}}))
            client.recv(PATIENCE)
            for message in (sound, end, call, sound, end, sound):
                data = json.dumps(message, indent=2).encode()
                client.send(data)
                assert client.recv(PATIENCE) == data
        with closing(sqlite3.connect(ledger)) as connection:
            wanted = (
                "SELECT asked_model, answered_model, usage_source, outcome, input_tokens, input_audio_tokens, "
                "output_tokens, output_audio_tokens, cost, ending, first_token > 0 "
                "FROM llmproxy_exchanges WHERE socket IS {} NULL ORDER BY id"
            )
            eventually(lambda: len(rows(connection, wanted.format(""))) == 1, "the socket is in the ledger")
            model = "gemini-live-2.5-flash-preview"
            assert rows(connection, wanted.format("NOT")) == [
                (model, None, "reported", "complete", 100, 60, 35, 30, 40 + 180 + 50 + 600, "completed", 1),
                (model, None, "reported", "complete", 170, 60, 35, 30, 110 + 180 + 50 + 600, "completed", 1),
                (model, None, "absent", "cut", None, None, None, None, None, "completed", 1),
            ]
            ((asked, *_, cost, ending, _),) = rows(connection, wanted.format(""))
            assert (asked, cost, ending) == (model, None, "completed")
    finally:
        proxy.stop()


@pytest.mark.parametrize("path", ["/v1/realtime?model=m", "/v1/responses"])
def test_a_websocket_is_opened_with_the_key_in_place_of_the_token(
    in_front: Proxy, echo: EchoServer, path: str
) -> None:
    with open_socket(in_front, BEARER, path=f"/openai{path}") as client:
        client.send("question")
        assert client.recv(PATIENCE) == "question"
    handshake = echo.handshakes[-1]
    assert handshake.path == path
    assert handshake.headers.get_all("Authorization") == [f"Bearer {OPENAI_KEY}"]
    assert handshake.headers["Host"] == f"127.0.0.1:{echo.port}"
    assert TOKEN not in str(handshake)


def test_a_browser_may_send_the_token_as_one_of_its_protocols(in_front: Proxy, echo: EchoServer) -> None:
    with open_socket(in_front, subprotocols=[REALTIME, BROWSER_TOKEN, BETA]) as client:
        assert client.subprotocol == REALTIME
        client.send("question")
        assert client.recv(PATIENCE) == "question"
    handshake = echo.handshakes[-1]
    assert handshake.headers.get_all("Authorization") == [f"Bearer {OPENAI_KEY}"]
    assert handshake.headers["Sec-WebSocket-Protocol"] == f"{REALTIME}, {BETA}"
    assert TOKEN not in str(handshake)


@pytest.mark.parametrize(
    ("headers", "subprotocols"),
    [
        ({}, None),
        ({"Authorization": "Bearer wrong"}, None),
        ({}, [REALTIME, Subprotocol("openai-insecure-api-key.wrong")]),
        ({"Authorization": "Bearer wrong"}, [REALTIME, BROWSER_TOKEN]),
    ],
)
def test_without_the_token_no_websocket_is_opened(
    in_front: Proxy, echo: EchoServer, headers: dict[str, str], subprotocols: list[Subprotocol] | None
) -> None:
    before = len(echo.handshakes)
    with pytest.raises(InvalidStatus) as refused:
        open_socket(in_front, headers, subprotocols)
    assert refused.value.response.status_code == 401
    assert refused.value.response.body == b'{"error":"unauthorized"}'
    assert len(echo.handshakes) == before


def test_a_refusal_passes_as_it_is(in_front: Proxy) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_socket(in_front, BEARER, path="/openai/refused")
    response = refused.value.response
    assert (response.status_code, response.reason_phrase) == (403, "Forbidden")
    assert response.headers["X-Request-Id"] == "req_9"
    assert response.body == b"not for you\n"


def test_compression_is_agreed_between_the_two_ends(in_front: Proxy) -> None:
    with open_socket(in_front, BEARER) as client:
        assert any(isinstance(extension, PerMessageDeflate) for extension in client.protocol.extensions)
        client.send("again and " * 10_000)
        assert client.recv(PATIENCE) == "again and " * 10_000


def test_large_messages_pass_both_ways(in_front: Proxy) -> None:
    large = Random(3).randbytes(5_000_000) * 4
    with open_socket(in_front, BEARER) as client:
        for sent in (large, b"", "\u00e9" * 1000, b"\x00"):
            client.send(sent)
            assert client.recv(PATIENCE) == sent


def test_many_turns_pass_on_one_socket(in_front: Proxy) -> None:
    with open_socket(in_front, BEARER) as client:
        for turn in range(200):
            client.send(f"turn {turn}")
            assert client.recv(PATIENCE) == f"turn {turn}"


def test_a_close_passes_with_its_code_and_reason(in_front: Proxy, echo: EchoServer) -> None:
    with open_socket(in_front, BEARER) as client:
        client.send("goodbye")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")


def test_a_ping_is_answered_by_the_other_end(in_front: Proxy) -> None:
    with open_socket(in_front, BEARER) as client:
        assert client.ping().wait(PATIENCE)


# Byte by byte


def tunnel(proxy: Proxy, upstream: Upstream, behind: bytes = b"") -> tuple[Wire, Wire]:
    """Open a tunnel: the client's end, and the upstream's.

    :param behind: sent by the upstream in one piece with its 101.
    """
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/realtime HTTP/1.1", *HANDSHAKE, AUTHORIZATION))
    wire, request = upstream.receive()
    assert request.head.values(b"upgrade") == [b"websocket"]
    assert request.head.values(b"connection") == [b"Upgrade"]
    wire.send(SWITCHING + behind)
    head = client.head()
    assert head.line == b"HTTP/1.1 101 Switching Protocols"
    assert head.fields() == {
        b"connection": [b"Upgrade"],
        b"upgrade": [b"websocket"],
        b"sec-websocket-accept": [b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="],
    }
    return client, wire


def test_bytes_pass_each_way_at_once(proxy: Proxy, openai: Upstream) -> None:
    client, wire = tunnel(proxy, openai)
    for _ in range(3):
        client.send(b"\x00up")
        assert wire.exactly(3) == b"\x00up"
        wire.send(b"\xffdown\r\n\r\n")
        assert client.exactly(9) == b"\xffdown\r\n\r\n"


def test_a_handshake_may_say_that_it_has_no_body(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(
        message(b"GET /openai/v1/realtime HTTP/1.1", *HANDSHAKE, AUTHORIZATION, b"Content-Length: 0")
        + b"early"
    )
    wire, request = openai.receive()
    assert request.head.values(b"upgrade") == [b"websocket"]
    assert request.head.values(b"content-length") == [b"0"]
    wire.send(SWITCHING)
    assert client.head().status == 101
    assert wire.exactly(5) == b"early"
    wire.send(b"down")
    assert client.exactly(4) == b"down"


def test_what_comes_with_the_handshakes_is_not_lost(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/realtime HTTP/1.1", *HANDSHAKE, AUTHORIZATION) + b"early")
    wire, _ = openai.receive()
    client.send(b" and more")
    wire.send(SWITCHING + b"at once")
    assert client.head().status == 101
    assert client.exactly(7) == b"at once"
    assert wire.exactly(14) == b"early and more"


def test_after_a_refusal_the_connection_speaks_http_on(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/responses HTTP/1.1", *HANDSHAKE, AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 426 Upgrade Required", b"X-Why: http", b"Content-Length: 4", body=b"post"))
    refusal = client.response()
    assert refusal.head.line == b"HTTP/1.1 426 Upgrade Required"
    assert refusal.head.fields() == {b"x-why": [b"http"], b"content-length": [b"4"]}
    assert refusal.body == b"post"
    client.send(
        message(
            b"POST /openai/v1/responses HTTP/1.1",
            b"Host: proxy.example",
            AUTHORIZATION,
            b"Content-Length: 2",
            body=b"{}",
        )
    )
    assert wire.request().body == b"{}"
    wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok"))
    assert client.response().body == b"ok"


def test_an_upstream_that_switches_unasked_is_a_bad_gateway(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"GET /openai/v1/models")
    wire, _ = openai.receive()
    wire.send(SWITCHING)
    assert client.response().head.status == 502
    wire.ending()


@pytest.mark.parametrize("leave", [Wire.end, Wire.close, Wire.reset], ids=["bare fin", "close", "reset"])
def test_the_clients_end_ends_the_upstream(
    proxy: Proxy, openai: Upstream, leave: Callable[[Wire], None]
) -> None:
    client, wire = tunnel(proxy, openai)
    client.send(b"last words")
    assert wire.exactly(10) == b"last words"
    leave(client)
    wire.ending()


def test_all_that_a_client_sent_before_its_end_arrives(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    client, wire = tunnel(proxy, openai)

    def send() -> None:
        client.send(BLOCK)
        client.end()

    sending = background(send)
    assert wire.exactly(len(BLOCK)) == BLOCK
    assert wire.ending() is Ending.FIN
    sending.result()


@pytest.mark.parametrize("leave", [Wire.end, Wire.close, Wire.reset], ids=["bare fin", "close", "reset"])
def test_the_upstreams_end_ends_the_client(
    proxy: Proxy, openai: Upstream, leave: Callable[[Wire], None]
) -> None:
    client, wire = tunnel(proxy, openai)
    wire.send(b"last words")
    assert client.exactly(10) == b"last words"
    leave(wire)
    client.ending()


def test_all_that_an_upstream_sent_before_its_end_arrives(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    client, wire = tunnel(proxy, openai)

    def send() -> None:
        wire.send(BLOCK)
        wire.end()

    sending = background(send)
    assert client.exactly(len(BLOCK)) == BLOCK
    assert client.ending() is Ending.FIN
    sending.result()


@pytest.mark.parametrize("to", ["upstream", "client"])
def test_a_side_that_does_not_read_stops_the_other_and_takes_no_memory(
    tmp_path: Path, background: Background, to: str
) -> None:
    upstream = Upstream()
    with running(tmp_path, upstream) as proxy:
        before = proxy.twistd.memory
        client, wire = tunnel(proxy, upstream)
        sender, reader = (client, wire) if to == "upstream" else (wire, client)
        flood = Flood(sender, BLOCKS)
        sending = background(flood.send)
        flood.wait_until_stalled()
        # The other way is open meanwhile.
        reader.send(b"wait")
        assert sender.exactly(4) == b"wait"
        flood.read(reader.exactly, BLOCKS)
        sending.result()
        grown = proxy.twistd.most_memory - before
        assert grown < GROWTH, f"{grown / 1e6:.1f} MB more"


def test_a_client_that_leaves_while_the_upstream_does_not_read_ends_it(
    proxy: Proxy, openai: Upstream
) -> None:
    client, wire = tunnel(proxy, openai)
    assert client.send_until_blocked(BLOCK * 100, quiet=0.5) < len(BLOCK) * 100
    client.reset()
    wire.wait_for_reset(patience=3.0)


@pytest.mark.parametrize("to", ["upstream", "client"])
def test_what_was_sent_before_an_end_in_order_arrives_also_where_it_is_read_late(
    proxy: Proxy, openai: Upstream, background: Background, to: str
) -> None:
    client, wire = tunnel(proxy, openai)
    sender, reader = (client, wire) if to == "upstream" else (wire, client)
    reader.hold_little(65536)

    def send() -> None:
        sender.send(BLOCK * LATE)
        sender.end()

    sending = background(send)
    time.sleep(2.5)  # the proxy looks each second whether the sender has left
    assert reader.exactly(LATE * len(BLOCK)) == BLOCK * LATE
    assert reader.ending() is Ending.FIN
    sending.result()


def test_both_ways_may_be_full_at_once(proxy: Proxy, openai: Upstream, background: Background) -> None:
    client, wire = tunnel(proxy, openai)
    up, down = Flood(client, 50), Flood(wire, 50)
    sending = [background(up.send), background(down.send)]
    up.wait_until_stalled()
    down.wait_until_stalled()
    reading = [background(up.read, wire.exactly, 50), background(down.read, client.exactly, 50)]
    for done in (*sending, *reading):
        done.result()


def test_a_client_that_leaves_before_the_handshake_is_answered_ends_it(
    proxy: Proxy, openai: Upstream
) -> None:
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/realtime HTTP/1.1", *HANDSHAKE, AUTHORIZATION))
    wire, _ = openai.receive()
    client.close()
    wire.ending()
