from __future__ import annotations

import io
import json
import os
import re
import signal
import syslog
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.application.service import Application, MultiService
from twisted.logger import ILogObserver, LogBeginner, Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python import syslog as twisted_syslog
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from llmproxy import logs
from llmproxy.access_log import AccessLog
from llmproxy.logs import Log, open_log
from tests.metrics_support import COMPLETED

FOREGROUND = {"nodaemon": True, "logfile": None, "syslog": False, "prefix": "twisted"}


class Reactor:
    """Keeps what it is to call from another thread."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.calls.append(call)


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture(autouse=True)
def _default_signal() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def stdout(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was written to standard output since it was last asked for."""
    return lambda: capsys.readouterr().out


def opened(twistd: dict[str, Any], reactor: object, form: str = "text", level: str = "info") -> Log:
    log = open_log({**FOREGROUND, **twistd}, reactor, form, level)
    assert log is not None
    return log


def failure() -> Failure:
    try:
        raise ValueError("a bad value")
    except ValueError:
        return Failure()


def test_text_looks_as_twistd_writes_it(stdout: Callable[[], str], reactor: Reactor) -> None:
    Logger("some.where", observer=opened({}, reactor)).info("Hello, {name}", name="world")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[some\.where#info\] Hello, world\n", stdout()
    )


def test_json_is_one_object_on_one_line(stdout: Callable[[], str], reactor: Reactor) -> None:
    log = opened({}, reactor, "json")
    log(
        {
            "log_time": 1795372024.0567,
            "log_level": LogLevel.warn,
            "log_namespace": "some.where",
            "log_format": "Two\nlines, {it} \u2013 \x1b[2J",
            "it": {"not": "here"},
        }
    )
    text = stdout()
    assert text.isascii()
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "time": "2026-11-22T18:27:04.056Z",
        "level": "warn",
        "namespace": "some.where",
        "message": "Two\nlines, {'not': 'here'} \u2013 \x1b[2J",
    }


def test_a_failure_brings_its_traceback(stdout: Callable[[], str], reactor: Reactor) -> None:
    Logger("some.where", observer=opened({}, reactor, "json")).failure("It broke", failure())
    found = json.loads(stdout())
    assert (found["level"], found["message"]) == ("critical", "It broke")
    assert found["traceback"].startswith("Traceback (most recent call last):")
    assert "ValueError: a bad value" in found["traceback"]


def test_a_failure_without_a_message_is_written_all_the_same(
    stdout: Callable[[], str], reactor: Reactor
) -> None:
    opened({}, reactor, "json")(
        {"log_time": 0.0, "log_level": LogLevel.critical, "log_namespace": "x", "log_failure": failure()}
    )
    assert "ValueError" in json.loads(stdout())["traceback"]


def test_an_exchange_has_its_fields_flat_beside_the_message(
    stdout: Callable[[], str], reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccessLog, "_log", Logger(observer=opened({}, reactor, "json")))
    AccessLog().observe([COMPLETED])
    found = json.loads(stdout())
    assert found["namespace"] == "llmproxy.access_log.AccessLog"
    assert found["message"].startswith("ann POST /openai/v1/chat/completions -> openai 200")
    assert (found["status"], found["duration"], found["cost"]) == (200, 1.234568, 1_234_567)
    assert found["labels.x-claude-code-session-id"] == "s-1"


def test_an_exchange_is_the_line_for_people_as_text(
    stdout: Callable[[], str], reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccessLog, "_log", Logger(observer=opened({}, reactor)))
    AccessLog().observe([COMPLETED])
    assert "[llmproxy.access_log.AccessLog#info] ann POST /openai/v1/chat/completions" in stdout()


def test_an_event_that_says_nothing_is_not_written(stdout: Callable[[], str], reactor: Reactor) -> None:
    opened({}, reactor, "json")({"log_time": 0.0, "log_level": LogLevel.info, "log_namespace": "x"})
    assert stdout() == ""


def test_what_json_cannot_hold_is_written_as_text(stdout: Callable[[], str], reactor: Reactor) -> None:
    log = opened({}, reactor, "json")
    Logger("x", observer=log).info("Hello", as_json=lambda: {"path": Path("a")})
    assert json.loads(stdout())["path"] == "a"


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warn", "error", "critical"]),
        ("info", ["info", "warn", "error", "critical"]),
        ("warn", ["warn", "error", "critical"]),
        ("error", ["error", "critical"]),
    ],
)
@pytest.mark.parametrize("form", logs.FORMATS)
def test_only_what_is_of_the_level_or_above_is_written(
    stdout: Callable[[], str], reactor: Reactor, form: str, level: str, written: list[str]
) -> None:
    logger = Logger("x", observer=opened({}, reactor, form, level))
    for each in LogLevel.iterconstants():
        logger.emit(each, "this is {each}", each=each.name)
    assert re.findall(r"this is (\w+)", stdout()) == written


def test_format_and_level_can_change_while_it_runs(stdout: Callable[[], str], reactor: Reactor) -> None:
    log = opened({}, reactor, "text", "error")
    logger = Logger("x", observer=log)
    logger.info("one")
    log.change("json", "info")
    logger.info("two")
    assert json.loads(stdout())["message"] == "two"


def test_events_of_all_kinds_that_a_process_has_are_one_line_of_json_each(
    stdout: Callable[[], str], reactor: Reactor
) -> None:
    publisher = LogPublisher()
    log = opened({}, reactor, "json")
    stdio = SimpleNamespace(stdout=io.StringIO(), stderr=io.StringIO())
    caught = SimpleNamespace(showwarning=warnings.showwarning)
    beginner = LogBeginner(publisher, io.StringIO(), stdio, caught)
    Logger("early", observer=publisher).info("before the log was there")
    beginner.beginLoggingTo([log])
    print("from print", file=stdio.stdout)
    print("from stderr", file=stdio.stderr)
    caught.showwarning("a warning", UserWarning, "file.py", 7)
    old = legacy.LogPublisher(publishPublisher=publisher)
    old.msg("from log.msg")
    old.msg(failure=failure(), why="from log.err", isError=1)
    lines = [json.loads(each) for each in stdout().splitlines()]
    assert [set(each) for each in lines] == [{"time", "level", "namespace", "message"}] * 6
    assert [(each["level"], each["namespace"]) for each in lines] == [
        ("info", "early"),
        ("info", "stdout"),
        ("error", "stderr"),
        ("warn", "twisted.logger._global"),
        ("info", "log_legacy"),
        ("critical", "log_legacy"),
    ]
    assert "ValueError: a bad value" in lines[-1]["message"]


# Where it goes


@pytest.mark.parametrize("name", ["-", "", None])
def test_in_the_foreground_it_goes_to_standard_output(
    stdout: Callable[[], str], reactor: Reactor, name: str | None
) -> None:
    Logger("x", observer=opened({"logfile": name}, reactor)).info("here")
    assert "here" in stdout()


def test_a_daemon_cannot_log_to_standard_output(reactor: Reactor) -> None:
    with pytest.raises(SystemExit, match="Daemons cannot log to stdout"):
        opened({"nodaemon": False, "logfile": "-"}, reactor)


def test_a_daemon_logs_to_the_file_that_twistd_would_take(
    tmp_path: Path, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Logger("x", observer=opened({"nodaemon": False}, reactor)).info("here")
    assert "here" in (tmp_path / "twistd.log").read_text()


@pytest.mark.parametrize("in_foreground", [True, False])
def test_a_file_is_written_in_utf_8_and_each_line_at_once(
    tmp_path: Path, reactor: Reactor, in_foreground: bool
) -> None:
    file = tmp_path / "proxy.log"
    logger = Logger("x", observer=opened({"nodaemon": in_foreground, "logfile": str(file)}, reactor))
    logger.info("\u00fcbel")
    assert file.read_text("utf-8").endswith("[x#info] \u00fcbel\n")


@pytest.mark.parametrize("form", logs.FORMATS)
def test_sigusr1_rotates_the_file_in_the_reactors_thread(tmp_path: Path, reactor: Reactor, form: str) -> None:
    file = tmp_path / "proxy.log"
    logger = Logger("x", observer=opened({"logfile": str(file)}, reactor, form))
    logger.info("old")
    os.kill(os.getpid(), signal.SIGUSR1)
    (rotate,) = reactor.calls
    rotate()
    logger.info("new")
    assert "old" in (tmp_path / "proxy.log.1").read_text()
    assert "new" in file.read_text()
    assert "old" not in file.read_text()


def test_another_handler_of_sigusr1_is_left_alone(tmp_path: Path, reactor: Reactor) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    opened({"logfile": str(tmp_path / "proxy.log")}, reactor)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, reactor: Reactor) -> None:
    with pytest.raises(OSError, match="nowhere"):
        opened({"logfile": str(tmp_path / "nowhere" / "proxy.log")}, reactor)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What syslog is told."""
    calls: list[tuple[Any, ...]] = []

    def keep(*arguments: Any) -> None:
        calls.append(arguments)

    # As staticmethods: the C functions that they stand for do not bind either.
    for name in ("openlog", "syslog"):
        monkeypatch.setattr(twisted_syslog.SyslogObserver, name, staticmethod(partial(keep, name)))
    return calls


def test_text_goes_to_syslog_as_from_twistd(told: list[tuple[Any, ...]], reactor: Reactor) -> None:
    log = opened({"syslog": True, "prefix": "proxy"}, reactor)
    Logger("some.where", observer=log).info("Two\nlines")
    assert told[0][:2] == ("openlog", "proxy")
    assert [call[:1] + call[2:] for call in told[1:]] == [("syslog", "[-] Two"), ("syslog", "[-] \tlines")]


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (LogLevel.debug, syslog.LOG_DEBUG),
        (LogLevel.info, syslog.LOG_INFO),
        (LogLevel.warn, syslog.LOG_WARNING),
        (LogLevel.error, syslog.LOG_ERR),
        (LogLevel.critical, syslog.LOG_CRIT),
    ],
)
def test_json_goes_to_syslog_as_one_message_of_its_priority(
    told: list[tuple[Any, ...]], reactor: Reactor, level: Any, priority: int
) -> None:
    log = opened({"syslog": True}, reactor, "json", "debug")
    Logger("some.where", observer=log).emit(level, "Two\nlines")
    log({"log_time": 0.0, "log_level": level, "log_namespace": "x"})
    ((name, told_priority, text),) = told[1:]
    assert (name, told_priority) == ("syslog", priority)
    assert json.loads(text)["message"] == "Two\nlines"
    assert "\n" not in text


# Whose it is


@pytest.mark.parametrize(
    "twistd",
    [
        None,
        {},
        {"logfile": "x", "log-format": "json"},
        {**FOREGROUND, "logger": lambda: None},
    ],
)
def test_it_is_left_alone_without_twistd_and_where_twistd_was_told_of_another(
    twistd: dict[str, Any] | None, reactor: Reactor
) -> None:
    assert open_log(twistd, reactor) is None


def test_twistd_finds_it_in_its_application(stdout: Callable[[], str], reactor: Reactor) -> None:
    application = Application("llmproxy")
    log = opened({}, reactor)
    log.attach(application)
    assert application.getComponent(ILogObserver) is log
    verifyObject(ILogObserver, log)


def test_a_parent_that_is_no_application_is_left_alone(stdout: Callable[[], str], reactor: Reactor) -> None:
    parent = MultiService()
    before = dict(vars(parent))
    opened({}, reactor).attach(parent)
    assert vars(parent) == before
