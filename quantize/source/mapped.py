"""Files mapped into memory when they are first read, and given back piece by piece.

So files of any size take a few pages. What the bytes mean is not known here.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from threading import Lock

from dotscli.errors import DotsError

_WINDOW_NBYTES = 1 << 16  # what Linux maps around a fault (fault_around_bytes)


class MappedFiles:
    """Read-only files, by path. Safe to use from several threads."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = Lock()

    def view(self, path: Path, start: int, nbytes: int) -> memoryview:
        """Bytes of a file without a copy; DotsError if it became shorter than it was."""
        mapped = self._map(path)
        if start + nbytes > len(mapped):
            raise DotsError(f"{path} became shorter while it was being read")
        return memoryview(mapped)[start : start + nbytes]

    def give_back(self, path: Path, start: int, nbytes: int) -> None:
        """Tell the kernel that these bytes are done with, so that they stop counting as ours.

        Whole windows go, neighbours' bytes in them too: the next `view` of those maps the page
        cache again. Less would not do, because a fault maps the pages around it, so that a
        neighbour's first access brings back the end of this range.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start // _WINDOW_NBYTES * _WINDOW_NBYTES
        end = -(-(start + nbytes) // _WINDOW_NBYTES) * _WINDOW_NBYTES
        mapped = self._map(path)
        mapped.madvise(mmap.MADV_DONTNEED, first, min(end, len(mapped)) - first)

    def close(self) -> None:
        """Unmap the files; one that still has views goes when the last of them does."""
        with self._lock:
            for mapped in self._maps.values():
                with contextlib.suppress(BufferError):
                    mapped.close()
            self._maps.clear()

    def _map(self, path: Path) -> mmap.mmap:
        with self._lock:
            mapped = self._maps.get(path)
            if mapped is None:
                try:
                    with path.open("rb") as file:
                        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except OSError as error:
                    raise DotsError(f"{path} can't be mapped: {error.strerror}") from None
                if hasattr(mmap, "MADV_SEQUENTIAL"):
                    mapped.madvise(mmap.MADV_SEQUENTIAL)
                self._maps[path] = mapped
            return mapped
