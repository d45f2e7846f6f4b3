"""Which tensors get their type together, and which types they may get.

A group is one role of one layer; gate and up share their input and so their group, whether of
routed experts, shared experts or a dense layer. Pure functions of names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dotscli.models.gguf_type import TensorType
from dotscli.models.tensors import TensorSpec
from dotscli.quantize.recipe.types_of_file import place_of
from dotscli.quantize.types import (
    F16,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
)

# Q3_K is there because nothing of 4 bits is smaller than 4.25 bits per weight: without it a budget
# of 4.25 could not hold the router, which stays F32.
CANDIDATES = (
    Q3_K, IQ4_XS, MXFP4, Q4_K, IQ4_NL, Q4_0, Q4_1, Q5_K, Q5_0, Q5_1, Q6_K, Q8_0,
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Tensors that get one type.

    Attributes:
        layer: None outside the layers.
        role: "attn_q", "ffn_gate_up_exps" ...
        candidates: the types that fit its rows.
    """

    layer: int | None
    role: str
    specs: tuple[TensorSpec, ...]
    candidates: tuple[TensorType, ...]


def groups_of(specs: Iterable[TensorSpec]) -> tuple[Group, ...]:
    """The groups of some quantizable tensors, in the order of the model."""
    found: dict[tuple[int | None, str, int], list[TensorSpec]] = {}
    for spec in specs:
        role = re.sub("_(gate|up)", "_gate_up", place_of(spec.name)[1], count=1)
        found.setdefault((spec.layer, role, spec.n_columns), []).append(spec)
    return tuple(
        Group(layer, role, tuple(members), candidates(n_columns))
        for (layer, role, n_columns), members in found.items()
    )


def candidates(n_columns: int) -> tuple[TensorType, ...]:
    """The types that rows of n_columns weights may have; F16 where no block fits."""
    fitting = tuple(kind for kind in CANDIDATES if n_columns % kind.block == 0)
    return fitting or (F16,)
