"""`--bpw` and `--size`: the best types for a number of bytes, and the file has no byte more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.quantize import plan_checkpoint, plan_steps, quantize_checkpoint
from dotscli.quantize.convert import Resumed, TensorDone
from dotscli.quantize.fit.fit import Fit, fit
from dotscli.quantize.fit.knapsack import Option, least_nbytes, most_nbytes, spend
from dotscli.quantize.fit.measure import Measuring, measure, sample
from dotscli.quantize.fit.sensitivity import ROLES
from dotscli.quantize.imatrix.importance import load_importance
from dotscli.quantize.plan import Plan, plan
from dotscli.quantize.recipe.groups import groups_of
from dotscli.quantize.recipe.recipe import Override, quantizable
from dotscli.quantize.request import Budget
from dotscli.quantize.rows.codec import Codec
from dotscli.quantize.rows.decode import decode
from dotscli.quantize.source.shards import Shards
from dotscli.quantize.types import type_named
from tests import reference, tiny
from tests.test_dots1 import REAL
from tests.test_importance import measurements
from tests.test_importance import write as write_importance
from tests.transcript import dots

Event = TypeVar("Event")
Result = TypeVar("Result")

options = st.builds(Option, st.integers(0, 40), st.integers(0, 100).map(float))
problems = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=4)


def total(groups: list[list[Option]], chosen: tuple[int, ...] | list[int]) -> Option:
    picked = [options[i] for options, i in zip(groups, chosen, strict=True)]
    return Option(sum(o.nbytes for o in picked), sum(o.error for o in picked))


@given(problems, st.integers(0, 160))
def test_the_choice_is_within_one_step_of_the_best(groups: list[list[Option]], nbytes: int) -> None:
    every = [total(groups, c) for c in itertools.product(*(range(len(g)) for g in groups))]
    possible = [one.error for one in every if one.nbytes <= nbytes]
    if not possible:
        assert least_nbytes(groups) > nbytes
        with pytest.raises(ValueError, match="need"):
            spend(groups, nbytes)
        return
    found = total(groups, spend(groups, nbytes))
    assert found.nbytes <= nbytes
    step = max(max(o.error for o in g) - min(o.error for o in g) for g in groups)
    assert min(possible) <= found.error <= min(possible) + step


@given(problems)
def test_enough_bytes_leave_the_least_error(groups: list[list[Option]]) -> None:
    found = total(groups, spend(groups, most_nbytes(groups)))
    assert found == Option(
        most_nbytes(groups), sum(min(o.error for o in options) for options in groups)
    )


def test_what_is_left_is_spent() -> None:
    """The hull's step to 10 bytes doesn't fit, the option beside the hull does."""
    assert spend([[Option(0, 9.0), Option(6, 5.0), Option(10, 1.0)]], 7) == [1]


def real_fit(bpw: float, *overrides: str) -> tuple[Fit, Plan]:
    """On the published shapes, every tensor with the errors of gaussian weights."""
    model = Dots1.from_config(REAL, "config.json")
    specs = model.tensors()
    errors = {
        spec.name: {kind: GAUSSIAN[kind.name] for kind in group.candidates}
        for group in groups_of(spec for spec in specs if quantizable(spec))
        for spec in group.specs
    }
    found = fit(model, specs, [Override.parse(o) for o in overrides], errors, Budget(bpw=bpw))
    return found, plan(model, None, found.recipe)


# Relative squared error of normal weights, in 1e-4; what decides is their order.
GAUSSIAN = {
    "Q3_K": 236.0, "IQ4_XS": 60.0, "MXFP4": 132.0, "Q4_K": 52.0, "IQ4_NL": 59.0, "Q4_0": 74.0,
    "Q4_1": 61.0, "Q5_K": 13.0, "Q5_0": 18.0, "Q5_1": 15.0, "Q6_K": 3.2, "Q8_0": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("bpw", [4.25, 4.5, 5.0, 6.5])
def test_the_real_shapes_fit_and_use_what_is_allowed(bpw: float) -> None:
    _, decided = real_fit(bpw)
    assert bpw - 0.01 < decided.bpw <= bpw


def test_gate_and_up_decide_together_and_rows_of_1408_take_small_blocks() -> None:
    found, decided = real_fit(4.65)
    types = {tensor.name: tensor.type for tensor in decided.tensors}
    for layer in range(1, 62):
        for suffix in ("exps", "shexp"):
            gate, up = (types[f"blk.{layer}.ffn_{role}_{suffix}.weight"] for role in ("gate", "up"))
            assert gate is up
        assert types[f"blk.{layer}.ffn_down_exps.weight"].block == 32
    assert types["blk.0.ffn_down.weight"].block == 32  # 10944
    assert types["blk.3.ffn_gate_inp.weight"].name == "F32"
    assert {decision.group.role for decision in found.decisions} == {
        "token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_up",
        "ffn_down", "ffn_gate_up_exps", "ffn_down_exps", "ffn_gate_up_shexp", "ffn_down_shexp",
    }  # fmt: skip


def test_every_matrix_of_the_model_has_a_sensitivity() -> None:
    specs = Dots1.from_config(REAL, "config.json").tensors()
    roles = {spec.name.split(".")[-2] for spec in specs if quantizable(spec)}
    assert roles == set(ROLES)
    assert min(ROLES.values()) > 0


def test_an_override_keeps_its_type_and_the_rest_is_spent_around_it() -> None:
    _, free = real_fit(4.65)
    _, decided = real_fit(4.65, r"blk\.1\.ffn_gate_exps=q8_0", "attn_v=q6_k")
    types = {tensor.name: tensor.type.name for tensor in decided.tensors}
    assert types["blk.1.ffn_gate_exps.weight"] == "Q8_0"
    assert {types[f"blk.{i}.attn_v.weight"] for i in range(62)} == {"Q6_K"}
    assert types["blk.1.ffn_up_exps.weight"] != "Q8_0"
    assert decided.bpw <= 4.65
    assert decided.tensors != free.tensors


def test_a_budget_that_is_too_small_says_what_is_possible() -> None:
    with pytest.raises(DotsError, match=r"3\.000 bits per weight is too little") as caught:
        real_fit(3.0)
    assert "the minimum is 3.7" in caught.value.hint
    assert "more than 8.5" in caught.value.hint


def drained(work: Generator[Event, None, Result]) -> tuple[list[Event], Result]:
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return events, end.value


def steps(folder: Path, budget: Budget, **more: object) -> tuple[Plan, Fit, list[Measuring]]:
    (*measuring, found), decided = drained(plan_steps(folder, budget=budget, **more))  # type: ignore[arg-type]
    assert isinstance(found, Fit)
    return decided, found, measuring  # type: ignore[return-value]


def test_more_bits_go_where_the_measured_error_is(tmp_path: Path) -> None:
    """Values of sixteen levels cost nothing in 4 bits; their layer needs no more."""
    weights = tiny.weights(tiny.config())
    for name, values in weights.items():
        if ".layers.1.mlp.experts." in name:
            weights[name] = np.round(np.clip(values / values.std(), -3, 3)).astype(np.float32)
    folder = tiny.write_checkpoint(tmp_path / "levels")
    tiny.write_shards(folder, weights)
    decided, _, _ = steps(folder, Budget(bpw=5.5))
    kinds = {tensor.name: tensor.type for tensor in decided.tensors}
    easy, hard = (kinds[f"blk.{layer}.ffn_down_exps.weight"] for layer in (1, 2))
    assert easy.row_nbytes(1024) < hard.row_nbytes(1024)


def test_a_sample_is_bounded_and_spread(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, n_ff_expert=1024, n_experts=64)
    model, shards = Dots1.load(folder), Shards.open(folder)
    specs = {spec.name: spec for spec in shards.specs(model)}
    pieces = sample(specs["blk.1.ffn_up_exps.weight"], shards)  # 64 times 1024 rows of 256
    assert sum(piece.nbytes for piece in pieces) == 2 << 18
    assert [piece.expert for piece in pieces] == list(range(0, 64, 2))
    starts = sorted(piece.start // 512 for piece in pieces)
    assert starts[0] < 100 < 900 < starts[-1] <= 1024 - 32
    whole = sample(specs["blk.1.attn_q.weight"], shards)  # 256 rows of 256: all of them
    assert [(piece.start, piece.nbytes) for piece in whole] == [(0, 2 * 256 * 256)]


def test_errors_are_those_of_the_whole_tensor_weighted_by_its_use(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "tiny", n_ff_expert=96)
    matrix = {name: values for name, values in measurements(folder).items() if "ffn_up" in name}
    imatrix = load_importance(write_importance(tmp_path / "im.gguf", matrix))
    model, shards = Dots1.load(folder), Shards.open(folder)
    spec = next(s for s in model.tensors() if s.name == "blk.1.ffn_up_exps.weight")
    kind = type_named("Q4_K")
    for importance in (None, imatrix):
        _, found = drained(measure([(spec, [kind])], shards, importance, 1))
        error = power = 0.0
        for expert, source in enumerate(spec.sources):
            weights = decode(bytes(shards.read(source.name, 0, 2 * 96 * 256)), type_named("BF16"))
            columns = None if importance is None else importance.row(spec.name, expert)
            out = np.empty(96 * kind.row_nbytes(256), np.uint8)
            Codec().encode(memoryview(weights).cast("B"), "F32", 256, kind, out, columns)
            change = decode(out.tobytes(), kind) - weights
            heat = np.ones(256)
            if importance is not None:
                entry = importance.entries[spec.name]
                heat = columns.astype(np.float64) * entry.counts[expert]
            error += float((change.reshape(96, 256).astype(np.float64) ** 2 * heat).sum())
            power += float((weights.reshape(96, 256).astype(np.float64) ** 2 * heat).sum())
        assert found[spec.name][kind] == pytest.approx(error / power, rel=1e-5)


def test_the_choice_depends_on_neither_threads_nor_naming(tmp_path: Path) -> None:
    folders = [tiny.write_checkpoint(tmp_path / s, style=s) for s in ("per-expert", "fused")]
    chosen = []
    for folder, threads in ((folders[0], 1), (folders[0], 2), (folders[1], 2)):
        decided, _, measuring = steps(folder, Budget(bpw=5.0), threads=threads)
        assert measuring[-1].done_nbytes == measuring[-1].total_nbytes > 0
        assert decided.bpw <= 5.0
        chosen.append([tensor.type.name for tensor in decided.tensors])
    assert chosen[0] == chosen[1] == chosen[2]


@pytest.mark.parametrize("split", [None, 400 << 10])
def test_the_file_has_the_size_asked_for_at_most(split: int | None, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "tiny")
    for kib in (1800, 2000, 2400):
        out = tmp_path / f"{kib}.gguf"
        budget = Budget(nbytes=kib << 10)
        for _ in quantize_checkpoint(folder, out, budget=budget, split_max_size=split):
            pass
        files = list(tmp_path.glob(f"{kib}*.gguf"))
        nbytes = sum(path.stat().st_size for path in files)
        assert (kib - 40) << 10 < nbytes <= kib << 10
        assert len(files) == 1 or split
        decided, _, _ = steps(folder, budget, split_max_size=split)
        planned = {tensor.name: tensor.type.name for tensor in decided.tensors}
        if split is None:
            assert {n: kind for n, (kind, _) in reference.read_tensors(out).items()} == planned


def test_a_gguf_gives_its_types(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "tiny")
    first, again = tmp_path / "first.gguf", tmp_path / "again.gguf"
    for _ in quantize_checkpoint(folder, first, budget=Budget(bpw=5.0)):
        pass
    for _ in quantize_checkpoint(folder, again, str(first)):
        pass
    assert first.read_bytes() == again.read_bytes()
    other = tiny.write_checkpoint(tmp_path / "other", n_layers=4)
    with pytest.raises(DotsError, match=r"has no type for attn_q in layer 3 of this model"):
        plan_checkpoint(other, str(first))


def test_an_interrupted_run_goes_on_with_the_same_choice(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "tiny")
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    for _ in quantize_checkpoint(folder, whole, budget=Budget(bpw=5.0)):
        pass
    events = quantize_checkpoint(folder, out, budget=Budget(bpw=5.0), threads=1)
    for event in events:
        if isinstance(event, TensorDone) and event.name.startswith("blk.1"):
            break
    events.close()  # type: ignore[attr-defined]
    resumed = [
        event
        for event in quantize_checkpoint(folder, out, budget=Budget(bpw=5.0))
        if isinstance(event, Resumed)
    ]
    assert resumed[0].n_tensors > 0
    assert out.read_bytes() == whole.read_bytes()


def test_the_command_shows_the_choice_and_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny.write_checkpoint(tmp_path / "tiny")
    shown = dots("quantize", str(folder), "--bpw", "5", "--dry-run")
    assert "ffn_gate_up_exps" in shown.stdout
    assert "bits per weight. Nothing was written." in shown.stdout
    document = json.loads(dots("quantize", str(folder), "--bpw", "5", "--dry-run", "--json").stdout)
    assert document["bpw"] <= 5
    named = [name for group in document["groups"] for name in group["tensors"]]
    assert len(named) == len(set(named)) == 29
    assert all(group["harm"] >= 0 for group in document["groups"])
    made = dots("quantize", str(folder), "--bpw", "5")
    assert made.stdout == "tiny-5bpw.gguf\n"
    assert "chosen: " in made.stderr
    named = {tensor["name"]: tensor["type"] for tensor in document["tensors"]}
    found = reference.read_tensors(tmp_path / "tiny-5bpw.gguf")
    assert {name: kind for name, (kind, _) in found.items()} == named
    assert dots("quantize", str(folder), "--size", "2M").stdout == "tiny-2.00MiB.gguf\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--bpw", "5", "--size", "1G"], 2, "--type, --bpw and --size can't be combined"),
        (["--bpw", "5", "--type", "q4"], 2, "can't be combined"),
        (["--bpw", "0"], 2, "--bpw 0 is out of range"),
        (["--bpw", "nan"], 2, "--bpw nan is out of range"),
        (["--bpw", "2"], 1, "hint: the minimum is "),
        (["--size", "1M"], 1, "1.00 MiB is too little for this model"),
    ],
)
def test_what_can_not_be_is_refused(
    words: list[str], status: int, said: str, tiny_checkpoint: Path
) -> None:
    done = dots("quantize", str(tiny_checkpoint), *words, "--dry-run")
    assert done.exit_status == status
    assert said in done.stderr


def test_a_budget_needs_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config()))
    done = dots("quantize", str(tmp_path), "--bpw", "5", "--dry-run")
    assert done.exit_status == 1
    assert "has no safetensors, and --bpw and --size need weights to measure" in done.stderr
