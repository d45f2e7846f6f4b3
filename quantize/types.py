"""The storage types of a GGUF that this package writes, and what replaces one where rows are odd.

Which types there are is in `dotscli.models.gguf_type`. It does not quantize.
"""

from __future__ import annotations

from dotscli.errors import DotsError
from dotscli.models.gguf_type import BY_NAME, TensorType

F32 = BY_NAME["F32"]
F16 = BY_NAME["F16"]
BF16 = BY_NAME["BF16"]
Q4_0 = BY_NAME["Q4_0"]
Q4_1 = BY_NAME["Q4_1"]
Q5_0 = BY_NAME["Q5_0"]
Q5_1 = BY_NAME["Q5_1"]
Q8_0 = BY_NAME["Q8_0"]
Q2_K = BY_NAME["Q2_K"]
Q3_K = BY_NAME["Q3_K"]
Q4_K = BY_NAME["Q4_K"]
Q5_K = BY_NAME["Q5_K"]
Q6_K = BY_NAME["Q6_K"]
IQ4_NL = BY_NAME["IQ4_NL"]
IQ4_XS = BY_NAME["IQ4_XS"]
MXFP4 = BY_NAME["MXFP4"]

TYPES = (F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_NL, IQ4_XS, MXFP4,
         Q3_K, Q2_K)  # fmt: skip
DTYPES = ("BF16", "F16", "F32")  # of a checkpoint, which go to the quantizers as they are
_WRITTEN = {t.id: t for t in TYPES}

# Where a row is no multiple of 256, llama-quantize takes these (llama-quant.cpp,
# tensor_type_fallback); where it is no multiple of 32 either, F16.
_FALLBACKS = {Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, IQ4_XS: IQ4_NL}


def type_named(name: str) -> TensorType:
    """The type of that name, in any case.

    Raises:
        DotsError: no such type; the hint lists them.
    """
    found = BY_NAME.get(name.upper())
    if found is None or found not in TYPES:
        known = " ".join(t.name.lower() for t in TYPES)
        raise DotsError(f"unknown tensor type {name}", hint=f"one of: {known}")
    return found


def written(number: int) -> TensorType | None:
    """The type of a ggml_type, or None if this package doesn't write it."""
    return _WRITTEN.get(number)


def fitting(wanted: TensorType, n_columns: int) -> TensorType:
    """The wanted type, or the one that replaces it for rows of n_columns weights."""
    for candidate in (wanted, _FALLBACKS.get(wanted, wanted)):
        if n_columns % candidate.block == 0:
            return candidate
    return F16
