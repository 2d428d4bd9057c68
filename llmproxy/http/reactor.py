"""The reactor that the engine is made for: Twisted's asyncio reactor on a uvloop loop."""

from __future__ import annotations

import asyncio
import sys


def install() -> bool:
    """Install it, unless a reactor is installed already or this platform has no uvloop.

    :return: whether it was installed.
    """
    if "twisted.internet.reactor" in sys.modules:
        return False  # twistd --reactor=..., or a test runner: its choice counts
    try:
        import uvloop
    except ImportError:
        return False
    from twisted.internet import asyncioreactor

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)
    return True
