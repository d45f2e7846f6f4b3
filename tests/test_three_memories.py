"""Placement over a device, main memory and the disk: everything has a place once, more helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.commands.plan import checkpoint_cost
from dotscli.hot.contexts import advice, loadable_context
from dotscli.hot.memory_use import GIB, Verdict
from dotscli.hot.model_cost import ModelCost
from dotscli.hot.placement import Placement, Request, place
from dotscli.hot.throughput import (
    RECENT,
    expected_traffic,
    flat_traffic,
    recent_rate,
    speed,
)
from tests.test_placement import heats, models, requests, residents

REAL = Path(__file__).parent / "data" / "dots.llm1.inst" / "config.json"
ORDER = (Verdict.TOO_SMALL, Verdict.TIER, Verdict.FITS)


@pytest.fixture(scope="module")
def real() -> ModelCost:
    """dots.llm1 as q4."""
    return checkpoint_cost(REAL, "q4")


def in_ram(found: Placement) -> set[tuple[int, int]]:
    return {(layer.layer, expert) for layer in found.layers for expert in layer.in_ram}


def experts_bytes(cost: ModelCost, experts: set[tuple[int, int]]) -> int:
    sizes = {c.layer: c.expert_nbytes for c in cost.layers}
    return sum(sizes[layer] for layer, _ in experts)


@given(models(), requests, st.data())
@settings(deadline=None)
def test_every_weight_has_one_place(cost: ModelCost, request: Request, data: st.DataObject) -> None:
    found = place(cost, request, data.draw(heats(cost)))
    on_device, beside = residents(found), in_ram(found)
    assert not on_device & beside
    dense = found.device.dense + found.ram.dense
    experts = found.device.experts + found.ram.experts + found.disk_nbytes
    assert dense + experts == cost.weights_nbytes
    assert min(found.ram.experts, found.disk_nbytes, found.ram.free, found.missing_nbytes) >= 0
    assert experts_bytes(cost, on_device) == found.device.experts
    assert experts_bytes(cost, beside) <= found.ram.experts


@given(models(), requests, st.data())
@settings(deadline=None)
def test_the_verdict_says_what_fits(cost: ModelCost, request: Request, data: st.DataObject) -> None:
    found = place(cost, request, data.draw(heats(cost)))
    if found.verdict is Verdict.TOO_SMALL:
        assert found.ram.needed == request.ram_nbytes + found.missing_nbytes
        enough = replace(request, ram_nbytes=request.ram_nbytes + found.missing_nbytes)
        margin = place(cost, enough).ram.margin - found.ram.margin  # grows with the memory
        enough = replace(enough, ram_nbytes=enough.ram_nbytes + 2 * margin)
        assert place(cost, enough).verdict is not Verdict.TOO_SMALL
    else:
        assert found.ram.needed <= request.ram_nbytes
        assert found.missing_nbytes == 0
    if found.verdict is Verdict.TIER:
        assert found.ram.free == 0
        assert found.disk_nbytes > 0
        for c, layer in zip(cost.layers, found.layers, strict=True):
            assert (c.n_experts - layer.n_slots) * c.expert_nbytes <= found.ram.experts
    if found.verdict is Verdict.FITS:
        assert found.disk_nbytes == 0
        assert len(residents(found) | in_ram(found)) == cost.n_experts


@given(
    models(), requests, st.integers(0, 4 * 10**7), st.integers(0, 4 * 10**7), st.data()
)  # fmt: skip
@settings(deadline=None)
def test_more_memory_makes_nothing_worse(
    cost: ModelCost, request: Request, device: int, ram: int, data: st.DataObject
) -> None:
    heat = data.draw(heats(cost))
    small = place(cost, request, heat)
    more = replace(
        request,
        device_nbytes=request.device_nbytes + device,
        ram_nbytes=request.ram_nbytes + ram,
    )
    large = place(cost, more, heat)
    assert ORDER.index(large.verdict) >= ORDER.index(small.verdict)
    assert large.disk_nbytes <= small.disk_nbytes
    assert residents(small) <= residents(large)
    assert residents(small) | in_ram(small) <= residents(large) | in_ram(large)
    if not device:
        assert large.missing_nbytes <= small.missing_nbytes
        assert large.may_repack >= small.may_repack
    assert flat_traffic(large).disk <= flat_traffic(small).disk * (1 + 1e-9) + 1e-6
    assert flat_traffic(large).ram <= flat_traffic(small).ram * (1 + 1e-9) + 1e-6


@given(models(), requests, st.data())
@settings(deadline=None)
def test_a_copy_of_the_weights_is_made_only_where_it_fits_beside_them(
    cost: ModelCost, request: Request, data: st.DataObject
) -> None:
    found = place(cost, request, data.draw(heats(cost)))
    if found.may_repack:
        copied = found.ram.dense + found.ram.experts
        assert found.verdict is Verdict.FITS
        assert found.ram.needed + copied <= request.ram_nbytes


@given(models(), requests, st.data())
@settings(deadline=None)
def test_rates_are_parts_of_one(cost: ModelCost, request: Request, data: st.DataObject) -> None:
    found = place(cost, request, data.draw(heats(cost)))
    for traffic in (flat_traffic(found), expected_traffic(found)):
        assert 0 <= traffic.resident <= 1 + 1e-9
        assert min(traffic.device, traffic.ram, traffic.disk) >= -1e-6
        assert traffic.disk <= traffic.ram + 1e-6
        if found.verdict is Verdict.FITS:
            assert traffic.disk == pytest.approx(0, abs=1e-3)


# GiB of main memory and of a device, 8k tokens at q8_0: what it comes to, and GiB on the disk.
MACHINES = {
    (8, 0): ("too small", None), (12, 0): ("too small", None), (16, 0): ("tier", 66.9),
    (32, 0): ("tier", 50.9), (48, 0): ("tier", 34.9), (64, 0): ("tier", 18.9),
    (96, 0): ("fits", 0), (128, 0): ("fits", 0),
    (8, 8): ("tier", 69.2), (32, 8): ("tier", 45.2), (64, 8): ("tier", 13.2), (96, 8): ("fits", 0),
    (32, 16): ("tier", 37.1), (64, 16): ("tier", 5.1), (96, 16): ("fits", 0),
    (8, 24): ("tier", 53.1), (32, 24): ("tier", 29.1), (64, 24): ("fits", 0),
    (32, 48): ("tier", 5.1), (48, 48): ("fits", 0), (128, 48): ("fits", 0),
}  # fmt: skip


@pytest.mark.parametrize(("ram", "device"), MACHINES)
def test_the_real_model_on_machines_of_all_sizes(real: ModelCost, ram: int, device: int) -> None:
    found = place(real, Request(device * GIB, ram * GIB, 8192, "q8_0", "q8_0"))
    verdict, on_disk = MACHINES[ram, device]
    assert found.verdict == Verdict(verdict)
    if on_disk is not None:
        assert found.disk_nbytes / GIB == pytest.approx(on_disk, abs=0.05)


def test_twelve_gib_hold_the_real_model_with_a_short_context(real: ModelCost) -> None:
    assert place(real, Request(0, 12 * GIB, 4096, "q8_0", "q8_0")).verdict is Verdict.TIER
    assert loadable_context(real, Request(0, 12 * GIB, 8192, "q8_0", "q8_0")) == 6400
    assert loadable_context(real, Request(0, 12 * GIB, 300, "f16", "f16")) == 300
    assert loadable_context(real, Request(0, 4 * GIB, 8192)) == 0


def test_a_repacked_copy_needs_the_memory_twice(real: ModelCost) -> None:
    assert not place(real, Request(0, 128 * GIB, 8192)).may_repack
    assert place(real, Request(0, 192 * GIB, 8192)).may_repack
    assert place(real, Request(48 * GIB, 96 * GIB, 8192)).may_repack


def test_what_cannot_be_loaded_says_how_much_is_missing_and_what_helps(real: ModelCost) -> None:
    def said(ram: int, n_ctx: int, kind: str) -> str:
        (sentence,) = advice(place(real, Request(0, ram * GIB, n_ctx, kind, kind)))
        return sentence

    assert "need 4.38 GiB more main memory than there is" in said(12, 8192, "f16")
    assert "it can with -c 3328 or -c 6400 -ctk q8_0 -ctv q8_0" in said(12, 8192, "f16")
    assert said(12, 8192, "q8_0").endswith("it can with -c 6400")
    assert said(14, 8192, "f16").endswith("or -ctk q8_0 -ctv q8_0")
    assert "it takes a smaller --type" in said(6, 8192, "f16")
    for n_ctx, kind in ((3328, "f16"), (6400, "q8_0")):
        assert place(real, Request(0, 12 * GIB, n_ctx, kind, kind)).verdict is Verdict.TIER


def test_bytes_per_token(real: ModelCost) -> None:
    whole = place(real, Request(0, 128 * GIB, 256, "f16", "f16"))
    used = sum(6 * c.expert_nbytes for c in real.layers) + real.dense_nbytes
    assert flat_traffic(whole).ram == pytest.approx(used + whole.ram.kv / 2)
    assert flat_traffic(whole).disk == 0
    everything = place(real, Request(128 * GIB, 4 * GIB, 256))
    assert flat_traffic(everything).ram == pytest.approx(0, abs=1)
    half = place(real, Request(0, 32 * GIB, 8192, "q8_0", "q8_0"))
    called = sum(6 * c.expert_nbytes for c in real.layers)
    flat, expected = flat_traffic(half), expected_traffic(half)
    assert flat.disk == pytest.approx(called * half.disk_nbytes / real.experts_nbytes)
    assert flat.resident == pytest.approx(half.ram.experts / real.experts_nbytes)
    assert expected.resident == pytest.approx(recent_rate(flat.resident))
    assert flat.ram == expected.ram == pytest.approx(called + real.dense_nbytes + half.ram.kv / 2)


def test_heat_gives_the_expected_rates(real: ModelCost) -> None:
    heat = {c.layer: [9.0] * 32 + [1.0] * 96 for c in real.moe_layers}
    found = place(real, Request(0, 32 * GIB, 8192, "q8_0", "q8_0"), heat)
    traffic = expected_traffic(found)
    assert traffic.resident > 0.75  # a quarter of the experts takes three quarters of the calls
    assert flat_traffic(found).resident == pytest.approx(found.ram.experts / real.experts_nbytes)


def test_the_recent_case_never_helps_less_and_meets_its_points() -> None:
    for share, rate in RECENT:
        assert recent_rate(share) == pytest.approx(rate)
    shares = [n / 1000 for n in range(1001)]
    rates = [recent_rate(share) for share in shares]
    assert rates == sorted(rates)
    assert all(rate >= share - 1e-9 for share, rate in zip(shares, rates, strict=True))


def test_a_speed_is_bytes_over_bandwidths(real: ModelCost) -> None:
    tier = place(real, Request(0, 32 * GIB, 8192, "q8_0", "q8_0"))
    found = speed(tier, 60e9, 3e9)
    assert found is not None
    low, high = found.low_traffic, found.high_traffic
    assert found.low == pytest.approx(1 / (low.ram / 60e9 + low.disk / 3e9))
    assert found.high == pytest.approx(1 / (high.disk / 3e9))  # the disk takes longer than RAM
    assert 0.9 < found.low < 1 < 2 < found.high < 3
    assert speed(tier, 60e9) is None
    assert speed(place(real, Request(0, 4 * GIB, 8192)), 60e9, 3e9) is None
    whole = speed(place(real, Request(0, 128 * GIB, 8192, "q8_0", "q8_0")), 60e9)
    assert whole is not None
    assert whole.low == pytest.approx(whole.high)
