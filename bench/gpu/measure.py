"""Which placements are measured, in which order, and what came out: one process for each budget.

A budget is a part of the experts' bytes. Its device memory is what `dots plan` would need to place
so many experts; stock llama.cpp gets the same memory and fills it with whole layers of experts.
At 0 % stock has no expert on the device and hot experts have one for each layer: what dividing
costs. At 100 % both have all of them. The sides of a budget run in turn, round after round, and
every finished one is kept in a file, so a run that is cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.gpu.model import Routing, facts_of, heat_of
from bench.gpu.sides import STATIC, Job
from bench.gpu.task import Task
from bench.lib.measure import ROOT, note
from dotscli.hot.memory_use import MARGIN, MARGIN_SHARE
from dotscli.hot.model_cost import ModelCost, file_cost
from dotscli.hot.placement import Placement, Request, place
from dotscli.models.gguf_file import read_gguf

SIDES = "bench.gpu.sides"
BUDGETS = (25, 0, 50, 100, 10, 75)  # the most decisive first
EXTRAS = ("guard", "upload", "streaming")  # measured once for a budget, of its static side
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
    rounds: int = 3
    n_threads: int = 0

    @property
    def n_tokens(self) -> int:
        """The longest prompt, or the shortest with its single tokens."""
        return max(*self.prefill, min(self.prefill) + self.warm + self.decode)

    @property
    def n_ctx(self) -> int:
        return (self.n_tokens // CTX_STEP + 1) * CTX_STEP


def sides(budget: int) -> tuple[str, ...]:
    """What is compared at a budget; where all experts or hardly any are hot, none is exchanged."""
    return ("stock", STATIC, "adaptive") if 0 < budget < 100 else ("stock", STATIC)


def keys(plan: Plan, budget: int) -> Iterator[str]:
    """Of everything that is kept for a budget."""
    yield from (f"{n}/{budget}/{side}" for n in range(plan.rounds) for side in sides(budget))
    yield from (f"{extra}/{budget}" for extra in EXTRAS)


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


def tasks(model: Path, plan: Plan, budget: int) -> dict[str, Task]:
    """Side -> what it is loaded with. A CPU as the device has no placement of its own."""
    cost = file_cost(read_gguf(model))
    routing = Routing(**facts_of(model)["routing"])
    placed = placement(cost, plan.n_ctx, budget)
    base = Task(
        model=str(model),
        tokens=routing.stream(plan.n_tokens, cost.vocab_size, STREAM_SEED),
        device=plan.device,
        n_ctx=plan.n_ctx,
        n_threads=plan.n_threads,
        n_gpu_layers=0 if plan.device == "CPU" else ALL,
        prefill=plan.prefill,
        warm=plan.warm,
        decode=plan.decode,
    )
    one_each = sum(layer.expert_nbytes for layer in cost.moe_layers)
    n_cpu = placed.engine_options(hot=False).n_cpu_moe if budget else len(cost.layers)
    nbytes = placed.device.experts if budget else one_each
    hot = replace(base, hot_nbytes=nbytes, heat=str(heat_of(model)))
    found = {
        "stock": replace(base, n_cpu_moe=n_cpu),
        STATIC: hot,
        "adaptive": replace(hot, adapt=True),
    }
    return {side: found[side] for side in sides(budget)}


def needed_nbytes(model: Path, plan: Plan, budget: int) -> int:
    """Device memory of a budget's sides, which are loaded together, the margin included."""
    placed = placement(file_cost(read_gguf(model)), plan.n_ctx, budget)
    return placed.request.device_nbytes * len(sides(budget))


def results_of(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> its result; a line that was cut off is a measurement to make again."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["key"]] = entry
    return found


def missing(plan: Plan, kept: Path) -> dict[int, tuple[str, ...]]:
    """Budget -> the keys that the file lacks, without the budgets that are complete."""
    have = results_of(kept)
    todo = {b: tuple(key for key in keys(plan, b) if key not in have) for b in plan.budgets}
    return {budget: lacking for budget, lacking in todo.items() if lacking}


def run(model: Path, plan: Plan, kept: Path, env: dict[str, str], end: float) -> bool:
    """Measure what is missing while time.monotonic() is below `end`; whether all is there.

    A budget whose process fails is said and left out: the others still tell something.
    """
    slowest = 0.0
    for budget, lacking in missing(plan, kept).items():
        left = end - time.monotonic()
        if left < max(1.0, slowest / 2):
            break
        job = Job(budget, plan.rounds, tasks(model, plan, budget), str(kept), lacking)
        described = model.with_name(f"job-{budget}.json")
        job.write(described)
        began = time.monotonic()
        command = [sys.executable, "-m", SIDES, str(described)]
        try:
            status = subprocess.run(command, env=env, timeout=left, check=False, cwd=ROOT)
        except subprocess.TimeoutExpired:
            note(f"  {budget} %: stopped")
        else:
            slowest = max(slowest, time.monotonic() - began)
            if status.returncode:
                note(f"  {budget} %: failed with {status.returncode}")
        described.unlink()
    return not missing(plan, kept)
