"""Importance matrices, as GGUF and as .dat: read, summed up, and used for quantizing.

Whatever weights of columns a file gives, the weights that come of them are finite.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from random import Random

import numpy as np

from dotscli.commands.inspect import inspect
from dotscli.hot import heat_store
from dotscli.models.dots1 import Dots1
from dotscli.models.gguf_file import read_gguf
from dotscli.models.tensors import Naming, tensor_specs
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.imatrix.file import Entry, ImatrixFile, write_imatrix
from dotscli.quantize.imatrix.importance import load_importance
from tests import tiny
from tests.fuzz.gguf import body_changed, entries_moved, number_changed, text_changed
from tests.fuzz.gguf_fields import layout
from tests.fuzz.mutate import damaged, floats, packed, patched, pick, times
from tests.fuzz.target import (
    Target,
    WrongResult,
    pack,
    refusals,
    silent_terminal,
    strict_json,
    unpack,
)

SIZES = {"n_layers": 2, "hidden": 32, "n_heads": 2, "n_ff": 32, "n_ff_expert": 32, "n_experts": 4,
         "n_experts_used": 2, "n_shared_experts": 1}  # fmt: skip
QUANTIZE_ONCE_IN = 4  # of those that can be read
TYPES = ("q4_0", "q8_0", "iq4_nl", "mxfp4_moe")


class Imatrix(Target):
    """A file for every matrix of a small model, in either form."""

    def prepare(self) -> None:
        tiny.write_checkpoint(self.valid / "in", n_shards=1, **SIZES)
        entries = self._entries()
        write_imatrix(self.valid / "m.gguf", ImatrixFile(entries, ("a text",), 4, 512))
        (self.valid / "m.dat").write_bytes(legacy(entries))

    def open(self) -> None:
        self.gguf = (self.valid / "m.gguf").read_bytes()
        self.layout = layout(self.gguf)
        self.legacy = (self.valid / "m.dat").read_bytes()
        self.model = Dots1.load(self.valid / "in")
        self.specs = tensor_specs(self.model, Naming.PER_EXPERT)
        self.path = self.work / "m.imatrix"
        self.out = self.work / "out"

    def make(self, rng: Random) -> bytes:
        data = self.gguf if rng.random() < 0.6 else self.legacy
        is_gguf = data is self.gguf
        for _ in range(times(rng)):
            if not is_gguf:
                data = _legacy_changed(rng, data)
                continue
            data = pick(
                rng,
                [
                    (3, lambda d: body_changed(rng, d, self.layout)),
                    (2, lambda d: number_changed(rng, d, self.layout)),
                    (1, lambda d: text_changed(rng, d, self.layout)),
                    (1, lambda d: entries_moved(rng, d, self.layout)),
                    (1, lambda d: damaged(rng, d)),
                    (2, lambda d: self._all_alike(rng, d)),
                ],
            )(data)
        return pack({"imatrix": data})

    def run(self, data: bytes) -> None:
        content = unpack(data).get("imatrix", b"")
        self.path.write_bytes(content)
        with refusals():
            heat_store.load(self.path)
        with refusals():
            terminal, shown = silent_terminal()
            inspect(terminal, self.path, as_json=True)
            strict_json(shown.getvalue())
        for thin in (0, 256):
            with refusals():
                self._use(thin)
        if zlib.crc32(content) % QUANTIZE_ONCE_IN == 0:
            with refusals():
                self._quantize(TYPES[len(content) % len(TYPES)])
            shutil.rmtree(self.out, ignore_errors=True)

    def _use(self, thin: int) -> None:
        found = load_importance(self.path, thin)
        found.check(self.specs)
        found.keys()
        for spec in self.specs:
            for expert in range(spec.n_experts):
                row = found.row(spec.name, expert)
                if row is not None and not (np.isfinite(row).all() and (row >= 0).all()):
                    raise WrongResult(f"weights of columns are negative or not finite: {spec.name}")

    def _quantize(self, type_: str) -> None:
        self.out.mkdir(exist_ok=True)
        out, exact = self.out / "o.gguf", self.out / "f.gguf"
        list(
            quantize_checkpoint(
                self.valid / "in", out, type_, threads=1, imatrix=self.path,
                report=self.out / "r.json",
            )
        )  # fmt: skip
        list(quantize_checkpoint(out, exact, "f32", threads=1))  # refuses what is not finite
        if len(read_gguf(exact).tensors) != len(self.specs):
            raise WrongResult("the output lacks tensors")

    def _all_alike(self, rng: Random, data: bytes) -> bytes:
        """Every value of the body is the same odd one."""
        start = self.layout.header_nbytes
        n = (len(data) - start) // 4
        return data[:start] + floats(rng, 1) * n

    def _entries(self) -> dict[str, Entry]:
        rng = np.random.default_rng(0)
        entries = {}
        for spec in tensor_specs(Dots1.load(self.valid / "in"), Naming.PER_EXPERT):
            if len(spec.shape) > 1:
                sums = rng.random((spec.n_experts, spec.shape[-1])).astype(np.float32) * 100
                counts = rng.integers(0, 600, spec.n_experts).astype(np.float32)
                entries[spec.name] = Entry(sums, counts)
        return entries


def legacy(entries: dict[str, Entry]) -> bytes:
    """The .dat form, with the chunks and the text's name at the end."""
    out = struct.pack("<i", len(entries))
    for name, entry in entries.items():
        values = entry.sums.reshape(-1)
        out += struct.pack("<i", len(name)) + name.encode()
        out += struct.pack("<ii", 4, values.size) + values.astype("<f4").tobytes()
    return out + struct.pack("<ii", 4, 6) + b"a text"


def _legacy_changed(rng: Random, data: bytes) -> bytes:
    if not data:
        return packed(rng, 4)
    at = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            return patched(data, at & ~3, packed(rng, 4))
        case 1:
            return patched(data, rng.randrange(min(60, len(data))), packed(rng, 4))
        case 2:
            return patched(data, at & ~3, floats(rng, 8))[: len(data)]
        case _:
            return damaged(rng, data)


TARGET = Imatrix
