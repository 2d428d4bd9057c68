"""The turns of a WebSocket: who is told of them."""

from __future__ import annotations

from typing import Protocol, TypeVar

from llmproxy.usage.model import Reading

T = TypeVar("T")


class Turns(Protocol[T]):
    """Who is told of the turns of a socket, and gives each what it is to be known by."""

    def begin(self) -> T:
        """A turn has begun."""

    def first_token(self, turn: T, /) -> None:
        """A first piece of what the model makes for a turn has passed."""

    def stop(self, turn: T, /) -> None:
        """The model is done with a turn, of which something may still be told: its time is up, and it is not over."""

    def end(self, turn: T, reading: Reading, /) -> None:
        """A turn is over; where it was not stopped before, so is its time."""
