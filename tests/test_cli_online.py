from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import DNSLookupError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from llmproxy.cli.online import Finding, ask, ask_all, judge
from llmproxy.config import Config, Credential, Family, Upstream
from llmproxy.transparent import TransparentClient
from llmproxy.values import parse_base_url
from tests.conftest import LoggedFailures
from tests.support import ScriptedAgent, UpstreamRequest

UPSTREAM = Upstream(
    "team",
    parse_base_url("https://api.example/base"),
    Credential.parse("bearer"),
    ("sk-key-1", "sk-key-2"),
    Family.OPENAI,
)


class Asking:
    """An upstream that is asked, and the test's hands on its answers."""

    def __init__(self, upstream: Upstream = UPSTREAM, **changes: Any) -> None:
        self.clock = Clock()
        self._agent = ScriptedAgent(self.clock)
        client = TransparentClient(self._agent, self.clock)
        self._found = ask(client, self.clock, attrs.evolve(upstream, **changes))

    @property
    def requests(self) -> list[UpstreamRequest]:
        return self._agent.requests

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        for deferred in self._found:
            deferred.addCallback(found.append)
        return found

    def headers(self, name: bytes) -> list[bytes]:
        """The values of a header, of all requests."""
        return [value for request in self.requests for found, value in request.header_list() if found == name]


class TestRequest:
    @pytest.mark.parametrize(
        ("family", "url"),
        [
            (Family.OPENAI, b"https://api.example/base/v1/models"),
            (Family.ANTHROPIC, b"https://api.example/base/v1/models"),
            (Family.GEMINI, b"https://api.example/base/v1beta/models"),
        ],
    )
    def test_the_list_of_models_is_asked_for_once_with_each_key(self, family: Family, url: bytes) -> None:
        asking = Asking(family=family)
        assert [(request.method, request.url) for request in asking.requests] == [(b"GET", url)] * 2
        assert asking.headers(b"host") == [b"api.example"] * 2
        assert asking.headers(b"authorization") == [b"Bearer sk-key-1", b"Bearer sk-key-2"]
        assert all(request.producer is None for request in asking.requests)

    def test_a_key_may_go_into_the_query(self) -> None:
        asking = Asking(credential=Credential.parse("query:key"), keys=("a&b",), family=Family.GEMINI)
        assert [request.url for request in asking.requests] == [
            b"https://api.example/base/v1beta/models?key=a%26b"
        ]

    def test_an_upstream_without_a_key_is_asked_once_without_one(self) -> None:
        asking = Asking(credential=Credential.parse("none"), keys=())
        assert len(asking.requests) == 1
        assert asking.headers(b"authorization") == []

    def test_anthropic_is_told_a_version_where_the_operator_tells_none(self) -> None:
        assert Asking(family=Family.ANTHROPIC, keys=("k",)).headers(b"anthropic-version") == [b"2023-06-01"]
        own = ((b"Anthropic-Version", b"2030-01-01"),)
        asking = Asking(family=Family.ANTHROPIC, keys=("k",), default_headers=own)
        assert asking.headers(b"anthropic-version") == [b"2030-01-01"]
        assert Asking(keys=("k",)).headers(b"anthropic-version") == []

    def test_azures_own_resources_have_it_elsewhere(self) -> None:
        asking = Asking(base_url=parse_base_url("https://team.openai.azure.com"), keys=("k",))
        assert [request.url for request in asking.requests] == [
            b"https://team.openai.azure.com/openai/v1/models"
        ]

    def test_an_api_that_is_not_known_is_not_asked(self) -> None:
        asking = Asking(family=Family.NONE)
        assert asking.requests == []
        assert [(found.text.split(":")[0], found.failed) for found in asking.findings()] == [
            ("unsupported", False)
        ] * 2


class TestAnswer:
    def test_each_key_is_told_by_its_number_with_the_time_that_it_took(self) -> None:
        asking = Asking()
        asking.clock.advance(0.25)
        asking.requests[1].answer(401)
        asking.clock.advance(0.25)
        asking.requests[0].answer(200)
        assert asking.findings() == [
            Finding("team, key 1 of 2", "works (200 in 500 ms)", failed=False),
            Finding("team, key 2 of 2", "refuses the key (401 in 250 ms)", failed=True),
        ]

    def test_the_list_itself_is_not_read(self) -> None:
        asking = Asking(keys=("k",))
        response = asking.requests[0].answer(200)
        assert response.aborted == 1

    @pytest.mark.parametrize(
        ("status", "family", "words", "failed"),
        [
            (200, Family.OPENAI, "works", False),
            (401, Family.ANTHROPIC, "refuses the key", True),
            (403, Family.OPENAI, "refuses the key", True),
            (400, Family.GEMINI, "refuses the key", True),
            (400, Family.OPENAI, "does not answer as it should", True),
            (404, Family.OPENAI, "has no list of models", False),
            (429, Family.OPENAI, "over its limits", False),
            (302, Family.OPENAI, "does not answer as it should", True),
            (500, Family.GEMINI, "does not answer as it should", True),
            (529, Family.ANTHROPIC, "does not answer as it should", True),
        ],
    )
    def test_its_status_tells_of_the_key(self, status: int, family: Family, words: str, failed: bool) -> None:
        said, fails = judge(family, status)
        assert words in said
        assert fails is failed

    def test_without_an_answer_it_is_given_up_after_half_a_minute(self) -> None:
        asking = Asking(keys=("k",))
        asking.clock.advance(29.9)
        assert not asking.requests[0].cancelled
        asking.clock.advance(0.2)
        assert asking.requests[0].cancelled
        (found,) = asking.findings()
        assert found.failed
        assert found.text == "The upstream team (api.example) sent nothing for 30 seconds."

    @pytest.mark.parametrize(
        ("fault", "words"),
        [(Refused(), "refused the connection"), (DNSLookupError(), "its host name does not resolve")],
    )
    def test_an_upstream_that_is_not_reached_is_told_with_the_reason(
        self, fault: Exception, words: str
    ) -> None:
        asking = Asking(keys=("k",))
        asking.requests[0].fail(fault)
        (found,) = asking.findings()
        assert found.failed
        assert words in found.text
        assert asking.clock.getDelayedCalls() == []

    def test_no_key_is_in_what_was_found(self) -> None:
        asking = Asking(credential=Credential.parse("query:key"))
        asking.requests[0].fail(Refused())
        asking.requests[1].answer(403)
        assert "sk-key" not in f"{asking.findings()} {asking._found}"

    def test_a_fault_of_this_program_is_not_taken_for_the_upstreams(
        self, logged_failures: LoggedFailures
    ) -> None:
        asking = Asking(keys=("k",))
        asking.requests[0].fail(KeyError("bug"))
        del asking
        assert [failure.type for failure in logged_failures.flush(KeyError)] == [KeyError]


def test_all_upstreams_are_asked_and_told_in_the_operators_order() -> None:
    upstreams = tuple(
        attrs.evolve(UPSTREAM, name=name, family=Family.NONE, keys=("k",)) for name in ("b", "a")
    )
    found: list[Finding] = []
    ask_all(MemoryReactorClock(), Config(upstreams, ())).addCallback(found.extend)
    assert [finding.subject for finding in found] == ["b, key 1 of 1", "a, key 1 of 1"]
