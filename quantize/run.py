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
from dotscli.quantize.convert import Event as Converting
from dotscli.quantize.convert import convert
from dotscli.quantize.fit.decide import decide
from dotscli.quantize.fit.fit import Fit
from dotscli.quantize.fit.measure import Measuring
from dotscli.quantize.plan import Plan, plan
from dotscli.quantize.recipe.recipe import Override, Recipe
from dotscli.quantize.recipe.types_of_file import preset_of_gguf
from dotscli.quantize.request import Request
from dotscli.quantize.source.fp8_layout import fp8_layout
from dotscli.quantize.source.inputs import open_input

if TYPE_CHECKING:
    from dotscli.quantize.imatrix.importance import ImportanceMatrix

Event = Measuring | Fit | Converting


def quantize(request: Request) -> Iterator[Event]:
    """See `dotscli.quantize.quantize_checkpoint`."""
    recipe = _recipe(request)
    given = open_input(request.source)
    try:
        importance = _load_importance(request)
        if request.budget is not None:
            recipe = yield from decide(given, recipe, request.budget, importance, request)
        decided = plan(given.model, given.source, recipe, importance is not None)
        keys, warnings = given.keys(recipe.file_type)
        warnings = (*decided.warnings, *warnings)
        if importance is not None:
            warnings += importance.check(tensor.spec for tensor in decided.tensors)
            keys += importance.keys()
        yield from convert(decided, given.source, keys, request, importance, warnings)
    finally:
        given.source.close()


def plan_steps(request: Request) -> Generator[Measuring | Fit, None, Plan]:
    """See `dotscli.quantize.plan_steps`."""
    recipe = _recipe(request)
    path = request.source
    if path.name == "config.json":
        path = path.parent
    importance = _load_importance(request)
    # A folder without weights is planned from its config; with some, they must be complete.
    if path.is_file() or any(path.glob("*.safetensors")):
        given = open_input(path)
        try:
            if request.budget is not None:
                recipe = yield from decide(given, recipe, request.budget, importance, request)
            decided = plan(given.model, given.source, recipe, importance is not None)
        finally:
            given.source.close()
    elif request.budget is not None:
        raise DotsError(
            f"{path} has no safetensors, and --bpw and --size need weights to measure",
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


def _recipe(request: Request) -> Recipe:
    """Of a preset, or of a GGUF whose types are taken."""
    if not request.type.lower().endswith(".gguf"):
        return Recipe.preset(request.type, request.tensor_types)
    overrides = tuple(Override.parse(text) for text in request.tensor_types)
    return Recipe(preset_of_gguf(Path(request.type)), overrides)


def _load_importance(request: Request) -> ImportanceMatrix | None:
    if request.imatrix is None:
        return None
    from dotscli.quantize.imatrix.importance import THIN_TOKENS, load_importance

    return load_importance(request.imatrix, THIN_TOKENS if request.blend else 0)
