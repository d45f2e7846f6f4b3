"""GGUF files: read, check, verify, inspect, plan and make again. No byte of them gets to llama.cpp.

`dots verify` may call a file whole only if it is byte for byte what was written: the valid files
have checksums.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from random import Random

from dotscli.commands.inspect import inspect
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import read_gguf, read_one
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.quantize.output.checksums import KEY
from dotscli.quantize.recipe.types_of_file import preset_of_gguf
from dotscli.quantize.verify import Damaged, Opened, verify
from tests import gguf_maker, tiny
from tests.fuzz.gguf_fields import Layout, layout
from tests.fuzz.mutate import damaged, floats, length, number, packed, patched, pick, text, times
from tests.fuzz.target import (
    Target,
    WrongResult,
    pack,
    refusals,
    silent_terminal,
    strict_json,
    unpack,
)

SIZES = {"hidden": 32, "n_heads": 2, "n_ff": 32, "n_ff_expert": 32, "n_layers": 2, "n_experts": 4}
WHOLE, SPLIT = "m.gguf", "m-0000{}-of-00003.gguf"
MAKE_ONCE_IN = 8  # of the files that pass the checks, one in so many is quantized as well


def spans(path: Path) -> list[tuple[int, int]]:
    """Start and end of the header and of every tensor."""
    file = read_one(path)
    starts = [(file.data_offset + t.offset, t.nbytes) for t in file.tensors]
    return [(0, file.data_offset), *((start, start + nbytes) for start, nbytes in starts)]


def small() -> gguf_maker.Gguf:
    """A model of 170 KB in F32."""
    return gguf_maker.dots1(**SIZES)


class GgufFiles(Target):
    """Whole files, and split ones of three parts."""

    def prepare(self) -> None:
        folder = tiny.write_checkpoint(self.valid / "checkpoint", **SIZES)
        (self.valid / "whole").mkdir()
        small().write(self.valid / "whole" / "maker.gguf")
        for kind in ("q4_0", "bf16"):
            list(quantize_checkpoint(folder, self.valid / "whole" / f"{kind}.gguf", kind))
        (self.valid / "split").mkdir()
        list(
            quantize_checkpoint(
                folder, self.valid / "split" / "m.gguf", "q8_0", split_max_size=50_000
            )
        )

    def open(self) -> None:
        self.whole = [path.read_bytes() for path in sorted((self.valid / "whole").iterdir())]
        self.parts = {p.name: p.read_bytes() for p in sorted((self.valid / "split").iterdir())}
        self.layouts = {data: layout(data) for data in [*self.whole, *self.parts.values()]}
        paths = [*(self.valid / "whole").iterdir(), *(self.valid / "split").iterdir()]
        self.originals = [(path.read_bytes(), spans(path)) for path in paths]

    def make(self, rng: Random) -> bytes:
        if rng.random() < 0.1:
            files = dict(self.parts)
            name = rng.choice(list(files))
            files[name] = self._spoiled(rng, files[name])
            if rng.random() < 0.2:
                files[name] = files[rng.choice(list(files))]
            return pack(files)
        if rng.random() < 0.3:
            return pack({WHOLE: bytes(remade(rng, small()))})
        return pack({WHOLE: self._spoiled(rng, rng.choice(self.whole))})

    def _spoiled(self, rng: Random, data: bytes) -> bytes:
        where = self.layouts[data]
        others = [*self.whole, *self.parts.values()]
        for _ in range(times(rng)):
            data = pick(
                rng,
                [
                    (4, lambda d: number_changed(rng, d, where)),
                    (2, lambda d: text_changed(rng, d, where)),
                    (1, lambda d: entries_moved(rng, d, where)),
                    (1, lambda d: body_changed(rng, d, where)),
                    (1, lambda d: damaged(rng, d[: where.header_nbytes], others)
                        + d[where.header_nbytes :]),
                    (0.5, lambda d: damaged(rng, d, others)),
                ],
            )(data)  # fmt: skip
        return data

    def run(self, data: bytes) -> None:
        files = unpack(data)
        paths = []
        for name, content in files.items():
            paths.append(self.work / name)
            paths[-1].write_bytes(content)
        try:
            if paths:
                self._attack(paths[0], files)
        finally:
            for path in paths:
                path.unlink()

    def _attack(self, path: Path, files: dict[str, bytes]) -> None:
        content = next(iter(files.values()))
        passed = False
        with refusals():
            check_dots1(read_gguf(path))
            passed = True
        with refusals():
            self._verify(path, files)
        with refusals():
            preset_of_gguf(path)
        with refusals():
            terminal, shown = silent_terminal()
            inspect(terminal, path, as_json=True)
            strict_json(shown.getvalue())
        if passed:
            with refusals():
                inspect(silent_terminal()[0], path, as_json=False)
            with refusals():
                plan_checkpoint(path, "q8_0")
            if zlib.crc32(content) % MAKE_ONCE_IN == 0:
                self._make_again(path)

    def _verify(self, path: Path, files: dict[str, bytes]) -> None:
        events = list(verify(path, threads=1))
        checked = any(isinstance(event, Opened) and event.with_checksums for event in events)
        if any(isinstance(event, Damaged) for event in events):
            return
        read = read_gguf(path).shards
        claimed = checked or any(KEY in read_one(shard).metadata for shard in read)
        if claimed and not all(self._is_original(files[shard.name]) for shard in read):
            raise WrongResult("verify calls a changed file whole")

    def _is_original(self, data: bytes) -> bool:
        """Whether header and tensors are those of a valid file; what is between may differ."""
        return any(
            all(data[start:end] == original[start:end] for start, end in spans)
            for original, spans in self.originals
        )

    def _make_again(self, path: Path) -> None:
        out = self.work / "again.gguf"
        with refusals():
            list(quantize_checkpoint(path, out, "q8_0", threads=1, restart=True))
            if any(isinstance(event, Damaged) for event in verify(out, threads=1)):
                raise WrongResult("a file that was just made is damaged")
        for left in self.work.glob("again*"):
            left.unlink()


def number_changed(rng: Random, data: bytes, where: Layout) -> bytes:
    """One field of the header is another number."""
    at, nbytes = rng.choice(where.numbers)
    if rng.random() < 0.2:
        old = int.from_bytes(data[at : at + nbytes], "little")
        new = (old + rng.choice((1, -1, 32, -32, old))) & ((1 << 8 * nbytes) - 1)
        return patched(data, at, new.to_bytes(nbytes, "little"))
    return patched(data, at, packed(rng, nbytes))


def text_changed(rng: Random, data: bytes, where: Layout) -> bytes:
    """One key, name or string is another, with its length or in its place."""
    at, nbytes = rng.choice(where.texts)
    other = rng.choice(where.texts)
    raw = rng.choice(
        (text(rng).encode("utf-8", "surrogatepass"), data[other[0] : sum(other)], rng.randbytes(5))
    )
    if rng.random() < 0.5:
        return patched(data, at, raw[:nbytes].ljust(nbytes, b"x"))
    return data[: at - 8] + len(raw).to_bytes(8, "little") + raw + data[at + nbytes :]


def entries_moved(rng: Random, data: bytes, where: Layout) -> bytes:
    """A key or tensor comes twice, in the place of another, or not at all."""
    (start, end), (first, last) = rng.choice(where.entries), rng.choice(where.entries)
    piece = data[first:last] if rng.random() < 0.7 else b""
    return data[:start] + piece + data[end if rng.random() < 0.7 else start :]


def body_changed(rng: Random, data: bytes, where: Layout) -> bytes:
    """Weights are others: a bit, a few odd floats, or noise."""
    at = rng.randrange(where.header_nbytes, max(len(data), where.header_nbytes + 1))
    if rng.random() < 0.4:
        return patched(data, at, bytes([rng.randrange(256)]))[: len(data)]
    n = length(rng, 256)
    new = floats(rng, n) if rng.random() < 0.5 else rng.randbytes(4 * n)
    return patched(data, at, new)[: len(data)]


def remade(rng: Random, made: gguf_maker.Gguf) -> gguf_maker.Gguf:
    """A model with other values under valid keys, or other tensors."""
    kinds = {"u32": lambda: number(rng) & 0xFFFFFFFF, "f32": lambda: rng.choice((0.0, 1.0, -1.0))}
    for _ in range(times(rng)):
        key = rng.choice(list(made.keys))
        kind, value = made.keys[key]
        match rng.randrange(6):
            case 0 if kind in kinds:
                made.set(key, kind, kinds[kind]())
            case 1:
                made.set(key, "array:u32", [number(rng) & 0xFFFFFFFF] * rng.randrange(4))
            case 2:
                made.set(key, "string", text(rng).encode("utf-8", "surrogatepass"))
            case 3:
                made.keys.pop(key)
                made.set(rng.choice((f"{key}2", "general.alignment", "split.count")), kind, value)
            case 4:
                name = rng.choice(list(made.tensors))
                shape, type_id, data = made.tensors[name]
                turned = tuple(rng.sample(shape, len(shape)))
                made.tensors[name] = (turned, rng.choice((type_id, rng.randrange(42))), data)
            case _:
                name = rng.choice(list(made.tensors))
                made.offsets[name] = number(rng) & (2**64 - 1)
    return made


TARGET = GgufFiles
