"""The value types and tensor types a GGUF can hold: names, sizes, blocks. The one table of them.

Numbers are those of GGUF v3's specification and of ggml.h (enum ggml_type). The package gguf has
them too, but importing that takes 0.2 s, which nobody should wait before an answer (docs/log.md):
a test compares this table with it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

STRING, ARRAY, BOOL = 8, 9, 7
UINT16, UINT32, INT32, FLOAT32, UINT64 = 2, 4, 5, 6, 10

VALUE_NAMES = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
)  # fmt: skip

# How to unpack the values of fixed size; a bool is one byte.
SCALARS: dict[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in ((0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (6, "f"),
                         (7, "B"), (10, "Q"), (11, "q"), (12, "d"))
}  # fmt: skip


@dataclass(frozen=True)
class TensorType:
    """A ggml type.

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
        """Bytes of one row, in whole blocks."""
        return -(-n_columns // self.block) * self.block_nbytes

    def __str__(self) -> str:
        return self.name


TENSOR_TYPES: dict[int, TensorType] = {
    number: TensorType(name, number, block, nbytes)
    for name, number, block, nbytes in (
        ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_0", 8, 32, 34), ("Q8_1", 9, 32, 36),
        ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176), ("Q6_K", 14, 256, 210), ("Q8_K", 15, 256, 292),
        ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74), ("IQ3_XXS", 18, 256, 98),
        ("IQ1_S", 19, 256, 50), ("IQ4_NL", 20, 32, 18), ("IQ3_S", 21, 256, 110),
        ("IQ2_S", 22, 256, 82), ("IQ4_XS", 23, 256, 136), ("I8", 24, 1, 1), ("I16", 25, 1, 2),
        ("I32", 26, 1, 4), ("I64", 27, 1, 8), ("F64", 28, 1, 8), ("IQ1_M", 29, 256, 56),
        ("BF16", 30, 1, 2), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66), ("MXFP4", 39, 32, 17),
        ("NVFP4", 40, 64, 36),
    )
}  # fmt: skip
BY_NAME: dict[str, TensorType] = {kind.name: kind for kind in TENSOR_TYPES.values()}


def type_name(number: int) -> str:
    """Name of a ggml type, or its number if it has none here."""
    known = TENSOR_TYPES.get(number)
    return known.name if known else f"type {number}"
