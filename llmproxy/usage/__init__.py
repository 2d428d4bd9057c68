"""What an answer used, read out of a copy of its bytes as they pass: never changed, held or slowed for it.

:func:`tap_for` chooses a :class:`Tap` for an answer, and :func:`tap_for_socket` for a WebSocket; in the end it tells a
:class:`Reading`, and before that one of each of a WebSocket's turns (:class:`Turns`). What a provider says is read by one room
for each family (:mod:`~llmproxy.usage.openai`, :mod:`~llmproxy.usage.anthropic`, :mod:`~llmproxy.usage.gemini`); how it is cut
into pieces, by :mod:`~llmproxy.usage.sse`, :mod:`~llmproxy.usage.json_body`, :mod:`~llmproxy.usage.json_array`,
:mod:`~llmproxy.usage.framed`, :mod:`~llmproxy.usage.realtime` and :mod:`~llmproxy.usage.live`. Pure: no reactor, no I/O, no
clock.

An answer is worth a tap where it was made for the request: for POST, and for WebSockets. A GET can show an older answer again,
with its usage.
"""

from llmproxy.usage.model import Outcome, Reading, Source, Usage, free
from llmproxy.usage.tap import Tap, is_live, tap_for, tap_for_socket
from llmproxy.usage.turns import Turns

__all__ = [
    "Outcome",
    "Reading",
    "Source",
    "Tap",
    "Turns",
    "Usage",
    "free",
    "is_live",
    "tap_for",
    "tap_for_socket",
]
