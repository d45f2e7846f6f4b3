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
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.recipe.presets import Place, Preset
from dotscli.quantize.types import F32, MXFP4, Q3_K, Q4_K, Q5_K, TYPES, written

Types = Mapping[tuple[int, str], TensorType]  # by layer (-1 outside the layers) and role

# How llama.cpp names a file mostly of a type, where it isn't the type's name.
_FILE_NAMES = {Q5_K: "Q5_K_M", Q4_K: "Q4_K_M", Q3_K: "Q3_K_M", MXFP4: "MXFP4_MOE"}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.\w+")


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
    return Preset(name, _FILE_NAMES.get(most, most.name), rule, "")


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
        kind = written(tensor.type_id)
        if kind is None:
            raise DotsError(
                f"{path}: {tensor.name} is {tensor.type_name}, which dots doesn't write",
                hint="one of: " + " ".join(kind.name.lower() for kind in TYPES),
            )
        types[place_of(tensor.name)] = kind
        n_weights[kind] = n_weights.get(kind, 0) + math.prod(tensor.shape)
    return listed(str(path), types, n_weights)
