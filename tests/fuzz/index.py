"""model.safetensors.index.json: any document may say which shard holds which tensor."""

from __future__ import annotations

import json
import shutil
from random import Random

from dotscli.quantize.source.shards import INDEX, Shards
from tests import tiny
from tests.fuzz.mutate import text
from tests.fuzz.mutate_json import spoiled
from tests.fuzz.safetensors import SIZES
from tests.fuzz.target import Target, WrongResult, refusals


class Index(Target):
    """The index of a checkpoint in two shards."""

    def prepare(self) -> None:
        tiny.write_checkpoint(self.valid / "checkpoint", **SIZES)

    def open(self) -> None:
        self.folder = self.work / "in"
        shutil.copytree(self.valid / "checkpoint", self.folder)
        self.document = (self.folder / INDEX).read_text()
        self.weight_map = json.loads(self.document)["weight_map"]

    def make(self, rng: Random) -> bytes:
        if rng.random() < 0.8:
            return spoiled(rng, self.document)
        weight_map = dict(self.weight_map)
        for _ in range(rng.randrange(1, 4)):
            name, other = rng.choice(list(weight_map)), rng.choice(list(weight_map.values()))
            where = rng.choice((f"{text(rng)}.safetensors", other, f"./{other}", f"{other}\0"))
            weight_map[rng.choice((name, name, text(rng)))] = where
        return json.dumps({"weight_map": weight_map}).encode()

    def run(self, data: bytes) -> None:
        (self.folder / INDEX).write_bytes(data)
        with refusals():
            shards = Shards.open(self.folder)
            shards.close()
            inside = {path.resolve().parent for path in shards.paths}
            if inside != {self.folder.resolve()}:
                raise WrongResult(f"shards outside of the folder: {inside}")
            if len(shards.tensors) != len(self.weight_map):
                raise WrongResult("an index with other tensors is accepted")


TARGET = Index
