"""Are the bytes of the native quantizers those of ggml_quantize_chunk? By the hundred million.

For each type, with and without importance, on each path that this processor can run: weights of
every kind in tests/awkward_weights.py in equal shares, and the weights of a real checkpoint, until
--n have been compared. One differing block is reported with its seed, and fails.

    python -m bench.quantize.quantizers_equal --n 1e8 --checkpoint models/nano
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.lib.measure import ROOT, note, table, write_report
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows import codec, native
from dotscli.quantize.rows.native import Native
from dotscli.quantize.source.shards import Shards
from dotscli.quantize.types import IQ4_NL
from tests import awkward_weights

REPORT = ROOT / "docs/bench/quantizers-equal.md"
PIECE = 1 << 18  # weights compared at a time

Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=float, default=1e8, help="weights per type and importance")
    parser.add_argument("--checkpoint", type=Path, help="a folder of safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help=f"write {REPORT.relative_to(ROOT)}")
    args = parser.parse_args()
    opened, why = native.opened()
    if opened is None:
        raise SystemExit(f"no native quantizers: {why}")
    paths = [Native(opened.library, name) for name in native.paths(opened.library)]
    rows = []
    for kind in native.TYPES:
        for weighted in (False, True):
            made = compare(paths, kind, weighted, int(args.n), args.seed)
            real = compare_real(paths, kind, weighted, args.checkpoint) if args.checkpoint else 0
            rows.append(
                (
                    f"{kind}{' with importance' if weighted else ''}",
                    f"{made / 1e6:.1f}",
                    f"{real / 1e6:.1f}",
                    "0",
                )
            )
            note(" | ".join(rows[-1]))
    if args.report:
        kinds = ", ".join(kind.__name__.replace("_", " ") for kind in awkward_weights.KINDS)
        command = f"python -m bench.quantize.quantizers_equal {' '.join(sys.argv[1:])}"
        write_report(
            REPORT,
            "Native quantizers: the same bytes as ggml_quantize_chunk",
            [
                f"    {command}",
                f"Paths compared with ggml, each with all of the weights: "
                f"{', '.join(path.path for path in paths)}.",
                table(
                    ("type", "made, million weights", "real, million weights", "differing blocks"),
                    rows,
                ),
                f"Made, in equal shares: {kinds} (tests/awkward_weights.py says what each one is). "
                "Importance: even, spread over orders of magnitude, partly or all zero, tiny, "
                "huge, next to nothing for one column in 32. "
                f"Real: every matrix of the checkpoint whose rows fit the type.",
            ],
        )


def compare(paths: list[Native], kind: TensorType, weighted: bool, n: int, seed: int) -> int:
    """Compare at least n weights; how many it were."""
    done = number = 0
    while done < n:
        make = awkward_weights.KINDS[number % len(awkward_weights.KINDS)]
        rng = np.random.default_rng([seed, kind.id, weighted, number])
        n_columns = int(rng.integers(1, 9)) * (176 if kind is IQ4_NL else 256)
        if kind is IQ4_NL:
            n_columns = -(-n_columns // 32) * 32
        weights = np.ascontiguousarray(make(rng, PIECE // n_columns, n_columns))
        importance = awkward_weights.importance(rng, n_columns) if weighted else None
        demand_same(paths, kind, weights, importance, f"{make.__name__}, number {number}")
        done += weights.size
        number += 1
    return done


def compare_real(paths: list[Native], kind: TensorType, weighted: bool, folder: Path) -> int:
    """Compare every matrix of a bf16 checkpoint; how many weights it were."""
    shards = Shards.open(folder)
    done = 0
    for name in shards.names():
        shape = shards.shape(name)
        if len(shape) < 2 or shape[-1] % kind.block or shards.dtype(name) != "BF16":
            continue
        n_weights = int(np.prod(shape))
        bits = np.frombuffer(shards.read(name, 0, n_weights * 2), "<u2")
        weights = (bits.astype(np.uint32) << 16).view(np.float32).reshape(-1, shape[-1])
        rng = np.random.default_rng(done)
        importance = awkward_weights.importance(rng, shape[-1]) if weighted else None
        demand_same(paths, kind, weights, importance, name)
        done += n_weights
    return done


def demand_same(
    paths: list[Native], kind: TensorType, weights: Floats, importance: Floats | None, what: str
) -> None:
    n_rows, n_columns = weights.shape
    theirs = np.empty(n_rows * kind.row_nbytes(n_columns), np.uint8)
    codec.library().ggml_quantize_chunk(
        kind.id,
        weights.ctypes.data,
        theirs.ctypes.data,
        0,
        n_rows,
        n_columns,
        None if importance is None else importance.ctypes.data,
    )
    for path in paths:
        ours = np.empty_like(theirs)
        path.quantize(weights.ctypes.data, "F32", n_rows, n_columns, kind, ours, importance)
        differ = (ours != theirs).reshape(-1, kind.block_nbytes).any(axis=1)
        if differ.any():
            raise SystemExit(
                f"{kind} on {path.path}, {what}: {differ.sum()} blocks differ, "
                f"the first one is {differ.argmax()}"
            )


if __name__ == "__main__":
    main()
