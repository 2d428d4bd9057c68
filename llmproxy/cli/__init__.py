"""The ``llmproxy`` command: what an operator does beside running the proxy, which is ``twistd llmproxy``.

:mod:`~llmproxy.cli.main` is where it begins; each command has a module of its own.
"""
