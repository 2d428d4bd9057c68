"""What all commands share: ``--config`` at any place of the line, and options that may follow their arguments."""

from __future__ import annotations

import getopt
import sys
from collections.abc import Mapping, Sequence

from twisted.python import usage

from llmproxy import __version__
from llmproxy.config import FILE_VARIABLE


class CommandError(Exception):
    """What ends a command with status 1; its text is for the operator, and shows no secret."""


class Command(usage.Options):
    """A command of the line, or a group of them.

    A command has :meth:`run`; a group has ``subCommands``, of which one must be named.

    :cvar name: the word that names it.
    :cvar argument: what its argument is called in the help; empty where it takes none.
    :ivar given: that argument.
    """

    optParameters = [["config", "c", None, f"The configuration file. [default: ${FILE_VARIABLE}]"]]
    subCommands: Sequence[tuple[str, None, type[Command], str]]
    name = "llmproxy"
    argument = ""
    given = ""
    parent: Command | None
    subOptions: Command

    @property
    def chosen(self) -> Command:
        """The innermost command that was named."""
        return self.subOptions.chosen if hasattr(self, "subOptions") else self

    @property
    def line(self) -> str:
        """The words that name this command."""
        return self.name if self.parent is None else f"{self.parent.line} {self.name}"

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the words of the line; behind a command's arguments, too, options are options.

        :raise usage.UsageError: where they cannot be understood.
        """
        words = list(sys.argv[1:] if options is None else options)
        if self.parent is None and not all(map(_is_text, words)):
            raise usage.UsageError(
                f"it holds bytes that are no text in {sys.getfilesystemencoding().upper()}"
            )
        super().parseOptions(words if self._is_group else self._options_first(words))

    def parseArgs(self, *arguments: str) -> None:
        """Take the argument."""
        if self._is_group:
            raise usage.UsageError(
                f"one of these must follow: {', '.join(row[0] for row in self.subCommands)}"
            )
        if len(arguments) != bool(self.argument):
            raise usage.UsageError(f"it takes {f'one {self.argument}' if self.argument else 'no arguments'}")
        self.given = "".join(arguments)

    opt_h = usage.Options.opt_help

    def opt_version(self) -> None:
        """Print the version of llmproxy, and exit."""
        print(f"llmproxy {__version__}")
        sys.exit(0)

    def getSynopsis(self) -> str:
        """The first line of the help."""
        argument = "COMMAND" if self._is_group else self.argument
        return " ".join(filter(None, ["Usage:", self.line, argument, "[options]"]))

    def config_file(self, environ: Mapping[str, str]) -> str | None:
        """The configuration file: of the innermost ``--config``, else of the environment; ``None`` where none is named.

        :raise CommandError: where it has no name.
        """
        command: Command | None = self
        while command is not None and command["config"] is None:
            command = command.parent
        file = environ.get(FILE_VARIABLE) if command is None else str(command["config"])
        if file is not None and not file.strip():
            raise CommandError(f"{FILE_VARIABLE if command is None else '--config'} is empty.")
        return file

    def run(self, environ: Mapping[str, str]) -> int:
        """Do it.

        :return: the process's exit status.
        :raise CommandError: where it cannot be done.
        """
        raise NotImplementedError

    @property
    def _is_group(self) -> bool:
        return hasattr(self, "subCommands")

    def _options_first(self, words: list[str]) -> list[str]:
        # usage.Options reads by getopt, which takes the first argument for the end of the options.
        try:
            options, arguments = getopt.gnu_getopt(words, self.shortOpt, self.longOpt)
        except getopt.error as error:
            raise usage.UsageError(str(error)) from None
        ordered: list[str] = []
        for option, value in options:
            takes_value = f"{option[2:]}=" in self.longOpt or f"{option[1:]}:" in self.shortOpt
            ordered += [option, value] if takes_value else [option]
        return [*ordered, "--", *arguments]


def _is_text(word: str) -> bool:
    # Python keeps the other bytes of a command line as surrogates (PEP 383), which nothing can be written with.
    return not any("\ud800" <= character <= "\udfff" for character in word)
