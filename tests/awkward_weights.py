"""Weights and importance that go looking for the corners of a quantizer.

Every kind is a function (rng, n_rows, n_columns) -> finite float32 array; columns come in
multiples of 32. Used by tests/test_native_quantizers.py and bench/quantize/quantizers_equal.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# The values of IQ4_NL and IQ4_XS: weights half-way between two of them are ties.
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


OUTLIER = 5  # the column in every 32 where `outliers` are, and where importance may vanish


def _finite(values: NDArray[np.float64]) -> Floats:
    limit = float(np.finfo(np.float32).max)
    return np.clip(values, -limit, limit).astype(np.float32)


def _scales(rng: Generator, n_rows: int, low: int, high: int) -> NDArray[np.float64]:
    return np.ldexp(1.0 + rng.random((n_rows, 1)), rng.integers(low, high, (n_rows, 1)))


def bell(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Gaussian, rounded to bf16 as the weights of a checkpoint are."""
    x = _finite(rng.standard_normal((n_rows, n_columns)) * _scales(rng, n_rows, -9, 1))
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def heavy_tails(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Student's t with two degrees of freedom: outliers in every row."""
    return _finite(rng.standard_t(2, (n_rows, n_columns)) * _scales(rng, n_rows, -9, 1))


def any_scale(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Gaussian rows from far below the smallest normal float to just below overflow."""
    return _finite(rng.standard_normal((n_rows, n_columns)) * _scales(rng, n_rows, -149, 125))


def one_sided(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """All weights of a row of one sign, away from zero."""
    sign = rng.choice([-1.0, 1.0], (n_rows, 1))
    return _finite(sign * (0.1 + rng.random((n_rows, n_columns))) * _scales(rng, n_rows, -20, 20))


def zeros(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Zeros of both signs, with and without a few weights among them."""
    x = rng.choice(np.array([0.0, -0.0], np.float32), (n_rows, n_columns))
    some = rng.random((n_rows, n_columns)) < rng.choice([0.0, 0.01, 0.3], (n_rows, 1))
    return np.where(some, bell(rng, n_rows, n_columns), x)


def denormals(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Smaller than the smallest normal float."""
    bits = rng.integers(0, 1 << 23, (n_rows, n_columns), np.uint32)
    bits >>= rng.integers(0, 23, (n_rows, 1), np.uint32)
    bits |= rng.integers(0, 2, (n_rows, n_columns), np.uint32) << np.uint32(31)
    return bits.view(np.float32)


def any_bits(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Every finite float as likely as any other."""
    bits = rng.integers(0, 1 << 32, (n_rows, n_columns), np.uint32)
    bits = np.where(bits & 0x7F800000 == 0x7F800000, bits & np.uint32(0xBFFFFFFF), bits)
    return bits.view(np.float32)


def constant(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """One value per row, sometimes with random signs: all magnitudes are equal."""
    value = rng.standard_normal((n_rows, 1)) * _scales(rng, n_rows, -60, 60)
    sign = rng.choice([-1.0, 1.0], (n_rows, n_columns))
    return _finite(value * np.where(rng.random((n_rows, 1)) < 0.5, sign, 1.0))


def spikes(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """One large weight per 32, the others small or zero."""
    x = rng.standard_normal((n_rows, n_columns)) * rng.choice([0.0, 1e-6, 1e-2], (n_rows, 1))
    where = rng.integers(0, 32, (n_rows, n_columns // 32, 1))
    groups = x.reshape(n_rows, -1, 32)
    np.put_along_axis(groups, where, rng.choice([-1.0, 1.0, 3.0], where.shape), axis=2)
    return _finite(x * _scales(rng, n_rows, -20, 20))


def nearly_equal(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Weights that differ in their last bits only."""
    start = _finite(rng.standard_normal((n_rows, 1)) * _scales(rng, n_rows, -30, 30))
    steps = rng.integers(0, 1 << rng.integers(1, 8), (n_rows, n_columns), np.uint32)
    return ((start.view(np.uint32) & np.uint32(0xFFFFFF00)) + steps).view(np.float32)


def grid(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Small multiples of one step: levels and their half-way points fall together."""
    top = rng.choice([2, 15, 16, 30, 31, 32, 62, 64], (n_rows, 1))
    x = rng.integers(-top, top + 1, (n_rows, n_columns)) + rng.integers(-64, 65, (n_rows, 1))
    return _finite(x * np.ldexp(1.0, rng.integers(-12, 12, (n_rows, 1))))


def borders(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """On the borders between two non-linear values, and one float beside them."""
    values = np.array(NONLINEAR, np.float32)
    middle = (values[1:] + values[:-1]) / 2
    choices = np.concatenate(
        [values, middle, np.nextafter(middle, 200), np.nextafter(middle, -200)]
    )
    x = rng.choice(choices.astype(np.float32), (n_rows, n_columns))
    x.reshape(n_rows, -1, 32)[:, :, 0] = rng.choice([-127.0, 127.0, 113.0, 120.0], (n_rows, 1))
    return _finite(x.astype(np.float64) * np.ldexp(1.0, rng.integers(-14, 6, (n_rows, 1))))


def uneven(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Every 16 weights at a scale of their own: many block scales round to zero."""
    groups = rng.standard_normal((n_rows, n_columns // 16, 16))
    groups *= np.ldexp(1.0, rng.integers(-18, 2, (n_rows, n_columns // 16, 1)))
    groups += rng.choice([0.0, 0.0, 0.25, -1.0], (n_rows, n_columns // 16, 1))
    return _finite(groups.reshape(n_rows, n_columns))


def slopes(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Rising and falling lines."""
    line = np.linspace(-1, 1, n_columns) * rng.choice([-1.0, 1.0, 7.0], (n_rows, 1))
    return _finite((line + rng.standard_normal((n_rows, 1))) * _scales(rng, n_rows, -12, 3))


def outliers(rng: Generator, n_rows: int, n_columns: int) -> Floats:
    """Close together and below zero, but for a far lower weight per 32, always in one column: where
    `importance` makes that column count for nothing, offsets leave the range of the weights."""
    x = -1 - rng.random((n_rows, n_columns)) * 10.0 ** rng.integers(-7, 0, (n_rows, 1))
    groups = x.reshape(n_rows, -1, 32)
    groups[:, :, OUTLIER] = -(10.0 ** rng.uniform(0, 9, groups.shape[:2]))
    return _finite(x)


Kind = Callable[[Generator, int, int], Floats]
KINDS: tuple[Kind, ...] = (
    bell, heavy_tails, any_scale, one_sided, zeros, denormals, any_bits, constant, spikes,
    nearly_equal, grid, borders, uneven, slopes, outliers,
)  # fmt: skip


def importance(rng: Generator, n_columns: int) -> Floats:
    """Mean squared activations: even, spread over many orders, with zeros, tiny, huge, all zero."""
    spread = rng.choice([0.0, 0.5, 2.0, 6.0])
    values = np.exp(spread * rng.standard_normal(n_columns)) * 10.0 ** rng.integers(-6, 3)
    kind = rng.integers(0, 8)
    if kind == 0:
        values[rng.random(n_columns) < 0.5] = 0
    elif kind == 1:
        values[rng.integers(0, n_columns // 32) * 32 :][:32] = 0
    elif kind == 2:
        values *= 1e-38
    elif kind == 3:
        values *= 1e30
    elif kind == 4:
        values[OUTLIER::32] = 1e-12
    elif kind == 5 and rng.random() < 0.25:
        values[:] = 0
    return _finite(values)
