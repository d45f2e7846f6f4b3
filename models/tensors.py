"""The tensors of dots.llm1: how they are called and shaped in a checkpoint and in a GGUF.

Two namings of the experts exist: one tensor per expert (every published checkpoint), and fused
stacks (a raw state dict of transformers 5), with or without the suffix ".weight". Shapes are in
numpy order, rows first; GGUF's ne is the reverse. It does not know what any file holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Sizes(Protocol):
    """The numbers of a model that decide its tensors; `dotscli.models.dots1.Dots1` has them."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_dense_layers(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_ff(self) -> int: ...
    @property
    def n_ff_expert(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def n_experts(self) -> int: ...
    @property
    def n_shared_experts(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class Naming(Enum):
    """How a checkpoint names its routed experts; the value is the suffix of the fused stacks."""

    PER_EXPERT = "per-expert"
    FUSED = ""
    FUSED_WEIGHT = ".weight"


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of the checkpoint and the part of it that a GGUF tensor takes.

    Attributes:
        name: HF name.
        shape: the whole tensor's shape in the checkpoint.
        rows: first and last + 1 row of the last two dimensions, of each matrix; None is all.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def matrix_rows(self) -> int:
        """Rows of each matrix in it, also of those that the GGUF tensor doesn't take."""
        return self.shape[-2] if len(self.shape) > 1 else 1


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the GGUF.

    Attributes:
        name: GGUF name.
        shape: (rows, columns), (experts, rows, columns) or (n,).
        sources: one, or one per expert in expert order.
        layer: its layer number, None outside the layers.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[SourceTensor, ...]
    layer: int | None = None

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def is_stack(self) -> bool:
        """Whether it stacks the matrices of experts."""
        return len(self.shape) == 3

    @property
    def n_experts(self) -> int:
        """Number of expert matrices stacked in it; 1 for everything else."""
        return self.shape[0] if self.is_stack else 1

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return self.shape[-1]

    @property
    def matrix_rows(self) -> int:
        """Rows of one expert's matrix, or of the one there is; 1 for a vector."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def n_rows(self) -> int:
        """Rows of all matrices together."""
        return self.n_experts * self.matrix_rows

    def source_of(self, expert: int) -> tuple[SourceTensor, int]:
        """The tensor of the checkpoint with an expert's matrix, and the first row of that in it.

        A fused stack has the rows of all experts one after the other, of each gate before up.
        """
        if len(self.sources) > 1:
            source, first = self.sources[expert], 0
        else:
            source = self.sources[0]
            first = expert * source.matrix_rows
        return source, first + (source.rows[0] if source.rows else 0)


_FUSED_NAME = re.compile(r"\.mlp\.experts\.(?:gate_up_proj|down_proj)(\.weight)?$")


def naming_of(names: Iterable[str]) -> Naming:
    """Tell the naming from a checkpoint's tensor names: fused if any name is fused."""
    for name in names:
        match = _FUSED_NAME.search(name)
        if match:
            return Naming.FUSED_WEIGHT if match[1] else Naming.FUSED
    return Naming.PER_EXPERT


def tensor_specs(model: Sizes, naming: Naming) -> tuple[TensorSpec, ...]:
    """Every tensor of the model: 3 + 11 per dense layer + 16 per layer with experts."""
    vocab, n_embd = model.vocab_size, model.n_embd
    specs = [_plain("token_embd.weight", "model.embed_tokens.weight", (vocab, n_embd))]
    for layer in range(model.n_layers):
        specs += _attention(model, layer)
        if layer < model.n_dense_layers:
            specs += _feed_forward(model, layer, "mlp", "", model.n_ff)
        else:
            specs += _router(model, layer)
            specs += _experts(model, layer, naming)
            width = model.n_ff_expert * model.n_shared_experts
            specs += _feed_forward(model, layer, "mlp.shared_experts", "_shexp", width)
    specs.append(_plain("output_norm.weight", "model.norm.weight", (n_embd,)))
    specs.append(_plain("output.weight", "lm_head.weight", (vocab, n_embd)))
    return tuple(specs)


def _plain(gguf: str, hf: str, shape: tuple[int, ...], layer: int | None = None) -> TensorSpec:
    return TensorSpec(gguf, shape, (SourceTensor(hf, shape),), layer)


def _attention(model: Sizes, layer: int) -> Iterator[TensorSpec]:
    p, hf = f"blk.{layer}", f"model.layers.{layer}"
    n_embd, inner = model.n_embd, model.n_heads * model.head_dim
    for gguf, name, shape in (
        ("attn_norm", "input_layernorm", (n_embd,)),
        ("attn_q", "self_attn.q_proj", (inner, n_embd)),
        ("attn_k", "self_attn.k_proj", (inner, n_embd)),
        ("attn_v", "self_attn.v_proj", (inner, n_embd)),
        ("attn_q_norm", "self_attn.q_norm", (model.head_dim,)),
        ("attn_k_norm", "self_attn.k_norm", (model.head_dim,)),
        ("attn_output", "self_attn.o_proj", (n_embd, inner)),
        ("ffn_norm", "post_attention_layernorm", (n_embd,)),
    ):
        yield _plain(f"{p}.{gguf}.weight", f"{hf}.{name}.weight", shape, layer)


def _feed_forward(
    model: Sizes, layer: int, prefix: str, suffix: str, width: int
) -> Iterator[TensorSpec]:
    for role in ("gate", "up", "down"):
        shape = (model.n_embd, width) if role == "down" else (width, model.n_embd)
        hf = f"model.layers.{layer}.{prefix}.{role}_proj.weight"
        yield _plain(f"blk.{layer}.ffn_{role}{suffix}.weight", hf, shape, layer)


def _router(model: Sizes, layer: int) -> Iterator[TensorSpec]:
    p, hf = f"blk.{layer}", f"model.layers.{layer}.mlp.gate"
    shape = (model.n_experts, model.n_embd)
    yield _plain(f"{p}.ffn_gate_inp.weight", f"{hf}.weight", shape, layer)
    yield _plain(f"{p}.exp_probs_b.bias", f"{hf}.e_score_correction_bias", shape[:1], layer)


def _experts(model: Sizes, layer: int, naming: Naming) -> Iterator[TensorSpec]:
    hf, n = f"model.layers.{layer}.mlp.experts", model.n_experts
    width, n_embd = model.n_ff_expert, model.n_embd
    for role in ("gate", "up", "down"):
        shape = (n_embd, width) if role == "down" else (width, n_embd)
        if naming is Naming.PER_EXPERT:
            sources = tuple(SourceTensor(f"{hf}.{e}.{role}_proj.weight", shape) for e in range(n))
        elif role == "down":
            sources = (SourceTensor(f"{hf}.down_proj{naming.value}", (n, *shape)),)
        else:
            rows = (0, width) if role == "gate" else (width, 2 * width)
            whole = (n, 2 * width, n_embd)
            sources = (SourceTensor(f"{hf}.gate_up_proj{naming.value}", whole, rows),)
        yield TensorSpec(f"blk.{layer}.ffn_{role}_exps.weight", (n, *shape), sources, layer)
