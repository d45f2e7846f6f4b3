"""The storage types of a GGUF that this package writes: their numbers, blocks and sizes.

Ids, block lengths and block bytes are ggml's (ggml.h, ggml-common.h); a test compares them with
the package gguf and with the library that quantizes. It does not quantize.
"""

from __future__ import annotations

from dataclasses import dataclass

from dotscli.errors import DotsError


@dataclass(frozen=True)
class TensorType:
    """One type.

    Attributes:
        name: as ggml spells it, upper case.
        id: ggml_type.
        block: weights per block, along a row.
        block_nbytes: bytes per block.
    """

    name: str
    id: int
    block: int
    block_nbytes: int

    @property
    def quantized(self) -> bool:
        """Whether weights share a scale, i.e. are not plain floats."""
        return self.block > 1

    def row_nbytes(self, n_columns: int) -> int:
        """Bytes of one row; n_columns must be a multiple of `block`."""
        return n_columns // self.block * self.block_nbytes

    def __str__(self) -> str:
        return self.name


F32 = TensorType("F32", 0, 1, 4)
F16 = TensorType("F16", 1, 1, 2)
BF16 = TensorType("BF16", 30, 1, 2)
Q4_0 = TensorType("Q4_0", 2, 32, 18)
Q4_1 = TensorType("Q4_1", 3, 32, 20)
Q5_0 = TensorType("Q5_0", 6, 32, 22)
Q5_1 = TensorType("Q5_1", 7, 32, 24)
Q8_0 = TensorType("Q8_0", 8, 32, 34)
Q2_K = TensorType("Q2_K", 10, 256, 84)
Q3_K = TensorType("Q3_K", 11, 256, 110)
Q4_K = TensorType("Q4_K", 12, 256, 144)
Q5_K = TensorType("Q5_K", 13, 256, 176)
Q6_K = TensorType("Q6_K", 14, 256, 210)
IQ4_NL = TensorType("IQ4_NL", 20, 32, 18)
IQ4_XS = TensorType("IQ4_XS", 23, 256, 136)
MXFP4 = TensorType("MXFP4", 39, 32, 17)

TYPES = (F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_NL, IQ4_XS, MXFP4,
         Q3_K, Q2_K)  # fmt: skip
DTYPES = ("BF16", "F16", "F32")  # of a checkpoint, which go to the quantizers as they are
_BY_NAME = {t.name: t for t in TYPES}

# Where a row is no multiple of 256, llama-quantize takes these (llama-quant.cpp,
# tensor_type_fallback); where it is no multiple of 32 either, F16.
_FALLBACKS = {Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, IQ4_XS: IQ4_NL}


def type_named(name: str) -> TensorType:
    """The type of that name, in any case.

    Raises:
        DotsError: no such type; the hint lists them.
    """
    found = _BY_NAME.get(name.upper())
    if found is None:
        known = " ".join(t.name.lower() for t in TYPES)
        raise DotsError(f"unknown tensor type {name}", hint=f"one of: {known}")
    return found


def fitting(wanted: TensorType, n_columns: int) -> TensorType:
    """The wanted type, or the one that replaces it for rows of n_columns weights."""
    for candidate in (wanted, _FALLBACKS.get(wanted, wanted)):
        if n_columns % candidate.block == 0:
            return candidate
    return F16
