"""safetensors files: headers and bodies, with weights in BF16 and in FP8 with scales.

What gets through is quantized to BF16; then every weight must be the one that the header says,
looked up here by a reader of a few lines.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from pathlib import Path
from random import Random

from dotscli.models.gguf_file import read_gguf
from dotscli.quantize import quantize_checkpoint
from tests import tiny
from tests.fp8_maker import LAYOUTS, quantized
from tests.fuzz.mutate import damaged, floats, length, packed, patched, times
from tests.fuzz.mutate_json import spoiled
from tests.fuzz.target import Target, WrongResult, pack, refusals, unpack

SIZES = {"n_layers": 2, "hidden": 32, "n_heads": 2, "n_ff": 32, "n_ff_expert": 32, "n_experts": 2,
         "n_experts_used": 1, "n_shared_experts": 1}  # fmt: skip
NAME = "model.safetensors"


def slug(name: str) -> str:
    """A layout's name as that of a folder."""
    return "fp8-" + re.sub(r"\W+", "-", name)


def parts(data: bytes) -> tuple[bytes, bytes]:
    """Header and body of a valid file."""
    length_ = struct.unpack_from("<Q", data)[0]
    return data[8 : 8 + length_], data[8 + length_ :]


class SafetensorsFiles(Target):
    """The one shard of a small checkpoint; the name in the input says of which."""

    def prepare(self) -> None:
        tiny.write_checkpoint(self.valid / "bf16", n_shards=1, **SIZES)
        tiny.write_checkpoint(self.valid / "f32", n_shards=1, dtype="F32", **SIZES)
        for name, layout in LAYOUTS.items():
            folder = tiny.write_checkpoint(self.valid / slug(name), n_shards=1, **SIZES)
            stored, dtypes, _ = quantized(tiny.weights(tiny.config(**SIZES)), layout)
            tiny.write_safetensors(folder / NAME, stored, dtypes)
            config = json.loads((folder / "config.json").read_text())
            config["quantization_config"] = layout.config
            (folder / "config.json").write_text(json.dumps(config))

    def open(self) -> None:
        self.files = {p.name: (p / NAME).read_bytes() for p in sorted(self.valid.iterdir())}
        shutil.copytree(self.valid, self.work / "in")
        (self.work / "out").mkdir()

    def make(self, rng: Random) -> bytes:
        folder = rng.choice(("bf16", "bf16", "f32", *self.files))
        data = self.files[folder]
        header, body = parts(data)
        if rng.random() < 0.1:
            return pack({folder: damaged(rng, data)})
        if rng.random() < 0.05:
            return pack({folder: packed(rng, 8) + data[8:]})
        if rng.random() < 0.6:
            header = _header(rng, header)
        for _ in range(times(rng)):
            if rng.random() < 0.5:
                body = _body(rng, body)
        return pack({folder: struct.pack("<Q", len(header)) + header + body})

    def run(self, data: bytes) -> None:
        for folder, content in unpack(data).items():
            if folder not in self.files:
                continue
            path, out = self.work / "in" / folder / NAME, self.work / "out" / "o.gguf"
            path.write_bytes(content)
            with refusals():
                list(quantize_checkpoint(path.parent, out, "bf16", threads=1, restart=True))
                if folder == "bf16":
                    compare(content, out)
            for left in out.parent.iterdir():
                left.unlink()


def _header(rng: Random, header: bytes) -> bytes:
    if rng.random() < 0.3:  # two tensors change places, which may be valid
        values = json.loads(header)
        first, second = rng.sample([name for name in values if name != "__metadata__"], 2)
        what = rng.choice(("data_offsets", "shape", "dtype"))
        values[first][what], values[second][what] = values[second][what], values[first][what]
        return json.dumps(values).encode()
    return spoiled(rng, header.decode())


def _body(rng: Random, body: bytes) -> bytes:
    at = rng.randrange(len(body) + 1)
    match rng.randrange(4):
        case 0:
            return patched(body, at, bytes([rng.randrange(256)]))[: len(body)]
        case 1:
            return patched(body, at & ~3, floats(rng, length(rng, 64)))[: len(body)]
        case 2:
            return patched(body, at, rng.randbytes(length(rng, 512)))[: len(body)]
        case _:
            return damaged(rng, body)


def compare(content: bytes, out: Path) -> None:
    """Every weight of `out` is the one that stands in the safetensors file."""
    header, body = parts(content)
    found = {}
    for name, entry in json.loads(header).items():
        if name != "__metadata__" and entry["dtype"] == "BF16":
            start, end = entry["data_offsets"]
            found[name] = body[start:end]
    gguf, made = read_gguf(out), out.read_bytes()
    wanted = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight",
    }
    for tensor in gguf.tensors:
        start = gguf.data_offset + tensor.offset
        if tensor.name in wanted:
            expected = found.get(wanted[tensor.name])
            if expected is not None and made[start : start + tensor.nbytes] != expected:
                raise WrongResult(f"weights are not those of the checkpoint: {tensor.name}")
        elif tensor.name == "blk.1.ffn_up_exps.weight":
            experts = [
                found.get(f"model.layers.1.mlp.experts.{i}.up_proj.weight")
                for i in range(tensor.shape[2])
            ]
            if None not in experts and made[start : start + tensor.nbytes] != b"".join(
                map(bytes, experts)
            ):
                raise WrongResult(f"experts are not those of the checkpoint: {tensor.name}")
        elif tensor.type_name == "F32":
            values = struct.unpack_from(f"<{tensor.nbytes // 4}f", made, start)
            if not all(map(math.isfinite, values)):
                raise WrongResult(f"a weight is not finite: {tensor.name}")


TARGET = SafetensorsFiles
