"""The demo upstream as a client on the wire sees it, and what it says."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from llmproxy.demo import ANTHROPIC_KEY, OPENAI_KEY, site
from llmproxy.demo.words import ECHO_LENGTH, Prompt, Tool, arguments_for, count, reply_to, split

INTERVAL = 0.25
EVENTS = 100  # more than any answer here has

OPENAI = {"Authorization": f"Bearer {OPENAI_KEY}"}
ANTHROPIC = {"x-api-key": ANTHROPIC_KEY, "anthropic-version": "2023-06-01"}
CHAT = "/openai/v1/chat/completions"
RESPONSES = "/openai/v1/responses"
EMBEDDINGS = "/openai/v1/embeddings"
MESSAGES = "/anthropic/v1/messages"
COUNT_TOKENS = "/anthropic/v1/messages/count_tokens"
HELLO = [{"role": "user", "content": "hello"}]


class Connection:
    """A client's connection to the demo's site, in memory."""

    def __init__(self, now: float = 0) -> None:
        self.clock = Clock()
        self.clock.advance(now)
        self.transport = StringTransport()
        self.channel = cast(Protocol, site(self.clock, INTERVAL).buildProtocol(None))
        self.channel.makeConnection(self.transport)

    def send(self, method: str, path: str, headers: dict[str, str], body: object = None) -> None:
        """Send a request; `body` is bytes, or is sent as JSON."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = {"Host": "demo", "Content-Length": str(len(content)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        self.channel.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    def received(self) -> bytes:
        """Return what has arrived since the last look."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def producer(self) -> IPushProducer:
        """Return what the transport pauses when it is full, and resumes."""
        return cast(IPushProducer, self.transport.producer)

    def run_dry(self) -> None:
        """Let the clock run until the stream is at its end, but not until the connection is idle for long."""
        self.clock.pump([INTERVAL] * EVENTS)

    def leave(self) -> None:
        self.channel.connectionLost(Failure(ConnectionLost()))


class Received:
    """What `http.client` needs of a socket to read a response that is all there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def ask(
    method: str, path: str, headers: dict[str, str], body: object = None
) -> tuple[http.client.HTTPResponse, Any]:
    """Send one request on a new connection; return the response and its body, read from JSON."""
    connection = Connection()
    connection.send(method, path, headers, body)
    received = cast(socket.socket, Received(connection.received()))
    response = http.client.HTTPResponse(received, method=method)
    response.begin()
    content = response.read()
    return response, json.loads(content) if content else None


def stream(connection: Connection, words: str = "hello") -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": words}]}
    connection.send("POST", CHAT, OPENAI, body)


class TestPace:
    def test_the_headers_and_the_first_event_are_sent_at_once(self) -> None:
        connection = Connection()
        stream(connection)
        head, _, body = connection.received().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"text/event-stream" in head
        assert body.count(b"data: ") == 1

    def test_each_interval_brings_one_event(self) -> None:
        connection = Connection()
        stream(connection)
        connection.received()
        connection.clock.advance(INTERVAL * 0.9)
        assert connection.received() == b""
        connection.clock.advance(INTERVAL * 0.2)
        assert connection.received().count(b"data: ") == 1

    def test_the_last_event_ends_the_response_and_frees_the_connection(self) -> None:
        connection = Connection()
        stream(connection)
        connection.run_dry()
        assert connection.received().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        stream(connection)
        assert connection.received().startswith(b"HTTP/1.1 200 OK")

    def test_a_client_that_leaves_mid_stream_leaves_no_timer(self) -> None:
        connection = Connection()
        stream(connection)
        connection.clock.advance(INTERVAL)
        connection.leave()
        assert connection.clock.getDelayedCalls() == []

    def test_a_client_that_reads_slowly_pauses_the_pace(self) -> None:
        connection = Connection()
        stream(connection)
        connection.received()
        connection.producer().pauseProducing()
        connection.clock.advance(INTERVAL * 10)
        assert connection.received() == b""
        connection.producer().resumeProducing()
        connection.clock.advance(INTERVAL)
        assert connection.received().count(b"data: ") == 1

    def test_a_connection_that_is_full_with_the_first_event_gets_no_second(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = Connection()
        write: Callable[[Iterable[bytes]], None] = connection.transport.writeSequence

        def fill(data: Iterable[bytes]) -> None:
            write(data)
            connection.producer().pauseProducing()

        monkeypatch.setattr(connection.transport, "writeSequence", fill)
        stream(connection)
        connection.clock.advance(INTERVAL * 10)
        assert connection.received().count(b"data: ") == 1

    def test_to_resume_what_was_not_paused_does_not_double_the_pace(self) -> None:
        connection = Connection()
        stream(connection)
        connection.received()
        connection.producer().resumeProducing()
        connection.clock.advance(INTERVAL)
        assert connection.received().count(b"data: ") == 1

    def test_a_paused_stream_that_is_stopped_is_not_taken_up_again(self) -> None:
        connection = Connection()
        stream(connection)
        connection.producer().pauseProducing()
        connection.producer().stopProducing()
        connection.producer().resumeProducing()
        assert connection.clock.getDelayedCalls() == []

    def test_text_beyond_ascii_is_sent_as_utf_8_and_a_lone_surrogate_is_replaced(self) -> None:
        connection = Connection()
        stream(connection, "na\u00efve \ud800")
        connection.run_dry()
        received = connection.received()
        assert "na\u00efve".encode() in received
        assert b" ?" in received


class TestSite:
    @pytest.mark.parametrize(
        ("path", "headers", "header"),
        [(CHAT, OPENAI, "x-request-id"), (MESSAGES, ANTHROPIC, "request-id")],
    )
    def test_each_response_names_its_request(self, path: str, headers: dict[str, str], header: str) -> None:
        ids = [ask("POST", path, headers, b"{}")[0].getheader(header) for _ in range(2)]
        assert all(name and name.startswith("req_") for name in ids)
        assert ids[0] != ids[1]

    def test_a_completion_is_dated_by_the_clock(self) -> None:
        connection = Connection(now=1_700_000_000.9)
        connection.send("POST", CHAT, OPENAI, {"model": "m", "messages": HELLO})
        assert b'"created":1700000000,' in connection.received()

    def test_the_answer_to_head_has_no_body(self) -> None:
        response, body = ask("HEAD", "/anthropic/api/hello", ANTHROPIC)
        assert (response.status, body) == (404, None)

    def test_a_path_outside_both_apis_is_not_found(self) -> None:
        connection = Connection()
        connection.send("GET", "/elsewhere", {})
        assert connection.received().startswith(b"HTTP/1.1 404 ")

    def test_requests_are_not_logged(self) -> None:
        with capturedLogs() as events:
            connection = Connection()
            connection.channel.factory.doStart()
            connection.send("GET", "/openai/v1/models?key=local-secret", OPENAI)
            connection.channel.factory.doStop()
        assert connection.received().startswith(b"HTTP/1.1 200 OK")
        assert not [event for event in events if "models" in repr(event)]


class TestErrors:
    @pytest.mark.parametrize(
        ("headers", "code"),
        [
            ({}, None),
            ({"Authorization": "Bearer wrong"}, "invalid_api_key"),
            ({"Authorization": f"bearer {OPENAI_KEY} "}, "invalid_api_key"),
            ({**OPENAI, "authorization": "Bearer wrong"}, "invalid_api_key"),
            ({"x-api-key": OPENAI_KEY}, None),
        ],
        ids=["none", "wrong", "other scheme", "a second one", "elsewhere"],
    )
    def test_openai_refuses_all_but_its_key(self, headers: dict[str, str], code: str | None) -> None:
        response, body = ask("POST", CHAT, headers, {"model": "m", "messages": HELLO})
        assert response.status == 401
        error = body["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)
        assert "wrong" not in error["message"]

    @pytest.mark.parametrize(
        ("headers", "message"),
        [
            ({}, "x-api-key header is required"),
            ({"x-api-key": "wrong"}, "invalid x-api-key"),
            ({"x-api-key": ANTHROPIC_KEY, "X-Api-Key": "wrong"}, "invalid x-api-key"),
            ({"Authorization": f"Bearer {ANTHROPIC_KEY}"}, "x-api-key header is required"),
        ],
        ids=["none", "wrong", "a second one", "elsewhere"],
    )
    def test_anthropic_refuses_all_but_its_key(self, headers: dict[str, str], message: str) -> None:
        response, body = ask("GET", "/anthropic/v1/models", headers)
        assert response.status == 401
        assert body == {
            "type": "error",
            "error": {"type": "authentication_error", "message": message},
            "request_id": response.getheader("request-id"),
        }

    @pytest.mark.parametrize("path", [MESSAGES, COUNT_TOKENS])
    def test_anthropic_asks_for_a_version(self, path: str) -> None:
        response, body = ask("POST", path, {"x-api-key": ANTHROPIC_KEY}, {"model": "m", "messages": HELLO})
        assert response.status == 400
        assert body["error"] == {
            "type": "invalid_request_error",
            "message": "anthropic-version: header is required",
        }

    @pytest.mark.parametrize(
        ("path", "body", "param", "code"),
        [
            (CHAT, {"messages": HELLO}, "model", "missing_required_parameter"),
            (CHAT, {"model": "m"}, "messages", "missing_required_parameter"),
            (CHAT, {"model": 4, "messages": HELLO}, "model", "invalid_value"),
            (CHAT, {"model": "m", "messages": []}, "messages", "invalid_value"),
            (CHAT, {"model": "m", "messages": ["hello"]}, "messages", "invalid_value"),
            (CHAT, {"model": "m", "messages": HELLO, "max_tokens": 0}, "max_tokens", "invalid_value"),
            (CHAT, {"model": "m", "messages": HELLO, "max_tokens": True}, "max_tokens", "invalid_value"),
            (CHAT, {"model": "m", "messages": HELLO, "stream": "yes"}, "stream", "invalid_value"),
            (RESPONSES, {"input": "hello"}, "model", "missing_required_parameter"),
            (RESPONSES, {"model": "m"}, "input", "missing_required_parameter"),
            (RESPONSES, {"model": "m", "input": 5}, "input", "invalid_value"),
            (EMBEDDINGS, {"input": "hello"}, "model", "missing_required_parameter"),
            (EMBEDDINGS, {"model": "m"}, "input", "missing_required_parameter"),
            (EMBEDDINGS, {"model": "m", "input": []}, "input", "invalid_value"),
            (EMBEDDINGS, {"model": "m", "input": ["hello", 1]}, "input", "invalid_value"),
            (EMBEDDINGS, {"model": "m", "input": "x", "dimensions": 9999}, "dimensions", "invalid_value"),
            (EMBEDDINGS, {"model": "m", "input": "x", "encoding_format": "hex"}, "encoding_format", None),
        ],
    )
    def test_openai_names_the_field_that_is_wrong(
        self, path: str, body: object, param: str, code: str | None
    ) -> None:
        response, answer = ask("POST", path, OPENAI, body)
        error = answer["error"]
        assert (response.status, error["type"]) == (400, "invalid_request_error")
        assert (error["param"], error["code"]) == (param, code or "invalid_value")
        assert f"'{param}'" in error["message"]

    @pytest.mark.parametrize(
        ("path", "body", "message"),
        [
            (MESSAGES, {"max_tokens": 9, "messages": HELLO}, "model: Field required"),
            (MESSAGES, {"max_tokens": 9, "model": "m"}, "messages: Field required"),
            (MESSAGES, {"model": "m", "messages": HELLO}, "max_tokens: Field required"),
            (
                MESSAGES,
                {"model": "m", "messages": HELLO, "max_tokens": "9"},
                "max_tokens: Input should be a positive integer",
            ),
            (COUNT_TOKENS, {"messages": HELLO}, "model: Field required"),
            (COUNT_TOKENS, {"model": "m"}, "messages: Field required"),
        ],
    )
    def test_anthropic_names_the_field_that_is_wrong(self, path: str, body: object, message: str) -> None:
        response, answer = ask("POST", path, ANTHROPIC, body)
        assert response.status == 400
        assert answer["error"] == {"type": "invalid_request_error", "message": message}

    @pytest.mark.parametrize("body", [b"", b'{"model": ', b'"model"', b"\xff", b"[" * 100_000])
    @pytest.mark.parametrize(("path", "headers"), [(CHAT, OPENAI), (MESSAGES, ANTHROPIC)])
    def test_a_body_that_is_no_json_object_is_refused(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> None:
        response, answer = ask("POST", path, headers, body)
        assert (response.status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert "JSON" in answer["error"]["message"]

    @pytest.mark.parametrize("request_line", ["GET /v1/chat/completions", "POST /v1/nothing", "GET /"])
    def test_openai_does_not_know_other_paths(self, request_line: str) -> None:
        method, path = request_line.split()
        response, body = ask(method, f"/openai{path}", OPENAI)
        assert response.status == 404
        error = {"type": "invalid_request_error", "param": None, "code": None}
        assert body == {"error": {"message": f"Invalid URL ({request_line})", **error}}

    def test_anthropic_does_not_know_other_paths(self) -> None:
        response, body = ask("POST", "/anthropic/v1/nothing", ANTHROPIC)
        assert response.status == 404
        assert body["error"] == {"type": "not_found_error", "message": "Not found"}


class TestWords:
    @given(st.text())
    def test_the_pieces_of_a_text_join_to_it(self, text: str) -> None:
        assert "".join(split(text)) == text

    def test_words_are_pieces_and_long_words_are_several(self) -> None:
        assert split("the internationalisation ") == ["the", " internat", "ionalisa", "tion", " "]

    def test_the_prompt_is_echoed(self) -> None:
        assert 'You said: "good morning".' in reply_to(Prompt(texts=[], user="good morning")).text

    def test_a_long_prompt_is_echoed_in_part(self) -> None:
        text = reply_to(Prompt(texts=[], user="x" * 10_000)).text
        assert "x" * ECHO_LENGTH + "…" in text
        assert "x" * (ECHO_LENGTH + 1) not in text

    def test_a_prompt_without_text_is_answered(self) -> None:
        assert reply_to(Prompt(texts=[], user="")).text.startswith("You sent no text.")

    def test_the_result_of_a_tool_is_echoed_and_no_tool_called(self) -> None:
        reply = reply_to(Prompt(texts=[], user="q", tool_result="18 degrees", tool=Tool("f", {})))
        assert reply.tool is None
        assert '"18 degrees"' in reply.text

    def test_the_limit_cuts_the_answer(self) -> None:
        whole = reply_to(Prompt(texts=[], user="hello"))
        cut = reply_to(Prompt(texts=[], user="hello", limit=3))
        assert (cut.tokens, cut.cut) == (3, True)
        assert whole.text.startswith(cut.text)
        assert not reply_to(Prompt(texts=[], user="hello", limit=whole.tokens)).cut

    def test_the_tokens_of_a_prompt_are_those_of_its_texts(self) -> None:
        prompt = Prompt(texts=["be brief", "hello there"], user="hello there")
        assert prompt.tokens == count("be brief") + count("hello there") == 4

    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            ({"type": "string"}, "hi"),
            ({"type": "string", "maxLength": 1}, "h"),
            ({"enum": ["celsius", "kelvin"]}, "celsius"),
            ({"const": 7}, 7),
            ({"type": "integer"}, 1),
            ({"type": "integer", "minimum": 5, "maximum": 9}, 5),
            ({"type": "number", "maximum": 0.5}, 0.5),
            ({"type": "boolean"}, True),
            ({"type": "null"}, None),
            ({"type": ["null", "boolean"]}, True),
            ({"type": "array", "items": {"type": "integer"}}, [1]),
            ({"type": "array"}, ["hi"]),
            ({"type": "object"}, {}),
            ({"properties": {"b": {"type": "boolean"}}}, {"b": True}),
            ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 1),
            ({"$ref": "#/$defs/Unit"}, "metric"),
            ({"$ref": "#/$defs/Missing"}, "hi"),
            (True, "hi"),
        ],
    )
    def test_an_argument_fits_its_schema(self, schema: object, value: object) -> None:
        parameters = {
            "type": "object",
            "properties": {"argument": schema},
            "$defs": {"Unit": {"type": "string", "enum": ["metric", "imperial"]}},
        }
        assert arguments_for(parameters, "hi") == {"argument": value}

    def test_only_required_arguments_are_given_where_some_are_required(self) -> None:
        schema = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}
        assert arguments_for(schema, "hi") == {"b": "hi"}

    def test_a_schema_that_contains_itself_ends(self) -> None:
        tree: dict[str, Any] = {"type": "object", "required": ["name", "children"]}
        tree["properties"] = {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}},
        }
        arguments = arguments_for(tree, "hi")
        while arguments["children"]:
            assert arguments["name"] == "hi"
            arguments = arguments["children"][0]
        assert arguments == {"name": "hi", "children": []}

    def test_a_schema_that_no_value_fits_ends(self) -> None:
        assert arguments_for({"anyOf": [{"$ref": "#"}]}, "hi") == {}
