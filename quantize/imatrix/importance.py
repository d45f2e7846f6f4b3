"""Importance matrices: how much each input column of a tensor matters.

A column's weight is its mean square over the tokens that a matrix saw. An expert that saw few has
its row blended when it is read (`ImportanceMatrix.row`); the file keeps what was measured. A row of
zeros would make the quantizers write a dead expert, so such rows are replaced, and said. How they
are collected is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.metadata import KeyValue
from dotscli.models.tensors import TensorSpec
from dotscli.quantize.imatrix.file import Entry, Floats, read_imatrix

__all__ = ["THIN_TOKENS", "Entry", "ImportanceMatrix", "load_importance"]

THIN_TOKENS = 256  # an expert that saw fewer is thin
LAYER_TOKENS = 16  # what a layer's mean is worth, in tokens of an expert's own: gate and up
FLAT_TOKENS = 4  # what equal weights are worth: down
THIN_KEY = "dots.imatrix.thin_tokens"
_GROUP = 16  # the smallest group of columns that shares a scale in any type
_MAX_KEY_NBYTES = 127  # what llama-quantize keeps of a text


@dataclass(frozen=True)
class ImportanceMatrix:
    """One file's entries by GGUF tensor name.

    Attributes:
        datasets: the names of the texts it was collected on.
        n_chunks: how many chunks of them.
        thin_tokens: experts that saw fewer tokens are blended; 0 for none, which is
            llama-quantize's way and the only one where a file doesn't count tokens.
    """

    path: Path
    entries: dict[str, Entry]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    thin_tokens: int = THIN_TOKENS
    _means: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)

    def row(self, name: str, expert: int) -> Floats | None:
        """Weights of one expert's columns, all positive in every group that shares a scale.

        With s the expert's sums, n its tokens and T = thin_tokens, the weights are s / n as in
        llama-quantize for n >= T, else (s + k p) / (n + k) with k = K (1 - n / T), so that nothing
        jumps at T. The prior p has the level of s / n and the shape of what is known without the
        expert: for gate and up the layer's mean over all its experts' tokens, K = 16, as they read
        the same hidden state; for down equal weights, K = 4, as column j is another neuron in each
        expert, and the layer's mean makes it worse. This is the mean of a distribution after n
        observations whose prior counts for k of them; both K are where the error of the weights
        is least on the nano model (bench/quality/blending.py).

        Rows of zeros get ones. None if the file has nothing for the tensor.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        count = entry.counts[expert]
        if entry.counts.size > 1 and count < self.thin_tokens:
            row = self._blended(name, expert)
        elif count > 0:
            row = entry.sums[expert] / count
        else:
            return np.ones(entry.sums.shape[1], np.float32)
        if not row.any():
            return np.ones_like(row)
        groups = row.reshape(-1, _GROUP)
        dead = ~groups.any(axis=1)
        if dead.any():
            groups[dead] = row.mean()
        return row

    def thin(self, name: str) -> NDArray[np.intp]:
        """The experts of a stack that `row` blends, none for other tensors."""
        counts = self.entries[name].counts
        return np.flatnonzero((counts < self.thin_tokens) & (counts.size > 1))

    def check(self, specs: Iterable[TensorSpec]) -> tuple[str, ...]:
        """Compare with the tensors to quantize.

        Returns:
            Warnings: experts that are blended or have no measurements.

        Raises:
            DotsError: an entry of the wrong size, or none that fits any tensor.
        """
        unseen = thin = n_matrices = n_used = 0
        for spec in specs:
            entry = self.entries.get(spec.name)
            if entry is None or len(spec.shape) < 2:
                continue
            expected = (spec.n_experts, spec.n_columns)
            if entry.sums.shape != expected:
                raise DotsError(
                    f"{self.path}: {spec.name} has measurements of {entry.sums.shape[0]} x "
                    f"{entry.sums.shape[1]}, the tensor needs {expected[0]} x {expected[1]}",
                    hint="the importance matrix belongs to another model",
                )
            n_used += 1
            n_matrices += spec.n_experts
            thin += self.thin(spec.name).size
            unseen += int(np.sum((entry.counts <= 0) | ~entry.sums.any(axis=1)))
        if not n_used:
            raise DotsError(f"{self.path} has measurements for none of the model's tensors")
        warnings = []
        if thin:
            warnings.append(
                f"{self.path}: {thin} of {n_matrices} matrices saw fewer than {self.thin_tokens} "
                "tokens: their importance is blended with their layer's (--no-blend: as it is)"
            )
        if unseen and not thin:
            warnings.append(
                f"{self.path}: {unseen} of {n_matrices} matrices saw no tokens; "
                "their columns count equally"
            )
        return tuple(warnings)

    def keys(self) -> tuple[KeyValue, ...]:
        """quantize.imatrix.*, as llama-quantize writes them, and how rows were blended."""
        keys = [KeyValue("quantize.imatrix.file", "str", _cut(self.path.name))]
        if self.datasets:
            keys.append(KeyValue("quantize.imatrix.dataset", "str", _cut(self.datasets[0])))
        keys.append(KeyValue("quantize.imatrix.entries_count", "u32", len(self.entries)))
        if self.n_chunks > 0:
            keys.append(KeyValue("quantize.imatrix.chunks_count", "u32", self.n_chunks))
        keys.append(KeyValue(THIN_KEY, "u32", self.thin_tokens))
        return tuple(keys)

    def _blended(self, name: str, expert: int) -> Floats:
        entry = self.entries[name]
        count = float(entry.counts[expert])
        sums = entry.sums[expert].astype(np.float64) if count > 0 else np.zeros(1)
        is_down = ".ffn_down" in name
        prior = np.ones(entry.sums.shape[1]) if is_down else self._layer_mean(name)
        if sums.any():
            prior = prior * (sums.mean() / count / prior.mean())
        worth = (FLAT_TOKENS if is_down else LAYER_TOKENS) * (1 - count / self.thin_tokens)
        row: Floats = ((sums + worth * prior) / (count + worth)).astype(np.float32)
        return row

    def _layer_mean(self, name: str) -> NDArray[np.float64]:
        """The mean over all tokens of a layer's experts; ones if there were none."""
        mean = self._means.get(name)
        if mean is None:
            entry = self.entries[name]
            mean = entry.sums.sum(axis=0, dtype=np.float64) / max(float(entry.counts.sum()), 1.0)
            if not mean.any():
                mean = np.ones_like(mean)
            self._means[name] = mean
        return mean


def load_importance(path: Path, thin_tokens: int = THIN_TOKENS) -> ImportanceMatrix:
    """Read and check an importance matrix in llama.cpp's GGUF or .dat form.

    Args:
        thin_tokens: as in `ImportanceMatrix`.

    Raises:
        DotsError: whatever `read_imatrix` doesn't accept, or rows that no type can quantize.
    """
    found = read_imatrix(path)
    for name, entry in found.entries.items():
        if entry.sums.shape[1] % _GROUP:
            raise DotsError(
                f"{path}: {name} has {entry.sums.shape[1]} columns, not a multiple of {_GROUP}"
            )
    if found.is_legacy:
        thin_tokens = 0
    return ImportanceMatrix(path, found.entries, found.datasets, found.n_chunks, thin_tokens)


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:_MAX_KEY_NBYTES].decode("utf-8", errors="ignore")
