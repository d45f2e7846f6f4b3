"""Figures about experts: how evenly a layer uses them, which are never used, which lost most.

Pure functions of counts and errors; `dotscli.views.expert_maps` shows them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dotscli.hot.heat import Heat
from dotscli.quantize.output.error_report import TensorErrors

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(\w+)_exps\.weight")


@dataclass(frozen=True)
class LayerHeat:
    """How a layer uses its experts.

    Attributes:
        counts: tokens routed to each expert, perhaps decayed.
        entropy: of their shares, in bits; `most` is that of equal shares.
        dead: experts that no token was routed to.
        hottest: the most used one, and share: its part of all counts.
        skew: how much more the hottest tenth is used than a tenth of equals.
    """

    layer: int
    counts: tuple[float, ...]
    entropy: float
    most: float
    dead: tuple[int, ...]
    hottest: int
    share: float
    skew: float

    def relative(self) -> list[float]:
        """Every count against an even share, which is 1."""
        even = sum(self.counts) / len(self.counts)
        return [count / even if even else 0.0 for count in self.counts]


@dataclass(frozen=True)
class ExpertError:
    """The relative error of one projection of one expert."""

    layer: int
    projection: str
    expert: int
    type: str
    error: float


@dataclass(frozen=True)
class ProjectionErrors:
    """One projection of all experts: mean relative error, and the worst."""

    projection: str
    types: tuple[str, ...]
    nbytes: int
    mean: float
    worst: ExpertError


def entropy(counts: Sequence[float]) -> float:
    """Of the shares, in bits; 0 where there are no counts."""
    total = sum(counts)
    shares = [count / total for count in counts] if total else []
    # A count may be so small against the others that its share is 0.
    return max(0.0, -sum(share * math.log2(share) for share in shares if share > 0))


def layer_heat(heat: Heat) -> list[LayerHeat]:
    """The figures of every layer, in order."""
    found = []
    for layer, values in sorted(heat.layers.items()):
        counts = tuple(float(count) for count in values)
        [hottest] = heat.hottest(layer, 1)
        found.append(
            LayerHeat(
                layer=layer,
                counts=counts,
                entropy=entropy(counts),
                most=math.log2(len(counts)),
                dead=tuple(expert for expert, count in enumerate(counts) if count <= 0),
                hottest=hottest,
                share=heat.share(layer, [hottest]),
                skew=heat.skew(layer),
            )
        )
    return found


def expert_errors(tensors: Iterable[TensorErrors]) -> list[ExpertError]:
    """The errors of routed experts, tensor by tensor; other tensors are left out."""
    return [
        ExpertError(int(match[1]), match[2], expert, tensor.type, error)
        for tensor in tensors
        if tensor.stacked and (match := _EXPERTS.fullmatch(tensor.name))
        for expert, error in enumerate(tensor.errors)
    ]


def by_projection(tensors: Sequence[TensorErrors]) -> list[ProjectionErrors]:
    """Errors of gate, up and down apart: their types and so their errors differ."""
    errors: dict[str, list[ExpertError]] = {}
    for error in expert_errors(tensors):
        errors.setdefault(error.projection, []).append(error)
    nbytes: dict[str, int] = {}
    for tensor in tensors:
        if match := _EXPERTS.fullmatch(tensor.name):
            nbytes[match[2]] = nbytes.get(match[2], 0) + tensor.nbytes
    return [
        ProjectionErrors(
            projection,
            tuple(dict.fromkeys(error.type for error in members)),
            nbytes[projection],
            sum(error.error for error in members) / len(members),
            max(members, key=lambda error: error.error),
        )
        for projection, members in errors.items()
    ]


def worst(errors: Iterable[ExpertError], n: int = 10) -> list[ExpertError]:
    """The n largest errors, the largest first."""
    return sorted(errors, key=lambda e: (-e.error, e.layer, e.expert, e.projection))[:n]


def whole_experts(errors: Iterable[ExpertError]) -> Mapping[int, list[float]]:
    """Layer -> one error for each expert: the root mean square over its projections."""
    squares: dict[int, dict[int, list[float]]] = {}
    for error in errors:
        squares.setdefault(error.layer, {}).setdefault(error.expert, []).append(error.error**2)
    return {
        layer: [math.sqrt(sum(values) / len(values)) for _, values in sorted(experts.items())]
        for layer, experts in sorted(squares.items())
    }
