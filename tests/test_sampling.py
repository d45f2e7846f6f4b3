"""Sampling settings: their ranges, their order, their seed."""

from __future__ import annotations

import math

import pytest

from dotscli.commands.settings import sampling_for, stop_strings
from dotscli.engine import EngineOptions
from dotscli.engine.sampling import MAX_SEED, Sampling, check_n_predict
from dotscli.errors import DotsError
from dotscli.options.answer import AnswerFlags, SamplingFlags
from dotscli.options.sizes import size_of


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


@pytest.mark.parametrize("temp", [0.0, -1.0, 1e-5, 1e-320])
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
        ("--temp", {"temp": -math.inf}),
        ("--top-k", {"top_k": -1}),
        ("--top-p", {"top_p": 1.1}),
        ("--top-p", {"top_p": -0.1}),
        ("--min-p", {"min_p": 2.0}),
        ("--repeat-penalty", {"repeat_penalty": 0.0}),
        ("--presence-penalty", {"presence_penalty": math.nan}),
        ("--frequency-penalty", {"frequency_penalty": -1e9}),
        ("--repeat-last-n", {"repeat_last_n": -1}),
        ("--repeat-last-n", {"repeat_last_n": 2**31 - 1}),
        ("--top-k", {"top_k": 2**31}),
        ("--seed", {"seed": 10**400}),
        ("--seed", {"seed": -2}),
        ("--seed", {"seed": 2**32 - 1}),
    ],
)
def test_a_value_out_of_range_is_a_usage_error_that_names_the_flag(
    flag: str, values: dict[str, float]
) -> None:
    with pytest.raises(DotsError, match=f"^{flag} .* is out of range") as caught:
        Sampling(**values)  # type: ignore[arg-type]  # the point of the test
    assert caught.value.exit_status == 2
    assert caught.value.hint
    assert len(caught.value.message) < 60


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("penalty_last_n", "2147483647"),
        ("penalty_last_n", "-1"),
        ("temp", "nan"),
        ("temp", "inf"),
        ("top_k", "inf"),
        ("top_k", "1e300"),
        ("top_p", "-0.5"),
        ("min_p", "7.0"),
        ("penalty_repeat", "0.0"),
        ("penalty_repeat", "True or false"),
        ("temp", "9" * 5000),
    ],
)
def test_a_recommendation_that_cannot_be_used_is_one_warning_and_the_default(
    key: str, text: str
) -> None:
    said: list[str] = []
    metadata = {f"general.sampling.{key}": text, "general.sampling.top_k": "7"}
    metadata[f"general.sampling.{key}"] = text
    sampling = sampling_for(SamplingFlags(), metadata, warn=said.append)
    assert sampling == Sampling(top_k=40 if key == "top_k" else 7)
    (line,) = said
    assert line.startswith(f"general.sampling.{key} is {text[:40]}, not between ")
    assert len(line) < 200


def test_a_flag_silences_a_bad_recommendation() -> None:
    said: list[str] = []
    metadata = {"general.sampling.temp": "nan"}
    assert sampling_for(SamplingFlags(temp=0.5), metadata, warn=said.append).temp == 0.5
    assert not said


@pytest.mark.parametrize("value", [-2, -(10**30), 2**31, 10**400])
def test_no_limit_is_minus_one_and_nothing_else(value: int) -> None:
    for allowed in (-1, 0, 1, 2**31 - 1):
        check_n_predict(allowed)
    with pytest.raises(DotsError, match=r"^--n-predict .* is out of range") as caught:
        check_n_predict(value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("stop", [[""], ["a", ""], ["x" * 1025], ["x"] * 65])
def test_a_stop_string_that_ends_nothing_or_costs_much_is_a_usage_error(stop: list[str]) -> None:
    with pytest.raises(DotsError, match="--stop") as caught:
        stop_strings(AnswerFlags(stop=stop))
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["n_ctx", "n_threads", "n_threads_batch", "n_batch", "n_cpu_moe"])
@pytest.mark.parametrize("value", [-1, 2**31, 10**400])
def test_numbers_of_an_engine_have_a_range(name: str, value: int) -> None:
    with pytest.raises(DotsError, match=" is ") as caught:
        EngineOptions(**{name: value})  # type: ignore[arg-type]  # the point of the test
    assert caught.value.exit_status == 2
    assert len(caught.value.message) < 60


@pytest.mark.parametrize("text", ["9" * 400 + "T", "9" * 30, "99999999T"])
def test_a_size_beyond_every_memory_is_none(text: str) -> None:
    assert size_of(text) is None
