"""Puts the parts together for one input: read everything, decide, plan, convert.

The only module of quantize/ that knows all others; it holds no rule of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.quantize.convert import DEFAULT_MAX_MEMORY, convert
from dotscli.quantize.convert import Event as Converting
from dotscli.quantize.fit.decide import decide
from dotscli.quantize.fit.fit import Fit
from dotscli.quantize.fit.knapsack import Budget
from dotscli.quantize.fit.measure import Measuring
from dotscli.quantize.plan import Plan, plan
from dotscli.quantize.recipe.recipe import Override, Recipe
from dotscli.quantize.recipe.types_of_file import preset_of_gguf
from dotscli.quantize.source.fp8_layout import fp8_layout
from dotscli.quantize.source.inputs import open_input

if TYPE_CHECKING:
    from dotscli.quantize.imatrix.importance import ImportanceMatrix

Event = Measuring | Fit | Converting

_PLANNED = Path("planned.gguf")  # a plan has no file; only names of split files are made of it


def quantize(
    path: Path,
    out: Path,
    type: str,
    tensor_types: tuple[str, ...],
    imatrix: Path | None,
    threads: int,
    max_memory: int | None,
    force: bool,
    restart: bool,
    split_max_size: int | None,
    report: Path | None,
    blend: bool,
    budget: Budget | None,
) -> Iterator[Event]:
    """See `dotscli.quantize.quantize_checkpoint`."""
    if threads < 0:
        raise DotsError(f"--threads {threads} is no number of threads", hint="0 takes every core")
    recipe = _recipe(type, tensor_types)
    given = open_input(path)
    try:
        importance = _load_importance(imatrix, blend)
        if budget is not None:
            recipe = yield from decide(
                given, recipe, budget, importance, out, split_max_size, threads
            )
        decided = plan(given.model, given.source, recipe, importance is not None)
        keys, warnings = given.keys(recipe.file_type)
        warnings = (*decided.warnings, *warnings)
        if importance is not None:
            warnings += importance.check(tensor.spec for tensor in decided.tensors)
            keys += importance.keys()
        yield from convert(
            decided,
            given.source,
            keys,
            out,
            threads=threads,
            max_memory=DEFAULT_MAX_MEMORY if max_memory is None else max_memory,
            force=force,
            restart=restart,
            split_max_size=split_max_size,
            importance=importance,
            inputs=() if imatrix is None else (imatrix,),
            report=report,
            warnings=warnings,
        )
    finally:
        given.source.close()


def plan_steps(
    path: Path,
    type: str,
    tensor_types: tuple[str, ...],
    imatrix: Path | None,
    budget: Budget | None,
    split_max_size: int | None,
    threads: int,
    blend: bool,
) -> Generator[Measuring | Fit, None, Plan]:
    """See `dotscli.quantize.plan_steps`."""
    recipe = _recipe(type, tensor_types)
    if path.name == "config.json":
        path = path.parent
    importance = _load_importance(imatrix, blend)
    # A folder without weights is planned from its config; with some, they must be complete.
    if path.is_file() or any(path.glob("*.safetensors")):
        given = open_input(path)
        if budget is not None:
            recipe = yield from decide(
                given, recipe, budget, importance, _PLANNED, split_max_size, threads
            )
        decided = plan(given.model, given.source, recipe, importance is not None)
    elif budget is not None:
        raise DotsError(
            f"{path} holds no safetensors, and a budget is spent by measuring the weights",
            hint="plan a preset with --type, or give the whole checkpoint",
        )
    else:
        model = Dots1.load(path)
        fp8_layout(path)  # refuses what is quantized in another way
        decided = plan(model, None, recipe, importance is not None)
    if importance is not None:
        found = importance.check(tensor.spec for tensor in decided.tensors)
        decided = replace(decided, warnings=(*decided.warnings, *found))
    return decided


def _recipe(type: str, tensor_types: tuple[str, ...]) -> Recipe:
    """Of a preset, or of a GGUF whose types are taken."""
    if not type.lower().endswith(".gguf"):
        return Recipe.preset(type, tensor_types)
    overrides = tuple(Override.parse(text) for text in tensor_types)
    return Recipe(preset_of_gguf(Path(type)), overrides)


def _load_importance(imatrix: Path | None, blend: bool) -> ImportanceMatrix | None:
    if imatrix is None:
        return None
    from dotscli.quantize.imatrix.importance import THIN_TOKENS, load_importance

    return load_importance(imatrix, THIN_TOKENS if blend else 0)
