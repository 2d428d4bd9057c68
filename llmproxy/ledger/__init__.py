"""The ledger: a row in a database for each exchange, kept for as long as the operator wants it.

A :class:`Ledger`, made by :func:`open_ledger`, is told of exchanges and writes them off the reactor's thread; :class:`Ledgers`
are those of a process, over its reloads; :mod:`~llmproxy.ledger.report` adds up what they wrote. What a row holds is said in
:mod:`~llmproxy.ledger.row` and :mod:`~llmproxy.ledger.schema`, and how SQLite and PostgreSQL differ in
:mod:`~llmproxy.ledger.database`.
"""

from llmproxy.ledger.database import Database, parse_ledger
from llmproxy.ledger.succession import Ledgers
from llmproxy.ledger.writer import DEFAULT_MAX_WAITING, Ledger, open_ledger

__all__ = ["DEFAULT_MAX_WAITING", "Database", "Ledger", "Ledgers", "open_ledger", "parse_ledger"]
