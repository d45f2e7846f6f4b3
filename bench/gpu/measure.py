"""Which placements are measured, in which order, and what came out: one process for each.

A budget is a part of the experts' bytes. Its device memory is what `dots plan` would need to place
so many experts; stock llama.cpp gets the same memory and fills it with whole layers of experts. The
sides of a budget run in turn, round after round, and every finished process is kept in a file, so a
run that is cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.gpu.model import Routing, facts_of, heat_of
from bench.gpu.once import Task
from bench.lib.measure import ROOT, note
from dotscli.hot.model_cost import ModelCost, file_cost
from dotscli.hot.placement import MARGIN, MARGIN_SHARE, Placement, Request, place
from dotscli.models.gguf_file import read_gguf

ONCE = Path(__file__).with_name("once.py")
BUDGETS = (10, 25, 50, 75)
ALL = 99
CTX_STEP = 256
STREAM_SEED = 2  # the heat is of another stream


@dataclass(frozen=True)
class Plan:
    """What one measurement covers."""

    device: str
    budgets: tuple[int, ...] = BUDGETS
    prefill: tuple[int, ...] = (512, 2048)
    warm: int = 64
    decode: int = 128
    repeats: int = 2
    rounds: int = 3
    n_threads: int = 0

    @property
    def n_ctx(self) -> int:
        """The longest prompt or the shortest with its single tokens, in whole steps."""
        n = max(*self.prefill, min(self.prefill) + self.warm + self.decode)
        return (n // CTX_STEP + 1) * CTX_STEP


@dataclass(frozen=True)
class Cell:
    """One process: a side at a budget in a round; the floor has no expert on the device."""

    round: int
    budget: int
    side: str

    @property
    def key(self) -> str:
        return f"{self.round}/{self.budget}/{self.side}"


def cells(plan: Plan) -> Iterator[Cell]:
    """In the order in which they run: a round is complete before the next begins."""
    for number in range(plan.rounds):
        yield Cell(number, 0, "none")
        for budget in plan.budgets:
            sides = ["stock", "static", "adaptive"]
            turn = number % len(sides)
            yield from (Cell(number, budget, side) for side in sides[turn:] + sides[:turn])


def placement(cost: ModelCost, n_ctx: int, percent: int) -> Placement:
    """The placement with so many percent of the experts' bytes on the device, and no memory left.

    The margin is part of the memory and depends on it: an eighth at most.
    """
    kinds = ("f16", "f16")
    needed = cost.dense_nbytes + cost.compute_nbytes(n_ctx, *kinds)
    needed += len(cost.layers) * cost.kv_layer_nbytes(n_ctx, *kinds)
    needed += cost.experts_nbytes * percent // 100
    memory = min(needed + MARGIN, -(-needed * MARGIN_SHARE // (MARGIN_SHARE - 1)))
    return place(cost, Request(memory, 1 << 62, n_ctx, *kinds))


def tasks(model: Path, plan: Plan) -> dict[tuple[int, str], Task]:
    """Budget and side -> what the process does. A CPU as the device has no placement of its own."""
    cost = file_cost(read_gguf(model))
    n_tokens = max(*plan.prefill, min(plan.prefill) + plan.warm + plan.decode)
    routing = Routing(**facts_of(model)["routing"])
    layers = 0 if plan.device == "CPU" else ALL
    base = Task(
        model=str(model),
        tokens=routing.stream(n_tokens, cost.vocab_size, STREAM_SEED),
        device=plan.device,
        n_ctx=plan.n_ctx,
        n_threads=plan.n_threads,
        n_gpu_layers=layers,
        prefill=plan.prefill,
        repeats=plan.repeats,
        warm=plan.warm,
        decode=plan.decode,
    )
    found = {(0, "none"): replace(base, n_cpu_moe=len(cost.layers))}
    for budget in plan.budgets:
        placed = placement(cost, plan.n_ctx, budget)
        n_cpu = placed.engine_options(hot=False).n_cpu_moe
        hot = replace(base, hot_nbytes=placed.device.experts, heat=str(heat_of(model)))
        found[budget, "stock"] = replace(base, n_cpu_moe=n_cpu)
        found[budget, "static"] = hot
        found[budget, "adaptive"] = replace(hot, adapt=True)
    return found


def needed_nbytes(model: Path, plan: Plan, budget: int) -> int:
    """Device memory of a budget, the margin included."""
    return placement(file_cost(read_gguf(model)), plan.n_ctx, budget).request.device_nbytes


def once(task: Task, env: dict[str, str], timeout_s: float | None = None) -> dict[str, Any]:
    """Run one task. SystemExit with its stderr where it fails.

    Raises:
        subprocess.TimeoutExpired: it took longer than it may.
    """
    done = subprocess.run(
        [sys.executable, str(ONCE), json.dumps(asdict(task))],
        capture_output=True,
        text=True,
        env=env,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(f"{ONCE.name} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    for line in result["notes"]:
        note(f"  {line}")
    return result


def results_of(path: Path) -> dict[str, dict[str, Any]]:
    """Key of a cell -> its result; a line that was cut off is a cell to run again."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["key"]] = entry
    return found


def run(model: Path, plan: Plan, kept: Path, env: dict[str, str], end: float) -> bool:
    """Run the missing cells while time.monotonic() is below `end`; whether all are there."""
    have = results_of(kept)
    todo = tasks(model, plan)
    for cell in cells(plan):
        if cell.key in have:
            continue
        left = end - time.monotonic()
        longest = max((entry["process_s"] for entry in have.values()), default=0.0)
        if left < 1.3 * longest:
            return False
        start = time.perf_counter()
        try:
            result = once(todo[cell.budget, cell.side], env, left)
        except subprocess.TimeoutExpired:
            return False
        entry = {"key": cell.key, **result, "process_s": time.perf_counter() - start}
        with kept.open("a") as out:
            out.write(json.dumps(entry) + "\n")
        have[cell.key] = entry
        note(f"  {cell.key}: {entry['process_s']:.0f} s")
    return True
