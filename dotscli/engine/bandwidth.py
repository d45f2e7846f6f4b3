"""How fast main memory and a disk are read on this machine: measured, in two seconds.

Main memory by as many threads as there are cores, each over an array of its own that no cache
holds. The disk as the memory tier reads it (native/hot/disk.cpp): six threads, 1 MiB at a time,
past the page cache where the file system lets us. It keeps nothing.
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

import numpy as np

from dotscli.errors import DotsError
from dotscli.models.regular_file import check_regular

RAM_S, DISK_S = 0.6, 1.2
ARRAYS_NBYTES = 1 << 30  # of all threads together at most, an eighth of what is free
LEAST_ARRAY = 32 << 20  # of one thread
READERS = 6
PIECE = 1 << 20
LEAST_FILE = 64 * PIECE


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes per second; `direct`: read past the page cache."""

    bytes_per_s: float
    direct: bool


def ram_bandwidth(free_nbytes: int) -> float:
    """Bytes per second that all cores together read from main memory.

    Args:
        free_nbytes: what of it may be used; an eighth is.

    Raises:
        DotsError: too little is free.
    """
    threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4, 64)
    nbytes = min(ARRAYS_NBYTES, free_nbytes // 8) // threads
    if nbytes < LEAST_ARRAY:
        raise DotsError("too little memory is free to measure how fast it is", "end other programs")
    arrays = [np.ones(nbytes // 8, np.uint64) for _ in range(threads)]

    def read(number: int) -> int:
        np.bitwise_or.reduce(arrays[number])  # one instruction for a register: memory is slower
        return nbytes

    best, end = 0.0, time.perf_counter() + RAM_S
    with ThreadPoolExecutor(threads) as pool:
        while not best or time.perf_counter() < end:
            since = time.perf_counter()
            done = sum(pool.map(read, range(threads)))
            best = max(best, done / (time.perf_counter() - since))
    return best


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
