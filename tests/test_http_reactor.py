from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmproxy.http.reactor import install


class Installed:
    """What was installed in this process, in place of doing it."""

    def __init__(self) -> None:
        self.loops: list[Any] = []  # that asyncio was told of
        self.reactors: list[Any] = []  # by the loops that they were made for


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """A process as it is before any reactor is installed."""
    installed = Installed()
    asyncioreactor: Any = ModuleType("twisted.internet.asyncioreactor")
    asyncioreactor.install = installed.reactors.append
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    monkeypatch.setitem(sys.modules, "twisted.internet.asyncioreactor", asyncioreactor)
    monkeypatch.setattr("twisted.internet.asyncioreactor", asyncioreactor, raising=False)
    monkeypatch.setattr(asyncio, "set_event_loop", installed.loops.append)
    return installed


def test_it_is_installed_on_a_uvloop_loop_that_asyncio_knows_too(fresh: Installed) -> None:
    uvloop = pytest.importorskip("uvloop")
    assert install()
    (loop,) = fresh.loops
    assert fresh.reactors == [loop]
    assert isinstance(loop, uvloop.Loop)
    loop.close()


def test_a_reactor_that_is_there_already_counts(fresh: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", ModuleType("reactor"))
    assert not install()
    assert (fresh.loops, fresh.reactors) == ([], [])


def test_without_uvloop_the_choice_is_left_to_twisted(
    fresh: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert not install()
    assert (fresh.loops, fresh.reactors) == ([], [])


def run(code: str) -> tuple[str, str]:
    """What a process of its own writes; in this one, the test runner has installed a reactor."""
    checkout = Path(__file__).parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False
    )
    return ran.stdout, ran.stderr


def test_importing_the_package_up_to_its_options_installs_no_reactor() -> None:
    code = "import sys, llmproxy.tap; print('twisted.internet.reactor' in sys.modules)"
    assert run(code) == ("False\n", "")


def test_the_installed_one_runs() -> None:
    pytest.importorskip("uvloop")
    code = (
        "from llmproxy.http import native, reactor\n"
        "assert reactor.install() and not reactor.install()\n"
        "from twisted.internet import reactor as installed\n"
        "assert isinstance(native.native(installed), native.NativeReactor)\n"
        "installed.callLater(0, installed.stop)\n"
        "installed.run()\n"
        "print('ran')\n"
    )
    assert run(code) == ("ran\n", "")
