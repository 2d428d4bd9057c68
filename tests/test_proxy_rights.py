"""Who may ask for what, and where their token is looked for: what ProxyResource says before anything is forwarded."""

from __future__ import annotations

from datetime import datetime, timezone
from ipaddress import ip_network
from typing import Any
from urllib.parse import unquote_to_bytes

import attrs
import pytest
from twisted.internet import error

from llmproxy.config import Credential, Upstream
from llmproxy.http.fields import Pair
from llmproxy.values import BaseURL
from tests.support import BEARER, CONFIG, TOKEN, Proxy, Response, client_with, log_lines


class TestRights:
    """Who may ask, where from and what for; which model is in tests/test_admission.py."""

    def ask(self, target: bytes, **rights: Any) -> Response:
        proxy = Proxy(attrs.evolve(CONFIG, clients=(client_with(TOKEN, name="alice", **rights),)))
        client = proxy.ask(target)
        if proxy.agent.requests:
            proxy.agent.only.answer(headers=[(b"Content-Length", b"0")]).end()
        return client.response()

    @pytest.mark.parametrize(
        ("rights", "message"),
        [
            (
                {"upstreams": frozenset({"anthropic"})},
                "Client 'alice' may not ask 'openai': it is not among the client's 'upstreams'.",
            ),
            (
                {"networks": (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))},
                "Client 'alice' may not call from 127.0.0.1: it is in none of the client's 'networks'.",
            ),
        ],
    )
    def test_a_refusal_says_which_one_is_missing(self, rights: dict[str, Any], message: str) -> None:
        response = self.ask(b"/openai/v1/models", **rights)
        assert (response.status, response.phrase) == (403, b"Forbidden")
        assert response.json() == {"error": "forbidden", "message": message}
        assert response.values(b"www-authenticate") == []

    @pytest.mark.parametrize(
        "rights",
        [
            {},
            {"upstreams": frozenset({"openai"})},
            {"networks": (ip_network("127.0.0.0/8"),)},
            {"expires": datetime(1970, 1, 2, tzinfo=timezone.utc)},
        ],
    )
    def test_who_has_them_passes(self, rights: dict[str, Any]) -> None:
        assert self.ask(b"/openai/v1/models", **rights).status == 200

    def test_an_expired_token_is_like_one_that_is_unknown(self) -> None:
        response = self.ask(b"/openai/v1/models", expires=datetime(1970, 1, 1, tzinfo=timezone.utc))
        assert (response.status, response.body) == (401, b'{"error":"unauthorized"}')

    def test_a_token_expires_while_its_connection_is_open(self) -> None:
        client = client_with(TOKEN, expires=datetime(1970, 1, 1, 0, 0, 10, tzinfo=timezone.utc))
        proxy = Proxy(attrs.evolve(CONFIG, clients=(client,)))
        connection = proxy.ask(b"/openai/v1/x")
        proxy.agent.only.answer(headers=[(b"Content-Length", b"0")]).end()
        proxy.clock.advance(10)
        connection.ask(b"/openai/v1/x")
        assert b"HTTP/1.1 401 " in connection.received
        assert len(proxy.agent.requests) == 1

    def test_who_is_not_known_is_told_of_no_right(self) -> None:
        proxy = Proxy(attrs.evolve(CONFIG, clients=(client_with(TOKEN, upstreams=frozenset()),)))
        assert proxy.ask(b"/openai/v1/x", headers=[]).response().status == 401

    def test_each_client_has_its_own(self) -> None:
        clients = (
            client_with(b"token-of-alice", name="alice"),
            client_with(b"token-of-bob", b"next-of-bob", name="bob", upstreams=frozenset({"anthropic"})),
        )
        proxy = Proxy(attrs.evolve(CONFIG, clients=clients))
        for token, target, sent in [
            (b"token-of-alice", b"/openai/x", True),
            (b"token-of-bob", b"/openai/x", False),
            (b"next-of-bob", b"/openai/x", False),
            (b"token-of-bob", b"/anthropic/x", True),
            (b"next-of-bob", b"/anthropic/x", True),
        ]:
            before = len(proxy.agent.requests)
            proxy.ask(target, headers=[(b"x-api-key", token)])
            assert len(proxy.agent.requests) == before + sent


AZURE = Upstream(
    "azure", BaseURL("https", "azure.example", 443, ""), Credential.parse("header:api-key"), ("az-real",)
)
GEMINI = Upstream(
    "gemini",
    BaseURL("https", "gemini.example", 443, ""),
    Credential.parse("header:x-goog-api-key"),
    ("AIza-real",),
)
BY_QUERY = attrs.evolve(GEMINI, name="query", credential=Credential.parse("query:key"))
LOCAL = Upstream("local", BaseURL("http", "127.0.0.1", 11434, ""), Credential.parse("none"))


class TestPlacesOfTheToken:
    """Each upstream's own clients put the token where that upstream wants its key."""

    @pytest.fixture
    def proxy(self) -> Proxy:
        return Proxy(attrs.evolve(CONFIG, upstreams=(AZURE, GEMINI, BY_QUERY, LOCAL)))

    @pytest.mark.parametrize(
        ("target", "header", "url", "key"),
        [
            (
                b"/azure/openai/v1/x?api-version=1",
                (b"api-key", TOKEN),
                b"?api-version=1",
                (b"api-key", b"az-real"),
            ),
            (b"/azure/openai/v1/x", (b"Api-Key", TOKEN), b"/x", (b"api-key", b"az-real")),
            (b"/azure/openai/v1/x", BEARER, b"/x", (b"api-key", b"az-real")),
            (b"/gemini/v1beta/x", (b"x-goog-api-key", TOKEN), b"/x", (b"x-goog-api-key", b"AIza-real")),
            (b"/gemini/v1beta/x", BEARER, b"/x", (b"x-goog-api-key", b"AIza-real")),
            (b"/gemini/v1beta/x?key=" + TOKEN, None, b"/x", (b"x-goog-api-key", b"AIza-real")),
            (b"/gemini/v1beta/x?alt=sse&key=" + TOKEN + b"&a=%20", None, b"/x?alt=sse&a=%20", None),
            (b"/gemini/v1beta/x?k%65y=%6C" + TOKEN[1:], None, b"/x", None),
            (b"/gemini/v1beta/x?key=" + TOKEN, (b"x-goog-api-key", TOKEN), b"/x", None),
            (b"/gemini/v1beta/x?key=" + TOKEN, BEARER, b"/x", None),
            (b"/gemini/v1beta/x?other=" + TOKEN, BEARER, b"/x", None),
            (b"/query/v1beta/x?key=" + TOKEN, None, b"/x?key=AIza-real", None),
            (b"/query/v1beta/x?a=1&key=" + TOKEN, None, b"/x?a=1&key=AIza-real", None),
            (b"/query/v1beta/x", (b"x-goog-api-key", TOKEN), b"/x?key=AIza-real", None),
            (b"/query/v1beta/x", BEARER, b"/x?key=AIza-real", None),
            (b"/local/v1/x", BEARER, b"/x", None),
            (b"/local/v1/x", (b"x-api-key", TOKEN), b"/x", None),
        ],
    )
    def test_it_is_taken_from_there_and_goes_no_further(
        self,
        proxy: Proxy,
        target: bytes,
        header: Pair | None,
        url: bytes,
        key: Pair | None,
    ) -> None:
        proxy.ask(target, headers=[] if header is None else [header, (b"Referer", b"/?key=" + TOKEN)])
        request = proxy.agent.only
        assert request.url.endswith(url)
        everything = unquote_to_bytes(request.url) + b"".join(
            name + value for name, value in request.header_list()
        )
        assert TOKEN not in everything
        assert everything.count(b"-real") == (0 if b"/local/" in target else 1)
        assert key is None or key in request.header_list()

    @pytest.mark.parametrize(
        ("target", "headers"),
        [
            (b"/azure/x", [(b"api-key", b"wrong")]),
            (b"/azure/x", [BEARER, (b"api-key", b"wrong")]),
            (b"/azure/x?api-key=" + TOKEN, []),
            (b"/azure/x?key=" + TOKEN, []),
            (b"/azure/x", [(b"x-goog-api-key", TOKEN)]),
            (b"/gemini/x?key=wrong", []),
            (b"/gemini/x?key=wrong", [BEARER]),
            (b"/gemini/x?key=" + TOKEN + b"&key=wrong", []),
            (b"/gemini/x?key=" + TOKEN, [(b"x-goog-api-key", b"wrong")]),
            (b"/gemini/x", [(b"api-key", TOKEN)]),
            (b"/query/x?key=", []),
            (b"/local/x?key=" + TOKEN, []),
        ],
    )
    def test_elsewhere_or_beside_a_wrong_one_it_does_not_count(
        self, proxy: Proxy, target: bytes, headers: list[Pair]
    ) -> None:
        assert proxy.ask(target, headers=headers).response().status == 401
        assert proxy.agent.requests == []

    def test_no_query_reaches_a_log_or_an_exchange(self, proxy: Proxy) -> None:
        with log_lines() as lines:
            client = proxy.ask(b"/gemini/v1beta/x?key=" + TOKEN, headers=[])
            proxy.agent.only.fail(error.ConnectionRefusedError())
        shown = "\n".join([*lines, client.received.decode("ascii"), repr(proxy.exchanges)])
        assert client.response().status == 502
        for secret in (TOKEN.decode("ascii"), "AIza-real"):
            assert secret not in shown
