"""What a token reads from each memory, and how many tokens a second that allows.

Arithmetic from sizes, rates and bandwidths. The low end of a speed takes every expert for equally
likely and lets nothing overlap; the high end takes experts to come again, and main memory to be
read while the disk is. It measures nothing, and leaves out the device's own time.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from dotscli.hot.memory_use import Verdict
from dotscli.hot.placement import Placement

# Part of the experts that has a place -> part of the calls it takes, where experts come again and
# the most used ones stay: docs/hot-policy.md, "recent", column LFU.
RECENT = ((0.0, 0.0), (0.05, 0.22), (0.1, 0.37), (0.2, 0.57), (0.3, 0.7), (0.5, 0.87), (1.0, 1.0))


@dataclass(frozen=True)
class Traffic:
    """Bytes that one token reads, the cache half full.

    Attributes:
        device, ram, disk: from each of them; what comes from the disk is read once more from main
            memory, which is counted in `ram`.
        resident: the part of expert calls that finds its expert in one of the two memories.
    """

    device: float
    ram: float
    disk: float
    resident: float


@dataclass(frozen=True)
class Speed:
    """Tokens per second, from `low` to `high`, and what a token reads at either end."""

    low: float
    high: float
    low_traffic: Traffic
    high_traffic: Traffic


def flat_traffic(found: Placement) -> Traffic:
    """If every expert is as likely as any other: what a cache can help least."""
    return _traffic(found, [_places(found, n) for n in range(len(found.layers))])


def expected_traffic(found: Placement) -> Traffic:
    """If experts are used as the heat says; without heat, if they come again soon."""
    rates = []
    for n, layer in enumerate(found.layers):
        device, resident = _places(found, n)
        if found.by_heat:
            rates.append((layer.hit_rate, min(1.0, layer.hit_rate + layer.ram_rate)))
        else:
            rates.append((recent_rate(device), recent_rate(resident)))
    return _traffic(found, rates)


def recent_rate(share: float) -> float:
    """Part of the calls that a cache for so many of the experts takes, between RECENT's points."""
    at = min(bisect_right(RECENT, (share, 2.0)), len(RECENT) - 1)
    (low, least), (high, most) = RECENT[at - 1], RECENT[at]
    return least + (most - least) * (share - low) / (high - low)


def speed(found: Placement, ram_bandwidth: float, disk_bandwidth: float = 0.0) -> Speed | None:
    """What the bandwidths allow, in bytes per second; None where one is needed and not known."""
    low, high = flat_traffic(found), expected_traffic(found)
    if found.verdict is Verdict.TOO_SMALL or (low.disk and not disk_bandwidth):
        return None
    if not ram_bandwidth or not low.ram:
        return None
    worst = low.ram / ram_bandwidth + (low.disk / disk_bandwidth if low.disk else 0)
    best = max(high.ram / ram_bandwidth, high.disk / disk_bandwidth if high.disk else 0)
    return Speed(1 / worst, 1 / best, low, high)


def _places(found: Placement, n: int) -> tuple[float, float]:
    """The part of a layer's experts on the device, and the part in either memory."""
    n_experts, slots = found.cost.layers[n].n_experts, found.layers[n].n_slots
    cold = found.ram.experts + found.disk_nbytes
    device = slots / n_experts if n_experts else 1.0
    return device, device + (1 - device) * (found.ram.experts / cold if cold else 1.0)


def _traffic(found: Placement, rates: list[tuple[float, float]]) -> Traffic:
    """Args:
    rates: per layer, the part of its expert calls on the device and in either memory.
    """
    cost, output = found.cost, found.output_on_device
    device = found.device.kv / 2 + (cost.output_nbytes if output else 0)
    ram = found.ram.kv / 2 + (0 if output else cost.output_nbytes)
    disk = resident = 0.0
    for layer, placed, (hit, there) in zip(cost.layers, found.layers, rates, strict=True):
        device += layer.dense_nbytes if placed.on_device else 0
        ram += 0 if placed.on_device else layer.dense_nbytes
        called = cost.n_experts_used * layer.expert_nbytes
        device += hit * called
        ram += (1 - hit) * called
        disk += (1 - there) * called
        resident += there if layer.n_experts else 0
    n_layers = len(cost.moe_layers)
    return Traffic(device, ram, disk, resident / n_layers if n_layers else 1.0)
