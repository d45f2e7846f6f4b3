"""The facts of a plan, as `dots plan --json` prints them; sizes in bytes. It decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dotscli.hot.contexts import Column
from dotscli.hot.memory_use import Use
from dotscli.hot.placement import Placement
from dotscli.hot.slots import knee_slots
from dotscli.hot.throughput import Traffic, expected_traffic, flat_traffic, speed


def facts(
    name: str,
    device: str,
    found: Placement,
    columns: list[Column],
    notes: list[str],
    bandwidths: tuple[int, int] = (0, 0),
) -> Mapping[str, Any]:
    """The whole plan; sizes in bytes, bandwidths of main memory and disk in bytes per second."""
    cost, request = found.cost, found.request
    allowed = speed(found, *bandwidths)
    costs = {c.layer: c for c in cost.layers}
    return {
        "model": name,
        "weights_bytes": cost.weights_nbytes,
        "n_ctx": request.n_ctx,
        "cache_type_k": request.type_k,
        "cache_type_v": request.type_v,
        "device": {"name": device, **_use(found.device)} if device else None,
        "ram": _use(found.ram),
        "disk": {"experts_bytes": found.disk_nbytes},
        "verdict": found.verdict.value,
        "may_repack": found.may_repack,
        "experts": {
            "resident": found.n_resident,
            "total": cost.n_experts,
            "hit_rate": found.hit_rate,
            "by_heat": found.by_heat,
            "knee_slots": knee_slots(cost),
        },
        "layers": [
            {
                "layer": layer.layer,
                "on_device": layer.on_device,
                "dense_bytes": costs[layer.layer].dense_nbytes,
                "expert_bytes": costs[layer.layer].expert_nbytes,
                "slots": layer.n_slots,
                "experts": list(layer.experts) if found.by_heat else None,
                "hit_rate": layer.hit_rate,
            }
            for layer in found.layers
        ],
        "options": {
            "hot": found.engine_options().flags,
            "stock": found.engine_options(hot=False).flags,
        },
        "per_token": {
            "flat": _traffic(flat_traffic(found)),
            "expected": _traffic(expected_traffic(found)),
        },
        "tokens_per_second": None if allowed is None else [allowed.low, allowed.high],
        "contexts": [
            {
                "cache_type": c.kv_type,
                "longest": c.longest,
                "longest_hot": c.longest_hot,
                "placements": [
                    {
                        "n_ctx": p.request.n_ctx,
                        "layers_on_device": sum(layer.on_device for layer in p.layers),
                        "resident": p.n_resident,
                        "hit_rate": p.hit_rate,
                        "verdict": p.verdict.value,
                        "disk_bytes": p.disk_nbytes,
                        "ram_missing_bytes": p.missing_nbytes,
                    }
                    for p in c.placements
                ],
            }
            for c in columns
        ],
        "notes": notes,
    }


def _use(use: Use) -> dict[str, int]:
    return {
        "total_bytes": use.total,
        "dense_bytes": use.dense,
        "cache_bytes": use.kv,
        "compute_bytes": use.compute,
        "experts_bytes": use.experts,
        "margin_bytes": use.margin,
        "free_bytes": use.free,
        "missing_bytes": use.missing,
    }


def _traffic(one: Traffic) -> dict[str, float]:
    return {
        "device_bytes": round(one.device),
        "ram_bytes": round(one.ram),
        "disk_bytes": round(one.disk),
        "resident_rate": one.resident,
    }
