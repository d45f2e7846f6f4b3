"""Presets that list the type of every tensor instead of following a rule: those of a GGUF, say.

What a budget has chosen is such a list too. It decides nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.gguf_file import read_gguf
from dotscli.quantize.recipe.presets import Place, Preset
from dotscli.quantize.types import (
    BF16,
    F16,
    F32,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TYPES,
    TensorType,
)  # fmt: skip

Types = Mapping[tuple[int, str], TensorType]  # by layer (-1 outside the layers) and role

# general.file_type of a file that consists mostly of a type (llama.h, llama_ftype).
_FILE_TYPES = {
    F32: 0, F16: 1, BF16: 32, Q8_0: 7, Q6_K: 18, Q5_K: 17, Q5_1: 9, Q5_0: 8, Q4_K: 15, Q4_1: 3,
    Q4_0: 2, IQ4_NL: 25, IQ4_XS: 30, MXFP4: 38, Q3_K: 12, Q2_K: 10,
}  # fmt: skip
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.\w+")
_BY_ID = {kind.id: kind for kind in TYPES}


def listed(name: str, types: Types, n_weights: Mapping[TensorType, int]) -> Preset:
    """A preset of these types.

    Args:
        n_weights: how many weights of each type there are; most decides general.file_type.
    """

    def rule(place: Place) -> TensorType:
        kind = types.get((place.layer, place.role))
        if kind is None:
            layer = f"layer {place.layer} of " if place.layer >= 0 else ""
            raise DotsError(f"{name} has no type for {place.role} in {layer}this model")
        return kind

    most = max(n_weights, key=lambda kind: n_weights[kind], default=F32)
    return Preset(name, _FILE_TYPES[most], rule, "")


def place_of(name: str) -> tuple[int, str]:
    """Layer (-1 outside the layers) and role of a GGUF name."""
    match = _NAME.fullmatch(name)
    return (-1 if match is None or match[1] is None else int(match[1])), match[2] if match else name


def preset_of_gguf(path: Path) -> Preset:
    """The types of a GGUF, to give them to another checkpoint of the same shape.

    Raises:
        DotsError: no GGUF, or a type that this package doesn't write.
    """
    types: dict[tuple[int, str], TensorType] = {}
    n_weights: dict[TensorType, int] = {}
    for tensor in read_gguf(path).tensors:
        kind = _BY_ID.get(tensor.type_id)
        if kind is None:
            raise DotsError(
                f"{path}: {tensor.name} is {tensor.type_name}, which dots doesn't write",
                hint="one of: " + " ".join(kind.name.lower() for kind in TYPES),
            )
        types[place_of(tensor.name)] = kind
        n_weights[kind] = n_weights.get(kind, 0) + math.prod(tensor.shape)
    return listed(str(path), types, n_weights)
