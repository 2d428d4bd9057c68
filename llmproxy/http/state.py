"""The states of a connection to an upstream."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a connection stands."""

    IDLE = "idle"
    WAITING = "waiting for a response"
    RECEIVING = "receiving a response"
    TUNNEL = "a tunnel"
    CLOSED = "closed"
