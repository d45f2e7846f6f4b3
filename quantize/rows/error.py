"""The error of quantized rows: what they hold instead of the weights they were made from.

It is measured as two sums, so that parts of a matrix, or matrices, add up:

    error = sum of w (x - x')^2        power = sum of w x^2

over the weights x and what the file holds instead, x'; w is the importance of the weight's column,
or 1. `relative_error` is the root of their quotient: |x - x'| / |x| where nothing is weighted. It
knows rows, not tensors or files.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows.codec import bits_of, widen
from dotscli.quantize.rows.decode import decode_into

_PIECE_SIZE = 1 << 16  # compared at a time: two times 256 KiB of floats stay in a core's cache

ErrorAndPower = tuple[float, float]


def weighted_error(
    kind: TensorType,
    values: NDArray[np.float32],
    data: bytes | memoryview | NDArray[np.uint8],
    importance: NDArray[np.float32] | None = None,
) -> ErrorAndPower:
    """The error and power of rows of one matrix.

    Args:
        kind: what they are stored as.
        values: the weights, float32 (rows, columns), contiguous; they are not changed.
        data: the same rows as the file holds them.
        importance: one weight for each column, float32 (columns,), or None: all are 1.

    Raises:
        ValueError: data or importance don't have the size that kind and values ask for.
    """
    bits = bits_of(values.reshape(-1).view(np.uint8), "F32")
    return source_error(kind, bits.data.cast("B"), "F32", values.shape[1], data, importance)


def source_error(
    kind: TensorType,
    source: memoryview,
    dtype: str,
    n_columns: int,
    data: bytes | memoryview | NDArray[np.uint8],
    importance: NDArray[np.float32] | None = None,
) -> ErrorAndPower:
    """The same of rows of a checkpoint: BF16, F16 or F32, little-endian, contiguous.

    Raises:
        ValueError: data or importance don't have the size that kind and source ask for.
    """
    bits, blocks = bits_of(source, dtype), np.frombuffer(data, np.uint8)
    n_rows, rest = divmod(bits.size, n_columns)
    row_nbytes = kind.row_nbytes(n_columns)
    if rest or n_columns % kind.block or blocks.size != n_rows * row_nbytes:
        raise ValueError(f"{bits.size} weights in rows of {n_columns}, {blocks.size} as {kind}")
    if importance is not None and importance.shape != (n_columns,):
        raise ValueError(f"importance of shape {importance.shape} for {n_columns} columns")
    # A quantized weight is within the range of a half float, so its square fits a float32, as does
    # the sum of a piece's squares; a plain float's need not. Pieces are added in float64.
    squares = np.float32 if kind.quantized else np.float64
    piece_rows = max(1, min(n_rows, _PIECE_SIZE // n_columns))
    floats, stored = np.empty((2, piece_rows * n_columns), np.float32)
    error, power = np.zeros((2, n_columns))
    for row in range(0, n_rows, piece_rows):
        end = min(row + piece_rows, n_rows)
        x, made = floats[: (end - row) * n_columns], stored[: (end - row) * n_columns]
        widen(bits[row * n_columns : end * n_columns], dtype, x)
        decode_into(blocks[row * row_nbytes : end * row_nbytes], kind, made)
        np.subtract(x, made, out=made)
        error += _column_squares(made.reshape(-1, n_columns), squares)
        power += _column_squares(x.reshape(-1, n_columns), squares)
    if importance is not None:
        error *= importance
        power *= importance
    return float(error.sum()), float(power.sum())


def relative_error(error: float, power: float) -> float:
    """The root of error / power; 0 for weights that are all zeros and stay so."""
    return math.sqrt(error / power) if power else 0.0


def _column_squares(rows: NDArray[np.float32], dtype: type[np.floating]) -> NDArray[np.floating]:
    """The sum of squares of each column, without BLAS: its threads would compete with ours."""
    columns: NDArray[np.floating] = np.einsum("ij,ij->j", rows, rows, dtype=dtype)
    return columns
