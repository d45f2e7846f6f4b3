"""Quantized blocks out of a random generator: every code is possible, every scale finite.

Nothing is quantized, so gigabytes take seconds, and no two blocks are alike. The scales are set so
that the weights have the spread asked for and next to no mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows.decode import decode

# Where a block has its scale, and where its minimum with the multiple of the scale that takes
# the mean away: codes from 0 to 15 or 31, times a scale of the sub-block where there is one.
_SCALE = {
    "Q4_0": 0, "Q4_1": 0, "Q5_0": 0, "Q5_1": 0, "Q8_0": 0, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208,
    "IQ4_NL": 0, "IQ4_XS": 0,
}  # fmt: skip
_MINIMUM = {"Q4_1": (2, -7.5), "Q5_1": (2, -15.5), "Q4_K": (2, 7.5), "Q5_K": (2, 15.5)}
_SAMPLE = 4096  # blocks by which the spread at a scale of 1 is known


class Blocks:
    """Random blocks of any type that `_SCALE` knows, from one generator."""

    def __init__(self, seed: int) -> None:
        self._raw = np.random.SFC64(seed)
        self._spread_at_1: dict[str, float] = {}

    def make(self, kind: TensorType, n: int, spread: float) -> NDArray[np.uint8]:
        """Blocks as they are stored, [n, bytes of a block].

        Args:
            spread: standard deviation of the weights.

        Raises:
            ValueError: a type that has no place for its scale here.
        """
        if kind.name not in _SCALE:
            raise ValueError(f"random blocks of {kind.name} are not known")
        if kind.name not in self._spread_at_1:
            sample = self._blocks(kind, _SAMPLE, 1.0)
            self._spread_at_1[kind.name] = float(decode(sample.tobytes(), kind).std())
        return self._blocks(kind, n, spread / self._spread_at_1[kind.name])

    def _blocks(self, kind: TensorType, n: int, scale: float) -> NDArray[np.uint8]:
        nbytes = n * kind.block_nbytes
        raw: NDArray[np.uint64] = self._raw.random_raw(-(-nbytes // 8))
        blocks = raw.view(np.uint8)[:nbytes].reshape(n, kind.block_nbytes)
        at = _SCALE[kind.name]
        blocks[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
        if kind.name in _MINIMUM:
            at, multiple = _MINIMUM[kind.name]
            blocks[:, at : at + 2] = np.array([scale * multiple], "<f2").view(np.uint8)
        return blocks
