"""Importance matrices in llama.cpp's GGUF form: how much each input column of a tensor matters.

A file holds, per weight tensor, `<name>.in_sum2` (matrices, columns): the sum of squared
activations per column, and `<name>.counts`: the tokens each expert saw; their quotient is what the
quantizers take. A row of zeros would make them write a dead expert, so such rows are replaced, and
said. Values stay in the mapped file until an expert is quantized. How they are collected is not
known here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.gguf_file import GgufArray, GgufFile, GgufTensor, read_gguf
from dotscli.models.metadata import KeyValue
from dotscli.models.tensors import TensorSpec
from dotscli.quantize.types import F32

SUMS, COUNTS = ".in_sum2", ".counts"
_GROUP = 16  # the smallest group of columns that shares a scale in any type
_MAX_KEY_NBYTES = 127  # what llama-quantize keeps of a text

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """The measurements for one tensor: sums (matrices, columns), counts (matrices,)."""

    sums: Floats
    counts: Floats


@dataclass(frozen=True)
class ImportanceMatrix:
    """One file's entries by GGUF tensor name.

    Attributes:
        datasets: the names of the texts it was collected on.
        n_chunks: how many chunks of them.
    """

    path: Path
    entries: dict[str, Entry]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0

    def row(self, name: str, expert: int) -> Floats | None:
        """Weights of one expert's columns, all positive in every group that shares a scale.

        Experts that saw no token, and rows of zeros, get ones, as llama-quantize does for the
        former. None if the file has nothing for the tensor.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        count = entry.counts[expert]
        if count <= 0:
            return np.ones(entry.sums.shape[1], np.float32)
        row: Floats = entry.sums[expert] / count
        if not row.any():
            return np.ones(entry.sums.shape[1], np.float32)
        groups = row.reshape(-1, _GROUP)
        dead = ~groups.any(axis=1)
        if dead.any():
            groups[dead] = row.mean()
        return row

    def check(self, specs: Iterable[TensorSpec]) -> tuple[str, ...]:
        """Compare with the tensors to quantize.

        Returns:
            Warnings: experts without measurements, tensors without an entry.

        Raises:
            DotsError: an entry of the wrong size, or none that fits any tensor.
        """
        unseen = n_matrices = n_used = 0
        for spec in specs:
            entry = self.entries.get(spec.name)
            if entry is None or len(spec.shape) < 2:
                continue
            expected = (spec.n_experts, spec.shape[-1])
            if entry.sums.shape != expected:
                raise DotsError(
                    f"{self.path}: {spec.name} has measurements of {entry.sums.shape[0]} x "
                    f"{entry.sums.shape[1]}, the tensor needs {expected[0]} x {expected[1]}",
                    hint="the importance matrix is of another model",
                )
            n_used += 1
            n_matrices += spec.n_experts
            unseen += int(np.sum((entry.counts <= 0) | ~entry.sums.any(axis=1)))
        if not n_used:
            raise DotsError(f"{self.path} has measurements for none of the model's tensors")
        if not unseen:
            return ()
        return (
            f"{self.path}: {unseen} of {n_matrices} matrices saw no token; "
            "their columns count equally",
        )

    def keys(self) -> tuple[KeyValue, ...]:
        """quantize.imatrix.*, as llama-quantize writes them."""
        keys = [KeyValue("quantize.imatrix.file", "str", _cut(self.path.name))]
        if self.datasets:
            keys.append(KeyValue("quantize.imatrix.dataset", "str", _cut(self.datasets[0])))
        keys.append(KeyValue("quantize.imatrix.entries_count", "u32", len(self.entries)))
        if self.n_chunks > 0:
            keys.append(KeyValue("quantize.imatrix.chunks_count", "u32", self.n_chunks))
        return tuple(keys)


def load_importance(path: Path) -> ImportanceMatrix:
    """Map and check an importance matrix.

    Raises:
        DotsError: no GGUF, no importance matrix, sums without counts, another type than F32, or
            values that are negative or not finite.
    """
    gguf = read_gguf(path)
    kind = gguf.metadata.get("general.type")
    if kind != "imatrix":
        raise DotsError(
            f"{path}: general.type is {kind!r}, expected 'imatrix'",
            hint="make one with llama-imatrix; its old .dat form is not read",
        )
    if len(gguf.shards) > 1:
        raise DotsError(f"{path} is one of {len(gguf.shards)} parts, expected one file")
    tensors = {tensor.name: tensor for tensor in gguf.tensors}
    entries: dict[str, Entry] = {}
    for name, tensor in tensors.items():
        base = name.removesuffix(SUMS)
        if base == name:
            if name.endswith(COUNTS) and name.removesuffix(COUNTS) + SUMS not in tensors:
                raise DotsError(f"{path}: {name} has no {SUMS} beside it")
            continue
        counts = tensors.get(base + COUNTS)
        if counts is None:
            raise DotsError(f"{path}: {name} has no {COUNTS} beside it")
        entries[base] = _entry(path, gguf, tensor, counts)
    n_chunks = gguf.metadata.get("imatrix.chunk_count")
    datasets = gguf.metadata.get("imatrix.datasets")
    return ImportanceMatrix(
        path,
        entries,
        tuple(str(name) for name in datasets) if isinstance(datasets, GgufArray) else (),
        n_chunks if isinstance(n_chunks, int) else 0,
    )


def _entry(path: Path, gguf: GgufFile, sums: GgufTensor, counts: GgufTensor) -> Entry:
    entry = Entry(_floats(path, gguf, sums), _floats(path, gguf, counts).reshape(-1))
    if entry.sums.shape[0] != entry.counts.size or entry.sums.shape[1] % _GROUP:
        raise DotsError(
            f"{path}: {sums.name} is {entry.sums.shape[0]} x {entry.sums.shape[1]}, "
            f"with {entry.counts.size} counts"
        )
    for name, values in ((sums.name, entry.sums), (counts.name, entry.counts)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise DotsError(f"{path}: {name} holds values that are negative or not finite")
    # llama.cpp rounds counts to whole tokens, halves away from zero.
    return Entry(entry.sums, np.floor(entry.counts + np.float32(0.5)))


def _floats(path: Path, gguf: GgufFile, tensor: GgufTensor) -> Floats:
    """(ne[1], ne[0]) of a two-dimensional F32 tensor, mapped."""
    if tensor.type_id != F32.id or not 1 <= len(tensor.shape) <= 2:
        raise DotsError(f"{path}: {tensor.name} is no F32 matrix")
    shape = (tensor.shape[1] if len(tensor.shape) == 2 else 1, tensor.shape[0])
    offset = gguf.data_offset + tensor.offset
    values: Floats = np.memmap(path, np.dtype("<f4"), mode="r", offset=offset, shape=shape)
    return values


def _cut(text: str) -> str:
    return text.encode("utf-8")[:_MAX_KEY_NBYTES].decode("utf-8", errors="ignore")
