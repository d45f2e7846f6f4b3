"""Makes an input of the corpus smaller, as long as it does what it did.

Pieces are taken out, large ones first, down to single bytes; in an input of several files out of
each. That is all: what a number or a text in it means is not known here.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.child import problem_of
from tests.fuzz.runner import GZIP_FROM, read_input, run_once, scratch_folder
from tests.fuzz.target import pack, target_named, unpack

MAX_S = 120.0


def minimise(path: Path) -> Path:
    """Replace a file of the corpus by a smaller one; its new path."""
    target, data = path.resolve().parent.name, read_input(path)
    end = time.monotonic() + MAX_S
    with scratch_folder() as scratch:
        found = run_once(target, data, scratch)
        wanted, kinds = set(found), {finding.kind for finding in found.values()}
        print(f"{path}: {len(data)} bytes, {', '.join(wanted) or 'nothing found'}")
        here = None  # an exception may come again in this process, which is far quicker
        if kinds <= {"exception", "wrong"}:
            here = target_named(target, scratch)
            here.open()

        def same(tried: bytes) -> bool:
            if time.monotonic() > end:
                return False
            if here is None:
                return any(f.kind in kinds for f in run_once(target, tried, scratch).values())
            problem = problem_of(here, tried)
            return problem is not None and problem[1] in wanted

        if wanted:
            data = _smaller_files(data, same) if unpack(data) else _smaller(data, same)
    large = len(data) >= GZIP_FROM
    path.unlink()
    path = path.with_suffix(".gz" if large else ".bin")
    path.write_bytes(gzip.compress(data, mtime=0) if large else data)
    print(f"{path}: {len(data)} bytes")
    return path


def _smaller_files(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    files = unpack(data)
    for name in list(files):
        without = {other: files[other] for other in files if other != name}
        if same(pack(without)):
            files = without
            continue

        def still(tried: bytes, name: str = name, files: dict[str, bytes] = files) -> bool:
            return same(pack({**files, name: tried}))

        files[name] = _smaller(files[name], still)
    return pack(files)


def _smaller(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    piece = max(1, len(data) // 2)
    while True:
        position = 0
        while position < len(data):
            tried = data[:position] + data[position + piece :]
            if same(tried):
                data = tried
            else:
                position += piece
        if piece == 1:
            return data
        piece //= 2
