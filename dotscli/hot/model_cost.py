"""What a model costs in memory: dense weights, experts, the cache of the conversation, buffers.

The costs are a plain value, made of a GGUF's header or of a plan to quantize: whoever has a list of
tensors has them. Which memory there is and what goes into it is decided in placement.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dotscli.models.check import sizes_of
from dotscli.models.gguf_file import GgufFile
from dotscli.models.gguf_type import BY_NAME

# Tokens that are computed at once, and rows of logits that a batch may ask for, as the engine sets.
UBATCH = 512
OUTPUTS = 64
# Tensors of routed experts that llama.cpp may hold on a device at once while it reads a prompt: it
# computes large batches there, copying the experts in (op offload).
STAGED_TENSORS = 2

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERTS = re.compile(r"ffn_(gate|up|down)_exps\.weight")


@dataclass(frozen=True)
class TensorCost:
    """One tensor: its GGUF name, the name of its type, its bytes and the experts stacked in it."""

    name: str
    type: str
    nbytes: int
    n_experts: int = 1


@dataclass(frozen=True)
class LayerCost:
    """One layer, sizes in bytes.

    Attributes:
        dense_nbytes: all that every token passes through: attention, router, shared experts.
        expert_nbytes: one routed expert, gate, up and down together; 0 in a dense layer. A slot
            takes as much. It differs by layer where the types do.
        n_experts: routed experts; 0 in a dense layer.
        expert_types: the types of gate, up and down.
    """

    layer: int
    dense_nbytes: int
    expert_nbytes: int = 0
    n_experts: int = 0
    expert_types: tuple[str, ...] = ()

    @property
    def experts_nbytes(self) -> int:
        """All routed experts of the layer."""
        return self.n_experts * self.expert_nbytes


@dataclass(frozen=True)
class ModelCost:
    """One model, sizes in bytes.

    Attributes:
        embedding_nbytes: rows that are looked up; llama.cpp keeps them in main memory.
        output_nbytes: the last norm and the matrix that makes logits; counts as a layer for -ngl.
        kv_width: elements of a row of K, and of V, per token and layer.
        staging_nbytes: the largest tensor of stacked experts.
    """

    layers: tuple[LayerCost, ...]
    embedding_nbytes: int
    output_nbytes: int
    n_experts_used: int
    n_ctx_train: int
    n_embd: int
    vocab_size: int
    kv_width: int
    staging_nbytes: int = 0

    @property
    def moe_layers(self) -> tuple[LayerCost, ...]:
        """The layers that have routed experts."""
        return tuple(layer for layer in self.layers if layer.n_experts)

    @property
    def dense_nbytes(self) -> int:
        """Everything but the routed experts and the embedding."""
        return self.output_nbytes + sum(layer.dense_nbytes for layer in self.layers)

    @property
    def experts_nbytes(self) -> int:
        """All routed experts."""
        return sum(layer.experts_nbytes for layer in self.layers)

    @property
    def weights_nbytes(self) -> int:
        """The whole model."""
        return self.embedding_nbytes + self.dense_nbytes + self.experts_nbytes

    @property
    def n_experts(self) -> int:
        """Routed experts of all layers together."""
        return sum(layer.n_experts for layer in self.layers)

    @property
    def staged_nbytes(self) -> int:
        """Room on a device for experts that llama.cpp copies in to read a prompt with."""
        return STAGED_TENSORS * self.staging_nbytes

    def kv_layer_nbytes(self, n_ctx: int, type_k: str, type_v: str) -> int:
        """The cache of one layer: a row of K and one of V per token, rounded as llama.cpp does."""
        tokens = -(-n_ctx // 256) * 256
        return tokens * (row_nbytes(type_k, self.kv_width) + row_nbytes(type_v, self.kv_width))

    def compute_nbytes(self, n_ctx: int, type_k: str, type_v: str, n_ubatch: int = UBATCH) -> int:
        """An estimate of the compute buffer, with flash attention and n_ubatch tokens at once.

        Activations, the attention mask and the logits were compared with what llama.cpp 0.3.36
        reserves on the CPU (within 5 %, at f16 10 %). What a device adds is assumed: K and V of one
        layer as f16 where the cache is quantized, and the experts that are copied in for a prompt.
        """
        n_ubatch = min(n_ubatch, -(-n_ctx // 256) * 256)
        activations = n_ubatch * 4 * (2 * self.n_experts_used + 3) * self.n_embd
        mask = n_ubatch * 2 * n_ctx
        logits = OUTPUTS * 4 * self.vocab_size
        widened = sum(
            2 * n_ctx * self.kv_width
            for kind in (type_k, type_v)
            if BY_NAME[kind.upper()].quantized
        )
        return max(activations, logits) + mask + widened + self.staged_nbytes


def row_nbytes(kind: str, n_elements: int) -> int:
    """Bytes of a row in a type named as in `f16` or `q8_0`, in whole blocks."""
    return BY_NAME[kind.upper()].row_nbytes(n_elements)


def model_cost(
    tensors: Iterable[TensorCost],
    *,
    n_experts_used: int,
    n_ctx_train: int,
    n_embd: int,
    vocab_size: int,
    kv_width: int,
) -> ModelCost:
    """Add tensors up to what each layer costs.

    Args:
        tensors: every tensor of the model by its GGUF name; the routed experts of a layer are
            stacked in one tensor per projection.
    """
    dense: dict[int, int] = {}
    experts: dict[int, list[TensorCost]] = {}
    embedding = output = staging = 0
    for tensor in tensors:
        match = _BLOCK.fullmatch(tensor.name)
        if match is None:
            if tensor.name.startswith("token_embd"):
                embedding += tensor.nbytes
            else:
                output += tensor.nbytes
            continue
        layer = int(match[1])
        dense.setdefault(layer, 0)
        if _EXPERTS.fullmatch(match[2]):
            experts.setdefault(layer, []).append(tensor)
            staging = max(staging, tensor.nbytes)
        else:
            dense[layer] += tensor.nbytes
    order = ("gate", "up", "down")
    layers = []
    for layer, nbytes in sorted(dense.items()):
        stacks = sorted(experts.get(layer, []), key=lambda t: order.index(t.name.split("_")[1]))
        layers.append(
            LayerCost(
                layer=layer,
                dense_nbytes=nbytes,
                expert_nbytes=sum(stack.nbytes // stack.n_experts for stack in stacks),
                n_experts=stacks[0].n_experts if stacks else 0,
                expert_types=tuple(stack.type for stack in stacks),
            )
        )
    return ModelCost(
        layers=tuple(layers),
        embedding_nbytes=embedding,
        output_nbytes=output,
        n_experts_used=n_experts_used,
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        vocab_size=vocab_size,
        kv_width=kv_width,
        staging_nbytes=staging,
    )


def file_cost(gguf: GgufFile) -> ModelCost:
    """The cost of a GGUF, from a header that `check_dots1` has passed."""
    sizes = sizes_of(gguf)
    used, trained = (
        gguf.metadata[f"dots1.{key}"] for key in ("expert_used_count", "context_length")
    )
    assert isinstance(used, int)
    assert isinstance(trained, int)
    return model_cost(
        (TensorCost(t.name, t.type_name, t.nbytes, t.n_experts) for t in gguf.tensors),
        n_experts_used=used,
        n_ctx_train=trained,
        n_embd=sizes.n_embd,
        vocab_size=sizes.vocab_size,
        kv_width=sizes.n_heads * sizes.head_dim,
    )
