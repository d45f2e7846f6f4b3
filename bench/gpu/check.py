"""Whether a device computes what the CPU computes: logits of the same tokens, side by side.

Equal bits are not expected: kernels round differently, and where two experts' scores lie close
together another rounding takes another expert, after which the logits of that token differ
visibly. The CPU itself does so between batches and single tokens, which is one of the rows. So the
worst token in a hundred is judged, and of the nano model, which is trained, the most likely token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.build import hidden
from bench.gpu.measure import ALL
from bench.gpu.model import Routing, facts_of
from bench.gpu.task import Task
from bench.lib.measure import ROOT, note
from dotscli.engine import Engine, EngineOptions
from dotscli.hot.model_cost import file_cost
from dotscli.models.gguf_file import read_gguf

ONCE = "bench.gpu.once"
NANO = ROOT / "models" / "nano"
MOST_AT_ONCE = 4  # processes; each has its own copy of a small model
NANO_TOKENS = 400
SYNTHETIC_TOKENS = 64
SMALLEST_CORRELATION = 0.99  # with nano, batches against single tokens on the CPU have 0.998
SMALLEST_AGREEMENT = 0.98  # of the nano model's most likely tokens, where they have 0.9975


@dataclass(frozen=True)
class Verdict:
    """One side against the CPU.

    `agreement` is the part of the tokens with the same top-1; 99 % of the tokens have at least
    that `correlation` of their logits.
    """

    model: str
    side: str
    n_tokens: int
    agreement: float
    correlation: float
    largest_difference: float

    @property
    def good(self) -> bool:
        alike = self.correlation >= SMALLEST_CORRELATION
        return alike and (self.model != "nano" or self.agreement >= SMALLEST_AGREEMENT)


def compare(model: str, side: str, reference: np.ndarray, found: np.ndarray) -> Verdict:
    """Judge logits [n_tokens, n_vocab] of two sides."""
    centred = [values - values.mean(axis=1, keepdims=True) for values in (reference, found)]
    norms = [np.sqrt((values**2).sum(axis=1)) for values in centred]
    correlation = (centred[0] * centred[1]).sum(axis=1) / (norms[0] * norms[1])
    return Verdict(
        model,
        side,
        len(reference),
        agreement=float((reference.argmax(axis=1) == found.argmax(axis=1)).mean()),
        correlation=float(np.quantile(correlation, 0.01)),
        largest_difference=float(np.abs(reference - found).max()),
    )


def sides(base: Task, experts_nbytes: int, device: str) -> dict[str, Task]:
    """The CPU first, which is the reference."""
    cpu = replace(base, n_gpu_layers=0)
    dense = replace(base, n_gpu_layers=0 if device == "CPU" else ALL)
    half = replace(dense, hot_nbytes=experts_nbytes // 2)
    return {
        "the CPU": cpu,
        "the CPU, single tokens": replace(cpu, n_batch=1),
        "everything on the device": dense,
        "no expert on the device": replace(dense, n_cpu_moe=ALL),
        "half of the experts hot": half,
        "half of them, exchanged": replace(half, adapt=True),
        "half of them, single tokens": replace(half, adapt=True, n_batch=1),
    }


def nano_task(gguf: Path, device: str, n_threads: int) -> Task:
    """Questions with their answers, in the form that the model was trained on, as one stretch."""
    lines = (NANO / "questions.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(line) for line in lines[::4]]
    text = "".join(
        f"<|userprompt|>{pair['question']}<|endofuserprompt|>"
        f"<|response|>{pair['answer']}<|endofresponse|>"
        for pair in pairs
    )
    with Engine.load(gguf, EngineOptions(n_ctx=256, n_gpu_layers=0)) as engine:
        tokens = engine.tokenize(text, parse_special=True)[:NANO_TOKENS]
    return Task(str(gguf), tokens, device, n_ctx=len(tokens) + 1, n_threads=n_threads)


def synthetic_task(gguf: Path, device: str, n_threads: int) -> Task:
    routing = Routing(**facts_of(gguf)["routing"])
    tokens = routing.stream(SYNTHETIC_TOKENS, file_cost(read_gguf(gguf)).vocab_size, seed=3)
    return Task(str(gguf), tokens, device, n_ctx=2 * SYNTHETIC_TOKENS, n_threads=n_threads)


def at_once(n_threads: int) -> int:
    """Processes of the nano model that don't wait for each other's threads."""
    return max(1, min(MOST_AT_ONCE, (os.cpu_count() or 1) // n_threads))


def check_nano(nano: Path, device: str, n_threads: int, env: dict[str, str]) -> list[Verdict]:
    """All sides of the trained model, at the same time: nothing here is timed."""
    task = nano_task(nano, device, n_threads)
    found = sides(task, file_cost(read_gguf(nano)).experts_nbytes, device)
    with ThreadPoolExecutor(at_once(n_threads)) as pool:
        folder = nano.parent
        runs = {
            side: pool.submit(computed, each, folder / f"logits-{number}.npy", env)
            for number, (side, each) in enumerate(found.items())
        }
    return judged("nano", {side: run.result() for side, run in runs.items()})


def check_synthetic(
    model: Path, device: str, whole: bool, n_threads: int, env: dict[str, str]
) -> list[Verdict]:
    """All sides of the synthetic model, one after the other.

    Args:
        whole: whether it fits on the device as a whole.
    """
    task = synthetic_task(model, device, n_threads)
    found = sides(task, file_cost(read_gguf(model)).experts_nbytes, device)
    if not whole:
        del found["everything on the device"]
    logits = {side: computed(each, model.with_suffix(".npy"), env) for side, each in found.items()}
    return judged("synthetic", logits)


def judged(model: str, logits: dict[str, Any]) -> list[Verdict]:
    """Every side against the first."""
    reference, *others = logits.items()
    verdicts = [compare(model, side, reference[1], values) for side, values in others]
    for verdict in verdicts:
        note(f"  {verdict}")
    return verdicts


def computed(task: Task, kept: Path, env: dict[str, str]) -> Any:
    """Logits [n_tokens, n_vocab], computed in a process of its own.

    Raises:
        RuntimeError: it failed; with its stderr.
    """
    described = json.dumps(asdict(replace(task, logits=str(kept))))
    if task.n_gpu_layers == 0 and not task.hot_nbytes:
        env = hidden(env)
    done = subprocess.run(
        [sys.executable, "-m", ONCE, described],
        capture_output=True, text=True, env=env, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{ONCE} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    for line in json.loads(done.stdout)["notes"]:
        note(f"  {line}")
    logits = np.load(kept)
    kept.unlink()
    return logits
