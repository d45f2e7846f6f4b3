"""Write synthetic dots.llm1 checkpoints of a chosen size: random weights, real layout.

Deterministic (a tensor depends on its name and the seed alone), numpy only, written in pieces
of a few MB, so an 8 GB checkpoint needs little memory. Layout as published: config.json in the
old style, model.safetensors.index.json, shards with one bf16 tensor per expert. Values are
gaussian with a scale of its own per row, as trained weights have, because quantizers search
longer on some data than on other; rows of unused vocabulary entries are zero.

    python -m bench.lib.checkpoint FOLDER --preset 1g
    python -m bench.lib.checkpoint FOLDER --preset 1g --layers 8 --vocab small --seed 7

The model is noise: what it says is meaningless, what it costs is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bench.lib.reference import cache_folder
from bench.lib.vocabulary import N_BASE_TOKENS, SPECIAL, write_vocabulary

PIECE = 1 << 22  # weights generated at a time: 16 MB of float32


@dataclass(frozen=True)
class Shape:
    """The sizes that make a checkpoint; names as in config.json where they have one there."""

    layers: int
    hidden: int
    heads: int
    dense_width: int
    expert_width: int
    experts: int
    experts_used: int = 6
    vocab: str = "qwen"
    shard_bytes: int = 1 << 30

    @property
    def vocab_size(self) -> int:
        return 152_064 if self.vocab == "qwen" else 512


# expert_width 352 and dense_width 2784 are multiples of 32 and not of 256 as the real 1408 and
# 10944 are, while 2 * expert_width meets 256 in `mini` (as the real 2816 does) and not in others.
PRESETS = {
    "mini": Shape(
        layers=16,
        hidden=256,
        heads=4,
        dense_width=352,
        expert_width=128,
        experts=16,
        shard_bytes=4 << 20,
    ),
    "odd": Shape(
        layers=8, hidden=256, heads=4, dense_width=352, expert_width=160, experts=16, experts_used=4
    ),
    "ragged": Shape(
        layers=8, hidden=288, heads=4, dense_width=352, expert_width=80, experts=8, experts_used=4
    ),
    "1g": Shape(layers=7, hidden=1024, heads=16, dense_width=2784, expert_width=352, experts=32),
    "4g": Shape(layers=49, hidden=1024, heads=16, dense_width=2784, expert_width=352, experts=32),
    "8g": Shape(layers=91, hidden=1024, heads=16, dense_width=2784, expert_width=352, experts=32),
    "decode": Shape(
        layers=14, hidden=1024, heads=16, dense_width=2784, expert_width=352, experts=32
    ),
}


def config(shape: Shape, scoring_func: str | None = "sigmoid") -> dict[str, object]:
    """config.json in the style the model was published with; scoring_func None leaves it out."""
    scoring = {} if scoring_func is None else {"scoring_func": scoring_func}
    return {
        "architectures": ["Dots1ForCausalLM"],
        "model_type": "dots1",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 151_649 if shape.vocab == "qwen" else 262,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.dense_width,
        "max_position_embeddings": 32_768,
        "moe_intermediate_size": shape.expert_width,
        "moe_layer_freq": 1,
        "n_routed_experts": shape.experts,
        "n_shared_experts": 2,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.experts_used,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10_000_000,
        "routed_scaling_factor": 2.5,
        **scoring,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }


# The two optional files that a converter takes metadata from.
GENERATION_CONFIG = {
    "bos_token_id": None,
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "transformers_version": "4.46.3",
}
README = """---
license: mit
license_link: https://huggingface.co/example/noise/blob/main/LICENSE
language:
- en
- zh
library_name: transformers
base_model: example/noise-base
pipeline_tag: text-generation
tags:
- chat
- random
---
Random weights, for measuring.
"""


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor's name and shape (torch order), in the order of the files."""
    n, h = shape.hidden, shape.hidden // shape.heads
    yield "model.embed_tokens.weight", (shape.vocab_size, n)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{at}.self_attn.{name}.weight", (n, n)
        yield f"{at}.self_attn.q_norm.weight", (h,)
        yield f"{at}.self_attn.k_norm.weight", (h,)
        if layer == 0:
            yield from gated(f"{at}.mlp", n, shape.dense_width)
        else:
            yield f"{at}.mlp.gate.weight", (shape.experts, n)
            yield f"{at}.mlp.gate.e_score_correction_bias", (shape.experts,)
            for expert in range(shape.experts):
                yield from gated(f"{at}.mlp.experts.{expert}", n, shape.expert_width)
            yield from gated(f"{at}.mlp.shared_experts", n, 2 * shape.expert_width)
        yield f"{at}.input_layernorm.weight", (n,)
        yield f"{at}.post_attention_layernorm.weight", (n,)
    yield "model.norm.weight", (n,)
    yield "lm_head.weight", (shape.vocab_size, n)


def gated(at: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The three matrices of one gated feed-forward block."""
    yield f"{at}.gate_proj.weight", (width, hidden)
    yield f"{at}.up_proj.weight", (width, hidden)
    yield f"{at}.down_proj.weight", (hidden, width)


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits (uint16), rounded to nearest even; finite input only."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def weights(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """One tensor's values as bf16 pieces. Depends on name, shape and seed alone."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    random = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
    if len(shape) == 1:
        spread, centre = (0.05, 0.0) if name.endswith("_bias") else (0.1, 1.0)
        yield bf16((centre + spread * random.standard_normal(shape)).astype(np.float32))
        return
    rows, columns = shape
    step = max(1, PIECE // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        scale = 0.02 * np.exp(0.3 * random.standard_normal((stop - start, 1)))
        values = random.standard_normal((stop - start, columns), dtype=np.float32)
        values *= scale.astype(np.float32)
        if rows > N_BASE_TOKENS:
            # No logit for special tokens: generation then never stops by itself. The embedding
            # is zero only where no token exists.
            used = N_BASE_TOKENS if name.startswith("lm_head") else N_BASE_TOKENS + len(SPECIAL)
            values[max(0, used - start) :] = 0
        yield bf16(values)


def shards(shape: Shape) -> list[dict[str, tuple[int, ...]]]:
    """The tensors distributed over files of at most shard_bytes (one tensor at least)."""
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dims in tensors(shape):
        nbytes = 2 * int(np.prod(dims))
        if files[-1] and size + nbytes > shape.shard_bytes:
            files.append({})
            size = 0
        files[-1][name] = dims
        size += nbytes
    return files


def write_checkpoint(
    folder: Path, shape: Shape, *, seed: int = 0, cache: Path, scoring_func: str | None = "sigmoid"
) -> int:
    """Write the whole checkpoint into a new or empty folder; returns the bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty")
    files = shards(shape)
    weight_map: dict[str, str] = {}
    total = 0
    for number, content in enumerate(files, 1):
        path = folder / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, dims in content.items():
            end = at + 2 * int(np.prod(dims))
            header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, end]}
            weight_map[name] = path.name
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name, dims in content.items():
                for piece in weights(name, dims, seed):
                    out.write(piece.tobytes())
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    write_vocabulary(folder, shape.vocab, cache)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2))
    (folder / "README.md").write_text(README)
    # config.json last: a folder that has one is complete (see `cached`).
    (folder / "config.json").write_text(json.dumps(config(shape, scoring_func), indent=2))
    return total


def cached(preset: str, folder: Path, cache: Path) -> Path:
    """The preset's checkpoint under `folder`, written now if it isn't there yet."""
    where = folder / preset
    if not (where / "config.json").exists():
        write_checkpoint(where, PRESETS[preset], cache=cache)
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--preset", choices=PRESETS, default="1g")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scoring-func", default="sigmoid", help="'' leaves the key out")
    parser.add_argument(
        "--cache",
        type=Path,
        default=cache_folder(),
        help="where the vocabulary package is kept (default: %(default)s)",
    )
    fields = asdict(PRESETS["1g"])
    for name, default in fields.items():
        parser.add_argument(
            "--" + name.replace("_", "-"), type=type(default), help="instead of the preset's"
        )
    options = parser.parse_args()
    chosen = {name: getattr(options, name) for name in fields if getattr(options, name) is not None}
    shape = replace(PRESETS[options.preset], **chosen)
    total = write_checkpoint(
        options.folder,
        shape,
        seed=options.seed,
        cache=options.cache,
        scoring_func=options.scoring_func or None,
    )
    print(f"{options.folder}: {total:,} bytes of weights, {len(shards(shape))} shards")


if __name__ == "__main__":
    main()
