"""What a model needs of a checkpoint, compared with what is there, by name, shape and dtype."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.tensors import TensorSpec
from dotscli.quantize.source.safetensors_header import Entry
from dotscli.quantize.types import DTYPES

_SHOWN = 5  # findings listed in one error


def check_sources(
    origin: Path,
    specs: Iterable[TensorSpec],
    entries: Mapping[str, Entry],
    scaled: Container[str] = (),
) -> None:
    """Compare the sources of all tensors with the entries of all shards.

    Args:
        scaled: the tensors whose dtype needs scales and that have them.

    Raises:
        DotsError: tensors missing, superfluous, of a wrong shape or dtype, five of them named.
    """
    needed: set[str] = set()
    missing, shapes, dtypes = [], [], []
    for spec in specs:
        for source in spec.sources:
            name = source.name
            needed.add(name)
            entry = entries.get(name)
            if entry is None:
                missing.append(name)
                continue
            if entry.shape != source.shape:
                shapes.append(f"{name} is {list(entry.shape)}, expected {list(source.shape)}")
            if entry.dtype not in DTYPES and name not in scaled:
                dtypes.append(f"{name} is {entry.dtype}")
    extra = [name for name in entries if name not in needed]
    for what, found in (
        ("missing tensors", missing),
        ("tensors that a dots.llm1 of this config does not have", extra),
        ("tensors of the wrong shape", shapes),
        (f"tensors stored as something other than {', '.join(DTYPES)}", dtypes),
    ):
        if found:
            unique = list(dict.fromkeys(found))
            more = f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
            raise DotsError(
                f"{origin}: {what} ({len(unique)}): {', '.join(unique[:_SHOWN])}{more}",
                hint="compare config.json and the shards with the published checkpoint",
            )
