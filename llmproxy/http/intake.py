"""How one knows that a peer goes on taking what it was sent, be it slowly."""

from __future__ import annotations

from typing import Any

from llmproxy.http.sockets import descriptor_of, unsent


class Intake:
    """Asks the kernel whether the peer of a connection has taken any byte since the last look (``TIOCOUTQ``, Linux).

    That a transport lets its producer resume tells less: it waits until megabytes have gone out of the kernel's buffer, for
    which a reader that is slow, and takes something all the time, may need very long.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._left: int | None = None

    def note(self) -> None:
        """Look how much it has still to take."""
        self._left = untaken(self._transport)

    def went_on(self) -> bool:
        """Look again: whether it took any since. Where the kernel does not tell, it did not."""
        before = self._left
        self.note()
        # More is left where it took some and the transport has filled up what the kernel had room for.
        return self._left != before


def untaken(transport: Any) -> int | None:
    """Bytes that a peer's kernel has not taken, of those that ours has; ``None`` where that is not told."""
    return unsent(descriptor_of(transport))
