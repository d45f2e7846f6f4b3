"""Rows of a GGUF -> floats, through the dequantize functions of the installed llama.cpp.

The counterpart of `dotscli.quantize.rows.codec`, for measuring what quantizing has changed.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows.codec import bits_of, library, widen

_K = "_K"  # the one suffix that ggml's functions write in upper case


def decode(data: bytes | memoryview, kind: TensorType) -> NDArray[np.float32]:
    """The weights in whole blocks of one type."""
    blocks = np.frombuffer(data, np.uint8)
    out = np.empty(blocks.size // kind.block_nbytes * kind.block, np.float32)
    decode_into(blocks, kind, out)
    return out


def decode_into(data: NDArray[np.uint8], kind: TensorType, out: NDArray[np.float32]) -> None:
    """The same into an array that is there already; data and out are contiguous, in blocks."""
    if not kind.quantized:
        widen(bits_of(data, kind.name), kind.name, out)
        return
    name = kind.name.lower()
    function = getattr(library(), f"dequantize_row_{name[:-2] + _K if name[-2:] == '_k' else name}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(data.ctypes.data, out.ctypes.data, out.size)
