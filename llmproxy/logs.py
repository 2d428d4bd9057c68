"""Where the log goes, as twistd's options say, and how it looks there: text or JSON, and from which level on.

twistd asks its application for an ``ILogObserver`` before it makes one of its own, and :class:`Log` is that. It writes to what
twistd would have written to (standard output, ``--logfile``, ``--syslog``), and every event of the process passes through it,
those of Twisted, of libraries and of ``print`` included. An operator's own ``--logger`` comes before it.

Text is as twistd writes it. JSON is one object per line: ``time`` (RFC 3339, UTC, with milliseconds), ``level``, ``namespace``,
``message``; ``traceback`` where something failed; and beside these what an event brings as ``as_json``, a function that returns
a dict.
"""

from __future__ import annotations

import json
import signal
import sys
import syslog
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    textFileLogObserver,
)
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile
from twisted.python.syslog import SyslogObserver
from zope.interface import implementer

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warn", "error")

_PRIORITIES = {
    LogLevel.debug: syslog.LOG_DEBUG,
    LogLevel.info: syslog.LOG_INFO,
    LogLevel.warn: syslog.LOG_WARNING,
    LogLevel.error: syslog.LOG_ERR,
    LogLevel.critical: syslog.LOG_CRIT,
}
_json = json.JSONEncoder(separators=(",", ":"), default=str).encode


@implementer(ILogObserver)
class Log:
    """The log of the process.

    :param outputs: for each of :data:`FORMATS`, what writes events in it.
    :param form: one of them.
    :param level: the least of :data:`LEVELS` that is written. What is critical always is.
    """

    def __init__(self, outputs: Mapping[str, ILogObserver], form: str, level: str) -> None:
        self._outputs = outputs
        self.change(form, level)

    def __call__(self, event: LogEvent) -> None:
        """Write an event, if its level is high enough."""
        self._observer(event)

    def change(self, form: str, level: str) -> None:
        """Go on in another format, or from another level on."""
        levels = LogLevelFilterPredicate(LogLevel.levelWithName(level))
        self._observer = FilteringLogObserver(self._outputs[form], [levels])

    def attach(self, parent: object) -> None:
        """Become the log of twistd.

        :param parent: what a service is given as its parent: the application, where twistd runs the service.
        """
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self)


def open_log(
    twistd: Mapping[str, Any] | None, reactor: Any, form: str = "text", level: str = "info"
) -> Log | None:
    """Open what twistd would have opened; to be called once, while the service is made.

    :param twistd: the options of twistd itself, which are the parent of a plugin's.
    :param reactor: turns a signal into a rotation.
    :return: ``None`` where the log is not ours to set up: twistd was told of another, or it is not twistd that runs this.
    :raise OSError: the file cannot be written.
    :raise SystemExit: as twistd, of a daemon that is to log to standard output.
    """
    if twistd is None or "nodaemon" not in twistd or twistd.get("logger"):
        return None
    if twistd.get("syslog"):
        return Log(_to_syslog(twistd.get("prefix") or ""), form, level)
    return Log(
        _to_file(_open_file(twistd.get("logfile") or "", bool(twistd["nodaemon"]), reactor)), form, level
    )


def as_json(event: LogEvent) -> str | None:
    """Write an event as one line of JSON; ``None`` for one that says nothing."""
    message = formatEvent(event)
    failure = event.get("log_failure")
    if not message and failure is None:
        return None
    level = event.get("log_level", LogLevel.info)
    found = {
        "time": rfc3339(datetime.fromtimestamp(event["log_time"], timezone.utc)),
        "level": level.name,
        "namespace": event.get("log_namespace"),
        "message": message,
    }
    if failure is not None:
        found["traceback"] = failure.getTraceback()
    if (more := event.get("as_json")) is not None:
        found.update(more())
    return _json(found) + "\n"


def rfc3339(at: datetime) -> str:
    """Write a time in UTC, to the millisecond (RFC 3339)."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _open_file(name: str, in_foreground: bool, reactor: Any) -> Any:
    """Do as ``twisted.application.app`` does with ``--logfile``, which it has no public function for."""
    if name == "-" and not in_foreground:
        sys.exit("Daemons cannot log to stdout, exiting!")
    if name == "-" or (in_foreground and not name):
        return sys.stdout
    file: LogFile = LogFile.fromFullPath(name or "twistd.log")
    # Not where a program that starts this one has set another handler.
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return file


def _to_file(file: Any) -> dict[str, ILogObserver]:
    return {"text": textFileLogObserver(file), "json": FileLogObserver(file, as_json)}


def _to_syslog(prefix: str) -> dict[str, ILogObserver]:
    """Write to syslog, which puts a time and a host of its own before each line, and may cut long ones (RFC 5424: 2 KiB)."""
    observer = SyslogObserver(prefix)
    emit: Any = observer.emit  # is what an observer of the old kind is, but does not say so

    @implementer(ILogObserver)
    def json_to_syslog(event: LogEvent) -> None:
        line = as_json(event)
        if line is not None:
            observer.syslog(_PRIORITIES.get(event.get("log_level"), syslog.LOG_INFO), line.rstrip("\n"))

    return {"text": LegacyLogObserverWrapper(emit), "json": json_to_syslog}
