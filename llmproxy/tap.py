"""What twistd sees: the options of ``twistd llmproxy``, and the service they ask for. No logic."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from llmproxy import __version__, config, values
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

    def __init__(self) -> None:
        super().__init__()
        self.listen: list[str] = []
        self.file: str | None = None
        self.drain = config.DEFAULT_DRAIN
        self.load: Callable[[], config.Config]

    def opt_port(self, port: str) -> None:
        """Where to listen: a number, for all interfaces, or a Twisted endpoint. May be given again. [default: 33000]."""
        try:
            self.listen.append(values.parse_listener(port))
        except ValueError as problem:
            raise usage.UsageError(f"--port {problem}") from None

    opt_p = opt_port

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
        self.load = lambda: config.load(os.environ, self.file)
        try:
            listen = [f"tcp:{config.load_port(os.environ)}"] if self["demo"] else self.load().listen
        except config.ConfigError as error:
            raise usage.UsageError(str(error)) from None
        self.listen = self.listen or list(listen)
        engine_reactor.install()


def makeService(options: Options) -> IService:
    """Make the service that the options ask for."""
    # Not before now: importing the reactor installs one, and it should be ours.
    from twisted.internet import reactor

    from llmproxy.demo_service import DemoService
    from llmproxy.service import ProxyService

    made: Any = reactor
    if options["demo"]:
        return DemoService(made, options.listen, options.drain)
    return ProxyService(made, options.listen, options.load, options.drain, bool(options["access-log"]))
