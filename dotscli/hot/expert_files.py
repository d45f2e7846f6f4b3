"""Where the routed experts lie in the files of a model: what reading them one by one needs to know.

From headers alone; it reads no weights and knows no backend.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import Path

from dotscli.hot.expert_cache import ExpertBytes
from dotscli.models.gguf_file import GgufFile
from dotscli.models.tensor_places import files_of, tensor_places

PARTS = ("up", "gate", "down")  # as the backend numbers them
_STACK = re.compile(r"blk\.(\d+)\.ffn_(up|gate|down)_exps\.weight")


def expert_files(
    gguf: GgufFile, layers: Container[int] | None = None
) -> tuple[tuple[Path, ...], list[ExpertBytes]]:
    """The model's files, and every weight that stacks experts, in the order of the files.

    Args:
        gguf: a header that `check_dots1` has passed.
        layers: those that are asked for, None for all.

    Raises:
        DotsError: a shard that can't be read any more.
    """
    found: list[ExpertBytes] = []
    for number, offset, tensor in tensor_places(gguf):
        match = _STACK.fullmatch(tensor.name)
        if match is None or not tensor.is_stack:
            continue
        layer, part = int(match[1]), PARTS.index(match[2])
        if layers is None or layer in layers:
            n_experts = tensor.shape[2]
            nbytes = tensor.nbytes // n_experts
            found.append(ExpertBytes(layer, part, number, offset, nbytes, n_experts))
    return files_of(gguf), found


def in_file_order(parts: Sequence[ExpertBytes]) -> list[tuple[int, int]]:
    """(layer, expert) for every expert, as they come in the files."""
    layers = {part.layer: part.n_experts for part in sorted(parts, key=_place)}
    return [(layer, expert) for layer, n_experts in layers.items() for expert in range(n_experts)]


def _place(part: ExpertBytes) -> tuple[int, int]:
    return part.file, part.offset
