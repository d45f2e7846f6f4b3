"""What can be quantized: the folder of a checkpoint, or a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dotscli.models.dots1 import Dots1
from dotscli.models.gguf_keys import kept_keys
from dotscli.models.metadata import KeyValue, metadata
from dotscli.models.tensors import Sizes
from dotscli.models.vocab import Vocab
from dotscli.quantize.source.gguf_source import GgufSource
from dotscli.quantize.source.shards import Shards
from dotscli.quantize.source.source import Source


class Input(Protocol):
    """A model to quantize, opened and checked."""

    @property
    def model(self) -> Sizes: ...
    @property
    def source(self) -> Source: ...

    def keys(self, file_type: int) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:
        """The metadata of the file it becomes, and warnings about it.

        Raises:
            DotsError: tokenizer.json or another file of a checkpoint is missing or wrong.
        """


class CheckpointInput:
    """A folder with config.json, tokenizer.json and safetensors."""

    def __init__(self, folder: Path) -> None:
        self.model = Dots1.load(folder)
        self.source = Shards.open(folder)

    def keys(self, file_type: int) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:
        """From what lies in the folder; see `Input`."""
        folder = self.source.origin
        vocab = Vocab.load(folder, self.model)
        return metadata(self.model, vocab, folder, file_type), vocab.warnings


class GgufInput:
    """A GGUF, or the first file of a split one."""

    def __init__(self, path: Path) -> None:
        self.source = GgufSource.open(path)
        self.model = self.source.model

    def keys(self, file_type: int) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:
        """Its own; see `Input`."""
        return kept_keys(self.source.gguf, file_type), ()


def open_input(path: Path) -> Input:
    """Open a checkpoint's folder or a GGUF.

    Raises:
        DotsError: it is neither, of another model, incomplete or damaged.
    """
    return GgufInput(path) if path.is_file() else CheckpointInput(path)
