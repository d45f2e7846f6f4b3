"""Output: the files of one plan, written by tensor and place, named together at the end.

The headers come last, because the checksums in them do: until then a part starts with zeros and is
no GGUF to anybody. What is worth keeping of an interrupted run is decided by the journal.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from dotscli.errors import DotsError
from dotscli.quantize.output.layout import FileLayout
from dotscli.quantize.output.part_file import PartFile
from dotscli.quantize.plan import aligned

_SPARE_NBYTES = 16 << 20  # what the file system may need beside the files themselves
_BLOCK_NBYTES = 512  # what st_blocks counts


class Output:
    """The parts of all files, open for reading and writing.

    Args:
        files: as `dotscli.quantize.output.layout.layouts` gives them.
        inputs: files that must not be an output.
        force: whether existing files may be replaced.
    """

    def __init__(
        self, files: Sequence[FileLayout], *, inputs: Iterable[Path] = (), force: bool = False
    ) -> None:
        inputs = tuple(inputs)
        self.files = tuple(files)
        self.nbytes = sum(file.nbytes for file in files)
        self.parts = tuple(
            PartFile(file.path, file.nbytes, inputs=inputs, force=force) for file in files
        )
        self._firsts = [file.first for file in files]
        self._open = ExitStack()

    @property
    def path(self) -> Path:
        """The file, or the first of several: what a program is given to load."""
        return self.files[0].path

    @property
    def fresh(self) -> bool:
        """Whether no part holds anything of an earlier run."""
        return all(part.fresh for part in self.parts)

    def check(self) -> None:
        """What can be known of the places before any work is done; see `PartFile.check`."""
        for part in self.parts:
            part.check()

    def expect_parts(self, journaled: bool) -> None:
        """Whether a journal of ours says that there are parts of an earlier run."""
        for part in self.parts:
            part.journaled = journaled

    def take_back(self) -> None:
        """Make parts again of files that an interrupted run has given their names already."""
        for part in self.parts:
            part.take_back()

    def __enter__(self) -> Output:
        self._check_space()
        with ExitStack() as opening:  # a part that can't be opened closes those before it
            for part in self.parts:
                part.keep = part.part.exists()
                opening.enter_context(part)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def keep(self, wanted: bool) -> None:
        """Whether the parts stay when the block is left unfinished."""
        for part in self.parts:
            part.keep = wanted

    def clear(self) -> None:
        """Throw away what the parts hold; OSError if that fails."""
        for part in self.parts:
            part.clear()

    def write(self, index: int, start: int, data: bytes | memoryview) -> None:
        """Write data into a tensor. Safe to call from several threads.

        Args:
            index: of the tensor in the plan; start: first byte in it.

        Raises:
            DotsError: the disk is full, or another failure of the file system.
        """
        number, offset = self._place(index)
        self.parts[number].write(data, offset + start)

    def read(self, index: int, start: int, nbytes: int) -> bytes:
        """Bytes of a tensor that are there already; DotsError if they can't be read."""
        number, offset = self._place(index)
        return self.parts[number].read(offset + start, nbytes)

    def sync(self) -> None:
        """Return when everything written is on the disk; DotsError if that fails."""
        for part in self.parts:
            part.sync()

    def write_headers(self, checksums: Sequence[Sequence[int]]) -> None:
        """Complete the files and make everything durable; only their names are missing then.

        Args:
            checksums: of the matrices of every tensor of the plan.

        Raises:
            DotsError: the disk is full, or another failure of the file system.
        """
        for file, part in zip(self.files, self.parts, strict=True):
            own = checksums[file.first : file.first + len(file.tensors)]
            part.write(file.header([value for values in own for value in values]), 0)
            for tensor in file.tensors:  # an earlier run's bytes there have no checksum
                end = tensor.offset + tensor.nbytes
                part.write(bytes(aligned(end) - end), file.header_nbytes + end)
        self.sync()

    def give_names(self) -> None:
        """The parts become the files. Of several the first comes last: without it, the others are
        no model.

        Raises:
            DotsError: the file system failed, or another file took a name meanwhile.
        """
        for part in reversed(self.parts):
            part.check_name()
        for part in reversed(self.parts):
            part.give_name()

    def _place(self, index: int) -> tuple[int, int]:
        """Which part holds a tensor, and where in it."""
        number = bisect_right(self._firsts, index) - 1
        file = self.files[number]
        return number, file.header_nbytes + file.tensors[index - file.first].offset

    def _check_space(self) -> None:
        folder = self.path.parent
        free = shutil.disk_usage(folder).free
        for part in self.parts:
            if part.part.is_file():
                status = part.part.stat()
                free += getattr(status, "st_blocks", 0) * _BLOCK_NBYTES
        if free < self.nbytes + _SPARE_NBYTES:
            raise DotsError(
                f"{folder} has {free / 1e9:.2f} GB free, the output needs "
                f"{self.nbytes / 1e9:.2f} GB",
                hint="choose a smaller --type or another disk with --output",
            )
