"""docs/bench/gpu.md from what the steps have kept."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.check import Verdict
from bench.gpu.measure import Plan, results_of
from bench.gpu.model import facts_of
from bench.lib.measure import spread, table

SIDES = {
    "none": "no expert on the device",
    "stock": "stock, whole layers",
    "static": "hot, static",
    "adaptive": "hot, adaptive",
}
Results = dict[str, dict[str, Any]]


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


def sections(model: Path, plan: Plan, kept: Path, verdicts: Sequence[Verdict]) -> list[str]:
    """The report's parts, as far as there are results."""
    results = results_of(kept)
    parts = [f"- {driver()}", about(model, plan)]
    for n_tokens in plan.prefill:
        parts.append(f"## A prompt of {n_tokens} tokens, tokens per second")
        parts.append(speeds(results, plan, lambda entry, n=n_tokens: prompt_speed(entry, n)))
    parts += ["## Single tokens, per second", speeds(results, plan, decode_speed)]
    parts += ["## Memory and books", books(results, plan), "## Against the CPU", checked(verdicts)]
    return parts


def about(model: Path, plan: Plan) -> str:
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
        "heat of another stretch of the stream. Every figure is of a process of its own; the sides "
        "of a budget take turns. Stock has the device memory of its budget and fills it with the "
        "experts of whole layers; cells: median (lowest to highest), and the ratio to stock of the "
        "same round."
    )


def prompt_speed(entry: dict[str, Any], n_tokens: int) -> float:
    return n_tokens / statistics.median(entry["prefill_s"][str(n_tokens)])


def decode_speed(entry: dict[str, Any]) -> float:
    """Of the mean and not the median: an exchange that holds a token up counts."""
    return 1 / statistics.mean(entry["decode_s"])


def of(results: Results, plan: Plan, budget: int, side: str) -> list[dict[str, Any]]:
    """The entries of a side in the rounds that have them."""
    keys = (f"{number}/{budget}/{side}" for number in range(plan.rounds))
    return [results[key] for key in keys if key in results]


def speeds(results: Results, plan: Plan, speed: Callable[[dict[str, Any]], float]) -> str:
    rows = [["0 %", SIDES["none"], *cells(of(results, plan, 0, "none"), speed, [])]]
    for budget in plan.budgets:
        stock = of(results, plan, budget, "stock")
        for side in ("stock", "static", "adaptive"):
            entries = of(results, plan, budget, side)
            rows.append([f"{budget} %", SIDES[side], *cells(entries, speed, stock)])
    return table(["experts' bytes", "side", "speed", "against stock"], rows)


def cells(
    entries: list[dict[str, Any]],
    speed: Callable[[dict[str, Any]], float],
    stock: list[dict[str, Any]],
) -> list[str]:
    if not entries:
        return ["not measured", ""]
    ratios = [speed(ours) / speed(theirs) for ours, theirs in zip(entries, stock, strict=False)]
    return [spread([speed(entry) for entry in entries], 1), spread(ratios) if ratios else ""]


def books(results: Results, plan: Plan) -> str:
    """Device memory, what is resident, hits and uploads, of each side's last round."""
    rows = []
    for budget in (0, *plan.budgets):
        for side in ("stock", "static", "adaptive") if budget else ("none",):
            for entry in of(results, plan, budget, side)[-1:]:
                used = entry["device_bytes"]
                memory = "not known" if used is None else f"{used / 2**30:.1f} GiB"
                hot = figures(entry["hot"], plan.decode) if entry["hot"] else [""] * 4
                rows.append([f"{budget} %", SIDES[side], memory, *hot])
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


def checked(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [
            f"{v.model}, {v.side}",
            str(v.n_tokens),
            f"{v.agreement:.3f}",
            f"{v.correlation:.6f}",
            f"{v.largest_difference:.2g}",
            "yes" if v.good else "NO",
        ]
        for v in verdicts
    ]
    header = [
        "model, side",
        "tokens",
        "same top-1",
        "99 % correlate at least",
        "largest difference",
        "good",
    ]
    return table(header, rows)
