"""The error of quantized rows against the weights they were made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows import error as module
from dotscli.quantize.rows.codec import Codec
from dotscli.quantize.rows.decode import decode
from dotscli.quantize.rows.error import relative_error, source_error, weighted_error
from dotscli.quantize.types import BF16, F16, F32, Q4_K, Q8_0, TYPES

ROWS, COLUMNS = 6, 512


def stored(values: np.ndarray, kind: TensorType) -> np.ndarray:
    rows, columns = values.shape
    out = np.empty(rows * kind.row_nbytes(columns), np.uint8)
    Codec().encode(values.data.cast("B"), "F32", columns, kind, out)
    return out


def weights(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_it_is_the_sum_in_double_precision(
    kind: TensorType, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE_SIZE", 4 * COLUMNS)  # the last piece is shorter
    values, importance = weights(), None
    if weighted:
        importance = np.exp(weights(1, 1)[0])
    data = stored(values, kind)
    w = np.ones(COLUMNS) if importance is None else importance.astype(np.float64)
    change = values.astype(np.float64) - decode(data.tobytes(), kind).reshape(values.shape)
    error, power = weighted_error(kind, values, data, importance)
    assert error == pytest.approx((w * change**2).sum(), rel=1e-5)
    assert power == pytest.approx((w * values.astype(np.float64) ** 2).sum(), rel=1e-5)
    assert relative_error(error, power) == pytest.approx((error / power) ** 0.5)


def test_a_column_without_importance_counts_for_nothing() -> None:
    values = weights()
    data = stored(values, Q4_K)
    importance = np.ones(COLUMNS, np.float32)
    importance[256:] = 0
    left = np.ascontiguousarray(values[:, :256])
    half = weighted_error(Q4_K, left, stored(left, Q4_K))
    assert weighted_error(Q4_K, values, data, importance) == pytest.approx(half, rel=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_parts_add_up(seed: int) -> None:
    values = weights(seed % 1000)
    data = stored(values, Q4_K)
    cut = 1 + seed % (ROWS - 1)
    at = Q4_K.row_nbytes(COLUMNS) * cut
    whole = weighted_error(Q4_K, values, data)
    parts = [
        weighted_error(Q4_K, values[:cut], data[:at]),
        weighted_error(Q4_K, values[cut:], data[at:]),
    ]
    assert np.sum(parts, axis=0) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", BF16), ("F16", F16), ("F32", F32)])
def test_a_copy_has_no_error(dtype: str, kind: TensorType) -> None:
    source = stored(weights(), kind).data
    error, power = source_error(kind, source, dtype, COLUMNS, source)
    assert error == 0.0
    assert power == pytest.approx(ROWS * COLUMNS, rel=0.1)


def test_huge_tiny_and_no_weights() -> None:
    """The squares of what plain floats can hold don't fit a float32."""
    huge = np.full((2, 32), 3e38, np.float32)
    assert weighted_error(F32, huge, stored(huge, F32)) == (0.0, pytest.approx(64 * 9e76))
    zeros = np.zeros((2, 32), np.float32)
    assert weighted_error(Q8_0, zeros, stored(zeros, Q8_0)) == (0.0, 0.0)
    assert relative_error(0.0, 0.0) == 0.0
    lost = np.full((1, 32), 1e-12, np.float32)  # less than a scale can say
    assert relative_error(*weighted_error(Q8_0, lost, stored(lost, Q8_0))) == 1.0


def test_sizes_that_do_not_fit() -> None:
    values = weights()
    data = stored(values, Q4_K)
    with pytest.raises(ValueError, match="as Q4_K"):
        weighted_error(Q4_K, values, data[:-1])
    with pytest.raises(ValueError, match="importance of shape"):
        weighted_error(Q4_K, values, data, np.ones(3, np.float32))
