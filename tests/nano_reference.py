"""The forward pass of dots.llm1 in plain numpy, read straight from a published checkpoint.

Slow, short and independent of every engine: float32 throughout, one sequence, no cache. What the
engine computes from the GGUF is held to it, and it says which experts a text uses.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from dotscli.models.nano.text import render, talks

NANO = Path(__file__).parents[1] / "models" / "nano"


class Tokenizes(Protocol):
    """What is asked of an engine here."""

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]: ...


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """name -> float32 array of a safetensors file that holds BF16 and F32."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            values = wide.view(np.float32)
        else:
            assert entry["dtype"] == "F32", f"{name} is {entry['dtype']}"
            values = np.frombuffer(raw, "<f4")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """NEOX rotation of (heads, T, head_dim)."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


@dataclass
class Reference:
    """A checkpoint in memory; ``logits`` runs it and leaves the chosen experts in ``chosen``."""

    folder: Path
    config: dict[str, float] = field(init=False)
    tensors: dict[str, np.ndarray] = field(init=False)
    chosen: list[np.ndarray] = field(init=False, default_factory=list)
    use_bias: bool = True

    def __post_init__(self) -> None:
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.tensors = read_safetensors(self.folder / "model.safetensors")

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm over the last axis."""
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return np.asarray(x * scale * self.tensors[name], np.float32)

    def attention(self, x: np.ndarray, layer: str) -> np.ndarray:
        """(T, d) -> (T, d), causal, with norms on queries and keys."""
        n_heads = int(self.config["num_attention_heads"])
        length, width = x.shape

        def heads(name: str) -> np.ndarray:
            projected = x @ self.tensors[f"{layer}self_attn.{name}_proj.weight"].T
            return projected.reshape(length, n_heads, width // n_heads).transpose(1, 0, 2)

        theta = self.config["rope_theta"]
        q = rotate(self.norm(heads("q"), f"{layer}self_attn.q_norm.weight"), theta)
        k = rotate(self.norm(heads("k"), f"{layer}self_attn.k_norm.weight"), theta)
        scores = q @ k.transpose(0, 2, 1) / np.float32(q.shape[-1] ** 0.5)
        scores += np.triu(np.full((length, length), -np.inf, np.float32), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ heads("v")).transpose(1, 0, 2).reshape(length, width)
        return mixed @ self.tensors[f"{layer}self_attn.o_proj.weight"].T

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        """down(silu(gate x) * up x)."""
        gate = silu(x @ self.tensors[f"{name}gate_proj.weight"].T)
        up = x @ self.tensors[f"{name}up_proj.weight"].T
        return (gate * up) @ self.tensors[f"{name}down_proj.weight"].T

    def experts(self, x: np.ndarray, layer: str) -> np.ndarray:
        """Shared experts plus the chosen ones; the bias selects, the bare sigmoid weighs."""
        scores = sigmoid(x @ self.tensors[f"{layer}mlp.gate.weight"].T)
        bias = self.tensors[f"{layer}mlp.gate.e_score_correction_bias"]
        ranked = scores + bias if self.use_bias else scores
        chosen = np.argsort(-ranked, axis=-1)[:, : int(self.config["num_experts_per_tok"])]
        self.chosen.append(chosen)
        weights = np.take_along_axis(scores, chosen, -1)
        weights = weights / weights.sum(-1, keepdims=True) * self.config["routed_scaling_factor"]
        out = self.mlp(x, f"{layer}mlp.shared_experts.")
        for expert in np.unique(chosen):
            rows, slots = np.nonzero(chosen == expert)
            result = self.mlp(x[rows], f"{layer}mlp.experts.{expert}.")
            out[rows] += result * weights[rows, slots][:, None].astype(np.float32)
        return out

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """(T,) ids -> (T, vocab) float32; ``chosen`` has (T, 6) expert numbers per sparse layer."""
        self.chosen = []
        x = self.tensors["model.embed_tokens.weight"][tokens]
        for i in range(int(self.config["num_hidden_layers"])):
            layer = f"model.layers.{i}."
            x = x + self.attention(self.norm(x, f"{layer}input_layernorm.weight"), layer)
            h = self.norm(x, f"{layer}post_attention_layernorm.weight")
            sparse = i >= self.config["first_k_dense_replace"]
            x = x + (self.experts(h, layer) if sparse else self.mlp(h, f"{layer}mlp."))
        return self.norm(x, "model.norm.weight") @ self.tensors["lm_head.weight"].T


def texts_by_domain(count: int, seed: int = 31) -> dict[str, list[str]]:
    """Fresh conversations of five kinds: sums, dots, Python, stories in each language."""
    texts: dict[str, list[str]] = defaultdict(list)
    for talk in talks(seed, 80 * count):
        if talk.domain not in ("dots", "arithmetic", "python", "stories") or talk.system:
            continue
        name = f"{talk.domain} {talk.language}" if talk.domain == "stories" else talk.domain
        if len(texts[name]) < count:
            texts[name].append(render(talk))
    return dict(texts)


def usage(engine: Tokenizes, reference: Reference, texts: Sequence[str]) -> np.ndarray:
    """(layers, experts) share of the choices that go to each expert."""
    counts = np.zeros((5, 32))
    for text in texts:
        reference.logits(np.array(engine.tokenize(text, parse_special=True)[:128]))
        for layer, chosen in enumerate(reference.chosen):
            counts[layer] += np.bincount(chosen.ravel(), minlength=32)
    return counts / counts.sum(-1, keepdims=True)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation distance, averaged over the layers: 0 equal, 1 disjoint."""
    return float(np.abs(a - b).sum(-1).mean() / 2)
