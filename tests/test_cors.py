from __future__ import annotations

import pytest

from llmproxy.cors import Cors
from llmproxy.http.fields import Fields, Pair
from tests.support import pairs

PAGE = b"https://app.example"
CORS = Cors(["https://app.example", "http://localhost:5173"])
ANYBODY = Cors(["*"])


def asking(*more: Pair, origin: bytes = PAGE, method: bytes = b"POST") -> Fields:
    return Fields([(b"Origin", origin), (b"Access-Control-Request-Method", method), *more])


def preflight(cors: Cors, headers: Fields, method: bytes = b"OPTIONS") -> dict[bytes, bytes] | None:
    answer = cors.preflight(method, headers)
    if answer is None:
        return None
    assert len({name.lower() for name, _ in answer}) == len(answer)
    return dict(answer)


def marked(cors: Cors, request: Fields, *response: Pair) -> list[Pair]:
    headers = Fields(response)
    cors.mark(request, headers)
    return pairs(headers)


def test_a_preflight_is_told_what_it_asked_for() -> None:
    asked = (b"Access-Control-Request-Headers", b"authorization,content-type,x-stainless-os")
    assert preflight(CORS, asking(asked)) == {
        b"Access-Control-Allow-Origin": PAGE,
        b"Access-Control-Allow-Methods": b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        b"Access-Control-Allow-Headers": b"authorization,content-type,x-stainless-os",
        b"Access-Control-Max-Age": b"7200",
        b"Vary": b"Origin, Access-Control-Request-Headers",
    }


def test_a_preflight_that_asks_for_no_headers_is_granted_none() -> None:
    answer = preflight(CORS, asking())
    assert answer is not None
    assert b"Access-Control-Allow-Headers" not in answer


@pytest.mark.parametrize("names", [b"", b"a\x00b", b"x: y", b"<script>", b"a;b", b"x" * 5000])
def test_what_is_no_list_of_names_is_not_echoed(names: bytes) -> None:
    answer = preflight(CORS, asking((b"Access-Control-Request-Headers", names)))
    assert answer is not None
    assert b"Access-Control-Allow-Headers" not in answer


def test_a_private_network_is_opened_when_asked_for() -> None:
    wanted = (b"Access-Control-Request-Private-Network", b"true")
    answer = preflight(CORS, asking(wanted))
    assert answer is not None
    assert answer[b"Access-Control-Allow-Private-Network"] == b"true"
    not_asked = preflight(CORS, asking((wanted[0], b"false")))
    assert not_asked is not None
    assert b"Access-Control-Allow-Private-Network" not in not_asked


def test_each_listed_origin_is_allowed_by_its_own_name() -> None:
    answer = preflight(CORS, asking(origin=b"http://localhost:5173"))
    assert answer is not None
    assert answer[b"Access-Control-Allow-Origin"] == b"http://localhost:5173"


@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil.example",
        b"http://app.example",
        b"https://app.example:8443",
        b"https://app.example.evil.example",
        b"https://sub.app.example",
        b"https://app.example/",
        b"null",
        b"*",
        b"",
    ],
)
def test_other_origins_get_nothing(origin: bytes) -> None:
    assert preflight(CORS, asking(origin=origin)) is None
    assert marked(CORS, Fields([(b"Origin", origin)]), (b"Server", b"x")) == [
        (b"server", b"x"),
        (b"vary", b"Origin"),
    ]


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        (b"POST", asking()),
        (b"GET", asking()),
        (b"OPTIONS", Fields([(b"Origin", PAGE)])),
        (b"OPTIONS", Fields([(b"Access-Control-Request-Method", b"POST")])),
        (b"OPTIONS", asking((b"Origin", PAGE))),
    ],
)
def test_what_is_no_preflight_is_not_answered_as_one(method: bytes, headers: Fields) -> None:
    assert preflight(CORS, headers, method) is None


def test_an_answer_says_who_may_read_it_and_all_of_its_headers() -> None:
    assert marked(CORS, Fields([(b"Origin", PAGE)]), (b"x-request-id", b"1")) == [
        (b"x-request-id", b"1"),
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", PAGE),
        (b"access-control-expose-headers", b"*"),
    ]


def test_an_answer_to_no_page_tells_caches_that_it_would_differ() -> None:
    assert marked(CORS, Fields(), (b"Vary", b"Accept-Encoding")) == [
        (b"vary", b"Accept-Encoding"),
        (b"vary", b"Origin"),
    ]


def test_the_upstreams_own_words_on_this_are_replaced() -> None:
    theirs = [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-allow-headers", b"x"),
        (b"access-control-allow-methods", b"GET"),
        (b"access-control-allow-private-network", b"true"),
        (b"Access-Control-Expose-Headers", b"X-Request-ID"),
        (b"access-control-max-age", b"1"),
    ]
    answer = marked(CORS, Fields([(b"Origin", PAGE)]), *theirs)
    assert answer == [
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", PAGE),
        (b"access-control-expose-headers", b"*"),
    ]
    assert marked(CORS, Fields([(b"Origin", b"https://evil.example")]), *theirs) == [(b"vary", b"Origin")]


def test_a_star_opens_it_to_every_page() -> None:
    answer = preflight(ANYBODY, asking(origin=b"https://whoever.example"))
    assert answer is not None
    assert answer[b"Access-Control-Allow-Origin"] == b"*"
    request = Fields([(b"Origin", b"null")])
    assert marked(ANYBODY, request, (b"Access-Control-Allow-Origin", b"x")) == [
        (b"access-control-allow-origin", b"*"),
        (b"access-control-expose-headers", b"*"),
    ]


def test_a_star_is_told_to_everybody_since_it_is_no_answer_to_an_origin() -> None:
    assert marked(ANYBODY, Fields(), (b"Server", b"x")) == [
        (b"server", b"x"),
        (b"access-control-allow-origin", b"*"),
        (b"access-control-expose-headers", b"*"),
    ]


def test_an_origin_is_listed_in_any_case() -> None:
    assert preflight(Cors(["HTTPS://App.Example"]), asking()) is not None


def test_its_repr_says_which_origins_it_allows() -> None:
    assert repr(Cors(["https://b.example", "https://a.example"])) == (
        "<Cors ['https://a.example', 'https://b.example']>"
    )
