"""A transparent, streaming reverse proxy for LLM APIs: a twistd plugin on twisted.web and treq."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("llmproxy")
except PackageNotFoundError:  # a bare checkout: nothing was installed, so no metadata names a version
    __version__ = "0+checkout"

__all__ = ["__version__"]
