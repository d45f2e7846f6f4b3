"""In which order experts are given slots: by what is known of their use, layer by layer.

The order is one list for a model and its heat and doesn't depend on any memory: a placement takes
as much of its beginning as fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dotscli.errors import DotsError
from dotscli.hot.model_cost import LayerCost, ModelCost

# Slots of a layer per expert that a token uses, from where a cache begins to pay: below about
# twice the active experts it mostly loses (arXiv 2505.16056).
KNEE = 2

HeatCounts = Mapping[int, Sequence[float]]  # layer -> how often each expert was used
Experts = Sequence[tuple[int, int]]  # (layer, expert), in the order of their worth


def knee_slots(cost: ModelCost) -> int:
    """Slots per layer below which hot experts hardly pay."""
    return KNEE * cost.n_experts_used


def expert_shares(cost: ModelCost, heat: HeatCounts | None) -> dict[int, list[float]]:
    """Layer -> the part of its expert calls that each expert takes; they add up to 1."""
    shares: dict[int, list[float]] = {}
    for layer in cost.layers:
        counts = [float(count) for count in (heat or {}).get(layer.layer, ())]
        if counts and len(counts) != layer.n_experts:
            raise DotsError(
                f"the heat of layer {layer.layer} covers {len(counts)} experts, "
                f"the model has {layer.n_experts}",
                hint="give a heat file of this model",
            )
        if any(not 0 <= count < float("inf") for count in counts):
            raise DotsError(f"the heat of layer {layer.layer} contains an invalid count")
        total = sum(counts)
        n = layer.n_experts
        shares[layer.layer] = [c / total for c in counts] if total else [1 / max(n, 1)] * n
    return shares


def slot_order(
    cost: ModelCost, shares: Mapping[int, Sequence[float]], *, by_heat: bool
) -> Iterator[tuple[int, int]]:
    """Every (layer, expert) in the order in which they are given slots.

    Round by round, later layers first, each layer its hottest: up to the knee with heat, to the end
    without. Then by the calls an expert takes per byte.
    """
    ranked = {
        c.layer: [expert for _, expert in sorted((-s, e) for e, s in enumerate(shares[c.layer]))]
        for c in cost.moe_layers
    }
    layers: list[LayerCost] = list(reversed(cost.moe_layers))
    most = max((c.n_experts for c in layers), default=0)
    knee = min(knee_slots(cost), most) if by_heat else most
    for n in range(knee):
        for c in layers:
            if n < c.n_experts:
                yield c.layer, ranked[c.layer][n]
    rest = [
        (-shares[c.layer][expert] / c.expert_nbytes, n, -c.layer, expert)
        for c in layers
        for n, expert in enumerate(ranked[c.layer])
        if n >= knee
    ]
    for _, _, layer, expert in sorted(rest):
        yield -layer, expert


def n_fitting(cost: ModelCost, order: Experts, nbytes: int) -> int:
    """How many experts from the first one on fit into so many bytes."""
    size = {c.layer: c.expert_nbytes for c in cost.layers}
    for n, (layer, _) in enumerate(order):
        nbytes -= size[layer]
        if nbytes < 0:
            return n
    return len(order)


def experts_nbytes(cost: ModelCost, experts: Experts) -> int:
    """Bytes of these experts together."""
    size = {c.layer: c.expert_nbytes for c in cost.layers}
    return sum(size[layer] for layer, _ in experts)


def by_layer(cost: ModelCost, experts: Experts) -> dict[int, Experts]:
    """Layer -> those of these experts that it has, in their order; for every layer."""
    found: dict[int, list[tuple[int, int]]] = {c.layer: [] for c in cost.layers}
    for layer, expert in experts:
        found[layer].append((layer, expert))
    return dict(found)


def numbers(experts: Experts) -> tuple[int, ...]:
    """The experts of one layer by number."""
    return tuple(expert for _, expert in experts)
