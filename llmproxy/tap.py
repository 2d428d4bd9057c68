"""What twistd sees: the options of ``twistd llmproxy``, and the service they ask for. No logic."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import IService
from twisted.python import usage

from llmproxy import __version__, config, logs, values
from llmproxy.http import reactor as engine_reactor


class Options(usage.Options):
    """The command line; everything else is set in the environment, or in a file."""

    synopsis = "[options]"
    longdesc = (
        "A transparent, streaming reverse proxy for LLM APIs. Its settings come from the environment: without a file, "
        "OPENAI_BASE_URL, OPENAI_API_KEY, ANTHROPIC_BASE_URL, ANTHROPIC_API_KEY and PROXY_TOKEN are required. --demo needs "
        "none of them."
    )
    optFlags = [
        ["demo", None, "Serve a built-in upstream that needs no keys, for a first look."],
        ["access-log", None, "Write a line for each exchange; --demo does so by itself."],
    ]
    optParameters = [
        [
            "log-format",
            None,
            None,
            "What the log is written in: text or json. [default: as configured, else text]",
        ],
        [
            "log-level",
            None,
            None,
            "The least level that is written: debug, info, warn or error. [default: info]",
        ],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.listen: list[str] = []  # empty: where the configuration says
        self.file: str | None = None
        self.admin: str | None = None
        self.drain = config.DEFAULT_DRAIN
        self.logging = config.Logging()
        self.load: Callable[[], config.Config]

    def opt_port(self, port: str) -> None:
        """Where to listen: a number, for all interfaces, or a Twisted endpoint. May be given again. [default: 33000]."""
        try:
            self.listen.append(values.parse_listener(port))
        except ValueError as problem:
            raise usage.UsageError(f"--port {problem}") from None

    opt_p = opt_port

    def opt_admin_port(self, port: str) -> None:
        """Where to serve /metrics and /readyz: a number, for this machine alone, or a Twisted endpoint. [default: nowhere]."""
        try:
            self.admin = config.parse_admin_port(port)
        except ValueError as problem:
            raise usage.UsageError(f"--admin-port {problem}") from None

    def opt_config(self, file: str) -> None:
        """The configuration file. [default: the one that LLMPROXY_CONFIG names, if any]."""
        # A daemon changes its directory, and reads the file again on a reload.
        self.file = str(Path(file).absolute())

    opt_c = opt_config

    def opt_drain(self, seconds: str) -> None:
        """Seconds that requests in flight have to end when the proxy is stopped. [default: 30]."""
        try:
            self.drain = values.parse_seconds(seconds)
        except ValueError as problem:
            raise usage.UsageError(f"--drain {problem}") from None

    def opt_version(self) -> None:
        """Print the version of llmproxy, and exit."""
        print(f"llmproxy {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """Read the whole configuration now: what is wrong with it must show before anything daemonizes."""
        if self["demo"] and self.file is not None:
            raise usage.UsageError("--demo serves a configuration of its own; it takes no --config.")
        if self.file is None and os.environ.get(config.FILE_VARIABLE, "").strip():
            self.opt_config(os.environ[config.FILE_VARIABLE].strip())
        for name, choices in (("log-format", logs.FORMATS), ("log-level", logs.LEVELS)):
            if self[name] is not None and self[name] not in choices:
                raise usage.UsageError(f"--{name} is one of {', '.join(choices)}, not {self[name]!r}.")
        self.load = lambda: self.applied_to(config.load(os.environ, self.file))
        self.logging = self._logging(self.logging)
        try:
            if self["demo"]:
                self.listen = self.listen or [f"tcp:{config.load_port(os.environ)}"]
            else:
                self.logging = self.load().logging
        except config.ConfigError as error:
            hint = (
                ""
                if self.file or self["demo"]
                else "\nA configuration file, with --config, can say all of it."
            )
            raise usage.UsageError(f"{error}{hint}") from None
        engine_reactor.install()

    def applied_to(self, read: config.Config) -> config.Config:
        """A configuration with what the command line says in the place of what it says itself."""
        return attrs.evolve(read, admin=self.admin or read.admin, logging=self._logging(read.logging))

    def _logging(self, read: config.Logging) -> config.Logging:
        return attrs.evolve(
            read, format=self["log-format"] or read.format, level=self["log-level"] or read.level
        )


def makeService(options: Options) -> IService:
    """Make the service that the options ask for."""
    # Not before now: importing the reactor installs one, and it should be ours.
    from twisted.internet import reactor

    from llmproxy.demo_service import DemoService
    from llmproxy.service import ProxyService

    made: Any = reactor
    log = logs.open_log(options.parent, made, options.logging.format, options.logging.level)
    if options["demo"]:
        return DemoService(made, options.listen, options.drain, log=log, applied=options.applied_to)
    return ProxyService(
        made, options.listen or None, options.load, options.drain, bool(options["access-log"]), log
    )
