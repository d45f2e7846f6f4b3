"""What the hot-expert backend costs: decoding and prompts with nothing, half and all resident.

The sides take turns in one process, in another order in every round, on the same random GGUF:
  stock              llama.cpp on the CPU, weights in their plain layout (the backend's kernels)
  stock, repacked    the same with llama.cpp's repacked layouts (its default on a CPU)
  hot 0, 50, 100 %   the backend, so much of every layer resident on a second CPU backend
A second CPU is no faster than the first: this measures the cost of dividing, not its worth.

    python -m bench.hot.cost # writes docs/bench/hot.md, about 6 minutes on 2 cores

16 MoE layers of 64 experts (6 used), hidden 512, expert width 256, Q4_K and Q5_0: 0.4 GB on disk;
prompts also with Q4_0, which llama.cpp repacks to more effect. The smaller the layers, the more the
cost of dividing shows: an expert of dots.llm1 is 44 times as large. The targets are 0.97 of stock
with nothing resident and 0.95 with everything. On a machine with other work, --cpu-time with one
thread counts CPU time, not wall time.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.lib.measure import ROOT, note, ratios, spread, table, wait_until_quiet, write_report
from bench.lib.reference import cache_folder
from dotscli.hot.backend import plugin
from tests.dots1_gguf import Run, Type, batches, log, write_model

Clock = Callable[[], float]
PERCENTS = (0, 50, 100)
BATCHES = (1, 4)
PROMPTS = (32, 128, 512)
TYPES = {"Q4_K and Q5_0": (Type.Q4_K, Type.Q5_0), "Q4_0": (Type.Q4_0, Type.Q4_0)}
TARGETS = {"hot 0 %": 0.97, "hot 100 %": 0.95}  # of stock, decoding one token
STOCK, REPACKED = "stock", "stock, repacked"


def model(folder: Path, name: str) -> Path:
    types = TYPES[name]
    path = folder / f"hot-17x64-{types[0].name}-{types[1].name}.gguf".lower()
    if not path.is_file():
        note(f"writing {path}")
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_model(
            part, *types, n_layers=17, hidden=512, n_heads=8, n_ff=1024,
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


def all_sides(path: Path, n_threads: int) -> dict[str, Run]:
    sides = {
        STOCK: Run(path, n_threads=n_threads),
        REPACKED: Run(path, n_threads=n_threads, extra=True),
    }
    for percent in PERCENTS:
        sides[f"hot {percent} %"] = hot(path, percent, n_threads)
    return sides


def section(title: str, times: dict[str, list[float]]) -> list[str]:
    head = ["side", "ms", "speed against stock", "against stock, repacked"]
    rows = [
        [name, spread(times[name]),
         spread(ratios(times[STOCK], times[name]), 3),
         spread(ratios(times[REPACKED], times[name]), 3)]
        for name in times
    ]  # fmt: skip
    return [f"## {title}", table(head, rows)]


def targets(times: dict[str, list[float]]) -> str:
    said = []
    for name, target in TARGETS.items():
        reached = median(ratios(times[STOCK], times[name]))
        verdict = "met" if reached >= target else "missed"
        said.append(f"{name}: {reached:.3f} of stock, the target of {target} is {verdict}")
    return f"One token, {'; '.join(said)}."


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
    paths = {name: model(cache_folder(), name) for name in TYPES}
    plugin.backend()
    command = f"python -m bench.hot.cost --rounds {options.rounds} --tokens {options.tokens}"
    command += f" --threads {options.threads}" + " --cpu-time" * options.cpu_time
    sections = [f"    {command}"]
    load = wait_until_quiet(0.15, options.patience)
    for name, path in paths.items():
        with log(), ExitStack() as opened:
            sides = all_sides(path, options.threads)
            for run in sides.values():
                opened.enter_context(run)
            for batch in BATCHES if path == next(iter(paths.values())) else ():
                times = measure(sides, options.tokens, batch, options.rounds, clock)
                title = "One token" if batch == 1 else f"A batch of {batch}"
                sections += section(f"{title}, {name}", times)
                if batch == 1:
                    sections.append(targets(times))
            for n_tokens in PROMPTS:
                times = measure(sides, n_tokens, n_tokens, options.rounds, clock)
                sections += section(f"A prompt of {n_tokens} tokens, {name}", times)
    kind = "CPU" if options.cpu_time else "Wall"
    sections.append(
        f"Medians (lowest to highest) of {options.rounds} rounds; ratios are taken within a round. "
        f"{kind} time, {options.threads} threads; contexts of {options.tokens} tokens, 16 MoE "
        f"layers. Other programs used {load:.1f} cores before the start."
    )
    write_report(options.out, "Hot experts: the cost of dividing a layer", sections)


if __name__ == "__main__":
    main()
