"""What the readers of all families share: what they are given, what they keep, and what becomes of it in the end.

A reader knows what a family's answers say, and nothing of how they are cut into pieces: that is for what feeds it
(:mod:`~llmproxy.usage.sse`, :mod:`~llmproxy.usage.json_body`, :mod:`~llmproxy.usage.json_array`,
:mod:`~llmproxy.usage.realtime`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import attrs

from llmproxy.usage.fields import Document, text
from llmproxy.usage.json_text import document, members_at_end
from llmproxy.usage.model import Outcome, Part, Reading, Source, Usage


@attrs.define
class Event:
    """One event of a stream.

    :ivar name: of a server-sent event; empty where it has none.
    :ivar data: JSON, mostly.
    :ivar is_tail: only the end of the data is there.
    """

    name: bytes
    data: bytes
    is_tail: bool = False

    def document(self) -> Document:
        """The object in it, or as much of it as can be told; empty where there is none."""
        return members_at_end(self.data) if self.is_tail else document(self.data)


class Parsed(Event):
    """An event of which the object is there already."""

    def __init__(self, parsed: Document) -> None:
        super().__init__(b"", b"")
        self._parsed = parsed

    def document(self) -> Document:
        """See :class:`Event`."""
        return self._parsed


class Reader(ABC):
    """Reads the answers of one family.

    :ivar first_token: a first piece of what the model makes was seen; in streams only.
    :ivar ended: the family's end of a stream was seen.
    :ivar error: the type of an error that was seen.
    :ivar cut: of the answer only the start and the end are there.
    """

    # Of the class until they are set: one is made for each answer, and of most it learns half of this.
    first_token = False
    ended = False
    error: str | None = None
    cut = False
    model: str | None = None
    response_id: str | None = None
    stop_reason: str | None = None
    service_tier: str | None = None

    @abstractmethod
    def ordinary(self, data: bytes) -> bool:
        """Tell whether nothing in these bytes is worth a closer look, fast.

        :param data: a number of whole events, one of them, or the start or the end of one.
        """

    @abstractmethod
    def event(self, event: Event) -> None:
        """Take an event that is not ordinary."""

    @abstractmethod
    def answer(self, document: Document) -> None:
        """Take the whole answer of a request that asked for no stream, or the members of it that are there."""

    @abstractmethod
    def usage(self) -> Usage | None:
        """What was used as far as is known, ``None`` where nothing was reported."""

    def parts(self) -> Sequence[Part]:
        """The runs of models that it took, where that is more than one."""
        return ()

    def complete(self, whole: bool) -> bool:
        """Tell whether a stream is complete.

        :param whole: the body is.
        """
        return self.ended

    def reading(self, complete: bool, given_up: Source | None = None) -> Reading:
        """Sum up.

        :param complete: nothing of the answer is missing.
        :param given_up: why its usage is not known, where that is decided.
        """
        usage = None if given_up else self.usage()
        outcome: Outcome = "complete" if complete else "cut"
        return Reading(
            model=self.model,
            response_id=self.response_id,
            stop_reason=self.stop_reason,
            service_tier=self.service_tier,
            usage=usage,
            source=given_up or ("absent" if usage is None else "reported"),
            outcome="failed" if self.error else outcome,
            error=self.error,
            parts=() if usage is None else self.parts(),
        )


class Body(ABC):
    """Takes an answer's content, piece by piece, apart for a reader.

    :ivar tells_first_token: it comes while it is made, so that it tells when a first token was.
    """

    __slots__ = ()

    tells_first_token = True

    @property
    def first_token(self) -> bool:
        """A first piece of what the model makes has passed."""
        return False

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Take the next bytes."""

    @abstractmethod
    def close(self, whole: bool) -> Reading:
        """Take note that nothing more comes.

        :param whole: nothing is missing, by the framing of the message.
        """


class MessageBody(Body):
    """The messages of a socket: it is fed one whole message at a time."""

    @abstractmethod
    def skip(self, start: bytes) -> None:
        """Take note of a message that is too large to be read.

        :param start: of it, some hundred bytes.
        """


class Stream(Body):
    """An answer that comes while it is made."""

    def __init__(self, make_reader: Callable[[], Reader]) -> None:
        self.reader = make_reader()

    @property
    def first_token(self) -> bool:
        """See :class:`Body`."""
        return self.reader.first_token


def error_type(error: object, *names: str) -> str | None:
    """The type of an error by the first of its fields that tells, ``None`` where there is no error.

    :param error: the value of a field for errors: an object, mostly; ``None`` and an empty one are none.
    """
    if not error:
        return None
    if isinstance(error, dict):
        for name in names:
            value = error.get(name)
            found = str(value) if type(value) is int and abs(value) < 10**6 else text(value)
            if found is not None:
                return found
    return "error"
