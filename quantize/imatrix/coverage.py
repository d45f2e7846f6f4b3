"""How many tokens each layer's experts saw while an importance matrix was collected."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

import numpy as np

from dotscli.quantize.imatrix.importance import ImportanceMatrix

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down)_exps\.weight")


@dataclass(frozen=True)
class LayerCoverage:
    """The routed experts of one layer.

    Attributes:
        seen: how many experts saw a token; least, median: tokens per expert.
        thin: the experts whose statistics are blended with the layer's, as they saw too few.
    """

    layer: int
    n_experts: int
    seen: int
    least: int
    median: int
    thin: tuple[int, ...]

    def as_json(self) -> dict[str, object]:
        """For --json."""
        return {**asdict(self), "thin": list(self.thin)}


def coverage(matrix: ImportanceMatrix) -> tuple[LayerCoverage, ...]:
    """Every layer with routed experts, in order.

    Gate, up and down of an expert see the same tokens: one of them is looked at.
    """
    found: dict[int, LayerCoverage] = {}
    for name, entry in sorted(matrix.entries.items()):
        match = _EXPERTS.fullmatch(name)
        if match is None or int(match[1]) in found:
            continue
        counts = entry.counts
        found[int(match[1])] = LayerCoverage(
            int(match[1]),
            len(counts),
            int(np.count_nonzero(counts)),
            int(counts.min()),
            int(np.median(counts)),
            tuple(int(expert) for expert in matrix.thin(name)),
        )
    return tuple(found[layer] for layer in sorted(found))
