"""Which of an upstream's keys a request takes: they are used in turn, and one that the upstream refused rests for a while.

Pure: time comes from the clock that is passed in, and nothing waits. Whether a request can be sent again with another key, and
what becomes of the answer that is not passed on, is decided by who forwards it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timezone
from email.utils import parsedate_to_datetime

import attrs

# Answers that say something against the key, which another key may not meet (RFC 9110 sections 15.5.2 and 15.5.4, RFC 6585
# section 4). All others are about the request or the upstream.
REFUSALS = frozenset({401, 403, 429})

_LIMITED = 429
# Seconds. A key that is revoked or unpaid stays so until a person acts, so a short rest would spend a request on it again and
# again; but a 403 may also be about one model that this key may not use, so a long one would take a good key from all others.
_REFUSED_REST = 300.0
# Seconds, where a 429 does not say how long. Limits count tokens and requests a minute, and free up gradually.
_LIMITED_REST = 10.0
# Seconds. The bound on what a 429 asks for: a limit may be raised, and a wrong header must not take a key out for good.
_LONGEST_REST = 3600.0
# Delay-seconds (RFC 9110 section 10.2.3); with a fraction, which is not in the grammar but is sent, and SDKs take it.
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


@attrs.frozen
class Key:
    """One of an upstream's keys.

    :ivar number: its place among them, from 1: what logs call it.
    :ivar secret: the key itself.
    """

    number: int
    secret: str = attrs.field(repr=False)


class Keyring:
    """An upstream's keys, and until when each of them rests.

    :param keys: in the operator's order; one that is given twice counts once. Empty for an upstream that needs none.
    :ivar keys: the same.
    :param now: tells the time in seconds from any start, such as a reactor's ``seconds``.
    :param wall_clock: tells the Unix time in seconds, against which a ``Retry-After`` that is a date is held.
    """

    def __init__(
        self,
        keys: Sequence[str],
        now: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = tuple(Key(number, secret) for number, secret in enumerate(dict.fromkeys(keys), 1))
        self._now = now
        self._wall_clock = wall_clock
        self._next = 0  # the place of the key whose turn it is
        self._wakes: dict[str, float] = {}  # by secret, since numbers change with the configuration

    def choose(self, tried: Collection[Key] = ()) -> Key | None:
        """Take the key whose turn it is, of those that are awake.

        Where all rest, a request's first attempt gets the one that wakes first: so there is an answer of the upstream's own to
        pass on, and a key that was put to rest for no good reason is soon found out.

        :param tried: the keys with which the same request was refused already; they are not taken again.
        :return: ``None`` where there is no key left to try.
        """
        if len(self.keys) == 1 and not tried:
            return self.keys[0]
        now = self._now()
        for place in range(self._next, self._next + len(self.keys)):
            key = self.keys[place % len(self.keys)]
            if self._wake_time(key) <= now and key not in tried:
                self._next = key.number % len(self.keys)  # numbers begin at 1, places at 0
                return key
        if tried or not self.keys:
            return None
        return min(self.keys, key=self._wake_time)

    def has_another(self, tried: Collection[Key]) -> bool:
        """Tell whether a key is awake with which a request was not tried yet."""
        now = self._now()
        return any(self._wake_time(key) <= now and key not in tried for key in self.keys)

    def report(
        self,
        key: Key,
        status: int,
        retry_after: str | bytes | None = None,
        retry_after_ms: str | bytes | None = None,
    ) -> float:
        """Put a key to rest where an answer speaks against it; other answers change nothing.

        :param status: of the upstream's answer.
        :param retry_after: the value of its ``Retry-After`` header: seconds or a date (RFC 9110 section 10.2.3).
        :param retry_after_ms: that of ``retry-after-ms``, in milliseconds: not in any RFC, but sent by some providers, and
            preferred by their SDKs as the more exact.
        :return: for how many seconds the answer puts the key to rest; 0 where it does not.
        """
        if status not in REFUSALS:
            return 0.0
        rest = self._asked_rest(retry_after, retry_after_ms) if status == _LIMITED else _REFUSED_REST
        # Answers to requests that went out together come in any order: the longest rest of them counts.
        self._wakes[key.secret] = max(self._wake_time(key), self._now() + rest)
        return rest

    def adopt(self, previous: Keyring) -> None:
        """Let keys rest on that rested in the keyring which this one replaces, and ran by the same clock."""
        for key in self.keys:
            if key.secret in previous._wakes:
                self._wakes[key.secret] = previous._wakes[key.secret]

    def __repr__(self) -> str:
        now = self._now()
        resting = [key.number for key in self.keys if self._wake_time(key) > now]
        return f"<Keyring of {len(self.keys)}, resting: {resting}>"

    def _wake_time(self, key: Key) -> float:
        return self._wakes.get(key.secret, float("-inf"))

    def _asked_rest(self, retry_after: str | bytes | None, retry_after_ms: str | bytes | None) -> float:
        milliseconds = _number(_text(retry_after_ms))
        asked = self._delay(_text(retry_after)) if milliseconds is None else milliseconds / 1000
        return _LIMITED_REST if asked is None else min(asked, _LONGEST_REST)

    def _delay(self, retry_after: str) -> float | None:
        """The seconds from now that a ``Retry-After`` asks for, or ``None`` where it cannot be read."""
        seconds = _number(retry_after)
        if seconds is not None:
            return seconds
        try:
            date = parsedate_to_datetime(retry_after)
        except (ValueError, TypeError, OverflowError):
            return None
        if date.tzinfo is None:
            date = date.replace(
                tzinfo=timezone.utc
            )  # an asctime-date, which has no zone, is in UTC (section 5.6.7)
        return max(0.0, date.timestamp() - self._wall_clock())


def _text(value: str | bytes | None) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value or ""
    return text.strip()


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None
