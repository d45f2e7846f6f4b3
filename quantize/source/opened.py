"""Files opened when they are first read, and read piece by piece into a buffer of each thread.

So files of any size take a buffer per thread, and one that is cut while it is read is an error and
not a signal, as it would be if it were mapped. What the bytes mean is not known here.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dotscli.errors import DotsError

# Files kept open; of more (a checkpoint in very many shards) each read opens its own.
_MAX_OPEN = 128
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class OpenFiles:
    """Read-only files, by path. Safe to use from several threads."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def read(self, path: Path, start: int, nbytes: int) -> memoryview:
        """Bytes of a file, valid until this thread's next call.

        Raises:
            DotsError: the file is shorter than that, which it wasn't before, or can't be read.
        """
        buffer = self._buffer(nbytes)
        try:
            with self._lock:
                fd = self._descriptors.get(path)
                if fd is None and len(self._descriptors) < _MAX_OPEN:
                    fd = self._descriptors[path] = os.open(path, _FLAGS)
            if fd is not None:
                n_read = _read(fd, buffer, start)
            else:
                fd = os.open(path, _FLAGS)
                try:
                    n_read = _read(fd, buffer, start)
                finally:
                    os.close(fd)
        except OSError as error:
            raise DotsError(
                f"{path} can't be read at byte {start}: {error.strerror or error}",
                hint="check the disk, then run the same command again: finished work is kept",
            ) from None
        if n_read < nbytes:
            raise DotsError(
                f"{path} shrank while it was being read: it ends at byte {start + n_read}",
                hint="download it again; finished work is kept",
            )
        return buffer

    def close(self) -> None:
        """Close the files; no thread may be reading."""
        with self._lock:
            for fd in self._descriptors.values():
                os.close(fd)
            self._descriptors.clear()

    def _buffer(self, nbytes: int) -> memoryview:
        """The thread's buffer, so that no read has to clear new memory first."""
        held: bytearray | None = getattr(self._local, "buffer", None)
        if held is None or len(held) < nbytes:
            held = self._local.buffer = bytearray(nbytes)
        return memoryview(held)[:nbytes]


def _read(fd: int, buffer: memoryview, start: int) -> int:
    """Fill the buffer from one place of a file; how many bytes there were."""
    done = 0
    while done < len(buffer):
        n = os.preadv(fd, [buffer[done:]], start + done)
        if n == 0:
            break
        done += n
    return done
