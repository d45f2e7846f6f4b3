"""A GGUF of a header and a hole: the real model's tensors, types and metadata, and no weights.

It takes as many bytes as the header and is made in a second, on any file system. All weights are
zero, so all experts tie and every answer is nonsense: it is for planning, checking and loading, and
says nothing about reading from a disk.
"""

from __future__ import annotations

from pathlib import Path

from bench.full_size.shapes import StandIn


def write_holes(path: Path, made: StandIn) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: the file system has no files of this size, or another failure.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(made.header)
            file.truncate(made.nbytes)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
