"""From what is measured here to dots.llm1: time, memory and size of quantizing 142B weights.

Nobody has quantized the real weights with `dots` yet; this is arithmetic, and the report shows it.

1. The codec alone: weights per second of one thread's CPU time for every type, from bf16 rows of
   the real widths.
2. The pass around it, on two checkpoints and, of the larger, with two recipes: what the CPU time
   is more than the codec's is a + b x bytes read + c x bytes written and hashed.
3. The real model: its plan says how many weights each type gets; weights / rate, plus a + b x read
   + c x written, is the work of one core. A pass takes that divided by the cores, or the time of
   the disk for everything read and written, whichever is longer.

Recipes that were not used in step 2 are predicted for the larger checkpoint and compared with their
own measurements: the differences say how far to trust the rest.

    python -m bench.quantize.extrapolate # writes docs/bench/extrapolation.md; 2 minutes, once quiet
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bench.lib.checkpoint import cached
from bench.lib.measure import (
    ROOT,
    dots,
    dots_env,
    note,
    run,
    table,
    wait_until_quiet,
    warm,
    write_report,
)
from bench.lib.passes import dots_quantize
from bench.lib.reference import cache_folder
from dotscli.models.dots1 import Dots1
from dotscli.models.gguf_type import TensorType
from dotscli.quantize import jobs
from dotscli.quantize.plan import Plan, plan
from dotscli.quantize.recipe.recipe import Recipe
from dotscli.quantize.rows.codec import Codec
from dotscli.quantize.source.safetensors_header import Entry, ShardTensor
from dotscli.quantize.types import type_named

REAL = ROOT / "tests/data/dots.llm1.inst"
RECIPES = (
    ("q4", False), ("q4", True), ("q4_k_m", False), ("q4_k_s", False), ("iq4_xs", False),
    ("q4_0", False), ("mxfp4_moe", False), ("q8_0", False), ("bf16", False),
)  # fmt: skip
FITTED, ALSO_FITTED, CHECKED = "q4", "bf16", ("q4_k_m", "q8_0")
CORES = (2, 8, 16, 32)
DISKS_GB_S = (0.5, 2.0, 5.0)
SOURCE_NBYTES = 2  # of a bf16 weight
SAMPLE_WEIGHTS, SAMPLE_S = 1 << 20, 0.5
GB, MB = 1e9, 1e6


@cache
def rate(kind: TensorType, weighted: bool) -> float:
    """Weights per second of one thread's CPU time, through the codec, from bf16."""
    n_columns = 4096 if kind.block == 256 else 1408
    random = np.random.default_rng(0)
    n_rows = SAMPLE_WEIGHTS // n_columns
    values = (random.standard_normal((n_rows, n_columns)) * 0.02).astype(np.float32)
    source = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    importance = np.exp(random.standard_normal(n_columns)).astype(np.float32)
    out = np.empty(n_rows * kind.row_nbytes(n_columns), np.uint8)
    codec, given = Codec(), importance if weighted else None

    def once() -> float:
        start = time.thread_time()
        codec.encode(memoryview(source), "BF16", n_columns, kind, out, given)
        return time.thread_time() - start

    once()
    spent: list[float] = []
    while sum(spent) < SAMPLE_S or len(spent) < 3:
        spent.append(once())
    return values.size / statistics.median(spent)


def weights_by_type(decided: Plan, weighted: bool) -> Counter[tuple[str, bool]]:
    """(type, whether the matrix counts) -> weights. An imatrix has nothing outside the layers."""
    counts: Counter[tuple[str, bool]] = Counter()
    for tensor in decided.tensors:
        own = weighted and tensor.type.quantized and tensor.name.startswith("blk.")
        counts[tensor.type.name, own] += tensor.spec.n_elements
    return counts


def codec_seconds(counts: Counter[tuple[str, bool]]) -> float:
    return sum(n / rate(type_named(name), own) for (name, own), n in counts.items())


@dataclass(frozen=True)
class Measured:
    """The pass over one checkpoint: bytes read and written, seconds, the most memory."""

    name: str
    read: int
    written: int
    cpu_s: float
    codec_s: float
    peak_rss: int

    @property
    def rest_s(self) -> float:
        """What is not the codec's."""
        return self.cpu_s - self.codec_s


def measure(checkpoint: Path, type: str, options: argparse.Namespace, out: Path) -> Measured:
    model = Dots1.load(checkpoint)
    decided = plan(model, None, Recipe.preset(type))
    runs = [dots_quantize(checkpoint, out, type, options.threads) for _ in range(options.repeats)]
    out.unlink()
    found = Measured(
        f"{checkpoint.name}, {type}",
        SOURCE_NBYTES * decided.n_weights,
        decided.total_bytes,
        statistics.median(r.cpu_s for r in runs),
        codec_seconds(weights_by_type(decided, False)),
        max(r.peak_rss for r in runs),
    )
    note(f"{found.name}: {found.cpu_s:.1f} s CPU, codec {found.codec_s:.1f} s")
    return found


def shards_nbytes(model: Dots1) -> int:
    """Memory that the checked headers of all shards take."""
    tracemalloc.start()
    path = Path("model.safetensors")
    held = {
        source.name: ShardTensor(path, Entry(source.name, "BF16", source.shape, i << 30, i << 20))
        for i, spec in enumerate(model.tensors())
        for source in spec.sources
    }
    nbytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held
    return nbytes


def dry_run_rss(folder: Path) -> int:
    return run([*dots(), "quantize", folder, "--dry-run"], env=dots_env()).peak_rss


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def recipe_name(type: str, weighted: bool) -> str:
    return f"{type}, importance" if weighted else type


def work_tables(
    plans: Iterable[tuple[str, bool, Plan]], a: float, b: float, c: float
) -> tuple[str, str]:
    """The arithmetic of every recipe, and the times that follow."""
    parts, times = [], []
    for type, weighted, decided in plans:
        name = recipe_name(type, weighted)
        counts = weights_by_type(decided, weighted)
        for (kind, own), n in counts.most_common():
            speed = rate(type_named(kind), own)
            parts.append(
                [name, f"{kind}{', weighted' if own else ''}", f"{n / 1e9:.3f}",
                 f"{speed / 1e6:.0f}", f"{n / speed:.0f}"]
            )  # fmt: skip
        read, written = SOURCE_NBYTES * decided.n_weights, decided.total_bytes
        around = a + b * read + c * written
        total, moved_gb = codec_seconds(counts) + around, (read + written) / GB
        parts.append(
            [
                name,
                f"a + b x {read / GB:.0f} GB + c x {written / GB:.0f} GB",
                "",
                "",
                f"{around:.0f}",
            ]
        )
        times.append(
            [name, f"{decided.total_bytes / 2**30:.1f} GiB", f"{decided.bpw:.2f}",
             duration(total), *(duration(total / n) for n in CORES), f"{moved_gb:.0f} GB",
             *(duration(moved_gb / speed) for speed in DISKS_GB_S)]
        )  # fmt: skip
    cores, disks = (f"{n} cores" for n in CORES), (f"{speed:g} GB/s" for speed in DISKS_GB_S)
    header = ("recipe", "size", "bits", "one core", *cores, "read + written", *disks)
    return (
        table(("recipe", "type", "10^9 weights", "10^6/s", "core-seconds"), parts),
        table(header, times),
    )


def memory_text(model: Dots1, large: Measured, checkpoint: Path, threads: int) -> str:
    headers, own = shards_nbytes(model), dry_run_rss(REAL) - dry_run_rss(checkpoint)
    per_thread = jobs.JOB_SIZE * jobs.JOB_NBYTES_PER_WEIGHT
    base = large.peak_rss + own + headers
    rows = [
        [str(n), f"{(base + (n - threads) * per_thread) / MB:,.0f} MB"]
        for n in sorted({threads, *CORES})
    ]
    return (
        f"Measured with {threads} threads on the larger checkpoint: "
        f"{large.peak_rss / MB:,.0f} MB. The plan of the real model takes {own / MB:+,.0f} MB "
        "against that checkpoint's (measured, --dry-run), the headers of its shards "
        f"{headers / MB:,.0f} MB (measured, their entries as Python holds them), and every "
        f"further thread at most {per_thread / MB:.1f} MB ({jobs.JOB_SIZE:,} weights of "
        f"{jobs.JOB_NBYTES_PER_WEIGHT} bytes).\n\n" + table(("threads", "memory"), rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--small", default="1g", help="checkpoint preset (default: %(default)s)")
    parser.add_argument("--large", default="4g", help="checkpoint preset (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs/bench/extrapolation.md")
    options = parser.parse_args()
    model = Dots1.load(REAL)
    plans = [
        (type, weighted, plan(model, None, Recipe.preset(type), weighted))
        for type, weighted in RECIPES
    ]
    folders = [
        cached(preset, options.cache / "checkpoints", options.cache)
        for preset in (options.small, options.large)
    ]
    warm(path for folder in folders for path in folder.iterdir())
    load = wait_until_quiet(0.1, options.patience)
    work = Path(tempfile.mkdtemp(prefix="extrapolate-", dir=options.cache))
    try:
        out = work / "out.gguf"
        small, large = (measure(folder, FITTED, options, out) for folder in folders)
        other = measure(folders[1], ALSO_FITTED, options, out)
        checks = [measure(folders[1], type, options, out) for type in CHECKED]
    finally:
        shutil.rmtree(work)
    fitted = (small, large, other)
    a, b, c = np.linalg.solve(
        [[1, found.read, found.written] for found in fitted], [found.rest_s for found in fitted]
    )
    parts, times = work_tables(plans, a, b, c)
    fit = table(
        ("checkpoint and recipe", "read", "written", "CPU s of the pass", "of the codec", "rest"),
        [
            [found.name, f"{found.read / GB:.2f} GB", f"{found.written / GB:.2f} GB",
             f"{found.cpu_s:.2f}", f"{found.codec_s:.2f}", f"{found.rest_s:.2f}"]
            for found in fitted
        ],
    )  # fmt: skip
    checked = table(
        ("checkpoint and recipe", "read", "written", "predicted", "measured", "difference"),
        [
            [found.name, f"{found.read / GB:.2f} GB", f"{found.written / GB:.2f} GB",
             f"{by_rule:.2f}", f"{found.cpu_s:.2f}", f"{(by_rule / found.cpu_s - 1) * 100:+.1f} %"]
            for found in checks
            for by_rule in (found.codec_s + a + b * found.read + c * found.written,)
        ],
    )  # fmt: skip
    sections = [
        f"    python -m bench.quantize.extrapolate --small {options.small} --large {options.large} "
        f"--repeats {options.repeats}",
        "Arithmetic from what was measured on this machine, with checkpoints in the page cache; "
        f"the real weights were not there. Other programs used {load:.2f} cores when it began.",
        "## Time and size",
        "A pass takes the CPU time divided by the cores, or the time of the disk, whichever is "
        "longer. It is assumed that cores add up (measured were "
        f"{options.threads}), that they are as fast as these, and that one disk reads the bf16 "
        "checkpoint and takes the output; the speeds of disks are examples.",
        times,
        "## Memory",
        memory_text(model, large, folders[1], options.threads),
        "## The arithmetic",
        f"Around the codec, {options.threads} threads, medians of {options.repeats} runs: rest = "
        "a + b x read + c x written.",
        fit,
        f"a = {a:.2f} s, b = {b * GB:.2f} s per GB, c = {c * GB:.2f} s per GB. Other recipes, "
        "predicted by this and measured, in seconds of CPU time:",
        checked,
        "Weights by type as the plan has them, the codec's rate for one thread (bf16 rows, 4096 "
        "wide, or 1408 for types with blocks of 32), and their quotient:",
        parts,
    ]
    print("\n\n".join(sections))
    write_report(options.report, "dots.llm1 with 142B weights, extrapolated", sections)


if __name__ == "__main__":
    main()
