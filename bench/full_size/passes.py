"""The pass at full size: every command that reads or writes the whole model, with time and memory.

quantize is killed (SIGKILL) when half of the tensors are finished, and the same command goes on.
The output lies on btrfs with compression, which is the kernel's work and in nobody's CPU time here.
Each step's figures are kept in passes.json, and a step that is there isn't run again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.full_size.reflink import occupied
from bench.full_size.volume import Volume
from bench.lib.measure import PrivateMemory, dots, dots_env, note, other_load, run

POLL_S = 0.5
KILLED_AT = 0.5  # of the tensors
RESULTS = "passes.json"
OUT = "dots.gguf"

Figures = dict[str, float | str]


def run_passes(at: Path, checkpoint: Path) -> None:
    """Run what isn't done yet.

    Args:
        at: the folder of all stand-ins; checkpoint: that of `write_checkpoint`.
    """
    out = Volume(at, "btrfs").mount() / OUT
    quantize: list[str | Path] = [*dots(), "quantize", checkpoint, "-o", out]
    steps: dict[str, Callable[[], Figures]] = {
        "inspect the checkpoint": lambda: _whole([*dots(), "inspect", checkpoint]),
        "quantize --dry-run": lambda: _whole([*dots(), "quantize", checkpoint, "--dry-run"]),
        "quantize, killed": lambda: _killed(quantize, out),
        "quantize, resumed": lambda: _whole(quantize) | _size(out),
        "verify": lambda: _whole([*dots(), "verify", out]),
        "inspect the GGUF": lambda: _whole([*dots(), "inspect", out]),
        "plan": lambda: _whole([*dots(), "plan", out, "--vram", "24G", "--ram", "64G"]),
    }
    kept = results(at)
    for name, step in steps.items():
        if name in kept:
            continue
        load = other_load()
        kept[name] = step() | {"other_load": load}
        note(f"  {name}: {kept[name]['wall_s']:.1f} s, {kept[name]['cpu_s']:.1f} s of CPU")
        (at / RESULTS).write_text(json.dumps(kept, indent=1))


def results(at: Path) -> dict[str, Figures]:
    """What is done: for each step wall_s, cpu_s, peak_rss (bytes) and more."""
    path = at / RESULTS
    found: dict[str, Figures] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _whole(command: list[str | Path]) -> Figures:
    found = run(command, env=dots_env())
    return {
        "wall_s": found.wall_s,
        "cpu_s": found.cpu_s,
        "peak_rss": found.peak_rss,
        "peak_private": found.peak_private or 0,
        "stdout": found.stdout[-4000:],
        "stderr": found.stderr[-2000:],
    }


def _killed(command: list[str | Path], out: Path) -> Figures:
    """Kill it when KILLED_AT of the tensors stand in its journal."""
    plan = run([*command[:-2], "--dry-run", "--json"], env=dots_env())
    wanted = KILLED_AT * len(json.loads(plan.stdout)["tensors"])
    journal = out.with_name(f"{out.name}.part.journal")
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **dots_env()},
    )
    memory = PrivateMemory(process.pid)
    while process.poll() is None and _n_tensors(journal) < wanted:
        time.sleep(POLL_S)
    if process.returncode is not None:
        raise SystemExit(f"dots quantize ended by itself with {process.returncode}")
    process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss": usage.ru_maxrss * 1024,
        "peak_private": memory.finish() or 0,
        "n_tensors": _n_tensors(journal),
    }


def _n_tensors(journal: Path) -> int:
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0


def _size(out: Path) -> Figures:
    return {"nbytes": out.stat().st_size, "occupied": occupied(out)}
