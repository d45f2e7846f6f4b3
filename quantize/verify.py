"""verify(): is a GGUF still what was written? Its structure, checksums and numbers.

Every matrix is read: hashed and compared where the file has checksums, so that damage is named by
tensor and expert with nothing but the file; and looked through for floats and scales that are not
finite, which no quantizer writes, whatever program wrote the file. What it is compared with when
there is a checkpoint is in `dotscli.quantize.against`; nothing is printed here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import GgufArray, GgufFile, read_gguf, read_one
from dotscli.models.gguf_type import TENSOR_TYPES, UINT64, TensorType
from dotscli.quantize.output.checksums import KEY, N_HEADER, PIECE_NBYTES, checksum
from dotscli.quantize.output.gguf_header import tensor_info
from dotscli.quantize.rows.valid import first_unsound
from dotscli.quantize.threads import default_threads, in_order


@dataclass(frozen=True)
class Matrix:
    """One expert of a tensor, or all of a tensor that has none.

    Attributes:
        path: the file it lies in.
        expert: its number, or None.
        n_columns: weights in a row.
        start: first byte in the file; nbytes: how many.
        expected: its checksum, or None if the file has none.
    """

    path: Path
    tensor: str
    type: TensorType
    expert: int | None
    n_columns: int
    start: int
    nbytes: int
    expected: int | None

    @property
    def label(self) -> str:
        """For a person: blk.7.ffn_down_exps.weight, expert 93."""
        return self.tensor if self.expert is None else f"{self.tensor}, expert {self.expert}"


@dataclass(frozen=True)
class Opened:
    """The structure is sound; so much is going to be read, and so much of it has checksums."""

    n_tensors: int
    n_matrices: int
    nbytes: int
    hashed_nbytes: int
    with_checksums: bool


@dataclass(frozen=True)
class Read:
    """So many bytes are read."""

    done_nbytes: int


@dataclass(frozen=True)
class Damaged:
    """Something is not what was written."""

    what: str
    tensor: str | None = None
    expert: int | None = None


VerifyEvent = Opened | Read | Damaged


def verify(path: Path, names: Sequence[str] = (), threads: int = 0) -> Iterator[VerifyEvent]:
    """Compare a GGUF, with all its parts, with its checksums.

    Args:
        names: only these tensors; none is all.
        threads: 0 takes every core.

    Raises:
        DotsError: it is no GGUF, no dots1, lacks what llama.cpp needs, or has no such tensor.
    """
    gguf = read_gguf(path)
    check_dots1(gguf)
    check_names(gguf, names)
    files = [read_one(shard) for shard in gguf.shards]
    headers = _headers_damage(files)
    found = [
        matrix
        for file, damage in zip(files, headers, strict=True)
        for matrix in matrices(file, _sums(file) if damage != _REARRANGED else None)
        if not names or matrix.tensor in names
    ]
    with_checksums = any(matrix.expected is not None for matrix in found)
    n_tensors = len({matrix.tensor for matrix in found})
    nbytes = sum(matrix.nbytes for matrix in found)
    hashed = sum(matrix.nbytes for matrix in found if matrix.expected is not None)
    yield Opened(n_tensors, len(found), nbytes, hashed, with_checksums)
    for file, damage in zip(files, headers, strict=True):
        if damage:
            yield Damaged(f"{file.path}: {damage}")
    done = 0
    with in_order(_examined, found, threads or default_threads()) as results:
        for matrix, value, unsound in results:
            done += matrix.nbytes
            yield Read(done)
            what = f"{matrix.path}: {matrix.label} ({matrix.type}) is damaged"
            if unsound is not None:
                row, column = divmod(unsound * matrix.type.block, matrix.n_columns)
                numbers = "a scale that is" if matrix.type.quantized else "a value that is"
                what += f": {numbers} not finite in row {row}, column {column}"
                yield Damaged(what, matrix.tensor, matrix.expert)
            elif matrix.expected not in (None, value):
                yield Damaged(what, matrix.tensor, matrix.expert)


def check_names(gguf: GgufFile, names: Sequence[str]) -> None:
    """DotsError for a name that no tensor has."""
    known = {tensor.name for tensor in gguf.tensors}
    for name in names:
        if name not in known:
            alike = [other for other in sorted(known) if name in other][:3]
            raise DotsError(
                f"{gguf.path} has no tensor {name}",
                hint="names are like " + " ".join(alike or ["blk.7.ffn_down_exps.weight"]),
            )


def matrices(file: GgufFile, sums: Sequence[int] | None) -> Iterator[Matrix]:
    """Every matrix of one file, with its checksum if there are some."""
    position = N_HEADER
    for tensor in file.tensors:
        nbytes = tensor.matrix_nbytes
        for expert in range(tensor.n_experts):
            yield Matrix(
                path=file.path,
                tensor=tensor.name,
                type=TENSOR_TYPES[tensor.type_id],
                expert=expert if tensor.is_stack else None,
                n_columns=tensor.shape[0],
                start=file.data_offset + tensor.offset + expert * nbytes,
                nbytes=nbytes,
                expected=None if sums is None else sums[position],
            )
            position += 1


def read_at(path: Path, start: int, nbytes: int) -> bytes:
    """Bytes of a file; DotsError if they can't be read."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            data = file.read(nbytes)
    except OSError as error:
        raise DotsError(f"{path} can't be read at byte {start}: {error.strerror}") from None
    if len(data) != nbytes:
        raise DotsError(f"{path} ends within the {nbytes} bytes at {start}")
    return data


def _examined(matrix: Matrix) -> tuple[Matrix, int, int | None]:
    """Its checksum, and the number of its first block that is not sound."""
    unsound: int | None = None

    def pieces() -> Iterator[bytes]:
        nonlocal unsound
        whole = PIECE_NBYTES // matrix.type.block_nbytes * matrix.type.block_nbytes
        for at in range(0, matrix.nbytes, whole):
            piece = _read(fd, matrix, at, min(whole, matrix.nbytes - at))
            if unsound is None and (found := first_unsound(piece, matrix.type)) is not None:
                unsound = at // matrix.type.block_nbytes + found
            yield piece

    try:
        fd = os.open(matrix.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DotsError(f"{matrix.path} can't be read: {error.strerror}") from None
    try:
        value = checksum(pieces())
    finally:
        os.close(fd)
    return matrix, value, unsound


def _read(fd: int, matrix: Matrix, at: int, nbytes: int) -> bytes:
    try:
        data = os.pread(fd, nbytes, matrix.start + at)
    except OSError as error:
        raise DotsError(f"{matrix.path}: {matrix.label} can't be read: {error.strerror}") from None
    if len(data) < nbytes:
        raise DotsError(f"{matrix.path} shrank while it was being read")
    return data


_REARRANGED = (
    "the list of tensors is not the one that was written: another program rewrote the file, or "
    "its header is damaged; its checksums prove nothing"
)
_CHANGED = "the metadata was changed after the file was written, or is damaged"
_WITHOUT = (
    "it has no checksums, and the other parts have some: it belongs to another model, or its "
    "header is damaged"
)


def _sums(file: GgufFile) -> Sequence[int] | None:
    """The values of the checksum key, or None if it isn't there."""
    value = file.metadata.get(KEY)
    if not isinstance(value, GgufArray) or value.element_type != UINT64:
        return None
    return [int(number) for number in value.numbers()]


def _headers_damage(files: Sequence[GgufFile]) -> list[str]:
    """What is wrong with the header of each part, or ""."""
    found = [_header_damage(file) for file in files]
    with_sums = [_sums(file) is not None for file in files]
    if any(has and damage != _REARRANGED for has, damage in zip(with_sums, found, strict=True)):
        return [damage if has else _WITHOUT for has, damage in zip(with_sums, found, strict=True)]
    return found


def _header_damage(file: GgufFile) -> str:
    """What is wrong with a header as far as it says itself, or ""."""
    sums = _sums(file)
    if sums is None:
        return _REARRANGED if KEY in file.metadata else ""
    infos = b"".join(tensor_info(t.name, t.shape, t.type_id, t.offset) for t in file.tensors)
    count = N_HEADER + sum(tensor.n_experts for tensor in file.tensors)
    if len(sums) != count or sums[1] != checksum([infos]):
        return _REARRANGED
    header = read_at(file.path, 0, file.data_offset)
    values = struct.pack(f"<{count}Q", *sums)
    if sums[0] != checksum([header.replace(values, bytes(len(values)), 1)]):
        return _CHANGED
    return ""
