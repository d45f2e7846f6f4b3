"""The three standard file descriptors, below Python's streams, where C libraries write too."""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Put /dev/null where a standard stream was closed.

    Otherwise the next file that is opened, the model say, becomes descriptor 1 or 2 and gets what
    C libraries print.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def to_nowhere(descriptor: int) -> None:
    """What is written to the descriptor from now on is dropped."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
