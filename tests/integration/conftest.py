"""The processes and upstreams that the integration tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from llmproxy import demo_service
from tests.integration.process import FOREGROUND, LOOPBACK, Proxy, Twistd, settings
from tests.integration.upstream import Upstream

Background = Callable[..., "Future[Any]"]


@attrs.frozen
class Demo:
    """A demo in the foreground.

    :ivar url: of the proxy, without a slash at its end.
    :ivar token: that opens it.
    """

    url: str
    token: str
    twistd: Twistd

    @property
    def processes(self) -> list[Twistd]:
        return [self.twistd]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    twistd = Twistd(*FOREGROUND, "--demo", *LOOPBACK, settings={}, cwd=tmp_path_factory.mktemp("demo"))
    try:
        yield Demo(f"http://127.0.0.1:{twistd.port}", demo_service.TOKEN, twistd)
    finally:
        twistd.stop()


@pytest.fixture(scope="session")
def openai_upstream() -> Upstream:
    """Behind /openai/ of the shared proxy; the proxy closes it."""
    return Upstream(send_buffer=65536)


@pytest.fixture(scope="session")
def anthropic_upstream() -> Upstream:
    """Behind /anthropic/ of the shared proxy, at the path /base/v0; the proxy closes it."""
    return Upstream()


@pytest.fixture(scope="session")
def shared_proxy(
    openai_upstream: Upstream, anthropic_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    urls = settings(
        f"http://127.0.0.1:{openai_upstream.port}", f"http://127.0.0.1:{anthropic_upstream.port}/base/v0"
    )
    proxy = Proxy(urls, tmp_path_factory.mktemp("proxy"), openai_upstream, anthropic_upstream)
    try:
        proxy.twistd.started()
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture
def proxy(shared_proxy: Proxy) -> Iterator[Proxy]:
    """The shared proxy, on which no connection of another test is left."""
    yield shared_proxy
    shared_proxy.hang_up()


@pytest.fixture
def openai(proxy: Proxy, openai_upstream: Upstream) -> Upstream:
    return openai_upstream


@pytest.fixture
def anthropic(proxy: Proxy, anthropic_upstream: Upstream) -> Upstream:
    return anthropic_upstream


@pytest.fixture
def background() -> Iterator[Background]:
    """Run a function in a thread; it must end before the test does."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds; left out with -m 'not slow'.")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So it is for what a script runs in the background, and what the tests start would ignore it, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show beside a failure what the processes of the test have printed."""
    report = yield
    if report.failed:
        processes = {
            process for fixture in item.funcargs.values() for process in getattr(fixture, "processes", ())
        }
        report.sections += [(f"log of twistd {twistd.pid}", twistd.log[-5000:]) for twistd in processes]
    return report
