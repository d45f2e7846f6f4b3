"""Tiny FP8 checkpoints, and the float32 checkpoints that hold exactly the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests import tiny

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, dict[str, str]], object]


def value(code: int, n_exponent: int, n_fraction: int) -> float:
    """What an 8-bit float is worth, in the words of the OCP specification."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent = code >> n_fraction & (1 << n_exponent) - 1
    fraction = code & (1 << n_fraction) - 1
    bias = (1 << n_exponent - 1) - 1
    if n_exponent == 5 and exponent == 31:
        return sign * np.inf if fraction == 0 else np.nan
    if n_exponent == 4 and code & 0x7F == 0x7F:
        return np.nan
    if exponent == 0:
        return sign * fraction / (1 << n_fraction) * 2.0 ** (1 - bias)
    return sign * (1 + fraction / (1 << n_fraction)) * 2.0 ** (exponent - bias)


VALUES = {
    "F8_E4M3": np.array([value(code, 4, 3) for code in range(256)], np.float32),
    "F8_E5M2": np.array([value(code, 5, 2) for code in range(256)], np.float32),
}


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is scaled: the shapes and names that go with a quantization_config."""

    config: dict[str, object]
    strategy: str
    block: tuple[int, int] = (1, 1)
    dtype: str = "F8_E4M3"
    scale_dtype: str = "BF16"
    suffix: str = "_scale"
    flat: bool = False
    kept: dict[str, str] = field(default_factory=dict)

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        rows, columns = self.grid(shape)
        return -(-shape[0] // rows), -(-shape[1] // columns)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return {"tensor": (shape[0], shape[1]), "channel": (1, shape[1]), "block": self.block}[
            self.strategy
        ]


def compressed_tensors(strategy: str, **weights: object) -> dict[str, object]:
    """quantization_config as llm-compressor writes it."""
    group = {
        "input_activations": {"dynamic": True, "num_bits": 8, "strategy": "token", "type": "float"},
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {"dynamic": False, "num_bits": 8, "symmetric": True, "type": "float",
                    "observer": "minmax", "strategy": strategy, "block_structure": None, **weights},
    }  # fmt: skip
    return {
        "config_groups": {"group_0": group},
        "format": "float-quantized",
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


DEEPSEEK: dict[str, object] = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128],
}  # fmt: skip

LAYOUTS = {
    "compressed-tensors, channel": Layout(compressed_tensors("channel"), "channel"),
    "compressed-tensors, channel, one dimension": Layout(
        compressed_tensors("channel"), "channel", flat=True, scale_dtype="F32"
    ),
    "compressed-tensors, tensor": Layout(compressed_tensors("tensor"), "tensor", flat=True),
    "compressed-tensors, block": Layout(
        compressed_tensors("block", block_structure=[48, 80]), "block", (48, 80)
    ),
    "DeepSeek": Layout(DEEPSEEK, "block", (128, 128), scale_dtype="F32", suffix="_scale_inv"),
    "E5M2": Layout(compressed_tensors("channel"), "channel", dtype="F8_E5M2", scale_dtype="F16"),
}


def write_pair(
    folder: Path, layout: Layout, change: Change | None = None, **sizes: object
) -> tuple[Path, Path]:
    """An FP8 checkpoint and the float32 checkpoint of its weights, of the same name.

    Args:
        change: does something to the tensors and dtypes of the FP8 checkpoint.
    """
    fp8 = tiny.write_checkpoint(folder / "fp8" / "tiny", **sizes)
    plain = tiny.write_checkpoint(folder / "plain" / "tiny", **sizes)
    stored, dtypes, exact = quantized(tiny.weights(tiny.config(**sizes)), layout)
    if change:
        change(stored, dtypes)
    for folder, tensors, kinds in ((fp8, stored, dtypes), (plain, exact, "F32")):
        for path in folder.glob("model*"):
            path.unlink()
        tiny.write_shards(folder, tensors, kinds)
    config = json.loads((fp8 / "config.json").read_text())
    config["quantization_config"] = layout.config
    (fp8 / "config.json").write_text(json.dumps(config))
    return fp8, plain


def quantized(tensors: Tensors, layout: Layout) -> tuple[Tensors, dict[str, str], Tensors]:
    """The stored tensors with their dtypes, and the weights that they stand for."""
    finite = np.flatnonzero(np.isfinite(VALUES[layout.dtype]))
    finite = finite[np.argsort(VALUES[layout.dtype][finite], kind="stable")]
    values = VALUES[layout.dtype][finite]
    stored, dtypes, exact = {}, {}, {}
    for name, weights in tensors.items():
        if weights.ndim != 2 or "_proj" not in name:
            stored[name] = weights
            dtypes[name] = "F32" if name.endswith("_bias") else "BF16"
            exact[name] = as_stored(weights, dtypes[name])
            continue
        shape, (rows, columns) = weights.shape, layout.grid(weights.shape)
        scales = np.empty(layout.scales_shape(shape), np.float32)
        for i, j in np.ndindex(scales.shape):
            block = weights[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            scales[i, j] = np.abs(block).max() / values[-1]
        scales = as_stored(scales, layout.scale_dtype)
        wide = np.repeat(np.repeat(scales, rows, 0), columns, 1)[: shape[0], : shape[1]]
        codes = finite[np.searchsorted(values, weights / wide).clip(0, len(values) - 1)]
        stored[name], dtypes[name] = codes.astype(np.uint8), layout.dtype
        stored[name + layout.suffix] = scales.reshape(-1) if layout.flat else scales
        dtypes[name + layout.suffix] = layout.scale_dtype
        exact[name] = VALUES[layout.dtype][codes] * wide
    return stored, dtypes, exact


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to a dtype, as float32."""
    raw = tiny.encode(values, dtype)
    if dtype == "BF16":
        floats = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        floats = np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype("<f4")
    return floats.reshape(values.shape)
