from __future__ import annotations

import pytest

from tests.support import BEARER, OPENAI_KEY, TOKEN, Proxy, Response


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def refused(proxy: Proxy, target: bytes, method: bytes = b"GET") -> Response:
    """The response to an authorized request that goes to no upstream."""
    client = proxy.ask(target, method=method)
    assert proxy.agent.requests == []
    response = client.response(method)
    assert response.whole
    assert response.rest == b""
    assert client.ending == "open"
    return response


@pytest.mark.parametrize("target", [b"/healthz", b"/healthz?", b"/healthz?verbose=1"])
@pytest.mark.parametrize("headers", [(), (BEARER,), ((b"Authorization", b"Bearer wrong"),)])
def test_the_health_check_answers_ok_whatever_the_token(
    proxy: Proxy, target: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    response = proxy.ask(target, headers=headers).response()
    assert (response.status, response.body, response.whole) == (200, b"ok", True)
    assert response.headers == [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    assert proxy.agent.requests == []


def test_the_health_check_answers_head_without_a_body(proxy: Proxy) -> None:
    response = refused(proxy, b"/healthz", b"HEAD")
    assert (response.status, response.rest) == (200, b"")
    assert response.headers == [(b"content-type", b"text/plain"), (b"content-length", b"2")]


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"get", b"BREW"])
def test_the_health_check_answers_no_other_method(proxy: Proxy, method: bytes) -> None:
    response = refused(proxy, b"/healthz", method)
    assert response.status == 405
    assert response.values(b"allow") == [b"GET, HEAD"]
    assert response.json()["error"] == "method_not_allowed"


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/?openai",
        b"/unknown",
        b"/unknown/v1",
        b"/v1/chat/completions",
        b"/OpenAI/v1",
        b"/openai2/v1",
        b"/open",
        b"//openai/v1",
        b"/openai;x/v1",
        b"/favicon.ico",
        b"/healthz/",
        b"/healthz/x",
        b"/healthz2",
    ],
)
def test_an_unknown_path_is_not_found(proxy: Proxy, target: bytes) -> None:
    response = refused(proxy, target)
    assert response.status == 404
    assert response.values(b"content-type") == [b"application/json"]
    assert set(response.json()) == {"error", "message"}
    assert response.json()["error"] == "not_found"


def test_an_unknown_path_is_told_which_prefixes_there_are(proxy: Proxy) -> None:
    message = refused(proxy, b"/v1/models").json()["message"]
    assert "/openai/" in message
    assert "/anthropic/" in message


@pytest.mark.parametrize("target", [b"/openai", b"/anthropic", b"/openai?x=1", b"/anthropic?"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_prefix_alone_is_not_found(proxy: Proxy, target: bytes, method: bytes) -> None:
    response = refused(proxy, target, method)
    assert response.status == 404
    assert response.json()["error"] == "not_found"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (b"/openai/../anthropic/v1", "dot segment"),
        (b"/openai/%2e%2e/anthropic/v1", "dot segment"),
        (b"/openai/%252e%252e/anthropic/v1", "dot segment"),
        (b"/openai/..;x/anthropic/v1", "dot segment"),
        (b"/../healthz", "dot segment"),
        (b"/openai/v1\\..", "backslash"),
        (b"/openai/v1/%5c..", "backslash"),
        (b"/%6fpenai/v1", "first path segment"),
        (b"/openai%2f..", "first path segment"),
        (b"/openai%2fv1", "first path segment"),
        (b"/%68ealthz", "first path segment"),
        (b"http://proxy.example/openai/../anthropic/v1", "dot segment"),
        (b"http://proxy.example/%6fpenai/v1", "first path segment"),
        (b"ftp://proxy.example/openai/v1", "must be a path"),
        (b"/openai/v1#x", "'#'"),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS"])
def test_a_target_that_could_be_understood_in_two_ways_is_refused(
    proxy: Proxy, target: bytes, words: str, method: bytes
) -> None:
    response = refused(proxy, target, method)
    assert response.status == 400
    assert response.json()["error"] == "bad_request"
    assert words in response.json()["message"]


@pytest.mark.parametrize(
    "target",
    [
        b"http://proxy.example/openai/v1/models?a=b",
        b"HTTP://elsewhere.example:8080/openai/v1/models?a=b",
        b"https://[::1]/openai/v1/models?a=b",
    ],
)
def test_a_target_in_absolute_form_is_taken_for_its_path(proxy: Proxy, target: bytes) -> None:
    # RFC 9112 section 3.2.2: a server must accept it.
    proxy.ask(target)
    assert proxy.agent.only.url == b"https://openai.example/v1/models?a=b"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://proxy.example/healthz", 200),
        (b"http://proxy.example", 404),
        (b"http://proxy.example?/openai/v1", 404),
        (b"http://proxy.example//openai/v1", 404),
    ],
)
def test_one_in_absolute_form_goes_nowhere_else_than_its_path(
    proxy: Proxy, target: bytes, status: int
) -> None:
    assert refused(proxy, target).status == status


@pytest.mark.parametrize(("method", "status"), [(b"OPTIONS", 404), (b"GET", 400), (b"POST", 400)])
def test_the_server_as_a_whole_has_nothing_to_offer(proxy: Proxy, method: bytes, status: int) -> None:
    assert refused(proxy, b"*", method).status == status


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"CONNECT", b"upstream.example:443", 501),
        (b"CONNECT", b"/openai/v1/models", 501),
        (b"GET", b"upstream.example:443", 400),
    ],
)
def test_what_is_asked_of_a_forward_proxy_is_refused(
    proxy: Proxy, method: bytes, target: bytes, status: int
) -> None:
    client = proxy.ask(target, method=method)
    assert client.response().status == status
    assert client.ending == "closed"
    assert proxy.agent.requests == []


@pytest.mark.parametrize("byte", [b"\x80", b"\xb0", b"\xc3\xa4", b"\xff", b"\x7f", b"\x00", b"\t"])
def test_a_byte_outside_visible_ascii_goes_nowhere(proxy: Proxy, byte: bytes) -> None:
    client = proxy.ask(b"/openai/v1/" + byte)
    assert client.received.startswith(b"HTTP/1.1 400 ")
    assert proxy.agent.requests == []


@pytest.mark.parametrize("target", [b"/openai", b"/nowhere", b"/openai/..", b"/openai/v1", b"*"])
def test_head_is_answered_without_a_body(proxy: Proxy, target: bytes) -> None:
    client = proxy.ask(target, method=b"HEAD", headers=())
    response = client.response(b"HEAD")
    assert response.status in (400, 401, 404)
    assert int(response.values(b"content-length")[0]) > 0
    assert response.rest == b""


@pytest.mark.parametrize("target", [b"/healthz", b"/nowhere", b"/openai/..", b"/openai", b"/openai/v1"])
def test_no_answer_of_the_proxys_own_has_headers_nobody_asked_for(proxy: Proxy, target: bytes) -> None:
    response = proxy.ask(target, headers=((b"Authorization", b"Bearer wrong"),)).response()
    names = [name for name, _ in response.headers]
    assert sorted(set(names)) == sorted(names)
    assert set(names) <= {b"content-type", b"content-length", b"www-authenticate"}


def test_no_answer_repeats_a_secret(proxy: Proxy) -> None:
    for target in (b"/nowhere?key=", b"/openai/../", b"/openai?"):
        received = proxy.ask(target + TOKEN).received
        assert TOKEN not in received
        assert OPENAI_KEY.encode("ascii") not in received


def test_a_connection_serves_one_request_after_another(proxy: Proxy) -> None:
    client = proxy.connect()
    for _ in range(3):
        client.ask(b"/healthz")
    assert client.received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert client.ending == "open"
