"""One placement of one model in a process of its own: prints JSON. Used by gpu.py.

    python -m bench.gpu.once '{"model": "m.gguf", "tokens": [...], ...}'     # fields: see Task

With `prefill` lengths it measures: prompts of those lengths, then single tokens after a prompt. The
tokens are given and not sampled, so that every placement routes the same stream. With `logits` it
keeps the logits of all tokens instead.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotscli.engine import Engine, EngineOptions, HotOptions, devices


@dataclass(frozen=True)
class Task:
    """One process's work. `device` is watched, and holds the hot experts if `hot_nbytes` isn't 0.

    Attributes:
        hot_nbytes: 0 is `--hot off`; with it the placement flags are left to dots.
        warm: single tokens before the `decode` measured ones, in which residents settle.
    """

    model: str
    tokens: list[int]
    device: str
    n_ctx: int
    n_threads: int = 0
    n_batch: int = 512
    n_gpu_layers: int | None = None
    n_cpu_moe: int = 0
    hot_nbytes: int = 0
    adapt: bool = False
    heat: str | None = None
    prefill: tuple[int, ...] = ()
    repeats: int = 1
    warm: int = 0
    decode: int = 0
    logits: str | None = None

    def options(self) -> EngineOptions:
        """What a user would have typed."""
        hot = None
        if self.hot_nbytes:
            heat = Path(self.heat) if self.heat else None
            hot = HotOptions(self.hot_nbytes, self.device, heat=heat, adapt=self.adapt)
        return EngineOptions(
            n_ctx=self.n_ctx,
            n_threads=self.n_threads,
            n_batch=self.n_batch,
            n_gpu_layers=self.n_gpu_layers,
            n_cpu_moe=self.n_cpu_moe,
            hot=hot,
        )


def free_bytes(device: str) -> int | None:
    """Free memory of a device; None for the CPU, whose memory is everybody's."""
    [found] = [known for known in devices() if known.name == device]
    return None if found.type == "CPU" else found.free_bytes


def measure(engine: Engine, task: Task) -> dict[str, Any]:
    """Seconds of every prompt and of every single token, and what hot experts did meanwhile."""
    decoder = engine._decoder  # the very step of an answer, without the sampling
    prefill: dict[int, list[float]] = {}
    for _ in range(task.repeats + 1):  # the first is the warm-up: buffers, kernels, page cache
        for n_tokens in task.prefill:
            engine.forget()
            start = time.perf_counter()
            decoder.prefill(task.tokens[:n_tokens], None)
            decoder.check_output()  # waits for the device
            prefill.setdefault(n_tokens, []).append(time.perf_counter() - start)
    engine.forget()
    first = min(task.prefill)
    decoder.prefill(task.tokens[:first], None)
    seconds = []
    for number, token in enumerate(task.tokens[first : first + task.warm + task.decode]):
        if number == task.warm and engine.hot is not None:
            engine.hot.mark()
        start = time.perf_counter()
        decoder.decode(token)
        seconds.append(time.perf_counter() - start)
    return {
        "prefill_s": {n: times[1:] for n, times in prefill.items()},
        "decode_s": seconds[task.warm :],
        "hot": dataclasses.asdict(engine.hot.figures()) if engine.hot is not None else None,
    }


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    before = free_bytes(task.device)
    notes: list[str] = []
    with Engine.load(Path(task.model), task.options(), on_log=notes.append) as engine:
        result: dict[str, Any] = {"load_s": engine.load_s}
        if task.logits is not None:
            import numpy as np

            np.save(task.logits, engine.logits(task.tokens))
        else:
            result |= measure(engine, task)
        after = free_bytes(task.device)
        result["device_bytes"] = None if before is None or after is None else before - after
    print(json.dumps({**result, "notes": notes}))


if __name__ == "__main__":
    main()
