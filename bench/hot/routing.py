"""Which experts should be resident: replays routing traces against policies.

    python -m bench.hot.routing                       # writes the tables of docs/hot-policy.md
    python -m bench.hot.routing --trace FILE ...      # the same for traces that the backend wrote

Five policies and the bound at 5 to 50 % of the experts resident, on four synthetic kinds of routing
with the real model's 61 layers of 128 experts, 6 used. The hit rate is counted; the time of a token
is arithmetic with the machine of `policies.Machine` and nothing was measured. The same arguments
give the same output; all of it takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.hot.nano_routing import nano_traces
from bench.hot.policies import (
    Admitted,
    Belady,
    DecayedLfu,
    Lru,
    Machine,
    Policy,
    Replay,
    counts_of,
    replay,
)
from bench.lib.traces import ROUTERS, Router, repeated, synthetic, top_share

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "hot-policy.md"
BEGIN, END = "<!-- tables of bench/hot/routing.py -->\n", "<!-- end -->"
N_EXPERTS = 128
SHARES = (0.05, 0.10, 0.20, 0.30, 0.50)
MIB = 2**20

Make = Callable[[np.ndarray, int], Policy]
POLICIES: tuple[tuple[str, Make], ...] = (
    ("static", Policy),
    ("LRU", Lru),
    ("LFU", DecayedLfu),
    ("ours", Admitted),
    ("Belady", Belady),
)
DESKTOP = Machine()
SERVER = Machine(ram=200e9, pcie=12e9, name="eight-channel RAM, PCIe 3.0 x16, the same card")


def replays(trace: np.ndarray, heat: np.ndarray, share: float) -> dict[str, Replay]:
    """Every policy on one trace at one residency."""
    n_slots = round(share * heat.shape[1])
    return {name: replay(trace, make(heat, n_slots)) for name, make in POLICIES}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["--:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def rows_of(trace: np.ndarray, heat: np.ndarray, shares: Sequence[float]) -> list[list[str]]:
    """Per residency: hit rate, uploads and time of each policy."""
    rows = []
    for share in shares:
        found = replays(trace, heat, share)
        row = [f"{share:.0%}"]
        for name, run in found.items():
            cell = f"{run.hit_rate:.0%}"
            if name != "static":
                cell += f" · {run.uploads_per_token * DESKTOP.expert_nbytes / MIB:,.0f}"
            if name != "Belady":
                cell += f" · {1e3 * DESKTOP.token_s(run):.0f}"
            row.append(cell)
        row.append(f"{1e3 * DESKTOP.waiting_s(found['LRU']):.0f}")
        rows.append(row)
    return rows


HEADER = ("resident", *(name for name, _ in POLICIES), "LRU, misses wait")


def section(
    title: str, why: str, trace: np.ndarray, heat: np.ndarray, shares: Sequence[float] = SHARES
) -> str:
    """Everything about one trace."""
    n_experts = heat.shape[1]
    own, other = top_share(trace, n_experts, 1 / 16)
    text = (
        f"### {title}\n\n{why[0].upper()}{why[1:]}. Of a token's experts {repeated(trace):.0%} "
        f"were used by the token before; the hottest sixteenth of the first half takes {own:.0%} "
        f"there and {other:.0%} in the second half.\n\n"
    )
    return text + table(HEADER, rows_of(trace, heat, shares))


SMALL = {"n_tokens": 800, "n_layers": 10}
VARIANTS: tuple[tuple[str, dict[str, float]], ...] = (
    ("as chosen", {}),
    ("slow frequency only", {"weight": 0.0}),
    ("fast half-life 4", {"fast": 4}),
    ("fast half-life 16", {"fast": 16}),
    ("slow half-life 128", {"slow": 128}),
    ("slow half-life 2048", {"slow": 2048}),
    ("fast weighs 0.5", {"weight": 0.5}),
    ("fast weighs 1", {"weight": 1.0}),
    ("horizon 4", {"horizon": 4}),
    ("horizon 8", {"horizon": 8}),
    ("horizon 16", {"horizon": 16}),
    ("horizon 64", {"horizon": 64}),
    ("limit 1", {"limit": 1}),
    ("limit 6", {"limit": 6}),
    ("every 4 tokens", {"period": 4}),
    ("every 16 tokens", {"period": 16}),
)


def ratios(machine: Machine, budget: int, **changes: float) -> list[float]:
    """Time of a token's experts against static placement at 10 % and 20 %, mean per router."""
    bare = dataclasses.replace(machine, dense_s=0.0)
    found = []
    for router in ROUTERS:
        trace, heat = traces_of(router, **SMALL)
        part = []
        for n_slots in (13, 26):
            # The budget is of all 61 layers.
            options = {"budget": max(1, round(budget * trace.shape[1] / 61)), **changes}
            ours = replay(trace, Admitted(heat, n_slots, **options))  # type: ignore[arg-type]
            static = replay(trace, Policy(heat, n_slots))
            part.append(bare.token_s(ours) / bare.token_s(static))
        found.append(float(np.mean(part)))
    return found


def sweep() -> str:
    """What each parameter does, and what the budget is for."""
    names = [router.name for router in ROUTERS]
    rows = []
    for title, changes in VARIANTS:
        rows.append([title, *(f"{r:.2f}" for r in ratios(DESKTOP, 1 << 30, **changes))])
    text = "### Parameters\n\n" + table(("variant", *names), rows)
    rows = [
        [f"{machine.name}, {'no budget' if budget > 1000 else f'{budget} uploads a token'}",
         *(f"{r:.2f}" for r in ratios(machine, budget))]
        for machine in (DESKTOP, SERVER)
        for budget in (1 << 30, 48, 24, 12)
    ]  # fmt: skip
    return text + "\n### Budget\n\n" + table(("machine, budget", *names), rows)


def traces_of(router: Router, **sizes: int) -> tuple[np.ndarray, np.ndarray]:
    """A trace, and the heat of another run of the same router."""
    known = synthetic(router, seed=9, **{**sizes, "n_tokens": 1000})
    return synthetic(router, **sizes), counts_of(known, N_EXPERTS)


def nano(checkpoint: Path) -> str:
    """The nano model through its domains, with the right heat and with that of one domain."""
    trace, heat, n_experts = nano_traces(checkpoint)
    shares = (0.10, 0.20, 0.30, 0.50)
    known = np.sum(list(heat.values()), axis=0)
    text = section(
        f"nano, {len(heat)} domains", f"The nano model reading {', '.join(heat)}, "
        f"{len(trace) // len(heat)} tokens each; heat of other texts of all of them",
        trace, known, shares,
    )  # fmt: skip
    rows = []
    for share in shares:
        row = [f"{share:.0%}"]
        for name in ("static", "ours"):
            make = dict(POLICIES)[name]
            rates = [
                replay(trace, make(h, round(share * n_experts))).hit_rate for h in heat.values()
            ]
            row += [f"{min(rates):.0%} to {max(rates):.0%}"]
        rows.append(row)
    text += "\nThe same with the heat of a single domain, the worst to the best choice of it:\n\n"
    return text + table(("resident", "static", "ours"), rows)


def read_trace(path: Path, skip_prompt: int = 8) -> tuple[np.ndarray, int]:
    """A trace file of the backend: its single-token batches, and the number of experts seen."""
    from dotscli.hot.heat_store import read_trace as records

    layers: dict[int, list[np.ndarray]] = {}
    for layer, ids in records(path):
        if len(ids) <= skip_prompt:
            layers.setdefault(layer, []).append(ids)
    joined = [np.concatenate(parts) for _, parts in sorted(layers.items())]
    n_tokens = min(len(ids) for ids in joined)
    trace = np.stack([ids[:n_tokens] for ids in joined], axis=1)
    return trace, int(trace.max()) + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trace", type=Path, nargs="+", default=[], help="heat of the first ones")
    parser.add_argument("--experts", type=int, default=0, help="experts of the model traced")
    parser.add_argument("--nano", type=Path, default=ROOT / "models" / "nano", metavar="FOLDER")
    options = parser.parse_args()
    if options.trace:
        found = [read_trace(path) for path in options.trace]
        n_experts = options.experts or max(n for _, n in found)
        heat = sum(counts_of(trace, n_experts) for trace, _ in found[:-1]) + counts_of(
            found[-1][0][: len(found[-1][0]) // 2], n_experts
        )
        trace = found[-1][0][len(found[-1][0]) // 2 :]
        print(section(options.trace[-1].name, "its second half", trace, heat))
        return 0
    parts = []
    for router in ROUTERS:
        print(f"replaying {router.name}", file=sys.stderr)
        parts.append(section(router.name, router.why, *traces_of(router)))
    print("replaying the nano model", file=sys.stderr)
    parts.append(nano(options.nano))
    parts.append(sweep())
    text = OUT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    OUT.write_text(before + BEGIN + "\n" + "\n".join(parts) + END + rest.split(END, 1)[1], "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
