"""What is asked of sockets themselves, past the event loop's transports, and how many there may be."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

NO_LINGER = struct.pack("ii", 1, 0)  # with this, a close is a reset
_OTHERS = 64  # descriptors that are for neither clients nor upstreams: files, listeners, the event loop


def descriptor_of(transport: Any) -> int:
    """The file descriptor of a connection; -1 where it has none, or none any more."""
    return int(transport.fileno()) if hasattr(transport, "fileno") else -1


def unsent(descriptor: int) -> int | None:
    """Bytes that were written to a socket and not acknowledged by its peer's kernel; ``None`` where that is not told."""
    if descriptor < 0 or sys.platform != "linux":
        return None
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return None
    return int(count)


def places() -> int:
    """How many clients there may be, so that there is a descriptor for an upstream's connection for each of them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (soft - min(_OTHERS, soft // 2)) // 2)


def reset(sock: socket.socket) -> None:
    """Close a connection so that its peer can tell that from an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    sock.close()


def read_rest(descriptor: int, most: int) -> Iterator[bytes]:
    """Read what a peer had sent, up to its end or a number of bytes; nothing is waited for."""
    while most > 0:
        try:
            data = os.read(descriptor, min(most, 64 * 1024))
        except OSError:  # nothing more is there, or the connection is known to be reset
            return
        if not data:
            return
        most -= len(data)
        yield data


def address_of(transport: Any, which: str) -> IAddress:
    """The address of one end of a connection, as Twisted writes it."""
    name = None if transport is None else transport.get_extra_info(which)
    if not isinstance(name, tuple):
        return UNIXAddress(name or None)
    return (IPv6Address if len(name) == 4 else IPv4Address)("TCP", *name)
