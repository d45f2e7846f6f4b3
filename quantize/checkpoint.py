"""Puts the parts together for one input: read everything, plan, convert.

The only module of quantize/ that knows all others; it holds no rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.quantize.convert import DEFAULT_MAX_MEMORY, Event, convert
from dotscli.quantize.fp8_layout import fp8_layout
from dotscli.quantize.inputs import open_input
from dotscli.quantize.plan import Plan, plan
from dotscli.quantize.recipe import Recipe

if TYPE_CHECKING:
    from dotscli.quantize.importance import ImportanceMatrix


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
) -> Iterator[Event]:
    """See `dotscli.quantize.quantize_checkpoint`."""
    if threads < 0:
        raise DotsError(f"--threads {threads} is no number of threads", hint="0 takes every core")
    recipe = Recipe.preset(type, tensor_types)
    given = open_input(path)
    try:
        importance = _load_importance(imatrix, blend)
        decided = plan(given.model, given.weights, recipe, importance is not None)
        keys, warnings = given.keys(recipe.file_type)
        warnings = (*decided.warnings, *warnings)
        if importance is not None:
            warnings += importance.check(tensor.spec for tensor in decided.tensors)
            keys += importance.keys()
        yield from convert(
            decided,
            given.weights,
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
        given.weights.close()


def plan_only(path: Path, type: str, tensor_types: tuple[str, ...], imatrix: Path | None) -> Plan:
    """See `dotscli.quantize.plan_checkpoint`."""
    recipe = Recipe.preset(type, tensor_types)
    if path.name == "config.json":
        path = path.parent
    importance = _load_importance(imatrix)
    # A folder without weights is planned from its config; with some, they must be complete.
    if path.is_file() or any(path.glob("*.safetensors")):
        given = open_input(path)
        decided = plan(given.model, given.weights, recipe, importance is not None)
    else:
        model = Dots1.load(path)
        fp8_layout(path)  # refuses what is quantized in another way
        decided = plan(model, None, recipe, importance is not None)
    if importance is not None:
        importance.check(tensor.spec for tensor in decided.tensors)
    return decided


def _load_importance(imatrix: Path | None, blend: bool = True) -> ImportanceMatrix | None:
    if imatrix is None:
        return None
    from dotscli.quantize.importance import THIN_TOKENS, load_importance

    return load_importance(imatrix, THIN_TOKENS if blend else 0)
