"""Answers of the model at full size under hard limits of memory, and what was planned for them.

Each run is a process in a cgroup without swap, with nothing of the file in the page cache and
nothing known from earlier runs but the machine's bandwidths: `dots doctor --measure` and `dots
plan` first, then `dots prompt` or `dots chat`. A limit that is too small is refused by both, and
what they say is kept. A worker and a second CPU stand in for devices; the worker's memory is its
own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.lib.limited import forget, limited
from bench.lib.measure import dots, dots_env, note, other_load, table

GIB = 1 << 30
N_TOKENS = 16
PROMPT = "What is the difference between a process and a thread?"
MESSAGES = "What is a process?\nAnd a thread?\n"
N_MESSAGE_TOKENS = 8
DEVICE = ("--hot", "1G", "--hot-device", "CPU")
ON_WORKER = ("-ngl", "9", "--hot", "off")  # the last eight layers and the output, no experts


@dataclass(frozen=True)
class Case:
    """A limit in GiB, what is given beside the model, and whether `dots plan` knows of it."""

    gib: int
    what: str = "prompt"
    words: tuple[str, ...] = ()
    worker: bool = False

    @property
    def title(self) -> str:
        """As the table has it."""
        beside = f", {' '.join(self.words)}" if self.words else ""
        return f"{self.gib} GiB, {self.what}{beside}{' --rpc' * self.worker}"


CASES = (
    Case(8),
    Case(12),
    Case(16),
    Case(12, "chat"),
    Case(12, words=DEVICE),
    Case(12, words=ON_WORKER, worker=True),
)


class Places:
    """Folders of a run's own for what dots keeps."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def environ(self, *, fresh: bool) -> dict[str, str]:
        """Settings, heat and sessions; `fresh` forgets what answers have left."""
        data = tempfile.mkdtemp(dir=self.folder) if fresh else self.folder
        return {**os.environ, **dots_env(), "XDG_DATA_HOME": data, "XDG_STATE_HOME": self.folder}

    def run(
        self, words: Sequence[str | Path], gib: int = 0, stdin: str = ""
    ) -> tuple[subprocess.CompletedProcess[str], dict[str, int]]:
        """A command of dots, under a limit if there is one; with its peak and what was killed."""
        command = [*dots(), *map(str, words)]
        env = self.environ(fresh=True)
        if not gib:
            return subprocess.run(
                command, input=stdin, capture_output=True, text=True, check=False, env=env
            ), {}
        with limited(f"dots-full-size-{gib}", gib * GIB) as group:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, check=False, env=env,
                preexec_fn=partial(group.enter),
            )  # fmt: skip
            return done, {"peak": group.peak, "n_killed": group.n_killed}


def answers_table(model: Path) -> str:
    """Every case as a row of a Markdown table."""
    with tempfile.TemporaryDirectory() as folder:
        places = Places(folder)
        rows = [_row(places, model, case) for case in CASES]
    header = [
        "limit", "planned context", "planned tokens/s", "disk before and after, GB/s", "outcome",
        "context", "load, s", "first token, s", "tokens/s", "waited, s", "experts in memory",
        "hits", "GB read a token", "peak, GiB", "killed",
    ]  # fmt: skip
    return table(header, rows)


def _row(places: Places, model: Path, case: Case) -> list[str]:
    before = _disk(places, model)  # disks of rented machines are never twice the same
    planned, _ = places.run(["plan", model, "--json"], case.gib)
    plan = json.loads(planned.stdout)
    speed = plan["tokens_per_second"]
    too_small = plan["verdict"] == "too small"
    row = [case.title, "too small" if too_small else f"{plan['n_ctx']}"]
    row.append(f"{speed[0]:.2f} to {speed[1]:.2f}" if speed and not case.words else "")
    with _worker(places) if case.worker else _nobody() as rpc:
        words = (*case.words, *(("--rpc", rpc) if rpc else ()))
        forget(model)
        load = other_load()
        found = (_chat if case.what == "chat" else _prompt)(places, model, case.gib, words)
    row.append(f"{before / 1e9:.2f}, {_disk(places, model) / 1e9:.2f}")
    note(f"  {case.title}, {load:.1f} cores busy: {json.dumps(found)}; {row[-1]}")
    if "error" in found:
        return [*row, f"error: {found['error']}", *[""] * 10]
    row += ["answers", *(str(found[key]) for key in ("n_ctx", "load", "ttft", "tps", "wait"))]
    row += [str(found[key]) for key in ("resident", "hits", "read")]
    return [*row, f"{found['peak'] / GIB:.1f}", str(found["n_killed"])]


def _disk(places: Places, model: Path) -> float:
    """Bytes per second, measured and kept for the next plan."""
    done, _ = places.run(["doctor", "--measure", model, "--json"])
    disks = json.loads(done.stdout)["bandwidths"]["disks"]
    return float(disks[-1]["bytes_per_second"])


def _prompt(places: Places, model: Path, gib: int, words: Sequence[str]) -> dict[str, Any]:
    command = ["prompt", "-m", model, PROMPT, "-n", str(N_TOKENS), "--temp", "0", "--json", *words]
    done, figures = places.run(command, gib)
    if done.returncode:
        return {"error": _error(done), **figures}
    found = json.loads(done.stdout)
    timings, ram = found["timings"], found["ram"]
    return {
        **figures,
        "n_ctx": found["n_ctx"],
        "load": f"{timings['load_s']:.1f}",
        "ttft": f"{timings['ttft_s']:.1f}",
        "tps": f"{timings['decode_tps']:.2f}",
        "wait": f"{ram['wait_s']:.1f}",
        "resident": f"{ram['resident_experts']} of {ram['n_experts']}",
        "hits": f"{ram['hit_rate']:.0%}",
        "read": f"{ram['read_bytes_per_token'] / 1e9:.2f}",
        "phases": timings["load"],
    }


def _chat(places: Places, model: Path, gib: int, words: Sequence[str]) -> dict[str, Any]:
    """Two messages; the figures are those of the line after the second answer."""
    command = ["chat", "-m", model, "-n", str(N_MESSAGE_TOKENS), "--temp", "0", "--stats", *words]
    done, figures = places.run(command, gib, stdin=MESSAGES)
    lines = [line for line in done.stderr.splitlines() if " tok" in line]
    if done.returncode or len(lines) != 2:
        return {"error": _error(done), **figures}
    note("\n".join(lines))
    patterns = {
        "tps": r"([\d.]+) tok/s", "n_ctx": r"ctx [^/]+/(\S+)", "hits": r"@ (\d+%) hits",
        "ttft": r"TTFT ([\d.]+) s",
    }  # fmt: skip
    found: dict[str, Any] = {"load": "", "wait": "", "resident": "", "read": "", **figures}
    for name, pattern in patterns.items():
        match = re.search(pattern, lines[1])
        found[name] = match[1] if match else ""
    return found


def _error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return lines[0].removeprefix("error: ") if lines else str(done.returncode)


@contextmanager
def _worker(places: Places) -> Iterator[str]:
    """A worker with this machine's CPU, at an address of loopback."""
    process = subprocess.Popen(
        [*dots(), "worker", "--port", "0", "--device", "CPU", "--json"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=places.environ(fresh=True),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        text = ""
        while not (found := re.search(r"127\.0\.0\.1:\d+", text)):
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the worker has ended")
            text += line
        yield found[0]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _nobody() -> Iterator[str]:
    yield ""
