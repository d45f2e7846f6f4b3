"""Which files an output consists of: one, or several of a bounded size, named and numbered as
llama.cpp expects them.

A split file is named NAME-00001-of-0000N.gguf; the first has all the metadata, every one the three
keys split.no, split.count and split.tensors.count (llama.cpp, tools/gguf-split). It writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.metadata import KeyValue
from dotscli.quantize.output.checksums import checked_header, unpadded_checked_nbytes
from dotscli.quantize.output.gguf_header import tensor_infos
from dotscli.quantize.plan import Plan, TensorPlan, aligned

MAX_FILES = 999  # what read_gguf and llama.cpp's names have room for


@dataclass(frozen=True)
class FileLayout:
    """One file.

    Attributes:
        path: its final name.
        keys: its metadata, without alignment and checksums.
        first: index in the plan of its first tensor.
        tensors: those it holds, with offsets in its own data section.
        header_nbytes: where that starts.
    """

    path: Path
    keys: tuple[KeyValue, ...]
    first: int
    tensors: tuple[TensorPlan, ...]
    header_nbytes: int

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        last = self.tensors[-1]
        return self.header_nbytes + last.offset + aligned(last.nbytes)

    def header(self, matrices: Sequence[int]) -> bytes:
        """The header, with the checksum of every matrix."""
        return checked_header(self.keys, self.tensors, matrices)


def layouts(
    plan: Plan, keys: Sequence[KeyValue], out: Path, max_nbytes: int | None = None
) -> tuple[FileLayout, ...]:
    """The files of a plan.

    Args:
        out: the name of the file if it is one.
        max_nbytes: the most that a file may have; None is no limit.

    Raises:
        DotsError: a tensor alone is larger, or there would be too many files.
    """
    whole = _file(out, tuple(keys), 0, plan.tensors)
    if max_nbytes is None or whole.nbytes <= max_nbytes:
        return (whole,)
    groups = _groups(plan.tensors, [*keys, *_split_keys(0, 0, 0)], max_nbytes)
    if len(groups) > MAX_FILES:
        raise DotsError(
            f"the output would have {len(groups)} files, the limit is {MAX_FILES}",
            hint="choose a larger --split-max-size",
        )
    files = []
    for number, (first, end) in enumerate(groups):
        own = _split_keys(number, len(groups), len(plan.tensors))
        path = out.with_name(f"{_stem(out)}-{number + 1:05d}-of-{len(groups):05d}.gguf")
        file_keys = (*keys, *own) if number == 0 else own
        files.append(_file(path, file_keys, first, plan.tensors[first:end]))
    return tuple(files)


def _stem(out: Path) -> str:
    return out.stem if out.suffix.lower() == ".gguf" else out.name


def _split_keys(number: int, count: int, n_tensors: int) -> tuple[KeyValue, ...]:
    return (
        KeyValue("split.no", "u16", number),
        KeyValue("split.count", "u16", count),
        KeyValue("split.tensors.count", "i32", n_tensors),
    )


def _file(
    path: Path, keys: tuple[KeyValue, ...], first: int, tensors: Sequence[TensorPlan]
) -> FileLayout:
    start = tensors[0].offset
    moved = tuple(replace(tensor, offset=tensor.offset - start) for tensor in tensors)
    return FileLayout(path, keys, first, moved, len(checked_header(keys, moved, None)))


def _groups(
    tensors: Sequence[TensorPlan], first_keys: Sequence[KeyValue], max_nbytes: int
) -> list[tuple[int, int]]:
    """(first, end) of each file's tensors: as many as fit, in order."""
    groups = []
    first, data, header = 0, 0, unpadded_checked_nbytes(first_keys)
    later = unpadded_checked_nbytes(_split_keys(0, 0, 0))
    for index, tensor in enumerate(tensors):
        nbytes = aligned(tensor.nbytes)
        own = len(tensor_infos([tensor])) + 8 * tensor.spec.n_experts  # its line, its checksums
        if aligned(header + own) + data + nbytes > max_nbytes and index > first:
            groups.append((first, index))
            first, data, header = index, 0, later
        data, header = data + nbytes, header + own
        if aligned(header) + data > max_nbytes:
            raise DotsError(
                f"--split-max-size of {max_nbytes} bytes is too small: the file with {tensor.name} "
                f"needs {aligned(header) + data}",
                hint=f"give at least {-(-(aligned(header) + data) // 1024)}K",
            )
    return [*groups, (first, len(tensors))]
