"""The sides of one budget in one process, in turn: one JSON line for every finished measurement.

    python -m bench.gpu.sides JOB.json                   # fields: see Job

All sides are loaded first and share the mapped file and the threads, so that a round compares
neighbouring seconds of one process. Beside the rounds, hot experts that stay where they are tell
three more things: what the comparison at load sees, call by call (`guard`), how fast the backend
uploads (`upload`), and what prompts take with streaming off, chosen and forced (`streaming`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gpu.task import Task, free_bytes
from bench.lib.measure import note
from dotscli.engine import Engine
from dotscli.engine.hot.trial import compare
from dotscli.hot.backend.plugin import HotCounters, HotModel, Streaming, Trial

STATIC = "static"
UPLOADS = 200  # experts exchanged to time an upload
SETTLE_S, LONGEST_SETTLE_S = 0.1, 2.0  # a side's last exchange isn't to cost the next one time


@dataclass(frozen=True)
class Job:
    """What one process does: `missing` has the keys that the file `kept` lacks."""

    budget: int
    rounds: int
    tasks: dict[str, Task]
    kept: str
    missing: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Job:
        fields = json.loads(path.read_text())
        fields["tasks"] = {side: Task(**task) for side, task in fields["tasks"].items()}
        return cls(**fields)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


class Watched:
    """A model and its decoder, as a comparison sees them, with the time of every call."""

    def __init__(self, hot: HotModel, engine: Engine) -> None:
        self._hot, self._decoder, self._trial = hot, engine._decoder, Trial.NONE
        self.calls: list[tuple[str, float]] = []

    def set_trial(self, trial: Trial) -> None:
        self._trial = trial
        self._hot.set_trial(trial)

    def counters(self) -> HotCounters:
        return self._hot.counters()

    def keep(self, count: int) -> None:
        self._decoder.keep(count)

    def decode(self, token: int) -> None:
        start = time.perf_counter()
        self._decoder.decode(token)
        self.calls.append((self._trial.name, time.perf_counter() - start))


def guard(engine: Engine) -> dict[str, Any]:
    """The comparison that a load makes, three times in a row: the first is what a user gets."""
    assert engine.hot is not None
    found = []
    for _ in range(3):
        watched = Watched(engine.hot._model, engine)
        result = compare(watched, watched, engine.n_vocab)  # type: ignore[arg-type]
        found.append({**asdict(result), "pays": result.pays, "calls": watched.calls})
    return {"comparisons": found}


def upload(engine: Engine) -> dict[str, Any]:
    """Bytes per second of exchanges that nobody waits beside; the residents are put back."""
    assert engine.hot is not None
    model = engine.hot._model
    layers = [layer for layer in model.layers() if 0 < layer.n_slots < layer.n_experts]
    seconds: list[float] = []
    nbytes, before_all = 0, model.counters()
    for number in range(UPLOADS if layers else 0):
        layer = layers[number % len(layers)]
        before = model.residents(layer.layer)
        slot = number // len(layers) % layer.n_slots
        other = next(expert for expert in range(layer.n_experts) if expert not in before)
        for expert in (other, before[slot]):
            start = time.perf_counter()
            model.place(layer.layer, slot, expert)
            seconds.append(time.perf_counter() - start)
            nbytes += layer.expert_nbytes
    direct = model.counters().direct_nbytes - before_all.direct_nbytes
    return {"seconds": seconds, "nbytes": nbytes, "direct_nbytes": direct}


def streaming(engine: Engine, task: Task) -> dict[str, Any]:
    """Seconds of every prompt with streaming off, forced, and chosen by what both have taught."""
    assert engine.hot is not None
    model = engine.hot._model
    found: dict[str, Any] = {}
    for mode in (Streaming.NEVER, Streaming.ALWAYS, Streaming.WHERE_IT_PAYS):
        model.set_streaming(mode)
        before = model.counters()
        seconds = {n: [prompt(engine, task.tokens[:n]) for _ in range(2)] for n in task.prefill}
        after = model.counters()
        found[mode.name.lower()] = {
            "seconds": seconds,
            "streamed_nbytes": after.streamed_nbytes - before.streamed_nbytes,
            "direct_nbytes": after.direct_nbytes - before.direct_nbytes,
        }
    return found


def prompt(engine: Engine, tokens: list[int]) -> float:
    """Seconds until the logits after a prompt are there."""
    engine.forget()
    start = time.perf_counter()
    engine._decoder.prefill(tokens, None)
    engine._decoder.check_output()  # waits for the device
    return time.perf_counter() - start


def measure(engine: Engine, task: Task) -> dict[str, Any]:
    """Seconds of every prompt and of every single token, and what hot experts did meanwhile."""
    lengths = sorted(task.prefill, reverse=True)
    prefill = {n: [prompt(engine, task.tokens[:n])] for n in lengths}
    first = lengths[-1]
    seconds = []
    for number, token in enumerate(task.tokens[first : first + task.warm + task.decode]):
        if number == task.warm and engine.hot is not None:
            engine.hot.mark()
        start = time.perf_counter()
        engine._decoder.decode(token)
        seconds.append(time.perf_counter() - start)
    return {
        "prefill_s": prefill,
        "decode_s": seconds[task.warm :],
        "hot": dataclasses.asdict(engine.hot.figures()) if engine.hot is not None else None,
        "counters": dataclasses.asdict(engine.hot._model.counters()) if engine.hot else None,
    }


def settle(engine: Engine) -> None:
    """Wait for the exchanges that are under way."""
    end = time.perf_counter() + LONGEST_SETTLE_S
    uploads = -1
    while engine.hot is not None and time.perf_counter() < end:
        now = engine.hot.figures().uploads
        if now == uploads:
            return
        uploads = now
        time.sleep(SETTLE_S)


def loaded(stack: ExitStack, task: Task) -> tuple[Engine, dict[str, Any]]:
    """A side that has read its shortest prompt once: kernels, buffers, page cache."""
    before = free_bytes(task.device)
    notes: list[str] = []
    options = task.options()
    engine = stack.enter_context(Engine.load(Path(task.model), options, on_log=notes.append))
    after = free_bytes(task.device)
    for line in notes:
        note(f"  {line}")
    used = None if before is None or after is None else before - after
    return engine, {"load_s": engine.load_s, "device_bytes": used, "notes": notes}


def main() -> None:
    job = Job.read(Path(sys.argv[1]))

    def keep(key: str, result: dict[str, Any]) -> None:
        with Path(job.kept).open("a") as out:
            out.write(json.dumps({"key": key, **result}) + "\n")

    with ExitStack() as stack:
        sides: dict[str, tuple[Engine, dict[str, Any]]] = {}
        for side, task in job.tasks.items():
            began = time.perf_counter()
            engine, about = sides[side] = loaded(stack, task)
            if side == STATIC and f"guard/{job.budget}" in job.missing:
                keep(f"guard/{job.budget}", guard(engine))
            first = prompt(engine, task.tokens[: min(task.prefill)])
            about["first_prompt_s"] = first
            note(f"  {side}: loaded in {about['load_s']:.1f} s, ready after "
                 f"{time.perf_counter() - began:.1f} s")  # fmt: skip
        names = list(sides)
        for number in range(job.rounds):
            turn = number % len(names)
            for side in names[turn:] + names[:turn]:
                key = f"{number}/{job.budget}/{side}"
                if key not in job.missing:
                    continue
                engine, about = sides[side]
                result = measure(engine, job.tasks[side])
                settle(engine)
                keep(key, {**about, **result})
                tokens = len(result["decode_s"]) / sum(result["decode_s"])
                note(f"  {key}: {tokens:.1f} tokens/s")
        if STATIC in sides:
            engine, _ = sides[STATIC]
            if f"upload/{job.budget}" in job.missing:
                keep(f"upload/{job.budget}", upload(engine))
            if f"streaming/{job.budget}" in job.missing:
                keep(f"streaming/{job.budget}", streaming(engine, job.tasks[STATIC]))


if __name__ == "__main__":
    main()
