"""Floats of a checkpoint -> rows of a GGUF, through ggml_quantize_chunk of the installed llama.cpp
or, with the same bytes, the native quantizers.

The shared library libggml-base is opened by ctypes from the folder of llama_cpp, which is looked up
and not imported. Calls leave Python's lock, so threads run side by side; every thread needs a
`Codec` of its own, for its buffers. Whatever the library would abort the process for is checked
before the call. It knows rows and types, not tensors or files.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows.native import quantizer
from dotscli.quantize.types import BF16, F16, F32

Bits = NDArray[np.unsignedinteger[Any]]

PIECE_SIZE = 1 << 18  # widened at a time: 1 MiB of floats stays in a core's cache

_LIBRARY = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}

# dtype of safetensors -> (numpy type of its bits, bits of infinity, stored as)
_DTYPES: dict[str, tuple[np.dtype[Any], int, TensorType]] = {
    "BF16": (np.dtype("<u2"), 0x7F80, BF16),
    "F16": (np.dtype("<u2"), 0x7C00, F16),
    "F32": (np.dtype("<u4"), 0x7F800000, F32),
}
# The largest magnitudes that a target can hold: scales of quantized blocks are half floats.
_HALF_LIMITS = {"BF16": 0x477F, "F16": 0x7BFF, "F32": 0x477FE000}
_BF16_LIMIT_OF_F32 = 0x7F7F7FFF  # what still rounds to a finite bf16


class BadValue(Exception):
    """A weight that can't be stored: its index in the rows given, and what it is."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(f"weight {index} is {value:g}")
        self.index = index
        self.value = value


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """libggml-base with the signatures of the five functions that are used.

    Raises:
        DotsError: llama-cpp-python is not installed, or its library can't be loaded.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise DotsError(
            "llama-cpp-python, which provides the quantizers, is not installed",
            hint="pip install llama-cpp-python",
        )
    name = _LIBRARY.get(sys.platform, _LIBRARY["linux"])
    path = Path(spec.submodule_search_locations[0]) / "lib" / name
    try:
        lib = ctypes.CDLL(str(path))
        chunk, validate = lib.ggml_quantize_chunk, lib.ggml_validate_row_data
        lib.ggml_bf16_to_fp32_row.restype = lib.ggml_fp16_to_fp32_row.restype = None
        lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        lib.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    except (OSError, AttributeError) as error:
        raise DotsError(
            f"{path} can't be used: {error}", hint="reinstall llama-cpp-python >= 0.3.36"
        ) from None
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    lib.ggml_bf16_to_fp32_row.argtypes = lib.ggml_fp16_to_fp32_row.argtypes = [
        pointer, pointer, i64,
    ]  # fmt: skip
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]
    validate.restype = ctypes.c_bool
    validate.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    return lib


def bits_of(data: memoryview | NDArray[np.uint8], dtype: str) -> Bits:
    """The weights in bytes of BF16, F16 or F32, as the integers that have their bits."""
    return np.frombuffer(data, _DTYPES[dtype][0])


def widen(bits: Bits, dtype: str, floats: NDArray[np.float32]) -> None:
    """The float32 values of weights given by the bits of their dtype, BF16, F16 or F32."""
    if dtype == "F32":
        floats[:] = bits.view(np.float32)
        return
    if not bits.flags.aligned:  # a header of odd length
        bits = bits.copy()
    convert = (
        library().ggml_bf16_to_fp32_row if dtype == "BF16" else library().ggml_fp16_to_fp32_row
    )
    convert(bits.ctypes.data, floats.ctypes.data, bits.size)


class Codec:
    """Quantizes rows; one per thread.

    Args:
        piece_size: how many weights are widened to float32 at a time (at least one row is).
    """

    def __init__(self, piece_size: int = PIECE_SIZE) -> None:
        self._lib = library()
        self._piece_size = piece_size
        self._floats: NDArray[np.float32] = np.empty(0, np.float32)

    def encode(
        self,
        source: memoryview,
        dtype: str,
        n_columns: int,
        kind: TensorType,
        out: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
    ) -> int:
        """Store rows of one matrix (never of two experts) as `kind`.

        Args:
            source: whole rows, little-endian, contiguous.
            dtype: one of `dotscli.quantize.types.DTYPES`.
            n_columns: weights per row, a multiple of kind.block.
            out: takes the rows; at least as large as they become, contiguous.
            importance: n_columns positive weights of the columns, or None.

        Returns:
            Bytes written to out.

        Raises:
            BadValue: a weight that is not finite, or too large for the type.
            DotsError: the library made a block that it calls invalid itself.
        """
        bits_type, _, stored_as = _DTYPES[dtype]
        bits = bits_of(source, dtype)
        n_rows, rest = divmod(bits.size, n_columns)
        row_nbytes = kind.row_nbytes(n_columns)
        if rest or n_columns % kind.block or out.size < n_rows * row_nbytes:
            raise ValueError(f"{bits.size} weights in rows of {n_columns} as {kind}, {out.size}")
        if not out.flags.c_contiguous or (importance is not None and importance.size != n_columns):
            raise ValueError("out must be contiguous, importance must have one weight per column")
        piece_rows = max(1, self._piece_size // n_columns)
        for row in range(0, n_rows, piece_rows):
            end = min(row + piece_rows, n_rows)
            piece = bits[row * n_columns : end * n_columns]
            self._check(piece, dtype, kind, row * n_columns)
            target = out[row * row_nbytes : end * row_nbytes]
            if stored_as is kind:
                target.view(bits_type)[:] = piece
            elif kind is F32:
                widen(piece, dtype, target.view(np.float32))
            else:
                self._quantize(piece, dtype, n_columns, kind, target, importance)
        return n_rows * row_nbytes

    def valid(self, rows: NDArray[np.uint8], kind: TensorType) -> bool:
        """Whether the library takes rows of a type for sound: no scale is infinite, say."""
        return bool(self._lib.ggml_validate_row_data(kind.id, rows.ctypes.data, rows.size))

    def _check(self, bits: Bits, dtype: str, kind: TensorType, at: int) -> None:
        """Floats compare like their bits, sign apart: the largest of each sign tells."""
        infinity = _DTYPES[dtype][1]
        limit = infinity - 1
        if kind is F16 or kind.quantized:
            limit = _HALF_LIMITS[dtype]
        elif kind is BF16 and dtype == "F32":
            limit = _BF16_LIMIT_OF_F32
        sign = 1 << (8 * bits.itemsize - 1)
        signed = bits.view(np.dtype(f"<i{bits.itemsize}"))
        largest, most_negative = int(signed.max()), int(bits.max())
        if largest <= limit and (most_negative < sign or most_negative - sign <= limit):
            return
        index = int(np.flatnonzero((bits & np.array(sign - 1, bits.dtype)) > limit)[0])
        floats = np.empty(1, np.float32)
        widen(bits[index : index + 1], dtype, floats)
        raise BadValue(at + index, float(floats[0]))

    def _quantize(
        self,
        bits: Bits,
        dtype: str,
        n_columns: int,
        kind: TensorType,
        target: NDArray[np.uint8],
        importance: NDArray[np.float32] | None,
    ) -> None:
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        elif self._lib.ggml_quantize_requires_imatrix(kind.id):
            raise DotsError(f"{kind} needs an importance matrix", hint="give one with --imatrix")
        n_rows = bits.size // n_columns
        native = quantizer(kind, importance is not None, self._lib)
        if native is not None:
            made = native.quantize(
                bits.ctypes.data, dtype, n_rows, n_columns, kind, target, importance
            )
        else:
            if self._floats.size < bits.size:
                self._floats = np.empty(bits.size, np.float32)
            floats = self._floats[: bits.size]
            widen(bits, dtype, floats)
            weights = None if importance is None else importance.ctypes.data
            made = self._lib.ggml_quantize_chunk(
                kind.id, floats.ctypes.data, target.ctypes.data, 0, n_rows, n_columns, weights
            )
        if made != target.size or not self.valid(target, kind):
            raise DotsError(f"llama.cpp made an invalid block of type {kind}")
