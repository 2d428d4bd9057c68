"""The reactors that it runs on: by itself uvloop's, and any other that twistd is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.process import REACTOR, Proxy, Twistd, running
from tests.integration.upstream import Upstream
from tests.integration.wire import LAST_CHUNK, Body, chunked, message

CLASSES = {
    None: "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
    "asyncio": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
    "epoll": "twisted.internet.epollreactor.EPollReactor",
    "poll": "twisted.internet.pollreactor.PollReactor",
    "select": "twisted.internet.selectreactor.SelectReactor",
}


def reactor_class(twistd: Twistd) -> str:
    return twistd.wait_for(r"reactor class: ([\w.]+\w)")[1]


def has_uvloop(twistd: Twistd) -> bool:
    """Tell whether a process has loaded uvloop: the log does not say on which loop asyncio's reactor runs."""
    return "/uvloop/" in Path(f"/proc/{twistd.pid}/maps").read_text()


def assert_streams(proxy: Proxy, upstream: Upstream) -> None:
    """A chunk passes in each direction before the next is sent."""
    client = proxy.send(b"POST /openai/v1/x", b"Transfer-Encoding: chunked", body=chunked(b"up 1"))
    wire = upstream.accept()
    request = Body(wire, wire.head())
    assert request.exactly(4) == b"up 1"
    client.send(chunked(b"up 2") + LAST_CHUNK)
    assert request.rest() == b"up 2"
    wire.send(message(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", body=chunked(b"down 1")))
    response = Body(client, client.head())
    assert response.exactly(6) == b"down 1"
    wire.send(chunked(b"down 2") + LAST_CHUNK)
    assert response.rest() == b"down 2"


def test_these_tests_run_on_the_reactor_that_was_asked_for(proxy: Proxy) -> None:
    assert (os.environ.get("LLMPROXY_TEST_REACTOR") or None) == REACTOR
    assert reactor_class(proxy.twistd) == CLASSES[REACTOR]
    assert has_uvloop(proxy.twistd) == (REACTOR is None)


@pytest.mark.parametrize("reactor", CLASSES)
def test_every_reactor_serves(tmp_path: Path, reactor: str | None) -> None:
    upstream = Upstream()
    with running(tmp_path, upstream, reactor=reactor) as proxy:
        assert reactor_class(proxy.twistd) == CLASSES[reactor]
        assert has_uvloop(proxy.twistd) == (reactor is None)
        assert_streams(proxy, upstream)
