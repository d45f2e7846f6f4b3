"""Placement: never over budget, more memory only adds, hottest first, and the real shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.commands.plan import checkpoint_cost, gguf_cost
from dotscli.engine.options import CACHE_TYPES, cache_bytes
from dotscli.errors import DotsError
from dotscli.hot.memory_use import GIB, margin_nbytes
from dotscli.hot.model_cost import LayerCost, ModelCost, row_nbytes
from dotscli.hot.placement import Placement, Request, place
from dotscli.hot.slots import knee_slots

REAL = Path(__file__).parent / "data" / "dots.llm1.inst" / "config.json"
MIB = 1 << 20


def model(
    *, n_layers: int = 4, n_experts: int = 8, n_dense: int = 1, sizes: tuple[int, ...] = (100,)
) -> ModelCost:
    """A model whose expert sizes differ from layer to layer as `sizes` goes round."""
    layers = tuple(
        LayerCost(i, 1000 + i)
        if i < n_dense
        else LayerCost(i, 1000 + i, sizes[i % len(sizes)], n_experts, ("A", "A", "B"))
        for i in range(n_layers)
    )
    return ModelCost(
        layers, embedding_nbytes=500, output_nbytes=700, n_experts_used=2, n_ctx_train=1024,
        n_embd=32, vocab_size=64, kv_width=32, staging_nbytes=800,
    )  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> ModelCost:
    n_layers = draw(st.integers(1, 6))
    return model(
        n_layers=n_layers,
        n_experts=draw(st.integers(2, 9)),
        n_dense=draw(st.integers(0, n_layers)),
        sizes=tuple(draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=3))),
    )


@st.composite
def heats(draw: st.DrawFn, cost: ModelCost) -> dict[int, list[float]] | None:
    if draw(st.booleans()):
        return None
    return {
        c.layer: draw(
            st.lists(st.integers(0, 50).map(float), min_size=c.n_experts, max_size=c.n_experts)
        )
        for c in cost.moe_layers
        if draw(st.booleans())
    }


requests = st.builds(
    Request,
    device_nbytes=st.integers(0, 4 * 10**7),
    ram_nbytes=st.integers(0, 4 * 10**7),
    n_ctx=st.integers(1, 1024),
    type_k=st.sampled_from(["f16", "q8_0", "q4_0"]),
    type_v=st.sampled_from(["f16", "q8_0", "q4_0"]),
)


def residents(found: Placement) -> set[tuple[int, int]]:
    return {(layer.layer, expert) for layer in found.layers for expert in layer.experts}


@given(models(), requests, st.data())
@settings(deadline=None)
def test_the_device_is_never_overfilled(
    cost: ModelCost, request: Request, data: st.DataObject
) -> None:
    device = place(cost, request, data.draw(heats(cost))).device
    assert device.needed <= request.device_nbytes
    assert device.free == request.device_nbytes - device.needed
    assert min(device.dense, device.kv, device.compute, device.experts, device.margin) >= 0


@given(models(), requests, st.data())
@settings(deadline=None)
def test_both_memories_together_hold_everything_once(
    cost: ModelCost, request: Request, data: st.DataObject
) -> None:
    found = place(cost, request, data.draw(heats(cost)))
    kv = cost.kv_layer_nbytes(request.n_ctx, request.type_k, request.type_v) * len(cost.layers)
    assert found.device.dense + found.ram.dense == cost.embedding_nbytes + cost.dense_nbytes
    assert found.device.kv + found.ram.kv == kv
    assert found.device.experts + found.ram.experts + found.disk_nbytes == cost.experts_nbytes
    sizes = {c.layer: c.expert_nbytes for c in cost.layers}
    assert found.device.experts == sum(sizes[layer] for layer, _ in residents(found))
    assert found.ram.missing == max(0, found.ram.needed - request.ram_nbytes)


@given(models(), requests, st.integers(0, 10**7), st.data())
@settings(deadline=None)
def test_more_memory_only_adds(
    cost: ModelCost, request: Request, more: int, data: st.DataObject
) -> None:
    heat = data.draw(heats(cost))
    small = place(cost, request, heat)
    large = place(cost, replace(request, device_nbytes=request.device_nbytes + more), heat)
    assert residents(small) <= residents(large)
    assert large.hit_rate >= small.hit_rate - 1e-9
    for before, after in zip(small.layers, large.layers, strict=True):
        assert after.on_device >= before.on_device


@given(models(), requests, st.data())
@settings(deadline=None)
def test_dense_layers_come_from_the_end_and_experts_after_them(
    cost: ModelCost, request: Request, data: st.DataObject
) -> None:
    found = place(cost, request, data.draw(heats(cost)))
    on_device = [layer.on_device for layer in found.layers]
    assert on_device == sorted(on_device)
    if found.n_resident:
        assert found.dense_on_device
    n_layers = found.engine_options().n_gpu_layers
    assert n_layers == sum(on_device) + found.output_on_device


@given(models(), requests, st.data())
@settings(deadline=None)
def test_each_layer_has_its_hottest(cost: ModelCost, request: Request, data: st.DataObject) -> None:
    heat = data.draw(heats(cost))
    found = place(cost, request, heat)
    for c, layer in zip(cost.layers, found.layers, strict=True):
        counts = (heat or {}).get(c.layer) or [1.0] * c.n_experts
        inside = [counts[e] for e in layer.experts]
        outside = [counts[e] for e in range(c.n_experts) if e not in layer.experts]
        assert len(set(layer.experts)) == len(layer.experts) <= c.n_experts
        assert min(inside, default=0) >= max(outside, default=0) or not inside
        assert 0 <= layer.hit_rate <= 1
        if layer.n_slots == c.n_experts > 0:
            assert layer.hit_rate == pytest.approx(1)


@given(models(), requests)
@settings(deadline=None)
def test_without_heat_slots_are_flat(cost: ModelCost, request: Request) -> None:
    found = place(cost, request)
    slots = list(found.slots().values())
    assert max(slots, default=0) - min(slots, default=0) <= 1
    assert slots == sorted(slots)  # what is left over goes to the last layers


def test_a_hot_layer_gets_more_slots_above_the_knee_only() -> None:
    cost = model(n_layers=3, n_experts=16)
    heat = {1: [1.0] * 16, 2: [100.0] * 8 + [0.0] * 8}
    dense = place(cost, Request(10**7, 0, 256)).device
    full = dense.dense + dense.kv + dense.compute
    request = Request((full + 12 * 100) * 8 // 7 + 1, 0, 256)
    slots = place(cost, request, heat).slots()
    assert knee_slots(cost) == 4
    assert slots == {1: 4, 2: 8}


def test_heat_of_another_model_is_refused() -> None:
    cost = model()
    for counts in ([1.0] * 7, [1.0] * 7 + [-1.0], [1.0] * 7 + [float("nan")]):
        with pytest.raises(DotsError, match="layer 2"):
            place(cost, Request(10**7, 0, 256), {2: counts})


def test_cache_rows_are_counted_as_the_engine_counts_them() -> None:
    for name in CACHE_TYPES:
        for width in (32, 128, 4096):
            assert row_nbytes(name, width) == cache_bytes(name, width)


@pytest.fixture(scope="module")
def real() -> ModelCost:
    """dots.llm1 as q4."""
    return checkpoint_cost(REAL, "q4")


# What llama.cpp 0.3.36 (llama-cpp-python) reserved on the CPU for these shapes, 512 tokens at once,
# flash attention: MiB of its compute buffer, without anything that a device would add.
RESERVED = {("q8_0", 4096): 125.68, ("q8_0", 8192): 129.68, ("q8_0", 16384): 137.68,
            ("f16", 8192): 137.51, ("f16", 16384): 145.51}  # fmt: skip


@pytest.mark.parametrize(("kind", "n_ctx"), RESERVED)
def test_the_compute_buffer_is_estimated_well(real: ModelCost, kind: str, n_ctx: int) -> None:
    widened = 4 * n_ctx * real.kv_width if kind != "f16" else 0
    estimate = real.compute_nbytes(n_ctx, kind, kind) - real.staged_nbytes - widened
    assert estimate / MIB == pytest.approx(RESERVED[kind, n_ctx], rel=0.08)


def test_the_real_model_costs_what_is_known_of_it(real: ModelCost) -> None:
    assert len(real.layers) == 62
    assert len(real.moe_layers) == 61
    assert real.n_experts == 7808
    assert real.layers[0].expert_nbytes == 0
    # Q4_K gate and up, 4.5 bits; down 4.5 bits (IQ4_NL), 5.5 in the first eighth (Q5_0).
    assert {c.expert_nbytes for c in real.moe_layers} == {
        4096 * 1408 * 27 // 16, 4096 * 1408 * (9 + 9 + 11) // 16,
    }  # fmt: skip
    assert real.kv_layer_nbytes(1, "f16", "f16") * 62 / 256 == 2 * 2 * 4096 * 62


# GiB of device -> experts, layers with dense part on the device, n_cpu_moe without hot experts.
TABLE = {8: (0, 35, 62), 16: (443, 62, 59), 24: (1319, 62, 52), 48: (3948, 62, 31),
         80: (7453, 62, 4)}  # fmt: skip


@pytest.mark.parametrize("gib", TABLE)
def test_the_real_model_on_devices_of_all_sizes(real: ModelCost, gib: int) -> None:
    found = place(real, Request(gib * GIB, 64 * GIB, 8192, "q8_0", "q8_0"))
    n_experts, n_layers, n_cpu_moe = TABLE[gib]
    assert found.n_resident == n_experts
    assert sum(layer.on_device for layer in found.layers) == n_layers
    stock = found.engine_options(hot=False)
    assert stock.n_cpu_moe == n_cpu_moe
    assert found.device.margin == GIB
    assert found.hit_rate == pytest.approx(n_experts / 7808, rel=0.01)


def test_stock_options_stay_within_the_device(real: ModelCost) -> None:
    for gib in range(13, 90):
        found = place(real, Request(gib * GIB, 64 * GIB, 8192, "q8_0", "q8_0"))
        stock = found.engine_options(hot=False)
        whole = sum(c.experts_nbytes for c in real.layers if c.layer >= stock.n_cpu_moe)
        assert whole <= found.device.experts + found.device.free
        if stock.n_cpu_moe:
            one_more = real.layers[stock.n_cpu_moe - 1].experts_nbytes
            assert whole + one_more > found.device.experts + found.device.free


def test_the_override_says_what_n_cpu_moe_says() -> None:
    found = place(model(n_layers=12), Request(10**7, 0, 256))
    options = found.engine_options()
    assert options.flags == "-ngl 13 -ncmoe 12"
    assert options.override_tensor == (
        r"blk\.(1|2|3|4|5|6|7|8|9|10|11)\.ffn_(up|down|gate)_exps=CPU",
    )
    assert found.engine_options(hot=False).flags == "-ngl 13"
    assert found.engine_options(hot=False).override_tensor == ()
    assert place(model(), Request(0, 0, 256)).engine_options().flags == "-ngl 0"


def test_margins() -> None:
    assert margin_nbytes(24 * GIB) == GIB
    assert margin_nbytes(2 * GIB) == GIB // 4
    assert margin_nbytes(0) == 0


def test_a_gguf_costs_the_same_as_its_plan(tiny_checkpoint: Path, tiny_gguf: Path) -> None:
    assert gguf_cost(tiny_gguf) == checkpoint_cost(tiny_checkpoint, "f32")
