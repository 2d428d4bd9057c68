"""What passes, byte by byte: each request and response against what left the other end."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from random import Random
from typing import Any

import pytest

from tests.integration.conftest import Background
from tests.integration.process import ANTHROPIC_KEY, AUTHORIZATION, OPENAI_KEY, SECRETS, TOKEN, Proxy
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, PATIENCE, Body, Ending, Message, Wire, chunked, message

OK = message(b"HTTP/1.1 200 OK", b"Content-Length: 2", body=b"ok")
HOST = b"Host: proxy.example"
BEARER = b"Bearer " + TOKEN.encode()


def forwarded(proxy: Proxy, upstream: Upstream, line: bytes, *headers: bytes, body: bytes = b"") -> Message:
    """What the upstream gets of a request; it answers, and the client reads that."""
    client = proxy.send(line, *headers, body=body)
    wire, request = upstream.receive()
    wire.send(OK)
    assert client.response().body == b"ok"
    upstream.hang_up()
    return request


def send_slowly(client: Wire, data: bytes) -> None:
    """Send byte by byte."""
    for at in range(len(data)):
        client.send(data[at : at + 1])


def answered(
    proxy: Proxy, upstream: Upstream, response: bytes, line: bytes = b"GET /openai/v1/models"
) -> Message:
    """What a client gets of an upstream's response, on a connection that serves another request after it."""
    client = proxy.send(line)
    wire, _ = upstream.receive()
    wire.send(response)
    got = client.response(line.partition(b" ")[0])
    client.send(message(b"GET /healthz HTTP/1.1", HOST))
    assert client.response().body == b"ok"
    upstream.hang_up()
    return got


# The proxy's own answers


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_the_health_check_asks_no_token(proxy: Proxy, method: bytes) -> None:
    client = proxy.connect()
    client.send(message(method + b" /healthz HTTP/1.1", HOST))
    response = client.response(method)
    assert response.head.status == 200
    assert response.head.fields() == {b"content-type": [b"text/plain"], b"content-length": [b"2"]}
    assert response.body == (b"" if method == b"HEAD" else b"ok")


@pytest.mark.parametrize(
    "credentials",
    [
        [],
        [b"Authorization: Bearer wrong"],
        [b"Authorization: Basic " + TOKEN.encode()],
        [b"Authorization:"],
        [b"X-Api-Key: wrong"],
        [AUTHORIZATION, b"X-Api-Key: wrong"],
        [b"Authorization: Bearer wrong", b"X-Api-Key: " + TOKEN.encode()],
        [AUTHORIZATION, b"Authorization: Bearer wrong"],
    ],
    ids=lambda credentials: repr(b", ".join(credentials)),
)
def test_without_the_token_the_upstream_hears_nothing(
    proxy: Proxy, openai: Upstream, credentials: list[bytes]
) -> None:
    client = proxy.connect()
    client.send(
        message(b"POST /openai/v1/chat HTTP/1.1", HOST, *credentials, b"Content-Length: 2", body=b"{}")
    )
    response = client.response()
    assert response.head.status == 401
    assert response.head.values(b"content-type") == [b"application/json"]
    assert response.head.values(b"www-authenticate") == [b"Bearer"]
    assert response.json == {"error": "unauthorized"}
    # What was to be heard of it would have come before this.
    assert forwarded(proxy, openai, b"GET /openai/v1/models").head.line == b"GET /v1/models HTTP/1.1"
    assert openai.waiting() == 0


def test_a_refused_probe_leaves_its_connection_to_the_next_request(proxy: Proxy, anthropic: Upstream) -> None:
    client = proxy.connect()
    client.send(message(b"HEAD /anthropic/api/hello HTTP/1.1", HOST, b"Connection: keep-alive"))
    assert client.response(b"HEAD").head.status == 401
    client.send(message(b"GET /anthropic/v1/models HTTP/1.1", HOST, AUTHORIZATION))
    wire, _ = anthropic.receive()
    wire.send(OK)
    assert client.response().body == b"ok"


@pytest.mark.parametrize(
    "target", [b"/", b"/openai", b"/openai?x", b"/openaix/v1", b"/nowhere", b"//openai/v1"]
)
def test_a_path_that_names_no_upstream_is_not_found(proxy: Proxy, target: bytes) -> None:
    response = proxy.ask(b"GET " + target)
    assert response.head.status == 404
    assert response.json["error"] == "not_found"
    assert response.json["message"]


@pytest.mark.parametrize(
    "target",
    [
        b"/openai/../anthropic/v1/messages",
        b"/openai/v1/..",
        b"/openai/./v1",
        b"/openai/%2e%2E/anthropic/v1",
        b"/openai/%252e%252e/anthropic/v1",
        b"/openai/..%2fanthropic/v1",
        b"/openai/..;x/anthropic/v1",
        b"/openai/..\\anthropic",
        b"/openai/%5c..%5canthropic",
        b"/%6fpenai/v1/models",
        b"/openai%2fv1/models",
    ],
)
def test_a_path_that_could_be_read_in_two_ways_is_refused(
    proxy: Proxy, openai: Upstream, anthropic: Upstream, target: bytes
) -> None:
    response = proxy.ask(b"GET " + target)
    assert response.head.status == 400
    assert response.head.values(b"content-type") == [b"application/json"]
    assert response.json["error"] == "bad_request"
    assert forwarded(proxy, openai, b"GET /openai/v1/next").head.line == b"GET /v1/next HTTP/1.1"
    assert openai.waiting() == anthropic.waiting() == 0


# Requests


def test_the_upstream_gets_what_was_sent_and_nothing_else(proxy: Proxy, openai: Upstream) -> None:
    body = b'{"model": "m",  "input": "\\u00e9 \xc3\xa9"}\n'
    request = forwarded(
        proxy,
        openai,
        b"POST /openai/v1/responses?stream=true",
        b"Content-Type: application/json; charset=utf-8",
        b"Content-Length: %d" % len(body),
        b"X-Twice: one",
        b"X-Other:  spaced \t",
        b"x-twice: two, three",
        b"X-Empty:",
        b"X-Latin: caf\xe9",
        b"OpenAI-Beta: assistants=v2",
        b"Cookie: a=1; b=2",
        b"Forwarded: for=192.0.2.1",
        body=body,
    )
    assert request.head.line == b"POST /v1/responses?stream=true HTTP/1.1"
    assert request.head.fields() == {
        b"host": [openai.netloc],
        b"authorization": [b"Bearer " + OPENAI_KEY.encode()],
        b"content-type": [b"application/json; charset=utf-8"],
        b"content-length": [b"%d" % len(body)],
        b"x-twice": [b"one", b"two, three"],
        b"x-other": [b"spaced"],
        b"x-empty": [b""],
        b"x-latin": [b"caf\xe9"],
        b"openai-beta": [b"assistants=v2"],
        b"cookie": [b"a=1; b=2"],
        b"forwarded": [b"for=192.0.2.1"],
    }
    assert request.body == body


def test_the_least_request_stays_the_least(proxy: Proxy, anthropic: Upstream) -> None:
    request = forwarded(proxy, anthropic, b"GET /anthropic/v1/models")
    assert request.head.line == b"GET /base/v0/v1/models HTTP/1.1"
    assert request.head.fields() == {b"host": [anthropic.netloc], b"x-api-key": [ANTHROPIC_KEY.encode()]}


def test_hop_by_hop_headers_of_a_request_end_here(proxy: Proxy, openai: Upstream) -> None:
    request = forwarded(
        proxy,
        openai,
        b"GET /openai/v1/models",
        b"Connection: X-Dropped, keep-alive",
        b"Connection: x-too",
        b"X-Dropped: 1",
        b"X-Too: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authorization: Basic eDp5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Trailer: X-Sum",
        b"Upgrade: h2c",
        b"X-Kept: 1",
    )
    assert request.head.fields(b"host", b"authorization") == {b"x-kept": [b"1"]}


@pytest.mark.parametrize(
    "credentials",
    [
        [b"Authorization: Bearer " + TOKEN.encode()],
        [b"authorization: bEARER   " + TOKEN.encode()],
        [b"X-Api-Key: " + TOKEN.encode()],
        [AUTHORIZATION, b"X-API-KEY: " + TOKEN.encode()],
        [AUTHORIZATION, AUTHORIZATION],
    ],
)
@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_the_key_takes_the_place_of_the_token(
    proxy: Proxy, openai: Upstream, anthropic: Upstream, name: str, credentials: list[bytes]
) -> None:
    upstream = {"openai": openai, "anthropic": anthropic}[name]
    client = proxy.connect()
    more = [b"X-Forwarded-Authorization: " + BEARER, b"Cookie: session=" + TOKEN.encode(), b"Api-Key: other"]
    client.send(message(b"GET /%b/v1/models HTTP/1.1" % name.encode(), HOST, *credentials, *more))
    wire, request = upstream.receive()
    wire.send(OK)
    client.response()
    keys = {
        "openai": {b"authorization": [b"Bearer " + OPENAI_KEY.encode()]},
        "anthropic": {b"x-api-key": [ANTHROPIC_KEY.encode()]},
    }
    assert request.head.fields(b"host") == {**keys[name], b"api-key": [b"other"]}


@pytest.mark.parametrize(
    "rest",
    [
        b"/",
        b"//",
        b"//evil.example/x",
        b"/v1/files/a%2Fb%2fc",
        b"/v1/%e4%BD%a0",
        b"/v1/a%252Fb",
        b"/v1/x;y=1",
        b"/v1/x;",
        b"/v1//x/",
        b"/v1/x?",
        b"/v1/x??",
        b"/v1/x?;",
        b"/v1/x?a=1&a=2&a=&a&=",
        b'/v1/x?q[]=1&r=a|b&s="{}"',
        b"/v1/x?next=/../y&url=http://h.example/p",
        b"/v1/x?a=%20+%2B&b=%",
        b"/v1/...x/.y",
        b"/v1/" + b"x" * 4000,
    ],
)
def test_a_target_passes_byte_for_byte(
    proxy: Proxy, openai: Upstream, anthropic: Upstream, rest: bytes
) -> None:
    assert forwarded(proxy, openai, b"GET /openai" + rest).head.line == b"GET %b HTTP/1.1" % rest
    assert (
        forwarded(proxy, anthropic, b"GET /anthropic" + rest).head.line == b"GET /base/v0%b HTTP/1.1" % rest
    )


@pytest.mark.parametrize(
    "method",
    [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"PROPFIND", b"FROBNICATE", b"get"],
)
def test_a_method_passes_as_spelled(proxy: Proxy, openai: Upstream, method: bytes) -> None:
    request = forwarded(proxy, openai, method + b" /openai/v1/x", b"Content-Length: 2", body=b"{}")
    assert request.head.line == method + b" /v1/x HTTP/1.1"
    assert request.body == b"{}"


@pytest.mark.parametrize(
    "method",
    [
        b"GET",
        b"DELETE",
        b"POST",
        b"PUT",
    ],
)
def test_no_body_stays_no_body(proxy: Proxy, openai: Upstream, method: bytes) -> None:
    request = forwarded(proxy, openai, method + b" /openai/v1/x")
    assert request.head.fields(b"host", b"authorization") == {}


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_an_empty_body_stays_an_empty_body(proxy: Proxy, openai: Upstream, method: bytes) -> None:
    request = forwarded(proxy, openai, method + b" /openai/v1/x", b"Content-Length: 0")
    assert request.head.fields(b"host", b"authorization") == {b"content-length": [b"0"]}


def test_json_passes_as_bytes(proxy: Proxy, openai: Upstream) -> None:
    body = b'{ "b":1,\r\n\t"a" : 1.0e0, "a":"\\u00e9\xc3\xa9\\/" ,"n":100000000000000000000000 }  '
    assert json.loads(body)
    request = forwarded(proxy, openai, b"POST /openai/v1/x", b"Content-Length: %d" % len(body), body=body)
    assert request.body == body


def test_an_upload_of_5_mb_passes_with_its_length(
    proxy: Proxy, openai: Upstream, background: Background
) -> None:
    body = Random(5).randbytes(5_000_000)
    client = proxy.send(b"POST /openai/v1/files", b"Content-Length: %d" % len(body))
    sending = background(client.send, body)
    wire, request = openai.receive()
    sending.result()
    wire.send(OK)
    assert client.response().body == b"ok"
    assert request.head.values(b"content-length") == [b"%d" % len(body)]
    assert request.body == body


@pytest.mark.parametrize(
    "parts",
    [[], [b"x"], [b"small", b"and", b"many"], [b"x" * 300_000, b"y"]],
    ids=["none", "one", "many", "large"],
)
def test_a_chunked_upload_stays_chunked(
    proxy: Proxy, openai: Upstream, background: Background, parts: list[bytes]
) -> None:
    client = proxy.send(b"POST /openai/v1/files", b"Transfer-Encoding: chunked")
    sending = background(client.send, chunked(*parts) + LAST_CHUNK)
    wire, request = openai.receive()
    sending.result()
    wire.send(OK)
    assert client.response().body == b"ok"
    assert request.head.fields(b"host", b"authorization") == {b"transfer-encoding": [b"chunked"]}
    assert request.body == b"".join(parts)
    assert request.trailers == ()


def test_names_and_order_of_a_requests_headers_stay(proxy: Proxy, openai: Upstream) -> None:
    own = [
        (b"X-ZULU", b"1"),
        (b"x-alpha", b"2"),
        (b"OpenAI-Organization", b"3"),
        (b"x-ZuLu", b"4"),
        (b"ACCEPT", b"*/*"),
        (b"anthropic-Beta", b"5"),
    ]
    request = forwarded(proxy, openai, b"GET /openai/v1/models", *[b": ".join(pair) for pair in own])
    ours = (b"host", b"authorization")
    assert [pair for pair in request.head.headers if pair[0].lower() not in ours] == own


def test_trailers_of_a_request_pass(proxy: Proxy, openai: Upstream) -> None:
    body = chunked(b"one", b"two") + b"0\r\nX-Checksum: 5\r\nx-Other:  a b \r\n\r\n"
    request = forwarded(
        proxy,
        openai,
        b"POST /openai/v1/files",
        b"Transfer-Encoding: chunked",
        b"Trailer: X-Checksum",
        body=body,
    )
    assert request.body == b"onetwo"
    assert request.trailers == ((b"X-Checksum", b"5"), (b"x-Other", b"a b"))


@pytest.mark.parametrize("body", [b"", b"hello"])
def test_another_protocol_is_declined_by_going_on_with_http(
    proxy: Proxy, openai: Upstream, body: bytes
) -> None:
    client = proxy.connect()
    offer = [
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
    ]
    framing = [b"Content-Length: %d" % len(body)] if body else []
    line = b"%b /openai/v1/x HTTP/1.1" % (b"POST" if body else b"GET")
    for _ in range(2):  # the connection goes on, too
        client.send(message(line, HOST, AUTHORIZATION, *offer, *framing, body=body))
        wire, request = openai.receive()
        assert request.head.fields(b"host", b"authorization") == ({b"content-length": [b"5"]} if body else {})
        assert request.body == body
        wire.send(message(b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: 2", body=b"ok"))
        response = client.response()
        assert response.head.line == b"HTTP/1.1 200 OK"
        assert response.body == b"ok"


def test_an_offer_of_another_protocol_with_a_chunked_body_is_served(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(
        b"POST /openai/v1/x",
        b"Connection: Upgrade",
        b"Upgrade: h2c",
        b"Transfer-Encoding: chunked",
        body=chunked(b"one") + LAST_CHUNK + message(b"GET /healthz HTTP/1.1", HOST),
    )
    wire, request = openai.receive()
    assert request.body == b"one"
    wire.send(OK)
    assert [client.response().body, client.response().body] == [b"ok", b"ok"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_that_offers_http_2_is_served(proxy: Proxy, openai: Upstream, background: Background) -> None:
    curl = [
        "curl",
        "--silent",
        "--show-error",
        "--http2",
        "--noproxy",
        "*",
        "--header",
        AUTHORIZATION.decode(),
    ]
    url = f"{proxy.url}/openai/v1/x"
    running = background(
        subprocess.run, [*curl, "--data", "hello", url], check=True, capture_output=True, timeout=PATIENCE
    )
    wire, request = openai.receive()
    assert request.body == b"hello"
    wire.send(OK)
    assert running.result().stdout == b"ok"


# Requests behind one another


@pytest.mark.parametrize("pace", ["at once", "byte by byte"])
def test_pipelined_requests_are_answered_in_order(
    proxy: Proxy, openai: Upstream, background: Background, pace: str
) -> None:
    requests = b""
    for number in range(12):
        if number % 4 == 3:
            requests += message(b"GET /healthz HTTP/1.1", HOST)
        elif number % 4 == 2:
            body = chunked(b"number ", b"%d" % number) + LAST_CHUNK
            requests += message(
                b"POST /openai/v1/x HTTP/1.1", HOST, AUTHORIZATION, b"Transfer-Encoding: chunked", body=body
            )
        else:
            body = b"number %d" % number
            requests += message(
                b"POST /openai/v1/x HTTP/1.1",
                HOST,
                AUTHORIZATION,
                b"Content-Length: %d" % len(body),
                body=body,
            )
    client = proxy.connect()
    if pace == "at once":
        client.send(requests)
    else:
        background(send_slowly, client, requests)
    wire = openai.accept()
    for number in range(12):
        if number % 4 == 3:
            assert client.response().body == b"ok"
            continue
        request = wire.request()
        assert request.body == b"number %d" % number
        wire.send(message(b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(request.body), body=request.body))
        assert client.response().body == request.body


def test_a_pipelined_request_waits_for_the_answer_before_it(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(
        message(b"GET /openai/v1/1 HTTP/1.1", HOST, AUTHORIZATION)
        + message(b"GET /nowhere HTTP/1.1", HOST, AUTHORIZATION)
    )
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"one")))
    body = Body(client, client.head())
    assert body.exactly(3) == b"one"
    wire.send(LAST_CHUNK)
    assert body.rest() == b""
    assert client.response().head.status == 404


def test_what_is_pipelined_behind_the_last_request_is_not_served(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(
        message(b"GET /openai/v1/1 HTTP/1.1", HOST, AUTHORIZATION, b"Connection: close")
        + message(b"DELETE /openai/v1/2 HTTP/1.1", HOST, AUTHORIZATION)
    )
    wire, _ = openai.receive()
    wire.send(OK)
    assert client.response().body == b"ok"
    assert client.ending() is Ending.FIN
    proxy.send(b"GET /openai/v1/3")
    assert wire.request().head.line == b"GET /v1/3 HTTP/1.1"
    assert openai.waiting() == 0


# Responses


def test_the_client_gets_what_the_upstream_sent_and_nothing_else(proxy: Proxy, openai: Upstream) -> None:
    response = answered(
        proxy,
        openai,
        message(
            b"HTTP/1.1 418 I'm a  teapot",
            b"Content-Length: 5",
            b"X-Request-Id: req_1",
            b"Set-Cookie: a=1; Path=/; Secure",
            b"X-Twice: one",
            b"Set-Cookie: b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
            b"x-twice: two, three",
            b"set-cookie: c=3",
            b"X-Empty:",
            b"X-Latin: caf\xe9",
            b"Retry-After: 3",
            body=b"short",
        ),
    )
    assert response.head.line == b"HTTP/1.1 418 I'm a  teapot"
    assert response.head.fields() == {
        b"content-length": [b"5"],
        b"x-request-id": [b"req_1"],
        b"set-cookie": [b"a=1; Path=/; Secure", b"b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT", b"c=3"],
        b"x-twice": [b"one", b"two, three"],
        b"x-empty": [b""],
        b"x-latin": [b"caf\xe9"],
        b"retry-after": [b"3"],
    }
    assert response.body == b"short"


def test_hop_by_hop_headers_of_a_response_end_here(proxy: Proxy, openai: Upstream) -> None:
    response = answered(
        proxy,
        openai,
        message(
            b"HTTP/1.1 200 OK",
            b"Connection: keep-alive, X-Dropped",
            b"X-Dropped: 1",
            b"Keep-Alive: timeout=5",
            b"Proxy-Authenticate: Basic",
            b"Upgrade: h2c",
            b"Content-Length: 2",
            b"X-Kept: 1",
            body=b"ok",
        ),
    )
    assert response.head.fields() == {b"content-length": [b"2"], b"x-kept": [b"1"]}


def test_a_chunked_response_stays_chunked(proxy: Proxy, openai: Upstream) -> None:
    body = chunked(b"one", b"x" * 100_000, b"three") + LAST_CHUNK
    response = answered(proxy, openai, message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=body))
    assert response.head.fields() == {b"transfer-encoding": [b"chunked"]}
    assert response.body == b"one" + b"x" * 100_000 + b"three"
    assert response.trailers == ()


def test_names_and_order_of_a_responses_headers_stay(proxy: Proxy, openai: Upstream) -> None:
    headers = [
        (b"X-ZULU", b"1"),
        (b"x-alpha", b"2"),
        (b"Set-Cookie", b"a=1"),
        (b"x-ZuLu", b"3"),
        (b"CONTENT-length", b"2"),
        (b"set-cookie", b"b=2"),
        (b"openai-Processing-MS", b"4"),
    ]
    ok = message(b"HTTP/1.1 200 OK", *[b": ".join(pair) for pair in headers], body=b"ok")
    assert answered(proxy, openai, ok).head.headers == tuple(headers)


def test_trailers_of_a_response_pass(proxy: Proxy, openai: Upstream) -> None:
    body = chunked(b"one", b"two") + b"0\r\nX-Checksum: 5\r\nx-Other:  a b \r\n\r\n"
    headers = [b"Transfer-Encoding: chunked", b"Trailer: X-Checksum"]
    response = answered(proxy, openai, message(b"HTTP/1.1 200 OK", *headers, body=body))
    assert response.body == b"onetwo"
    assert response.trailers == ((b"X-Checksum", b"5"), (b"x-Other", b"a b"))


def test_early_hints_pass_before_the_response(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"GET /openai/v1/models")
    wire, _ = openai.receive()
    for number in range(2):
        hint = b"</%d.css>; rel=preload" % number
        wire.send(
            message(b"HTTP/1.1 103 Early Hints", b"Link: " + hint, b"Connection: x-dropped", b"x-dropped: 1")
        )
        head = client.head()
        assert head.line == b"HTTP/1.1 103 Early Hints"
        assert head.headers == ((b"Link", hint),)
    wire.send(OK)
    assert client.response().body == b"ok"
    client.send(message(b"GET /healthz HTTP/1.1", HOST))
    assert client.response().body == b"ok"


def test_an_older_client_gets_no_early_hints(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/models HTTP/1.0", HOST, AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 103 Early Hints", b"Link: </x>") + OK)
    assert client.response().head.status == 200


def test_a_100_that_nobody_asked_for_ends_here(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"POST /openai/v1/x", b"Content-Length: 2", body=b"{}")
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 100 Continue") + OK)
    assert client.response().head.status == 200


def test_a_response_that_the_close_ends_is_whole(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"GET /openai/v1/models")
    wire, _ = openai.receive()
    wire.send(message(b"HTTP/1.1 200 OK", body=b"until the end"))
    head = client.head()
    body = Body(client, head)
    assert body.exactly(13) == b"until the end"
    wire.close()
    assert body.rest() == b""
    assert head.values(b"content-length") == []


@pytest.mark.parametrize(
    "framing",
    [[b"Transfer-Encoding: chunked"], [b"Content-Length: 5"], []],
    ids=["chunked", "length", "no length"],
)
def test_an_older_client_gets_a_body_that_it_can_read(
    proxy: Proxy, openai: Upstream, framing: list[bytes]
) -> None:
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/models HTTP/1.0", HOST, AUTHORIZATION))
    wire, request = openai.receive()
    assert request.head.line == b"GET /v1/models HTTP/1.1"
    chunks = b"chunked" in b"".join(framing)
    wire.send(
        message(b"HTTP/1.1 200 OK", *framing, body=chunked(b"whole") + LAST_CHUNK if chunks else b"whole")
    )
    wire.close()
    response = client.response()
    assert response.body == b"whole"
    assert response.head.values(b"transfer-encoding") == []
    assert client.ending() is Ending.FIN


@pytest.mark.parametrize("host", [[HOST], []], ids=["host", "no host"])
def test_an_older_client_may_keep_its_connection(proxy: Proxy, openai: Upstream, host: list[bytes]) -> None:
    client = proxy.connect()
    for _ in range(3):
        client.send(message(b"GET /openai/v1/x HTTP/1.0", *host, b"Connection: Keep-Alive", AUTHORIZATION))
        wire, request = openai.receive()
        assert request.head.line == b"GET /v1/x HTTP/1.1"
        assert request.head.fields(b"authorization") == {b"host": [openai.netloc]}
        wire.send(message(b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: 2", body=b"ok"))
        response = client.response()
        assert response.body == b"ok"
        assert [value.lower() for value in response.head.values(b"connection")] == [b"keep-alive"]


def test_a_body_without_a_length_ends_an_older_clients_connection(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(message(b"GET /openai/v1/x HTTP/1.0", HOST, b"Connection: Keep-Alive", AUTHORIZATION))
    wire, _ = openai.receive()
    wire.send(
        message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"o", b"k") + LAST_CHUNK)
    )
    response = client.response()
    assert response.body == b"ok"
    assert response.head.values(b"connection") == [b"close"]
    assert client.ending() is Ending.FIN


def test_an_older_client_may_upload(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    client.send(
        message(b"POST /openai/v1/x HTTP/1.0", HOST, AUTHORIZATION, b"Content-Length: 5", body=b"hello")
    )
    wire, request = openai.receive()
    assert request.body == b"hello"
    wire.send(OK)
    assert client.response().body == b"ok"
    assert client.ending() is Ending.FIN


def test_a_client_may_ask_that_its_connection_be_closed(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.send(b"GET /openai/v1/models", b"Connection: close")
    wire, request = openai.receive()
    assert request.head.values(b"connection") == []
    wire.send(OK)
    assert client.response().body == b"ok"
    assert client.ending() is Ending.FIN


@pytest.mark.parametrize("asked", [[], [b"Accept-Encoding: gzip, br"], [b"Accept-Encoding: identity"]])
def test_a_compressed_response_passes_untouched(proxy: Proxy, openai: Upstream, asked: list[bytes]) -> None:
    compressed = gzip.compress(b'{"text": "plain"}' * 100)
    client = proxy.send(b"GET /openai/v1/models", *asked)
    wire, request = openai.receive()
    headers = [b"Content-Encoding: gzip", b"Content-Length: %d" % len(compressed)]
    wire.send(message(b"HTTP/1.1 200 OK", *headers, body=compressed))
    response = client.response()
    assert request.head.values(b"accept-encoding") == [header.partition(b": ")[2] for header in asked]
    assert response.body == compressed
    assert response.head.fields() == {
        b"content-encoding": [b"gzip"],
        b"content-length": [b"%d" % len(compressed)],
    }


def test_a_compressed_stream_passes_as_it_comes(proxy: Proxy, openai: Upstream) -> None:
    compressed = gzip.compress(Random(1).randbytes(1000))
    client = proxy.send(b"GET /openai/v1/models")
    wire, _ = openai.receive()
    headers = [b"Content-Encoding: gzip", b"Transfer-Encoding: chunked"]
    wire.send(message(b"HTTP/1.1 200 OK", *headers, body=chunked(compressed[:10])))
    head = client.head()
    body = Body(client, head)
    assert head.values(b"content-encoding") == [b"gzip"]
    assert body.exactly(10) == compressed[:10]
    wire.send(chunked(compressed[10:]) + LAST_CHUNK)
    assert body.rest() == compressed[10:]


@pytest.mark.parametrize(
    ("line", "response"),
    [
        (b"HEAD /openai/x", message(b"HTTP/1.1 200 OK", b"Content-Length: 1234", b"ETag: x")),
        (b"HEAD /openai/x", message(b"HTTP/1.1 404 Not Found", b"ETag: x")),
        (b"DELETE /openai/x", message(b"HTTP/1.1 204 No Content", b"ETag: x")),
        (b"GET /openai/x", message(b"HTTP/1.1 304 Not Modified", b"ETag: x")),
        (b"GET /openai/x", message(b"HTTP/1.1 304 Not Modified", b"Content-Length: 1234", b"ETag: x")),
    ],
)
def test_a_response_that_has_no_body_keeps_its_headers(
    proxy: Proxy, openai: Upstream, line: bytes, response: bytes
) -> None:
    got = answered(proxy, openai, response, line)
    sent = [header.split(b": ") for header in response.split(b"\r\n")[1:-2]]
    assert got.head.line == response.split(b"\r\n")[0]
    assert got.head.fields() == {name.lower(): [value] for name, value in sent}


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 529 unknown",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 599 \xe9trange",
        b"HTTP/1.1 400 BAD REQUEST",
        b"HTTP/1.1 206 Partial",
    ],
)
def test_status_and_reason_pass_as_spelled(proxy: Proxy, openai: Upstream, line: bytes) -> None:
    response = answered(proxy, openai, message(line, b"Content-Length: 3", body=b"..."))
    assert response.head.line == line
    assert response.body == b"..."


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_the_clients_to_follow(proxy: Proxy, openai: Upstream, status: int) -> None:
    location = b"http://%b/elsewhere" % openai.netloc
    moved = message(b"HTTP/1.1 %d Moved" % status, b"Location: " + location, b"Content-Length: 0")
    response = answered(proxy, openai, moved)
    assert response.head.line == b"HTTP/1.1 %d Moved" % status
    assert response.head.fields() == {b"location": [location], b"content-length": [b"0"]}
    assert openai.waiting() == 0


def test_cookies_of_one_caller_are_not_sent_for_another(proxy: Proxy, openai: Upstream) -> None:
    baked = message(b"HTTP/1.1 200 OK", b"Set-Cookie: session=first; Path=/", b"Content-Length: 0")
    assert answered(proxy, openai, baked).head.values(b"set-cookie") == [b"session=first; Path=/"]
    assert forwarded(proxy, openai, b"GET /openai/v1/models").head.values(b"cookie") == []
    own = forwarded(proxy, openai, b"GET /openai/v1/models", b"Cookie: session=second")
    assert own.head.values(b"cookie") == [b"session=second"]


def test_an_error_of_the_upstream_passes_as_it_is(proxy: Proxy, anthropic: Upstream) -> None:
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n'
    headers: list[bytes] = [
        b"Content-Type: application/json",
        b"x-should-retry: true",
        b"request-id: req_7",
        b"Content-Length: %d" % len(error),
    ]
    overloaded = message(b"HTTP/1.1 529 Overloaded", *headers, body=error)
    response = answered(proxy, anthropic, overloaded, b"POST /anthropic/v1/messages")
    sent: dict[bytes, Any] = dict(header.lower().split(b": ") for header in headers)
    assert response.body == error
    assert response.head.fields() == {name: [value] for name, value in sent.items()}


def test_a_connection_serves_one_request_after_the_other(proxy: Proxy, openai: Upstream) -> None:
    client = proxy.connect()
    for count in range(3):
        body = b'{"n": %d}' % count
        headers = [HOST, AUTHORIZATION, b"Content-Length: %d" % len(body)]
        client.send(message(b"POST /openai/v1/x HTTP/1.1", *headers, body=body))
        wire, request = openai.receive()
        assert request.body == body
        answer = message(
            b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: %d" % len(body), body=body
        )
        wire.send(answer)
        assert client.response().body == body


def test_no_answer_tells_a_secret(proxy: Proxy, openai: Upstream) -> None:
    answers = [
        proxy.ask(b"GET /openai?key=" + TOKEN.encode()),
        proxy.ask(b"GET /openai/../x?key=" + TOKEN.encode()),
        answered(proxy, openai, OK),
    ]
    for secret in SECRETS:
        assert secret.encode() not in repr(answers).encode()
