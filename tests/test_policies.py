"""The simulator of expert placement: hand-made traces, bounds, and the same result every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.hot.policies import (
    Admitted,
    Belady,
    DecayedLfu,
    Lru,
    Machine,
    Policy,
    Replay,
    counts_of,
    replay,
)
from bench.lib.traces import ROUTERS, repeated, synthetic, top_share

ALL = (Policy, Lru, DecayedLfu, Admitted, Belady)
SIZES = {"n_tokens": 200, "n_layers": 4, "n_experts": 32, "n_used": 4}


def of(*tokens: str, n_layers: int = 1) -> np.ndarray:
    """A trace from words: "ab" is a token that uses the experts 0 and 1 in every layer."""
    ids = np.array([[ord(letter) - ord("a") for letter in token] for token in tokens])
    return np.repeat(ids[:, None, :], n_layers, axis=1)


def misses(trace: np.ndarray, policy: Policy) -> list[int]:
    return replay(trace, policy).misses[:, 0].tolist()


HEAT = np.array([[4.0, 3.0, 2.0, 1.0]])  # a is the hottest, d the coldest


def test_static_keeps_the_hottest_and_moves_nothing() -> None:
    run = replay(of("a", "c", "b", "c", "c"), Policy(HEAT, 2))
    assert run.misses[:, 0].tolist() == [0, 1, 0, 1, 1]
    assert run.uploads.sum() == 0
    assert run.hit_rate == pytest.approx(0.4)


def test_lru_lets_the_longest_unused_go() -> None:
    # a b | c takes b's slot (a was just used), then b takes a's, ...
    assert misses(of("a", "c", "a", "b", "c", "a"), Lru(HEAT, 2)) == [0, 1, 0, 1, 1, 1]


def test_a_cycle_longer_than_an_lru_never_hits() -> None:
    run = replay(of(*"abcdabcdabcd"), Lru(np.zeros((1, 4)), 3))
    assert run.misses[3:].mean() == 1
    assert replay(of(*"abcdabcdabcd"), Belady(np.zeros((1, 4)), 3)).hit_rate > 0.6


def test_lfu_forgets() -> None:
    trace = of(*"aaaaaaaa", *"cccc", *"dddddddd")
    quick = misses(trace, DecayedLfu(HEAT, 1, half_life=2, prior=1))
    slow = misses(trace, DecayedLfu(HEAT, 1, half_life=1000, prior=1))
    assert sum(quick) < sum(slow)
    assert slow[8:12] == [1, 1, 1, 1]  # c has half of a's count: it doesn't come in
    assert quick[-1] == 0


def test_belady_knows_what_comes() -> None:
    # Both slots are worth keeping for a and c, b and d are let through.
    assert misses(of(*"acbdacbdac"), Belady(HEAT, 2)) == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_ours_admits_a_few_at_a_time_and_only_what_repays() -> None:
    heat = np.array([[9.0] * 4 + [0.0] * 4])
    trace = of(*["efgh"] * 40)
    for limit in (1, 2):
        run = replay(trace, Admitted(heat, 4, limit=limit))
        assert run.uploads.max() == limit
        assert run.misses[-1, 0] == 0  # it has followed
    # One stray use in a steady trace moves nothing.
    steady = of(*["abcd"] * 10, "abce", *["abcd"] * 10)
    assert replay(steady, Admitted(heat, 4)).uploads.sum() == 0


def test_ours_spends_its_budget_where_it_gains_most() -> None:
    heat = np.tile([9.0] * 4 + [0.0] * 4, (6, 1))
    run = replay(of(*["efgh"] * 40, n_layers=6), Admitted(heat, 4, limit=4, budget=3))
    assert run.uploads.sum(axis=1).max() == 3


def test_a_frozen_moment_between_two_periods() -> None:
    heat = np.array([[9.0] * 4 + [0.0] * 4])
    run = replay(of(*["efgh"] * 40), Admitted(heat, 4, period=4))
    assert set(np.flatnonzero(run.uploads[:, 0]) % 4) == {3}


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: r.name)
def test_everything_resident_hits_always_and_nothing_never(
    policy: type[Policy], router: object
) -> None:
    trace = synthetic(router, **SIZES)  # type: ignore[arg-type]
    heat = counts_of(trace, 32)
    full, empty = replay(trace, policy(heat, 32)), replay(trace, policy(heat, 0))
    assert full.hit_rate == 1
    assert full.uploads.sum() == 0
    assert empty.hit_rate == 0
    assert empty.uploads.sum() == 0


@given(
    st.lists(st.permutations(range(6)), min_size=1, max_size=30),
    st.integers(0, 6),
    st.integers(1, 3),
    st.integers(0, 2**16),
)
@settings(deadline=None)
def test_no_policy_on_demand_beats_belady(
    order: list[list[int]], n_slots: int, n_used: int, seed: int
) -> None:
    trace = np.array(order)[:, None, :n_used]
    heat = np.random.default_rng(seed).random((1, 6))
    best = replay(trace, Belady(heat, n_slots)).misses.sum()
    for policy in (Policy, Lru, DecayedLfu):
        assert replay(trace, policy(heat, n_slots)).misses.sum() >= best


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: r.name)
def test_belady_bounds_ours_on_every_kind_of_routing(router: object) -> None:
    trace = synthetic(router, **SIZES)  # type: ignore[arg-type]
    heat = counts_of(synthetic(router, seed=9, **SIZES), 32)  # type: ignore[arg-type]
    for n_slots in (2, 4, 8, 16):
        ours = replay(trace, Admitted(heat, n_slots))
        assert ours.hit_rate <= replay(trace, Belady(heat, n_slots)).hit_rate
        assert (ours.uploads <= 2).all()


@given(st.integers(0, 5), st.sampled_from(ALL), st.integers(1, 31))
@settings(deadline=None, max_examples=20)
def test_as_many_experts_are_resident_as_there_are_slots(
    seed: int, policy: type[Policy], n_slots: int
) -> None:
    trace = synthetic(ROUTERS[seed % len(ROUTERS)], seed=seed, **SIZES | {"n_tokens": 20})
    run = policy(counts_of(trace, 32), n_slots)
    run.prepare(trace)
    for ids in trace:
        before = run.resident.copy()
        uploads = run.step(ids)
        assert (run.resident.sum(axis=1) == n_slots).all()
        assert ((run.resident & ~before).sum(axis=1) == uploads).all()


def test_traces_are_what_they_say_and_the_same_every_time() -> None:
    traces = {router.name: synthetic(router, **SIZES) for router in ROUTERS}
    for router in ROUTERS:
        trace = traces[router.name]
        assert trace.shape == (200, 4, 4)
        assert (np.diff(np.sort(trace, axis=2), axis=2) > 0).all()  # no expert twice in a token
        assert (trace == synthetic(router, **SIZES)).all()
        assert (trace != synthetic(router, seed=1, **SIZES)).any()
    assert repeated(traces["uniform"]) == pytest.approx(4 / 32, abs=0.03)
    assert repeated(traces["recent"]) > 2 * repeated(traces["flat"])
    assert top_share(traces["uniform"], 32, 0.25)[1] == pytest.approx(0.25, abs=0.03)


def test_the_cost_of_a_token() -> None:
    machine = Machine(
        expert_nbytes=1e6, ram=1e9, pcie=0.5e9, device=1e10, dense_s=0.001, layer_s=0.0
    )
    misses, none = np.array([[2, 0]]), np.array([[0, 0]])
    # Layer 0: two misses at 1 ms each beside two hits; layer 1: four hits at 0.1 ms each.
    assert machine.token_s(Replay(misses, none, 4)) == pytest.approx(0.001 + 0.002 + 0.0004)
    # An upload takes RAM bandwidth from the misses: 1 ms more.
    assert machine.token_s(Replay(misses, np.array([[1, 0]]), 4)) == pytest.approx(0.0044)
    # Waiting for two uploads over PCIe takes 4 ms, and all eight are computed on the device.
    assert machine.waiting_s(Replay(misses, none, 4)) == pytest.approx(0.001 + 0.004 + 0.0008)
    # More uploads than the line carries make the line the limit.
    assert machine.token_s(Replay(none, np.array([[50, 50]]), 4)) == pytest.approx(0.2)
