"""write_whole(): a small file that exists whole or not at all, under a name that nobody else uses.

What is large, written in any order, or worth going on with after an interruption, is a `PartFile`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dotscli.models.regular_file import check_replaceable
from dotscli.quantize.output.part_file import lock_file, sync_folder, write_failed


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file durably, replacing a regular file of that name.

    Raises:
        DotsError: something else than a file has the name; another process is writing it; the disk
            is full, or another failure.
    """
    check_replaceable(path)
    new = path.with_name(f".{path.name}.dots-new")  # what a killed run has left there is replaced
    check_replaceable(new, hint="move it away")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(new, flags, 0o666)
        with os.fdopen(fd, "wb") as file:
            lock_file(fd, new, path)
            try:
                file.truncate(0)
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(fd)
                new.replace(path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise write_failed(path, error) from None
    sync_folder(path.parent)
