"""A glance at the model that a session of Gemini's Live API asks for, for the record only.

Its upstream names no model; the client's first message does, the setup, and no later one may (https://ai.google.dev/api/live).
That one message is read on a copy, and nothing behind it. What a client *may* ask for is read by
:class:`~llmproxy.asked_model.session.SessionGuard`.
"""

from __future__ import annotations

from llmproxy.asked_model.answer import name_of_resource
from llmproxy.frames import FrameError, FrameReader, Kind
from llmproxy.usage.fields import part, text
from llmproxy.usage.json_text import document

_LONGEST = 2**20  # bytes: instructions and tools take some kilobytes


class SetupGlance:
    """Looks at what a client sends on a WebSocket, until its first message was whole.

    :param extensions: the ``Sec-WebSocket-Extensions`` of the 101 answer; see :class:`llmproxy.frames.FrameReader`.
    :ivar model: the model that was named, as it is called in paths and in lists of prices; ``None`` where none is known.
    :ivar over: nothing more is to be learned.
    """

    __slots__ = ("_frames", "model", "over")

    def __init__(self, extensions: bytes) -> None:
        self.model: str | None = None
        self.over = False
        try:
            self._frames = FrameReader(extensions, from_client=True, limit=_LONGEST)
        except FrameError:
            self.over = True

    def feed(self, data: bytes) -> None:
        """Look at the next bytes, unless it is over."""
        if self.over:
            return
        try:
            for message in self._frames.feed(data):
                if message.kind is not Kind.CONTROL:
                    self._take(message.data)
                    break
        except FrameError:
            self.over = True
        self.over = self.over or self._frames.closed

    def _take(self, message: bytes) -> None:
        self.over = True
        name = text(part(document(message).get("setup")).get("model"))
        if name is not None:
            self.model = name_of_resource(name) or None
