"""Peak memory of `dots quantize` while its input grows from 1 to 8 GB.

The layers are the same, there are only more of them. The large checkpoint and the outputs are
written into a work folder and removed at the end.

    python -m bench.quantize.memory          # writes docs/bench/quantize-memory.md

Needs npm once, for the vocabulary. Disk: about 12 GB; memory: what the page cache makes of it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from bench.lib.checkpoint import PRESETS, cached, write_checkpoint
from bench.lib.measure import (
    ROOT,
    note,
    table,
    wait_until_quiet,
    write_report,
)
from bench.lib.passes import HEADER, MB, dots_quantize, folder_bytes, row
from bench.lib.reference import cache_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--small", default="1g", choices=PRESETS, help="default: %(default)s")
    parser.add_argument("--large", default="8g", choices=PRESETS, help="default: %(default)s")
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs/bench/quantize-memory.md")
    options = parser.parse_args()
    small = cached(options.small, options.cache / "checkpoints", options.cache)
    work = Path(tempfile.mkdtemp(prefix="quantize-memory-", dir=options.cache))
    try:
        note(f"writing {options.large}")
        large = work / "checkpoint"
        write_checkpoint(large, PRESETS[options.large], cache=options.cache)
        load = wait_until_quiet(0.1, options.patience)
        rows, runs = [], []
        for checkpoint in (small, large):
            nbytes = folder_bytes(checkpoint)
            note(f"{nbytes / MB:,.0f} MB")
            runs.append(
                [
                    dots_quantize(checkpoint, work / "out.gguf", options.type, options.threads)
                    for _ in range(options.repeats)
                ]
            )
            rows.append(row(f"{nbytes / MB:,.0f} MB of weights", runs[-1])[:-1])
    finally:
        shutil.rmtree(work)
    rss, private = (
        [max(getattr(r, field) or 0 for r in each) for each in runs]
        for field in ("peak_rss", "peak_private")
    )
    growth = f"Peak resident memory grows by {(rss[1] / rss[0] - 1) * 100:+.1f} %"
    if private[0]:
        growth += f", without mapped files by {(private[1] / private[0] - 1) * 100:+.1f} %"
    sections = [
        f"    python -m bench.quantize.memory --small {options.small} --large {options.large} "
        f"--repeats {options.repeats}",
        f"`--type {options.type}`, {options.threads} threads, {options.repeats} runs each; "
        f"medians, in brackets the range. Other programs used {load:.2f} cores when it began.",
        table(HEADER[:-1], rows),
        f"{growth}; the most it had was {max(rss) / MB:,.0f} MB.",
    ]
    print("\n\n".join(sections))
    write_report(options.report, "Memory of quantizing, from 1 to 8 GB of input", sections)


if __name__ == "__main__":
    main()
