from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

import attrs
import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.asked_model import LIMIT
from llmproxy.config import Client, Credential, Family, Upstream
from llmproxy.exchange import Ending
from llmproxy.http.fields import Pair
from llmproxy.values import BaseURL
from tests.forwarding_support import Line, Taker
from tests.support import (
    BEARER,
    CONFIG,
    HANDSHAKE,
    OPENAI,
    TIMEOUTS,
    TOKEN,
    ClientConnection,
    Peer,
    Proxy,
    Response,
    client_with,
    log_lines,
    no_cycle,
)

LISTED = client_with(TOKEN, name="alice", models=("gpt-*", "gemini-*"), deny_models=("*-pro",))
GEMINI = Upstream(
    "gemini",
    BaseURL("https", "gemini.example", 443, ""),
    Credential.parse("header:x-goog-api-key"),
    ("AIza-real",),
    Family.GEMINI,
    timeouts=TIMEOUTS,
)

BODY = b'{"messages":[{"content":"hi"}],"model":"gpt-5","stream":true}'
REFUSED = b'{"model":"claude-opus"}'
JSON: Pair = (b"Content-Type", b"application/json")
HEAD = b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN + b"\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def proxy_for(client: Client = LISTED) -> Proxy:
    return Proxy(attrs.evolve(CONFIG, upstreams=(OPENAI, GEMINI), clients=(client,)))


@pytest.fixture
def proxy() -> Proxy:
    return proxy_for()


def post(
    proxy: Proxy, body: bytes | None, *headers: Pair, target: bytes = b"/openai/v1/chat/completions"
) -> ClientConnection:
    return proxy.ask(target, method=b"POST", headers=[BEARER, *headers], body=body)


def announced(length: int, *headers: bytes) -> bytes:
    """The head of a request whose body is to come."""
    return HEAD + b"".join(line + b"\r\n" for line in headers) + b"Content-Length: %d\r\n\r\n" % length


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def refusal(proxy: Proxy, client: ClientConnection) -> str:
    """The sentence with which a request was refused of which no upstream has heard."""
    assert proxy.agent.requests == []
    return forbidden(client.response())


def forbidden(response: Response) -> str:
    assert (response.status, response.phrase) == (403, b"Forbidden")
    assert response.values(b"content-type") == [b"application/json"]
    content = response.json()
    assert set(content) == {"error", "message"}
    assert content["error"] == "forbidden"
    message: str = content["message"]
    return message


class TestAllowed:
    def test_a_body_that_came_with_its_head_is_passed_as_it_is(self, proxy: Proxy) -> None:
        post(proxy, BODY, JSON)
        taker = Taker(proxy.agent.only)
        assert (taker.producer.length, taker.data, taker.ended) == (len(BODY), BODY, "whole")

    @pytest.mark.parametrize("split", range(1, len(BODY)))
    def test_a_body_in_parts_is_passed_as_it_is(self, proxy: Proxy, split: int) -> None:
        client = proxy.connect()
        client.send(announced(len(BODY)))
        client.send(BODY[:split])
        client.send(BODY[split:])
        taker = Taker(proxy.agent.only)
        assert (taker.producer.length, taker.data, taker.ended) == (len(BODY), BODY, "whole")

    def test_the_upstream_hears_of_a_request_as_soon_as_its_model_is_known(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(announced(len(BODY)))
        known = BODY.index(b'","stream') + 1
        client.send(BODY[: known - 2])
        assert proxy.agent.requests == []
        client.send(BODY[known - 2 : known])
        taker = Taker(proxy.agent.only)
        assert (taker.data, taker.ended) == (BODY[:known], None)
        for at in range(known, len(BODY)):
            client.send(BODY[at : at + 1])
            assert taker.data == BODY[: at + 1]
        assert taker.ended == "whole"

    def test_a_chunked_body_stays_one_and_keeps_its_trailers(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(CHUNKED)
        for at in range(0, len(BODY), 7):
            client.send(chunk(BODY[at : at + 7]))
        taker = Taker(proxy.agent.only)
        client.send(b"0\r\nX-Sum: 1\r\nCookie: " + TOKEN + b"\r\n\r\n")
        assert (taker.producer.length, taker.data, taker.ended) == (UNKNOWN_LENGTH, BODY, "whole")
        assert taker.producer.trailers.pairs == [(b"X-Sum", b"1")]

    def test_several_chunks_in_one_read_stay_in_order(self, proxy: Proxy) -> None:
        client = proxy.connect()
        pieces = [BODY[at : at + 5] for at in range(0, len(BODY), 5)]
        client.send(CHUNKED + b"".join(map(chunk, pieces[:-1])))
        client.send(chunk(pieces[-1]) + b"0\r\n\r\n")
        taker = Taker(proxy.agent.only)
        assert (taker.data, taker.ended) == (BODY, "whole")

    @pytest.mark.parametrize(
        ("coding", "encoded"),
        [
            (b"gzip", gzip.compress(BODY, mtime=0)),
            (b"br", brotli.compress(BODY)),
            (b"zstd", zstandard.compress(BODY)),
            (b"identity", BODY),
        ],
    )
    @pytest.mark.parametrize("size", [1, 1000])
    def test_a_compressed_body_is_read_as_a_copy_and_passed_as_it_is(
        self, proxy: Proxy, coding: bytes, encoded: bytes, size: int
    ) -> None:
        client = proxy.connect()
        client.send(announced(len(encoded), b"Content-Encoding: " + coding))
        for at in range(0, len(encoded), size):
            client.send(encoded[at : at + size])
        taker = Taker(proxy.agent.only)
        assert (taker.data, taker.ended) == (encoded, "whole")
        assert proxy.agent.only.headers.getRawHeaders(b"content-encoding") == [coding]

    def test_a_form_is_read_for_its_field(self, proxy: Proxy) -> None:
        form = (
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o-transcribe\r\n'
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xff\r\n--x--\r\n'
        )
        post(proxy, form, (b"Content-Type", b"multipart/form-data; boundary=x"))
        assert Taker(proxy.agent.only).data == form

    def test_the_same_model_twice_is_one(self, proxy: Proxy) -> None:
        body = b'{"model":"gpt-5","model":"gpt-5"}'
        post(proxy, body)
        assert Taker(proxy.agent.only).data == body

    def test_the_answer_passes_and_the_connection_serves_the_next_request(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(announced(len(BODY)) + BODY[:5])
        client.send(BODY[5:])
        Taker(proxy.agent.only)
        upstream = proxy.agent.only.answer(headers=[(b"Content-Length", b"2")])
        upstream.chunk(b"ok")
        upstream.end()
        assert (client.response().status, client.response().body) == (200, b"ok")
        client.ask(b"/healthz")
        assert client.received.endswith(b"\r\n\r\nok")
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.COMPLETED]


class TestRefused:
    @pytest.mark.parametrize("size", [1, 5, 1000])
    def test_a_model_that_is_not_listed_is_refused_by_name(self, proxy: Proxy, size: int) -> None:
        client = proxy.connect()
        client.send(announced(len(REFUSED)))
        for at in range(0, len(REFUSED), size):
            client.send(REFUSED[at : at + size])
        message = refusal(proxy, client)
        assert message == (
            "Client 'alice' may not ask for model 'claude-opus': it is not among the client's 'models'."
        )

    def test_a_denied_model_is_refused_though_it_is_listed(self, proxy: Proxy) -> None:
        client = post(proxy, b'{"model":"gpt-5-pro"}')
        assert refusal(proxy, client) == (
            "Client 'alice' may not ask for model 'gpt-5-pro': the client's 'deny_models' has it."
        )

    def test_who_may_use_all_but_some_may_use_the_others(self) -> None:
        proxy = proxy_for(client_with(TOKEN, name="bob", deny_models=("*-pro",)))
        assert "'deny_models'" in refusal(proxy, post(proxy, b'{"model":"gpt-5-pro"}'))
        post(proxy, REFUSED)
        assert Taker(proxy.agent.only).data == REFUSED

    def test_who_may_use_none_is_refused_every_one(self) -> None:
        proxy = proxy_for(client_with(TOKEN, models=()))
        assert "'models'" in refusal(proxy, post(proxy, BODY))

    @pytest.mark.parametrize(
        ("headers", "body", "words"),
        [
            ((), b"{}", "no 'model'"),
            ((), b'{"messages":[{"model":"gpt-5"}]}', "no 'model'"),
            ((), b'{"model":"gpt-5","model":"claude-opus"}', "several models"),
            ((), b'{"model":"gpt-5","Model":"claude-opus"}', "taken for 'model'"),
            ((), b'{"model":"gpt-5","models":["claude-opus"]}', "more models"),
            ((), b'{"model":5}', "not a string"),
            ((), b'{"model":null}', "not a string"),
            ((), b'{"model":""}', "empty"),
            ((), b'["gpt-5"]', "not a JSON object"),
            ((), b'{"model":"gpt-5"', "not whole"),
            ((), b'{"model":"gpt-5"}{"model":"claude-opus"}', "not JSON"),
            ((), b"model=gpt-5", "not JSON"),
            ((), b"\xff\xfe{\x00", "not JSON"),
            ((), b"", "model"),
            (((b"Content-Type", b"application/x-www-form-urlencoded"),), BODY, "Content-Type"),
            ((JSON, (b"Content-Type", b"text/csv")), BODY, "Content-Type"),
            (((b"Content-Encoding", b"gzip"),), BODY, "cannot be decompressed"),
            (((b"Content-Encoding", b"gzip"),), gzip.compress(BODY, mtime=0)[:-3], "cannot be decompressed"),
            (((b"Content-Encoding", b"compress"),), BODY, "Content-Encoding"),
            (((b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"x")), BODY, "Content-Encoding"),
        ],
    )
    @pytest.mark.parametrize("parts", [False, True], ids=["whole", "in parts"])
    def test_a_body_that_hides_its_model_is_refused_with_the_reason(
        self, proxy: Proxy, headers: tuple[Pair, ...], body: bytes, words: str, parts: bool
    ) -> None:
        if parts and body:
            client = proxy.connect()
            client.send(announced(len(body), *(b"%b: %b" % header for header in headers)))
            client.send(body[:1])
            client.send(body[1:])
        else:
            client = post(proxy, body, *headers)
        if parts and proxy.agent.requests:
            # The model was known before the rest came, which nobody took.
            taker = Taker(proxy.agent.only)
            assert taker.data == b""
            assert taker.ended.__name__ == "Forbidden"
        else:
            assert words in refusal(proxy, client)

    def test_a_request_without_a_body_that_is_no_question_is_refused(self, proxy: Proxy) -> None:
        assert "names no model" in refusal(proxy, post(proxy, None))

    def test_a_model_in_the_query_does_not_stand_for_that_of_the_body(self, proxy: Proxy) -> None:
        # Most APIs ignore a query that they have no use for, and run what the body asks for.
        target = b"/openai/v1/chat/completions?model=gpt-5"
        assert "'claude-opus'" in refusal(proxy, post(proxy, REFUSED, target=target))
        assert "no 'model'" in refusal(proxy, post(proxy, b"{}", target=target))
        post(proxy, BODY, target=target)
        assert Taker(proxy.agent.only).data == BODY

    def test_a_model_in_the_query_is_held_against_the_rights_too(self, proxy: Proxy) -> None:
        target = b"/openai/v1/chat/completions?model=claude-opus"
        assert "'claude-opus'" in refusal(proxy, post(proxy, BODY, target=target))

    def test_it_is_an_exchange_that_was_refused_and_the_log_says_why(self, proxy: Proxy) -> None:
        with log_lines() as lines:
            client = post(proxy, REFUSED)
        assert lines == [refusal(proxy, client)]
        (exchange,) = proxy.exchanges
        assert (exchange.client, exchange.status, exchange.ending) == ("alice", 403, Ending.REFUSED)

    def test_a_client_whose_whole_body_came_may_ask_again(self, proxy: Proxy) -> None:
        client = post(proxy, REFUSED)
        refusal(proxy, client)
        assert client.ending == "open"
        client.ask(b"/openai/v1/chat/completions", method=b"POST", body=BODY)
        assert Taker(proxy.agent.only).data == BODY

    def test_a_client_that_still_uploads_is_left_with_the_answer(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(announced(10**6) + REFUSED)
        refusal(proxy, client)
        assert client.response().values(b"connection") == [b"close"]
        assert client.ending == "closed"

    def test_nothing_is_left_behind(self, proxy: Proxy) -> None:
        client = proxy.ask(
            b"/openai/x", method=b"POST", headers=[BEARER, (b"Connection", b"close")], body=REFUSED
        )
        refusal(proxy, client)
        proxy.turn()
        assert proxy.clock.getDelayedCalls() == []


class TestLimit:
    def test_a_model_that_does_not_come_within_it_is_refused(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(announced(2 * LIMIT))
        client.send(b'{"messages":[')
        block = b"1," * (1 << 19)
        for _ in range(LIMIT // len(block) - 1):
            client.send(block)
        assert client.received == b""
        client.send(block)
        assert f"within {LIMIT} bytes" in refusal(proxy, client)

    def test_what_follows_a_model_has_none(self, proxy: Proxy) -> None:
        client = proxy.connect()
        start, block, end = b'{"model":"gpt-5","input":[0', b",1" * (1 << 19), b"]}"
        blocks = LIMIT // len(block) + 2
        client.send(announced(len(start) + blocks * len(block) + len(end)) + start)
        taker = Taker(proxy.agent.only)
        for _ in range(blocks):
            client.send(block)
            taker.data = taker.data[-1:]
        client.send(end)
        assert (taker.data[-2:], taker.ended) == (b"]}", "whole")


class TestAnotherModelLate:
    """A second, different model at the end of a body that flows already: the upstream never has all of it."""

    LATE = b'{"model":"gpt-5","input":"hello","model":"claude-opus"}'
    CUT = LATE.index(b'"hello"') + 7

    def line(self) -> Line:
        return Line(config=attrs.evolve(CONFIG, clients=(LISTED,)))

    def start(self, line: Line) -> ClientConnection:
        client = line.proxy.connect()
        client.send(announced(len(self.LATE)) + self.LATE[: self.CUT])
        return client

    def test_it_breaks_the_upload_off_and_the_client_is_told(self) -> None:
        line = self.line()
        client = self.start(line)
        upstream = line.accept()
        assert upstream.take().endswith(b"\r\n\r\n" + self.LATE[: self.CUT])
        client.send(self.LATE[self.CUT :])
        assert (upstream.take(), upstream.ending) == (b"", "reset")
        assert "several models" in forbidden(client.response())
        upstream.turn()
        (exchange,) = line.proxy.exchanges
        assert (exchange.status, exchange.ending) == (403, Ending.REFUSED)

    @pytest.mark.parametrize("end", [b'"claude', b'"claude-opus"'])
    def test_a_name_is_not_passed_before_it_was_read(self, end: bytes) -> None:
        line = self.line()
        client = self.start(line)
        upstream = line.accept()
        client.send(self.LATE[self.CUT : self.LATE.index(end) + len(end)])
        assert b"claude-opus" not in upstream.take()
        client.send(self.LATE[self.LATE.index(end) + len(end) :])
        assert b"claude-opus" not in upstream.take()
        assert upstream.ending == "reset"

    def test_in_chunks_the_last_one_never_comes(self) -> None:
        line = self.line()
        client = line.proxy.connect()
        client.send(CHUNKED + chunk(self.LATE[: self.CUT]))
        upstream = line.accept()
        client.send(chunk(self.LATE[self.CUT :]) + b"0\r\n\r\n")
        assert not upstream.take().endswith(b"0\r\n\r\n")
        assert upstream.ending == "reset"
        assert "several models" in forbidden(client.response())

    def test_while_the_connection_is_still_made_the_upstream_gets_nothing(self) -> None:
        line = self.line()
        client = line.proxy.connect()
        # All in one read, so that the rest is here though nobody takes it.
        parts = [self.LATE[: self.CUT], self.LATE[self.CUT :]]
        client.send(CHUNKED + b"".join(map(chunk, parts)))
        upstream = line.accept()
        assert (upstream.take(), upstream.ending) == (b"", "reset")
        assert "several models" in forbidden(client.response())

    def test_an_answer_that_has_begun_is_cut_off(self) -> None:
        line = self.line()
        client = self.start(line)
        upstream = line.accept()
        upstream.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nearly")
        client.send(self.LATE[self.CUT :])
        upstream.turn()
        line.proxy.turn()
        assert upstream.ending == "reset"
        response = client.response()
        assert (response.status, response.body, response.whole) == (200, b"early", False)
        assert client.ending != "open"
        (exchange,) = line.proxy.exchanges
        assert (exchange.status, exchange.ending) == (200, Ending.REFUSED)


class TestUndecided:
    def start(self, proxy: Proxy, *headers: bytes) -> ClientConnection:
        client = proxy.connect()
        client.send(announced(len(BODY), *headers) + BODY[:5])
        return client

    def test_a_client_that_leaves_ends_it(self, proxy: Proxy) -> None:
        client = self.start(proxy)
        client.leave()
        proxy.turn()
        assert proxy.agent.requests == []
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.CLIENT_LEFT]
        assert proxy.clock.getDelayedCalls() == []

    def test_a_client_that_leaves_before_the_upstream_takes_it_cancels_that(self, proxy: Proxy) -> None:
        client = self.start(proxy)
        client.send(BODY[5:-1])
        client.leave()
        assert proxy.agent.only.cancelled
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.CLIENT_LEFT]

    def test_a_client_that_is_silent_is_told_so(self, proxy: Proxy) -> None:
        client = self.start(proxy)
        proxy.clock.advance(59.9)
        assert client.received == b""
        proxy.clock.advance(0.1)
        response = client.response()
        assert (response.status, response.json()["error"]) == (408, "request_timeout")
        assert proxy.agent.requests == []

    def test_no_upstream_is_blamed_for_a_slow_client(self) -> None:
        timeouts = attrs.evolve(TIMEOUTS, first_byte=10.0)
        upstream = attrs.evolve(OPENAI, timeouts=timeouts)
        proxy = Proxy(attrs.evolve(CONFIG, upstreams=(upstream,), clients=(LISTED,)))
        client = self.start(proxy)
        proxy.clock.pump([5.0] * 11)
        assert client.received == b""
        client.send(BODY[5:])
        proxy.clock.advance(9.9)
        assert not proxy.agent.only.cancelled
        proxy.clock.advance(0.1)
        assert client.response().status == 504

    def test_a_broken_body_is_told(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(CHUNKED + chunk(BODY[:5]) + b"zz\r\n")
        response = client.response()
        assert (response.status, response.json()["error"]) == (400, "bad_request")
        assert proxy.agent.requests == []

    def test_a_client_that_asks_first_is_told_to_go_on(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(announced(len(BODY), b"Expect: 100-continue"))
        assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(BODY)
        assert Taker(proxy.agent.only).data == BODY
        assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"

    def test_a_client_that_asked_first_is_refused_behind_that(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(announced(len(REFUSED), b"Expect: 100-continue"))
        client.send(REFUSED)
        assert proxy.agent.requests == []
        final = client.received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert "'models'" in forbidden(Response.read(final, b"POST", client.ending))


class TestPace:
    def known(self, proxy: Proxy) -> ClientConnection:
        client = proxy.connect()
        client.send(announced(100) + b'{"model":"gpt-5",')
        return client

    def test_nothing_is_read_between_the_decision_and_the_upstreams_taking(self, proxy: Proxy) -> None:
        client = self.known(proxy)
        client.send(b'"input":')
        assert client.unread
        taker = Taker(proxy.agent.only)
        assert not client.unread
        assert taker.data == b'{"model":"gpt-5","input":'

    def test_an_upstream_that_takes_it_slowly_slows_the_client(self, proxy: Proxy) -> None:
        client = self.known(proxy)
        taker = Taker(proxy.agent.only)
        taker.producer.pauseProducing()
        client.send(b'"input":')
        assert client.unread
        taker.producer.resumeProducing()
        assert taker.data == b'{"model":"gpt-5","input":'

    def test_an_upstream_that_is_full_when_it_begins_slows_the_client(self, proxy: Proxy) -> None:
        client = self.known(proxy)
        producer: Any = proxy.agent.only.producer
        producer.pauseProducing()  # as a transport does to a producer whose first bytes fill it
        taker = Taker(proxy.agent.only)
        assert client.unread
        client.send(b'"input":')
        assert taker.data == b'{"model":"gpt-5",'
        producer.resumeProducing()
        assert taker.data == b'{"model":"gpt-5","input":'

    def test_a_body_that_nobody_wants_any_more_is_read_and_dropped(self, proxy: Proxy) -> None:
        client = self.known(proxy)
        taker = Taker(proxy.agent.only)
        taker.producer.stopProducing()
        client.send(b'"model":"claude-opus"')
        assert not client.unread
        assert (taker.data, taker.ended) == (b'{"model":"gpt-5",', None)


class TestTarget:
    def test_gemini_goes_by_the_path_and_its_body_is_not_waited_for(self, proxy: Proxy) -> None:
        client = proxy.connect()
        client.send(
            announced(5).replace(
                b"/openai/v1/chat/completions", b"/gemini/v1beta/models/gemini-3:generateContent"
            )
        )
        taker = Taker(proxy.agent.only)
        client.send(b"12345")
        assert (taker.data, taker.ended) == (b"12345", "whole")

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (b"/gemini/v1beta/models/gemini-3-pro:generateContent", "'deny_models'"),
            (b"/gemini/v1beta/models/veo-3:predictLongRunning?alt=sse", "'veo-3'"),
            (b"/gemini/v1beta/models/gemini-3-pr%6f:generateContent", "'deny_models'"),
            (b"/gemini/v1beta/models/gemini-3%2F..:generateContent", "two ways"),
            (b"/gemini/v1beta/corpora/x:query", "nothing that is known to be a model"),
            (b"/openai/openai/deployments/claude-opus/chat/completions", "'claude-opus'"),
        ],
    )
    def test_a_model_in_the_path_is_held_against_the_rights(
        self, proxy: Proxy, target: bytes, words: str
    ) -> None:
        assert words in refusal(proxy, post(proxy, BODY, target=target))

    def test_azure_goes_by_the_deployment(self, proxy: Proxy) -> None:
        target = b"/openai/openai/deployments/gpt-5/chat/completions?api-version=2025-01-01"
        post(proxy, b"{}", target=target)
        assert proxy.agent.only.url.endswith(target.removeprefix(b"/openai"))

    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"DELETE"])
    @pytest.mark.parametrize(
        "target",
        [b"/openai/v1/models", b"/openai/v1/models/claude-opus", b"/gemini/v1beta/models?pageSize=5"],
    )
    def test_questions_without_a_body_pass(self, proxy: Proxy, method: bytes, target: bytes) -> None:
        proxy.ask(target, method=method)
        assert (proxy.agent.only.method, proxy.agent.only.producer) == (method, None)

    def test_a_list_of_models_passes_untouched(self, proxy: Proxy) -> None:
        client = proxy.ask(b"/openai/v1/models")
        models = json.dumps({"data": [{"id": "gpt-5"}, {"id": "claude-opus"}]}).encode()
        upstream = proxy.agent.only.answer(headers=[(b"Content-Length", b"%d" % len(models))])
        upstream.chunk(models)
        upstream.end()
        assert client.response().body == models

    @pytest.mark.parametrize("method", [b"GET", b"DELETE", b"PUT", b"PATCH", b"BREW"])
    def test_whatever_has_a_body_is_read(self, proxy: Proxy, method: bytes) -> None:
        client = proxy.ask(b"/openai/v1/x", method=method, body=REFUSED)
        assert "'claude-opus'" in refusal(proxy, client)


class TestWebSocket:
    def ask(self, proxy: Proxy, query: bytes) -> ClientConnection:
        return proxy.ask(b"/openai/v1/realtime" + query, headers=[BEARER, *HANDSHAKE])

    def test_the_model_of_the_query_counts(self, proxy: Proxy) -> None:
        self.ask(proxy, b"?model=gpt-realtime")
        assert proxy.agent.only.url.endswith(b"/v1/realtime?model=gpt-realtime")

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            (b"?model=claude-opus", "'claude-opus'"),
            (b"?model=claude%2Dopus", "'claude-opus'"),
            (b"?%6dodel=claude-opus", "'claude-opus'"),
            (b"?deployment=claude-opus", "'claude-opus'"),
            (b"?model=gpt-realtime&model=claude-opus", "several models"),
            (b"?model=gpt-realtime;model=claude-opus", "several models"),
            (b"?model=gpt-realtime&Model=claude-opus", "taken for 'model'"),
            (b"?model=", "empty"),
        ],
    )
    def test_one_that_may_not_be_used_is_refused(self, proxy: Proxy, query: bytes, words: str) -> None:
        client = self.ask(proxy, query)
        assert words in refusal(proxy, client)
        client.ask(b"/healthz")
        assert client.received.endswith(b"\r\n\r\nok")


class TestSession:
    """What a client sends on a WebSocket that was let in; how it is read is in tests/test_asked_model_session.py."""

    ALLOWED = {"type": "response.create", "model": "gpt-5", "input": "hi"}
    OTHER = {"type": "response.create", "model": "claude-opus", "input": "hi"}
    TALK = {"type": "input_audio_buffer.commit"}
    ASIDE = {"type": "session.update", "session": {"type": "realtime", "model": "claude-opus"}}

    def join(
        self, proxy: Proxy, target: bytes = b"/openai/v1/responses", early: bytes = b""
    ) -> tuple[ClientConnection, Peer]:
        client = proxy.ask(target, headers=[BEARER, *HANDSHAKE])
        if early:
            client.send(early)
        return client, proxy.agent.only.answer(101, b"Switching Protocols").peer

    def test_messages_for_an_allowed_model_pass_as_they_are(self, proxy: Proxy) -> None:
        client, upstream = self.join(proxy)
        client.send(frame(self.ALLOWED))
        client.send(frame(self.ALLOWED))
        assert upstream.received == 2 * frame(self.ALLOWED)

    @pytest.mark.parametrize(
        ("target", "before", "message"),
        [
            (b"/openai/v1/responses", [], OTHER),
            (b"/openai/v1/responses", [ALLOWED], OTHER),
            (b"/openai/v1/responses?model=gpt-5", [], OTHER),
            (b"/openai/v1/responses?model=gpt-5", [ALLOWED], OTHER),
            (b"/openai/v1/realtime?model=gpt-realtime", [], ASIDE),
            (b"/openai/v1/realtime?model=gpt-realtime", [TALK], ASIDE),
        ],
    )
    def test_a_message_for_another_ends_it_and_goes_no_further(
        self, proxy: Proxy, target: bytes, before: list[Mapping[str, object]], message: Mapping[str, object]
    ) -> None:
        client, upstream = self.join(proxy, target)
        passed = b"".join(map(frame, before))
        client.send(passed)
        with log_lines() as lines:
            client.send(frame(message))
        proxy.turn()
        assert upstream.received == passed
        assert (client.ending, upstream.ending) == ("reset", "reset")
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.REFUSED]
        assert [line.startswith("A WebSocket session was ended: ") for line in lines] == [True]

    def test_one_that_came_ahead_of_the_answer_goes_no_further(self, proxy: Proxy) -> None:
        client, upstream = self.join(proxy, early=frame(self.OTHER))
        proxy.turn()
        assert upstream.received == b""
        assert client.ending == "reset"
        assert upstream.ending != "open"
        assert [exchange.ending for exchange in proxy.exchanges] == [Ending.REFUSED]

    def test_what_the_upstream_sends_passes_untouched(self, proxy: Proxy) -> None:
        client, upstream = self.join(proxy)
        before = client.received
        upstream.send(b"\x81\x05hello")
        assert client.received == before + b"\x81\x05hello"

    def test_that_of_a_client_without_lists_is_not_looked_at(self) -> None:
        proxy = Proxy()
        client, upstream = self.join(proxy)
        client.send(b"anything " + frame(self.OTHER))
        assert upstream.received == b"anything " + frame(self.OTHER)


def frame(message: Mapping[str, object]) -> bytes:
    """A client's text message (RFC 6455 section 5.2)."""
    data, key = json.dumps(message).encode("ascii"), b"\x01\x02\x03\x04"
    assert len(data) < 126
    masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(data))
    return bytes([0x81, 0x80 | len(data)]) + key + masked


def test_a_client_without_lists_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmproxy.forwarding.admission.admit", lambda *_: 1 // 0)
    proxy = Proxy()
    client = proxy.connect()
    client.send(announced(len(REFUSED)))
    taker = Taker(proxy.agent.only)  # before the first byte of its body
    client.send(REFUSED)
    assert taker.data == REFUSED


@pytest.mark.parametrize("size", [7, 1000])
def test_an_admitted_request_leaves_no_cycle(size: int) -> None:
    line = Line(config=attrs.evolve(CONFIG, clients=(LISTED,)))
    (upstream,) = line.warm()
    client = line.proxy.connect()
    client.ask(b"/healthz")
    with no_cycle():
        client.send(announced(len(BODY)))
        for at in range(0, len(BODY), size):
            client.send(BODY[at : at + size])
        assert upstream.take().endswith(BODY)
        upstream.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert client.received.endswith(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
