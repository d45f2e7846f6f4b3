"""Whether hot experts pay on a machine: judged from a few compared tokens, and remembered.

What is known lies beside the heat, in one file for a model: a comparison for each device, number
of threads and version of llama.cpp. This module measures nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dotscli.hot.heat_store import write_json

# Whole layers on the device save all of the CPU's time for their experts. Exchanged experts are hit
# 1.7 times as often where routing is nearly flat, and more elsewhere (docs/hot-policy.md, 10 %
# resident): a device that takes off less than half of a hit's time can't make up for whole layers.
WORTH = 0.5
LEAST_PART = 0.02  # of a token that hits must take on the CPU, or nothing can be seen in its time
FORMAT = 1
SUFFIX = ".trials"
MAX_FILE_NBYTES = 1 << 16
MAX_COMPARISONS = 64


@dataclass(frozen=True)
class Comparison:
    """One token computed in two ways, in seconds.

    Attributes:
        on_cpu_s: with all routed experts on the CPU.
        experts_s: of that, what the routed experts took.
        divided_s: with the resident ones on the device.
        hit_rate: part of the experts used that were resident.
    """

    on_cpu_s: float
    experts_s: float
    divided_s: float
    hit_rate: float

    @property
    def saved(self) -> float:
        """Part of the CPU's time for the hits that the device took off; below 0 it added some."""
        return (self.on_cpu_s - self.divided_s) / max(self.hit_rate * self.experts_s, 1e-12)

    @property
    def decided(self) -> bool:
        """Whether there were hits enough to see anything."""
        return self.hit_rate * self.experts_s > LEAST_PART * self.on_cpu_s

    @property
    def pays(self) -> bool:
        """Whether hot experts are worth having here; also as long as nothing says the contrary."""
        return not self.decided or self.saved >= WORTH

    def describe(self) -> str:
        """The finding in one clause."""
        took = f"a token took {self.divided_s * 1e3:.3g} ms with them"
        without = f"{self.on_cpu_s * 1e3:.3g} ms with all experts on the CPU"
        verdict = "they pay off" if self.pays else "they don't pay off"
        return f"{verdict} on this machine: {took}, {self.hit_rate:.0%} hits, and {without}"


class Trials:
    """What is remembered of one model under certain circumstances.

    Args:
        path: the model's file, which need not exist; None remembers nothing.
        model: its name, for those who read the file.
        key: of `circumstances`.
    """

    def __init__(self, path: Path | None, model: str, key: str) -> None:
        self._path = path
        self._model = model
        self._key = key

    def known(self) -> Comparison | None:
        """The comparison, if one was made; a file that can't be read knows none."""
        return None if self._path is None else _read(self._path)[1].get(self._key)

    def remember(self, comparison: Comparison) -> None:
        """Keep a comparison.

        Raises:
            DotsError: it can't be written.
        """
        if self._path is None:
            return
        kept = {**_read(self._path)[1], self._key: comparison}
        last = list(kept.items())[-MAX_COMPARISONS:]
        document = {
            "format": FORMAT,
            "model": self._model,
            "comparisons": {name: asdict(value) for name, value in last},
        }
        write_json(document, self._path, "the comparison")


def circumstances(device: str, description: str, n_threads: int, llama_cpp: str) -> str:
    """What a comparison depends on besides the model."""
    return f"{device} ({description}), {n_threads} threads, llama.cpp {llama_cpp}"


def all_known(folder: Path) -> Iterator[tuple[str, str, Comparison]]:
    """(model, circumstances, comparison) of everything that is remembered in a folder."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        model, comparisons = _read(path)
        for key, comparison in comparisons.items():
            yield model, key, comparison


def _read(path: Path) -> tuple[str, dict[str, Comparison]]:
    """Model and comparisons of a file. One that is damaged says nothing and is written anew."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_FILE_NBYTES))
        if document["format"] != FORMAT:
            return "", {}
        entries = list(document["comparisons"].items())[:MAX_COMPARISONS]
        found = {str(key): Comparison(**_seconds(value)) for key, value in entries}
        return str(document["model"]), found
    except (
        OSError,
        ArithmeticError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return "", {}


def _seconds(entry: dict[str, object]) -> dict[str, float]:
    values = {name: float(value) for name, value in entry.items()}  # type: ignore[arg-type]
    if not all(math.isfinite(value) and value >= 0 for value in values.values()):
        raise ValueError("no duration")
    return values
