"""The run: starts the upstream and llmproxy, has everything measured, and shows the results. ``make bench``.

usage, with all that follows ``python -m bench`` given as BENCH_ARGS:

    make bench
    make bench BENCH_ARGS="--quick"
    make bench BENCH_ARGS="--upstream-port 8099 --other NAME=http://127.0.0.1:8080/v1 --header 'Authorization: Bearer TOKEN'"

Another proxy is started by you, before, and told to use ``http://127.0.0.1:8099`` as its upstream.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from bench import machine, picture
from bench.measure import FULL, QUICK, CannotMeasure, Run
from bench.process import Children, Cores, is_accounted
from bench.report import Report
from bench.targets import DIRECT, OURS, ROOT, CannotStart, Target, start_llmproxy, start_upstream

_ENDING = (signal.SIGINT, signal.SIGTERM)


def options() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure llmproxy beside its upstream, asked directly, and beside other proxies.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="take 40 seconds, not three minutes; the noise is larger"
    )
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="another proxy, by the base URL that an OpenAI SDK would be given; may be given again. Start it before on the "
        "core that is printed, with http://127.0.0.1:PORT of --upstream-port as its upstream",
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="to send to the others; may be given again",
    )
    parser.add_argument(
        "--pid",
        action="append",
        default=[],
        metavar="NAME=PID",
        help="the process of another proxy, for its CPU time",
    )
    parser.add_argument(
        "--upstream-port",
        type=int,
        default=0,
        metavar="PORT",
        help="where the upstream listens; needed with --other",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "bench" / "results",
        help="the folder for last.json and last.png",
    )
    return parser


def others(arguments: argparse.Namespace) -> list[Target]:
    """Read the other proxies from the command line.

    :raises ValueError: with a message that says what is wrong.
    """
    urls = dict(_pair(each, "=", "--other") for each in arguments.other)
    pids = dict(_pair(each, "=", "--pid") for each in arguments.pid)
    headers = [_pair(each, ":", "--header") for each in arguments.header]
    if len(urls) < len(arguments.other) or urls.keys() & {DIRECT, OURS}:
        raise ValueError(f"--other needs a name of its own for each, and neither {DIRECT} nor {OURS}")
    if urls and not arguments.upstream_port:
        raise ValueError(
            "--other needs --upstream-port, the port of 127.0.0.1 that the other proxies use as upstream"
        )
    for name, pid in pids.items():
        if name not in urls or not pid.isdecimal():
            raise ValueError(f"--pid {name}={pid} needs the name of an --other and a number")
    for name, url in urls.items():
        if urlsplit(url).scheme != "http" or not urlsplit(url).hostname:
            raise ValueError(f"--other {name}={url} needs a URL with http:// and a host")
    return [
        Target(name, url, headers, int(pids[name]) if name in pids else None) for name, url in urls.items()
    ]


def run(arguments: argparse.Namespace, more: Sequence[Target]) -> Report:
    """Measure llmproxy, its upstream and the other targets."""
    cores = Cores.choose()
    about = machine.describe()
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    plan = QUICK if arguments.quick else FULL
    print(f"The proxy is on core {cores.proxy}, the load on {cores.load}, the upstream on {cores.upstream}.")
    with Children() as children, tempfile.TemporaryDirectory() as scratch:
        direct, upstream = start_upstream(children, cores, arguments.upstream_port)
        llmproxy = start_llmproxy(children, cores, direct, Path(scratch))
        results = Run(children, cores, plan, upstream, _say).measure([direct, llmproxy, *more])
    return Report(
        date=date,
        plan="quick" if arguments.quick else "full",
        machine=about,
        shared=cores.shared,
        pinned=cores.proxy is not None,
        results=results,
    )


def main() -> int:
    """Do what the command line asks, and return the exit status."""
    parser = options()
    arguments = parser.parse_args()
    try:
        more = others(arguments)
    except ValueError as error:
        parser.error(str(error))
    if not is_accounted():
        print("This system has no /proc: there will be no CPU time and no memory.", file=sys.stderr)
    for number in _ENDING:
        signal.signal(number, _interrupt)
    try:
        report = run(arguments, more)
    except KeyboardInterrupt:
        return 130
    except (CannotMeasure, CannotStart) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    arguments.results.mkdir(parents=True, exist_ok=True)
    report.write(arguments.results / "last.json")
    picture.draw(report, arguments.results / "last.png")
    print(report.table(), *report.notes(), sep="\n\n")
    print(f"\nWritten to {arguments.results}/last.json and last.png.")
    return 0


def _pair(text: str, separator: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not (name and found and value.strip()):
        raise ValueError(f"{option} {name} needs a name, '{separator}' and a value")
    return name.strip(), value.strip()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End with all children stopped, which another Ctrl-C must not cut short."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(what: str) -> None:
    print(f"\r\033[K{what}", end="", flush=True) if sys.stdout.isatty() else print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main())
