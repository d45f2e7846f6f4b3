"""What the bytes of an output depend on, hashed part by part: if all are the same, so is the file.

Shards are known by name, size, time of change and header, not by their 266 GiB. Threads and memory
change nothing and are left out. The words are shown to users when a part differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from dotscli.models.metadata import KeyValue
from dotscli.quantize.codec import library
from dotscli.quantize.gguf_header import gguf_header, tensor_infos
from dotscli.quantize.layout import FileLayout
from dotscli.quantize.shards import Shards

_OF_THE_RECIPE = ("general.file_type", "quantize.imatrix.", "split.")


def identity(
    files: Sequence[FileLayout],
    keys: Sequence[KeyValue],
    shards: Shards,
    inputs: Iterable[Path],
) -> dict[str, str]:
    """Words for what an output depends on, with a hash of each.

    Args:
        keys: the metadata; what follows from the recipe is counted there.
        inputs: further files, i.e. an importance matrix.
    """
    own = [key for key in keys if not key.key.startswith(_OF_THE_RECIPE)]
    plan = [
        text for file in files for text in (file.path.name.encode(), tensor_infos(file.tensors))
    ]
    tensors = sorted(shards.tensors.items())
    weights = [f"{tensor.path.name} {tensor.entry}".encode() for _, tensor in tensors]
    return {
        "the recipe": _hash(plan),
        "config or tokenizer": _hash([gguf_header(own, ())]),
        "the weights": _hash([*(_stat(path) for path in shards.paths), *weights]),
        "the importance matrix": _hash(_stat(path) for path in inputs),
        "llama.cpp": _hash([Path(library()._name).read_bytes()]),
    }


def _stat(path: Path) -> bytes:
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}".encode()


def _hash(pieces: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()
