"""A GGUF of a tiny dots1, written byte by byte so that tests can spoil any of them.

Independent of the package's own writer. All weights are F32 unless `kinds` says otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dotscli.models.dots1 import Dots1
from tests import tiny

CODES = {"u16": (2, "H"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "B"),
         "u64": (10, "Q")}  # fmt: skip
STRING, ARRAY = 8, 9
F32, F16, F64 = 0, 1, 28
EOS = 282


@dataclass
class Gguf:
    """What goes into the file; change it, then `write` it.

    `keys` maps a name to (kind, value), where kind is u32, string, array:u32 and so on. `tensors`
    maps a name to (shape in GGUF order, type id, bytes).
    """

    keys: dict[str, tuple[str, object]]
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]]
    alignment: int = 32
    offsets: dict[str, int] = field(default_factory=dict)
    borders: dict[str, int] = field(default_factory=dict)

    def __bytes__(self) -> bytes:
        """The file. `borders` then has the byte where each part begins."""
        out = bytearray(b"GGUF")
        self.borders = {"version": len(out)}
        out += struct.pack("<I", 3)
        self.borders["tensor count"] = len(out)
        out += struct.pack("<Q", len(self.tensors))
        self.borders["key count"] = len(out)
        out += struct.pack("<Q", len(self.keys))
        for key, (kind, value) in self.keys.items():
            self.borders[f"key {key}"] = len(out)
            out += string(key)
            self.borders[f"value of {key}"] = len(out)
            out += encode(kind, value)
        offset = 0
        for name, (shape, type_id, data) in self.tensors.items():
            self.borders[f"info of {name}"] = len(out)
            out += string(name) + struct.pack("<I", len(shape))
            out += struct.pack(f"<{len(shape)}Q", *shape)
            out += struct.pack("<IQ", type_id, self.offsets.get(name, offset))
            offset += len(data) + -len(data) % self.alignment
        self.borders["padding"] = len(out)
        out += bytes(-len(out) % self.alignment)
        self.borders["data"] = len(out)
        for _, _, data in self.tensors.values():
            out += data + bytes(-len(data) % self.alignment)
        return bytes(out)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_bytes(bytes(self))
        return path

    def set(self, key: str, kind: str, value: object) -> Gguf:
        """Change or add a key; returns itself."""
        self.keys[key] = (kind, value)
        return self


def string(text: str | bytes) -> bytes:
    """Length and bytes."""
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def encode(kind: str, value: object) -> bytes:
    """Type number and value."""
    if kind == "string":
        return struct.pack("<I", STRING) + string(value)
    if kind.startswith("array:"):
        element = kind.removeprefix("array:")
        head = struct.pack("<II", ARRAY, STRING if element == "string" else CODES[element][0])
        body = [string(v) if element == "string" else struct.pack("<" + CODES[element][1], v)
                for v in value]  # fmt: skip
        return head + struct.pack("<Q", len(body)) + b"".join(body)
    number, code = CODES[kind]
    return struct.pack("<I" + code, number, value)


def dots1(seed: int = 0, kinds: Mapping[str, int] | None = None, **sizes: object) -> Gguf:
    """A whole tiny dots1 with the weights of `tiny.weights`.

    Args:
        seed: of the weights.
        kinds: GGUF tensor names to the type F32 or F16.
        sizes: keyword arguments of `tiny.config`; the vocabulary is padded to vocab_size.
    """
    config = tiny.config(**sizes)
    model = Dots1.from_config(config, "tiny")
    weights = tiny.weights(config, seed)
    tensors = {}
    for spec in model.tensors():
        parts = [weights[source.name] for source in spec.sources]
        values = np.stack(parts) if len(spec.shape) == 3 else parts[0]
        assert values.shape == spec.shape
        kind = (kinds or {}).get(spec.name, F32)
        data = values.astype("<f2" if kind == F16 else "<f8" if kind == F64 else "<f4").tobytes()
        tensors[spec.name] = (spec.shape[::-1], kind, data)
    return Gguf(_keys(model), tensors)


def split(folder: Path, count: int = 3) -> list[Path]:
    """A tiny dots1 in shards: the first has the metadata, as llama-gguf-split writes them."""
    whole = dots1()
    names = list(whole.tensors)
    paths = [folder / f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for i, path in enumerate(paths):
        part = names[i * len(names) // count : (i + 1) * len(names) // count]
        shard = Gguf(dict(whole.keys) if i == 0 else {}, {})
        shard.tensors = {name: whole.tensors[name] for name in part}
        shard.set("split.no", "u16", i).set("split.count", "u16", count)
        shard.set("split.tensors.count", "i32", len(names)).write(path)
    return paths


def _keys(model: Dots1) -> dict[str, tuple[str, object]]:
    tokens = [*tiny.byte_letters(), *(m.replace(" ", "") for m in tiny.MERGES)]
    special = len(tokens)
    tokens += tiny.SPECIAL_TOKENS
    tokens += [f"[PAD{i}]" for i in range(len(tokens), model.vocab_size)]
    types = [1] * special + [3] * len(tiny.SPECIAL_TOKENS)
    types += [5] * (len(tokens) - len(types))
    assert tokens[EOS] == "<|endofresponse|>"
    numbers = {
        "block_count": model.n_layers, "context_length": model.n_ctx_train,
        "embedding_length": model.n_embd, "feed_forward_length": model.n_ff,
        "attention.head_count": model.n_heads, "attention.head_count_kv": model.n_heads,
        "expert_count": model.n_experts, "expert_used_count": model.n_experts_used,
        "expert_group_count": 1, "expert_group_used_count": 1, "expert_gating_func": 2,
        "expert_feed_forward_length": model.n_ff_expert,
        "leading_dense_block_count": model.n_dense_layers,
        "expert_shared_count": model.n_shared_experts,
    }  # fmt: skip
    reals = {
        "rope.freq_base": model.rope_theta,
        "attention.layer_norm_rms_epsilon": model.rms_eps,
        "expert_weights_scale": model.expert_scale,
    }
    return {
        "general.architecture": ("string", "dots1"),
        "general.name": ("string", "Tiny"),
        **{f"dots1.{key}": ("u32", value) for key, value in numbers.items()},
        **{f"dots1.{key}": ("f32", value) for key, value in reals.items()},
        "dots1.expert_weights_norm": ("bool", 1),
        "tokenizer.ggml.model": ("string", "gpt2"),
        "tokenizer.ggml.pre": ("string", "qwen2"),
        "tokenizer.ggml.tokens": ("array:string", tokens),
        "tokenizer.ggml.token_type": ("array:i32", types),
        "tokenizer.ggml.merges": ("array:string", list(tiny.MERGES)),
        "tokenizer.ggml.eos_token_id": ("u32", EOS),
        "tokenizer.ggml.padding_token_id": ("u32", special),
        "tokenizer.ggml.add_bos_token": ("bool", 0),
        "tokenizer.chat_template": ("string", "{{ messages[0].content }}"),
    }
