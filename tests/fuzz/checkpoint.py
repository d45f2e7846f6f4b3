"""The texts of a checkpoint: config.json, tokenizer.json and what else lies beside the weights.

An input has the files that are not as they were. What is accepted becomes the header of a GGUF,
which then has to pass the checks that every GGUF must pass.
"""

from __future__ import annotations

import json
import shutil
from random import Random

from dotscli.commands.inspect import inspect
from dotscli.models.gguf_file import read_gguf
from dotscli.models.metadata import metadata
from dotscli.models.vocab import Vocab
from dotscli.quantize import plan_checkpoint
from dotscli.quantize.output.gguf_header import gguf_header
from tests import tiny
from tests.fuzz.mutate import damaged, text, times
from tests.fuzz.mutate_json import spoiled
from tests.fuzz.safetensors import SIZES
from tests.fuzz.target import (
    Target,
    WrongResult,
    pack,
    refusals,
    silent_terminal,
    strict_json,
    unpack,
)

CARD = """---
license: mit
license_name: "x y"
base_model:
  - rednote-hilab/dots.llm1.base
  - https://huggingface.co/a/b
tags: [a, 'b', "c"]
language:
  - en
model_name: dots # comment
---
# Title
"""


class Checkpoint(Target):
    """The texts of a checkpoint whose weights are in order."""

    def prepare(self) -> None:
        folder = tiny.write_checkpoint(self.valid / "checkpoint", n_shards=1, **SIZES)
        (folder / "README.md").write_text(CARD)
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
        generation = folder / "generation_config.json"
        values = json.loads(generation.read_text()) | {"top_k": 20, "min_p": 0.1}
        generation.write_text(json.dumps(values))

    def open(self) -> None:
        self.folder = self.work / "in"
        shutil.copytree(self.valid / "checkpoint", self.folder)
        self.texts = {
            path.name: path.read_bytes()
            for path in self.folder.iterdir()
            if path.suffix != ".safetensors"
        }

    def make(self, rng: Random) -> bytes:
        names = ["config.json", "tokenizer.json"] * 3 + list(self.texts)
        files = {}
        for name in {rng.choice(names) for _ in range(times(rng, 3))}:
            data = self.texts[name]
            if name.endswith(".json"):
                files[name] = spoiled(rng, data.decode())
            elif rng.random() < 0.7:
                files[name] = damaged(rng, data)
            else:
                words = [text(rng).encode("utf-8", "surrogatepass"), *data.split(b"\n")]
                rng.shuffle(words)
                files[name] = b"---\n" + b"\n".join(words)
        return pack(files)

    def run(self, data: bytes) -> None:
        files = {name: text for name, text in unpack(data).items() if name in self.texts}
        try:
            for name, content in files.items():
                (self.folder / name).write_bytes(content)
            with refusals():
                match len(data) % 4:  # one use each: all of them together may take too long
                    case 0:
                        terminal, shown = silent_terminal()
                        inspect(terminal, self.folder, as_json=True)
                        strict_json(shown.getvalue())
                    case 1:
                        inspect(silent_terminal()[0], self.folder, as_json=False)
                    case _:
                        self._read()
        finally:
            for name in files:
                (self.folder / name).write_bytes(self.texts[name])

    def _read(self) -> None:
        decided = plan_checkpoint(self.folder)
        vocab = Vocab.load(self.folder, decided.model)
        header = gguf_header(metadata(decided.model, vocab, self.folder, 15), decided.tensors)
        path = self.work / "m.gguf"
        last = decided.tensors[-1]
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + last.offset + last.nbytes)
        keys = read_gguf(path).metadata
        if keys["general.architecture"] != "dots1":
            raise WrongResult(f"a header with another architecture: {keys}")


TARGET = Checkpoint
