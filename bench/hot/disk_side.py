"""One side of bench.hot.disk_tier, in a process of its own: a load, single tokens, a long prompt.

The sides: `tier` and `stock` are dots with the memory tier and without, where stock is llama.cpp
with the file mapped and nothing repacked; `llama` is llama-cpp-python as it comes, for models that
fit. Every side is given the same tokens. It knows nothing of limits and reports.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lib.measure import note
from dotscli.engine.cores import usable_cores

N_SHORT, N_LONG, N_CTX = 16, 2048, 2304
WARM_S = 4.0  # of single tokens before those that are timed


@dataclass(frozen=True)
class Task:
    """What a side does.

    Attributes:
        tokens, seconds: single tokens that are timed, at most.
        prompt: whether there is a long prompt as well.
        hot: bytes of hot experts on `device`, for the tier.
    """

    model: Path
    side: str
    tokens: int
    seconds: float
    threads: int
    prompt: bool
    device: str = ""
    hot: int = 0


def measure(task: Task) -> dict[str, object]:
    """Seconds and bytes of each part."""
    return _llama(task) if task.side == "llama" else _dots(task)


def _dots(task: Task) -> dict[str, object]:
    from dotscli.engine import Engine, EngineOptions, HotOptions
    from dotscli.engine.sampling import Sampling

    hot = HotOptions(nbytes=task.hot, device=task.device, guard=False) if task.hot else None
    wanted = EngineOptions(n_ctx=N_CTX, n_threads=task.threads, tier=task.side == "tier", hot=hot)
    began = time.perf_counter()
    rng = random.Random(1)
    with Engine.load(task.model, wanted, on_log=note) as engine:
        found: dict[str, object] = {"load_s": time.perf_counter() - began}
        short = [rng.randrange(engine.n_vocab) for _ in range(N_SHORT)]
        pieces = engine.generate(short, Sampling(temp=1.0, seed=1), n_predict=N_CTX - N_SHORT - 1)
        token = iter(piece for piece in pieces if piece.token is not None)
        found |= _decode(task, lambda: next(token))
        if engine.tier is not None:
            ram = engine.stats.ram
            assert ram is not None
            found |= {"hit_rate": ram.hit_rate, "resident": ram.resident_share}
        if task.prompt:
            engine.forget()
            before = _read_nbytes()
            counted = engine.tier.counters() if engine.tier else None
            long = [rng.randrange(engine.n_vocab) for _ in range(N_LONG)]
            since = time.perf_counter()
            next(engine.generate(long, Sampling(temp=1.0, seed=1), n_predict=1))
            found["prompt_s"] = time.perf_counter() - since
            found["prompt_read"] = _read_nbytes() - before
            if engine.tier is not None and counted is not None:
                now = engine.tier.counters()
                found["prompt_wait_s"] = (now.wait_ns - counted.wait_ns) / 1e9
                found["reread"] = now.reread_experts - counted.reread_experts
    return found


def _llama(task: Task) -> dict[str, object]:
    from llama_cpp import Llama

    began = time.perf_counter()
    rng = random.Random(1)
    threads = task.threads or usable_cores()  # llama-cpp-python itself takes half of the CPUs
    model: Any = Llama(
        str(task.model), n_ctx=N_CTX, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    found: dict[str, object] = {"load_s": time.perf_counter() - began}
    short = [rng.randrange(model.n_vocab()) for _ in range(N_SHORT)]
    tokens = model.generate(short, temp=1.0)
    found |= _decode(task, lambda: next(tokens))
    if task.prompt:
        model.reset()
        long = [rng.randrange(model.n_vocab()) for _ in range(N_LONG)]
        since = time.perf_counter()
        model.eval(long)
        found["prompt_s"] = time.perf_counter() - since
    return found


def _decode(task: Task, step: Callable[[], object]) -> dict[str, object]:
    """Times single tokens, the first of which comes after the prompt."""
    since = time.perf_counter()
    step()
    first = time.perf_counter()
    at: list[float] = []
    reads: list[int] = []
    while len(at) <= task.tokens:
        step()
        now = time.perf_counter()
        if now - first >= WARM_S:
            at.append(now)
            reads.append(_read_nbytes())
        if now - first > WARM_S + task.seconds:
            break
    n = len(at) - 1
    return {
        "ttft_s": first - since,
        "decode_s": (at[-1] - at[0]) / n if n > 0 else task.seconds,
        "n_decoded": n,
        "read_per_token": (reads[-1] - reads[0]) / n if n > 0 else 0,
    }


def _read_nbytes() -> int:
    """Bytes that this process has read from the disk."""
    text = Path("/proc/self/io").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["read_bytes"])
