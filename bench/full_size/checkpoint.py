"""The published checkpoint's layout at its size: 24,231 tensors of bf16 in 67 shards, 266 GiB that
take a little more than 1 GiB of disk.

Every shard is a header and, after it, the same gaussian weights again and again, whose blocks all
shards share. They repeat after 64 KiB, which is a whole number of blocks of every type, so what is
quantized from them repeats as well and a file system that compresses keeps it small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.full_size.reflink import BLOCK, can_clone, clone
from bench.lib.checkpoint import GENERATION_CONFIG, Shape, bf16, config, shards
from bench.lib.vocabulary import write_vocabulary

N_SHARDS = 67
PERIOD = 32_768  # weights
WINDOW = 1 << 30  # bytes that are really there


def write_checkpoint(folder: Path, shape: Shape, cache: Path, seed: int = 0) -> int:
    """Write it into a new folder, config.json last; returns the bytes of all weights.

    Raises:
        SystemExit: the file system can't share blocks.
        OSError: the disk is full, the folder is there, or another failure.
    """
    if not can_clone(folder.parent):
        raise SystemExit(f"{folder.parent} can't share blocks between files: XFS and btrfs can")
    folder.mkdir()
    random = np.random.default_rng(seed)
    once = bf16((0.02 * random.standard_normal(PERIOD)).astype(np.float32)).tobytes()
    files = _shards(shape)
    weight_map: dict[str, str] = {}
    total = 0
    blocks_path = folder / "blocks"
    with blocks_path.open("wb+") as blocks:
        piece = once * 256
        for _ in range(WINDOW // len(piece)):
            blocks.write(piece)
        blocks.flush()
        for number, content in enumerate(files, 1):
            path = folder / f"model-{number:05d}-of-{len(files):05d}.safetensors"
            header, nbytes = _header(content)
            with path.open("wb") as file:
                file.write(header)
                file.flush()
                for at, n in _pieces(nbytes):
                    clone(blocks.fileno(), 0, n, file.fileno(), len(header) + at)
                file.truncate(len(header) + nbytes)
            weight_map |= dict.fromkeys(content, path.name)
            total += nbytes
    blocks_path.unlink()  # its blocks stay as long as the shards have them
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    write_vocabulary(folder, shape.vocab, cache)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2))
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    return total


def _shards(shape: Shape) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in as many files as the checkpoint has, as equal as their order allows."""
    low, high = 1 << 20, 1 << 40
    while low < high:
        middle = (low + high) // 2
        few = len(shards(replace(shape, shard_bytes=middle))) <= N_SHARDS
        low, high = (low, middle) if few else (middle + 1, high)
    return shards(replace(shape, shard_bytes=low))


def _header(content: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """The beginning of a shard, as long as whole blocks, and the bytes that come after it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dims in content.items():
        end = at + 2 * int(np.prod(dims))
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % BLOCK)
    return len(text).to_bytes(8, "little") + text, at


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    """(place, length) of what covers nbytes, in whole blocks."""
    whole = -(-nbytes // BLOCK) * BLOCK
    for at in range(0, whole, WINDOW):
        yield at, min(WINDOW, whole - at)
