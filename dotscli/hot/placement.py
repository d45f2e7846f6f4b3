"""Who lives where: what a device's memory is filled with, in the order of its worth.

Dense weights and the cache come first: every token reads all of them, a routed expert only six in
128 tokens. They go by whole layers from the end, as llama.cpp's -ngl counts. Once they are all
there, slots for experts follow: up to the knee round by round through the layers, then the hottest
first, wherever they are. That order doesn't depend on the memory, so more memory only ever adds.
Pure functions of costs, sizes and heat: no device is asked, nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dotscli.hot.model_cost import ModelCost
from dotscli.hot.slots import HeatCounts, expert_shares, slot_order

GIB = 1 << 30
# Left free of any memory: what llama.cpp's own --fit leaves, less on small devices.
MARGIN, MARGIN_SHARE = GIB, 8


@dataclass(frozen=True)
class Request:
    """What there is and what is wanted.

    Attributes:
        device_nbytes: free memory of the device; 0 is no device.
        ram_nbytes: main memory for the model.
        n_ctx: tokens of context; type_k, type_v: the types of the cache.
    """

    device_nbytes: int
    ram_nbytes: int
    n_ctx: int
    type_k: str = "f16"
    type_v: str = "f16"


@dataclass(frozen=True)
class Use:
    """What one memory is used for, in bytes; `needed` may exceed `total`, in main memory only."""

    total: int
    dense: int = 0
    kv: int = 0
    compute: int = 0
    experts: int = 0
    margin: int = 0

    @property
    def needed(self) -> int:
        """All of it, with the margin."""
        return self.dense + self.kv + self.compute + self.experts + self.margin

    @property
    def free(self) -> int:
        """What is left; 0 where more is needed than there is."""
        return max(0, self.total - self.needed)

    @property
    def missing(self) -> int:
        """What doesn't fit."""
        return max(0, self.needed - self.total)


@dataclass(frozen=True)
class LayerPlacement:
    """One layer: whether its dense part and its cache are on the device, and which experts are.

    `experts` are in the order of their worth; `hit_rate` is the part of the layer's expert calls
    that they are expected to take.
    """

    layer: int
    on_device: bool
    experts: tuple[int, ...] = ()
    hit_rate: float = 0.0

    @property
    def n_slots(self) -> int:
        """Experts that have a place on the device."""
        return len(self.experts)


@dataclass(frozen=True)
class StockOptions:
    """Placement in the words of stock llama.cpp; `override_tensor` says the same as the n_cpu_moe.

    `n_gpu_layers` counts the output as a layer, as llama.cpp does.
    """

    n_gpu_layers: int
    n_cpu_moe: int
    override_tensor: tuple[str, ...]

    @property
    def flags(self) -> str:
        """As on a command line."""
        moe = f" -ncmoe {self.n_cpu_moe}" if self.n_gpu_layers and self.n_cpu_moe else ""
        return f"-ngl {self.n_gpu_layers}{moe}"


@dataclass(frozen=True)
class Placement:
    """What goes where. `by_heat` is False where no counts were known: every expert counts equal."""

    cost: ModelCost
    request: Request
    layers: tuple[LayerPlacement, ...]
    output_on_device: bool
    by_heat: bool
    device: Use
    ram: Use

    @property
    def n_resident(self) -> int:
        """Experts on the device."""
        return sum(layer.n_slots for layer in self.layers)

    @property
    def dense_on_device(self) -> bool:
        """Whether all dense weights and the whole cache are on the device."""
        return self.output_on_device and all(layer.on_device for layer in self.layers)

    @property
    def hit_rate(self) -> float:
        """Expected part of all expert calls that the device computes; every layer has as many."""
        n_layers = len(self.cost.moe_layers)
        return sum(layer.hit_rate for layer in self.layers) / n_layers if n_layers else 0.0

    def slots(self) -> dict[int, int]:
        """Layer -> slots, for every layer that has routed experts."""
        moe = {layer.layer for layer in self.cost.moe_layers}
        return {layer.layer: layer.n_slots for layer in self.layers if layer.layer in moe}

    def cpu_nbytes_per_token(self) -> float:
        """Bytes of weights and cache that one token reads from main memory, the cache half full."""
        used = self.cost.n_experts_used
        nbytes = self.ram.kv / 2
        nbytes += 0 if self.output_on_device else self.cost.output_nbytes
        for cost, layer in zip(self.cost.layers, self.layers, strict=True):
            nbytes += 0 if layer.on_device else cost.dense_nbytes
            nbytes += (1 - layer.hit_rate) * used * cost.expert_nbytes if cost.n_experts else 0
        return nbytes

    def engine_options(self, *, hot: bool = True) -> StockOptions:
        """The options that stock llama.cpp takes for this placement.

        Args:
            hot: True leaves all routed experts in main memory, for the backend to copy the hot
                ones from. False fills their place with the experts of whole layers, the last ones
                first: what the device can be used for without that backend.
        """
        n_layers = sum(layer.on_device for layer in self.layers)
        n_cpu = len(self.layers)
        if not hot and self.dense_on_device:
            left = self.device.experts + self.device.free
            for cost in reversed(self.cost.layers):
                left -= cost.experts_nbytes
                if left < 0:
                    break
                n_cpu = cost.layer
        numbers = "|".join(str(c.layer) for c in self.cost.moe_layers if c.layer < n_cpu)
        pattern = rf"blk\.({numbers})\.ffn_(up|down|gate)_exps=CPU"
        return StockOptions(
            n_gpu_layers=n_layers + self.output_on_device,
            n_cpu_moe=n_cpu if numbers else 0,
            override_tensor=(pattern,) if numbers and self.output_on_device else (),
        )


def margin_nbytes(total: int) -> int:
    """What is left free of a memory: 1 GiB, or an eighth where that is less."""
    return min(MARGIN, total // MARGIN_SHARE)


def place(cost: ModelCost, request: Request, heat: HeatCounts | None = None) -> Placement:
    """Decide what goes where.

    Args:
        heat: counts per layer and expert, of any scale; None, and a layer without counts, takes
            every expert for equally used.

    Raises:
        DotsError: heat of another number of experts than the model has, or negative.
    """
    shares = expert_shares(cost, heat)
    kv = cost.kv_layer_nbytes(request.n_ctx, request.type_k, request.type_v)
    compute = cost.compute_nbytes(request.n_ctx, request.type_k, request.type_v)
    margin = margin_nbytes(request.device_nbytes)
    left = request.device_nbytes - margin - compute
    output, on_device = _dense_layers(cost, kv, left)
    if output:
        left -= cost.output_nbytes
        left -= sum(c.dense_nbytes + kv for c in cost.layers if c.layer in on_device)
    resident: dict[int, list[int]] = {c.layer: [] for c in cost.layers}
    size = {c.layer: c.expert_nbytes for c in cost.layers}
    if output and len(on_device) == len(cost.layers):
        for layer, expert in slot_order(cost, shares, by_heat=heat is not None):
            if left < size[layer]:
                break
            left -= size[layer]
            resident[layer].append(expert)
    layers = tuple(
        LayerPlacement(
            layer=c.layer,
            on_device=c.layer in on_device,
            experts=tuple(resident[c.layer]),
            hit_rate=min(1.0, sum(shares[c.layer][e] for e in resident[c.layer])),
        )
        for c in cost.layers
    )
    device, ram = _uses(cost, request, layers, output, kv, compute)
    return Placement(cost, request, layers, output, heat is not None, device, ram)


def _dense_layers(cost: ModelCost, kv: int, left: int) -> tuple[bool, set[int]]:
    """Whether the output fits, and the layers that do, from the end."""
    on_device: set[int] = set()
    left -= cost.output_nbytes
    if left < 0:
        return False, on_device
    for c in reversed(cost.layers):
        left -= c.dense_nbytes + kv
        if left < 0:
            break
        on_device.add(c.layer)
    return True, on_device


def _uses(
    cost: ModelCost,
    request: Request,
    layers: Sequence[LayerPlacement],
    output: bool,
    kv: int,
    compute: int,
) -> tuple[Use, Use]:
    pairs = list(zip(cost.layers, layers, strict=True))
    n_on_device = sum(layer.on_device for layer in layers)
    hot = sum(c.expert_nbytes * layer.n_slots for c, layer in pairs)
    dense = sum(c.dense_nbytes for c, layer in pairs if layer.on_device)
    dense += cost.output_nbytes if output else 0
    device = Use(
        total=request.device_nbytes,
        dense=dense,
        kv=kv * n_on_device,
        compute=compute if output else 0,
        experts=hot,
        margin=margin_nbytes(request.device_nbytes),
    )
    ram = Use(
        total=request.ram_nbytes,
        dense=cost.embedding_nbytes + cost.dense_nbytes - dense,
        kv=kv * (len(layers) - n_on_device),
        compute=compute - cost.staged_nbytes,
        experts=cost.experts_nbytes - hot,
        margin=margin_nbytes(request.ram_nbytes),
    )
    return device, ram
