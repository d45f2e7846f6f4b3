"""What is known of a model's heat before a run, and what is kept after it.

Every model file has a heat file of its own, named after a fingerprint of the model. Counts in it
halve with so many tokens: what a model is used for changes. This module knows no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dotscli.errors import DotsError
from dotscli.hot import heat_store
from dotscli.hot.heat import Heat
from dotscli.hot.model_cost import ModelCost
from dotscli.hot.slots import expert_shares

HALF_LIFE = 65536  # tokens


class KeptHeat:
    """The heat of one model from run to run.

    Attributes:
        heat: to place by; None where nothing is known yet.
        path: where counts are kept, None for nowhere.
        problem: why the kept file is neither used nor written, empty if it is.

    Args:
        cost: of the model, to see that heat fits it.
        path: the model's heat file, which need not exist.
        given: a heat file or importance matrix to begin with, whatever is kept. It is only read.

    Raises:
        DotsError: `given` can't be read or is of another model.
    """

    def __init__(self, cost: ModelCost, path: Path | None, given: Path | None) -> None:
        self.path = path
        self.problem = ""
        self._cost = cost
        self.heat: Heat | None = self._read(given) if given is not None else None
        if path is None or not _exists(path):
            return
        try:
            kept = self._read(path)
        except DotsError as error:
            self.problem = f"the saved heat is neither used nor updated: {error.message}"
            self.path = None
            return
        self.heat = self.heat or kept

    def save(self, counts: Mapping[int, np.ndarray], n_tokens: int) -> None:
        """Add a run's counts to what is kept by now, perhaps by another run meanwhile.

        Where nothing is kept yet, what was given to begin with is, as far as it counts for no more
        than a half-life of tokens.

        Raises:
            DotsError: it can't be written.
        """
        if self.path is None or n_tokens <= 0:
            return
        total = self._read(self.path) if _exists(self.path) else self._bounded(self.heat or Heat())
        total.decay(0.5 ** (n_tokens / HALF_LIFE))
        total.add(counts)
        heat_store.save(total, self.path)

    def _read(self, path: Path) -> Heat:
        heat = heat_store.load(path)
        layers = {cost.layer for cost in self._cost.moe_layers}
        if not layers & set(heat.layers):
            raise DotsError(
                f"{path} is the heat of another model: it has none of this model's layers"
            )
        try:
            expert_shares(self._cost, {k: v.tolist() for k, v in heat.layers.items()})
        except DotsError as error:
            raise DotsError(f"{path}: {error.message}", hint=error.hint) from error
        return Heat({layer: counts for layer, counts in heat.layers.items() if layer in layers})

    def _bounded(self, heat: Heat) -> Heat:
        most = HALF_LIFE * self._cost.n_experts_used
        return Heat(
            {
                layer: counts * min(1.0, most / max(1.0, float(counts.sum())))
                for layer, counts in heat.layers.items()
            }
        )


def _exists(path: Path) -> bool:
    """Also where nobody may look: reading then says why."""
    try:
        return path.exists()
    except OSError:
        return True
