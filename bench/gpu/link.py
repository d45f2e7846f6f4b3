"""What the link to an NVIDIA GPU gives, measured with the CUDA runtime alone: prints JSON.

    python -m bench.gpu.link --file MODEL.gguf

The backend's uploads are judged by this: copies from pinned and from ordinary memory by size, one
thread's memcpy into pinned memory, and copies of whole parts of experts staged in two ways, with a
wait before every memcpy and with two halves that take turns. Beside staged copies in pieces of
several sizes, a small copy on another stream says how long a token's activations would wait for the
copy engine. Nothing here knows llama.cpp.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
TO_DEVICE, TO_HOST = 1, 2
NON_BLOCKING = 1  # of a stream
NO_TIMING = 2  # of an event
KIB, MIB = 1 << 10, 1 << 20
SIZES = (16 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 3_244_032, 3_964_928, 16 * MIB, 64 * MIB)
PIECES = (256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB)
PART = 3_604_480  # the mean of an expert's three matrices in the recipe q4
SMALL = 16 * KIB  # a row of activations, 4096 floats
ROOM = 64 * MIB
MOST = 2 << 30  # of the file: more than caches hold


class Cuda:
    """The few calls that are needed; every error ends the measurement with its name."""

    def __init__(self) -> None:
        self._library = next(filter(None, map(_loaded, NAMES)), None)
        if self._library is None:
            raise SystemExit("no libcudart: add CUDA's folder of libraries to LD_LIBRARY_PATH")
        self._library.cudaGetErrorName.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        status = self._library[name](*arguments)
        if status:
            text = self._library.cudaGetErrorName(status).decode()
            raise SystemExit(f"{name}: {text}")

    def pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function puts into its first argument."""
        found = ctypes.c_void_p()
        self.call(name, ctypes.byref(found), *arguments)
        return found

    def copy(self, to: int, source: int, nbytes: int, kind: int, stream: ctypes.c_void_p) -> None:
        self.call(
            "cudaMemcpyAsync", ctypes.c_void_p(to), ctypes.c_void_p(source),
            ctypes.c_size_t(nbytes), kind, stream,
        )  # fmt: skip

    def wait(self, stream: ctypes.c_void_p) -> None:
        self.call("cudaStreamSynchronize", stream)


def _loaded(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


class Link:
    """Two streams, device memory, pinned memory, and a mapped file as the source of uploads."""

    def __init__(self, cuda: Cuda, source: int, source_nbytes: int, amount: int) -> None:
        self.cuda = cuda
        self._amount = amount  # bytes that are copied to time a copy
        self.source, self.source_nbytes = source, source_nbytes
        self.stream = cuda.pointer("cudaStreamCreateWithFlags", NON_BLOCKING)
        self.other = cuda.pointer("cudaStreamCreateWithFlags", NON_BLOCKING)
        self.device = cuda.pointer("cudaMalloc", ctypes.c_size_t(ROOM)).value or 0
        self.pinned = cuda.pointer("cudaMallocHost", ctypes.c_size_t(ROOM)).value or 0
        self.events = [cuda.pointer("cudaEventCreateWithFlags", NO_TIMING) for _ in range(2)]

    def plain(self, host: int, nbytes: int, kind: int) -> float:
        """Bytes per second of copies of one size, queued one behind the other."""
        to, source = (self.device, host) if kind == TO_DEVICE else (host, self.device)
        return self._rate(
            nbytes, lambda: self.cuda.copy(to, source, nbytes, kind, self.stream), self.stream
        )

    def memcpy(self) -> float:
        """Bytes per second of one thread that copies parts from the file into pinned memory."""
        return self._rate(PART, lambda: ctypes.memmove(self.pinned, self._next(PART), PART), None)

    def waiting(self, piece: int) -> float:
        """Bytes per second of parts staged as hot_slab.cpp does it: a wait before each memcpy."""

        def part() -> None:
            source = self._next(PART)
            for done in range(0, PART, piece):
                nbytes = min(piece, PART - done)
                if done == 0:
                    self.cuda.wait(self.stream)
                half = self.pinned + done // piece % 2 * piece
                ctypes.memmove(half, source + done, nbytes)
                self.cuda.wait(self.stream)
                self.cuda.copy(self.device + done, half, nbytes, TO_DEVICE, self.stream)

        return self._rate(PART, part, self.stream)

    def alternating(self, piece: int) -> float:
        """The same with two halves in turn: only the copy out of the same half is waited for."""
        return self._rate(PART, self._alternating_part(piece), self.stream)

    def late(self, piece: int) -> dict[str, float]:
        """Seconds that a small copy of another stream takes, alone (piece 0) or beside uploads."""
        part = self._alternating_part(piece) if piece else (lambda: None)
        seconds = []
        for _ in range(100):
            part()
            start = time.perf_counter()
            self.cuda.copy(self.device, self.pinned + ROOM - SMALL, SMALL, TO_DEVICE, self.other)
            self.cuda.wait(self.other)
            seconds.append(time.perf_counter() - start)
        self.cuda.wait(self.stream)
        found = sorted(seconds)
        return {"median": statistics.median(found), "p90": found[90], "largest": found[-1]}

    def _alternating_part(self, piece: int) -> Callable[[], None]:
        turn = 0

        def part() -> None:
            nonlocal turn
            source = self._next(PART)
            for done in range(0, PART, piece):
                nbytes = min(piece, PART - done)
                half = self.pinned + turn * piece
                self.cuda.call("cudaEventSynchronize", self.events[turn])
                ctypes.memmove(half, source + done, nbytes)
                self.cuda.copy(self.device + done, half, nbytes, TO_DEVICE, self.stream)
                self.cuda.call("cudaEventRecord", self.events[turn], self.stream)
                turn = 1 - turn

        return part

    def _next(self, nbytes: int) -> int:
        """Another place of the file each time, so that no cache holds it."""
        self._at = (getattr(self, "_at", 0) + 5 * nbytes) % (self.source_nbytes - nbytes)
        return self.source + self._at

    def _rate(
        self, nbytes: int, once: Callable[[], object], stream: ctypes.c_void_p | None
    ) -> float:
        times = max(2, min(200, self._amount // nbytes))
        rates = []
        for _ in range(4):  # the first warms up
            start = time.perf_counter()
            for _ in range(times):
                once()
            if stream is not None:
                self.cuda.wait(stream)
            rates.append(times * nbytes / (time.perf_counter() - start))
        return max(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--amount", type=int, default=256, help="MiB copied to time a copy")
    given = parser.parse_args()
    size = given.file.stat().st_size
    with given.file.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), min(size, MOST), access=mmap.ACCESS_READ)
    view = np.frombuffer(mapped, np.uint8)
    view[:: mmap.PAGESIZE].max()  # in memory, and in this process's page table
    link = Link(Cuda(), int(view.ctypes.data), len(view), given.amount * MIB)
    found: dict[str, Any] = {
        "to_device_pinned": {n: link.plain(link.pinned, n, TO_DEVICE) for n in SIZES},
        "to_device_mapped": {n: link.plain(link.source, n, TO_DEVICE) for n in SIZES},
        "to_host_pinned": {n: link.plain(link.pinned, n, TO_HOST) for n in SIZES},
        "memcpy_to_pinned": link.memcpy(),
        "staged_waiting": {n: link.waiting(n) for n in PIECES},
        "staged_alternating": {n: link.alternating(n) for n in PIECES},
        "small_copy_s": {n: link.late(n) for n in (0, *PIECES)},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
