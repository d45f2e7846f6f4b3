"""How fast a disk is read on this machine: measured, in a second.

As the memory tier reads it (native/hot/disk.cpp): six threads, 1 MiB at a time, past the page cache
where the file system lets us. It keeps nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.regular_file import check_regular

DISK_S = 1.2
READERS = 6
PIECE = 1 << 20
LEAST_FILE = 64 * PIECE


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes per second; `direct`: read past the page cache."""

    bytes_per_s: float
    direct: bool


def disk_bandwidth(path: Path) -> DiskSpeed:
    """What the disk under a file gives, read here and there.

    Raises:
        DotsError: not a file, one of less than 64 MiB, or one that can't be read.
    """
    check_regular(path)
    try:
        n_pieces = path.stat().st_size // PIECE
        if n_pieces * PIECE < LEAST_FILE:
            raise DotsError(
                f"{path} is too small to measure a disk with",
                "name a model of 64 MiB or more on that disk",
            )
        with _opened(path) as (file, direct):
            return DiskSpeed(_rate(file, n_pieces), direct)
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, bool]]:
    """The file, past the page cache if a read that way succeeds; else with its pages given back."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    file, direct = -1, hasattr(os, "O_DIRECT")
    try:
        if direct:
            try:
                file = os.open(path, flags | os.O_DIRECT)
                with mmap.mmap(-1, PIECE) as block:
                    os.preadv(file, [block], 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                direct = False
        if not direct:
            if file >= 0:
                os.close(file)
            file = os.open(path, flags)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        yield file, direct
    finally:
        if file >= 0:
            os.close(file)


def _rate(file: int, n_pieces: int) -> float:
    pieces = list(range(min(n_pieces, 1 << 20)))
    random.Random(1).shuffle(pieces)  # one order for all measurements
    began = time.perf_counter()
    end = began + DISK_S

    def reader(number: int) -> int:
        nbytes = 0
        with mmap.mmap(-1, PIECE) as block:  # it begins with a page, as direct I/O wants it
            for piece in pieces[number::READERS]:
                nbytes += os.preadv(file, [block], piece * PIECE)
                if time.perf_counter() > end:
                    break
        return nbytes

    with ThreadPoolExecutor(READERS) as pool:
        done = sum(pool.map(reader, range(READERS)))
    return done / (time.perf_counter() - began)
