from __future__ import annotations

import pytest
from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.http.fields import Fields, Pair
from llmproxy.http.rules import Refused, body_length, known_method, origin_form, wants_websocket

HOST = (b"Host", b"proxy.example")


def length(*pairs: Pair, method: bytes = b"POST", version: bytes = b"HTTP/1.1") -> object:
    return body_length(method, version, Fields(pairs))


def refusal(*pairs: Pair, method: bytes = b"POST", version: bytes = b"HTTP/1.1") -> int:
    with pytest.raises(Refused) as refused:
        length(*pairs, method=method, version=version)
    assert str(refused.value) == refused.value.message
    return refused.value.problem.status


class TestMethod:
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"])
    def test_a_common_one_is_left_to_llhttp(self, method: bytes) -> None:
        assert known_method(method + b" /x") == (b"", method + b" /x", b"")

    def test_connect_is_left_to_llhttp_for_it_changes_how_a_request_is_read(self) -> None:
        assert known_method(b"CONNECT x:1") == (b"", b"CONNECT x:1", b"")

    @pytest.mark.parametrize(
        "method", [b"get", b"Post", b"FROBNICATE", b"M-SEARCH", b"a!#$%&'*+.^_`|~9", b"P" * 64]
    )
    def test_any_other_token_is_replaced(self, method: bytes) -> None:
        assert known_method(method + b" /x HTTP/1.1\r\n") == (method, b"POST /x HTTP/1.1\r\n", b"")

    @pytest.mark.parametrize("lines", [b"\r\n", b"\n", b"\r\n\r\n"])
    def test_empty_lines_before_it_stay(self, lines: bytes) -> None:
        assert known_method(lines + b"get /") == (b"get", b"POST /", b"")
        assert known_method(lines + b"GET /") == (b"", lines + b"GET /", b"")

    @pytest.mark.parametrize("start", [b"G", b"GET", b"frob"])
    def test_one_whose_end_has_not_come_is_kept(self, start: bytes) -> None:
        assert known_method(start) == (b"", b"", start)
        assert known_method(b"\r\n" + start) == (b"", b"\r\n", start)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\r",
            b"\r\n",
            b" GET /",
            b"G\tT /",
            b"\x16\x03\x01",
            b"P" * 65,
            b"P" * 65 + b" /",
            b"g\xe9t /",
            b"(get) /",
        ],
    )
    def test_what_is_no_token_is_left_to_llhttp(self, data: bytes) -> None:
        assert known_method(data) == (b"", data, b"")


class TestTarget:
    @pytest.mark.parametrize(
        ("target", "origin"),
        [
            (b"http://proxy.example/openai/v1/x?y=http://z", b"/openai/v1/x?y=http://z"),
            (b"HTTPS://proxy.example:33000/x", b"/x"),
            (b"http://user@[::1]:80/x", b"/x"),
            (b"http://proxy.example//x", b"//x"),
            (b"http://proxy.example", b"/"),
            (b"http://proxy.example?x/y", b"/?x/y"),
            (b"http:///x", b"/x"),
        ],
    )
    def test_an_absolute_one_is_brought_to_the_form_of_the_others(self, target: bytes, origin: bytes) -> None:
        assert origin_form(target) == origin

    @pytest.mark.parametrize("target", [b"/", b"/http://x", b"*", b"//x/y", b"ftp://x/y", b"/x?http://y/z"])
    def test_any_other_stays(self, target: bytes) -> None:
        assert origin_form(target) == target


class TestBodyLength:
    def test_without_framing_there_is_no_body(self) -> None:
        assert length(HOST) is None

    @pytest.mark.parametrize(
        ("value", "expected"), [(b"0", 0), (b"5", 5), (b"05", 5), (b"18446744073709551615", 2**64 - 1)]
    )
    def test_a_content_length_tells(self, value: bytes, expected: int) -> None:
        assert length(HOST, (b"content-LENGTH", value)) == expected

    @pytest.mark.parametrize("value", [b"chunked", b"Chunked"])
    def test_a_chunked_body_has_no_length(self, value: bytes) -> None:
        assert length(HOST, (b"Transfer-Encoding", value)) is UNKNOWN_LENGTH

    @pytest.mark.parametrize(
        "codings",
        [
            [b"gzip, chunked"],
            [b"identity"],
            [b"gzip"],
            [b",chunked"],
            [b"chunked", b"chunked"],
            [b"identity", b"chunked"],
        ],
    )
    def test_no_other_transfer_coding_is_taken(self, codings: list[bytes]) -> None:
        assert refusal(HOST, *((b"Transfer-Encoding", coding) for coding in codings)) == 501

    def test_http_1_0_has_no_transfer_coding(self) -> None:
        assert refusal(HOST, (b"Transfer-Encoding", b"chunked"), version=b"HTTP/1.0") == 400

    def test_connect_is_not_implemented(self) -> None:
        assert refusal(HOST, method=b"CONNECT") == 501

    @pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2"])
    def test_another_version_is_refused(self, version: bytes) -> None:
        assert refusal(HOST, version=version) == 400


class TestHost:
    def test_one_is_needed(self) -> None:
        assert refusal() == 400

    def test_http_1_0_needs_none(self) -> None:
        assert length(version=b"HTTP/1.0") is None

    @pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
    @pytest.mark.parametrize("second", [b"proxy.example", b"other.example", b""])
    def test_two_are_refused(self, second: bytes, version: bytes) -> None:
        assert refusal(HOST, (b"host", second), version=version) == 400

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"x",
            b"x:",
            b"x:80",
            b"a_b.example",
            b"127.0.0.1:33000",
            b"[::1]",
            b"[::1]:80",
            b"[v1.a:b]",
            b"%C3%A9",
            b"a,b",
            b":80",
        ],
    )
    def test_a_host_and_a_port_are_taken(self, value: bytes) -> None:
        assert length((b"Host", value)) is None

    @pytest.mark.parametrize(
        "value",
        [
            b"a b",
            b"a/b",
            b"user@x",
            b"x:y",
            b"x:80:80",
            b"x:-1",
            b"[::1",
            b"::1",
            b"http://x",
            b"x?",
            b"x#",
            b"x\xe9",
            b"x\\y",
            b'"x"',
        ],
    )
    def test_anything_else_is_refused(self, value: bytes) -> None:
        assert refusal((b"Host", value)) == 400


class TestWebSocket:
    @pytest.mark.parametrize("value", [b"websocket", b"WebSocket", b"h2c, websocket"])
    def test_a_handshake_is_told(self, value: bytes) -> None:
        assert wants_websocket(b"GET", Fields([(b"upgrade", value)]))

    @pytest.mark.parametrize("length", [b"0", b"00"])
    def test_no_bytes_are_no_body(self, length: bytes) -> None:
        assert wants_websocket(b"GET", Fields([(b"Upgrade", b"websocket"), (b"Content-Length", length)]))

    @pytest.mark.parametrize(
        ("method", "pairs"),
        [
            (b"GET", []),
            (b"GET", [(b"Upgrade", b"h2c")]),
            (b"POST", [(b"Upgrade", b"websocket")]),
            (b"GET", [(b"Upgrade", b"websocket"), (b"Content-Length", b"1")]),
            (b"GET", [(b"Upgrade", b"websocket"), (b"Transfer-Encoding", b"chunked")]),
        ],
    )
    def test_any_other_offer_is_none(self, method: bytes, pairs: list[Pair]) -> None:
        assert not wants_websocket(method, Fields(pairs))
