"""FP8: the values of 8-bit floats, and the scales that make weights of them again.

E4M3 has no infinity and one NaN (0x7f), E5M2 is the upper half of a half float (OCP 8-bit floating
point specification). A scale multiplies, also where it is called inverse. A float of four
significant bits times a scale in bf16 is exact in float32; times one in float32 it is rounded once.
Where codes and scales lie is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """The weights that share a scale: so many rows and columns of a matrix."""

    rows: int
    columns: int

    def n_scales(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many scales a matrix has, down and across; blocks at the edges may be cut."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)


def _e4m3() -> Floats:
    codes = np.arange(128)
    exponents, fractions = codes >> 3, codes & 7
    # Below the smallest exponent there is no implicit leading bit.
    values = np.ldexp(np.where(exponents, 8 + fractions, fractions), np.maximum(exponents, 1) - 10)
    values[0x7F] = np.nan
    return np.concatenate((values, -values)).astype(np.float32)


def _e5m2() -> Floats:
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


VALUES: dict[str, Floats] = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}


def widen(codes: memoryview, dtype: str) -> Floats:
    """The floats that FP8 codes stand for, NaN and infinities included."""
    return VALUES[dtype].take(np.frombuffer(codes, np.uint8))


def apply_scales(floats: Floats, scales: Floats, grid: Grid, first_row: int) -> None:
    """Multiply rows of a matrix by their scales, in place.

    Args:
        floats: (rows, columns), the matrix from first_row on.
        scales: those of the blocks that first_row and the rows after it lie in.
    """
    n_rows, n_columns = floats.shape
    block_of_row = np.arange(first_row, first_row + n_rows) // grid.rows - first_row // grid.rows
    wide = scales
    if scales.shape[1] > 1:
        wide = np.repeat(scales, grid.columns, axis=1)[:, :n_columns]
    floats *= wide[block_of_row]
