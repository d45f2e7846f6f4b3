"""Journal: which tensors of an unfinished output are on the disk, so that the work can go on.

It lies beside the part as NAME.part.journal: one line for what the output depends on, one for every
finished tensor with its checksums and, where they are measured, its errors. A torn or damaged end
is noticed and left away. A line that is whole and makes no sense is an error, as is a file that
doesn't begin like a journal: that may be somebody else's. A line is written only after its tensor
is synced. A sync for every small tensor would cost more than the tensors, so they are synced
together: a second after the last sync, or SYNC_SHARE times as long as that took, but within half a
minute. The journal's lock keeps a second run from the same output. It does not look at the tensors.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dotscli.errors import DotsError
from dotscli.models.regular_file import check_replaceable
from dotscli.quantize.output.journal_lines import TensorLine, begins, line, read_lines
from dotscli.quantize.output.output import Output
from dotscli.quantize.output.part_file import (
    journal_of,
    lock_file,
    part_of,
    sync_folder,
    write_failed,
)
from dotscli.quantize.rows.error import ErrorAndPower

SYNC_S = 1.0
SYNC_SHARE = 20.0
MAX_SYNC_S = 30.0
_FORMAT = 2  # 1: tensors started at multiples of 32 bytes
_NAMING = "naming"


class Journal:
    """The journal of one output, locked while the block is open.

    Args:
        out: the (first) file of the output.
        identity: what every tensor depends on, in words, with a hash of each.
        sources: for every tensor of the plan a hash of what it is made from.
        n_matrices: how many checksums every tensor of the plan has.
        restart: don't look at what an earlier run has left; nothing in it can be wrong then.

    Attributes:
        is_ours: whether what lay there began like a journal.
        kept: the checksums of every tensor that an earlier run finished, by index in the plan.
        errors: the error sums of their matrices, as far as that run has measured them.
        naming: whether that run had begun to give the files their names.
        notice: why an earlier run's work, or a part of it, can't be used; or "".
    """

    def __init__(
        self,
        out: Path,
        identity: Mapping[str, str],
        sources: Sequence[str],
        n_matrices: Sequence[int],
        restart: bool = False,
    ) -> None:
        self.path = journal_of(out)
        self.is_ours = False
        self.kept: dict[int, tuple[int, ...]] = {}
        self.errors: dict[int, tuple[ErrorAndPower, ...]] = {}
        self.naming = False
        self.notice = ""
        self._part = part_of(out)
        self._identity = dict(identity)
        self._sources = sources
        self._n_matrices = n_matrices
        self._restart = restart
        self._stale: set[int] = set()
        self._good_nbytes = 0
        self._stays = False
        self._pending: list[bytes] = []
        self._next_sync = time.monotonic() + SYNC_S
        self._fd = -1

    def __enter__(self) -> Journal:
        """Open, lock and read it.

        Raises:
            DotsError: another process has it, it can't be used, or the file system failed.
        """
        check_replaceable(self.path)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._fd = os.open(self.path, flags, 0o666)
            lock_file(self._fd, self.path, self._part)
            size = os.fstat(self._fd).st_size
            self._stays = size > 0
            self.is_ours = begins(self._fd)
            if size and not self._restart:
                if not self.is_ours:
                    raise self._unusable("is not a journal of dots")
                self._read()
        except OSError as error:
            self._close()
            raise write_failed(self.path, error) from None
        except DotsError:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self._stays:
                with contextlib.suppress(OSError):
                    self.path.unlink()
        finally:
            self._close()

    def _forget(self) -> None:
        self.kept, self.errors, self.naming = {}, {}, False
        self.notice, self._good_nbytes = "", 0

    def begin(self, output: Output) -> None:
        """Go on with what is kept, or start anew; the parts are open.

        Raises:
            DotsError: the file system failed.
        """
        if self.kept and output.fresh:
            self._forget()
            self.notice = f"{self._part} is gone: starting over"
        try:
            os.ftruncate(self._fd, self._good_nbytes if self.kept else 0)
            if self.kept:
                output.keep(True)
                return
            self._stays = False
            output.keep(False)
            output.clear()
            self._append([line({"format": _FORMAT, "identity": self._identity})])
            sync_folder(self.path.parent)
        except OSError as error:
            raise write_failed(self.path, error) from None

    def add(
        self,
        index: int,
        checksums: Sequence[int],
        errors: Sequence[ErrorAndPower] | None,
        output: Output,
    ) -> None:
        """A tensor is written; it counts as kept when the next sync is done.

        Raises:
            DotsError: the file system failed.
        """
        errors = () if errors is None else tuple(errors)
        made = TensorLine(index, self._sources[index], tuple(checksums), errors)
        self._pending.append(made.line())
        if time.monotonic() >= self._next_sync:
            self.commit(output)

    def commit(self, output: Output) -> None:
        """Sync the tensors, then say so.

        Raises:
            DotsError: the file system failed.
        """
        if not self._pending:
            return
        started = time.monotonic()
        output.sync()
        output.keep(True)  # first: whatever happens now, nothing durable is thrown away
        self._stays = True
        self._write(self._pending)
        self._pending = []
        ended = time.monotonic()
        pause = SYNC_SHARE * (ended - started)
        self._next_sync = ended + min(max(SYNC_S, pause), MAX_SYNC_S)

    def begin_naming(self) -> None:
        """Everything is synced; from now on files may have their names already.

        Raises:
            DotsError: the file system failed.
        """
        self._stays = True
        self._write([line({_NAMING: True})])

    def finished(self) -> None:
        """The output has its names, and the journal goes."""
        self._stays = False

    def _read(self) -> None:
        number = 0
        try:
            for number, (end, value) in enumerate(read_lines(self._fd), 1):
                if number == 1:
                    self.notice = self._difference(value)
                    if self.notice:
                        return
                elif value.get(_NAMING) is True:
                    self.naming = True
                else:
                    self._take(TensorLine.read(value, self._n_matrices))
                self._good_nbytes = end
        except ValueError as error:
            raise self._unusable(f"can't be used, {error} near line {number}") from None
        if number == 0:
            self.notice = f"{self.path} is damaged: starting over"
        elif self._stale:
            total = len(self._stale) + len(self.kept)
            self.notice = (
                f"the weights changed: {len(self._stale)} of the {total} tensors kept in "
                f"{self._part} will be made again"
            )

    def _unusable(self, why: str) -> DotsError:
        return DotsError(
            f"{self.path} {why}",
            hint="use --restart to start over; if the file is yours, move it away",
        )

    def _difference(self, first: dict[str, object]) -> str:
        """Why the work that this line begins can't be gone on with."""
        theirs = first.get("identity")
        if first.get("format") != _FORMAT or not isinstance(theirs, dict):
            return f"{self.path} is from another version of dots: starting over"
        changed = [what for what, value in self._identity.items() if theirs.get(what) != value]
        if not changed:
            return ""
        return (
            f"the work kept in {self._part} is of another run ({' and '.join(changed)} changed): "
            "starting over"
        )

    def _take(self, found: TensorLine) -> None:
        """Note one finished tensor."""
        index = found.index
        if found.made_from == self._sources[index]:
            self.kept[index] = found.sums
            if found.errors:
                self.errors[index] = found.errors
            self._stale.discard(index)
        else:
            self._stale.add(index)
            self.kept.pop(index, None)
            self.errors.pop(index, None)

    def _write(self, lines: Sequence[bytes]) -> None:
        try:
            self._append(lines)
        except OSError as error:
            raise write_failed(self.path, error) from None

    def _append(self, lines: Sequence[bytes]) -> None:
        data = memoryview(b"".join(lines))
        offset = os.lseek(self._fd, 0, os.SEEK_END)
        while data:
            n = os.pwrite(self._fd, data, offset)
            data, offset = data[n:], offset + n
        os.fsync(self._fd)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
