"""What the hot-expert backend costs: decoding with nothing, half and all of the experts resident.

The sides take turns in one process, in another order in every round, on the same random GGUF:
  stock              llama.cpp on the CPU, weights in their plain layout (the backend's kernels)
  stock, repacked    the same with llama.cpp's repacked layouts (its default on a CPU)
  hot 0, 50, 100 %   the backend, so much of every layer resident on a second CPU backend
A second CPU is no faster than the first: this measures the cost of dividing, not its worth.

    python bench/hot.py                    # writes docs/bench/hot.md

16 MoE layers of 64 experts (6 used), hidden 512, expert width 256, Q4_K and Q5_0: 0.4 GB on disk.
The smaller the layers, the more the cost of dividing shows: an expert of dots.llm1 is 44 times as
large. On a machine with other work, --cpu-time with one thread counts CPU time, not wall time.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from measure import ROOT, note, ratios, spread, table, wait_until_quiet, write_report
from reference import cache_folder

sys.path.insert(0, str(ROOT))

from dotscli.hot import plugin
from tests.dots1_gguf import Run, Type, batches, log, write_model

Clock = Callable[[], float]
PERCENTS = (0, 50, 100)
BATCHES = (1, 4)


def model(folder: Path) -> Path:
    path = folder / "hot-17x64.gguf"
    if not path.is_file():
        note(f"writing {path}")
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_model(
            part, Type.Q4_K, Type.Q5_0, n_layers=17, hidden=512, n_heads=8, n_ff=1024,
            n_ff_expert=256, n_experts=64, n_experts_used=6,
        )  # fmt: skip
        part.rename(path)
    return path


def hot(path: Path, percent: int, n_threads: int) -> Run:
    books = plugin.backend().open("CPU")
    run = Run(path, books, n_threads=n_threads)
    for layer in books.layers():
        n_slots = layer.n_experts * percent // 100
        books.reserve(layer.layer, n_slots)
        books.set_residents(layer.layer, range(n_slots))
    return run


def milliseconds(run: Run, n_tokens: int, batch: int, clock: Clock) -> float:
    """Time of a batch, averaged over a context of n_tokens."""
    run.clear()
    work = list(batches([batch] * (n_tokens // batch)))
    start = clock()
    for tokens in work:
        run.decode(tokens)
    return (clock() - start) / len(work) * 1e3


def measure(
    sides: dict[str, Run], n_tokens: int, batch: int, rounds: int, clock: Clock
) -> dict[str, list[float]]:
    for run in sides.values():
        milliseconds(run, n_tokens, batch, clock)
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for name in order:
            times[name].append(milliseconds(sides[name], n_tokens, batch, clock))
        note(f"  {number + 1}/{rounds} " + ", ".join(f"{n} {times[n][-1]:.2f}" for n in sides))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="for one thread on a busy machine")
    parser.add_argument("--patience", type=float, default=600, help="seconds to wait for quiet")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/bench/hot.md")
    options = parser.parse_args()

    clock = time.process_time if options.cpu_time else time.perf_counter
    path = model(cache_folder())
    plugin.backend()
    with log():
        sides: dict[str, Run] = {
            "stock": Run(path, n_threads=options.threads),
            "stock, repacked": Run(path, n_threads=options.threads, extra=True),
        }
        for percent in PERCENTS:
            sides[f"hot {percent} %"] = hot(path, percent, options.threads)
    load = wait_until_quiet(0.15, options.patience)
    command = f"python bench/hot.py --rounds {options.rounds} --tokens {options.tokens}"
    command += f" --threads {options.threads}" + " --cpu-time" * options.cpu_time
    sections = [f"    {command}"]
    for batch in BATCHES:
        times = measure(sides, options.tokens, batch, options.rounds, clock)
        rows = [
            [name, spread(times[name]), spread(ratios(times["stock"], times[name]), 3)]
            for name in sides
        ]
        title = "One token" if batch == 1 else f"A batch of {batch}"
        sections += [f"## {title}", table(["side", "ms", "speed against stock"], rows)]
    kind = "CPU" if options.cpu_time else "Wall"
    hits = [f"{run.hot.counters().decode_hit_rate:.2f}" for run in sides.values() if run.hot]
    sections.append(
        f"Medians (lowest to highest) of {options.rounds} rounds; ratios are taken within a round. "
        f"{kind} time; contexts of {options.tokens} tokens, 16 MoE layers. Hit rates "
        f"{', '.join(hits)}. Other programs used {load:.1f} cores before the start."
    )
    write_report(options.out, "Hot experts: the cost of dividing a layer", sections)


if __name__ == "__main__":
    main()
