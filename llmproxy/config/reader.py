"""The whole configuration, from its sources: the environment, and a file where one is named."""

from __future__ import annotations

from collections.abc import Mapping

from llmproxy.config import environment
from llmproxy.config.model import Config, ConfigError
from llmproxy.config.partial import Partial, together
from llmproxy.config.problems import Problems

FILE_VARIABLE = "LLMPROXY_CONFIG"


def load(environ: Mapping[str, str], path: str | None = None) -> Config:
    """Read the configuration; called again, it reads everything again.

    :param environ: names and values, usually ``os.environ``.
    :param path: the configuration file; without it, the one that ``LLMPROXY_CONFIG`` names, if it is set.
    :raise ConfigError: naming everything that is missing or malformed, in either source.
    """
    problems = Problems()
    path = _named(environ, path)
    from_environment = environment.read(environ, problems, alone=path is None)
    from_file = Partial() if path is None else _read(path, environ, problems)
    if from_file is None:
        raise ConfigError(problems.sentences)
    config = together(from_file, from_environment, problems)
    if problems.sentences:
        raise ConfigError(problems.sentences)
    return config


def load_ledger(environ: Mapping[str, str], path: str | None = None) -> str:
    """Read only where the ledger is: what else a proxy needs may be missing or malformed.

    :param environ: as for :func:`load`, and so is ``path``.
    :return: its URL, of an SQLite file with an absolute path; or ``none``.
    :raise ConfigError: naming what is wrong with that setting, or why the file cannot be read.
    """
    problems = Problems()
    path = _named(environ, path)
    url = environment.read_ledger(environ, problems)
    if path is not None:
        from llmproxy.config import file

        url = file.read_ledger(path, problems) or url
    if problems.sentences:
        raise ConfigError(problems.sentences)
    return url


def _named(environ: Mapping[str, str], path: str | None) -> str | None:
    """The name of the configuration file."""
    if path is not None or FILE_VARIABLE not in environ:
        return path
    path = environ[FILE_VARIABLE].strip()
    if not path:
        raise ConfigError([f"{FILE_VARIABLE} is empty."])
    return path


def _read(path: str, environ: Mapping[str, str], problems: Problems) -> Partial | None:
    # Not before a file is named: what checks it, pydantic for the most part, takes 0.1 s and 8 MB. A proxy that looks up prices
    # has pydantic anyway; one that records nothing need not, nor a command that reads no file.
    from llmproxy.config import file

    return file.read(path, environ, problems)
