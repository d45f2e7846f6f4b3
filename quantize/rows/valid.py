"""first_unsound(): the first block whose numbers can't be: not finite, or a scale that isn't.

It finds what ggml_validate_row_data finds, and says where; that function prints to stderr instead.
A block's codes are always numbers, so only plain floats and scales are looked at. Offsets are those
of the structs in ggml-common.h. It knows rows and types, not tensors or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dotscli.models.gguf_type import TensorType

_FLOATS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_HALF_INFINITY = 0x7C00
# Where in a block its half floats lie.
_SCALES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,),
    "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip
KNOWN = frozenset((*_FLOATS, *_SCALES, "IQ1_M", "MXFP4"))


def first_unsound(data: bytes | memoryview, kind: TensorType) -> int | None:
    """The number of the first weight's block that is not sound; None if all are.

    Args:
        data: whole blocks.

    Raises:
        ValueError: a type that no weight of dots1 has.
    """
    rows = np.frombuffer(data, np.uint8)
    if kind.name in _FLOATS:
        dtype, infinity = _FLOATS[kind.name]
        bad = (rows.view(dtype) & infinity) == infinity
    else:
        bad = _bad_blocks(rows.reshape(-1, kind.block_nbytes), kind)
    return int(np.argmax(bad)) if bad.any() else None


def _bad_blocks(blocks: NDArray[np.uint8], kind: TensorType) -> NDArray[np.bool_]:
    bad = np.zeros(len(blocks), np.bool_)
    if kind.name == "MXFP4":  # one exponent of eight bits, of which the last is NaN
        bad |= blocks[:, 0] == 0xFF
    elif kind.name == "IQ1_M":  # the scale's bits are the upper four of each of the last four u16
        parts = blocks[:, 48:56].copy().view("<u2")
        scales = (
            (parts[:, 0] >> 12)
            | ((parts[:, 1] >> 8) & 0x00F0)
            | ((parts[:, 2] >> 4) & 0x0F00)
            | (parts[:, 3] & 0xF000)
        )
        bad |= (scales & _HALF_INFINITY) == _HALF_INFINITY
    elif kind.name in _SCALES:
        for offset in _SCALES[kind.name]:
            scales = blocks[:, offset : offset + 2].copy().view("<u2").reshape(-1)
            bad |= (scales & _HALF_INFINITY) == _HALF_INFINITY
    else:
        raise ValueError(f"{kind} is not a type of weights")
    return bad
