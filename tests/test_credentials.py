from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config import Client, Credential
from llmproxy.credentials import Caller, Credentials
from llmproxy.http.fields import Fields
from tests.support import TOKEN, client_with

BOBS = b"another-token-of-bob"
ALICE = client_with(TOKEN, name="alice")
BOB = client_with(BOBS, name="bob")
NOW = datetime(2027, 1, 31, 12, tzinfo=timezone.utc)


def known(*clients: Client) -> Credentials:
    return Credentials(clients, NOW.timestamp)


CREDENTIALS = known(ALICE, BOB)


def authorize(*sent: tuple[bytes, bytes], credential: str = "bearer", query: bytes = b"") -> Caller | None:
    return CREDENTIALS.authorize(Fields(sent), Credential.parse(credential), query)


@pytest.mark.parametrize(
    "sent",
    [
        [(b"Authorization", b"Bearer " + TOKEN)],
        [(b"authorization", b"bearer " + TOKEN)],
        [(b"Authorization", b"BEARER   " + TOKEN)],
        [(b"Authorization", b"bEaReR " + TOKEN + b" ")],
        [(b"x-api-key", TOKEN)],
        [(b"X-Api-Key", b" " + TOKEN + b" ")],
        [(b"Authorization", b"Bearer " + TOKEN), (b"x-api-key", TOKEN)],
        [(b"Authorization", b"Bearer " + TOKEN), (b"Authorization", b"bearer " + TOKEN)],
        [(b"x-api-key", TOKEN), (b"x-api-key", TOKEN)],
        [(b"Sec-WebSocket-Protocol", b"openai-insecure-api-key." + TOKEN)],
        [(b"sec-websocket-protocol", b"realtime, openai-insecure-api-key." + TOKEN + b" ,x")],
        [
            (b"Sec-WebSocket-Protocol", b"realtime"),
            (b"Sec-WebSocket-Protocol", b"openai-insecure-api-key." + TOKEN),
        ],
        [(b"Sec-WebSocket-Protocol", b"realtime"), (b"x-api-key", TOKEN)],
        [(b"Sec-WebSocket-Protocol", b"x-openai-insecure-api-key.other"), (b"x-api-key", TOKEN)],
        [(b"Sec-WebSocket-Protocol", b"openai-insecure-api-key." + TOKEN), (b"x-api-key", TOKEN)],
    ],
)
def test_the_token_is_taken_from_each_of_its_places(sent: list[tuple[bytes, bytes]]) -> None:
    assert authorize(*sent) == Caller(ALICE, TOKEN)


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [(b"Authorization", b"")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", TOKEN)],
        [(b"Authorization", b"Bearer" + TOKEN)],
        [(b"Authorization", b"Basic " + TOKEN)],
        [(b"Authorization", b"Bearer wrong")],
        [(b"Authorization", b"Bearer " + TOKEN + b" x")],
        [(b"Authorization", b"Bearer " + TOKEN + b", Bearer " + TOKEN)],
        [(b"Authorization", b"Bearer " + TOKEN[:-1])],
        [(b"Authorization", b"Bearer " + TOKEN + b"x")],
        [(b"Authorization", b"Bearer " + TOKEN.upper())],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"wrong")],
        [(b"x-api-key", b"Bearer " + TOKEN)],
        [(b"Proxy-Authorization", b"Bearer " + TOKEN)],
        [(b"Cookie", TOKEN)],
        [(b"Sec-WebSocket-Protocol", TOKEN)],
        [(b"Sec-WebSocket-Protocol", b"realtime")],
        [(b"Sec-WebSocket-Protocol", b"openai-insecure-api-key.")],
        [(b"Sec-WebSocket-Protocol", b"openai-insecure-api-key.wrong")],
        [(b"Sec-WebSocket-Protocol", b"OpenAI-Insecure-API-Key." + TOKEN)],
        [(b"Sec-WebSocket-Protocol", b"x-openai-insecure-api-key." + TOKEN)],
    ],
)
def test_a_request_without_a_valid_token_has_no_caller(sent: list[tuple[bytes, bytes]]) -> None:
    assert authorize(*sent) is None


GOOD = [
    (b"Authorization", b"Bearer " + TOKEN),
    (b"x-api-key", TOKEN),
    (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key." + TOKEN),
]
BAD = [
    (b"Authorization", b"Bearer wrong"),
    (b"Authorization", b"Basic " + TOKEN),
    (b"Authorization", b""),
    (b"x-api-key", b"wrong"),
    (b"x-api-key", b""),
    (b"Authorization", b"Bearer " + BOBS),
    (b"x-api-key", BOBS),
    (b"Sec-WebSocket-Protocol", b"openai-insecure-api-key.wrong"),
    (b"Sec-WebSocket-Protocol", b"openai-insecure-api-key." + BOBS + b", realtime"),
]


@pytest.mark.parametrize("good", GOOD)
@pytest.mark.parametrize("bad", BAD)
def test_a_good_credential_beside_another_one_is_refused(
    good: tuple[bytes, bytes], bad: tuple[bytes, bytes]
) -> None:
    assert authorize(good, bad) is None
    assert authorize(bad, good) is None


def test_each_client_is_known_by_its_own_token() -> None:
    assert authorize((b"x-api-key", BOBS)) == Caller(BOB, BOBS)


@given(st.binary())
def test_no_other_token_is_taken(guess: bytes) -> None:
    found = authorize((b"x-api-key", guess))
    assert (found is None) == (guess.strip() not in (TOKEN, BOBS))


def test_each_of_a_clients_tokens_is_taken() -> None:
    carol = client_with(b"old", b"new", name="carol")
    credentials = known(ALICE, carol)
    for token in (b"old", b"new"):
        assert credentials.authorize(Fields([(b"x-api-key", token)])) == Caller(carol, token)


def test_two_tokens_of_one_client_do_not_agree() -> None:
    credentials = known(client_with(b"old", b"new"))
    assert credentials.authorize(Fields([(b"x-api-key", b"old"), (b"Authorization", b"Bearer new")])) is None


def test_a_thousand_clients_are_told_apart() -> None:
    clients = [client_with(b"token-%d" % number, name=str(number)) for number in range(1000)]
    credentials = known(*clients)
    assert credentials.authorize(Fields([(b"x-api-key", b"token-777")])) == Caller(clients[777], b"token-777")


@pytest.mark.parametrize(
    ("left", "taken"), [(timedelta(seconds=1), True), (timedelta(0), False), (timedelta(days=-1), False)]
)
def test_a_token_is_refused_from_the_moment_on_in_which_it_expires(left: timedelta, taken: bool) -> None:
    credentials = known(client_with(TOKEN, expires=NOW + left))
    assert (credentials.authorize(Fields([(b"x-api-key", TOKEN)])) is not None) is taken


AZURE = "header:api-key"
GEMINI = "header:x-goog-api-key"


class TestWhereTheUpstreamWantsItsKey:
    @pytest.mark.parametrize(
        ("credential", "sent", "query"),
        [
            (AZURE, [(b"Api-Key", TOKEN)], b""),
            (AZURE, [(b"api-key", TOKEN), (b"Authorization", b"Bearer " + TOKEN)], b"key=other"),
            (GEMINI, [(b"X-Goog-Api-Key", TOKEN)], b"alt=sse"),
            (GEMINI, [], b"alt=sse&key=" + TOKEN),
            (GEMINI, [], b"key=%6C" + TOKEN[1:]),
            (GEMINI, [(b"x-goog-api-key", TOKEN)], b"key=" + TOKEN),
            (GEMINI.title().replace("Header", "header"), [], b"key=" + TOKEN),
            ("query:key", [(b"x-goog-api-key", TOKEN)], b""),
            ("query:access_token", [], b"access_token=" + TOKEN),
            ("query:access_token", [(b"x-api-key", TOKEN)], b"key=other"),
        ],
    )
    def test_the_token_is_taken_from_there_too(
        self, credential: str, sent: list[tuple[bytes, bytes]], query: bytes
    ) -> None:
        assert authorize(*sent, credential=credential, query=query) == Caller(ALICE, TOKEN)

    @pytest.mark.parametrize(
        ("credential", "sent", "query"),
        [
            ("bearer", [(b"api-key", TOKEN)], b""),
            ("none", [(b"api-key", TOKEN)], b"key=" + TOKEN),
            (AZURE, [(b"x-goog-api-key", TOKEN)], b"key=" + TOKEN),
            ("query:access_token", [], b"Access_Token=" + TOKEN),
            ("query:access_token", [], b"access_token"),
            (GEMINI, [], b"key=wrong"),
            (GEMINI, [], b"monkey=" + TOKEN),
        ],
    )
    def test_it_is_taken_from_nowhere_else(
        self, credential: str, sent: list[tuple[bytes, bytes]], query: bytes
    ) -> None:
        assert authorize(*sent, credential=credential, query=query) is None

    @pytest.mark.parametrize(
        ("credential", "sent", "query"),
        [
            (AZURE, (b"api-key", b"wrong"), b""),
            (AZURE, (b"api-key", BOBS), b""),
            (GEMINI, (b"x-goog-api-key", b"wrong"), b""),
            (GEMINI, (b"accept", b"*/*"), b"key=wrong"),
            (GEMINI, (b"accept", b"*/*"), b"key=" + TOKEN + b"&key=wrong"),
            (GEMINI, (b"accept", b"*/*"), b"key="),
        ],
    )
    def test_it_must_agree_with_the_others(
        self, credential: str, sent: tuple[bytes, bytes], query: bytes
    ) -> None:
        assert authorize((b"x-api-key", TOKEN), sent, credential=credential, query=query) is None


def test_the_token_is_shown_by_no_repr() -> None:
    assert TOKEN.decode("ascii") not in repr(authorize((b"x-api-key", TOKEN)))
