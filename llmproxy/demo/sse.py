"""Server-sent events: writing one (WHATWG HTML, section 9.2), and sending a list of them at a steady pace."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.http_headers import Headers
from zope.interface import implementer

from llmproxy.demo.fields import Json


def encode(body: Json) -> bytes:
    """Write `body` as JSON in UTF-8; a lone surrogate, which JSON can carry and UTF-8 cannot, becomes `?`."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(body: Json, name: str | None = None) -> bytes:
    """Write one event that carries `body`, with an `event:` line when it has a `name`."""
    head = b"" if name is None else b"event: %s\n" % name.encode("ascii")
    return b"%sdata: %s\n\n" % (head, encode(body))


class Request(Protocol):
    """What the demo uses of twisted.web's request, with the types that Twisted leaves out."""

    method: bytes
    postpath: Sequence[bytes]
    requestHeaders: Headers
    content: IO[bytes]
    setResponseCode: Callable[[int], None]
    setHeader: Callable[[str, str], None]
    write: Callable[[bytes], None]
    finish: Callable[[], None]
    notifyFinish: Callable[[], Deferred[None]]
    registerProducer: Callable[[IPushProducer, bool], None]
    unregisterProducer: Callable[[], None]


@implementer(IPushProducer)
class Pacer:
    """Sends `events` as the body of `request`: one at once, and each other `interval` seconds after the last.

    A client that reads slowly pauses the pace, with no rush afterwards, and one that leaves ends it.
    """

    def __init__(
        self, request: Request, events: Iterable[bytes], clock: IReactorTime, interval: float
    ) -> None:
        self._request = request
        self._left = deque(events)
        self._clock = clock
        self._interval = interval
        self._paused = False
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Send the first event, and the others in their time."""
        self._request.notifyFinish().addErrback(lambda _: self.stopProducing())
        # Before the first write: a write that fills the transport pauses only a producer that is registered.
        self._request.registerProducer(self, True)
        self._send()

    def pauseProducing(self) -> None:
        """Hold the pace: the client's connection is full."""
        self._paused = True
        self._cancel()

    def resumeProducing(self) -> None:
        """Take the pace up again."""
        self._paused = False
        self._schedule()

    def stopProducing(self) -> None:
        """Forget what is left: the client has gone."""
        self._left.clear()
        self._cancel()

    def _send(self) -> None:
        self._timer = None
        self._request.write(self._left.popleft())
        if self._left:
            self._schedule()
        else:
            self._request.unregisterProducer()
            self._request.finish()

    def _schedule(self) -> None:
        # The write in _send may pause us, and resume us, before it returns.
        if self._left and self._timer is None and not self._paused:
            self._timer = self._clock.callLater(self._interval, self._send)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
