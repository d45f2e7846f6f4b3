"""What a dots1 GGUF must hold before llama.cpp may see it.

llama.cpp trusts its model files: a missing gating function aborts the process when the graph is
built, a router in F64 ends in a segmentation fault, a token that comes twice in an assertion. So
everything its loader for dots1 asserts, assumes or silently replaces by a default is checked here
against the header (llama.cpp's src/models/dots1.cpp, llama-model.cpp, llama-vocab.cpp). Keys that
its dots1 does not read are left alone. The weights themselves are not looked at.
"""

from __future__ import annotations

import math
import shlex

from dotscli.errors import DotsError
from dotscli.models.check_tensors import GgufSizes, check_tensors
from dotscli.models.check_tokens import check_tokens
from dotscli.models.gguf_bytes import shown
from dotscli.models.gguf_file import GgufArray, GgufFile
from dotscli.models.gguf_type import BOOL, FLOAT32, UINT32, VALUE_NAMES

MAX_LAYERS, MAX_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
MAX_WIDTH = 1 << 24
MIN_ROPE_FACTOR = 1e-3
SIGMOID = 2
HINT = "quantize it again with: dots quantize CHECKPOINT"

# Every key is (value type, least, most) and has to be there.
REQUIRED: dict[str, tuple[int, float, float]] = {
    "block_count": (UINT32, 1, MAX_LAYERS),
    "context_length": (UINT32, 1, 1 << 31),
    "embedding_length": (UINT32, 32, MAX_WIDTH),
    "feed_forward_length": (UINT32, 1, MAX_WIDTH),
    "attention.head_count": (UINT32, 1, 1 << 16),
    "rope.freq_base": (FLOAT32, 1.0, 1e12),
    "attention.layer_norm_rms_epsilon": (FLOAT32, 1e-12, 1.0),
    "expert_count": (UINT32, 2, MAX_EXPERTS),
    "expert_used_count": (UINT32, 1, MAX_EXPERTS),
    "expert_gating_func": (UINT32, SIGMOID, SIGMOID),
    "expert_feed_forward_length": (UINT32, 1, MAX_WIDTH),
    "leading_dense_block_count": (UINT32, 0, MAX_LAYERS),
    "expert_shared_count": (UINT32, 1, MAX_EXPERTS),
    "expert_weights_scale": (FLOAT32, 1e-6, 1e6),
    "expert_weights_norm": (BOOL, 0, 1),
}
# These may be there, but only with a value that changes nothing for dots1.
NEUTRAL: dict[str, tuple[int, float, float]] = {
    "expert_group_count": (UINT32, 0, MAX_EXPERTS),
    "expert_group_used_count": (UINT32, 0, MAX_EXPERTS),
    "attention.causal": (BOOL, 1, 1),
    "pooling_type": (UINT32, 0, 0),
    "nextn_predict_layers": (UINT32, 0, 0),
    "rope.scaling.finetuned": (BOOL, 0, 1),
    "rope.scaling.factor": (FLOAT32, 0.0, 1e6),
    "rope.scale_linear": (FLOAT32, 0.0, 1e6),
    "rope.scaling.attn_factor": (FLOAT32, 1.0, 1.0),
    "rope.scaling.original_context_length": (UINT32, 0, 1 << 31),
}
ROPE_SCALING = ("none", "linear", "yarn")
NOT_DOTS1 = ("classifier.output_labels", "attention.sliding_window", "embedding_length_out")


def check_dots1(gguf: GgufFile) -> None:
    """Refuses a file that would abort, crash or misroute in llama.cpp.

    Raises:
        DotsError: with the file, the key or tensor, and the value.
    """
    _check_architecture(gguf)
    for key, wanted in REQUIRED.items():
        _check_key(gguf, f"dots1.{key}", wanted, required=True)
    for key, wanted in NEUTRAL.items():
        _check_key(gguf, f"dots1.{key}", wanted, required=False)
    for key in NOT_DOTS1:
        if f"dots1.{key}" in gguf.metadata:
            raise _wrong(gguf, f"dots1.{key}", "absent")
    _check_rope_scaling(gguf)
    _check_routing(gguf)
    check_tokens(gguf)
    check_tensors(gguf, sizes_of(gguf))


def _check_architecture(gguf: GgufFile) -> None:
    found = gguf.metadata.get("general.architecture")
    if gguf.metadata.get("general.type") == "imatrix":
        raise DotsError(
            f"{gguf.path} is an importance matrix, not a model",
            hint=f"use it with: dots quantize CHECKPOINT --imatrix {shlex.quote(str(gguf.path))}",
        )
    if found != "dots1":
        raise DotsError(
            f"{gguf.path} holds a model of architecture {shown(found)}",
            hint="dots runs only GGUFs of dots.llm1 (architecture dots1)",
        )


def _check_key(
    gguf: GgufFile, key: str, wanted: tuple[int, float, float], *, required: bool
) -> None:
    kind, low, high = wanted
    if key not in gguf.metadata:
        if required:
            raise DotsError(f"{gguf.path}: the key {key} is missing", hint=HINT)
        return
    value = gguf.metadata[key]
    if gguf.types[key] != kind:
        found = VALUE_NAMES[gguf.types[key]]
        raise DotsError(
            f"{gguf.path}: {key} has the type {found}, not {VALUE_NAMES[kind]}", hint=HINT
        )
    assert isinstance(value, int | float)  # the type above says so
    # values of f32 are rounded, so the bounds get a little room
    if math.isnan(value) or not low * (1 - 1e-6) <= value <= high * (1 + 1e-6):
        what = f"{low:g}" if low == high else f"between {low:g} and {high:g}"
        raise _wrong(gguf, key, what)


def _check_rope_scaling(gguf: GgufFile) -> None:
    key = "dots1.rope.scaling.type"
    kind = gguf.metadata.get(key)
    if key in gguf.metadata and kind not in ROPE_SCALING:
        raise _wrong(gguf, key, f"one of {', '.join(ROPE_SCALING)}")
    for key in ("dots1.rope.scaling.factor", "dots1.rope.scale_linear"):
        factor = gguf.metadata.get(key, 0)
        assert isinstance(factor, int | float)  # its type has been checked
        if 0 < factor < MIN_ROPE_FACTOR:  # llama.cpp divides by it
            raise _wrong(gguf, key, f"0 for none, or between {MIN_ROPE_FACTOR:g} and 1e+06")


def _check_routing(gguf: GgufFile) -> None:
    """Experts used and groups, as llama-model.cpp asserts them."""
    n_experts = _number(gguf, "expert_count")
    if _number(gguf, "expert_used_count") > n_experts:
        raise _wrong(gguf, "dots1.expert_used_count", f"at most the {n_experts} experts")
    if _number(gguf, "leading_dense_block_count") > _number(gguf, "block_count"):
        raise _wrong(gguf, "dots1.leading_dense_block_count", "at most dots1.block_count")
    groups, used = _number(gguf, "expert_group_count"), _number(gguf, "expert_group_used_count")
    if groups >= n_experts or (groups > 1 and n_experts % groups):
        raise _wrong(gguf, "dots1.expert_group_count", f"a divisor of the {n_experts} experts")
    if groups > 1 and not 0 < used < groups:
        raise _wrong(gguf, "dots1.expert_group_used_count", f"between 1 and {groups - 1}")


def sizes_of(gguf: GgufFile) -> GgufSizes:
    """The model's numbers, out of a header whose keys are there and of the right type.

    Raises:
        DotsError: heads of different widths, or fewer for keys and values than for queries.
    """
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GgufArray)
    n_embd, n_heads = _number(gguf, "embedding_length"), _number(gguf, "attention.head_count")
    head_dim = _head_dim(gguf, n_embd // n_heads)
    kv = gguf.metadata.get("dots1.attention.head_count_kv", n_heads)
    if kv != n_heads or gguf.types.get("dots1.attention.head_count_kv", UINT32) != UINT32:
        raise _wrong(
            gguf, "dots1.attention.head_count_kv", f"{n_heads}, one for each attention head"
        )
    return GgufSizes(
        n_layers=_number(gguf, "block_count"),
        n_dense_layers=_number(gguf, "leading_dense_block_count"),
        n_embd=n_embd,
        n_ff=_number(gguf, "feed_forward_length"),
        n_ff_expert=_number(gguf, "expert_feed_forward_length"),
        n_heads=n_heads,
        head_dim=head_dim,
        n_experts=_number(gguf, "expert_count"),
        n_shared_experts=_number(gguf, "expert_shared_count"),
        vocab_size=len(tokens),
    )


def _head_dim(gguf: GgufFile, default: int) -> int:
    """Width of a head. K, V and RoPE all have it, and RoPE turns pairs."""
    given: dict[str, object] = {
        key: gguf.metadata[key]
        for key in (
            "dots1.attention.key_length",
            "dots1.attention.value_length",
            "dots1.rope.dimension_count",
        )
        if key in gguf.metadata
    }
    head_dim = given.get("dots1.attention.key_length", default)
    widths: dict[str, object] = {**given, "dots1.attention.head_count": head_dim}
    for key, value in widths.items():
        whole = isinstance(value, int) and gguf.types[key] == UINT32
        if not whole or value != head_dim or not isinstance(head_dim, int):
            raise _wrong(gguf, key, f"a head width of {default}, the same for K, V and RoPE")
        if head_dim < 2 or head_dim % 2:
            raise _wrong(gguf, key, "an even head width of at least 2")
    assert isinstance(head_dim, int)
    return head_dim


def _number(gguf: GgufFile, key: str) -> int:
    value = gguf.metadata.get(f"dots1.{key}", 0)
    assert isinstance(value, int)
    return value


def _wrong(gguf: GgufFile, key: str, wanted: str) -> DotsError:
    value = gguf.metadata[key]
    return DotsError(f"{gguf.path}: {key} is {shown(value)}, it must be {wanted}", hint=HINT)
