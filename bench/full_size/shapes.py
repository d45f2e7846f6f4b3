"""Which model a stand-in is: its shape, its tokenizer, and from them the plan and the metadata.

Plan, keys and header are those that `dots quantize` would write for such a checkpoint, without
checksums: the weights are made up, so there is nothing to be right about.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from bench.lib.checkpoint import Shape, config
from bench.lib.vocabulary import N_BASE_TOKENS, write_vocabulary
from dotscli.models.dots1 import Dots1
from dotscli.models.metadata import metadata
from dotscli.models.vocab import Vocab
from dotscli.quantize import plan_checkpoint
from dotscli.quantize.output.gguf_header import gguf_header
from dotscli.quantize.plan import Plan

PRESETS = {
    "real": Shape(
        layers=62, hidden=4096, heads=32, dense_width=10_944, expert_width=1408, experts=128
    ),
    # 3.6 GB as q4_0, nearly all of it experts: larger than a limit that is soon set
    "tier": Shape(
        layers=12,
        hidden=2048,
        heads=16,
        dense_width=5472,
        expert_width=1408,
        experts=64,
        vocab="small",
    ),
    "tiny": Shape(
        layers=4,
        hidden=256,
        heads=4,
        dense_width=352,
        expert_width=160,
        experts=16,
        vocab="small",
    ),
}
N_BYTE_TOKENS = 256


@dataclass(frozen=True)
class StandIn:
    """A model that is going to be made up.

    Attributes:
        shape: its sizes.
        plan: every tensor with its type and its place.
        header: the bytes before the first tensor.
        n_text_tokens: token ids below are text, those above are special or unused.
    """

    shape: Shape
    plan: Plan
    header: bytes
    n_text_tokens: int

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return len(self.header) + self.plan.data_nbytes


def stand_in(shape: Shape, type: str, cache: Path) -> StandIn:
    """Plan a model.

    Args:
        type: as of `dots quantize --type`.
        cache: where the tokenizer's package is kept.

    Raises:
        DotsError: no such type.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "stand-in"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config(shape)))
        write_vocabulary(folder, shape.vocab, cache)
        plan = plan_checkpoint(folder, type)
        model = Dots1.load(folder)
        vocab = Vocab.load(folder, model)
        keys = metadata(model, vocab, folder, plan.recipe.file_type)
    n_text = N_BASE_TOKENS if shape.vocab == "qwen" else N_BYTE_TOKENS
    return StandIn(shape, plan, gguf_header(keys, plan.tensors), n_text)


def fitting(shape: Shape, type: str, nbytes: int) -> Shape:
    """The shape with as many layers, 2 at least, as fit into nbytes of tensors."""

    def size(n_layers: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(config(replace(shape, layers=n_layers))))
            return plan_checkpoint(Path(folder), type).data_nbytes

    low, high = 2, 512
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= nbytes else (low, middle - 1)
    return replace(shape, layers=low)
