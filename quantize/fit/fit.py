"""fit(): the recipe that errs least within a number of bytes, from measured errors.

It joins what the other modules know: which tensors decide together (groups), what each type would
cost them (measure), how much that harms (sensitivity), and how to choose (budget). It reads no
weights and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.models.tensors import Sizes, TensorSpec
from dotscli.quantize.fit.knapsack import Option, least_nbytes, most_nbytes, spend
from dotscli.quantize.fit.measure import Errors
from dotscli.quantize.fit.sensitivity import ROLES
from dotscli.quantize.plan import aligned, stored_nbytes
from dotscli.quantize.recipe.groups import Group, groups_of
from dotscli.quantize.recipe.presets import Preset
from dotscli.quantize.recipe.recipe import Override, Recipe, quantizable
from dotscli.quantize.recipe.types_of_file import listed, place_of
from dotscli.quantize.request import Budget


@dataclass(frozen=True)
class Decision:
    """The type of one group, and the harm that is left, in expected KL divergence (nats)."""

    group: Group
    type: TensorType
    harm: float


@dataclass(frozen=True)
class Fit:
    """The recipe, and how it came about."""

    recipe: Recipe
    decisions: tuple[Decision, ...]


def free_groups(specs: Sequence[TensorSpec], overrides: Sequence[Override]) -> tuple[Group, ...]:
    """The groups whose types are open: of matrices that no override names."""
    return groups_of(
        spec
        for spec in specs
        if quantizable(spec) and not any(o.pattern.search(spec.name) for o in overrides)
    )


def fit(
    model: Sizes,
    specs: Sequence[TensorSpec],
    overrides: Sequence[Override],
    errors: Errors,
    budget: Budget,
    overhead_nbytes: int = 0,
) -> Fit:
    """Choose the types.

    Args:
        specs: all tensors of the output.
        errors: of every tensor in `free_groups` as each of its candidates.
        overhead_nbytes: bytes of the budget that are not for tensors.

    Raises:
        DotsError: not even the smallest types fit.
    """
    groups = free_groups(specs, overrides)
    harm_of = harms(groups, errors)
    options = [
        [
            Option(sum(aligned(stored_nbytes(spec, kind)) for spec in group.specs), harm[kind])
            for kind in group.candidates
        ]
        for group, harm in zip(groups, harm_of, strict=True)
    ]
    free = {spec.name for group in groups for spec in group.specs}
    unchosen = Recipe(listed(budget.name, {}, {}), tuple(overrides))
    fixed = overhead_nbytes + sum(
        aligned(stored_nbytes(spec, unchosen.type_for(spec, model)))
        for spec in specs
        if spec.name not in free
    )
    n_weights = sum(spec.n_elements for spec in specs)
    allowed = budget.allowed(n_weights)
    if allowed < fixed + least_nbytes(options):
        least, most = (
            budget.shown(fixed + nbytes, n_weights)
            for nbytes in (least_nbytes(options), most_nbytes(options))
        )
        raise DotsError(
            f"{budget.shown(allowed, n_weights)} is too little for this model",
            hint=f"the minimum is {least}, and more than {most} gains nothing",
        )
    chosen = spend(options, allowed - fixed)
    decisions = tuple(
        Decision(group, group.candidates[index], harm[group.candidates[index]])
        for group, harm, index in zip(groups, harm_of, chosen, strict=True)
    )
    return Fit(Recipe(_preset(budget.name, decisions), tuple(overrides)), decisions)


def _preset(name: str, decisions: Sequence[Decision]) -> Preset:
    types: dict[tuple[int, str], TensorType] = {}
    n_weights: dict[TensorType, int] = {}
    for decision in decisions:
        for spec in decision.group.specs:
            types[place_of(spec.name)] = decision.type
            n_weights[decision.type] = n_weights.get(decision.type, 0) + spec.n_elements
    return listed(name, types, n_weights)


def harms(groups: Sequence[Group], errors: Errors) -> list[Mapping[TensorType, float]]:
    """The harm of every group as each of its candidates, in expected KL divergence (nats).

    The sensitivity of a role is that of all its tensors together, so each has its share of it.
    """
    n_tensors = Counter(place_of(spec.name)[1] for group in groups for spec in group.specs)

    def harm(spec: TensorSpec, kind: TensorType) -> float:
        _, role = place_of(spec.name)
        return ROLES[role] / n_tensors[role] * errors[spec.name][kind]

    return [
        {kind: sum(harm(spec, kind) for spec in group.specs) for kind in group.candidates}
        for group in groups
    ]
