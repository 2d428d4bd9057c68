from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy import headers
from llmproxy.config import Upstream
from llmproxy.headers import strip_hop_by_hop
from llmproxy.http.fields import Fields
from tests.support import ANTHROPIC, HANDSHAKE, OPENAI, TOKEN, pairs

Pairs = list[tuple[bytes, bytes]]

HOP_BY_HOP = [
    (b"connection", b"keep-alive"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-authenticate", b"Basic"),
    (b"proxy-authentication-info", b"x"),
    (b"proxy-authorization", b"Basic eA=="),
    (b"proxy-connection", b"keep-alive"),
    (b"te", b"trailers"),
    (b"trailer", b"x-sum"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"h2c"),
]
# What seal writes itself.


def seal(sent: Fields, upstream: Upstream, token: bytes, websocket: bool = False) -> Fields:
    """Seal with the upstream's first key."""
    key = upstream.credential.header(upstream.keys[0]) if upstream.keys else None
    return headers.seal(sent, upstream, key, token, websocket)


OPENAI_OWN = [(b"host", b"openai.example"), (b"authorization", b"Bearer sk-openai-real")]
ANTHROPIC_OWN = [
    (b"host", b"anthropic.example"),
    (b"x-api-key", b"sk-ant-real"),
    (b"anthropic-version", b"2023-06-01"),
]
TREATED = {name for name, _ in HOP_BY_HOP} | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"anthropic-version",
}


def sealed(sent: Pairs) -> Pairs:
    """What goes to OpenAI of some headers, but for what is always put there."""
    found = pairs(seal(Fields(sent), OPENAI, TOKEN))
    for own in OPENAI_OWN:
        found.remove(own)
    return found


def stripped(sent: Pairs) -> Pairs:
    return pairs(strip_hop_by_hop(Fields(sent)))


@pytest.mark.parametrize("header", HOP_BY_HOP)
def test_hop_by_hop_headers_go_in_both_directions(header: tuple[bytes, bytes]) -> None:
    kept = (b"x-kept", b"1")
    assert sealed([header, kept]) == [kept]
    assert stripped([header, kept]) == [kept]


@pytest.mark.parametrize(
    "connection", [b"x-mine", b"X-Mine", b"close, x-mine", b"keep-alive,X-MINE ,upgrade"]
)
def test_headers_that_connection_names_go_in_both_directions(connection: bytes) -> None:
    sent = [(b"Connection", connection), (b"X-Mine", b"1"), (b"x-mine", b"2"), (b"x-kept", b"3")]
    assert sealed(sent) == [(b"x-kept", b"3")]
    assert stripped(sent) == [(b"x-kept", b"3")]


def test_each_of_several_connection_headers_counts() -> None:
    sent = [(b"Connection", b"x-a"), (b"Connection", b"x-b"), (b"x-a", b"1"), (b"x-b", b"2")]
    assert sealed(sent) == []
    assert stripped(sent) == []


def test_three_cookies_stay_three_in_order() -> None:
    cookies = [(b"set-cookie", b"b=2; Path=/"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2; Path=/")]
    assert stripped(cookies) == cookies


def test_a_responses_content_length_and_encoding_pass() -> None:
    sent = [(b"content-length", b"7"), (b"content-encoding", b"gzip"), (b"date", b"x"), (b"server", b"y")]
    assert stripped(sent) == sent


names = st.from_regex(rb"[a-z][a-z0-9-]{0,12}", fullmatch=True).filter(lambda name: name not in TREATED)
values = st.binary(max_size=20).map(lambda data: bytes(0x21 + byte % 0x5E for byte in data))


@given(st.lists(st.tuples(names, values), max_size=12))
def test_all_other_headers_pass_in_value_number_and_order_of_repetition(sent: Pairs) -> None:
    before = Fields(sent)
    for after in (strip_hop_by_hop(before), seal(before, OPENAI, TOKEN)):
        for name in {name for name, _ in sent}:
            assert after.getRawHeaders(name) == [value for found, value in sent if found == name]
    assert sorted(stripped(sent)) == sorted(sent)
    assert sorted(sealed(sent)) == sorted(sent)
    assert pairs(before) == pairs(Fields(sent))  # the client's own headers are not touched


@given(st.lists(st.tuples(names.map(bytes.title) | names, values), max_size=12))
def test_all_other_headers_keep_their_order_and_the_spelling_of_their_names(sent: Pairs) -> None:
    assert strip_hop_by_hop(Fields(sent)).pairs == sent
    assert [pair for pair in seal(Fields(sent), OPENAI, TOKEN).pairs if pair in sent] == sent


def test_nothing_is_invented() -> None:
    assert sorted(pairs(seal(Fields([]), OPENAI, TOKEN))) == sorted(OPENAI_OWN)
    assert sorted(pairs(seal(Fields([]), ANTHROPIC, TOKEN))) == sorted(ANTHROPIC_OWN)
    assert stripped([]) == []


def test_host_is_the_upstreams_once() -> None:
    sent = Fields([(b"Host", b"proxy.example"), (b"host", b"evil.example")])
    assert seal(sent, OPENAI, TOKEN).getRawHeaders(b"host") == [b"openai.example"]


def test_the_framing_of_a_request_is_left_to_the_client_engine() -> None:
    assert sealed([(b"content-length", b"7"), (b"transfer-encoding", b"chunked")]) == []


def test_what_connection_names_cannot_take_out_what_the_upstream_needs() -> None:
    sent = Fields([(b"connection", b"host, x-api-key, authorization, anthropic-version")])
    assert sorted(pairs(seal(sent, ANTHROPIC, TOKEN))) == sorted(ANTHROPIC_OWN)
    assert sorted(pairs(seal(sent, OPENAI, TOKEN))) == sorted(OPENAI_OWN)


@pytest.mark.parametrize(("upstream", "own"), [(OPENAI, OPENAI_OWN), (ANTHROPIC, ANTHROPIC_OWN)])
def test_credentials_of_a_client_are_replaced_those_for_the_other_provider_removed(
    upstream: object, own: Pairs
) -> None:
    assert upstream in (OPENAI, ANTHROPIC)
    sent = Fields(
        [
            (b"Authorization", b"Bearer " + TOKEN),
            (b"Authorization", b"Bearer sk-of-the-client"),
            (b"X-Api-Key", TOKEN),
            (b"x-api-key", b"sk-of-the-client"),
        ]
    )
    assert sorted(pairs(seal(sent, OPENAI if upstream is OPENAI else ANTHROPIC, TOKEN))) == sorted(own)


def test_a_default_header_gives_way_to_the_clients_own() -> None:
    sent = Fields([(b"Anthropic-Version", b"2099-01-01")])
    assert seal(sent, ANTHROPIC, TOKEN).getRawHeaders(b"anthropic-version") == [b"2099-01-01"]


def test_a_default_header_goes_to_its_own_upstream_only() -> None:
    assert not seal(Fields([]), OPENAI, TOKEN).hasHeader(b"anthropic-version")


@pytest.mark.parametrize(
    "header",
    [
        (b"cookie", TOKEN),
        (b"cookie", b"session=" + TOKEN),
        (b"cookie", b"a=b; token=" + TOKEN + b"; c=d"),
        (b"api-key", TOKEN),
        (b"x-goog-api-key", b'"' + TOKEN + b'"'),
        (b"referer", b"http://proxy/?key=" + TOKEN + b"&x"),
        (b"x-forwarded-authorization", b"Bearer " + TOKEN),
    ],
)
def test_the_token_goes_upstream_in_no_header(header: tuple[bytes, bytes]) -> None:
    assert sealed([header, (b"x-kept", b"1")]) == [(b"x-kept", b"1")]


def test_of_a_repeated_header_only_the_value_with_the_token_goes() -> None:
    assert sealed([(b"cookie", b"a=1"), (b"cookie", TOKEN), (b"cookie", b"b=2")]) == [
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
    ]


@pytest.mark.parametrize(
    "value", [b"x" + TOKEN, TOKEN + b"x", b"my-" + TOKEN, TOKEN + b"_2", b"a" + TOKEN + b"9; other=1"]
)
def test_a_header_that_holds_the_token_only_within_a_longer_word_stays(value: bytes) -> None:
    assert sealed([(b"x-id", value)]) == [(b"x-id", value)]


def test_a_token_is_looked_for_as_it_is_not_as_a_pattern() -> None:
    sent = Fields([(b"cookie", b"a.c"), (b"x-kept", b"xa.cx abc")])
    after = seal(sent, OPENAI, b"a.c")
    assert not after.hasHeader(b"cookie")
    assert after.getRawHeaders(b"x-kept") == [b"xa.cx abc"]


class TestWebSocketHandshake:
    OFFER = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]

    @staticmethod
    def protocols(*offered: bytes) -> list[bytes]:
        """What is left, for the upstream, of the protocols that a browser offers."""
        sent = Fields([*HANDSHAKE, *((b"Sec-WebSocket-Protocol", value) for value in offered)])
        found: list[bytes] = seal(sent, OPENAI, TOKEN, True).getRawHeaders(b"sec-websocket-protocol", [])
        return found

    def test_it_is_offered_to_the_upstream_anew(self) -> None:
        sent = Fields([(b"Connection", b"keep-alive, X-Hop, Upgrade"), (b"X-Hop", b"1"), *HANDSHAKE[1:]])
        found = pairs(seal(sent, OPENAI, TOKEN, websocket=True))
        key = [(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="), (b"sec-websocket-version", b"13")]
        assert sorted(found) == sorted([*OPENAI_OWN, *key, *self.OFFER])

    def test_another_protocol_that_is_offered_beside_it_is_not(self) -> None:
        sent = Fields([(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c, websocket"), *HANDSHAKE[2:]])
        assert seal(sent, OPENAI, TOKEN, True).getRawHeaders(b"upgrade") == [b"websocket"]

    def test_the_token_is_taken_out_of_the_protocols_and_the_others_stay(self) -> None:
        secret = b"openai-insecure-api-key." + TOKEN
        assert self.protocols(b"realtime, " + secret + b",openai-beta.realtime-v1") == [
            b"realtime, openai-beta.realtime-v1"
        ]
        assert self.protocols(b"realtime", secret + b", x") == [b"realtime", b"x"]

    def test_protocols_without_the_token_stay_as_they_are(self) -> None:
        assert self.protocols(b"realtime,  x ,y") == [b"realtime,  x ,y"]

    @pytest.mark.parametrize("before", [[], [b"realtime"]])
    def test_a_header_that_offered_the_token_alone_goes(self, before: list[bytes]) -> None:
        # RFC 6455 section 11.3.4: the header holds one protocol or more.
        assert self.protocols(*before, b"openai-insecure-api-key." + TOKEN) == before


def test_an_upstream_that_wants_no_key_is_sent_no_credential() -> None:
    keyless = attrs.evolve(OPENAI, keys=())
    sent = Fields([(b"Authorization", b"Bearer " + TOKEN)])
    assert pairs(seal(sent, keyless, TOKEN)) == [(b"host", b"openai.example")]
