from __future__ import annotations

import datetime
import ipaddress
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error, ssl
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import AccumulatingProtocol, MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from twisted.test.iosim import connect as pump_together
from twisted.web.client import (
    BrowserLikePolicyForHTTPS,
    PotentialDataLoss,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from llmproxy import errors
from llmproxy.http.client import IDLE_CONNECTION, PooledAgent
from llmproxy.http.interfaces import IAbortableResponse
from tests.support import OPENAI, make_headers, pairs

URL = b"http://upstream.example/v1/x"
HOST = (b"Host", b"upstream.example")
TOOK_TOO_LONG = (
    errors.GATEWAY_TIMEOUT,
    "The upstream openai (openai.example) did not take the connection in time.",
)


class Outcome:
    """What a Deferred has come to."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.deferred = deferred
        self.results: list[Any] = []
        self.failures: list[Failure] = []
        deferred.addCallbacks(self.results.append, self.failures.append)

    @property
    def response(self) -> Any:
        (response,) = self.results
        return response

    @property
    def failure(self) -> Failure:
        (failure,) = self.failures
        return failure


class Wire(StringTransport):
    """The transport of a connection to the upstream.

    :ivar aborted: whether the agent has reset it.
    """

    aborted = False

    def __init__(self, protocol: Any) -> None:
        super().__init__(lenient=True)
        self.protocol = protocol

    def abortConnection(self) -> None:
        self.aborted = True

    def answer(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def lose(self, reason: Exception) -> None:
        self.protocol.connectionLost(Failure(reason))


@implementer(IHostnameResolver)
class Resolver:
    """Resolves every name in a later turn, as the reactor's own does.

    :param found: whether a name has an address.
    """

    def __init__(self, reactor: MemoryReactorClock, found: bool = True) -> None:
        self._reactor = reactor
        self._found = found

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        resolution: Any = None
        resolutionReceiver.resolutionBegan(resolution)
        if self._found:
            resolutionReceiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        self._reactor.callLater(0, resolutionReceiver.resolutionComplete)
        return cast(IHostResolution, resolution)


def make_reactor() -> MemoryReactorClock:
    reactor = MemoryReactorClock()
    reactor.nameResolver = Resolver(reactor)
    return reactor


class Upstream:
    """An agent in memory, and the upstream's side of its connections."""

    def __init__(self) -> None:
        self.reactor = make_reactor()
        self.agent = PooledAgent(self.reactor, 10.0)

    def request(
        self,
        url: bytes = URL,
        method: bytes = b"GET",
        headers: list[tuple[bytes, bytes]] | None = None,
        body: IBodyProducer | None = None,
    ) -> Outcome:
        outcome = Outcome(self.agent.request(method, url, make_headers(headers or [HOST]), body))
        self.reactor.advance(0)
        return outcome

    def accept(self) -> Wire:
        """Let the connection that was attempted last come up."""
        factory = self.reactor.tcpClients[-1][2]
        wire = Wire(factory.buildProtocol(None))
        wire.protocol.makeConnection(wire)
        return wire

    def refuse(self, reason: Exception) -> None:
        """Let the connection that was attempted last fail."""
        factory = self.reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(self.reactor.connectors[-1], Failure(reason))
        self.reactor.advance(0.3)  # HostnameEndpoint looks for further addresses then

    def exchange(self, answer: bytes, method: bytes = b"GET") -> tuple[Outcome, Wire]:
        """Send a request on a new connection, and answer."""
        outcome = self.request(method=method)
        wire = self.accept()
        if answer:
            wire.answer(answer)
        return outcome, wire


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


class Body(AccumulatingProtocol):
    """A reader of a body."""

    transport: Any

    pause_at_once = False

    def connectionMade(self) -> None:
        super().connectionMade()
        if self.pause_at_once:
            self.transport.pauseProducing()

    @property
    def end(self) -> Failure:
        assert self.closedReason is not None
        return self.closedReason


def read(response: Any) -> Body:
    body = Body()
    response.deliverBody(body)
    return body


@implementer(IBodyProducer)
class Producer:
    """A request body that the test writes."""

    def __init__(self, length: object) -> None:
        self.length = length
        self.done: Deferred[None] = Deferred()
        self.stopped = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.consumer = consumer
        return self.done

    def stopProducing(self) -> None:
        self.stopped = True

    def pauseProducing(self) -> None:
        raise AssertionError("this test has no full buffers")

    def resumeProducing(self) -> None:
        raise AssertionError("this test has no full buffers")


class TestRequest:
    @pytest.mark.parametrize(
        ("url", "target"),
        [
            (b"http://upstream.example/", b"/"),
            (b"http://upstream.example/a;", b"/a;"),
            (b"http://upstream.example/a?", b"/a?"),
            (b'http://upstream.example/%2F?x=[|]"\\', b'/%2F?x=[|]"\\'),
            (b"http://upstream.example//evil.example/x", b"//evil.example/x"),
            (b"http://upstream.example/http://evil.example/", b"/http://evil.example/"),
        ],
    )
    def test_the_bytes_from_the_path_on_are_the_request_target(
        self, upstream: Upstream, url: bytes, target: bytes
    ) -> None:
        upstream.request(url)
        assert upstream.accept().value().startswith(b"GET " + target + b" HTTP/1.1\r\n")
        assert len(upstream.reactor.tcpClients) == 1

    @pytest.mark.parametrize(
        ("url", "port"),
        [
            (b"http://upstream.example/", 80),
            (b"https://upstream.example/", 443),
            (b"http://upstream.example:8080/", 8080),
            (b"https://upstream.example:8443/", 8443),
            (b"http://[2001:db8::1]/", 80),
            (b"http://[2001:db8::1]:81/", 81),
        ],
    )
    def test_it_connects_to_the_port_of_the_url(self, upstream: Upstream, url: bytes, port: int) -> None:
        upstream.request(url)
        assert [attempt[1] for attempt in upstream.reactor.tcpClients] == [port]

    def test_headers_go_out_as_they_are(self, upstream: Upstream) -> None:
        upstream.request(headers=[HOST, (b"X-A", b"2"), (b"X-A", b"1")])
        assert upstream.accept().value().endswith(b"Host: upstream.example\r\nX-A: 2\r\nX-A: 1\r\n\r\n")

    def test_what_was_expected_of_the_proxy_is_not_expected_of_the_upstream(self, upstream: Upstream) -> None:
        given = make_headers([HOST, (b"Expect", b"100-continue")])
        upstream.agent.request(b"GET", URL, given)
        upstream.reactor.advance(0)
        assert b"xpect" not in upstream.accept().value()
        assert given.hasHeader(b"expect")

    def test_a_body_with_a_length_is_sent_with_it(self, upstream: Upstream) -> None:
        body = Producer(5)
        upstream.request(method=b"POST", body=body)
        wire = upstream.accept()
        body.consumer.write(b"hello")
        body.done.callback(None)
        head, _, content = wire.value().partition(b"\r\n\r\n")
        assert b"Content-Length: 5" in head
        assert content == b"hello"

    def test_a_body_without_a_length_is_sent_chunked(self, upstream: Upstream) -> None:
        body = Producer(UNKNOWN_LENGTH)
        upstream.request(method=b"POST", body=body)
        wire = upstream.accept()
        body.consumer.write(b"hello")
        body.done.callback(None)
        head, _, content = wire.value().partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert content == b"5\r\nhello\r\n0\r\n\r\n"


class TestResponse:
    def test_it_is_there_as_soon_as_its_headers_are(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\n")
        assert outcome.results == []
        wire.answer(b"Content-Length: 5\r\n\r\n")
        assert (outcome.response.code, outcome.response.phrase) == (200, b"OK")

    @pytest.mark.xfail(strict=True, reason="it does not say that it provides the interface")
    def test_it_provides_what_the_proxy_relies_on(self, upstream: Upstream) -> None:
        outcome, _ = upstream.exchange(b"HTTP/1.1 200 OK\r\n\r\n")
        verifyObject(IAbortableResponse, outcome.response)

    @pytest.mark.parametrize("line", [b"529 unknown", b"200 Fine by me", b"200 ", b"299"])
    def test_the_reason_phrase_is_kept(self, upstream: Upstream, line: bytes) -> None:
        outcome, _ = upstream.exchange(b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\n\r\n")
        assert (outcome.response.code, outcome.response.phrase) == (int(line[:3]), line[4:])

    def test_all_headers_are_told_with_those_that_steer_the_connection(self, upstream: Upstream) -> None:
        outcome, _ = upstream.exchange(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: b=2\r\nContent-Length: 5\r\nSet-Cookie: a=1\r\n"
            b"Connection: x-hop\r\nX-Hop: 1\r\n\r\n"
        )
        assert sorted(pairs(outcome.response.headers)) == [
            (b"connection", b"x-hop"),
            (b"content-length", b"5"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"x-hop", b"1"),
        ]

    @pytest.mark.parametrize("method", [b"HEAD", b"GET"])
    def test_the_length_of_a_head_or_an_empty_response_is_told(
        self, upstream: Upstream, method: bytes
    ) -> None:
        code = b"200 OK" if method == b"HEAD" else b"304 Not Modified"
        outcome, _ = upstream.exchange(b"HTTP/1.1 " + code + b"\r\nContent-Length: 77\r\n\r\n", method)
        assert outcome.response.headers.getRawHeaders(b"content-length") == [b"77"]
        assert read(outcome.response).end.check(ResponseDone)

    def test_a_body_is_delivered_as_it_comes(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        body = read(outcome.response)
        assert body.data == b"a"
        wire.answer(b"2\r\nb")
        assert body.data == b"ab"
        wire.answer(b"c\r\n0\r\n\r\n")
        assert body.data == b"abc"
        assert body.end.check(ResponseDone)

    def test_a_compressed_body_and_a_redirect_are_left_alone(self, upstream: Upstream) -> None:
        outcome, _ = upstream.exchange(
            b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 3\r\n\r\nxyz"
        )
        assert read(outcome.response).data == b"xyz"
        assert len(upstream.reactor.tcpClients) == 1

    def test_a_reader_can_pause_and_resume_the_upstream(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        body = read(outcome.response)
        assert wire.producerState == "producing"
        body.transport.pauseProducing()
        assert wire.producerState == "paused"
        body.transport.resumeProducing()
        assert wire.producerState == "producing"

    def test_a_pause_that_a_reader_asks_for_at_once_holds(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        body = Body()
        body.pause_at_once = True
        outcome.response.deliverBody(body)
        assert wire.producerState == "paused"
        body.transport.resumeProducing()
        assert wire.producerState == "producing"

    def test_a_reader_can_stop_the_upstream(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        read(outcome.response).transport.stopProducing()
        assert wire.producerState == "stopped"


class TestAbort:
    def test_it_resets_the_connection_at_once(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        read(outcome.response)
        outcome.response.abort()
        assert wire.aborted

    def test_it_works_before_anyone_reads(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        outcome.response.abort()
        assert wire.aborted

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    def test_it_does_nothing_to_a_response_that_is_over(self, upstream: Upstream, method: bytes) -> None:
        outcome, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", method)
        outcome.response.abort()
        assert not wire.aborted

    def test_it_does_not_touch_the_next_response_of_the_same_connection(self, upstream: Upstream) -> None:
        first, wire = upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        upstream.request()
        assert len(upstream.reactor.tcpClients) == 1
        wire.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        first.response.abort()
        assert not wire.aborted


class TestEndOfABody:
    LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    TILL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"

    @pytest.mark.parametrize(
        ("received", "loss", "end"),
        [
            (TILL_CLOSE + b"abc", error.ConnectionDone(), PotentialDataLoss),
            (TILL_CLOSE + b"abc", error.ConnectionLost(), ResponseFailed),
            (TILL_CLOSE + b"abc", SSL.Error([("", "", "unexpected eof")]), ResponseFailed),
            (LENGTH + b"abc", error.ConnectionDone(), ResponseFailed),
            (LENGTH + b"abc", error.ConnectionLost(), ResponseFailed),
            (LENGTH, error.ConnectionDone(), ResponseFailed),
            (CHUNKED + b"3\r\nabc\r\n", error.ConnectionDone(), ResponseFailed),
            (CHUNKED + b"9\r\nabc", error.ConnectionLost(), ResponseFailed),
            (CHUNKED + b"3\r\nabc\r\n0\r\n", error.ConnectionDone(), ResponseFailed),
        ],
    )
    def test_a_loss_is_told_for_what_it_is(
        self, upstream: Upstream, received: bytes, loss: Exception, end: type[Exception]
    ) -> None:
        outcome, wire = upstream.exchange(received)
        body = read(outcome.response)
        wire.lose(loss)
        assert body.end.check(end)

    def test_a_broken_chunk_is_a_failure(self, upstream: Upstream) -> None:
        outcome, wire = upstream.exchange(self.CHUNKED)
        body = read(outcome.response)
        wire.answer(b"nonsense\r\n")
        assert body.end.check(ResponseFailed)


class TestFaults:
    @pytest.mark.parametrize(
        "reason", [error.ConnectionRefusedError(), error.TCPTimedOutError(), error.NoRouteError()]
    )
    def test_a_connection_that_fails_is_told_for_what_it_is(
        self, upstream: Upstream, reason: Exception
    ) -> None:
        outcome = upstream.request()
        upstream.refuse(reason)
        assert outcome.failure.value is reason

    @pytest.mark.parametrize(
        ("received", "loss", "kind", "words"),
        [
            (b"", error.ConnectionDone(), ResponseNeverReceived, "closed the connection before it answered"),
            (b"", error.ConnectionLost(), ResponseNeverReceived, "reset the connection before it answered"),
            (
                b"HTTP/1.1 200 OK\r\nX-A",
                error.ConnectionDone(),
                ResponseFailed,
                "closed the connection within",
            ),
            (b"HTTP/1.1 200 OK\r\n", error.ConnectionLost(), ResponseFailed, "reset the connection within"),
        ],
    )
    def test_a_connection_that_is_lost_before_the_headers_is_a_fault_of_the_upstream(
        self, upstream: Upstream, received: bytes, loss: Exception, kind: type[Exception], words: str
    ) -> None:
        outcome, wire = upstream.exchange(received)
        wire.lose(loss)
        assert outcome.failure.check(kind)
        explained = errors.explain(OPENAI, outcome.failure)
        assert explained is not None
        assert words in explained[1]

    @pytest.mark.parametrize(
        "received",
        [
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ],
    )
    def test_a_malformed_response_is_a_fault_of_the_upstream(
        self, upstream: Upstream, received: bytes
    ) -> None:
        outcome, _ = upstream.exchange(received)
        assert outcome.failure.check(ResponseFailed)
        assert errors.explain(OPENAI, outcome.failure) == (
            errors.BAD_GATEWAY,
            "The upstream openai (openai.example) sent a malformed response.",
        )

    def test_a_connection_that_is_lost_during_the_upload_is_a_fault_of_the_upstream(
        self, upstream: Upstream
    ) -> None:
        body = Producer(5)
        outcome = upstream.request(method=b"POST", body=body)
        upstream.accept().lose(error.ConnectionLost())
        assert outcome.failure.check(RequestTransmissionFailed)
        assert body.stopped

    @pytest.mark.xfail(
        strict=True,
        reason="the failure is a ConnectingCancelledError, which counts as the proxy's own fault: 500",
    )
    def test_a_connection_that_does_not_come_up_in_time_is_a_timeout(self, upstream: Upstream) -> None:
        outcome = upstream.request()
        upstream.reactor.advance(9.9)
        assert outcome.failures == []
        upstream.reactor.advance(0.1)
        assert errors.explain(OPENAI, outcome.failure) == TOOK_TOO_LONG

    @pytest.mark.xfail(
        strict=True, reason="Twisted tells a cancelled resolution as a name that does not resolve: 502"
    )
    def test_a_name_that_is_not_resolved_in_time_is_a_timeout(self, upstream: Upstream) -> None:
        class Silent(Resolver):
            def resolveHostName(self, *_: object, **__: object) -> IHostResolution:
                """Never answer."""
                return cast(IHostResolution, None)

        upstream.reactor.nameResolver = Silent(upstream.reactor)
        outcome = upstream.request()
        upstream.reactor.advance(10)
        assert errors.explain(OPENAI, outcome.failure) == TOOK_TOO_LONG

    @pytest.mark.xfail(
        strict=True, reason="a Deferred that waits for another counts as called, and gets no timeout"
    )
    def test_a_name_that_is_resolved_at_once_takes_nothing_off_the_connect_timeout(
        self, upstream: Upstream
    ) -> None:
        upstream.reactor.nameResolver = MemoryReactorClock().nameResolver
        outcome = upstream.request()
        upstream.reactor.advance(10)
        assert errors.explain(OPENAI, outcome.failure) == TOOK_TOO_LONG

    def test_a_name_that_does_not_resolve_is_told(self, upstream: Upstream) -> None:
        upstream.reactor.nameResolver = Resolver(upstream.reactor, found=False)
        assert upstream.request().failure.check(error.DNSLookupError)

    def test_the_connect_timeout_ends_with_the_connection(self, upstream: Upstream) -> None:
        outcome = upstream.request()
        wire = upstream.accept()
        upstream.reactor.advance(500)
        assert (outcome.failures, wire.aborted, wire.disconnecting) == ([], False, False)
        assert upstream.reactor.getDelayedCalls() == []


class TestCancel:
    def test_while_connecting_gives_up_the_attempt(self, upstream: Upstream) -> None:
        outcome = upstream.request()
        outcome.deferred.cancel()
        assert outcome.failure.check(CancelledError, error.ConnectingCancelledError)
        assert upstream.reactor.connectors[-1].stoppedConnecting
        assert upstream.reactor.getDelayedCalls() == []

    def test_while_waiting_resets_the_connection_at_once(self, upstream: Upstream) -> None:
        outcome = upstream.request()
        wire = upstream.accept()
        outcome.deferred.cancel()
        assert wire.aborted
        assert outcome.failures

    def test_while_uploading_stops_the_upload_and_resets_the_connection_at_once(
        self, upstream: Upstream
    ) -> None:
        body = Producer(5)
        outcome = upstream.request(method=b"POST", body=body)
        wire = upstream.accept()
        outcome.deferred.cancel()
        assert wire.aborted
        assert outcome.failures


class TestPool:
    WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    def test_a_connection_is_used_again(self, upstream: Upstream) -> None:
        _, wire = upstream.exchange(self.WHOLE)
        again = upstream.request()
        wire.answer(self.WHOLE)
        assert again.response.code == 200
        assert len(upstream.reactor.tcpClients) == 1
        assert upstream.agent.close() is not None

    def test_a_connection_to_another_host_is_not(self, upstream: Upstream) -> None:
        upstream.exchange(self.WHOLE)
        upstream.request(b"http://other.example/")
        upstream.request(b"http://upstream.example:81/")
        upstream.request(b"https://upstream.example/")
        assert [attempt[1] for attempt in upstream.reactor.tcpClients] == [80, 80, 81, 443]

    def test_a_connection_that_the_upstream_will_close_is_not_used_again(self, upstream: Upstream) -> None:
        upstream.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        upstream.request()
        assert len(upstream.reactor.tcpClients) == 2

    def test_an_idle_connection_is_closed_before_an_upstream_would(self, upstream: Upstream) -> None:
        _, wire = upstream.exchange(self.WHOLE)
        upstream.reactor.advance(IDLE_CONNECTION - 0.1)
        assert not wire.disconnecting
        upstream.reactor.advance(0.1)
        assert wire.disconnecting

    @pytest.mark.parametrize("method", [b"GET", b"POST"])
    def test_no_request_is_sent_twice(self, upstream: Upstream, method: bytes) -> None:
        _, wire = upstream.exchange(self.WHOLE)
        wire.clear()
        again = upstream.request(method=method)
        assert wire.value()
        wire.lose(error.ConnectionDone())
        assert again.failure.check(ResponseNeverReceived)
        assert len(upstream.reactor.tcpClients) == 1

    def test_closing_it_closes_the_idle_connections(self, upstream: Upstream) -> None:
        _, wire = upstream.exchange(self.WHOLE)
        closed = Outcome(upstream.agent.close())
        assert wire.aborted or wire.disconnecting
        wire.lose(error.ConnectionDone())
        assert len(closed.results) == 1
        assert upstream.reactor.getDelayedCalls() == []


def make_certificate(*names: str) -> ssl.PrivateCertificate:
    """A self-signed certificate for some names."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
        for name in names
    ]
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made: ssl.PrivateCertificate = ssl.PrivateCertificate.loadPEM(pem)
    return made


GOOD = make_certificate("upstream.example")
OTHER = make_certificate("upstream.example")
MISNAMED = make_certificate("another.example")


class Answerer(Protocol):
    """An upstream behind TLS that answers whatever it is sent."""

    transport: Any
    received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


class TestTLS:
    @pytest.fixture
    def reactor(self, monkeypatch: pytest.MonkeyPatch) -> MemoryReactorClock:
        reactor = make_reactor()
        # Twisted's TLS endpoint does not hand its reactor on.
        monkeypatch.setattr("twisted.protocols.tls._get_default_clock", lambda: reactor)
        return reactor

    def start(self, reactor: MemoryReactorClock) -> Outcome:
        trusted = ssl.trustRootFromCertificates([GOOD, MISNAMED])
        agent = PooledAgent(reactor, 10.0, BrowserLikePolicyForHTTPS(trusted))
        outcome = Outcome(agent.request(b"GET", b"https://upstream.example/v1", make_headers([HOST])))
        reactor.advance(0)
        return outcome

    def accept(self, reactor: MemoryReactorClock, server: Protocol) -> IOPump:
        """Let the connection come up, with a peer, and let bytes flow until there are none."""
        client: Any = reactor.tcpClients[-1][2].buildProtocol(None)
        pump: IOPump = pump_together(
            server,
            FakeTransport(server, isServer=True),
            client,
            FakeTransport(client, isServer=False),
            clock=reactor,
        )
        return pump

    def serve(
        self, reactor: MemoryReactorClock, certificate: ssl.PrivateCertificate
    ) -> tuple[Answerer, IOPump]:
        answerer = Answerer()
        factory = TLSMemoryBIOFactory(
            certificate.options(), False, Factory.forProtocol(lambda: answerer), reactor
        )
        return answerer, self.accept(reactor, factory.buildProtocol(None))

    def test_a_request_goes_out_after_the_handshake(self, reactor: MemoryReactorClock) -> None:
        outcome = self.start(reactor)
        answerer, pump = self.serve(reactor, GOOD)
        pump.flush()
        assert answerer.received.startswith(b"GET /v1 HTTP/1.1\r\n")
        body = read(outcome.response)
        pump.flush()
        assert body.data == b"hi"
        assert body.end.check(ResponseDone)
        reactor.advance(10)

    @pytest.mark.parametrize(
        ("certificate", "kinds", "words"),
        [
            (OTHER, (SSL.Error,), "cannot be trusted or does not speak TLS: certificate verify failed"),
            (MISNAMED, (VerificationError,), "cannot be trusted or does not speak TLS: VerificationError"),
        ],
    )
    def test_a_bad_certificate_is_a_failure_to_connect(
        self,
        reactor: MemoryReactorClock,
        certificate: ssl.PrivateCertificate,
        kinds: tuple[type[Exception], ...],
        words: str,
    ) -> None:
        outcome = self.start(reactor)
        answerer, pump = self.serve(reactor, certificate)
        pump.flush()
        assert answerer.received == b""
        assert outcome.failure.check(*kinds)
        explained = errors.explain(OPENAI, outcome.failure)
        assert explained is not None
        assert words in explained[1]

    def test_a_peer_that_speaks_no_tls_is_a_failure_to_connect(self, reactor: MemoryReactorClock) -> None:
        class Plain(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        outcome = self.start(reactor)
        self.accept(reactor, Plain()).flush()
        assert outcome.failure.check(SSL.Error)

    def test_a_peer_that_hangs_up_during_the_handshake_is_a_failure_to_connect(
        self, reactor: MemoryReactorClock
    ) -> None:
        class Rude(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                self.transport.loseConnection()

        outcome = self.start(reactor)
        self.accept(reactor, Rude()).flush()
        explained = errors.explain(OPENAI, outcome.failure)
        assert explained is not None
        assert explained[0] is errors.BAD_GATEWAY

    def test_a_peer_that_accepts_and_says_nothing_runs_into_the_connect_timeout(
        self, reactor: MemoryReactorClock
    ) -> None:
        outcome = self.start(reactor)
        silent = Protocol()
        pump = self.accept(reactor, silent)
        reactor.advance(9.9)
        assert outcome.failures == []
        reactor.advance(0.1)
        explained = errors.explain(OPENAI, outcome.failure)
        assert explained is not None
        assert explained[0] is errors.GATEWAY_TIMEOUT
        pump.flush()
        assert pump.clientIO.disconnecting

    def test_the_context_of_an_upstream_is_made_once(self) -> None:
        made: list[bytes] = []

        class Policy(BrowserLikePolicyForHTTPS):
            def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
                made.append(hostname)
                return super().creatorForNetloc(hostname, port)

        agent = PooledAgent(make_reactor(), 10.0, Policy())
        for _ in range(3):
            agent.request(b"GET", b"https://upstream.example/", make_headers([HOST]))
        assert made == [b"upstream.example"]

    def test_the_platforms_authorities_are_trusted_by_default(self, reactor: MemoryReactorClock) -> None:
        outcome = Outcome(
            PooledAgent(reactor, 10.0).request(b"GET", b"https://upstream.example/", make_headers([HOST]))
        )
        reactor.advance(0)
        _, pump = self.serve(reactor, GOOD)
        pump.flush()
        assert outcome.failure.check(SSL.Error)
