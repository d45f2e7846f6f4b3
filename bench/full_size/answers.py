"""An answer of the model at full size under hard limits of memory: its load, its speed, its peak.

Each limit is a run of `dots prompt` in a cgroup without swap, with nothing of the file in the page
cache. A limit that is too small is refused by `dots`, and what it says is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path

from bench.lib.limited import forget, limited
from bench.lib.measure import dots, dots_env, note, other_load, table

GIB = 1 << 30
LIMITS = (8, 12, 16)  # GiB
N_TOKENS = 16
PROMPT = "What is the difference between a process and a thread?"


def answer(model: Path, gib: int) -> dict[str, object]:
    """What `dots prompt --json` says under such a limit, with `peak` and `n_killed`; or `error`."""
    forget(model)
    command = [*dots(), "prompt", "-m", model, PROMPT, "-n", N_TOKENS, "--temp", "0", "--json"]
    load = other_load()
    with limited(f"dots-full-size-{gib}", gib * GIB) as group:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False,
            env={**os.environ, **dots_env()}, preexec_fn=partial(group.enter),
        )  # fmt: skip
        found: dict[str, object] = {"limit_gib": gib, "other_load": load}
        found |= {"peak": group.peak, "n_killed": group.n_killed}
    if done.returncode:
        return found | {"error": done.stderr.splitlines()[0] if done.stderr else done.returncode}
    return found | json.loads(done.stdout)


def answers_table(model: Path) -> str:
    """Every limit's run as a Markdown table."""
    rows = []
    for gib in LIMITS:
        found = answer(model, gib)
        note(f"  {gib} GiB: {json.dumps(found)}")
        if "error" in found:
            rows.append([f"{gib} GiB", str(found["error"]), *[""] * 8])
            continue
        timings, ram = found["timings"], found["ram"]
        assert isinstance(timings, dict)
        assert isinstance(ram, dict)
        row = [f"{gib} GiB", "answers", f"{found['n_ctx']}", f"{timings['load_s']:.1f}"]
        row += [f"{timings['ttft_s']:.1f}", f"{timings['decode_tps']:.2f}"]
        row += [f"{ram['resident_experts']} of {ram['n_experts']}", f"{ram['hit_rate']:.0%}"]
        row += [f"{ram['read_bytes_per_token'] / 1e9:.2f}", f"{found['n_killed']}"]
        rows.append(row)
    header = [
        "limit", "outcome", "context", "load, s", "first token, s", "tokens/s", "experts in memory",
        "hits", "GB read a token", "killed",
    ]  # fmt: skip
    return table(header, rows)
