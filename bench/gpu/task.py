"""One side of a comparison: what it is loaded with and which tokens it is given.

Knows nothing of what is measured (sides.py) or compared (check.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dotscli.engine import EngineOptions, HotOptions, devices


@dataclass(frozen=True)
class Task:
    """A side. `device` is watched, and holds the hot experts if `hot_nbytes` isn't 0.

    Attributes:
        tokens: given and not sampled, so that every side routes the same stream.
        hot_nbytes: 0 is `--hot off`; with it the placement flags are left to dots.
        prefill: lengths of the prompts; the shortest comes before the single tokens.
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
    warm: int = 0
    decode: int = 0
    logits: str | None = None

    def options(self) -> EngineOptions:
        """What a user would have typed; whether hot experts pay is for the benchmark to find."""
        hot = None
        if self.hot_nbytes:
            heat = Path(self.heat) if self.heat else None
            hot = HotOptions(self.hot_nbytes, self.device, heat=heat, adapt=self.adapt, guard=False)
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
