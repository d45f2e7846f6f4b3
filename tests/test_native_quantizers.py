"""The native quantizers: the bytes of ggml_quantize_chunk, on every path this processor can run."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.rows import codec, native
from dotscli.quantize.rows.native import TYPES, Native
from dotscli.quantize.types import IQ4_NL, Q4_K, Q5_K, Q8_0
from tests import awkward_weights

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
PATHS = ("baseline", "avx2", "avx512")
COLUMNS = 512
OK, BAD_TYPE, BAD_SOURCE, BAD_SHAPE, BAD_POINTER, BAD_PATH = range(6)


@cache
def library() -> ctypes.CDLL:
    opened, why = native.opened()
    if opened is None:
        if os.environ.get("DOTSCLI_PURE") or sys.platform == "win32":
            pytest.skip(why)
        pytest.fail(why)
    return opened.library


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Native:
    """Each path in turn; those that this processor can't run are skipped."""
    if request.param not in native.paths(library()):
        pytest.skip(f"no {request.param} on this processor")
    return Native(library(), request.param)


def quantized(
    path: Native, kind: TensorType, weights: Floats, importance: Floats | None = None
) -> Bytes:
    out = np.empty(weights.shape[0] * kind.row_nbytes(weights.shape[1]), np.uint8)
    path.quantize(weights.ctypes.data, "F32", *weights.shape, kind, out, importance)
    return out


def by_ggml(kind: TensorType, weights: Floats, importance: Floats | None = None) -> Bytes:
    out = np.empty(weights.shape[0] * kind.row_nbytes(weights.shape[1]), np.uint8)
    codec.library().ggml_quantize_chunk(
        kind.id, weights.ctypes.data, out.ctypes.data, 0, *weights.shape,
        None if importance is None else importance.ctypes.data,
    )  # fmt: skip
    return out


def assert_same(ours: Bytes, theirs: Bytes, kind: TensorType, what: str) -> None:
    differ = (ours != theirs).reshape(-1, kind.block_nbytes).any(axis=1)
    assert not differ.any(), f"{what}: {differ.sum()} of {differ.size} blocks, {differ.argmax()}"


@cache
def examples(kind: TensorType) -> list[tuple[str, Floats, Floats | None, Bytes]]:
    """Rows of every awkward kind, with and without importance, and what ggml makes of them."""
    found = []
    for number, make in enumerate(awkward_weights.KINDS):
        rng = np.random.default_rng([7, number])
        weights = np.ascontiguousarray(make(rng, 13, COLUMNS))
        for importance in (None, *(awkward_weights.importance(rng, COLUMNS) for _ in range(2))):
            found.append((make.__name__, weights, importance, by_ggml(kind, weights, importance)))
    return found


same_arithmetic = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="compilers fuse multiplications and additions of ggml here: other bytes on both sides",
)


@same_arithmetic
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_the_bytes_are_ggmls(path: Native, kind: TensorType) -> None:
    for name, weights, importance, expected in examples(kind):
        assert_same(quantized(path, kind, weights, importance), expected, kind, name)


@same_arithmetic
@pytest.mark.parametrize("kind", [Q4_K, Q5_K], ids=str)
def test_levels_out_of_range_wrap_as_in_ggml(path: Native, kind: TensorType) -> None:
    """Where the weight that counts least lies far below the others, a round of the search can have
    levels beyond 2^22, and ggml's rounding makes any number of them."""
    rng = np.random.default_rng(8)
    for _ in range(40):
        weights = awkward_weights.outliers(rng, 64, 256)
        importance = np.exp(rng.standard_normal(256)).astype(np.float32)
        importance[awkward_weights.OUTLIER :: 32] = 1e-12
        expected = by_ggml(kind, weights, importance)
        assert_same(quantized(path, kind, weights, importance), expected, kind, "outliers")


@same_arithmetic
@settings(max_examples=60, deadline=None)
@given(
    pattern=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1,
                     max_size=40),
    spike=st.floats(width=32, allow_nan=False, allow_infinity=False),
    at=st.integers(0, COLUMNS - 1),
    columns=st.lists(st.floats(0, 1e6, width=32), max_size=5),
)  # fmt: skip
def test_repeated_patterns_with_a_spike(
    pattern: list[float], spike: float, at: int, columns: list[float]
) -> None:
    weights = np.resize(np.array(pattern, np.float32), (1, COLUMNS))
    weights[0, at] = spike
    importance = np.resize(np.array(columns, np.float32), COLUMNS) if columns else None
    best, _ = native.opened()
    assert best is not None
    for kind in TYPES:
        expected = by_ggml(kind, weights, importance)
        assert_same(quantized(best, kind, weights, importance), expected, kind, "pattern")


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_all_paths_make_the_same_bytes_of_any_number_of_blocks(kind: TensorType) -> None:
    best, _ = native.opened()
    assert best is not None
    rng = np.random.default_rng(3)
    for n_blocks in (1, 2, 3, 4, 5, 15, 16, 17, 33):
        weights = rng.standard_normal((n_blocks, kind.block)).astype(np.float32)
        importance = awkward_weights.importance(rng, kind.block)
        baseline = quantized(Native(library(), "baseline"), kind, weights, importance)
        assert_same(quantized(best, kind, weights, importance), baseline, kind, f"{n_blocks}")
        one_by_one = [quantized(best, kind, row[None], importance) for row in weights]
        assert_same(np.concatenate(one_by_one), baseline, kind, f"{n_blocks}")


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_nothing_beside_the_rows_is_written_and_no_alignment_is_needed(
    path: Native, kind: TensorType
) -> None:
    weights = awkward_weights.bell(np.random.default_rng(4), 3, kind.block)
    expected = quantized(path, kind, weights)
    source = np.zeros(weights.nbytes + 1, np.uint8)
    source[1:] = weights.view(np.uint8).ravel()
    around = np.full(expected.size + 14, 0xA5, np.uint8)
    inside = around[7:-7]
    path.quantize(source.ctypes.data + 1, "F32", 3, kind.block, kind, inside, None)
    assert_same(inside, expected, kind, "unaligned")
    assert (around[:7] == 0xA5).all() and (around[-7:] == 0xA5).all()


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_widened_exactly(path: Native, kind: TensorType, dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    if dtype == "F16":
        bits = bits[bits & 0x7C00 != 0x7C00]
        floats = bits.view(np.float16).astype(np.float32)
    else:
        bits = bits[bits & 0x7FFF < 0x4780]  # below 2^16, as the codec lets pass
        floats = (bits.astype(np.uint32) << 16).view(np.float32)
    order = np.random.default_rng(5).permutation(bits.size // COLUMNS * COLUMNS)
    bits, floats = bits[order], floats[order].reshape(-1, COLUMNS)
    expected = quantized(path, kind, floats)
    out = np.empty_like(expected)
    path.quantize(bits.ctypes.data, dtype, *floats.shape, kind, out, None)
    assert_same(out, expected, kind, dtype)


def test_a_nonlinear_level_changes_exactly_at_the_middle_of_two_values() -> None:
    """ggml takes the lower value if y - lower < upper - y, and both sides are monotonic in y: if
    that changes at the middle, comparing y with the middle is the same for every float."""
    values = np.array(awkward_weights.NONLINEAR, np.float32)
    for lower, upper in pairwise(values):
        middle = (lower + upper) / np.float32(2)
        before = np.nextafter(middle, np.float32(-200))
        assert before - lower < upper - before
        assert not middle - lower < upper - middle


def test_no_weight_crosses_two_borders_during_the_nonlinear_search() -> None:
    """The search scales the largest weight to 120..134: neighbouring borders are further apart."""
    values = np.array(awkward_weights.NONLINEAR)
    borders = (values[1:] + values[:-1]) / 2
    for side in (-borders[borders < 0][::-1], borders[borders > 0]):
        assert (side[1:] / side[:-1]).min() > 134 / 120 * 1.1


def test_wrong_arguments_are_refused() -> None:
    call = library().dots_quantize_on
    floats, out = np.zeros(512, np.float32), np.zeros(512, np.uint8)
    src, dst = floats.ctypes.data, out.ctypes.data
    assert call(b"baseline", Q4_K.id, src, 0, dst, 2, 256, None) == OK
    assert call(b"baseline", Q4_K.id, None, 0, None, 0, 256, None) == OK
    assert call(b"baseline", Q8_0.id, src, 0, dst, 2, 256, None) == BAD_TYPE
    assert call(b"baseline", Q4_K.id, src, 7, dst, 2, 256, None) == BAD_SOURCE
    for n_rows, n_columns in ((2, 128), (-1, 256), (1, -256), (1 << 55, 256), (1 << 62, 1 << 62)):
        assert call(b"baseline", Q4_K.id, src, 0, dst, n_rows, n_columns, None) == BAD_SHAPE
    assert call(b"baseline", IQ4_NL.id, src, 0, dst, 1, 48, None) == BAD_SHAPE
    assert call(b"baseline", Q4_K.id, None, 0, dst, 2, 256, None) == BAD_POINTER
    assert call(b"baseline", Q4_K.id, src, 0, None, 2, 256, None) == BAD_POINTER
    assert call(b"sse9", Q4_K.id, src, 0, dst, 2, 256, None) == BAD_PATH


@pytest.mark.parametrize(("source", "bits"), [(0, np.uint32), (1, np.uint16), (30, np.uint16)])
def test_the_first_weight_that_is_not_finite_is_found(source: int, bits: type) -> None:
    find = library().dots_first_non_finite
    find.restype = ctypes.c_int64
    find.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
    infinity = {0: 0x7F800000, 1: 0x7C00, 30: 0x7F80}[source]
    weights = np.full(10_000, infinity - 1, bits)
    assert find(weights.ctypes.data, source, weights.size) == -1
    for at, value in ((9_999, infinity), (4_096, infinity + 1), (17, infinity)):
        weights[at] = value | (1 << (8 * weights.itemsize - 1))  # and negative
        assert find(weights.ctypes.data, source, weights.size) == at
        assert find(weights.ctypes.data, source, at) == -1


def test_threads_do_not_disturb_each_other() -> None:
    best, _ = native.opened()
    assert best is not None
    rows = [awkward_weights.bell(np.random.default_rng(i), 40, COLUMNS) for i in range(8)]
    expected = [quantized(best, Q4_K, row) for row in rows]
    found: list[Bytes] = [np.empty(0, np.uint8)] * 8

    def work(number: int) -> None:
        for _ in range(5):
            found[number] = quantized(best, Q4_K, rows[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, Q4_K, "threads")


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delenv(native.SWITCH, raising=False)
    yield monkeypatch


@same_arithmetic
@pytest.mark.parametrize("type_name", ["q4_k_m", "iq4_xs"])
def test_a_file_is_the_same_with_and_without_the_library(
    tiny_checkpoint: Path, tmp_path: Path, switch: pytest.MonkeyPatch, type_name: str
) -> None:
    for name, setting in (("native", ""), ("ggml", "0")):
        switch.setenv(native.SWITCH, setting)
        used = native.quantizer(Q4_K, False, codec.library()) is not None
        assert used == (name == "native")
        for _ in quantize_checkpoint(tiny_checkpoint, tmp_path / name, type_name):
            pass
    assert (tmp_path / "native").read_bytes() == (tmp_path / "ggml").read_bytes()


def test_the_switch_selects_a_path_and_refuses_others(switch: pytest.MonkeyPatch) -> None:
    switch.setenv(native.SWITCH, "baseline")
    opened, path = native.opened()
    assert opened is not None and opened.path == path == "baseline"
    switch.setenv(native.SWITCH, "mmx")
    with pytest.raises(DotsError, match="DOTS_NATIVE=mmx") as caught:
        native.opened()
    assert "baseline" in caught.value.hint


def test_ggml_is_used_for_other_types_and_where_it_makes_other_bytes(
    switch: pytest.MonkeyPatch,
) -> None:
    class OtherGgml:
        """A version of ggml with another algorithm."""

        @staticmethod
        def ggml_quantize_chunk(kind: int, source: int, out: int, *_: object) -> None:
            ctypes.memset(out, 0x11, 144)

    assert native.quantizer(Q8_0, False, codec.library()) is None
    assert native.quantizer(Q4_K, False, OtherGgml()) is None  # type: ignore[arg-type]  # a stand-in
