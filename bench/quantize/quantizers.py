"""How fast are the native quantizers? Weights per second and core, against ggml_quantize_chunk.

One thread, its own CPU time (time.thread_time), Gaussian weights as float32 on both sides. In every
round ggml and then each path quantize the same weights; a ratio is that of one round, and the table
shows the median with the range of all rounds.

    python -m bench.quantize.quantizers --repeats 9
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from bench.lib.measure import ROOT, note, other_load, ratios, spread, table, write_report
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows import codec, native
from dotscli.quantize.rows.native import Native

REPORT = ROOT / "docs/bench/quantizers.md"
SHAPE = (128, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    opened, why = native.opened()
    if opened is None:
        raise SystemExit(f"no native quantizers: {why}")
    load = other_load()
    paths = [Native(opened.library, name) for name in reversed(native.paths(opened.library))]
    rows = [
        measure(paths, kind, weighted, args.repeats)
        for kind in native.TYPES
        for weighted in (False, True)
    ]
    header = ["type", "ggml", *(f"{p.path}, {what}" for p in paths for what in ("speed", "x ggml"))]
    write_report(
        REPORT,
        "Native quantizers: weights per second and core",
        [
            f"    python -m bench.quantize.quantizers --repeats {args.repeats}",
            f"Speeds in million weights per second of one thread's CPU time, medians of "
            f"{args.repeats} rounds; ratios: median (lowest to highest) of the rounds. "
            f"{SHAPE[0]} x {SHAPE[1]} Gaussian weights, float32 on both sides. "
            f"Other programs used {load:.1f} cores.",
            table(header, rows),
            "baseline: SSE2, 4 lanes; avx2: 8 lanes; avx512: 16 lanes. The bytes are the same "
            "everywhere (quantizers-equal.md).",
        ],
    )


def measure(paths: list[Native], kind: TensorType, weighted: bool, repeats: int) -> list[str]:
    """One row of the table."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal(SHAPE) * 0.02).astype(np.float32)
    importance = np.exp(rng.standard_normal(SHAPE[1])).astype(np.float32)
    out = np.empty(SHAPE[0] * kind.row_nbytes(SHAPE[1]), np.uint8)
    given = importance if weighted else None

    def by_ggml() -> None:
        codec.library().ggml_quantize_chunk(
            kind.id,
            weights.ctypes.data,
            out.ctypes.data,
            0,
            *SHAPE,
            importance.ctypes.data if weighted else None,
        )

    def on(path: Native) -> Callable[[], object]:
        return lambda: path.quantize(weights.ctypes.data, "F32", *SHAPE, kind, out, given)

    sides = {"ggml": by_ggml, **{path.path: on(path) for path in paths}}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):  # the first round warms up
        for name, quantize in sides.items():
            start = time.thread_time()
            quantize()
            seconds[name].append(time.thread_time() - start)
    seconds = {name: times[1:] for name, times in seconds.items()}
    row = [f"{kind}{' with importance' if weighted else ''}", speed(seconds["ggml"])]
    for path in paths:
        row += [speed(seconds[path.path]), spread(ratios(seconds["ggml"], seconds[path.path]), 1)]
    note(" | ".join(row))
    return row


def speed(seconds: list[float]) -> str:
    return f"{SHAPE[0] * SHAPE[1] / statistics.median(seconds) / 1e6:.1f}"


if __name__ == "__main__":
    main()
