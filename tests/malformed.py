"""Requests that must be refused: what is sent, how it is answered, and which rule it breaks.

Each would be authorized if it were taken, and most are followed by a request that a server would find which read the one
before it in another way: the upstream must see neither.
"""

from __future__ import annotations

import attrs

PLACE = b"<token>"  # where the local token of a proxy is to be put
SMUGGLED = b"GET /openai/v1/smuggled HTTP/1.1\r\nHost: proxy.example\r\nX-Api-Key: <token>\r\n\r\n"

_HOST = b"Host: proxy.example\r\n"
_KEY = b"X-Api-Key: <token>\r\n"
_TARGET = b"/openai/v1/x?key=<token>"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_BODY = b"5\r\nhello\r\n0\r\n\r\n"


@attrs.frozen
class Malformed:
    """A request that is refused.

    :ivar message: what is sent, with :data:`PLACE` for the token.
    :ivar status: of the answer.
    :ivar reason: the rule, by its section.
    :ivar in_body: what is wrong comes behind good headers, so that the upstream may have been connected to.
    """

    name: str
    message: bytes
    status: int
    reason: str
    in_body: bool = False

    def sent(self, token: bytes) -> bytes:
        """What is sent to a proxy with a token."""
        return self.message.replace(PLACE, token)


def _line(name: str, line: bytes, reason: str, status: int = 400) -> Malformed:
    """A request that is good but for its first line."""
    return Malformed(name, line + _HOST + _KEY + b"\r\n" + SMUGGLED, status, reason)


def _target(name: str, target: bytes, reason: str = "RFC 9112 section 3.2", status: int = 400) -> Malformed:
    return _line(name, b"GET " + target + b" HTTP/1.1\r\n", reason, status)


def _headers(name: str, headers: bytes, reason: str, status: int = 400) -> Malformed:
    """A request that is good but for what stands among its headers."""
    message = b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b" % (_TARGET, _HOST, _KEY, headers, SMUGGLED)
    return Malformed(name, message, status, reason)


def _hosts(name: str, headers: bytes, version: bytes = b"HTTP/1.1") -> Malformed:
    message = b"GET %b %b\r\n%b%b\r\n%b" % (_TARGET, version, headers, _KEY, SMUGGLED)
    return Malformed(name, message, 400, "RFC 9112 section 3.2")


def _length(name: str, value: bytes, reason: str = "RFC 9112 section 6.3, rule 5") -> Malformed:
    return _headers(f"Content-Length {name}", b"Content-Length: " + value + b"\r\n", reason)


def _coding(
    name: str, headers: bytes, status: int, reason: str = "RFC 9112 section 6.3, rule 4"
) -> Malformed:
    message = b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b%b" % (_TARGET, _HOST, _KEY, headers, _BODY, SMUGGLED)
    return Malformed(f"Transfer-Encoding {name}", message, status, reason)


def _chunks(name: str, body: bytes, reason: str = "RFC 9112 section 7.1") -> Malformed:
    message = b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b%b" % (_TARGET, _HOST, _KEY, _CHUNKED, body, SMUGGLED)
    return Malformed(name, message, 400, reason, in_body=True)


_LINE = "RFC 9112 section 3"
_VERSION = "RFC 9112 section 2.3"
_ENDS = "RFC 9112 section 2.2"
_NAME = "RFC 9110 section 5.1"
_VALUE = "RFC 9110 section 5.5"
_BOTH = "RFC 9112 section 6.1; CVE-2020-10109"

TABLE = [
    # The first line
    _line("line of one word", b"GET\r\n", _LINE, 501),
    _line("line of two words", b"GET /openai/v1/x\r\n", _LINE),
    _line("line without a target", b"GET HTTP/1.1\r\n", _LINE),
    _line("line with a space before it", b" GET /openai/v1/x HTTP/1.1\r\n", _LINE, 501),
    _line("line with a space behind it", b"GET /openai/v1/x HTTP/1.1 \r\n", _LINE),
    _line("line with tabs", b"GET\t/openai/v1/x\tHTTP/1.1\r\n", _LINE, 501),
    _line("line that ends in LF", b"GET /openai/v1/x HTTP/1.1\n", _ENDS),
    _line("line that ends in CR CR LF", b"GET /openai/v1/x HTTP/1.1\r\r\n", _ENDS),
    _line("line with a folded header behind it", b"GET /openai/v1/x HTTP/1.1\r\n ", _ENDS),
    _line("method of no token", b"G(T /openai/v1/x HTTP/1.1\r\n", "RFC 9110 section 9.1", 501),
    _line("method beyond ASCII", b"G\xcbT /openai/v1/x HTTP/1.1\r\n", "RFC 9110 section 9.1", 501),
    _line("method of 65 letters", b"G" * 65 + b" /openai/v1/x HTTP/1.1\r\n", "RFC 9112 section 3", 501),
    _line("version 0.9", b"GET /openai/v1/x HTTP/0.9\r\n", _VERSION),
    _line("version 1.2", b"GET /openai/v1/x HTTP/1.2\r\n", _VERSION),
    _line("version 1.10", b"GET /openai/v1/x HTTP/1.10\r\n", _VERSION),
    _line("version 2.0", b"GET /openai/v1/x HTTP/2.0\r\n", _VERSION),
    _line("version 3.0", b"GET /openai/v1/x HTTP/3.0\r\n", _VERSION),
    _line("version 9.9", b"GET /openai/v1/x HTTP/9.9\r\n", _VERSION),
    _line("version without a dot", b"GET /openai/v1/x HTTP/11\r\n", _VERSION),
    _line("version in lower case", b"GET /openai/v1/x http/1.1\r\n", _VERSION),
    _line("version of another protocol", b"GET /openai/v1/x ICE/1.1\r\n", _VERSION),
    _line("version with a space", b"GET /openai/v1/x HTTP/ 1.1\r\n", _VERSION),
    _line("CONNECT", b"CONNECT api.openai.com:443 HTTP/1.1\r\n", "RFC 9110 section 9.3.6", 501),
    _line("CONNECT to a path", b"CONNECT /openai/v1/x HTTP/1.1\r\n", "RFC 9112 section 3.2.3", 501),
    Malformed("HTTP/0.9", b"GET /openai/v1/x?key=<token>\r\n\r\n", 400, "RFC 9112 section 2.3"),
    Malformed("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400, "RFC 9113 section 3.4"),
    Malformed("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"<token>", 501, _LINE),
    Malformed("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", 501, _LINE),
    Malformed("a JSON object", b'{"key": "<token>"}\r\n\r\n', 501, _LINE),
    # The target
    _target("target with a space", b"/openai/v1/a b"),
    _target("target with a tab", b"/openai/v1/a\tb"),
    _target("target with NUL", b"/openai/v1/\x00"),
    _target("target with a control byte", b"/openai/v1/\x1b[2J"),
    _target("target with DEL", b"/openai/v1/\x7f"),
    _target("target with CR", b"/openai/v1/\rx"),
    _target("target beyond ASCII", b"/openai/v1/\xc3\xa9"),
    _target("query beyond ASCII", b"/openai/v1/x?a=\xff"),
    _target("target of no form", b"openai/v1/x"),
    _target("target that is a query", b"?key=<token>"),
    _target(
        "target with a space in its authority", b"http://proxy example/openai/v1/x", "RFC 9112 section 3.2.2"
    ),
    _target("target that is too long", b"/openai/" + b"x" * 16 * 1024, "RFC 9110 section 15.5.15", 414),
    # Host
    _hosts("no Host", b""),
    _hosts("two Hosts", _HOST + b"Host: other.example\r\n"),
    _hosts("two Hosts that are the same", _HOST + _HOST),
    _hosts("two Hosts, one of them empty", _HOST + b"host:\r\n"),
    _hosts("two Hosts of HTTP/1.0", _HOST + b"Host: other.example\r\n", b"HTTP/1.0"),
    _hosts("Host with a path", b"Host: proxy.example/openai\r\n"),
    _hosts("Host with a user", b"Host: user@proxy.example\r\n"),
    _hosts("Host with a space", b"Host: proxy.example other.example\r\n"),
    _hosts("Host with a port that is none", b"Host: proxy.example:http\r\n"),
    _hosts("Host beyond ASCII", b"Host: pr\xf6xy.example\r\n"),
    # The other headers
    _headers("header without a name", b": value\r\n", _NAME),
    _headers("header without a colon", b"X-Header\r\n", "RFC 9112 section 5"),
    _headers(
        "header with a space before its colon", b"Transfer-Encoding : chunked\r\n", "RFC 9112 section 5.1"
    ),
    _headers("header with a tab before its colon", b"Content-Length\t: 5\r\n", "RFC 9112 section 5.1"),
    _headers("header with a space in its name", b"X Header: x\r\n", _NAME),
    _headers("header with a space before its name", b" X-Header: x\r\n", "RFC 9112 section 5.2"),
    _headers("header with a control byte in its name", b"X\x01: x\r\n", _NAME),
    _headers("header with NUL in its name", b"X\x00: x\r\n", _NAME),
    _headers("header with a name beyond ASCII", b"X\xe9: x\r\n", _NAME),
    _headers("header with a name of no token", b"X(1): x\r\n", _NAME),
    _headers("header with NUL in its value", b"X: a\x00b\r\n", _VALUE),
    _headers("header with a control byte in its value", b"X: a\x08b\r\n", _VALUE),
    _headers("header with DEL in its value", b"X: a\x7fb\r\n", _VALUE),
    _headers("header with LF in its value", b"X: a\nTransfer-Encoding: chunked\r\n", _ENDS),
    _headers("header with CR in its value", b"X: a\rTransfer-Encoding: chunked\r\n", _ENDS),
    _headers("header with a vertical tab at its start", b"X:\x0bx\r\n", _VALUE + "; CVE-2022-24801"),
    _headers("header that ends in LF", b"X: a\n", _ENDS),
    _headers("header that ends in CR CR LF", b"X: a\r\r\n", _ENDS),
    _headers("header that is folded", b"X: a\r\n b\r\n", "RFC 9112 section 5.2"),
    _headers("header that is folded by a tab", b"X: a\r\n\tb\r\n", "RFC 9112 section 5.2"),
    _headers(
        "Transfer-Encoding that is folded", b"Transfer-Encoding:\r\n chunked\r\n", "RFC 9112 section 5.2"
    ),
    _headers("headers that end in LF", b"\n", _ENDS),
    _headers("one header that is too large", b"X: " + b"x" * 64 * 1024 + b"\r\n", "RFC 6585 section 5", 431),
    _headers("headers that are too many", b"X: x\r\n" * 11_000, "RFC 6585 section 5", 431),
    Malformed(
        "a header without an end",
        b"GET / HTTP/1.1\r\n" + _HOST + _KEY + b"X: " + b"x" * 100_000,
        431,
        "RFC 6585 section 5",
    ),
    # Content-Length
    _length("with a plus sign", b"+5", "RFC 9110 section 8.6; CVE-2022-24801"),
    _length("with a minus sign", b"-5", "RFC 9110 section 8.6; CVE-2022-24801"),
    _length("in hexadecimal", b"0x5"),
    _length("that is a list", b"5, 5"),
    _length("that is a list of different ones", b"5, 6"),
    _length("with a comma", b"5,"),
    _length("with a space in it", b"5 0"),
    _length("with a fraction", b"5.0"),
    _length("with a unit", b"5b"),
    _length("with an underscore", b"1_0"),
    _length("in other digits", "\u0665".encode()),
    _length("with a vertical tab", b"\x0b5", "RFC 9110 section 8.6; CVE-2022-24801"),
    _length("that is empty", b""),
    _length("that is a word", b"many"),
    _length("that is too large for 64 bits", b"18446744073709551616"),
    _length("that is huge", b"9" * 1000),
    _headers("two Content-Lengths", b"Content-Length: 5\r\nContent-Length: 6\r\n", "CVE-2020-10108"),
    _headers(
        "two Content-Lengths that are the same", b"Content-Length: 5\r\n" * 2, "RFC 9112 section 6.3, rule 5"
    ),
    _headers(
        "two Content-Lengths, one of them empty",
        b"Content-Length: 5\r\nContent-Length:\r\n",
        "CVE-2020-10108",
    ),
    # Transfer-Encoding
    _coding("and Content-Length", _CHUNKED + b"Content-Length: 5\r\n", 400, _BOTH),
    _coding("behind Content-Length", b"Content-Length: 5\r\n" + _CHUNKED, 400, _BOTH),
    _coding(
        "identity and Content-Length", b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n", 400, _BOTH
    ),
    _coding(
        "in capitals and Content-Length", b"TRANSFER-ENCODING: CHUNKED\r\nContent-Length: 5\r\n", 400, _BOTH
    ),
    _coding("chunked, chunked", b"Transfer-Encoding: chunked, chunked\r\n", 400, "RFC 9112 section 7.1"),
    _coding("chunked twice", _CHUNKED * 2, 400, "RFC 9112 section 7.1"),
    _coding("gzip, chunked", b"Transfer-Encoding: gzip, chunked\r\n", 501, "RFC 9112 section 6.1"),
    _coding("gzip and chunked", b"Transfer-Encoding: gzip\r\n" + _CHUNKED, 501, "RFC 9112 section 6.1"),
    _coding("identity and chunked", b"Transfer-Encoding: identity\r\n" + _CHUNKED, 501),
    _coding("chunked and identity", _CHUNKED + b"Transfer-Encoding: identity\r\n", 400),
    _coding("chunked, identity", b"Transfer-Encoding: chunked, identity\r\n", 400),
    _coding("identity", b"Transfer-Encoding: identity\r\n", 501),
    _coding("xchunked", b"Transfer-Encoding: xchunked\r\n", 501),
    _coding("chunkedx", b"Transfer-Encoding: chunkedx\r\n", 501),
    _coding("chunked with a parameter", b"Transfer-Encoding: chunked;q=1\r\n", 501),
    _coding("chunked in quotes", b'Transfer-Encoding: "chunked"\r\n', 501),
    _coding("chunked behind a comma", b"Transfer-Encoding: ,chunked\r\n", 501),
    _coding("chunked before a comma", b"Transfer-Encoding: chunked,\r\n", 400),
    _coding("chunked behind a vertical tab", b"Transfer-Encoding: \x0bchunked\r\n", 400, "CVE-2022-24801"),
    _coding("that is empty", b"Transfer-Encoding:\r\n", 400),
    Malformed(
        "Transfer-Encoding of HTTP/1.0",
        b"POST " + _TARGET + b" HTTP/1.0\r\n" + _HOST + _KEY + _CHUNKED + b"\r\n" + _BODY + SMUGGLED,
        400,
        "RFC 9112 section 6.1",
    ),
    Malformed(
        "Transfer-Encoding chunked with a tab behind it",
        b"POST "
        + _TARGET
        + b" HTTP/1.1\r\n"
        + _HOST
        + _KEY
        + b"Transfer-Encoding: chunked\t\r\n\r\n"
        + _BODY
        + SMUGGLED,
        400,
        "allowed by RFC 9110 section 5.5, but read differently by many",
        in_body=True,
    ),
    # Chunks
    _chunks("chunk size with a minus sign", b"-5\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size with a plus sign", b"+5\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n", "RFC 9112 section 7.1; CVE-2022-24801"),
    _chunks("chunk size with an underscore", b"0_5\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size that is a word", b"five\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size that is empty", b"\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size that is too large for 64 bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size with a space behind it", b"5 \r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size with a space before it", b" 5\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size with a tab behind it", b"5\t\r\nhello\r\n0\r\n\r\n"),
    _chunks("chunk size that ends in LF", b"5\nhello\r\n0\r\n\r\n", _ENDS),
    _chunks("chunk size that ends in CR CR LF", b"5\r\r\nhello\r\n0\r\n\r\n", _ENDS),
    _chunks("chunk without CRLF behind it", b"5\r\nhello0\r\n\r\n"),
    _chunks("chunk with LF behind it", b"5\r\nhello\n0\r\n\r\n", _ENDS),
    _chunks("chunk that is longer than it says", b"5\r\nhello!\r\n0\r\n\r\n"),
    _chunks(
        "chunk extension that ends in LF",
        b"5;a\nhello\r\n0\r\n\r\n",
        "RFC 9112 section 7.1.1; CVE-2022-24801",
    ),
    _chunks(
        "chunk extension with LF", b"5;a=\nb\r\nhello\r\n0\r\n\r\n", "RFC 9112 section 7.1.1; CVE-2022-24801"
    ),
    _chunks("chunk extension with CR", b"5;a\rb\r\nhello\r\n0\r\n\r\n", "RFC 9112 section 7.1.1"),
    _chunks("chunk extension with NUL", b"5;a\x00\r\nhello\r\n0\r\n\r\n", "RFC 9112 section 7.1.1"),
    _chunks(
        "chunk extension with CRLF in quotes", b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n', "RFC 9112 section 7.1.1"
    ),
    _chunks("last chunk that ends in LF", b"5\r\nhello\r\n0\n\r\n", _ENDS),
    _chunks("last chunk with LF behind it", b"5\r\nhello\r\n0\r\n\n", _ENDS),
    _chunks("trailer that ends in LF", b"5\r\nhello\r\n0\r\nX: y\n\r\n", _ENDS),
    _chunks("trailer that is folded", b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n", "RFC 9112 section 5.2"),
    _chunks("trailer without a colon", b"5\r\nhello\r\n0\r\nX\r\n\r\n", "RFC 9112 section 7.1.2"),
    _chunks(
        "trailer that is a Content-Length",
        b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        "RFC 9110 section 6.5.1",
    ),
    _chunks(
        "trailer that is a coding",
        b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "RFC 9110 section 6.5.1",
    ),
    _chunks(
        "trailers that are too large", b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 22_000, "RFC 6585 section 5"
    ),
]
