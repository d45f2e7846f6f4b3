"""The TCP connections that llama.cpp has opened in this process: whose they are, how they fare.

llama.cpp sets no time limit and notices no peer that vanished without a word. Its sockets are found
by their addresses, and the limits set on them from outside.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import Any

Address = tuple[str, int]  # IPv4, as llama.cpp has no other, and port

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # s
UNACKNOWLEDGED_MS = 120_000
SILENCE_S = 600  # longer than any batch takes, short of for ever


def connections() -> list[Any]:
    """psutil's description of every connection and listening socket of this process."""
    import psutil

    return list(psutil.Process().net_connections("tcp4"))


def is_connected(peer: Address) -> bool:
    """Whether there is a connection that neither side has closed."""
    return any(c.raddr == peer and c.status == "ESTABLISHED" for c in connections())


def limit_waits(peer: Address, *, silence_s: int | None = None) -> None:
    """A peer that vanished is noticed within half a minute, one that only waits after `silence_s`.

    llama.cpp then takes the connection for lost. Done to every connection with that peer.
    """
    for connection in connections():
        if connection.raddr != peer:
            continue
        with socket.socket(fileno=os.dup(connection.fd)) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if (option := getattr(socket, name, None)) is not None:
                    ours.setsockopt(socket.IPPROTO_TCP, option, value)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
            if silence_s is not None and os.name == "posix":
                for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", silence_s, 0))


def clients(port: int) -> dict[Address, int]:
    """Who is connected to a port that this process listens on, with the descriptor of each."""
    return {
        (c.raddr.ip, c.raddr.port): c.fd
        for c in connections()
        if c.laddr.port == port and c.status not in ("LISTEN", "NONE")
    }


def is_listening(port: int) -> bool:
    """Whether this process takes connections there."""
    return any(c.laddr.port == port and c.status == "LISTEN" for c in connections())


def hang_up(descriptor: int) -> None:
    """Ends a connection under llama.cpp, which notices and closes it."""
    with socket.socket(fileno=os.dup(descriptor)) as ours, suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
