"""Sampling settings: their ranges, their order, their seed."""

from __future__ import annotations

import math

import pytest

from dotscli.engine.sampling import MAX_SEED, Sampling
from dotscli.errors import DotsError


def test_the_defaults_are_those_of_llama_cpp_in_its_order() -> None:
    assert Sampling(seed=7).steps() == (
        ("top_k", 40),
        ("top_p", 0.95),
        ("min_p", 0.05),
        ("temp", 0.8),
        ("dist", 7),
    )


def test_penalties_come_first_and_only_when_they_do_something() -> None:
    steps = Sampling(repeat_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.3).steps()
    assert steps[0] == ("penalties", 64, 1.1, 0.2, 0.3)
    assert "penalties" not in [name for name, *_ in Sampling().steps()]
    assert not Sampling(repeat_penalty=1.1, repeat_last_n=0).penalizes


@pytest.mark.parametrize("temp", [0.0, -1.0])
def test_without_temperature_the_most_likely_token_is_taken(temp: float) -> None:
    assert Sampling(temp=temp).steps() == (("greedy",),)
    assert Sampling(temp=temp, presence_penalty=1.0).steps()[-1] == ("greedy",)


def test_neutral_steps_are_left_out() -> None:
    steps = Sampling(top_k=0, top_p=1.0, min_p=0.0, seed=1).steps()
    assert [name for name, *_ in steps] == ["temp", "dist"]


def test_a_drawn_seed_is_kept_and_a_given_one_too() -> None:
    drawn = Sampling().with_seed()
    assert 0 <= drawn.seed <= MAX_SEED
    assert drawn.with_seed() is drawn
    assert drawn.steps()[-1] == ("dist", drawn.seed)
    assert Sampling(seed=0).with_seed().seed == 0
    assert len({Sampling().with_seed().seed for _ in range(8)}) > 1


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--temp", {"temp": math.nan}),
        ("--temp", {"temp": math.inf}),
        ("--top-k", {"top_k": -1}),
        ("--top-p", {"top_p": 1.1}),
        ("--top-p", {"top_p": -0.1}),
        ("--min-p", {"min_p": 2.0}),
        ("--repeat-penalty", {"repeat_penalty": 0.0}),
        ("--presence-penalty", {"presence_penalty": math.nan}),
        ("--frequency-penalty", {"frequency_penalty": -1e9}),
        ("--repeat-last-n", {"repeat_last_n": -1}),
        ("--seed", {"seed": -2}),
        ("--seed", {"seed": 2**32 - 1}),
    ],
)
def test_a_value_out_of_range_is_a_usage_error_that_names_the_flag(
    flag: str, values: dict[str, float]
) -> None:
    with pytest.raises(DotsError, match=f"^{flag} is ") as caught:
        Sampling(**values)  # type: ignore[arg-type]  # the point of the test
    assert caught.value.exit_status == 2
    assert caught.value.hint
