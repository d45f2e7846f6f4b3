"""Weights that a load is about to read, asked for well ahead of it.

llama.cpp reads one tensor after the other, and the kernel reads ahead as little as the disk is set
to: 128 KiB on most. Asked for piece by piece, much more is on its way. Pages that were read are
given back behind it, for the weights have been copied: memory is short where this is used. Where
the system has no such call, nothing happens and everything works.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Container
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from dotscli.models.gguf_file import GgufFile
from dotscli.models.tensor_places import files_of, tensor_places

WINDOW = 256 << 20  # bytes ahead
BEHIND = 64 << 20  # bytes that are read and not given back yet
PIECE = 128 << 10  # bytes of one call: of more, the kernel reads only what it reads ahead


class ReadAhead:
    """A thread for the time of a load. Use it as a context manager.

    Args:
        gguf: the model.
        without: names of tensors that aren't read.
    """

    def __init__(self, gguf: GgufFile, without: Container[str]) -> None:
        self._paths: tuple[Path, ...] = files_of(gguf)
        self._pieces: list[tuple[int, int, int]] = []  # file, offset, bytes
        for file, offset, tensor in tensor_places(gguf):
            if tensor.name not in without:
                self._pieces += [
                    (file, offset + at, min(PIECE, tensor.nbytes - at))
                    for at in range(0, tensor.nbytes, PIECE)
                ]
        # Written in C: a Condition's lock can stay taken where Ctrl-C comes in the wrong moment.
        self._changed: SimpleQueue[None] = SimpleQueue()
        self._read = 0
        self._n_dropped = 0  # pieces that were given back
        self._dropped = 0  # bytes of them
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        if hasattr(os, "posix_fadvise"):
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        self._changed.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def reached(self, nbytes: int) -> None:
        """So much has been read by now."""
        self._read = nbytes
        self._changed.put(None)

    def _run(self) -> None:
        files: dict[int, int] = {}
        asked = 0
        try:
            for file, offset, nbytes in self._pieces:
                while asked > self._read + WINDOW and not self._ended:
                    self._changed.get()
                    self._drop(files)
                if self._ended:
                    break
                if file not in files:
                    files[file] = os.open(self._paths[file], os.O_RDONLY)
                os.posix_fadvise(files[file], offset, nbytes, os.POSIX_FADV_WILLNEED)
                asked += nbytes
            while not self._ended:
                self._changed.get()
                self._drop(files)
            for descriptor in files.values():
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # it was only a hint; who reads the file says what is wrong with it
        finally:
            for descriptor in files.values():
                os.close(descriptor)

    def _drop(self, files: dict[int, int]) -> None:
        """Gives back what has been read for a while: all of a file up to there.

        Some file systems cache pieces larger than those that were asked for, and a range that
        covers one only in part frees none of it.
        """
        if self._dropped >= self._read - 2 * BEHIND:
            return
        first = self._n_dropped
        while self._dropped < self._read - BEHIND and self._n_dropped < len(self._pieces):
            self._dropped += self._pieces[self._n_dropped][2]
            self._n_dropped += 1
        ends = {file: at + n for file, at, n in self._pieces[first : self._n_dropped]}
        for file, end in ends.items():
            if file in files:
                os.posix_fadvise(files[file], 0, end, os.POSIX_FADV_DONTNEED)
