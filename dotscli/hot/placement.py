"""Who lives where: a device, main memory and the disk, filled in the order of what a byte is worth.

Dense weights and the cache come first: every token reads all of them, a routed expert only six in
128 tokens. On a device they go by whole layers from the end, as llama.cpp's -ngl counts. Once they
are all there, slots for experts follow: up to the knee round by round through the layers, then the
hottest first, wherever they are. The next in that order live in main memory, beside the dense
weights and the cache that are not on the device, and the rest stays in the file, to be read when it
is wanted. The order doesn't depend on the memory, so more memory only ever adds.
Pure functions of costs, sizes and heat: no device is asked, nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dotscli.hot.memory_use import MainMemory, Use, Verdict, main_memory, margin_nbytes
from dotscli.hot.model_cost import UBATCH, ModelCost
from dotscli.hot.slots import (
    Experts,
    HeatCounts,
    by_layer,
    expert_shares,
    experts_nbytes,
    n_fitting,
    numbers,
    slot_order,
)


@dataclass(frozen=True)
class Request:
    """What there is and what is wanted.

    Attributes:
        device_nbytes: free memory of the device; 0 is no device.
        ram_nbytes: main memory that is available, or that the model may take.
        n_ctx: tokens of context; type_k, type_v: the types of the cache.
        n_ubatch: tokens that are computed at once.
    """

    device_nbytes: int
    ram_nbytes: int
    n_ctx: int
    type_k: str = "f16"
    type_v: str = "f16"
    n_ubatch: int = UBATCH


@dataclass(frozen=True)
class LayerPlacement:
    """One layer: whether its dense part and its cache are on the device, and which experts are.

    `experts` on the device and those `in_ram` are in the order of their worth; where experts take
    turns in main memory, `in_ram` are those to begin with. `hit_rate` and `ram_rate` are the part
    of the layer's expert calls that they are expected to take.
    """

    layer: int
    on_device: bool
    experts: tuple[int, ...] = ()
    hit_rate: float = 0.0
    in_ram: tuple[int, ...] = ()
    ram_rate: float = 0.0

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
    """What goes where. `by_heat` is False where no counts were known: every expert counts equal.

    Device, RAM and disk together hold every weight once.
    """

    cost: ModelCost
    request: Request
    layers: tuple[LayerPlacement, ...]
    output_on_device: bool
    by_heat: bool
    device: Use
    main: MainMemory

    @property
    def ram(self) -> Use:
        """What main memory is used for."""
        return self.main.use

    @property
    def disk_nbytes(self) -> int:
        """Routed experts that have no place in a memory."""
        return self.main.disk

    @property
    def verdict(self) -> Verdict:
        """Whether it can be loaded, and how."""
        return self.main.verdict

    @property
    def missing_nbytes(self) -> int:
        """Main memory that a load would need more than there is; 0 unless it is too small."""
        return self.ram.missing

    @property
    def may_repack(self) -> bool:
        """Whether there is room for the copy that llama.cpp makes of weights in main memory."""
        return self.main.may_repack

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
        before = "|".join(str(c.layer) for c in self.cost.moe_layers if c.layer < n_cpu)
        pattern = rf"blk\.({before})\.ffn_(up|down|gate)_exps=CPU"
        return StockOptions(
            n_gpu_layers=n_layers + self.output_on_device,
            n_cpu_moe=n_cpu if before else 0,
            override_tensor=(pattern,) if before and self.output_on_device else (),
        )


def place(cost: ModelCost, request: Request, heat: HeatCounts | None = None) -> Placement:
    """Decide what goes where.

    Args:
        heat: counts per layer and expert, of any scale; None, and a layer without counts, takes
            every expert for equally used.

    Raises:
        DotsError: heat of another number of experts than the model has, or negative.
    """
    shares = expert_shares(cost, heat)
    kinds = (request.n_ctx, request.type_k, request.type_v)
    kv = cost.kv_layer_nbytes(*kinds)
    compute = cost.compute_nbytes(*kinds, request.n_ubatch)
    left = request.device_nbytes - margin_nbytes(request.device_nbytes) - compute
    output, on_device = _dense_layers(cost, kv, left)
    dense = sum(c.dense_nbytes for c in cost.layers if c.layer in on_device)
    dense += cost.output_nbytes if output else 0
    order = list(slot_order(cost, shares, by_heat=heat is not None))
    all_there = output and len(on_device) == len(cost.layers)
    n_hot = n_fitting(cost, order, left - dense - kv * len(on_device)) if all_there else 0
    hot, rest = order[:n_hot], order[n_hot:]
    device = Use(
        total=request.device_nbytes,
        dense=dense,
        kv=kv * len(on_device),
        compute=compute if output else 0,
        experts=experts_nbytes(cost, hot),
        margin=margin_nbytes(request.device_nbytes),
    )
    ram = Use(
        total=request.ram_nbytes,
        dense=cost.embedding_nbytes + cost.dense_nbytes - dense,
        kv=kv * (len(cost.layers) - len(on_device)),
        compute=compute - cost.staged_nbytes,
        margin=margin_nbytes(request.ram_nbytes),
    )
    in_ram = rest[: n_fitting(cost, rest, ram.free)]
    cold = [experts_nbytes(cost, those) for those in by_layer(cost, rest).values()]
    slots, second = by_layer(cost, hot), by_layer(cost, in_ram)
    layers = tuple(
        LayerPlacement(
            layer=c.layer,
            on_device=c.layer in on_device,
            experts=numbers(slots[c.layer]),
            hit_rate=_rate(shares, slots[c.layer]),
            in_ram=numbers(second[c.layer]),
            ram_rate=_rate(shares, second[c.layer]),
        )
        for c in cost.layers
    )
    main = main_memory(ram, cold)
    return Placement(cost, request, layers, output, heat is not None, device, main)


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


def _rate(shares: Mapping[int, Sequence[float]], experts: Experts) -> float:
    """The part of a layer's calls that these experts of it take."""
    return min(1.0, sum(shares[layer][expert] for layer, expert in experts))
