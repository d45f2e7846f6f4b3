"""Rows of a GGUF -> floats, through the dequantize functions of the installed llama.cpp.

The counterpart of `dotscli.quantize.codec`, for measuring what quantizing has changed.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from dotscli.quantize.codec import library
from dotscli.quantize.types import BF16, F16, F32, TensorType

_K = "_K"  # the one suffix that ggml's functions write in upper case


def decode(data: bytes, kind: TensorType) -> NDArray[np.float32]:
    """The weights in whole blocks of one type."""
    if kind is F32:
        return np.frombuffer(data, "<f4").astype(np.float32)
    if kind is F16:
        return np.frombuffer(data, "<f2").astype(np.float32)
    if kind is BF16:
        return widen_bf16(data)
    name = kind.name.lower()
    function = getattr(library(), f"dequantize_row_{name[:-2] + _K if name[-2:] == '_k' else name}")
    function.restype = None
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
    out = np.empty(len(data) // kind.block_nbytes * kind.block, np.float32)
    function(data, out.ctypes.data, out.size)
    return out


def widen_bf16(data: bytes | memoryview) -> NDArray[np.float32]:
    """bf16 is the upper half of a float32."""
    bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
    floats: NDArray[np.float32] = bits.view(np.float32)
    return floats
