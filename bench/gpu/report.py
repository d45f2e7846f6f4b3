"""docs/bench/gpu.md from what the steps have kept; what is missing is said to be not measured."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import facts as gpu_facts
from bench.gpu.job import Job
from bench.gpu.measure import Plan, results_of, sides
from bench.gpu.model import facts_of
from bench.lib.measure import spread, table

SIDES = {"stock": "stock, whole layers", "static": "hot, static", "adaptive": "hot, adaptive"}
AT_ZERO = {"stock": "stock, no expert on the device", "static": "hot, one expert a layer"}
AT_ALL = {"stock": "stock, everything on the device", "static": "hot, all experts"}
Results = dict[str, dict[str, Any]]


def label(budget: int, side: str) -> str:
    return {0: AT_ZERO, 100: AT_ALL}.get(budget, SIDES)[side]


def driver() -> str:
    """The GPU, its memory and its driver as nvidia-smi gives them; no GPU where it gives none."""
    query = (
        "--query-gpu=name,memory.total,driver_version,pcie.link.gen.current,pcie.link.width.current"
    )
    try:
        text = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "GPU: none"
    name, memory, version, gen, width = text.splitlines()[0].split(", ")
    return f"GPU: {name}, {memory}, driver {version}, PCIe generation {gen} x{width}"


def sections(job: Job, plan: Plan) -> list[str]:
    """The report's parts, as far as there are results."""
    results = results_of(job.runs)
    parts = [f"- {driver()}", about(job.model, plan)]
    for n_tokens in plan.prefill:
        parts.append(f"## A prompt of {n_tokens} tokens, tokens per second")
        parts.append(speeds(results, plan, lambda entry, n=n_tokens: prompt_speed(entry, n)))
    parts += ["## Single tokens, per second", speeds(results, plan, decode_speed)]
    parts += ["## Memory and books", books(results, plan)]
    parts += gpu_facts.sections(results, plan, _read(job.result("link")), _read(job.result("auto")))
    nano = _read(job.result("nano")) or {}
    verdicts = [*nano.get("verdicts", []), *(_read(job.result("check")) or [])]
    parts += ["## Against the CPU", gpu_facts.answers(nano), gpu_facts.checked(verdicts)]
    return [part for part in parts if part]


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def about(model: Path, plan: Plan) -> str:
    if not model.with_suffix(".json").exists():
        return "There is no synthetic model."
    facts = facts_of(model)
    shape, routing, seen = facts["shape"], facts["routing"], facts["observed"]
    return (
        f"A synthetic model of {facts['nbytes'] / 2**30:.1f} GiB: {shape['layers']} layers of "
        f"{shape['experts']} experts, hidden {shape['hidden']}, expert width "
        f"{shape['expert_width']}, the types of the recipe q4. Its router has a skew of "
        f"{routing['skew']}, topics carry {routing['topic']:.0%} of a score, a token keeps its "
        f"topic with probability {routing['memory']}. Observed: the hottest tenth takes "
        f"{seen['hottest_tenth']:.0%} of the calls, the hottest quarter "
        f"{seen['hottest_quarter']:.0%}, and {seen['used_by_the_token_before']:.0%} of a token's "
        f"experts were used by the token before. Device {plan.device}; context {plan.n_ctx}, f16 "
        f"cache, batches of 512; {plan.decode} single tokens after {plan.warm} unmeasured ones; "
        "heat of another stretch of the stream. The sides of a budget are loaded in one process "
        "and take turns. Stock has the device memory of its budget and fills it with the "
        "experts of whole layers; cells: median (lowest to highest), and the ratio to stock of the "
        "same round."
    )


def prompt_speed(entry: dict[str, Any], n_tokens: int) -> float:
    return n_tokens / statistics.median(entry["prefill_s"][str(n_tokens)])


def decode_speed(entry: dict[str, Any]) -> float:
    """Of the mean and not the median: an exchange that holds a token up counts."""
    return 1 / statistics.mean(entry["decode_s"])


def of(results: Results, plan: Plan, budget: int, side: str) -> Results:
    """Round -> the entry of a side, where there is one."""
    keys = ((str(number), f"{number}/{budget}/{side}") for number in range(plan.rounds))
    return {number: results[key] for number, key in keys if key in results}


def speeds(results: Results, plan: Plan, speed: Callable[[dict[str, Any]], float]) -> str:
    rows = []
    for budget in sorted(plan.budgets):
        stock = of(results, plan, budget, "stock")
        for side in sides(budget):
            entries = of(results, plan, budget, side)
            rows.append([f"{budget} %", label(budget, side), *cells(entries, speed, stock)])
    return table(["experts' bytes", "side", "speed", "against stock"], rows)


def cells(entries: Results, speed: Callable[[dict[str, Any]], float], stock: Results) -> list[str]:
    if not entries:
        return ["not measured", ""]
    ratios = [speed(e) / speed(stock[number]) for number, e in entries.items() if number in stock]
    return [
        spread([speed(entry) for entry in entries.values()], 1),
        spread(ratios) if ratios else "",
    ]


def books(results: Results, plan: Plan) -> str:
    """Device memory, what is resident, hits and uploads, of each side's last round."""
    rows = []
    for budget in sorted(plan.budgets):
        for side in sides(budget):
            for entry in list(of(results, plan, budget, side).values())[-1:]:
                used = entry["device_bytes"]
                memory = "not known" if used is None else f"{used / 2**30:.1f} GiB"
                hot = figures(entry["hot"], plan.decode) if entry["hot"] else [""] * 4
                rows.append([f"{budget} %", label(budget, side), memory, *hot])
    header = ["experts' bytes", "side", "device memory", "resident", "hits", "uploaded in all"]
    return table([*header, "ms a token: CPU, device, of that waiting"], rows)


def figures(hot: dict[str, Any], n_tokens: int) -> list[str]:
    """What hot experts did while n_tokens single tokens were measured."""
    pairs = max(1, hot["decode_hits"] + hot["decode_misses"])
    times = (hot[part] / n_tokens * 1e3 for part in ("cpu_s", "device_s", "wait_s"))
    return [
        f"{hot['resident_experts'] / hot['n_experts']:.0%}",
        f"{hot['decode_hits'] / pairs:.0%}",
        f"{hot['uploaded_nbytes'] / 2**30:.1f} GiB",
        ", ".join(f"{value:.1f}" for value in times),
    ]
