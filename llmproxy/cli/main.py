"""Where the ``llmproxy`` command begins, and how it ends.

Its status is 0, 1 where it failed, 2 for a line that is not understood, or 130 where the operator broke it off, as in shells.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from twisted.python import usage

from llmproxy.cli.check import Check
from llmproxy.cli.client import Clients
from llmproxy.cli.command import Command, CommandError
from llmproxy.cli.env import Env
from llmproxy.cli.usage import Usage
from llmproxy.config import ConfigError


class Options(Command):
    """The whole command line."""

    longdesc = "Looks after the configuration of a proxy. The proxy itself is run by `twistd llmproxy`."
    subCommands = [
        ("client", None, Clients, "Make, list, rotate and revoke the tokens of clients."),
        ("check", None, Check, "Say whether the configuration can be used, and what it comes to."),
        ("env", None, Env, "Print the lines that point a tool at the proxy."),
        ("usage", None, Usage, "Add up what was used and what it cost, out of the ledger."),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a command line says.

    :param arguments: its words, without the name of the program; those of this process where there are none.
    :return: the exit status.
    """
    options = Options()
    if sys.stdout is None:  # closed; what it would have shown only once, such as a token, would be lost
        print("llmproxy: There is no standard output to write to.", file=sys.stderr)
        return 1
    try:
        options.parseOptions(arguments)
        status = options.chosen.run(os.environ)
        sys.stdout.flush()
    except usage.UsageError as error:
        problem = str(error).rstrip(".")
        print(f"{options.chosen.line}: {problem}; see {options.chosen.line} --help", file=sys.stderr)
        return 2
    except (CommandError, ConfigError) as error:
        print(f"{options.chosen.line}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of what is printed: commands tell of files by themselves
        if not isinstance(error, BrokenPipeError):  # then who read this has enough
            print(f"{options.chosen.line}: The output cannot be written: {error.strerror}.", file=sys.stderr)
        # What is left in the buffer must not fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status
