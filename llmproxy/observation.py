"""What is looked at while an exchange passes, for its record: copies only, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

import attrs

from llmproxy.asked_model import Known, model_of_path, model_of_target
from llmproxy.asked_model.glance import Glance, glanced
from llmproxy.asked_model.setup import SetupGlance
from llmproxy.config import Family
from llmproxy.deadline import Clock
from llmproxy.exchange import Ending, Exchange, Observer
from llmproxy.frame_headers import DataSeen
from llmproxy.http.fields import Fields
from llmproxy.usage import Reading, is_live, tap_for, tap_for_socket

# Ids that clients give their sessions and agents: Claude Code's. A setting lists more.
SESSION_HEADERS = (
    b"x-claude-code-session-id",
    b"x-claude-code-agent-id",
    b"x-claude-code-parent-agent-id",
)
_LONGEST_LABEL = 256  # characters

Look = Callable[[bytes], None]


def labels_of(headers: Fields, names: Iterable[bytes]) -> Mapping[str, str]:
    """The values of the headers whose names are given, in lower case."""
    return {
        name.decode("ascii"): values[0].decode("latin-1")[:_LONGEST_LABEL]
        for name in names
        if (values := headers.values_of(name))
    }


def look_at_request(exchange: Exchange, family: Family, request: Any, target: bytes) -> None:
    """Note the model that a request asks for, now or when its body passes.

    :param family: of the upstream.
    :param request: an ``IStreamedRequest``.
    :param target: what stands behind the upstream's prefix.
    """
    if request.websocket:
        named = model_of_target(family, target)
        exchange.asked_model = named.model if isinstance(named, Known) else None
        return
    # No query's counts, where there can be a body.
    exchange.asked_model = _in_path(family, target.partition(b"?")[0])
    body = request.body
    if body is None or exchange.asked_model is not None:
        return
    fields = request.requestHeaders.by_name()
    if b"content-encoding" in fields or b"json" not in b"".join(fields.get(b"content-type", ())):
        return
    whole = body.whole()
    if whole is None:
        body.watch(partial(_look_at_body, exchange, Glance()))
    else:
        exchange.asked_model = glanced(whole)


def look_at_response(exchange: Exchange, family: Family, response: Any, clock: Clock) -> Look | None:
    """Note what the response's headers say, and choose a tap for its body.

    :return: is to be fed what passes of the body.
    """
    exchange.reused = response.reused
    get = response.headers.by_name().get
    # OpenAI's name for it and Anthropic's; an upstream llmproxy's own counts where there is no other.
    ids = get(b"x-request-id") or get(b"request-id") or get(b"x-llmproxy-request-id")
    if ids:
        exchange.upstream_request_id = ids[0].decode("latin-1")[:_LONGEST_LABEL]
    if exchange.method != "POST":
        return None  # what GET shows was made, and paid for, before
    tap = exchange.tap = tap_for(
        family,
        exchange.path.encode("ascii"),
        b", ".join(get(b"content-type", ())),
        b", ".join(get(b"content-encoding", ())),
        partial(_note_first_token, exchange, clock),
    )
    return None if tap is None else tap.feed


def look_at_session(
    exchange: Exchange, family: Family, extensions: bytes, clock: Clock, over: Observer
) -> tuple[Look, Look] | None:
    """Choose a tap for what the upstream sends on a WebSocket, and note the model that the client asks for there.

    :param family: of the upstream.
    :param extensions: that both sides agreed to.
    :param over: told of each turn when it is over. To end those that have not ended, the exchange's tap is to be closed.
    :return: is to be fed what passes of the upstream's side, and of the client's.
    """
    path = exchange.path.encode("ascii")
    turns = _Turns(exchange, clock, over, SetupGlance(extensions) if is_live(family, path) else None)
    tap = exchange.tap = tap_for_socket(family, path, extensions, turns)
    return None if tap is None else (tap.feed, turns.heard)


@attrs.define
class _Turn:
    """A turn that runs; times are those of :class:`~llmproxy.exchange.Exchange`.

    :ivar started: when the client sent the last of a message before the turn began. Where several run at a time, that may have
        been for another one: its times are then no longer than they were, and may be shorter.
    """

    started: float
    first_byte: float
    first_token: float | None = None
    duration: float | None = None


class _Turns:
    """Makes a record of each turn of a session.

    :param exchange: of the WebSocket.
    :param setup: looks for the model in what the client sends.
    """

    def __init__(
        self, exchange: Exchange, clock: Clock, over: Observer, setup: SetupGlance | None = None
    ) -> None:
        self._exchange = exchange
        self._clock = clock
        self._over = over
        self._setup = setup
        self._heard = exchange.started
        self._data_seen = DataSeen()

    def heard(self, data: bytes) -> None:
        """The client sent something: the last that is of a message, and no ping or pong, is what the next turn answers."""
        if self._data_seen.feed(data):
            self._heard = self._clock.seconds()
        if self._setup is not None:
            self._look_at_setup(self._setup, data)

    def _look_at_setup(self, setup: SetupGlance, data: bytes) -> None:
        setup.feed(data)
        if setup.over:
            self._setup = None
            self._exchange.asked_model = setup.model or self._exchange.asked_model

    def begin(self) -> _Turn:
        """See :class:`~llmproxy.usage.Turns`."""
        return _Turn(self._heard, self._clock.seconds() - self._heard)

    def first_token(self, turn: _Turn) -> None:
        """See :class:`~llmproxy.usage.Turns`."""
        turn.first_token = self._clock.seconds() - turn.started

    def stop(self, turn: _Turn) -> None:
        """See :class:`~llmproxy.usage.Turns`."""
        turn.duration = self._clock.seconds() - turn.started

    def end(self, turn: _Turn, reading: Reading) -> None:
        """See :class:`~llmproxy.usage.Turns`."""
        if turn.duration is None:
            self.stop(turn)
        socket = self._exchange
        self._over(
            Exchange(
                client=socket.client,
                upstream=socket.upstream,
                method=socket.method,
                path=socket.path,
                started=turn.started,
                begun_ns=socket.begun_ns + round((turn.started - socket.started) * 1e9),
                status=socket.status,
                asked_model=socket.asked_model,
                first_byte=turn.first_byte,
                first_token=turn.first_token,
                duration=turn.duration,
                socket=socket.id,
                labels=socket.labels,
                ending=socket.ending or Ending.COMPLETED,
                reading=reading,
            )
        )


def _look_at_body(exchange: Exchange, glance: Glance, data: bytes) -> None:
    glance.feed(data)
    exchange.asked_model = glance.model


@lru_cache(512)  # a few paths are asked for, mostly; the others have ids in them
def _in_path(family: Family, path: bytes) -> str | None:
    named = model_of_path(family, path)
    return named.model if isinstance(named, Known) else None


def _note_first_token(exchange: Exchange, clock: Clock) -> None:
    exchange.first_token = clock.seconds() - exchange.started
