"""PartFile: one output file that exists whole or not at all.

Everything goes to NAME.part; `give_name` makes that NAME. Leaving the `with` block by any other way
removes it, unless `keep` says that there is work in it worth going on with. Threads may write to
different places at once. It does not know what it writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from dotscli.errors import DotsError
from dotscli.models.regular_file import check_replaceable

PART_MAGIC = b"dotspart"  # where a GGUF has its own, until the header is written


def part_of(path: Path) -> Path:
    """Where a file is while it is being written."""
    return path.with_name(path.name + ".part")


def journal_of(path: Path) -> Path:
    """What `dotscli.quantize.output.journal` keeps beside it."""
    return path.with_name(path.name + ".part.journal")


def check_place(
    path: Path, names: Iterable[Path], inputs: Iterable[Path], option: str = "--output"
) -> None:
    """What can be known of an output's place before any work is done.

    Args:
        names: every name that will be written, `path` among them; inputs: files that none may be.

    Raises:
        DotsError: the output has no folder, is something else than a file, or is an input.
    """
    folder = path.parent
    if not folder.is_dir():
        raise DotsError(f"{folder} is not a folder", hint=f"create it, or choose another {option}")
    inputs = tuple(inputs)
    for target in names:
        check_replaceable(target, hint=f"name a file with {option}")
        for source in inputs:
            if target.exists() and source.exists() and target.samefile(source):
                raise DotsError(
                    f"the output {target} is also an input, {source}",
                    hint=f"dots never changes a checkpoint; choose another {option}",
                )


class PartFile:
    """NAME.part, to become NAME.

    Args:
        path: the final name.
        nbytes: the final size.
        inputs: files that must not be the output.
        force: whether an existing file may be replaced.

    Attributes:
        keep: whether the part stays when the block is left unfinished.
        fresh: whether it was made or emptied by this run; then it holds zeros after its mark.
        journaled: whether a journal of ours lies beside it: then a part of the right size is ours.
    """

    def __init__(
        self, path: Path, nbytes: int, *, inputs: Iterable[Path] = (), force: bool = False
    ) -> None:
        self.path = path
        self.part = part_of(path)
        self.keep = False
        self.fresh = True
        self.journaled = False
        self.nbytes = nbytes
        self._inputs = tuple(inputs)
        self._force = force
        self._fd = -1

    def check(self) -> None:
        """What can be known before any work is done; see `check_place`."""
        check_place(self.path, (self.path, self.part, journal_of(self.path)), self._inputs)

    def take_back(self) -> None:
        """If an interrupted run had given the file its name already, make it a part again."""
        try:
            if not self.part.exists() and self.path.stat().st_size == self.nbytes:
                self.path.replace(self.part)
        except OSError:
            return  # it wasn't there

    def __enter__(self) -> PartFile:
        if self.path.exists() and not self._force:
            raise DotsError(f"{self.path} already exists", hint="--force replaces it")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._fd = os.open(self.part, flags, 0o666)
            lock_file(self._fd, self.part, self.part)
            size = os.fstat(self._fd).st_size
            self._check_ours(size)
            if size == self.nbytes:
                self.fresh = False
            else:
                self.clear()
        except DotsError:  # it is another run's, or somebody else's
            os.close(self._fd)
            self._fd = -1
            raise
        except OSError as error:
            self._discard()
            raise write_failed(self.part, error) from None
        except BaseException:  # a signal: nobody else knows of the file yet
            self._discard()
            raise
        return self

    def clear(self) -> None:
        """Empty it: zeros from one end to the other, after the mark that the header replaces."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, PART_MAGIC[: self.nbytes], 0)
        os.ftruncate(self._fd, self.nbytes)
        self.fresh = True

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes that are there already.

        Raises:
            DotsError: they can't be read.
        """
        try:
            data = os.pread(self._fd, nbytes, offset)
        except OSError as error:
            raise DotsError(f"{self.part} can't be read: {error.strerror}") from None
        if len(data) != nbytes:
            raise DotsError(f"{self.part} shrank while it was being written")
        return data

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
            raise write_failed(self.part, error) from None

    def sync(self) -> None:
        """Return when everything written is on the disk.

        Raises:
            DotsError: the disk is full, or another failure of the file system.
        """
        try:
            getattr(os, "fdatasync", os.fsync)(self._fd)
        except OSError as error:
            raise write_failed(self.part, error) from None

    def check_name(self) -> None:
        """DotsError if another file took the name meanwhile and may not be replaced."""
        check_replaceable(self.path)
        if self.path.exists() and not self._force:
            raise DotsError(
                f"{self.path} appeared in the meantime",
                hint="the work is kept: --force replaces the file, or move it away",
            )

    def give_name(self) -> None:
        """Make it NAME, durably; what is in it must be synced before.

        Raises:
            DotsError: the file system failed, or another file took the name meanwhile.
        """
        self.check_name()
        try:
            self.part.replace(self.path)
            os.close(self._fd)
            self._fd = -1
            sync_folder(self.path.parent)
        except OSError as error:
            raise write_failed(self.part, error) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discard()

    def _check_ours(self, size: int) -> None:
        """DotsError if what lies in the part's place was not made here: it would be lost."""
        magic = os.pread(self._fd, len(PART_MAGIC), 0)
        if size and magic != PART_MAGIC and not (self.journaled and size == self.nbytes):
            kept = self.part.with_name(self.part.name + ".old")
            raise DotsError(
                f"{self.part} is not an unfinished output of dots, and would be overwritten",
                hint=f"move it away: mv {shlex.quote(str(self.part))} {shlex.quote(str(kept))}",
            )

    def _discard(self) -> None:
        if self._fd < 0:
            return
        try:
            if not self.keep:
                with contextlib.suppress(OSError):
                    self.part.unlink()
        finally:
            os.close(self._fd)
            self._fd = -1


def lock_file(fd: int, path: Path, part: Path) -> None:
    """Keep a second run from the same output; the lock goes with the descriptor.

    Args:
        path: what fd was opened by; part: the file to name in the error.

    Raises:
        DotsError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows; the other checks still hold
        return
    in_use = DotsError(
        f"{part} is being written by another process",
        hint="wait for it, or choose another --output",
    )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise in_use from None
        return  # a file system without locks: nothing to hold on to
    try:  # between opening and locking, another run may have renamed or removed the file
        same = os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:
        same = False
    if not same:
        raise in_use


def write_failed(path: Path, error: OSError) -> DotsError:
    """What went wrong, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DotsError(
            f"the disk of {path} is full",
            hint="free some space and run the same command again, or choose another --output",
        )
    return DotsError(f"{path} can't be written: {error.strerror}")


def sync_folder(folder: Path) -> None:
    """Make new names in it durable, where a folder can be opened at all."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
