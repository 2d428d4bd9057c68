from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from twisted.internet.task import Clock

from llmproxy import admin
from llmproxy.http.server import Site
from llmproxy.metrics import Metrics
from tests.conftest import LoggedFailures
from tests.metrics_support import State, exchange
from tests.support import ClientConnection, Response, connect


class Admin:
    """The admin listener's side of a proxy.

    :ivar why_not: why it is not ready.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.why_not: str | None = None
        self.metrics = Metrics(State().sources())
        self._clock = Clock()
        self._site = Site(admin.build(registry or self.metrics.registry, lambda: self.why_not), self._clock)

    def connect(self) -> ClientConnection:
        return connect(self._site, self._clock)

    def ask(self, target: bytes, method: bytes = b"GET", *headers: tuple[bytes, bytes]) -> Response:
        client = self.connect()
        client.ask(target, method, headers)
        return client.response(method)


@pytest.fixture
def proxy() -> Admin:
    return Admin()


@pytest.mark.parametrize("target", [b"/metrics", b"/metrics?x=1", b"http://proxy.example/metrics"])
def test_metrics_are_there_without_a_token(proxy: Admin, target: bytes) -> None:
    proxy.metrics.observe([exchange()])
    response = proxy.ask(target)
    assert (response.status, response.whole) == (200, True)
    assert response.values(b"content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
    names = {family.name for family in parse_text(response.body.decode())}
    assert {"llmproxy_exchanges", "llmproxy_build_info"} <= names


@pytest.mark.parametrize(
    "accept",
    [
        b"application/openmetrics-text",
        b"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    ],
)
def test_who_accepts_openmetrics_gets_it(proxy: Admin, accept: bytes) -> None:
    proxy.metrics.observe([exchange()])
    response = proxy.ask(b"/metrics", b"GET", (b"Accept", accept))
    (content_type,) = response.values(b"content-type")
    assert content_type.startswith(b"application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert response.body.endswith(b"# EOF\n")
    assert "llmproxy_exchanges" in {family.name for family in parse_openmetrics(response.body.decode())}


@pytest.mark.parametrize(
    "accept", [b"", b"*/*", b"text/html", b"\xff\xfe", b";;,,=", b"text/plain;version=x"]
)
def test_whatever_else_is_accepted_gets_text(proxy: Admin, accept: bytes) -> None:
    response = proxy.ask(b"/metrics", b"GET", (b"Accept", accept))
    assert response.status == 200
    assert response.values(b"content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]


def test_ready_is_ok_only_while_nothing_speaks_against_it(proxy: Admin) -> None:
    response = proxy.ask(b"/readyz")
    assert (response.status, response.body) == (200, b"ok")
    proxy.why_not = "The proxy is draining."
    response = proxy.ask(b"/readyz")
    assert response.status == 503
    assert response.values(b"content-type") == [b"application/json"]
    assert response.json() == {"error": "service_unavailable", "message": "The proxy is draining."}
    proxy.why_not = None
    assert proxy.ask(b"/readyz").status == 200


def test_healthy_is_also_what_is_not_ready(proxy: Admin) -> None:
    proxy.why_not = "The proxy is draining."
    response = proxy.ask(b"/healthz")
    assert (response.status, response.body) == (200, b"ok")
    assert response.headers == [(b"content-type", b"text/plain"), (b"content-length", b"2")]


@pytest.mark.parametrize("target", [b"/metrics", b"/healthz", b"/readyz"])
def test_head_is_answered_without_a_body(proxy: Admin, target: bytes) -> None:
    response = proxy.ask(target, b"HEAD")
    assert response.status == 200
    assert int(response.values(b"content-length")[0]) > 0
    assert response.rest == b""


@pytest.mark.parametrize("target", [b"/metrics", b"/healthz", b"/readyz"])
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get"])
def test_no_other_method_is_answered(proxy: Admin, target: bytes, method: bytes) -> None:
    response = proxy.ask(target, method)
    assert response.status == 405
    assert response.values(b"allow") == [b"GET, HEAD"]
    assert response.json()["error"] == "method_not_allowed"


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/metrics/",
        b"/metrics/x",
        b"/healthz/",
        b"/readyz2",
        b"/%6detrics",
        b"/openai/v1/models",
        b"//metrics",
    ],
)
def test_nothing_else_is_there(proxy: Admin, target: bytes) -> None:
    response = proxy.ask(target)
    assert response.status == 404
    assert response.json()["error"] == "not_found"


def test_metrics_that_cannot_be_read_are_an_error_of_the_proxys_own(logged_failures: LoggedFailures) -> None:
    class Broken(Collector):
        def collect(self) -> list[object]:  # type: ignore[override]
            raise RuntimeError("no numbers today")

    registry = CollectorRegistry()
    registry.register(Broken())
    response = Admin(registry).ask(b"/metrics")
    assert response.status == 500
    assert b"no numbers today" not in response.body
    assert len(logged_failures.flush(RuntimeError)) == 1
