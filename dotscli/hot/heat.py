"""Heat: how much each expert is used, as decayed counts of the tokens routed to it.

The backend counts; here the counts become something to place by. This module knows nothing of files
(heat_store.py), of what is kept from run to run (kept_heat.py), of devices, or of what a slot
costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

Counts = Mapping[int, np.ndarray]  # layer -> tokens routed to each expert, [n_experts]


@dataclass
class Heat:
    """Layer -> decayed token counts, float64 [n_experts]. Never negative."""

    layers: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Counts) -> Heat:
        return cls({layer: np.array(values, np.float64) for layer, values in counts.items()})

    def add(self, counts: Counts) -> None:
        """Add counts; a layer that is new, or has another number of experts now, starts anew."""
        for layer, values in counts.items():
            known = self.layers.get(layer)
            fresh = np.asarray(values, np.float64)
            if known is None or known.shape != fresh.shape:
                self.layers[layer] = fresh.copy()
            else:
                self.layers[layer] = known + fresh

    def decay(self, factor: float) -> None:
        """Multiply every count by a factor from 0 (forget) to 1 (keep)."""
        if not 0 <= factor <= 1:
            raise ValueError(f"a decay of {factor}")
        for layer in self.layers:
            self.layers[layer] = self.layers[layer] * factor

    def hottest(self, layer: int, n: int) -> list[int]:
        """The n most used experts of a layer, hottest first; the lower id first among equals."""
        counts = self.layers.get(layer)
        if counts is None:
            return []
        return [int(expert) for expert in np.argsort(-counts, kind="stable")[:n]]

    def share(self, layer: int, experts: Iterable[int]) -> float:
        """The part of a layer's tokens that these experts took: the hit rate of having them."""
        counts = self.layers.get(layer)
        if counts is None or not counts.sum():
            return 0.0
        return float(counts[list(set(experts))].sum() / counts.sum())

    def skew(self, layer: int) -> float:
        """How much more the hottest tenth is used than a tenth of equals: 1 is no skew at all."""
        counts = self.layers.get(layer)
        if counts is None or not counts.sum():
            return 1.0
        n = max(1, len(counts) // 10)
        return self.share(layer, self.hottest(layer, n)) * len(counts) / n
