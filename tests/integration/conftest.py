"""The processes and upstreams that the integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from llmproxy import demo_service
from tests.integration.process import Twistd


@attrs.frozen
class Demo:
    """A demo in the foreground.

    :ivar url: of the proxy, without a slash at its end.
    :ivar token: that opens it.
    """

    url: str
    token: str
    process: Twistd

    @property
    def processes(self) -> list[Twistd]:
        return [self.process]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    arguments = ("-n", "--pidfile=", "llmproxy", "--demo", "--port", "tcp:0:interface=127.0.0.1")
    twistd = Twistd(*arguments, settings={}, cwd=tmp_path_factory.mktemp("demo"))
    try:
        yield Demo(f"http://127.0.0.1:{twistd.port}", demo_service.TOKEN, twistd)
    finally:
        twistd.stop()
