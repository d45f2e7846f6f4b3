"""One call of bench/gpu: its options, and where each step keeps what it has done."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from bench.gpu import build as gpu_build
from bench.lib.measure import ROOT


@dataclass(frozen=True)
class Job:
    """The options, and where each step keeps what it has done."""

    options: argparse.Namespace
    end: float

    @property
    def work(self) -> Path:
        return Path(self.options.work)

    @property
    def keep(self) -> Path:
        return Path(self.options.keep)

    @property
    def site(self) -> Path:
        return self.work / "site"

    @property
    def model(self) -> Path:
        return self.work / "model.gguf"

    @property
    def runs(self) -> Path:
        return self.keep / "runs.jsonl"

    def result(self, name: str) -> Path:
        """Where a step's result lies."""
        return self.keep / f"{name}.json"

    @property
    def env(self) -> dict[str, str]:
        if self.options.installed:
            return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *inherited()])}
        return gpu_build.environment(self.site)

    @property
    def tiny(self) -> bool:
        return bool(self.options.size == "tiny")

    @property
    def threads(self) -> int:
        return int(self.options.threads) or os.cpu_count() or 1


def inherited() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
