"""Rows of floats become rows of a GGUF type: the same bytes as numpy's reference, or a clear no."""

from __future__ import annotations

import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows import codec
from dotscli.quantize.rows.codec import BadValue, Codec, library
from dotscli.quantize.types import BF16, F16, F32, Q4_0, Q4_K, Q6_K, TYPES
from tests import tiny

gguf = pytest.importorskip("gguf")

SIMPLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")


def values(n_rows: int = 6, n_columns: int = 512, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_rows, n_columns), dtype=np.float32) * np.float32(0.02)


def encode(source: bytes, dtype: str, n_columns: int, kind: TensorType, **options: object) -> bytes:
    out = np.zeros(len(source) * 2 + 64, np.uint8)
    piece = options.pop("piece", 1 << 18)
    made = Codec(piece).encode(  # type: ignore[arg-type]
        memoryview(source),
        dtype,
        n_columns,
        kind,
        out,
        **options,  # type: ignore[arg-type]
    )
    return out[:made].tobytes()


def widened(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype("<f4")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", SIMPLE)
def test_simple_types_equal_the_numpy_reference(name: str, dtype: str) -> None:
    raw = tiny.encode(values(), dtype)
    kind = next(t for t in TYPES if t.name == name)
    floats = widened(raw, dtype).reshape(6, 512)
    expected = gguf.quants.quantize(floats, gguf.GGMLQuantizationType[name])
    assert encode(raw, dtype, 512, kind) == expected.tobytes()


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_error_stays_within_what_the_bits_allow(kind: TensorType) -> None:
    """Root mean square, relative, of gaussian weights: a wrong type or a wrong row shows here."""
    weights = values(8, 1024)
    raw = np.frombuffer(encode(tiny.encode(weights, "F32"), "F32", 1024, kind), np.uint8)
    back = gguf.quants.dequantize(raw.reshape(8, -1), gguf.GGMLQuantizationType[kind.name]).reshape(
        8, 1024
    )
    error = float(np.sqrt(np.mean((back - weights) ** 2) / np.mean(weights**2)))
    bits = 8 * kind.block_nbytes / kind.block
    limits = ((3, 0.35), (4, 0.2), (4.4, 0.13), (6.1, 0.1), (33, 0.03))
    limit = next(limit for below, limit in limits if bits < below)
    assert error < limit


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_pieces_change_nothing(kind: TensorType) -> None:
    raw = tiny.encode(values(7), "BF16")
    whole = encode(raw, "BF16", 512, kind)
    for piece in (1, 1000, 1024, 3000):
        assert encode(raw, "BF16", 512, kind, piece=piece) == whole


def test_threads_change_nothing() -> None:
    raws = [tiny.encode(values(16, 512, seed), "BF16") for seed in range(24)]
    alone = [encode(raw, "BF16", 512, Q4_K) for raw in raws]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda raw: encode(raw, "BF16", 512, Q4_K), raws))
    assert together == alone


def test_source_at_an_odd_address() -> None:
    raw = tiny.encode(values(), "BF16")
    odd = memoryview(b"x" + raw)[1:]
    out = np.zeros(len(raw), np.uint8)
    made = Codec().encode(odd, "BF16", 512, Q4_0, out)
    assert out[:made].tobytes() == encode(raw, "BF16", 512, Q4_0)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_sizes_are_those_of_the_library(kind: TensorType) -> None:
    row_size = library().ggml_row_size
    row_size.restype, row_size.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]
    assert row_size(kind.id, 512) == kind.row_nbytes(512)
    assert not library().ggml_quantize_requires_imatrix(kind.id)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("kind", [F32, F16, BF16, Q4_0, Q6_K], ids=str)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(bad: float, kind: TensorType, dtype: str) -> None:
    for index in (0, 700, 6 * 512 - 1):
        weights = values()
        weights.flat[index] = bad
        raw = tiny.encode(weights, "F32")
        if dtype != "F32":  # rounding a NaN by adding could make it another number
            raw = np.where(np.isnan(weights), np.float32(np.inf), weights).tobytes()
            raw = tiny.encode(np.frombuffer(raw, np.float32), dtype)
        with pytest.raises(BadValue) as caught:
            encode(raw, dtype, 512, kind, piece=1024)
        assert caught.value.index == index
        assert not np.isfinite(caught.value.value)


@pytest.mark.parametrize(
    ("dtype", "kind", "value", "fits"),
    [
        ("F32", F16, 65504.0, True), ("F32", F16, 66000.0, False), ("BF16", F16, 1e5, False),
        ("F32", Q4_0, -1e5, False), ("BF16", Q4_0, -60000.0, True), ("F16", Q4_0, 65504.0, True),
        ("F32", BF16, 3.4e38, False), ("F32", BF16, 3.3e38, True), ("F32", F32, 3.4e38, True),
        ("BF16", F32, 3.3e38, True), ("BF16", BF16, -3.3e38, True),
    ],
)  # fmt: skip
def test_values_too_large_for_the_type(
    dtype: str, kind: TensorType, value: float, fits: bool
) -> None:
    weights = values()
    weights[2, 3] = value
    raw = tiny.encode(weights, dtype)
    if not fits:
        with pytest.raises(BadValue) as caught:
            encode(raw, dtype, 512, kind)
        assert caught.value.index == 2 * 512 + 3
        return
    out = np.frombuffer(encode(raw, dtype, 512, kind), np.uint8).reshape(6, -1)
    assert np.isfinite(gguf.quants.dequantize(out, gguf.GGMLQuantizationType[kind.name])).all()


@given(st.lists(st.floats(width=32), min_size=32, max_size=32))
@settings(max_examples=200)
def test_any_block_is_stored_finite_or_refused(block: list[float]) -> None:
    raw = np.array(block, np.float32).tobytes()
    for kind in (Q4_0, F16, BF16):
        try:
            out = encode(raw, "F32", 32, kind)
        except BadValue as bad:
            assert not abs(bad.value) <= 65504
            continue
        back = gguf.quants.dequantize(
            np.frombuffer(out, np.uint8), gguf.GGMLQuantizationType[kind.name]
        )
        assert np.isfinite(back).all()


def test_importance_moves_the_error() -> None:
    weights = values(32, 512)
    importance = np.ones(512, np.float32)
    importance[:256] = 100
    raw = tiny.encode(weights, "F32")
    errors = []
    for chosen in (None, importance):
        out = np.frombuffer(encode(raw, "F32", 512, Q4_0, importance=chosen), np.uint8)
        back = gguf.quants.dequantize(out.reshape(32, -1), gguf.GGMLQuantizationType.Q4_0)
        errors.append(float(np.sum(importance * (back.reshape(32, 512) - weights) ** 2)))
    assert errors[1] < errors[0]


def test_calls_that_would_abort_the_process_are_refused() -> None:
    raw = tiny.encode(values(), "F32")
    small = np.zeros(10, np.uint8)
    ones = np.ones(511, np.float32)
    with pytest.raises(ValueError, match="in rows of 100"):
        encode(raw, "F32", 100, Q4_0)
    with pytest.raises(ValueError, match="in rows of 96"):
        encode(raw, "F32", 96, Q4_K)
    with pytest.raises(ValueError, match="in rows of 512"):
        Codec().encode(memoryview(raw), "F32", 512, Q4_0, small)
    with pytest.raises(ValueError, match="one weight per column"):
        encode(raw, "F32", 512, Q4_0, importance=ones)
    iq2_xxs = TensorType("IQ2_XXS", 16, 256, 66)
    with pytest.raises(DotsError, match="needs an importance matrix"):
        encode(raw, "F32", 512, iq2_xxs)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "provides the quantizers, is not installed"),
        (importlib.util.find_spec("json"), "can't be used"),
    ],
)
def test_missing_library_is_said_with_the_remedy(
    spec: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.cache_clear()
    monkeypatch.setattr(codec.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DotsError, match=message) as caught:
        library()
    assert "llama-cpp-python" in caught.value.hint
    library.cache_clear()
