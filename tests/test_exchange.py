"""Exchanges while running: what repays, in which order, within limits."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dotscli.hot.adapt import Price
from dotscli.hot.exchange import Exchange, Frequencies, Rule, exchanges
from dotscli.hot.expert_cache import HotCounters

RULE = Rule(horizon=4, limit=2)


def swaps(score: list[list[float]], resident: list[list[int]], budget: int = 99) -> list[Exchange]:
    return exchanges(np.array(score), np.array(resident, np.bool_), RULE, budget)


def test_only_what_repays_within_the_horizon_is_exchanged() -> None:
    assert swaps([[0.0, 0.25]], [[1, 0]]) == []
    assert swaps([[0.0, 0.26]], [[1, 0]]) == [Exchange(0, out=0, into=1)]


def test_a_dearer_upload_has_to_gain_more() -> None:
    """Seen on an H200: an upload took as long as nine misses, and adapting cost a quarter."""
    score, resident = np.array([[0.0, 0.7]]), np.array([[True, False]])
    assert exchanges(score, resident, RULE, 9, price=7.8) == [Exchange(0, out=0, into=1)]
    assert exchanges(score, resident, RULE, 9, price=7.9) == []
    assert exchanges(score, resident, RULE, 9, price=0.1) == [Exchange(0, out=0, into=1)]


def test_the_price_of_an_upload_is_measured_in_undisturbed_misses() -> None:
    def counters(decode_misses: int, cpu_ms: float, prefill_misses: int = 0) -> HotCounters:
        values = dict.fromkeys((field.name for field in fields(HotCounters)), 0)
        values |= {"decode_misses": decode_misses, "prefill_misses": prefill_misses}
        return HotCounters(**values | {"cpu_ns": int(cpu_ms * 1e6)})

    price = Price()
    assert price.of(0.002) == 1  # nothing is known of misses
    price.observe(counters(0, 0))
    price.observe(counters(10, 2))
    assert price.of(0.002) == pytest.approx(10)
    assert price.of(0.0) == 1  # nor of uploads
    price.observe(counters(10, 500, prefill_misses=900))  # a prompt: much cheaper by the pair
    price.disturbed = True
    price.observe(counters(20, 900, prefill_misses=900))  # beside uploads
    assert price.of(0.002) == pytest.approx(10)
    price.disturbed = False
    price.observe(counters(30, 906, prefill_misses=900))
    assert price.of(0.002) == pytest.approx(0.002 / (0.8 * 0.0002 + 0.2 * 0.0006))


def test_the_hottest_takes_the_place_of_the_coldest() -> None:
    found = swaps([[0.5, 0.1, 0.9, 0.8, 0.2]], [[1, 1, 0, 0, 0]])
    assert found == [Exchange(0, out=1, into=2), Exchange(0, out=0, into=3)]


def test_layers_with_nothing_to_exchange_are_left_alone() -> None:
    assert swaps([[1.0, 0.0], [1.0, 0.0]], [[1, 1], [0, 0]]) == []


def test_the_budget_goes_where_most_is_gained() -> None:
    score = [[0.0, 0.5], [0.0, 0.9], [0.0, 0.7]]
    assert [swap.row for swap in swaps(score, [[1, 0]] * 3, budget=2)] == [1, 2]
    assert swaps(score, [[1, 0]] * 3, budget=0) == []


@given(
    hnp.arrays(np.float64, (3, 7), elements=st.floats(0, 1)),
    hnp.arrays(np.bool_, (3, 7)),
    st.integers(0, 5),
)
def test_every_exchange_gains_and_slots_stay_as_many(
    score: np.ndarray, resident: np.ndarray, budget: int
) -> None:
    found = exchanges(score, resident, RULE, budget)
    after = resident.copy()
    for swap in found:
        assert after[swap.row, swap.out]
        assert not after[swap.row, swap.into]
        assert score[swap.row, swap.into] - score[swap.row, swap.out] > 1 / RULE.horizon
        after[swap.row, swap.out], after[swap.row, swap.into] = False, True
    assert (after.sum(axis=1) == resident.sum(axis=1)).all()
    assert len(found) <= budget
    assert max(np.bincount([swap.row for swap in found], minlength=3)) <= RULE.limit


def test_frequencies_start_from_heat_and_follow_what_is_used() -> None:
    found = Frequencies(np.array([[30.0, 10.0, 0.0], [0.0, 0.0, 0.0]]), 2, Rule(slow=100, fast=1))
    assert found.score()[0] == pytest.approx([1.5, 0.5, 0.0])
    assert not found.score()[1].any()  # nothing known: nobody is preferred
    used = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    found.observe(used)
    assert found.fast[0] == pytest.approx([0.75, 0.75, 0.5])
    assert found.slow[0, 2] == pytest.approx(1 - 0.5**0.01)
    for _ in range(2000):
        found.observe(used)
    assert found.score() == pytest.approx(used, abs=1e-4)


def test_counts_of_several_tokens_weigh_as_much_as_one_by_one() -> None:
    one, many = (Frequencies(np.ones((1, 4)), 2, Rule()) for _ in range(2))
    for _ in range(8):
        one.observe(np.array([[1.0, 1.0, 0.0, 0.0]]))
    many.observe(np.array([[8.0, 8.0, 0.0, 0.0]]), n_tokens=8)
    assert many.score() == pytest.approx(one.score())
