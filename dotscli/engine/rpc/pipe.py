"""1 MiB of room between two connections: a pipe inside the kernel, or a buffer in this process."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

BUFFER_NBYTES = 1 << 20


def pipe() -> Buffer:
    """The faster of the two that this system has."""
    return Pipe() if hasattr(os, "splice") else Buffer()


class Buffer:
    """Up to 1 MiB on its way from one connection to another, which don't block."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(BUFFER_NBYTES))
        self._full = self._memory[:0]

    def fill(self, source: socket.socket, nbytes: int) -> int:
        """Takes up to so many bytes, 0 at the end of the connection. It must be empty before."""
        count = source.recv_into(self._memory[:nbytes])
        self._full = self._memory[:count]
        return count

    def drain(self, target: socket.socket, nbytes: int, more: bool) -> int:
        """Gives up to so many of the bytes in it; `more` will follow at once."""
        count = target.send(self._full)
        self._full = self._full[count:]
        return count

    def close(self) -> None:
        """Gives up what is in it."""


class Pipe(Buffer):
    """The same without a copy: pages move from one connection to the other (Linux)."""

    def __init__(self) -> None:
        import fcntl

        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with suppress(OSError):  # too many large pipes: 64 KiB are slower, no more
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, BUFFER_NBYTES)

    def fill(self, source: socket.socket, nbytes: int) -> int:
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        return os.splice(source.fileno(), self._in, min(nbytes, BUFFER_NBYTES), flags=flags)

    def drain(self, target: socket.socket, nbytes: int, more: bool) -> int:
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK | (os.SPLICE_F_MORE if more else 0)
        return os.splice(self._out, target.fileno(), nbytes, flags=flags)

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)
