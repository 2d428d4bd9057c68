"""What the record of an exchange says of it, through the whole proxy in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import attrs
import pytest
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived

from llmproxy.config import Config, Family, Upstream
from llmproxy.exchange import Ending, Exchange
from llmproxy.http.fields import Fields
from llmproxy.observation import labels_of
from llmproxy.unknown import usage_is_unknown
from llmproxy.usage import Reading, Usage
from tests.conftest import LoggedFailures
from tests.forwarding_support import Taker
from tests.support import (
    BEARER,
    CONFIG,
    HANDSHAKE,
    OPENAI,
    TOKEN,
    ClientConnection,
    Peer,
    Proxy,
    UpstreamResponse,
    client_with,
    log_lines,
)
from tests.test_frames import Deflated, frame
from tests.usage_support import CODINGS, dumped, event

CHAT = b"/openai/v1/chat/completions"
MESSAGES = b"/anthropic/v1/messages"
JSON = (b"Content-Type", b"application/json")
SSE = (b"Content-Type", b"text/event-stream")
ASKED = b'{"model":"gpt-5","messages":[]}'
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "model": "gpt-5-2026-01-01",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}
USAGE = Usage(input_tokens=10, output_tokens=2)
DELTA = event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "Hi"}}]})
TOLD = event({**ANSWER, "choices": []})
DONE = b"data: [DONE]\n\n"


def post(
    proxy: Proxy, target: bytes = CHAT, body: bytes = ASKED, headers: Iterable[tuple[bytes, bytes]] = (JSON,)
) -> ClientConnection:
    return proxy.ask(target, method=b"POST", headers=[BEARER, *headers], body=body)


def answer(proxy: Proxy, *headers: tuple[bytes, bytes], code: int = 200) -> UpstreamResponse:
    response: UpstreamResponse = proxy.agent.requests[-1].answer(code, b"Answer", headers)
    return response


def only(proxy: Proxy) -> Exchange:
    (over,) = proxy.exchanges
    return over


def reading_of(proxy: Proxy) -> Reading:
    reading = only(proxy).reading
    assert reading is not None
    return reading


def with_family(family: Family) -> Config:
    return attrs.evolve(CONFIG, upstreams=(attrs.evolve(OPENAI, family=family),))


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


class TestRequest:
    def test_the_model_in_a_body_is_noted(self, proxy: Proxy) -> None:
        post(proxy)
        answer(proxy).end()
        assert only(proxy).asked_model == "gpt-5"

    def test_it_is_also_where_the_body_comes_in_pieces_while_the_answer_is_there(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(b"POST %b HTTP/1.1\r\nHost: x\r\n%b: %b\r\n" % (CHAT, *BEARER))
        client.send(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ASKED))
        Taker(proxy.agent.only)
        upstream = answer(proxy)
        for at in range(len(ASKED)):
            client.send(ASKED[at : at + 1])
        upstream.end()
        assert (only(proxy).asked_model, only(proxy).received) == ("gpt-5", len(ASKED))

    @pytest.mark.parametrize(
        "headers", [[], [(b"Content-Type", b"text/plain")], [JSON, (b"Content-Encoding", b"gzip")]]
    )
    def test_a_body_that_is_not_plain_json_is_not_looked_at(
        self, proxy: Proxy, headers: list[tuple[bytes, bytes]]
    ) -> None:
        post(proxy, headers=headers)
        answer(proxy).end()
        assert (only(proxy).asked_model, only(proxy).received) == (None, len(ASKED))

    @pytest.mark.parametrize(
        ("family", "target"),
        [
            (Family.GEMINI, b"/openai/v1beta/models/in-path:generateContent"),
            (Family.OPENAI, b"/openai/openai/deployments/in-path/chat/completions?api-version=1"),
        ],
    )
    def test_a_path_that_names_a_model_comes_before_the_body(self, family: Family, target: bytes) -> None:
        proxy = Proxy(with_family(family))
        post(proxy, target)
        answer(proxy).end()
        assert only(proxy).asked_model == "in-path"

    def test_a_query_names_one_for_a_websocket_alone(self, proxy: Proxy) -> None:
        post(proxy, CHAT + b"?model=in-query")
        answer(proxy).end()
        assert only(proxy).asked_model == "gpt-5"

    def test_of_a_request_that_was_not_answered_it_is_noted_too(self, proxy: Proxy) -> None:
        post(proxy)
        proxy.agent.only.fail(error.ConnectionRefusedError())
        assert (only(proxy).asked_model, only(proxy).received) == ("gpt-5", len(ASKED))
        assert only(proxy).ending is Ending.UPSTREAM_FAILED

    def test_what_found_no_connection_is_known_to_cost_nothing(self, proxy: Proxy) -> None:
        post(proxy)
        proxy.agent.only.fail(error.ConnectionRefusedError())
        reading = only(proxy).reading
        assert reading is not None
        assert (reading.source, reading.usage) == ("free", Usage(billable=False))

    def test_of_what_may_have_been_sent_nobody_knows_the_cost(self, proxy: Proxy) -> None:
        post(proxy)
        proxy.agent.only.fail(ResponseNeverReceived([Failure(error.ConnectionLost())]))
        assert only(proxy).reading is None

    def test_of_a_model_that_was_refused_it_is_noted_too(self) -> None:
        config = attrs.evolve(CONFIG, clients=(client_with(TOKEN, models=("gpt-4",)),))
        proxy = Proxy(config)
        assert post(proxy).response().status == 403
        assert (only(proxy).asked_model, only(proxy).ending) == ("gpt-5", Ending.REFUSED)


class TestLabels:
    def test_the_ids_of_sessions_and_agents_are_noted(self, proxy: Proxy) -> None:
        names = ("x-claude-code-session-id", "x-claude-code-agent-id", "x-claude-code-parent-agent-id")
        labels = {name: f"value of {name}" for name in names}
        sent = [(name.title().encode(), value.encode()) for name, value in labels.items()]
        post(proxy, headers=[*sent, (b"X-Other-Session-Id", b"other")])
        answer(proxy).end()
        assert only(proxy).labels == labels
        assert proxy.agent.only.headers.hasHeader(b"x-claude-code-session-id")  # it passes all the same

    def test_without_them_there_are_none(self, proxy: Proxy) -> None:
        post(proxy)
        answer(proxy).end()
        assert only(proxy).labels == {}

    def test_a_setting_says_which_headers(self) -> None:
        headers = Fields([(b"X-Team", b"one"), (b"X-Team", b"two"), (b"X-Claude-Code-Session-Id", b"s")])
        assert labels_of(headers, (b"x-team", b"x-absent")) == {"x-team": "one"}

    def test_they_are_cut_to_a_length(self) -> None:
        headers = Fields([(b"X-Team", b"\xe4" * 10_000)])
        assert labels_of(headers, (b"x-team",)) == {"x-team": "ä" * 256}

    @pytest.mark.parametrize(
        ("target", "token", "status"),
        [
            (CHAT, b"Bearer wrong", 401),
            (b"/openai", BEARER[1], 404),
            (MESSAGES, BEARER[1], 403),
        ],
    )
    def test_those_of_requests_that_were_refused_are_noted_too(
        self, target: bytes, token: bytes, status: int
    ) -> None:
        client = client_with(TOKEN, upstreams=frozenset({"openai"}))
        proxy = Proxy(attrs.evolve(CONFIG, clients=(client,)))
        session = (b"X-Claude-Code-Session-Id", b"s-1")
        refused = proxy.ask(target, method=b"POST", headers=[(BEARER[0], token), session], body=ASKED)
        assert refused.response().status == status
        assert only(proxy).labels == {"x-claude-code-session-id": "s-1"}
        assert (only(proxy).ending, only(proxy).status) == (Ending.REFUSED, status)


class TestAnswer:
    @pytest.mark.parametrize("coding", [b"", *CODINGS])
    def test_its_usage_is_read_and_its_bytes_pass_as_they_are(self, proxy: Proxy, coding: bytes) -> None:
        body = CODINGS[coding](dumped(ANSWER)) if coding else dumped(ANSWER)
        client = post(proxy)
        headers = [(b"Content-Encoding", coding)] if coding else []
        upstream = answer(proxy, JSON, *headers, (b"Content-Length", b"%d" % len(body)))
        for at in range(0, len(body), 7):
            upstream.chunk(body[at : at + 7])
        upstream.end()
        assert client.response().body == body
        reading = reading_of(proxy)
        assert (reading.usage, reading.source, reading.outcome) == (USAGE, "reported", "complete")
        assert (reading.model, reading.response_id) == ("gpt-5-2026-01-01", "chatcmpl-1")

    def test_of_a_stream_the_time_of_the_first_token_is_noted(self, proxy: Proxy) -> None:
        client = post(proxy)
        proxy.clock.advance(1)
        upstream = answer(proxy, SSE)
        role = event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        for seconds, data in [(1, role), (2, DELTA), (3, DELTA), (4, TOLD), (5, DONE)]:
            proxy.clock.advance(seconds)
            upstream.chunk(data)
        upstream.end()
        assert client.response().body == role + DELTA + DELTA + TOLD + DONE
        assert (reading_of(proxy).usage, reading_of(proxy).outcome) == (USAGE, "complete")
        over = only(proxy)
        assert (over.first_byte, over.first_token, over.duration) == (1.0, 4.0, 16.0)

    @pytest.mark.parametrize("end", ["client", "upstream", "silence"])
    def test_one_that_was_not_finished_is_cut_and_its_usage_not_known(self, proxy: Proxy, end: str) -> None:
        client = post(proxy)
        upstream = answer(proxy, SSE)
        upstream.chunk(DELTA)
        if end == "client":
            client.leave()
        elif end == "upstream":
            upstream.end(error.ConnectionLost())
        else:
            proxy.clock.advance(50)
        reading = reading_of(proxy)
        assert (reading.usage, reading.source, reading.outcome) == (None, "absent", "cut")

    def test_what_anthropic_told_before_the_client_left_is_kept(self, proxy: Proxy) -> None:
        client = post(proxy, MESSAGES)
        upstream = answer(proxy, SSE)
        usage = {"input_tokens": 9, "output_tokens": 1}
        upstream.chunk(event({"type": "message_start", "message": {"id": "msg_1", "usage": usage}}))
        client.leave()
        assert reading_of(proxy).usage == Usage(input_tokens=9, output_tokens=1)
        assert reading_of(proxy).outcome == "cut"

    @pytest.mark.parametrize("method", [b"GET", b"DELETE"])
    def test_only_what_was_made_for_the_request_counts(self, proxy: Proxy, method: bytes) -> None:
        proxy.ask(b"/openai/v1/responses/resp_1", method=method)
        upstream = answer(proxy, JSON)
        upstream.chunk(dumped(ANSWER))
        upstream.end()
        assert only(proxy).reading is None

    @pytest.mark.parametrize(
        "target", [b"/openai/v1/batches", b"/openai/v1/batches?x", b"/anthropic/v1/messages/batches/"]
    )
    def test_what_a_batch_will_use_is_not_what_its_making_tells(self, proxy: Proxy, target: bytes) -> None:
        post(proxy, target)
        made = {
            "id": "batch_1",
            "object": "batch",
            "model": "gpt-5",
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        for document in (made, {**made, "usage": {"input_tokens": 9, "output_tokens": 1}}):
            if document is not made:
                proxy.ask(target.rstrip(b"/") + b"/batch_1", method=b"GET")
            upstream = answer(proxy, JSON)
            upstream.chunk(dumped(document))
            upstream.end()
        assert [usage_is_unknown(over) for over in proxy.exchanges] == [True, False]
        assert [over.reading for over in proxy.exchanges] == [None, None]

    def test_of_an_upstream_of_no_known_family_nothing_is_read(self) -> None:
        proxy = Proxy(with_family(Family.NONE))
        post(proxy)
        upstream = answer(proxy, JSON)
        upstream.chunk(dumped(ANSWER))
        upstream.end()
        assert only(proxy).reading is None

    @pytest.mark.parametrize("name", [b"Request-Id", b"X-Request-Id"])
    def test_the_upstreams_own_id_is_noted_and_passes(self, proxy: Proxy, name: bytes) -> None:
        client = post(proxy)
        answer(proxy, (name, b"req_1")).end()
        assert only(proxy).upstream_request_id == "req_1"
        assert client.response().values(name.lower()) == [b"req_1"]

    @pytest.mark.parametrize("reused", [False, True])
    def test_it_is_noted_whether_its_connection_was_new(self, proxy: Proxy, reused: bool) -> None:
        post(proxy)
        response = UpstreamResponse(proxy.clock, 200, b"OK", Fields(), 0)
        response.reused = reused
        proxy.agent.only.answered.callback(response)
        response.end()
        assert only(proxy).reused is reused

    def test_of_an_answer_that_another_key_was_tried_after_nothing_is_noted(self) -> None:
        upstream = attrs.evolve(OPENAI, keys=("sk-first", "sk-second"))
        proxy = Proxy(attrs.evolve(CONFIG, upstreams=(upstream,)))
        post(proxy)
        answer(proxy, JSON, (b"x-request-id", b"req_refused"), code=429)
        second = answer(proxy, JSON)
        second.chunk(dumped(ANSWER))
        second.end()
        assert (only(proxy).status, only(proxy).upstream_request_id) == (200, None)
        assert reading_of(proxy).usage == USAGE

    def test_a_fault_of_a_tap_is_logged_and_harms_nothing(
        self, proxy: Proxy, logged_failures: LoggedFailures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def feed(_: object, data: bytes) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("llmproxy.usage.sse.EventStream.feed", feed)
        client = post(proxy)
        upstream = answer(proxy, SSE)
        with log_lines() as lines:
            for data in (DELTA, TOLD, DONE):
                upstream.chunk(data)
            upstream.end()
        assert client.response().body == DELTA + TOLD + DONE
        assert (only(proxy).ending, reading_of(proxy).source) == (Ending.COMPLETED, "undecodable")
        assert lines == ["An answer's usage could not be read"]
        assert len(logged_failures.flush(ZeroDivisionError)) == 1


def turn(name: str = "resp_1") -> list[dict[str, Any]]:
    """A turn of a Realtime session, of 10 tokens in and 2 out."""
    usage = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
    return [
        {"type": "response.created", "response": {"id": name, "usage": None}},
        {"type": "response.output_audio.delta", "delta": "AAAA"},
        {"type": "response.done", "response": {"id": name, "status": "completed", "usage": usage}},
    ]


class Session:
    """A WebSocket that both sides agreed to."""

    def __init__(
        self,
        upstream: Upstream = OPENAI,
        extensions: bytes = b"",
        target: bytes = b"/openai/v1/realtime?model=gpt-realtime",
    ) -> None:
        self.proxy = Proxy(attrs.evolve(CONFIG, upstreams=(upstream,)))
        self.client = self.proxy.ask(target, headers=[BEARER, *HANDSHAKE])
        headers = [(b"Sec-WebSocket-Extensions", extensions)] if extensions else []
        self._response = self.proxy.agent.only.answer(101, b"Switching Protocols", headers)
        self._head = self.client.received

    @property
    def upstream(self) -> Peer:
        peer: Peer = self._response.peer
        return peer

    def send(self, data: bytes) -> None:
        """Let the upstream send bytes, which the client must get whatever they are."""
        self.upstream.send(data)
        assert self.client.received.endswith(data)

    def end(self) -> Reading | None:
        """End the session; return what was read of it, but for its turns."""
        self.client.leave()
        self.proxy.turn()
        return self.proxy.exchanges[-1].reading

    @property
    def turns(self) -> list[Exchange]:
        """The records of its turns until now."""
        return [exchange for exchange in self.proxy.exchanges if exchange.socket is not None]

    @property
    def passed(self) -> bytes:
        return self.client.received.removeprefix(self._head)


def frames(*messages: dict[str, Any]) -> bytes:
    return b"".join(frame(1, dumped(message)) for message in messages)


class TestSession:
    @pytest.mark.parametrize("at_once", [True, False])
    def test_each_of_its_turns_is_told_when_it_ends(self, at_once: bool) -> None:
        session = Session()
        sent = frames(*turn("resp_1"), *turn("resp_2"))
        for data in [sent] if at_once else [sent[at : at + 1] for at in range(len(sent))]:
            session.send(data)
        assert session.passed == sent
        assert [exchange.reading for exchange in session.turns] == [
            Reading(None, name, "completed", None, USAGE, "reported", "complete")
            for name in ("resp_1", "resp_2")
        ]
        reading = session.end()
        assert reading is not None
        assert (reading.usage, reading.source, reading.outcome) == (None, "turns", "complete")
        assert len(session.proxy.exchanges) == 3
        assert len({exchange.id for exchange in session.proxy.exchanges}) == 3

    def test_a_turn_is_told_with_what_is_known_of_its_socket(self) -> None:
        session = Session()
        session.send(frames(*turn()))
        (told,) = session.turns
        session.end()
        socket = session.proxy.exchanges[-1]
        for name in ("client", "upstream", "method", "path", "status", "asked_model", "labels"):
            assert getattr(told, name) == getattr(socket, name)
        assert (told.socket, socket.socket) == (socket.id, None)
        assert told.asked_model == "gpt-realtime"
        assert (told.sent, told.received, told.ending) == (0, 0, Ending.COMPLETED)

    def test_compressed_messages_are_read(self) -> None:
        session = Session(extensions=b"permessage-deflate")
        deflated = Deflated()
        for message in (*turn(), *turn()):
            session.send(frame(1, deflated(dumped(message)), compressed=True))
        assert [exchange.reading.usage for exchange in session.turns if exchange.reading] == [USAGE, USAGE]

    def test_the_times_of_a_turn_count_from_when_the_client_asked_for_it(self) -> None:
        session = Session()
        advance = session.proxy.clock.advance
        for _ in range(2):
            advance(100)
            session.client.send(frame(1, b'{"type":"response.create"}', key=b"mask"))
            for message in turn():
                advance(1)
                session.send(frames(message))
        session.end()
        *turns, socket = session.proxy.exchanges
        for told in turns:
            assert (told.first_byte, told.first_token, told.duration) == (1.0, 2.0, 3.0)
        assert [told.started - socket.started for told in turns] == [100.0, 203.0]
        assert [told.begun_ns - socket.begun_ns for told in turns] == [100 * 10**9, 203 * 10**9]
        assert [told.id[:12] for told in turns] == [f"{told.begun_ns // 10**6:012x}" for told in turns]
        assert socket.first_token is None

    @pytest.mark.parametrize("opcode", [9, 10])
    def test_pings_and_pongs_are_nothing_that_a_turn_would_answer(self, opcode: int) -> None:
        session = Session()
        asked = frame(1, b'{"type":"response.create"}', key=b"mask")
        for at in range(1, len(asked)):
            session.client.send(asked[:at])
            session.proxy.clock.advance(7)
            session.client.send(asked[at:])
            for data in (frame(opcode, b"", key=b"mask"), frame(opcode, b"\x81\x02" * 9, key=b"\x00" * 4)):
                session.proxy.clock.advance(1)
                session.client.send(data[:at])
                session.client.send(data[at:])
            session.proxy.clock.advance(1)
            session.send(frames(*turn()))
            told = session.turns[-1]
            assert (told.first_byte, told.first_token, told.duration) == (3.0, 3.0, 3.0)

    def test_a_turn_in_which_a_session_was_left_is_cut_and_those_before_are_kept(self) -> None:
        session = Session()
        session.send(frames(*turn("resp_1"), *turn("resp_2")[:2]))
        assert len(session.turns) == 1
        session.end()
        whole, left = (exchange.reading for exchange in session.turns)
        assert whole is not None
        assert left is not None
        assert (whole.usage, whole.outcome) == (USAGE, "complete")
        assert (left.usage, left.source, left.outcome) == (None, "absent", "cut")
        assert [exchange.socket is None for exchange in session.proxy.exchanges] == [False, False, True]

    def test_a_turn_ends_as_its_socket_does(self) -> None:
        session = Session()
        session.send(frames(*turn("resp_1"), *turn("resp_2")[:2]))
        session.client.stop_reading()
        session.client.leave(error.ConnectionLost())
        session.proxy.turn()
        endings = [exchange.ending for exchange in session.proxy.exchanges]
        assert endings == [Ending.COMPLETED, Ending.CLIENT_LEFT, Ending.CLIENT_LEFT]

    def test_what_comes_from_the_client_or_is_no_message_counts_for_nothing(self) -> None:
        session = Session()
        session.send(b"".join(frame(opcode, b"{}") for opcode in (9, 10)))
        session.client.send(b"".join(frame(1, dumped(message), key=b"mask") for message in turn()))
        reading = session.end()
        assert reading is not None
        assert (reading.usage, reading.source) == (None, "turns")
        assert session.turns == []

    def test_binary_messages_are_read_as_texts_are(self) -> None:
        session = Session()
        session.send(b"".join(frame(2, dumped(message)) for message in turn()))
        assert [told.reading.usage for told in session.turns if told.reading] == [USAGE]

    def test_frames_that_cannot_be_read_pass_and_leave_the_usage_unknown(self) -> None:
        session = Session()
        session.send(frames(*turn()))
        session.send(b"\xff\xff broken")
        session.send(frames(*turn()))
        reading = session.end()
        assert reading is not None
        assert (reading.usage, reading.source) == (None, "undecodable")
        # What was told before stays told; that there may have been more is what the socket's own record says.
        told, socket = session.proxy.exchanges
        assert told.reading is not None
        assert told.reading.usage == USAGE
        assert socket.ending is Ending.COMPLETED

    @pytest.mark.parametrize("extensions", [b"", b"permessage-deflate"])
    def test_a_message_that_is_too_large_to_be_looked_at_passes_and_leaves_only_its_turn_unknown(
        self, monkeypatch: pytest.MonkeyPatch, extensions: bytes
    ) -> None:
        monkeypatch.setattr("llmproxy.usage.framed._LARGEST_MESSAGE", 2000)
        session = Session(extensions=extensions)
        deflated = Deflated()
        large = turn("resp_2")
        large[-1]["response"]["output"] = "x" * 2000
        for message in (*turn("resp_1"), *large, *turn("resp_3")):
            data = dumped(message)
            session.send(frame(1, deflated(data), compressed=True) if extensions else frame(1, data))
        told = [exchange.reading for exchange in session.turns if exchange.reading is not None]
        assert [(reading.response_id, reading.usage, reading.source) for reading in told] == [
            ("resp_1", USAGE, "reported"),
            ("resp_2", None, "too_large"),
            ("resp_3", USAGE, "reported"),
        ]
        reading = session.end()
        assert reading is not None
        assert (reading.usage, reading.source) == (None, "turns")

    def test_an_extension_that_is_not_known_leaves_the_usage_unknown(self) -> None:
        session = Session(extensions=b"x-unheard-of")
        session.send(frames(*turn()))
        reading = session.end()
        assert reading is not None
        assert (reading.usage, reading.source) == (None, "undecodable")

    @pytest.mark.parametrize("family", [Family.ANTHROPIC, Family.NONE])
    def test_of_a_family_without_sessions_nothing_is_read(self, family: Family) -> None:
        session = Session(attrs.evolve(OPENAI, family=family))
        session.send(frames(*turn()))
        assert session.end() is None


LIVE = b"/openai/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent?key=k"
SETUP = dumped({"setup": {"model": "models/gemini-live-2.5-flash-preview", "tools": [{"model": "none"}]}})


def live_turn(**content: Any) -> list[dict[str, Any]]:
    """A turn of a Live session, of 10 tokens in and 2 out."""
    counts = {"promptTokenCount": 10, "responseTokenCount": 2, "totalTokenCount": 12}
    return [
        {"serverContent": {"inputTranscription": {"text": "Hello."}}},
        {"usageMetadata": {"promptTokenCount": 10, "totalTokenCount": 10}},
        {"serverContent": {"modelTurn": {"parts": [{"inlineData": {"data": "AAAA"}}]}}},
        {"serverContent": {"turnComplete": True, **content}, "usageMetadata": counts},
    ]


def live_session(extensions: bytes = b"") -> Session:
    return Session(attrs.evolve(OPENAI, family=Family.GEMINI), extensions, LIVE)


def binary(*messages: dict[str, Any]) -> bytes:
    return b"".join(frame(2, dumped(message)) for message in messages)


class TestLiveSession:
    def test_each_of_its_turns_is_told_with_the_model_of_the_setup(self) -> None:
        session = live_session()
        session.client.send(frame(1, SETUP, key=b"mask"))
        assert session.upstream.received == frame(1, SETUP, key=b"mask")
        sent = binary({"setupComplete": {}}, *live_turn(), *live_turn(interrupted=True))
        session.send(sent)
        assert session.passed == sent
        assert [(told.asked_model, told.reading) for told in session.turns] == [
            (
                "gemini-live-2.5-flash-preview",
                Reading(None, None, reason, None, USAGE, "reported", "complete"),
            )
            for reason in (None, "interrupted")
        ]
        reading = session.end()
        assert reading is not None
        assert (reading.usage, reading.source) == (None, "turns")
        assert session.proxy.exchanges[-1].asked_model == "gemini-live-2.5-flash-preview"

    def test_its_times_count_from_what_the_client_sent_last(self) -> None:
        session = live_session()
        session.client.send(frame(1, SETUP, key=b"mask"))
        for at_end in (live_turn()[-1], {"serverContent": {"turnComplete": True}}):
            session.proxy.clock.advance(100)
            session.client.send(frame(1, b'{"realtimeInput":{}}', key=b"mask"))
            for message in (*live_turn()[:-1], at_end):
                session.proxy.clock.advance(1)
                session.send(binary(message))
        session.end()
        for told in session.turns:
            assert (told.first_byte, told.first_token, told.duration) == (2.0, 3.0, 4.0)

    def test_a_turn_that_waits_for_its_usage_takes_no_more_time(self) -> None:
        session = live_session()
        heard, _, sound, _ = live_turn()
        session.send(binary(heard, sound, {"serverContent": {"turnComplete": True}}))
        session.proxy.clock.advance(60)
        assert session.turns == []
        session.send(binary(live_turn()[-1] | {"serverContent": {"turnComplete": True}}))
        session.end()
        (told,) = session.turns
        assert told.duration == 0
        assert told.reading is not None
        assert told.reading.usage == USAGE

    def test_what_the_client_sends_is_read_wherever_it_is_cut(self) -> None:
        for at in range(len(SETUP) + 8):
            sent = frame(2, SETUP, key=b"mask") + frame(1, b'{"setup":{"model":"models/other"}}', key=b"mask")
            session = live_session()
            session.client.send(sent[:at])
            session.client.send(sent[at:])
            assert session.upstream.received == sent
            session.end()
            assert session.proxy.exchanges[-1].asked_model == "gemini-live-2.5-flash-preview"

    def test_it_is_read_where_it_is_compressed_and_the_answers_are(self) -> None:
        session = live_session(b"permessage-deflate; server_no_context_takeover")
        of_client, of_upstream = Deflated(), Deflated(takeover=False)
        session.client.send(frame(1, of_client(SETUP), compressed=True, key=b"mask"))
        for message in live_turn():
            session.send(frame(2, of_upstream(dumped(message)), compressed=True))
        (told,) = session.turns
        assert told.asked_model == "gemini-live-2.5-flash-preview"
        assert told.reading is not None
        assert told.reading.usage == USAGE

    def test_what_came_with_the_handshake_is_read_too(self) -> None:
        proxy = Proxy(attrs.evolve(CONFIG, upstreams=(attrs.evolve(OPENAI, family=Family.GEMINI),)))
        client = proxy.ask(LIVE, headers=[BEARER, *HANDSHAKE])
        client.send(frame(1, SETUP, key=b"mask"))
        proxy.agent.only.answer(101, b"Switching Protocols")
        client.leave()
        proxy.turn()
        assert only(proxy).asked_model == "gemini-live-2.5-flash-preview"

    @pytest.mark.parametrize("sent", [b"\xff\xff no frame", frame(1, b"[]", key=b"mask"), b""])
    def test_a_model_that_is_not_named_stays_unknown_and_all_else_is_read(self, sent: bytes) -> None:
        session = live_session()
        session.client.send(sent)
        session.client.send(frame(1, SETUP, key=b"mask") if sent else b"")
        session.send(binary(*live_turn()))
        assert session.upstream.received.startswith(sent)
        (told,) = session.turns
        assert told.asked_model is None
        assert told.reading is not None
        assert told.reading.usage == USAGE

    def test_a_model_in_the_query_counts_where_the_setup_names_none(self) -> None:
        session = Session(attrs.evolve(OPENAI, family=Family.GEMINI), target=LIVE + b"&model=gemini-live")
        session.client.send(frame(1, b'{"setup":{}}', key=b"mask"))
        session.end()
        assert session.proxy.exchanges[-1].asked_model == "gemini-live"

    def test_no_other_api_has_such_a_setup(self) -> None:
        session = Session()
        session.client.send(frame(1, SETUP, key=b"mask"))
        session.end()
        assert session.proxy.exchanges[-1].asked_model == "gpt-realtime"

    def test_no_more_of_what_the_client_sends_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        session = live_session()
        session.client.send(frame(1, SETUP, key=b"mask"))
        monkeypatch.setattr("llmproxy.asked_model.setup.SetupGlance.feed", None)
        session.client.send(b"\xff" * 1000)
        assert session.upstream.received.endswith(b"\xff" * 1000)

    def test_a_turn_in_which_it_was_left_is_cut(self) -> None:
        session = live_session()
        session.send(binary(*live_turn(), *live_turn()[:-1]))
        session.end()
        outcomes = [told.reading.outcome for told in session.turns if told.reading is not None]
        assert outcomes == ["complete", "cut"]

    def test_of_other_sockets_of_its_upstream_nothing_is_read(self) -> None:
        music = LIVE.replace(b"BidiGenerateContent", b"BidiGenerateMusic")
        session = Session(attrs.evolve(OPENAI, family=Family.GEMINI), target=music)
        session.client.send(frame(1, SETUP, key=b"mask"))
        session.send(binary(*live_turn()))
        assert session.end() is None
        assert session.proxy.exchanges[-1].asked_model is None


def test_nothing_of_a_request_or_an_answer_is_in_the_record(proxy: Proxy) -> None:
    post(proxy, CHAT + b"?key=asked-in-secret", json.dumps({"model": "m", "input": "asked"}).encode())
    upstream = answer(proxy, JSON)
    upstream.chunk(dumped({**ANSWER, "output": "answered"}))
    upstream.end()
    assert "asked" not in repr(only(proxy)).replace("asked_model", "")
    assert "answered" not in repr(only(proxy))


class TestIds:
    @pytest.fixture
    def proxy(self) -> Proxy:
        return Proxy(tell_id=True)

    def ids(self, proxy: Proxy, client: ClientConnection) -> tuple[int, list[bytes], list[bytes]]:
        """The status of an answer, the ids that it tells, and those of the record."""
        response = client.response()
        told = response.values(b"x-llmproxy-request-id")
        return response.status, told, [over.id.encode() for over in proxy.exchanges]

    def test_an_answer_tells_that_of_its_exchange(self, proxy: Proxy) -> None:
        client = post(proxy)
        answer(proxy).end()
        status, told, ids = self.ids(proxy, client)
        assert (status, told) == (200, ids)
        assert len(ids[0]) == 26

    @pytest.mark.parametrize(
        ("target", "headers", "status"),
        [(b"/openai/v1/x", [], 401), (b"/openai", [BEARER], 404)],
    )
    def test_so_does_a_refusal(
        self, proxy: Proxy, target: bytes, headers: list[tuple[bytes, bytes]], status: int
    ) -> None:
        client = proxy.ask(target, headers=headers)
        assert self.ids(proxy, client) == (status, [only(proxy).id.encode()], [only(proxy).id.encode()])

    @pytest.mark.parametrize("rights", [{"models": ("gpt-4",)}, {"upstreams": frozenset({"anthropic"})}])
    def test_so_does_one_of_what_a_client_may_not(self, rights: dict[str, Any]) -> None:
        proxy = Proxy(attrs.evolve(CONFIG, clients=(client_with(TOKEN, **rights),)), tell_id=True)
        client = post(proxy)
        assert self.ids(proxy, client) == (403, [only(proxy).id.encode()], [only(proxy).id.encode()])

    def test_so_does_a_fault_of_the_upstream(self, proxy: Proxy) -> None:
        client = post(proxy)
        proxy.agent.only.fail(error.ConnectionRefusedError())
        assert self.ids(proxy, client)[:2] == (502, [only(proxy).id.encode()])

    def test_so_does_the_silence_of_one(self, proxy: Proxy) -> None:
        client = post(proxy)
        proxy.clock.advance(100)
        assert self.ids(proxy, client)[:2] == (504, [only(proxy).id.encode()])

    def test_so_does_a_fault_of_the_proxy(self, proxy: Proxy, logged_failures: LoggedFailures) -> None:
        proxy.agent.broken = ZeroDivisionError()
        client = post(proxy)
        assert self.ids(proxy, client)[:2] == (500, [only(proxy).id.encode()])
        assert len(logged_failures.flush(ZeroDivisionError)) == 1

    def test_so_does_the_agreement_to_speak_websocket(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/realtime", headers=[BEARER, *HANDSHAKE])
        proxy.agent.only.answer(101, b"Switching Protocols")
        status, told, _ = self.ids(proxy, client)
        client.leave()
        proxy.turn()
        assert (status, told) == (101, [only(proxy).id.encode()])

    def test_no_two_are_the_same(self, proxy: Proxy) -> None:
        for _ in range(10):
            post(proxy)
            answer(proxy).end()
        assert len({over.id for over in proxy.exchanges}) == 10

    def test_that_of_the_upstream_passes_beside_it(self, proxy: Proxy) -> None:
        client = post(proxy)
        answer(proxy, (b"X-Request-Id", b"req_1")).end()
        assert client.response().values(b"x-request-id") == [b"req_1"]
        assert client.response().values(b"x-llmproxy-request-id") == [only(proxy).id.encode()]

    def test_that_of_an_upstream_llmproxy_is_replaced_and_recorded(self, proxy: Proxy) -> None:
        client = post(proxy)
        answer(proxy, (b"X-LLMproxy-Request-Id", b"its own")).end()
        assert client.response().values(b"x-llmproxy-request-id") == [only(proxy).id.encode()]
        assert only(proxy).upstream_request_id == "its own"

    @pytest.mark.parametrize("headers", [[], [BEARER]])
    def test_where_it_is_not_wanted_there_is_none(self, headers: list[tuple[bytes, bytes]]) -> None:
        proxy = Proxy()
        client = proxy.ask(b"/openai/v1/x", headers=headers)
        if headers:
            answer(proxy).end()
        assert client.response().values(b"x-llmproxy-request-id") == []
        assert len(only(proxy).id) == 26
