"""The value types and tensor types a GGUF can hold: names, sizes, blocks.

Numbers are those of GGUF v3's specification and of ggml.h (enum ggml_type); only types that a
weight can have are listed, not those that ggml keeps for intermediate results.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

STRING, ARRAY, BOOL = 8, 9, 7
UINT16, UINT32, INT32, FLOAT32 = 2, 4, 5, 6

VALUE_NAMES = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
)  # fmt: skip

# How to unpack the values of fixed size; a bool is one byte.
SCALARS: dict[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in ((0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (6, "f"),
                         (7, "B"), (10, "Q"), (11, "q"), (12, "d"))
}  # fmt: skip


class WeightType(NamedTuple):
    """A ggml type: `block` weights take `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


WEIGHT_TYPES: dict[int, WeightType] = {
    0: WeightType("F32", 1, 4),
    1: WeightType("F16", 1, 2),
    2: WeightType("Q4_0", 32, 18),
    3: WeightType("Q4_1", 32, 20),
    6: WeightType("Q5_0", 32, 22),
    7: WeightType("Q5_1", 32, 24),
    8: WeightType("Q8_0", 32, 34),
    9: WeightType("Q8_1", 32, 36),
    10: WeightType("Q2_K", 256, 84),
    11: WeightType("Q3_K", 256, 110),
    12: WeightType("Q4_K", 256, 144),
    13: WeightType("Q5_K", 256, 176),
    14: WeightType("Q6_K", 256, 210),
    15: WeightType("Q8_K", 256, 292),
    16: WeightType("IQ2_XXS", 256, 66),
    17: WeightType("IQ2_XS", 256, 74),
    18: WeightType("IQ3_XXS", 256, 98),
    19: WeightType("IQ1_S", 256, 50),
    20: WeightType("IQ4_NL", 32, 18),
    21: WeightType("IQ3_S", 256, 110),
    22: WeightType("IQ2_S", 256, 82),
    23: WeightType("IQ4_XS", 256, 136),
    24: WeightType("I8", 1, 1),
    25: WeightType("I16", 1, 2),
    26: WeightType("I32", 1, 4),
    27: WeightType("I64", 1, 8),
    28: WeightType("F64", 1, 8),
    29: WeightType("IQ1_M", 256, 56),
    30: WeightType("BF16", 1, 2),
    34: WeightType("TQ1_0", 256, 54),
    35: WeightType("TQ2_0", 256, 66),
    39: WeightType("MXFP4", 32, 17),
    40: WeightType("NVFP4", 64, 36),
}


def type_name(number: int) -> str:
    """Name of a ggml type, or its number if it has none here."""
    known = WEIGHT_TYPES.get(number)
    return known.name if known else f"type {number}"
