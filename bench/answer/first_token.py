"""How long until the first word: from starting `dots prompt` to the first byte of its answer.

The built-in nano model, quantized by `dots quantize`, the file in the page cache. llama-completion
takes turns with it on the same file and question, as a reference for what a start costs.

    python -m bench.answer.first_token            # writes docs/bench/first-token.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from pathlib import Path

from bench.answer.decode import quantized
from bench.lib.measure import (
    ROOT,
    dots,
    dots_env,
    spread,
    table,
    wait_until_quiet,
    warm,
    write_report,
)
from bench.lib.reference import Reference, cache_folder, reference

QUESTION = "What is dots?"


def first_byte(command: list[str]) -> float:
    """Seconds from starting the process to the first byte on its stdout that is no white space."""
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **dots_env()},
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        while first.isspace():  # llama-completion begins with an empty line
            first = process.stdout.read(1)
        passed = time.perf_counter() - start
        process.stdout.read()
    if not first or process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} gave no answer (exit {process.returncode})")
    return passed


def first_token(where: Reference, nano: Path, repeats: int, threads: int) -> str:
    """`dots prompt` and llama-completion in turn on the nano model."""
    sides = {
        "dots prompt": [*dots(), *f"prompt --temp 0 -t {threads} -m".split(), str(nano), QUESTION],
        "llama-completion": [
            str(where.tool("llama-completion")),
            *f"-no-cnv --no-display-prompt --simple-io --temp 0 -n 32 -t {threads} -m".split(),
            str(nano),
            "-p",
            QUESTION,
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, command in sides.items():
            seconds[name].append(first_byte(command))
    rows = [
        [name, spread(values), f"{statistics.quantiles(values, n=10)[-1]:.2f}"]
        for name, values in seconds.items()
    ]
    return table(["command", "seconds to the first byte", "90 %"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--nano",
        type=Path,
        default=ROOT / "models" / "nano",
        help="checkpoint folder of the nano model (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "first-token.md")
    options = parser.parse_args()
    where = reference(options.cache)
    gguf = options.cache / "nano-q4.gguf"
    gguf.unlink(missing_ok=True)
    nano = quantized(options.nano, "q4", gguf)
    warm([nano])
    load = wait_until_quiet(0.1, options.patience)
    sections = [
        f"{options.threads} threads, {options.repeats} runs of each side in turn; medians, "
        f"in brackets the range. Other programs used {load:.2f} cores when it began.",
        first_token(where, nano, options.repeats, options.threads),
    ]
    print("\n\n".join(sections))
    write_report(options.report, "First token of the nano model", sections)


if __name__ == "__main__":
    main()
