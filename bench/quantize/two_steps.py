"""One pass against two steps: time, memory and bytes written, whole processes, in turn.

    dots quantize CHECKPOINT -o OUT --type T
against
    convert_hf_to_gguf.py CHECKPOINT --outtype bf16, then llama-quantize

on the same random checkpoint, with the same threads, alternating, the page cache warm for both
and the outputs removed between runs; a third side is `dots quantize` without its native
quantizers.

    # writes docs/bench/quantize.md
    python -m bench.quantize.two_steps --converter-python PYTHON_WITH_TORCH

Needs bench/lib/reference.py run once and npm. Disk: about 8 GB; memory: what the page cache needs
to hold 2 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

from bench.lib.checkpoint import cached
from bench.lib.measure import (
    ROOT,
    Run,
    alternate,
    note,
    ratios,
    run,
    spread,
    table,
    version,
    wait_until_quiet,
    warm,
    write_report,
)
from bench.lib.passes import HEADER, MB, dots_quantize, folder_bytes, row
from bench.lib.reference import Reference, cache_folder, reference

TYPES = ("q4_k_m", "q4", "q4_0", "iq4_xs")
NEAREST = {"q4": "q4_k_m"}  # llama-quantize's type for a recipe that only dots has


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both sides of one comparison have in common."""

    checkpoint: Path
    type: str
    threads: int
    work: Path
    where: Reference
    converter_python: str


def one_pass(at: Setting, native: bool = True) -> Run:
    return dots_quantize(at.checkpoint, at.work / "ours.gguf", at.type, at.threads, native=native)


def convert(at: Setting) -> Run:
    """Step one: a bf16 GGUF. The threads of torch are limited like everybody's."""
    out = at.work / "bf16.gguf"
    out.unlink(missing_ok=True)
    return run(
        [
            at.converter_python,
            at.where.converter,
            at.checkpoint,
            "--outtype",
            "bf16",
            "--outfile",
            out,
        ],
        env={"OMP_NUM_THREADS": str(at.threads)},
    )


def llama_quantize(at: Setting) -> Run:
    """Step two, from the file that step one has just left in the page cache."""
    out = at.work / "theirs.gguf"
    out.unlink(missing_ok=True)
    return run(
        [
            at.where.tool("llama-quantize"),
            at.work / "bf16.gguf",
            out,
            NEAREST.get(at.type, at.type).upper(),
            str(at.threads),
        ]
    )


def two_steps(at: Setting, steps: dict[str, list[Run]]) -> Run:
    """Both steps as one: times and bytes add up, of the memory the larger counts."""
    first, second = convert(at), llama_quantize(at)
    steps["converter"].append(first)
    steps["llama-quantize"].append(second)
    return Run(
        first.wall_s + second.wall_s,
        first.cpu_s + second.cpu_s,
        max(first.peak_rss, second.peak_rss),
        max(first.peak_private or 0, second.peak_private or 0) or None,
        (first.written or 0) + (second.written or 0) or None,
        "",
        "",
    )


def compare(at: Setting, repeats: int) -> str:
    """The sides in turn; a table with all and with the steps of the first."""
    steps: dict[str, list[Run]] = {"converter": [], "llama-quantize": []}
    results = alternate(
        {
            "two steps": lambda: two_steps(at, steps),
            "dots quantize": lambda: one_pass(at),
            "dots quantize, DOTS_NATIVE=0": lambda: one_pass(at, native=False),
        },
        repeats,
    )

    def ratio(name: str, against: list[Run]) -> str:
        return spread(ratios([r.wall_s for r in results[name]], [r.wall_s for r in against]), 3)

    rows = [row(name, runs, ratio(name, results["two steps"])) for name, runs in results.items()]
    rows[1:1] = [row(f"- {name}", runs, "") for name, runs in steps.items()]
    size = (at.work / "ours.gguf").stat().st_size
    return (
        f"{table(HEADER, rows)}\n\nThe output has {size / MB:,.0f} MB. The time of dots quantize "
        f"against llama-quantize alone, its input already converted: "
        f"{ratio('dots quantize', steps['llama-quantize'])}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--converter-python",
        default=sys.executable,
        help="a Python with torch and transformers (default: this one)",
    )
    parser.add_argument("--preset", default="1g", help="checkpoint preset (default: %(default)s)")
    parser.add_argument("--type", action="append", help=f"default: {', '.join(TYPES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "quantize.md")
    options = parser.parse_args()
    where = reference(options.cache)
    options.cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="quantize-", dir=options.cache))
    checkpoints = options.cache / "checkpoints"
    small = Setting(
        cached(options.preset, checkpoints, options.cache),
        "",
        options.threads,
        work,
        where,
        options.converter_python,
    )
    torch = run(
        [
            options.converter_python,
            "-c",
            "import torch, transformers; print(torch.__version__, transformers.__version__)",
        ]
    )
    warm(small.checkpoint.iterdir())
    load = wait_until_quiet(0.1, options.patience)
    sections = [
        f"Checkpoint: preset `{options.preset}` of bench/lib/checkpoint.py, "
        f"{folder_bytes(small.checkpoint) / MB:,.0f} MB of bf16 weights. "
        f"{options.threads} threads, {options.repeats} runs of each side in turn; medians, "
        f"in brackets the range. Ratios are of neighbouring runs. Other programs used "
        f"{load:.2f} cores when it began. The converter "
        f"ran with torch and transformers {torch.stdout.strip()}; llama.cpp is that of "
        f"llama-cpp-python {version('llama-cpp-python')}."
    ]
    try:
        for type in options.type or TYPES:
            note(type)
            at = dataclasses.replace(small, type=type)
            theirs = f" (llama-quantize: {NEAREST[type]})" if type in NEAREST else ""
            sections += [f"## {type}{theirs}", compare(at, options.repeats)]
    finally:
        shutil.rmtree(work)
    print("\n\n".join(sections))
    write_report(options.report, "Quantizing: one pass against two steps", sections)


if __name__ == "__main__":
    main()
