from __future__ import annotations

import pytest
from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.http.body import BrokenBody, RequestBody
from llmproxy.http.fields import Fields
from llmproxy.http.held_body import again, hold, release
from llmproxy.http.interfaces import IWholeBody
from tests.http_support import Sink


def body(length: object = UNKNOWN_LENGTH) -> RequestBody:
    return RequestBody(length, lambda: None, lambda: None)


def whole(data: bytes) -> RequestBody:
    made = body(len(data))
    made.feed(data)
    made.end(None)
    return made


def test_no_body_stays_none() -> None:
    assert hold(None, 10) is None
    assert again(None) is None
    release(None)


def test_one_that_is_all_here_is_known_as_often_as_it_is_wanted() -> None:
    held = hold(whole(b"hello"), 5)
    assert IWholeBody.providedBy(held)
    for known in (held, again(held), again(again(held)), hold(held, 0)):
        assert (known.length, known.whole()) == (5, b"hello")


def test_one_that_passes_is_known_when_all_of_it_has_passed() -> None:
    coming = body()
    held = hold(coming, 5)
    sink = Sink(held)
    coming.feed(b"hel")
    assert sink.data == b"hel"
    assert again(held) is None
    coming.feed(b"lo")
    assert again(held) is None
    coming.end(Fields([(b"X-Sum", b"1")]))
    assert (sink.data, sink.ended) == (b"hello", "whole")
    known = again(held)
    assert (known.length, known.whole()) == (UNKNOWN_LENGTH, b"hello")
    assert known.trailers.pairs == held.trailers.pairs == [(b"X-Sum", b"1")]


def test_trailers_are_those_that_may_go_further() -> None:
    coming = body()
    held = hold(coming, 5)
    Sink(held)
    coming.end(Fields([(b"X-Sum", b"1")]))
    known = again(held)
    coming.seal_trailers = lambda trailers: Fields()
    assert known.trailers.pairs == []


@pytest.mark.parametrize("pieces", [[b"hello!"], [b"hello", b"!"], [b"h", b"e", b"l", b"l", b"o", b"!"]])
def test_of_one_over_the_limit_nothing_is_kept(pieces: list[bytes]) -> None:
    coming = body()
    held = hold(coming, 5)
    sink = Sink(held)
    for piece in pieces:
        coming.feed(piece)
    coming.end(None)
    assert (sink.data, sink.ended) == (b"hello!", "whole")
    assert again(held) is None


def test_one_over_the_limit_that_is_all_here_passes_once() -> None:
    held = hold(whole(b"hello!"), 5)
    assert Sink(held).data == b"hello!"
    assert again(held) is None


def test_one_that_nobody_began_to_take_can_still_be_taken_and_sent_again() -> None:
    coming = body()
    held = again(hold(coming, 5))
    held.stopProducing()  # of what was not begun, nothing is given up
    sink = Sink(held)
    coming.feed(b"hello")
    coming.end(None)
    assert sink.data == b"hello"
    assert again(held).whole() == b"hello"


def test_one_that_was_given_up_is_not_all_here() -> None:
    coming = body()
    held = hold(coming, 5)
    sink = Sink(held)
    coming.feed(b"hel")
    held.stopProducing()
    assert coming.wants  # the client's connection is read, and what comes is dropped
    coming.feed(b"lo")
    coming.end(None)
    assert sink.data == b"hel"
    assert again(held) is None


def test_one_that_broke_off_is_not_all_here() -> None:
    coming = body()
    held = hold(coming, 5)
    sink = Sink(held)
    coming.fail(BrokenBody("the client left"))
    assert sink.ended is BrokenBody
    assert again(held) is None


def test_one_that_was_released_passes_on_and_is_not_kept() -> None:
    coming = body()
    held = hold(coming, 5)
    sink = Sink(held)
    coming.feed(b"hel")
    release(held)
    coming.feed(b"lo")
    coming.end(None)
    assert (sink.data, sink.ended) == (b"hello", "whole")
    assert again(held) is None


def test_a_pause_reaches_the_client() -> None:
    coming = body()
    held = hold(coming, 5)
    Sink(held)
    held.pauseProducing()
    assert not coming.wants
    held.resumeProducing()
    assert coming.wants
