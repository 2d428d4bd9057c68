from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.web.client import (
    PotentialDataLoss,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.http.body import BrokenBody
from llmproxy.http.fields import Fields
from llmproxy.http.limits import UpstreamLimits
from llmproxy.http.response import MalformedResponse
from tests.conftest import LoggedFailures
from tests.upstream_support import (
    HOST,
    OK,
    RESET,
    Outcome,
    Reader,
    Recorder,
    Upload,
    Upstream,
    Whole,
    Wire,
    malformed,
    read,
)

EXPECT = (b"Expect", b"100-continue")
WEBSOCKET = (HOST, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def test_small_writes_are_sent_at_once(upstream: Upstream) -> None:
    assert upstream.wire.no_delay


def test_its_repr_tells_its_state_and_nothing_of_the_request(upstream: Upstream) -> None:
    seen = [repr(upstream.connection)]
    outcome = upstream.ask(target=b"/?key=secret", headers=[(b"Authorization", b"secret")])
    seen.append(repr(upstream.connection))
    upstream.wire.receive(LONG)
    seen.append(repr(outcome.result))
    upstream.wire.lose(RESET)
    seen.append(repr(upstream.connection))
    assert seen == [
        "<UpstreamConnection idle, exchange 0>",
        "<UpstreamConnection waiting for a response, exchange 1>",
        "<Response 200 on <UpstreamConnection receiving a response, exchange 1>>",
        "<UpstreamConnection closed, exchange 1>",
    ]


class TestRequest:
    def test_method_target_and_headers_go_out_as_they_are(self, upstream: Upstream) -> None:
        upstream.ask(
            b"pAtCh",
            b'/a//..;x/%2f?q=[|]"&&',
            [(b"hOST", b"h"), (b"x-b", b"2"), (b"X-A", b"1"), (b"x-b", b"3"), (b"X-Empty", b"")],
        )
        assert upstream.wire.take() == (
            b'pAtCh /a//..;x/%2f?q=[|]"&& HTTP/1.1\r\nhOST: h\r\nx-b: 2\r\nX-A: 1\r\nx-b: 3\r\nX-Empty: \r\n\r\n'
        )

    @pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
    def test_a_request_without_a_body_has_no_framing(self, upstream: Upstream, method: bytes) -> None:
        upstream.ask(method)
        assert upstream.wire.take() == method + b" /v1/x HTTP/1.1\r\nHost: upstream.example\r\n\r\n"

    def test_an_empty_body_differs_from_none(self, upstream: Upstream) -> None:
        upstream.ask(b"POST", body=Whole(b""))
        assert upstream.wire.take().endswith(b"\r\nContent-Length: 0\r\n\r\n")

    def test_a_body_with_a_length_has_a_content_length(self, upstream: Upstream) -> None:
        upstream.ask(b"POST", body=Whole(b"hello"))
        assert upstream.wire.take() == (
            b"POST /v1/x HTTP/1.1\r\nHost: upstream.example\r\nContent-Length: 5\r\n\r\nhello"
        )

    def test_a_body_without_a_length_is_chunked(self, upstream: Upstream) -> None:
        upstream.ask(b"POST", body=Whole(b"hello", UNKNOWN_LENGTH))
        assert upstream.wire.take() == (
            b"POST /v1/x HTTP/1.1\r\nHost: upstream.example\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\n\r\n"
        )

    def test_a_body_is_written_as_it_comes(self, upstream: Upstream) -> None:
        body = Upload(5)
        upstream.ask(b"POST", body=body)
        assert upstream.wire.take().endswith(b"Content-Length: 5\r\n\r\n")
        body.write(b"he")
        assert upstream.wire.take() == b"he"
        body.write(b"llo")
        assert upstream.wire.take() == b"llo"

    def test_the_transport_sets_the_pace_of_a_body(self) -> None:
        upstream = Upstream(wire=Wire(full=True))
        body = Upload()
        upstream.ask(b"POST", body=body)
        assert "pause" in body.log
        assert upstream.wire.producer is body

    @pytest.mark.parametrize(("length", "body"), [(5, b"hell"), (5, b"hello!")], ids=["shorter", "longer"])
    def test_a_body_that_is_not_as_long_as_announced_resets_the_connection(
        self, upstream: Upstream, length: int, body: bytes
    ) -> None:
        outcome = upstream.ask(b"POST", body=Whole(body, length))
        assert outcome.failure.check(BrokenBody)
        assert upstream.wire.ending == "reset"


class TestExpectation:
    def test_the_body_waits_for_100(self, upstream: Upstream) -> None:
        upstream.ask(b"POST", headers=[HOST, EXPECT], body=Whole(b"hello"))
        assert upstream.wire.take().endswith(b"\r\n\r\n")
        upstream.wire.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert upstream.wire.take() == b"hello"
        assert upstream.informed == []
        assert upstream.clock.getDelayedCalls() == []

    def test_the_wait_ends_by_time(self) -> None:
        upstream = Upstream(UpstreamLimits(expect=3.0))
        upstream.ask(b"POST", headers=[HOST, (b"expect", b"100-Continue")], body=Whole(b"hello"))
        upstream.wire.take()
        upstream.clock.advance(2.9)
        assert upstream.wire.take() == b""
        upstream.clock.advance(0.1)
        assert upstream.wire.take() == b"hello"
        upstream.wire.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert upstream.wire.take() == b""

    def test_a_100_that_nobody_waits_for_changes_nothing(self, upstream: Upstream) -> None:
        response = upstream.exchange(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
        assert read(response).body == b"ok"
        assert upstream.released == 1

    def test_an_expectation_without_a_body_waits_for_nothing(self, upstream: Upstream) -> None:
        upstream.ask(headers=[HOST, EXPECT])
        assert upstream.clock.getDelayedCalls() == []

    def test_a_final_answer_means_that_the_body_is_not_wanted(self, upstream: Upstream) -> None:
        body = Upload(5)
        outcome = upstream.ask(b"POST", headers=[HOST, EXPECT], body=body)
        upstream.wire.receive(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        assert body.log == ["stop"]
        assert read(outcome.result).body == b"big"
        # The upstream still expects a body that will not come.
        assert upstream.released == 0
        assert upstream.wire.ending == "reset"
        assert upstream.clock.getDelayedCalls() == []

    def test_the_headers_of_a_final_answer_are_enough_to_tell(self, upstream: Upstream) -> None:
        body = Upload(5)
        outcome = upstream.ask(b"POST", headers=[HOST, EXPECT], body=body)
        upstream.wire.receive(LONG)
        assert outcome.result.code == 200
        assert body.log == ["stop"]
        upstream.clock.advance(100)
        assert not body.started

    @pytest.mark.parametrize("how", ["lost", "cancelled", "malformed"])
    def test_an_end_leaves_no_timer(self, upstream: Upstream, how: str) -> None:
        outcome = upstream.ask(b"POST", headers=[HOST, EXPECT], body=Upload(5))
        if how == "lost":
            upstream.wire.lose(RESET)
        elif how == "cancelled":
            outcome.deferred.cancel()
        else:
            upstream.wire.receive(b"garbage\r\n\r\n")
        assert len(outcome.failures) == 1
        assert upstream.clock.getDelayedCalls() == []


@attrs.frozen
class Seen:
    """All that a reader can see of a response, and what became of its connection."""

    code: int
    phrase: bytes
    headers: list[tuple[bytes, bytes]]
    length: Any
    body: bytes
    trailers: list[tuple[bytes, bytes]] | None
    end: type[BaseException]
    ending: str
    reusable: bool
    informed: list[tuple[int, bytes, list[tuple[bytes, bytes]]]]


def see(pieces: list[bytes], method: bytes = b"GET", fin: bool = True) -> Seen:
    """Let a response arrive in pieces, and then perhaps a FIN."""
    upstream = Upstream()
    outcome = upstream.ask(method)
    reader = Reader()
    outcome.deferred.addCallback(lambda _: read(outcome.result, reader))
    for piece in pieces:
        upstream.wire.receive(piece)
    ending = upstream.wire.ending
    if fin:
        upstream.wire.lose(error.ConnectionDone())
    response = outcome.result
    trailers = None if response.trailers is None else response.trailers.pairs
    assert reader.end.type is not None
    return Seen(
        response.code,
        response.phrase,
        response.headers.pairs,
        response.length,
        reader.body,
        trailers,
        reader.end.type,
        ending,
        upstream.released == 1,
        upstream.informed,
    )


# A valid response, the method that it answers, its body, what ended it, and whether its connection can be used again.
VALID: dict[str, tuple[bytes, bytes, bytes, type[BaseException], bool]] = {
    "length": (OK, b"GET", b"ok", ResponseDone, True),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"POST", b"", ResponseDone, True),
    "chunked": (CHUNKED + b"2\r\nab\r\n3;x=y\r\ncde\r\n0\r\n\r\n", b"GET", b"abcde", ResponseDone, True),
    "chunked in capitals": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        b"GET",
        b"0123456789",
        ResponseDone,
        True,
    ),
    "trailers": (
        CHUNKED + b"2\r\nab\r\n0\r\nX-Sum: 1 \r\nx-sum: 2\r\n\r\n",
        b"GET",
        b"ab",
        ResponseDone,
        True,
    ),
    "delimited by its close": (
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"GET",
        b"until the end",
        PotentialDataLoss,
        False,
    ),
    "delimited by its close, empty": (
        b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n",
        b"GET",
        b"",
        PotentialDataLoss,
        False,
    ),
    "length and close": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"GET",
        b"ok",
        ResponseDone,
        False,
    ),
    "HEAD with a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"HEAD", b"", ResponseDone, True),
    "HEAD of a chunked body": (CHUNKED, b"HEAD", b"", ResponseDone, True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", b"", ResponseDone, True),
    "304 with a length": (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        b"GET",
        b"",
        ResponseDone,
        True,
    ),
    "unregistered status": (
        b"HTTP/1.1 529 unknown\r\nContent-Length: 2\r\n\r\n{}",
        b"GET",
        b"{}",
        ResponseDone,
        True,
    ),
    "highest status": (b"HTTP/1.1 999 x\r\nContent-Length: 0\r\n\r\n", b"GET", b"", ResponseDone, True),
    "empty phrase": (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", b"GET", b"", ResponseDone, True),
    "no phrase": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"GET", b"", ResponseDone, True),
    "phrase of many words": (
        b"HTTP/1.1 404 No \xc3\xa9 here\r\nContent-Length: 0\r\n\r\n",
        b"GET",
        b"",
        ResponseDone,
        True,
    ),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"GET", b"ok", ResponseDone, False),
    "HTTP/1.0 kept alive": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        b"GET",
        b"ok",
        ResponseDone,
        True,
    ),
    "interim responses": (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n" + OK,
        b"GET",
        b"ok",
        ResponseDone,
        True,
    ),
    "100 and 103": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + CHUNKED + b"0\r\n\r\n",
        b"POST",
        b"",
        ResponseDone,
        True,
    ),
    "an offer of an upgrade": (
        b"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nno",
        b"GET",
        b"no",
        ResponseDone,
        True,
    ),
}


class TestResponse:
    @pytest.mark.parametrize("name", VALID)
    def test_its_body_ends_where_it_ends(self, name: str) -> None:
        answer, method, body, end, reusable = VALID[name]
        seen = see([answer], method)
        assert (seen.body, seen.end, seen.reusable) == (body, end, reusable)

    @pytest.mark.parametrize("name", [name for name, valid in VALID.items() if valid[3] is ResponseDone])
    def test_it_is_over_with_its_last_byte(self, name: str) -> None:
        answer, method, _, end, _ = VALID[name]
        assert see([answer], method, fin=False).end is end

    @pytest.mark.parametrize("name", VALID)
    def test_it_is_the_same_byte_by_byte(self, name: str) -> None:
        answer, method, *_ = VALID[name]
        whole = see([answer], method)
        assert see([answer[at : at + 1] for at in range(len(answer))], method) == whole

    @given(name=st.sampled_from(sorted(VALID)), cuts=st.lists(st.integers(0, 200), max_size=8))
    def test_it_is_the_same_however_it_is_split(self, name: str, cuts: list[int]) -> None:
        answer, method, *_ = VALID[name]
        edges = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
        pieces = [answer[start:end] for start, end in itertools.pairwise(edges) if start < end]
        assert see(pieces, method) == see([answer], method)

    def test_status_phrase_and_headers_are_as_sent(self) -> None:
        seen = see(
            [
                b"HTTP/1.1 529 not Today\r\nX-b:  1 \r\nCONTENT-length:\t2\t\r\nx-B: 2\r\nConnection: x\r\n\r\nok"
            ]
        )
        assert (seen.code, seen.phrase, seen.length) == (529, b"not Today", 2)
        assert seen.headers == [
            (b"X-b", b"1"),
            (b"CONTENT-length", b"2"),
            (b"x-B", b"2"),
            (b"Connection", b"x"),
        ]

    def test_the_length_is_unknown_where_it_is_not_told(self) -> None:
        assert see([VALID["chunked"][0]]).length is UNKNOWN_LENGTH
        assert see([VALID["delimited by its close"][0]]).length is UNKNOWN_LENGTH

    def test_trailers_are_told_as_they_were_spelled(self) -> None:
        assert see([VALID["trailers"][0]]).trailers == [(b"X-Sum", b"1"), (b"x-sum", b"2")]
        assert see([VALID["chunked"][0]]).trailers is None

    def test_interim_responses_are_told_apart_from_100(self) -> None:
        assert see([VALID["interim responses"][0]]).informed == [
            (102, b"Processing", []),
            (103, b"Early Hints", [(b"Link", b"</a>"), (b"Link", b"</b>")]),
        ]
        assert see([VALID["100 and 103"][0]], b"POST").informed == [(103, b"Early Hints", [])]

    def test_an_interim_response_that_nobody_is_told_of_is_passed_over(self, upstream: Upstream) -> None:
        answer = upstream.connection.send(b"GET", b"/", Fields(), None, None)
        upstream.wire.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
        assert Outcome(answer).result.code == 200

    def test_its_headers_are_told_before_its_body_comes(self, upstream: Upstream) -> None:
        outcome = upstream.ask()
        upstream.wire.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r")
        assert outcome.pending
        upstream.wire.receive(b"\n")
        assert outcome.result.code == 200

    def test_each_piece_of_its_body_is_delivered_at_once(self, upstream: Upstream) -> None:
        reader = read(upstream.exchange(CHUNKED))
        for piece in (b"1\r\na\r\n", b"2\r\nbc", b"\r\n"):
            upstream.wire.receive(piece)
        assert reader.chunks == [b"a", b"bc"]
        assert reader.ends == []

    def test_the_reader_is_told_of_the_end_after_the_connection_was_released(
        self, upstream: Upstream
    ) -> None:
        class Impatient(Reader):
            def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
                super().connectionLost(reason)
                self.next = upstream.ask(target=b"/next")

        reader = Impatient()
        read(upstream.exchange(LONG), reader)
        upstream.wire.take()
        upstream.wire.receive(b"0123456789")
        assert upstream.released == 1
        assert upstream.wire.take().startswith(b"GET /next ")
        upstream.wire.receive(OK)
        assert read(reader.next.result).body == b"ok"


def reasons(failure: Failure) -> list[Failure]:
    """What the failure of an exchange came of."""
    assert isinstance(failure.value, (ResponseFailed, RequestTransmissionFailed))
    return list(failure.value.reasons)


class TestLoss:
    @pytest.mark.parametrize("answer", [LONG, LONG + b"012", CHUNKED + b"2\r\nab\r\n", CHUNKED + b"0\r\n"])
    @pytest.mark.parametrize("loss", [error.ConnectionDone(), RESET])
    def test_a_truncated_body_is_a_failure(self, upstream: Upstream, answer: bytes, loss: Exception) -> None:
        reader = read(upstream.exchange(answer))
        upstream.wire.lose(loss)
        assert reader.end.check(ResponseFailed)
        assert reasons(reader.end)[0].value is loss
        assert upstream.lost == [upstream.connection]

    def test_a_reset_is_no_end(self, upstream: Upstream) -> None:
        reader = read(upstream.exchange(b"HTTP/1.1 200 OK\r\n\r\nso far"))
        upstream.wire.lose(RESET)
        assert reader.end.check(ResponseFailed)

    @pytest.mark.parametrize("loss", [error.ConnectionDone(), RESET])
    @pytest.mark.parametrize(
        ("heard", "body", "kind"),
        [
            (b"", None, ResponseNeverReceived),
            (b"", Whole, ResponseNeverReceived),
            (b"", Upload, RequestTransmissionFailed),
            (b"HTT", None, ResponseFailed),
            (b"HTTP/1.1 200 OK\r\nX: y\r\n", None, ResponseFailed),
            (b"HTTP/1.1 103 Early\r\n\r\n", None, ResponseFailed),
        ],
    )
    def test_a_loss_before_the_headers_says_how_far_it_came(
        self, upstream: Upstream, heard: bytes, body: Any, kind: type[ResponseFailed], loss: Exception
    ) -> None:
        upload = None if body is None else Whole(b"x") if body is Whole else Upload()
        outcome = upstream.ask(b"POST", body=upload)
        if heard:
            upstream.wire.receive(heard)
        upstream.wire.lose(loss)
        assert type(outcome.failure.value) is kind
        (reason,) = reasons(outcome.failure)
        assert reason.value is loss

    def test_a_loss_stops_the_upload(self, upstream: Upstream) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        upstream.wire.lose(RESET)
        assert body.stopped
        assert len(outcome.failures) == 1

    def test_the_loss_of_an_idle_connection_is_told(self, upstream: Upstream) -> None:
        upstream.wire.lose(error.ConnectionDone())
        assert upstream.lost == [upstream.connection]

    def test_closing_waits_for_what_was_written(self, upstream: Upstream) -> None:
        upstream.connection.close()
        assert upstream.wire.ending == "closed"


class TestUpload:
    def test_a_client_that_breaks_off_resets_the_connection(self, upstream: Upstream) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        body.fail(BrokenBody("the client left"))
        assert outcome.failure.check(BrokenBody)
        assert upstream.wire.ending == "reset"
        upstream.wire.turn()
        assert len(outcome.failures) == 1

    def test_a_client_that_breaks_off_during_the_response_fails_it(self, upstream: Upstream) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        upstream.wire.receive(LONG)
        reader = read(outcome.result)
        body.fail(BrokenBody("the client left"))
        assert upstream.wire.ending == "reset"
        upstream.wire.turn()
        assert reader.end.check(ResponseFailed)

    def test_an_early_answer_arrives_while_the_upload_goes_on(self, upstream: Upstream) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        upstream.wire.receive(LONG + b"01234")
        reader = read(outcome.result)
        assert reader.body == b"01234"
        upstream.wire.take()
        body.write(b"more")
        assert upstream.wire.take() == b"4\r\nmore\r\n"
        body.end()
        upstream.wire.receive(b"56789")
        assert reader.end.check(ResponseDone)
        assert upstream.released == 1

    def test_an_early_answer_that_is_complete_ends_the_upload_and_the_connection(
        self, upstream: Upstream
    ) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        upstream.wire.receive(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        reader = read(outcome.result)
        assert (reader.body, reader.end.type) == (b"no", ResponseDone)
        assert body.stopped
        assert upstream.released == 0
        # A close in order would wait for what the upstream has not read, and may never read.
        assert upstream.wire.ending == "reset"
        body.write(b"late")


class TestClosing:
    def closing(self, upstream: Upstream) -> None:
        upstream.exchange(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert upstream.wire.ending == "closed"

    def test_an_upstream_that_does_not_take_what_was_written_is_not_waited_for(
        self, upstream: Upstream
    ) -> None:
        self.closing(upstream)
        upstream.clock.advance(4.9)
        assert upstream.wire.ending == "closed"
        upstream.clock.advance(0.2)
        assert upstream.wire.ending == "reset"
        upstream.wire.turn()
        assert upstream.lost == [upstream.connection]

    def test_so_it_is_with_an_idle_connection(self, upstream: Upstream) -> None:
        upstream.exchange(OK)
        upstream.connection.close()
        assert upstream.wire.ending == "closed"
        upstream.clock.advance(5)
        assert upstream.wire.ending == "reset"

    def test_an_end_in_time_leaves_no_timer(self, upstream: Upstream) -> None:
        self.closing(upstream)
        upstream.wire.turn()
        assert upstream.clock.getDelayedCalls() == []


class TestCancelling:
    def test_it_resets_the_connection_at_once(self, upstream: Upstream) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        outcome.deferred.cancel()
        assert outcome.failure.check(CancelledError)
        assert upstream.wire.ending == "reset"
        assert body.stopped
        upstream.wire.turn()
        assert upstream.lost == [upstream.connection]
        assert len(outcome.failures) == 1

    def test_it_works_between_the_lines_of_the_headers(self, upstream: Upstream) -> None:
        outcome = upstream.ask()
        upstream.wire.receive(b"HTTP/1.1 200 OK\r\nX: y\r\n")
        outcome.deferred.cancel()
        assert outcome.failure.check(CancelledError)
        assert upstream.wire.ending == "reset"

    def test_a_response_that_came_in_the_same_read_is_dropped(self) -> None:
        upstream = Upstream()
        outcome: Any = None

        def leave(code: int, phrase: bytes, fields: Fields) -> None:
            outcome.cancel()

        outcome = upstream.connection.send(b"GET", b"/", Fields(), None, leave)
        failures: list[Any] = []
        outcome.addErrback(failures.append)
        upstream.wire.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
        assert failures[0].check(CancelledError)
        assert upstream.wire.ending == "reset"
        assert upstream.released == 0


class TestReuse:
    def test_one_exchange_follows_another(self, upstream: Upstream) -> None:
        for number in range(3):
            reader = read(upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number))
            assert reader.body == b"%d" % number
        assert upstream.released == upstream.connection.exchanges == 3
        assert upstream.wire.ending == "open"

    @pytest.mark.parametrize("name", [name for name, valid in VALID.items() if valid[4]])
    def test_any_response_can_follow_any_that_left_it_usable(self, name: str) -> None:
        for following, (answer, method, body, *_) in VALID.items():
            upstream = Upstream()
            upstream.exchange(VALID[name][0], VALID[name][1])
            reader = read(upstream.exchange(answer, method))
            assert reader.body == body, following

    def test_nothing_of_an_exchange_is_left_for_the_next(self, upstream: Upstream) -> None:
        upstream.exchange(VALID["trailers"][0])
        response = upstream.exchange(OK)
        assert response.headers.pairs == [(b"Content-Length", b"2")]
        assert response.trailers is None
        assert response.phrase == b"OK"

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    def test_a_request_that_waits_is_sent_before_the_end_is_told_and_changes_nothing_in_it(
        self, upstream: Upstream, method: bytes
    ) -> None:
        following: list[Outcome] = []
        upstream.on_release = lambda: following.append(upstream.ask(target=b"/next", body=Upload()))
        answer = VALID["trailers"][0] if method == b"GET" else CHUNKED
        outcome, reader = upstream.ask(method), Reader()
        outcome.deferred.addCallback(lambda _: read(outcome.result, reader))
        upstream.wire.receive(answer)
        if method == b"GET":
            assert outcome.result.trailers.pairs == [(b"X-Sum", b"1"), (b"x-sum", b"2")]
        assert reader.end.check(ResponseDone)
        assert b"GET /next HTTP/1.1" in upstream.wire.take()
        upstream.on_release = lambda: None
        (next_one,) = following
        assert next_one.pending
        upstream.wire.receive(OK)
        assert read(next_one.result).body == b"ok"

    def test_a_pause_ends_with_the_response(self, upstream: Upstream) -> None:
        read(upstream.exchange(LONG), Reader(lambda reader: reader.transport.pauseProducing()))
        assert not upstream.wire.reading
        upstream.wire.receive(b"0123456789")
        assert upstream.wire.reading
        assert upstream.released == 1

    def test_a_connection_that_is_being_closed_is_not_released(self, upstream: Upstream) -> None:
        outcome = upstream.ask()
        upstream.connection.close()
        upstream.wire.receive(OK)
        assert read(outcome.result).body == b"ok"
        assert upstream.released == 0

    def test_chunked_in_http_1_0_is_read_once_and_not_trusted_again(self, upstream: Upstream) -> None:
        # RFC 9112 section 6.1.
        answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        assert read(upstream.exchange(answer)).body == b"ok"
        assert upstream.released == 0
        assert upstream.wire.ending == "closed"


class TestUnasked:
    @pytest.mark.parametrize("data", [OK, b"x", b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"])
    def test_bytes_without_a_request_close_the_connection(self, upstream: Upstream, data: bytes) -> None:
        upstream.exchange(OK)
        upstream.wire.receive(data)
        assert upstream.wire.ending == "reset"

    @pytest.mark.parametrize("name", [name for name, valid in VALID.items() if valid[4]])
    @pytest.mark.parametrize("surplus", [OK, b"x"])
    def test_bytes_behind_a_response_close_the_connection_and_leave_it_whole(
        self, name: str, surplus: bytes
    ) -> None:
        answer, method, body, end, _ = VALID[name]
        seen = see([answer + surplus], method)
        assert (seen.body, seen.end) == (body, end)
        assert not seen.reusable
        assert seen.ending == "closed"

    def test_a_body_in_answer_to_head_is_not_read_as_the_next_response(self, upstream: Upstream) -> None:
        response = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + OK, b"HEAD")
        assert read(response).body == b""
        assert upstream.released == 0
        assert upstream.wire.ending == "closed"


SECRET = b"s3cr3t"
MALFORMED: dict[str, bytes] = {
    "another protocol": b"SSH-2.0-" + SECRET + b"\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28" + SECRET,
    "lower-case protocol": b"http/1.1 200 s3cr3t\r\n\r\n",
    "no protocol": b"200 s3cr3t\r\n\r\n",
    "unknown minor version": b"HTTP/1.2 200 s3cr3t\r\n\r\n",
    "no minor version": b"HTTP/1 200 s3cr3t\r\n\r\n",
    "no status": b"HTTP/1.1 s3cr3t\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 s3cr3t\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 s3cr3t\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 s3cr3t\r\nContent-Length: 0\r\n\r\n",
    "negative status": b"HTTP/1.1 -20 s3cr3t\r\n\r\n",
    "bare LF behind the status line": b"HTTP/1.1 200 s3cr3t\nContent-Length: 0\r\n\r\n",
    "bare LF behind a field": b"HTTP/1.1 200 OK\r\nX: s3cr3t\nContent-Length: 0\r\n\r\n",
    "bare CR in a value": b"HTTP/1.1 200 OK\r\nX: a\rs3cr3t\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\0s3cr3t\r\n\r\n",
    "NUL in a name": b"HTTP/1.1 200 OK\r\nX\0: s3cr3t\r\n\r\n",
    "control character in a value": b"HTTP/1.1 200 OK\r\nX: \x01s3cr3t\r\n\r\n",
    "space in a name": b"HTTP/1.1 200 OK\r\nX s3cr3t: 1\r\n\r\n",
    "space before a colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\ns3cr3t",
    "no name": b"HTTP/1.1 200 OK\r\n: s3cr3t\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\ns3cr3t\r\n\r\n",
    "folded line": b"HTTP/1.1 200 OK\r\nX: a\r\n s3cr3t\r\n\r\n",
    "folded first line": b"HTTP/1.1 200 OK\r\n X: s3cr3t\r\n\r\n",
    "length and chunked": CHUNKED[:-2] + b"Content-Length: 6\r\n\r\ns3cr3t",
    "chunked and length": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\ns3cr3t",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 7\r\n\r\ns3cr3t",
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 6\r\n\r\ns3cr3t",
    "list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 6, 6\r\n\r\ns3cr3t",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +6\r\n\r\ns3cr3t",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -6\r\n\r\ns3cr3t",
    "hexadecimal length": b"HTTP/1.1 200 OK\r\nContent-Length: 0x6\r\n\r\ns3cr3t",
    "length beyond 64 bits": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\ns3cr3t",
    "empty length": b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\ns3cr3t",
    "coding that was not asked for": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\ns3cr3t",
    "coding below chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\ns3cr3t",
    "chunked in two fields": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\ns3cr3t",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\ns3cr3t",
    "identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\ns3cr3t",
    "something like chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: s3cr3tchunked\r\n\r\n",
    "empty coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \r\n\r\ns3cr3t",
    "unasked switch of protocols": SWITCHED + SECRET,
    "headers without an end": b"HTTP/1.1 200 OK\r\n" + b"X: s3cr3t\r\n" * 100,
    "one header without an end": b"HTTP/1.1 200 OK\r\nX: " + SECRET * 200,
    "phrase without an end": b"HTTP/1.1 200 " + SECRET * 200,
    "interim response with a body": b"HTTP/1.1 150 x\r\nContent-Length: 6\r\n\r\ns3cr3t" + OK,
}
MALFORMED_BODIES: dict[str, bytes] = {
    "no size": CHUNKED + b"\r\ns3cr3t",
    "size that is no number": CHUNKED + b"s3cr3t\r\n",
    "negative size": CHUNKED + b"-6\r\ns3cr3t\r\n",
    "size with a prefix": CHUNKED + b"0x6\r\ns3cr3t\r\n",
    "size behind a space": CHUNKED + b" 6\r\ns3cr3t\r\n",
    "size before a space": CHUNKED + b"6 \r\ns3cr3t\r\n",
    "size beyond 64 bits": CHUNKED + b"fffffffffffffffff\r\ns3cr3t",
    "bare LF behind a size": CHUNKED + b"6\ns3cr3t\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"2\r\ns3cr3t\r\n",
    "no line end behind a chunk": CHUNKED + b"6\r\ns3cr3t0\r\n\r\n",
    "NUL in a trailer": CHUNKED + b"0\r\nX: s3cr3t\0\r\n\r\n",
    "folded trailer": CHUNKED + b"0\r\nX: a\r\n s3cr3t\r\n\r\n",
    "length as a trailer": CHUNKED + b"0\r\nContent-Length: 2\r\n\r\ns3cr3t",
    "trailers without an end": CHUNKED + b"0\r\n" + b"X: s3cr3t\r\n" * 200,
    "one trailer without an end": CHUNKED + b"1\r\nx\r\n0\r\nX: " + SECRET * 400,
    "chunk extension without an end": CHUNKED + b"1;" + SECRET * 400,
}


class TestMalformed:
    @pytest.mark.parametrize("pieces", ["at once", "byte by byte"])
    @pytest.mark.parametrize("name", MALFORMED)
    def test_it_fails_the_request_resets_the_connection_and_shows_nothing(
        self, name: str, pieces: str
    ) -> None:
        upstream = Upstream(UpstreamLimits(headers=1000))
        outcome = upstream.ask()
        size = 1 if pieces == "byte by byte" else 5000
        for at in range(0, len(MALFORMED[name]), size):
            upstream.wire.receive(MALFORMED[name][at : at + size])
        fault = malformed(outcome.failure)
        assert "s3cr3t" not in f"{fault} {fault!r} {outcome.failure.getTraceback()}"
        assert str(fault)
        assert upstream.wire.ending == "reset"
        upstream.wire.turn()
        assert upstream.lost == [upstream.connection]
        assert upstream.released == 0

    @pytest.mark.parametrize("pieces", ["in large pieces", "byte by byte"])
    @pytest.mark.parametrize("name", MALFORMED_BODIES)
    def test_it_fails_the_response_resets_the_connection_and_shows_nothing(
        self, name: str, pieces: str
    ) -> None:
        upstream = Upstream(UpstreamLimits(headers=1000))
        outcome = upstream.ask()
        reader = Reader()
        outcome.deferred.addCallback(lambda _: read(outcome.result, reader))
        size = 1 if pieces == "byte by byte" else 500
        for at in range(0, len(MALFORMED_BODIES[name]), size):
            upstream.wire.receive(MALFORMED_BODIES[name][at : at + size])
        fault = malformed(reader.end)
        assert "s3cr3t" not in f"{fault} {fault!r} {reader.end.getTraceback()}"
        assert upstream.wire.ending == "reset"
        upstream.wire.turn()
        assert len(reader.ends) == 1
        assert upstream.released == 0

    def test_it_stops_the_upload(self, upstream: Upstream) -> None:
        body = Upload()
        outcome = upstream.ask(b"POST", body=body)
        upstream.wire.receive(b"garbage")
        malformed(outcome.failure)
        assert body.stopped

    def test_headers_may_be_as_large_as_the_limit(self) -> None:
        upstream = Upstream(UpstreamLimits(headers=1000))
        start, end = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nX: ", b"\r\n\r\n"
        head = start + b"x" * (1000 - len(start) - len(end)) + end
        outcome = upstream.ask()
        for at in range(0, len(head), 100):
            upstream.wire.receive(head[at : at + 100])
        reader = read(outcome.result)
        for _ in range(50):
            upstream.wire.receive(b"x" * 100)
        assert reader.end.check(ResponseDone)

    def test_each_interim_response_has_the_whole_limit(self) -> None:
        upstream = Upstream(UpstreamLimits(headers=100))
        outcome = upstream.ask()
        for _ in range(10):
            upstream.wire.receive(b"HTTP/1.1 103 Early Hints\r\nX: " + b"x" * 50 + b"\r\n\r\n")
        upstream.wire.receive(OK)
        assert read(outcome.result).body == b"ok"

    def test_a_long_stream_of_small_chunks_is_no_head(self) -> None:
        upstream = Upstream(UpstreamLimits(headers=100))
        reader = read(upstream.exchange(CHUNKED))
        for _ in range(100):
            upstream.wire.receive(b"1\r\nx\r\n")
        upstream.wire.receive(b"0\r\n\r\n")
        assert reader.body == b"x" * 100
        assert reader.end.check(ResponseDone)


START = st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 x\r\n\r\n", CHUNKED, LONG, OK, SWITCHED])


@settings(max_examples=300)
@given(
    start=START,
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"X: y\r\n", OK, b"HTTP/1.1 ", SWITCHED]
            ),
        ),
        max_size=8,
    ),
    method=st.sampled_from([b"GET", b"HEAD", b"POST"]),
    upgrade=st.booleans(),
)
@example(start=b"HTTP/1.1 103 x\r\n\r\n", pieces=[b"\0"], method=b"GET", upgrade=False)
def test_no_bytes_ever_raise(start: bytes, pieces: list[bytes], method: bytes, upgrade: bool) -> None:
    upstream = Upstream(UpstreamLimits(headers=200))
    outcome = upstream.ask(method, headers=WEBSOCKET if upgrade else [HOST])
    reader = Reader()
    outcome.deferred.addCallback(lambda _: outcome.result.deliverBody(reader) if outcome.results else None)
    with capturedLogs() as events:
        for piece in [start, *pieces]:
            upstream.wire.receive(piece)
        upstream.wire.lose(RESET)
    assert [event for event in events if "log_failure" in event] == []
    assert len(outcome.results) + len(outcome.failures) == 1
    # A response is told of its end exactly once, but for one that became a connection which nobody took.
    assert len(reader.ends) == (1 if outcome.results and outcome.result.code != 101 else 0)


class TestUpgrade:
    def take_over(self, upstream: Upstream, *pieces: bytes) -> Recorder:
        recorder = Recorder()
        outcome = upstream.ask(headers=WEBSOCKET)
        outcome.deferred.addCallback(lambda _: outcome.result.switchProtocols(recorder))
        for piece in pieces:
            upstream.wire.receive(piece)
        assert outcome.result.code == 101
        return recorder

    def test_the_connection_is_handed_over(self, upstream: Upstream) -> None:
        recorder = self.take_over(upstream, SWITCHED)
        upstream.wire.take()
        recorder.transport.write(b"up")
        assert upstream.wire.take() == b"up"
        upstream.wire.receive(b"down")
        assert recorder.data == b"down"
        assert recorder.ends == []

    def test_what_came_with_the_answer_goes_to_the_new_protocol(self, upstream: Upstream) -> None:
        recorder = self.take_over(upstream, SWITCHED + b"HTTP/1.1 200 early")
        assert recorder.data == b"HTTP/1.1 200 early"

    def test_an_answer_in_pieces_is_understood(self, upstream: Upstream) -> None:
        pieces = [SWITCHED[at : at + 1] for at in range(len(SWITCHED))]
        recorder = self.take_over(upstream, *pieces, b"first", b"second")
        assert recorder.data == b"firstsecond"

    def test_the_new_protocol_gets_no_empty_data(self, upstream: Upstream) -> None:
        class Strict(Recorder):
            def dataReceived(self, data: bytes) -> None:
                assert data
                super().dataReceived(data)

        strict = Strict()
        outcome = upstream.ask(headers=WEBSOCKET)
        outcome.deferred.addCallback(lambda _: outcome.result.switchProtocols(strict))
        upstream.wire.receive(SWITCHED)
        assert strict.data == b""

    def test_its_loss_is_told_to_the_new_protocol(self, upstream: Upstream) -> None:
        recorder = self.take_over(upstream, SWITCHED)
        assert repr(upstream.connection) == "<UpstreamConnection a tunnel, exchange 1>"
        upstream.wire.lose(RESET)
        assert recorder.end.value is RESET
        assert upstream.lost == [upstream.connection]
        assert upstream.released == 0

    def test_a_connection_that_nobody_takes_is_reset(self, upstream: Upstream) -> None:
        outcome = upstream.ask(headers=WEBSOCKET)
        upstream.wire.receive(SWITCHED + b"early")
        assert outcome.result.code == 101
        assert upstream.wire.ending == "reset"

    def test_a_client_that_has_left_takes_nothing(self, upstream: Upstream) -> None:
        outcome = upstream.ask(headers=WEBSOCKET)
        upstream.wire.receive(SWITCHED[:-1])
        outcome.deferred.cancel()
        assert upstream.wire.ending == "reset"
        assert outcome.failure.check(CancelledError)

    def test_a_refusal_is_a_response_like_any_other(self, upstream: Upstream) -> None:
        response = upstream.exchange(VALID["an offer of an upgrade"][0], headers=WEBSOCKET)
        assert (response.code, read(response).body) == (426, b"no")
        assert upstream.released == 1

    @pytest.mark.parametrize("rest", [b"", b"early", OK])
    def test_a_switch_to_nothing_is_malformed(self, upstream: Upstream, rest: bytes) -> None:
        # RFC 9110 section 15.2.2: a 101 must say to which protocol.
        outcome = upstream.ask(headers=WEBSOCKET)
        upstream.wire.receive(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + rest)
        malformed(outcome.failure)
        assert upstream.wire.ending == "reset"


class LostAtOnce(Wire):
    """A transport that tells of its loss within the call that asks for it, as some of Twisted's do."""

    def abortConnection(self) -> None:
        super().abortConnection()
        self.turn()

    def loseConnection(self) -> None:
        super().loseConnection()
        self.turn()


class TestTransportThatIsLostAtOnce:
    @pytest.mark.parametrize("name", MALFORMED)
    def test_a_malformed_response_fails_once(self, name: str) -> None:
        upstream = Upstream(UpstreamLimits(headers=1000), LostAtOnce())
        outcome = upstream.ask()
        upstream.wire.receive(MALFORMED[name])
        malformed(outcome.failure)
        assert len(upstream.lost) == 1

    @pytest.mark.parametrize(
        "name", [name for name, valid in VALID.items() if not valid[4] and valid[3] is ResponseDone]
    )
    def test_the_last_response_of_a_connection_is_whole(self, name: str) -> None:
        upstream = Upstream(wire=LostAtOnce())
        answer, method, body, end, _ = VALID[name]
        reader = read(upstream.exchange(answer, method))
        assert (reader.body, reader.end.type) == (body, end)
        assert len(upstream.lost) == 1

    def test_a_reader_may_abort_within_its_data(self) -> None:
        upstream = Upstream(wire=LostAtOnce())
        reader = Reader(on_data=lambda reader: reader.transport.abort())
        read(upstream.exchange(LONG), reader)
        upstream.wire.receive(b"0123456789" + OK)
        assert reader.body == b"0123456789"
        assert upstream.released == 0
        assert len(upstream.lost) == 1

    def test_a_client_may_leave_within_an_interim_response(self) -> None:
        upstream = Upstream(wire=LostAtOnce())
        answer: Any = None
        answer = upstream.connection.send(b"GET", b"/", Fields(), None, lambda *_: answer.cancel())
        failures: list[Any] = []
        answer.addErrback(failures.append)
        upstream.wire.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
        assert failures[0].check(CancelledError)
        assert len(upstream.lost) == 1


def test_a_fault_of_the_reader_is_logged_and_not_called_a_fault_of_the_upstream(
    upstream: Upstream, logged_failures: LoggedFailures
) -> None:
    class Faulty(Reader):
        def dataReceived(self, data: bytes) -> None:
            raise ZeroDivisionError

    faulty = read(upstream.exchange(LONG), Faulty())
    upstream.wire.receive(b"01234")
    assert logged_failures.flush(ZeroDivisionError)
    assert not any(reason.check(MalformedResponse) for reason in reasons(faulty.end))
