"""Writes a checkpoint that computes the same with its channels in another order.

    python -m bench.quality.shuffle models/nano FOLDER

The nano model saw its weights rounded in blocks of 32 while it was trained, so it suffers less from
such blocks than a model that never did. Shuffling what a block is made of takes that away: the
channels of the residual stream, the inner channels of every expert and those of every value head
are permuted, each matrix that writes them like those that read them, bits unchanged. The answers
are the same up to the order of sums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "gate", "embed_tokens", "lm_head")
WRITES = ("o_proj", "down_proj", "input_layernorm", "post_attention_layernorm", "norm")
INNER_ROWS, INNER_COLUMNS = ("gate_proj", "up_proj"), "down_proj"


def order(label: str, n: int) -> NDArray[np.intp]:
    """The permutation of that label."""
    digest = hashlib.blake2b(label.encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(n)


def heads_order(label: str, n: int, head_dim: int) -> NDArray[np.intp]:
    """The same within each head: heads stay where they are."""
    starts = np.arange(0, n, head_dim)
    return np.concatenate([start + order(f"{label}.{start}", head_dim) for start in starts])


def shuffled(name: str, values: NDArray[np.generic], head_dim: int) -> NDArray[np.generic]:
    """One tensor of a published checkpoint with its channels in the new order."""
    parts = name.split(".")
    kind, block = parts[-2], ".".join(parts[:-2])
    if kind in READS and parts[-1] == "weight":
        values = values[..., order("residual", values.shape[-1])]
    if kind in WRITES:
        values = values[order("residual", len(values))]
    if kind in INNER_ROWS:
        values = values[order(block, len(values))]
    if kind == INNER_COLUMNS:
        values = values[:, order(block, values.shape[1])]
    if kind == "v_proj":
        values = values[heads_order(block, len(values), head_dim)]
    if kind == "o_proj":
        values = values[:, heads_order(block, values.shape[1], head_dim)]
    return values


def shuffle_file(path: Path, out: Path, head_dim: int) -> None:
    """One safetensors file; header and sizes stay as they are."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    made = bytearray(data)
    for name, about in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = (start + at for at in about["data_offsets"])
        dtype = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}[about["dtype"]]
        values = np.frombuffer(data[begin:end], dtype).reshape(about["shape"])
        made[begin:end] = shuffled(name, values, head_dim).tobytes()
    out.write_bytes(made)


def shuffle(checkpoint: Path, folder: Path) -> None:
    """The whole checkpoint, into a new folder."""
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors":
            shuffle_file(path, folder / path.name, head_dim)
        elif path.suffix in (".json", ".txt"):
            shutil.copyfile(path, folder / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="a new folder")
    options = parser.parse_args()
    shuffle(options.checkpoint, options.folder)


if __name__ == "__main__":
    main()
