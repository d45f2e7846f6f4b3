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
            notice_loss(ours)
            if silence_s is not None and os.name == "posix":
                for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", silence_s, 0))


def notice_loss(connection: socket.socket) -> None:
    """A peer that vanished without a word ends the connection within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


def listening_ports() -> list[int]:
    """The ports on which this process takes connections."""
    return [c.laddr.port for c in connections() if c.status == "LISTEN"]


def hang_up(peer: Address) -> None:
    """Ends every connection with that peer under llama.cpp, which notices."""
    for connection in connections():
        if connection.raddr == peer:
            with socket.socket(fileno=os.dup(connection.fd)) as ours, suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
