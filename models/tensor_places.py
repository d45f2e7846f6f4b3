"""Where the tensors of a model lie in its files, whether it is one file or split into shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dotscli.models.gguf_file import GgufFile, GgufTensor, read_one


def files_of(gguf: GgufFile) -> tuple[Path, ...]:
    """The model's files, in the order of their numbers."""
    return gguf.shards or (gguf.path,)


def tensor_places(gguf: GgufFile) -> Iterator[tuple[int, int, GgufTensor]]:
    """(index into `files_of`, bytes from that file's beginning, tensor), as they come in the files.

    Raises:
        DotsError: a shard that can't be read any more.
    """
    for number, path in enumerate(files_of(gguf)):
        shard = read_one(path)
        for tensor in sorted(shard.tensors, key=lambda t: t.offset):
            yield number, shard.data_offset + tensor.offset, tensor
