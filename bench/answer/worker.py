"""What a worker costs: the same model alone, and on `dots worker` over the loopback interface.

Sides take turns on one GGUF with the same threads, prompt and number of tokens:
  alone              every layer here, as `dots prompt` runs without a flag
  alone, plain       the same without llama.cpp's repacked weights, which a worker doesn't have
  worker             every layer on a worker, which keeps nothing
  worker, --cache    the same with weights kept on its disk, from the second load on
The other end is on the same machine, so this is what the protocol costs and no network.

    python -m bench.answer.worker                 # writes docs/bench/worker.md

The model is that of bench/answer/decode.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.answer.decode import quantized
from bench.lib.checkpoint import cached
from bench.lib.measure import (
    ROOT,
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

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")[:1500]
ALONE = "alone"
FIGURES = {"load_s": "load, s", "prefill_tps": "prefill, tok/s", "decode_tps": "decode, tok/s"}


@contextmanager
def worker(threads: int, *flags: str, cache: Path | None = None) -> Iterator[str]:
    """A worker on loopback; yields its address."""
    process = subprocess.Popen(
        [*dots(), "worker", "--port", "0", "--json", "-t", str(threads), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **dots_env(), **({"XDG_CACHE_HOME": str(cache)} if cache else {})},
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.terminate()
        process.communicate()


def prompt(gguf: Path, threads: int, tokens: int, *flags: str) -> dict[str, float]:
    """The timings of one `dots prompt`, as its --json says them."""
    base = f"prompt --json --no-template --temp 0 --hot off -c 1024 -n {tokens} -t {threads}"
    done = run([*dots(), *base.split(), "-m", gguf, *flags, TEXT], env=dots_env())
    answer: dict[str, Any] = json.loads(done.stdout)
    return dict(answer["timings"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "worker.md")
    options = parser.parse_args()
    gguf = quantized(
        cached("decode", options.cache / "checkpoints", options.cache),
        "q4_k_m",
        options.cache / "decode-q4_k_m.gguf",
    )
    warm([gguf])
    load = wait_until_quiet(0.1, options.patience)
    at = (gguf, options.threads, options.tokens)
    with (
        tempfile.TemporaryDirectory() as folder,
        worker(options.threads) as plain,
        worker(options.threads, "--cache", cache=Path(folder)) as keeping,
    ):
        sides = {
            ALONE: (),
            "alone, plain": ("-ot", ".=CPU"),  # placed by name, weights aren't repacked
            "worker": ("--rpc", plain),
            "worker, --cache": ("--rpc", keeping),
        }
        prompt(*at, *sides["worker, --cache"])  # fills its cache
        results: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for number in range(options.repeats):
            for name, flags in sides.items():
                results[name].append(prompt(*at, *flags))
            note(f"  {number + 1}/{options.repeats}")
    rows = []
    for name, runs in results.items():
        row = [name]
        for figure in FIGURES:
            values = [timings[figure] for timings in runs]
            against = ratios(values, [timings[figure] for timings in results[ALONE]])
            row += [spread(values), f"{statistics.median(against):.2f}"]
        rows.append(row)
    header = ["side", *(cell for title in FIGURES.values() for cell in (title, "of alone"))]
    sections = [
        f"{options.threads} threads on either end, {options.repeats} runs of each side in turn, a "
        f"file of {gguf.stat().st_size / 2**20:.0f} MiB in the page cache; medians, in brackets "
        f"the range. Other programs used {load:.2f} cores when it began.",
        table(header, rows),
        "Both ends share one machine: neither a network nor a second memory is in it. *Plain* is "
        "without llama.cpp's repacked weights, as on a worker.",
    ]
    print("\n\n".join(sections))
    write_report(options.report, "A worker on the loopback interface", sections)


if __name__ == "__main__":
    main()
