"""What `dots quantize --report` costs: the same pass with and without it, whole processes, in turn.

    python -m bench.quantize.report_cost            # writes docs/bench/report-cost.md

Needs bench/lib/reference.py run once and npm, for the vocabulary. Disk: about 3 GB.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from bench.lib.checkpoint import cached
from bench.lib.measure import (
    ROOT,
    Run,
    alternate,
    dots,
    dots_env,
    note,
    ratios,
    run,
    spread,
    table,
    wait_until_quiet,
    warm,
    write_report,
)
from bench.lib.reference import cache_folder

TYPES = ("q4_k_m", "q4", "iq4_xs", "q8_0")


def one_pass(checkpoint: Path, type: str, threads: int, work: Path, with_report: bool) -> Run:
    """Quantize the checkpoint; both outputs are removed before."""
    out, report = work / "out.gguf", work / "report.json"
    for path in (out, report):
        path.unlink(missing_ok=True)
    command = [*dots(), "quantize", checkpoint, "-o", out, "--type", type, "-t", str(threads)]
    return run([*command, *(("--report", report) if with_report else ())], env=dots_env())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="1g", help="checkpoint preset (default: %(default)s)")
    parser.add_argument("--type", action="append", help=f"default: {', '.join(TYPES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "report-cost.md")
    options = parser.parse_args()
    checkpoint = cached(options.preset, options.cache / "checkpoints", options.cache)
    work = Path(tempfile.mkdtemp(prefix="report-", dir=options.cache))
    warm(checkpoint.iterdir())
    load = wait_until_quiet(0.1, options.patience)
    rows = []
    try:
        for type in options.type or TYPES:
            note(type)
            sides = {
                name: lambda flag=flag, type=type: one_pass(
                    checkpoint, type, options.threads, work, flag
                )
                for name, flag in (("without", False), ("with", True))
            }
            found = alternate(sides, options.repeats)
            walls = {name: [r.wall_s for r in runs] for name, runs in found.items()}
            cpus = {name: [r.cpu_s for r in runs] for name, runs in found.items()}
            rows.append(
                [
                    type,
                    spread(walls["without"]),
                    spread(walls["with"]),
                    spread(ratios(walls["with"], walls["without"]), 3),
                    spread(ratios(cpus["with"], cpus["without"]), 3),
                    f"{statistics.median(r.peak_rss for r in found['with']) / 1e6:,.0f}",
                ]
            )
    finally:
        shutil.rmtree(work)
    header = ("type", "without, wall s", "with, wall s", "ratio", "ratio of CPU time", "peak MB")
    about = (
        f"Checkpoint: preset `{options.preset}` of bench/lib/checkpoint.py. "
        f"{options.threads} threads, "
        f"{options.repeats} runs of each side in turn; medians, in brackets the range. Other "
        f"programs used {load:.2f} cores when it began."
    )
    print(table(header, rows))
    write_report(
        options.report,
        "What measuring the error of every expert costs",
        [about, table(header, rows)],
    )


if __name__ == "__main__":
    main()
