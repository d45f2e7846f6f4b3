"""Which tensors a dots1 GGUF has to hold, in which shapes and types, for llama.cpp to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dotscli.errors import DotsError
from dotscli.models.gguf_file import GgufFile, GgufTensor
from dotscli.models.tensors import Naming, tensor_specs

HINT = "quantize it again with: dots quantize CHECKPOINT"

# Weights of these types have kernels for every place where dots1 uses them; NVFP4 would need
# tensors of scales beside it, the others in gguf_type are no types of weights.
WEIGHTS = frozenset(
    {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
     "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL",
     "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"}
)  # fmt: skip


@dataclass(frozen=True)
class GgufSizes:
    """The numbers of a model that decide names and shapes of the tensors."""

    n_layers: int
    n_dense_layers: int
    n_embd: int
    n_ff: int
    n_ff_expert: int
    n_heads: int
    head_dim: int
    n_experts: int
    n_shared_experts: int
    vocab_size: int


def check_tensors(gguf: GgufFile, sizes: GgufSizes) -> None:
    """Refuses a file with a tensor missing, too many, or of a wrong shape or type.

    Raises:
        DotsError: with the file, the tensor and what is wrong with it.
    """
    found = {tensor.name: tensor for tensor in gguf.tensors}
    expected = {spec.name: spec.shape[::-1] for spec in tensor_specs(sizes, Naming.FUSED)}
    _accept_joined_attention(found, expected, sizes)
    missing = [name for name in expected if name not in found]
    if missing:
        raise DotsError(
            f"{gguf.path}: the tensor {missing[0]} is missing ({len(missing)} in all)", hint=HINT
        )
    for name, tensor in found.items():
        if name not in expected:
            raise DotsError(f"{gguf.path}: dots1 has no tensor {name}", hint=HINT)
        shape = tensor.shape + (1,) * (len(expected[name]) - len(tensor.shape))
        while len(shape) > len(expected[name]) and shape[-1] == 1:
            shape = shape[:-1]
        if shape != expected[name]:
            raise DotsError(
                f"{gguf.path}: {name} has the shape {list(tensor.shape)}, "
                f"not {list(expected[name])}",
                hint=HINT,
            )
        _check_type(gguf, tensor)


def _accept_joined_attention(
    found: Mapping[str, GgufTensor], expected: dict[str, tuple[int, ...]], sizes: GgufSizes
) -> None:
    """A converter may store Q, K and V of a layer as one tensor; llama.cpp takes both."""
    for layer in range(sizes.n_layers):
        joined = f"blk.{layer}.attn_qkv.weight"
        if joined in found:
            for part in "qkv":
                del expected[f"blk.{layer}.attn_{part}.weight"]
            expected[joined] = (sizes.n_embd, 3 * sizes.n_heads * sizes.head_dim)


def _check_type(gguf: GgufFile, tensor: GgufTensor) -> None:
    vector = len(tensor.shape) == 1 or ".ffn_gate_inp." in tensor.name
    if tensor.type_name not in ({"F32"} if vector else WEIGHTS):
        reason = "router, norms and bias are F32" if vector else "not a type for weights"
        raise DotsError(f"{gguf.path}: {tensor.name} is {tensor.type_name}; {reason}", hint=HINT)
