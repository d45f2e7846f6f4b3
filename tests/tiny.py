"""Tiny dots.llm1 checkpoints in the published layout, with random weights: the tests' input.

`write_checkpoint` makes a folder with config.json, tokenizer.json, tokenizer_config.json,
generation_config.json and safetensors. Everything follows from the arguments and the seed, so two
calls give the same bytes. The weights mean nothing: what a model says is tested with the nano
model. Needs numpy only, and knows nothing of the package it tests.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|userprompt|>",
    "<|endofuserprompt|>",
    "<|response|>",
    "<|endofresponse|>",
    "<|system|>",
    "<|endofsystem|>",
)
# The pre-tokenizer of Qwen2, which dots.llm1 uses (tokenizer.json of the published checkpoints).
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = (
    "h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d", "t h", "th e",
    "Ġ the", "i n", "Ġ a", "a n", "an d", "Ġ and", "r e", "o n", "e r",
)  # fmt: skip


def config(
    *,
    n_layers: int = 3,
    hidden: int = 256,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    n_ff: int = 352,
    n_ff_expert: int = 160,
    n_experts: int = 8,
    n_experts_used: int = 3,
    n_shared_experts: int = 2,
    n_dense_layers: int = 1,
    vocab_size: int = 320,
    n_ctx: int = 2048,
    changes: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """config.json in the published (old) style; a change with the value None removes its key."""
    values: dict[str, object] = {
        "architectures": ["Dots1ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 276,
        "first_k_dense_replace": n_dense_layers,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": n_ff,
        "max_position_embeddings": n_ctx,
        "model_type": "dots1",
        "moe_intermediate_size": n_ff_expert,
        "moe_layer_freq": 1,
        "n_routed_experts": n_experts,
        "n_shared_experts": n_shared_experts,
        "norm_topk_prob": True,
        "num_attention_heads": n_heads,
        "num_experts_per_tok": n_experts_used,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": n_kv_heads if n_kv_heads is not None else n_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }
    for key, value in (changes or {}).items():
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
    return values


def tensor_shapes(
    cfg: Mapping[str, object], style: str = "per-expert"
) -> dict[str, tuple[int, ...]]:
    """HF name -> torch shape of every tensor, in checkpoint order.

    Args:
        cfg: as `config` returns it.
        style: "per-expert" (published), or "fused" (a raw state dict of transformers 5).
    """

    def size(key: str) -> int:
        value = cfg[key]
        assert isinstance(value, int)
        return value

    hidden, vocab, n_experts = size("hidden_size"), size("vocab_size"), size("n_routed_experts")
    head_dim = hidden // size("num_attention_heads")
    kv = head_dim * size("num_key_value_heads")
    n_ff, wide = size("intermediate_size"), size("moe_intermediate_size")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}

    def mlp(prefix: str, width: int) -> None:
        shapes[f"{prefix}.gate_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.up_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.down_proj.weight"] = (hidden, width)

    for layer in range(size("num_hidden_layers")):
        p = f"model.layers.{layer}"
        shapes[f"{p}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"{p}.self_attn.k_proj.weight"] = (kv, hidden)
        shapes[f"{p}.self_attn.v_proj.weight"] = (kv, hidden)
        shapes[f"{p}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{p}.self_attn.q_norm.weight"] = (head_dim,)
        shapes[f"{p}.self_attn.k_norm.weight"] = (head_dim,)
        if layer < size("first_k_dense_replace"):
            mlp(f"{p}.mlp", n_ff)
        else:
            shapes[f"{p}.mlp.gate.weight"] = (n_experts, hidden)
            shapes[f"{p}.mlp.gate.e_score_correction_bias"] = (n_experts,)
            if style == "fused":
                shapes[f"{p}.mlp.experts.gate_up_proj"] = (n_experts, 2 * wide, hidden)
                shapes[f"{p}.mlp.experts.down_proj"] = (n_experts, hidden, wide)
            else:
                for expert in range(n_experts):
                    mlp(f"{p}.mlp.experts.{expert}", wide)
            mlp(f"{p}.mlp.shared_experts", wide * size("n_shared_experts"))
        shapes[f"{p}.input_layernorm.weight"] = (hidden,)
        shapes[f"{p}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def weights(cfg: Mapping[str, object], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under their per-expert names, of the scale that real weights have."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(cfg).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            tensors[name] = np.float32(1) + np.float32(0.1) * values
        elif name.endswith("correction_bias"):
            tensors[name] = np.float32(0.2) * values
        else:
            tensors[name] = values * np.float32(1 / np.sqrt(shape[-1]))
    return tensors


def fused(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors as a raw state dict of transformers 5 names them: experts stacked."""
    out = {name: t for name, t in tensors.items() if ".mlp.experts." not in name}
    prefixes = {name.split(".experts.")[0] for name in tensors if ".mlp.experts." in name}
    for prefix in sorted(prefixes):
        n_experts = sum(name.startswith(f"{prefix}.experts.") for name in tensors) // 3

        def stack(projection: str, prefix: str = prefix, n: int = n_experts) -> np.ndarray:
            return np.stack(
                [tensors[f"{prefix}.experts.{e}.{projection}.weight"] for e in range(n)]
            )

        gate_up = np.concatenate([stack("gate_proj"), stack("up_proj")], axis=1)
        out[f"{prefix}.experts.gate_up_proj"] = gate_up
        out[f"{prefix}.experts.down_proj"] = stack("down_proj")
    return out


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 -> the bytes of a safetensors dtype; BF16 rounds to nearest even, as torch does.

    Of FP8 the values are the codes.
    """
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return values.astype("u1").tobytes()
    if dtype == "F64":
        return values.astype("<f8").tobytes()
    raise ValueError(dtype)


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], dtype: str | Mapping[str, str] = "BF16"
) -> None:
    """Write one safetensors file: u64 header length, JSON header, tensors back to back."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, values in tensors.items():
        kind = dtype if isinstance(dtype, str) else dtype.get(name, "BF16")
        blob = encode(values, kind)
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_shards(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: str | Mapping[str, str] = "BF16",
    n_shards: int = 2,
) -> None:
    """Write the tensors as one model.safetensors, or as numbered shards with their index."""
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names, weight_map = list(tensors), {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[i * len(names) // n_shards : (i + 1) * len(names) // n_shards]
        write_safetensors(folder / shard, {name: tensors[name] for name in part}, dtype)
        weight_map.update(dict.fromkeys(part, shard))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes for the bytes 0 to 255 (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [letters[b] for b in range(256)]


def tokenizer_json(
    merges: Iterable[str] = MERGES, *, merges_as_pairs: bool = False
) -> dict[str, object]:
    """A Qwen2-style tokenizer.json: 256 bytes, a few merges, the dots special tokens at the end."""
    merges = list(merges)
    vocab = [*byte_letters(), *(merge.replace(" ", "") for merge in merges)]
    first = len(vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": first + i, "content": text, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for i, text in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated",
                 "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                 "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                           "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                    "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocab)},
            "merges": [m.split(" ") for m in merges] if merges_as_pairs else merges,
        },
    }  # fmt: skip


def write_checkpoint(
    folder: Path,
    *,
    style: str = "per-expert",
    dtype: str = "BF16",
    n_shards: int = 2,
    seed: int = 0,
    merges_as_pairs: bool = False,
    **sizes: object,
) -> Path:
    """Write a whole checkpoint and return its folder.

    Args:
        folder: created if it is not there.
        style: "per-expert" or "fused" tensor names.
        dtype: BF16, F16 or F32, of every tensor.
        n_shards: 1 writes model.safetensors without an index.
        sizes: the keyword arguments of `config`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg = config(**sizes)  # type: ignore[arg-type]  # checked by config itself
    tensors = weights(cfg, seed)
    write_shards(folder, fused(tensors) if style == "fused" else tensors, dtype, n_shards)
    tokenizer = tokenizer_json(merges_as_pairs=merges_as_pairs)
    added = {str(t["id"]): t for t in tokenizer["added_tokens"]}  # type: ignore[attr-defined]
    files = {
        "config.json": cfg,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "add_bos_token": False,
            "added_tokens_decoder": added,
            "bos_token": None,
            "eos_token": "<|endofresponse|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
        },
        "generation_config.json": {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return folder
