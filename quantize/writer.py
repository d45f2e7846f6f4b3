"""PartFile: an output that exists whole or not at all.

Everything goes to NAME.part; `finish` makes it durable and gives it its name, and leaving the
`with` block by any other way removes it. Threads may write to different places at once. It does not
know what it writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from dotscli.errors import DotsError

_SPARE_NBYTES = 16 << 20  # what the file system may need beside the file itself


class PartFile:
    """NAME.part, to become NAME.

    Args:
        path: the final name.
        nbytes: the final size; the space is checked when the file is opened.
        inputs: files that must not be the output.
        force: whether an existing file may be replaced.
    """

    def __init__(
        self, path: Path, nbytes: int, *, inputs: Iterable[Path] = (), force: bool = False
    ) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self._nbytes = nbytes
        self._inputs = tuple(inputs)
        self._force = force
        self._fd = -1

    def check(self) -> None:
        """What can be known before any work is done.

        Raises:
            DotsError: the output exists, is an input, has no folder, or the disk is too small.
        """
        folder = self.path.parent
        if not folder.is_dir():
            raise DotsError(f"{folder} is no folder", hint="create it, or choose another --output")
        if self.path.is_dir():
            raise DotsError(f"{self.path} is a folder", hint="name a file: --output NAME.gguf")
        for target in (self.path, self.part):
            for source in self._inputs:
                if target.exists() and source.exists() and target.samefile(source):
                    raise DotsError(
                        f"the output {target} is an input, {source}",
                        hint="dots never changes a checkpoint; choose another --output",
                    )
        if self.path.exists() and not self._force:
            raise DotsError(f"{self.path} exists already", hint="--force replaces it")
        free = shutil.disk_usage(folder).free
        if self.part.is_file():
            free += self.part.stat().st_size
        if free < self._nbytes + _SPARE_NBYTES:
            raise DotsError(
                f"{folder} has {free / 1e9:.2f} GB free, the output needs "
                f"{self._nbytes / 1e9:.2f} GB",
                hint="choose a smaller --type or another disk with --output",
            )

    def __enter__(self) -> PartFile:
        self.check()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._fd = os.open(self.part, flags, 0o666)
        except OSError as error:
            raise self._failed(error) from None
        try:
            self._lock()
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self._nbytes)
        except OSError as error:
            self._discard()
            raise self._failed(error) from None
        return self

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of data at offset. Safe to call from several threads.

        Raises:
            DotsError: the disk is full, or another failure of the file system.
        """
        view = memoryview(data).cast("B")
        try:
            while view:
                n = os.pwrite(self._fd, view, offset)
                view, offset = view[n:], offset + n
        except OSError as error:
            raise self._failed(error) from None

    def finish(self) -> None:
        """Make it durable and give it its name.

        Raises:
            DotsError: the file system failed, or another file took the name meanwhile.
        """
        try:
            os.fsync(self._fd)
            if self.path.exists() and not self._force:
                raise DotsError(f"{self.path} appeared meanwhile", hint="--force replaces it")
            self.part.replace(self.path)
            os.close(self._fd)
            self._fd = -1
            self._sync_folder()
        except OSError as error:
            raise self._failed(error) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            self._discard()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self.part.unlink()
        os.close(self._fd)
        self._fd = -1

    def _lock(self) -> None:
        """Keep a second run from writing the same file; the lock goes with the descriptor."""
        try:
            import fcntl
        except ImportError:  # Windows; the other checks still hold
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                os.close(self._fd)
                self._fd = -1
                raise DotsError(
                    f"{self.part} is being written by another process",
                    hint="wait for it, or choose another --output",
                ) from None
            # A file system without locks: nothing to hold on to.

    def _sync_folder(self) -> None:
        """Make the rename durable, where a folder can be opened at all."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _failed(self, error: OSError) -> DotsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space or choose another disk with --output; nothing was kept"
            return DotsError(f"the disk of {self.part} is full", hint=hint)
        return DotsError(f"{self.part} can't be written: {error.strerror}")
