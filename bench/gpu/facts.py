"""The parts of docs/bench/gpu.md that aren't rounds: link, uploads, guard, streaming, answers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.gpu.measure import Plan
from bench.lib.measure import table

Entry = Mapping[str, Any]


def sections(
    results: Mapping[str, Entry], plan: Plan, link: Entry | None, auto: Entry | None
) -> list[str]:
    """Titles and tables of what there is."""
    parts = []
    if guards := {b: results[f"guard/{b}"] for b in plan.budgets if f"guard/{b}" in results}:
        parts += ["## The comparison at load", guard(guards)]
    if uploads := {b: results[f"upload/{b}"] for b in plan.budgets if f"upload/{b}" in results}:
        parts += ["## Uploads of the backend", uploaded(uploads)]
    if link is not None:
        parts += ["## The link, without the backend", *linked(link)]
    found = {b: results[f"streaming/{b}"] for b in plan.budgets if f"streaming/{b}" in results}
    if found:
        parts += ["## Prompts, streaming", streamed(found)]
    if auto is not None:
        parts += ["## `dots prompt` on a GPU that is too small", automatic(auto)]
    return parts


def guard(found: Mapping[int, Entry]) -> str:
    rows = []
    for budget, entry in sorted(found.items()):
        for number, seen in enumerate(entry["comparisons"]):
            divided = [s * 1e3 for kind, s in seen["calls"] if kind == "DIVIDED"]
            rows.append(
                [
                    f"{budget} %, number {number + 1}",
                    f"{seen['hit_rate']:.0%}",
                    f"{seen['on_cpu_s'] * 1e3:.2f}",
                    f"{seen['experts_s'] * 1e3:.2f}",
                    f"{seen['divided_s'] * 1e3:.2f}",
                    "yes" if seen["pays"] else "no",
                    ", ".join(f"{ms:.1f}" for ms in divided[:6]),
                ]
            )
    header = ["experts' bytes", "hits", "ms on the CPU", "of that experts", "ms divided", "pays"]
    return table([*header, "first divided calls, ms"], rows)


def uploaded(found: Mapping[int, Entry]) -> str:
    rows = []
    for budget, entry in sorted(found.items()):
        if entry["seconds"]:
            rate = entry["nbytes"] / sum(entry["seconds"]) / 1e9
            each = statistics.median(entry["seconds"]) * 1e3
            direct = f"{entry['direct_nbytes'] / entry['nbytes']:.0%}"
            n_uploads = f"{len(entry['seconds'])}"
            rows.append([f"{budget} %", n_uploads, f"{rate:.2f}", f"{each:.2f}", direct])
    return table(["experts' bytes", "uploads", "GB/s", "ms each", "not staged"], rows)


def linked(link: Entry) -> list[str]:
    """Copies by size; staging and how late a small copy is, by pieces."""
    plain = [
        [_bytes(size), *(f"{link[kind][size] / 1e9:.2f}" for kind in _PLAIN)]
        for size in link["to_device_pinned"]
    ]
    late = link["small_copy_s"]
    staged = [
        [
            _bytes(size),
            f"{link['staged_waiting'][size] / 1e9:.2f}",
            f"{link['staged_alternating'][size] / 1e9:.2f}",
            *(f"{late[size][part] * 1e6:.0f}" for part in ("median", "p90", "largest")),
        ]
        for size in link["staged_alternating"]
    ]
    alone = late["0"]["median"] * 1e6
    return [
        table(["GB/s, copies of", "pinned to GPU", "mapped to GPU", "GPU to pinned"], plain),
        f"One thread copies parts of experts from the file into pinned memory at "
        f"{link['memcpy_to_pinned'] / 1e9:.2f} GB/s. A copy of 16 KiB takes {alone:.0f} µs alone.",
        table(
            [
                "pieces of", "GB/s, waiting before each memcpy", "GB/s, halves in turn",
                "small copy, µs: median", "nine in ten", "largest",
            ],
            staged,
        ),
    ]  # fmt: skip


_PLAIN = ("to_device_pinned", "to_device_mapped", "to_host_pinned")


def _bytes(text: str) -> str:
    n = int(text)
    return f"{n >> 20} MiB" if n % (1 << 20) == 0 else f"{n / 1024:.0f} KiB"


def streamed(found: Mapping[int, Entry]) -> str:
    rows = []
    for budget, modes in sorted(found.items()):
        for mode in ("never", "always", "where_it_pays"):
            entry = modes[mode]
            for n_tokens, seconds in entry["seconds"].items():
                speeds = ", ".join(f"{int(n_tokens) / s:.0f}" for s in seconds)
                streamed_gb = f"{entry['streamed_nbytes'] / 1e9:.1f}"
                name = mode.replace("_", " ")
                rows.append([f"{budget} %", name, n_tokens, speeds, streamed_gb])
    return table(
        ["experts' bytes", "streaming", "tokens", "tokens/s, one after the other", "GB in all"],
        rows,
    )


def automatic(auto: Entry) -> str:
    """One line for each command: what it was, how it ended, what it said."""
    rows = []
    for done in auto["commands"]:
        out = done["out"] if isinstance(done["out"], dict) else {}
        rows.append(
            [
                f"`dots {' '.join(done['arguments'][3:])}`" if "-m" in done["arguments"]
                else f"`dots {done['arguments'][0]}`",
                str(done["status"]),
                f"{done['seconds']:.1f}",
                str(out.get("hot") or ""),
                done["err"].strip().replace("\n", "; ")[-300:],
            ]
        )  # fmt: skip
    return table(["command", "status", "seconds", "hot", "on stderr"], rows)


def answers(nano: Entry) -> str:
    """How many of the nano model's questions each placement answers right."""
    rows = []
    reference = [a["text"] for a in nano.get("cpu", {}).get("answers", [])]
    for side in ("cpu", "whole", "hot", "exchanged", "streamed"):
        entry = nano.get(side)
        if not entry:
            continue
        if "error" in entry:
            rows.append([side, "failed", "", ""])
            continue
        texts = [a["text"] for a in entry["answers"]]
        same = sum(ours == theirs for ours, theirs in zip(texts, reference, strict=False))
        n_right = sum(a["right"] for a in entry["answers"])
        hits = ""
        if hot := entry["hot"]:
            hits = f"{hot['resident_experts']} of {hot['n_experts']}"
        rows.append([side, f"{n_right} of {len(texts)}", str(same), hits])
    return table(["nano, side", "right answers", "letter for letter the CPU's", "resident"], rows)


def checked(verdicts: Sequence[Entry]) -> str:
    from bench.gpu.check import Verdict

    rows = [
        [
            f"{v.model}, {v.side}",
            str(v.n_tokens),
            f"{v.agreement:.3f}",
            f"{v.correlation:.6f}",
            f"{v.largest_difference:.2g}",
            "yes" if v.good else "NO",
        ]
        for v in (Verdict(**entry) for entry in verdicts)
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
