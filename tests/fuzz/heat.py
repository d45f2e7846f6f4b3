"""Files about experts: heat, the report of a quantization, traces, remembered comparisons."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from random import Random

import numpy as np

from dotscli.commands.inspect_experts import inspect_experts
from dotscli.hot import heat_store
from dotscli.hot.heat import Heat
from dotscli.hot.kept_heat import KeptHeat
from dotscli.hot.model_cost import file_cost
from dotscli.hot.verdict import Trials
from dotscli.models.gguf_file import read_gguf
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.output.error_report import read_report
from tests import tiny
from tests.fuzz.gguf import SIZES
from tests.fuzz.mutate import damaged, number, packed, patched, real
from tests.fuzz.mutate_json import spoiled
from tests.fuzz.target import (
    Target,
    WrongResult,
    pack,
    refusals,
    silent_terminal,
    strict_json,
    unpack,
)

KEY = "CUDA0 (a device), 4 threads, llama.cpp 1"


class ExpertFiles(Target):
    """A file of any of the four kinds, of a model of two layers that has four experts in one."""

    def prepare(self) -> None:
        folder = tiny.write_checkpoint(self.valid / "in", **SIZES)
        model, report = self.valid / "m.gguf", self.valid / "report.json"
        list(quantize_checkpoint(folder, model, "q4_0", report=report))
        heat_store.save(Heat({1: np.array([3.0, 0.0, 17.5, 2.0])}), self.valid / "heat.json")
        seconds = {"on_cpu_s": 0.2, "experts_s": 0.1, "divided_s": 0.15, "hit_rate": 0.5}
        document = {"format": 1, "model": "m", "comparisons": {KEY: seconds}}
        (self.valid / "trials.json").write_text(json.dumps(document))
        record = struct.pack("<HHI", 1, 2, 3) + np.arange(6, dtype="<i2").tobytes()
        (self.valid / "trace.bin").write_bytes(record * 3)

    def open(self) -> None:
        self.model = self.valid / "m.gguf"
        self.cost = file_cost(read_gguf(self.model))
        names = ("heat.json", "report.json", "trials.json", "trace.bin")
        self.files = {name: (self.valid / name).read_bytes() for name in names}

    def make(self, rng: Random) -> bytes:
        name = rng.choice(("heat.json",) * 4 + ("report.json",) * 4 + ("trials.json", "trace.bin"))
        data = self.files[name]
        if name == "trace.bin":
            at = rng.randrange(len(data))
            data = patched(data, at, packed(rng, 4)) if rng.random() < 0.5 else damaged(rng, data)
        elif rng.random() < 0.3:
            data = json.dumps(_odd_counts(rng, json.loads(data))).encode()
        else:
            data = spoiled(rng, data.decode())
        return pack({name: data})

    def run(self, data: bytes) -> None:
        for name, content in unpack(data).items():
            path = self.work / name
            path.write_bytes(content)
            run = {
                "heat.json": self._heat, "report.json": self._report,
                "trials.json": self._trials, "trace.bin": self._trace,
            }.get(name)  # fmt: skip
            if run is not None:
                run(path, len(content))
            path.unlink(missing_ok=True)

    def _heat(self, path: Path, nbytes: int) -> None:
        if nbytes % 3 == 0:  # one use each: all of them together may take too long
            self._show(path, path, None)
            return
        if nbytes % 3 == 1:
            self._show(self.model, path, None)
            return
        with refusals():
            heat = heat_store.load(path)
            for layer, counts in heat.layers.items():
                if not (np.isfinite(counts).all() and (counts >= 0).all()):
                    raise WrongResult(f"heat that can't be: layer {layer}")
        with refusals():
            kept = KeptHeat(self.cost, None, path)
            kept.path = self.work / "kept.json"
            kept.save({1: np.array([1.0, 0.0, 0.0, 5.0])}, 6)
            KeptHeat(self.cost, kept.path, None)
        (self.work / "kept.json").unlink(missing_ok=True)

    def _report(self, path: Path, nbytes: int) -> None:
        if nbytes % 3 == 0:
            self._show(path, None, path)
            return
        if nbytes % 3 == 1:
            self._show(self.model, None, path)
            return
        with refusals():
            for tensor in read_report(path):
                if not all(map(math.isfinite, (*tensor.errors, *tensor.powers))):
                    raise WrongResult(f"errors that can't be: {tensor.name}")

    def _show(self, path: Path, heat: Path | None, report: Path | None) -> None:
        """`dots inspect --experts`, as JSON or as text with a picture."""
        if (heat or report or path).stat().st_size % 2:
            terminal, shown = silent_terminal(FORCE_COLOR="1", XDG_DATA_HOME=str(self.work))
            with refusals():
                plot = self.work / "map.svg"
                inspect_experts(terminal, path, heat, report, plot, True, as_json=False)
            return
        terminal, shown = silent_terminal(XDG_DATA_HOME=str(self.work))
        with refusals():
            inspect_experts(terminal, path, heat, report, None, True, as_json=True)
            strict_json(shown.getvalue())

    def _trials(self, path: Path, nbytes: int) -> None:
        known = Trials(path, "m", KEY).known()
        if known is not None:
            known.describe()
            Trials(path, "m", f"other {nbytes}").remember(known)

    def _trace(self, path: Path, nbytes: int) -> None:
        with refusals():
            for layer, ids in heat_store.read_trace(path):
                if layer < 0 or ids.ndim != 2:
                    raise WrongResult("a trace that can't be")


def _odd_counts(rng: Random, tree: object) -> object:
    """The same document with odd numbers in the place of some."""
    if isinstance(tree, dict):
        return {key: _odd_counts(rng, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_odd_counts(rng, value) for value in tree]
    if isinstance(tree, int | float) and rng.random() < 0.3:
        return rng.choice((0, 0.0, 1e-320, 2**62, 1e18, 1e299, abs(number(rng)), abs(real(rng))))
    return tree


TARGET = ExpertFiles
