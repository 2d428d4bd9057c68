from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config import Client
from llmproxy.credentials import Caller, Credentials
from llmproxy.http.fields import Fields
from tests.support import TOKEN

ALICE = Client("alice", TOKEN)
BOB = Client("bob", b"another-token-of-bob")
CREDENTIALS = Credentials([ALICE, BOB])


def authorize(*sent: tuple[bytes, bytes]) -> Caller | None:
    return CREDENTIALS.authorize(Fields(sent))


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
    (b"Authorization", b"Bearer " + BOB.token),
    (b"x-api-key", BOB.token),
    (b"Sec-WebSocket-Protocol", b"openai-insecure-api-key.wrong"),
    (b"Sec-WebSocket-Protocol", b"openai-insecure-api-key." + BOB.token + b", realtime"),
]


@pytest.mark.parametrize("good", GOOD)
@pytest.mark.parametrize("bad", BAD)
def test_a_good_credential_beside_another_one_is_refused(
    good: tuple[bytes, bytes], bad: tuple[bytes, bytes]
) -> None:
    assert authorize(good, bad) is None
    assert authorize(bad, good) is None


def test_each_client_is_known_by_its_own_token() -> None:
    assert authorize((b"x-api-key", BOB.token)) == Caller(BOB, BOB.token)


@given(st.binary())
def test_no_other_token_is_taken(guess: bytes) -> None:
    found = authorize((b"x-api-key", guess))
    assert (found is None) == (guess.strip() not in (TOKEN, BOB.token))


def test_the_token_is_shown_by_no_repr() -> None:
    assert TOKEN.decode("ascii") not in repr(authorize((b"x-api-key", TOKEN)))
