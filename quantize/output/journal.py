"""Journal: which tensors of an unfinished output are on the disk, so that the work can go on.

It lies beside the part as NAME.part.journal: one line for what the output depends on, one for every
finished tensor with its checksums and, where they are measured, its errors; each line has a
checksum of its own, so that a torn or damaged end is noticed and left away. A line is written only
after its tensor is synced. A sync for every small tensor would cost more than the tensors, so they
are synced together: a second after the last sync, or SYNC_SHARE times as long as that took, but
within half a minute. The journal's lock keeps a second run from the same output. It does not look
at the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dotscli.errors import DotsError
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
_FORMAT = 1
_MAX_NBYTES = 1 << 28
_NAMING = "naming"


class Journal:
    """The journal of one output, locked while the block is open.

    Args:
        out: the (first) file of the output.
        identity: what every tensor depends on, in words, with a hash of each.
        sources: for every tensor of the plan a hash of what it is made from.
        n_matrices: how many checksums every tensor of the plan has.

    Attributes:
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
    ) -> None:
        self.path = journal_of(out)
        self.kept: dict[int, tuple[int, ...]] = {}
        self.errors: dict[int, tuple[ErrorAndPower, ...]] = {}
        self.naming = False
        self.notice = ""
        self._part = part_of(out)
        self._identity = dict(identity)
        self._sources = sources
        self._n_matrices = n_matrices
        self._stale: set[int] = set()
        self._good_nbytes = 0
        self._stays = False
        self._pending: list[bytes] = []
        self._next_sync = time.monotonic() + SYNC_S
        self._fd = -1

    def __enter__(self) -> Journal:
        """Open, lock and read it.

        Raises:
            DotsError: another process has it, or the file system failed.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._fd = os.open(self.path, flags, 0o666)
            lock_file(self._fd, self.path, self._part)
            size = os.fstat(self._fd).st_size
            self._stays = size > 0
            if size:
                self._read(os.pread(self._fd, min(size, _MAX_NBYTES), 0))
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

    def forget(self) -> None:
        """Don't go on with an earlier run's work."""
        self.kept, self.errors, self.naming = {}, {}, False
        self.notice, self._good_nbytes = "", 0

    def begin(self, output: Output) -> None:
        """Go on with what is kept, or start anew; the parts are open.

        Raises:
            DotsError: the file system failed.
        """
        if self.kept and output.fresh:
            self.forget()
            self.notice = f"{self._part} is gone: starting anew"
        try:
            os.ftruncate(self._fd, self._good_nbytes if self.kept else 0)
            if self.kept:
                output.keep(True)
                return
            self._stays = False
            output.keep(False)
            output.clear()
            self._append([_line({"format": _FORMAT, "identity": self._identity})])
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
        sums = [f"{value:016x}" for value in checksums]
        line: dict[str, object] = {"tensor": index, "from": self._sources[index], "sums": sums}
        if errors is not None:
            line["errors"] = errors
        self._pending.append(_line(line))
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
        self._write([_line({_NAMING: True})])

    def finished(self) -> None:
        """The output has its names, and the journal goes."""
        self._stays = False

    def _read(self, data: bytes) -> None:
        position = 0
        for raw in data.splitlines(keepends=True):
            value = _parse(raw)
            if value is None:
                break
            if position == 0:
                self.notice = self._difference(value)
                if self.notice:
                    return
            elif not self._take(value):
                break
            position += len(raw)
        self._good_nbytes = position
        if position == 0:
            self.notice = f"{self.path} is damaged: starting anew"
        elif self._stale:
            total = len(self._stale) + len(self.kept)
            self.notice = (
                f"the weights changed: {len(self._stale)} of the {total} tensors kept in "
                f"{self._part} are made again"
            )

    def _difference(self, first: dict[str, object]) -> str:
        """Why the work that this line begins can't be gone on with."""
        theirs = first.get("identity")
        if first.get("format") != _FORMAT or not isinstance(theirs, dict):
            return f"{self.path} is of another version of dots: starting anew"
        changed = [what for what, value in self._identity.items() if theirs.get(what) != value]
        if not changed:
            return ""
        return (
            f"the work kept in {self._part} is of another run, {' and '.join(changed)} changed: "
            "starting anew"
        )

    def _take(self, value: dict[str, object]) -> bool:
        """Note one finished tensor; whether the line makes sense for the plan."""
        index, sums = value.get("tensor"), value.get("sums")
        if value.get(_NAMING) is True:
            self.naming = True
            return True
        if not isinstance(index, int) or not isinstance(sums, list):
            return False
        if not 0 <= index < len(self._n_matrices) or len(sums) != self._n_matrices[index]:
            return False
        if value.get("from") == self._sources[index]:
            self.kept[index] = tuple(int(text, 16) for text in sums)
            errors = value.get("errors")
            if isinstance(errors, list) and len(errors) == len(sums):
                self.errors[index] = tuple((error, power) for error, power in errors)
            self._stale.discard(index)
        else:
            self._stale.add(index)
            self.kept.pop(index, None)
            self.errors.pop(index, None)
        return True

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


def _line(value: Mapping[str, object]) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode("ascii")
    return _mark(text) + b" " + text + b"\n"


def _mark(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode("ascii")


def _parse(raw: bytes) -> dict[str, object] | None:
    """A line's value, or None if it isn't whole: only lines of our own making get to json."""
    mark, _, text = raw.partition(b" ")
    if not text.endswith(b"\n") or mark != _mark(text[:-1]):
        return None
    value: dict[str, object] = json.loads(text)
    return value
