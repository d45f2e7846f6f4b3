"""Puts the parts together for one checkpoint: read everything, plan, convert.

The only module of quantize/ that knows all others; it holds no rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.models.metadata import metadata
from dotscli.models.vocab import Vocab
from dotscli.quantize.convert import DEFAULT_MAX_MEMORY, Event, convert
from dotscli.quantize.fp8_layout import fp8_layout
from dotscli.quantize.plan import Plan, plan
from dotscli.quantize.recipe import Recipe
from dotscli.quantize.shards import Shards

if TYPE_CHECKING:
    from dotscli.quantize.importance import ImportanceMatrix


def quantize(
    folder: Path,
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
) -> Iterator[Event]:
    """See `dotscli.quantize.quantize_checkpoint`."""
    if threads < 0:
        raise DotsError(f"--threads {threads} is no number of threads", hint="0 takes every core")
    recipe = Recipe.preset(type, tensor_types)
    model = Dots1.load(folder)
    shards = Shards.open(folder)
    try:
        importance = _load_importance(imatrix)
        decided = plan(model, shards, recipe, importance is not None)
        vocab = Vocab.load(folder, model)
        keys = metadata(model, vocab, folder, recipe.file_type)
        warnings = (*decided.warnings, *vocab.warnings)
        if importance is not None:
            warnings += importance.check(tensor.spec for tensor in decided.tensors)
            keys += importance.keys()
        yield from convert(
            decided,
            shards,
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
        shards.close()


def plan_only(folder: Path, type: str, tensor_types: tuple[str, ...], imatrix: Path | None) -> Plan:
    """See `dotscli.quantize.plan_checkpoint`."""
    recipe = Recipe.preset(type, tensor_types)
    if folder.is_file():
        if folder.name != "config.json":
            raise DotsError(f"{folder} is no checkpoint folder", hint="give its folder")
        folder = folder.parent
    model = Dots1.load(folder)
    importance = _load_importance(imatrix)
    fp8_layout(folder)  # refuses what is quantized in another way, weights or none
    # A folder without weights is planned from its config; with some, they must be complete.
    shards = Shards.open(folder) if any(folder.glob("*.safetensors")) else None
    decided = plan(model, shards, recipe, importance is not None)
    if importance is not None:
        importance.check(tensor.spec for tensor in decided.tensors)
    return decided


def _load_importance(imatrix: Path | None) -> ImportanceMatrix | None:
    if imatrix is None:
        return None
    from dotscli.quantize.importance import load_importance

    return load_importance(imatrix)
