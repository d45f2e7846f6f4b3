"""What the bytes of an output depend on, hashed part by part: if all are the same, so is the file.

Shards are known by name, size, time of change and header, not by their 266 GiB, and tensor by
tensor, so that a shard downloaded again costs only what was made from it. Threads and memory change
nothing and are left out. The words are shown to users when a part differs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dotscli.models.metadata import KeyValue
from dotscli.quantize.output.gguf_header import gguf_header, tensor_infos
from dotscli.quantize.output.layout import FileLayout
from dotscli.quantize.plan import Plan
from dotscli.quantize.rows.codec import library
from dotscli.quantize.source.source import Source

_BLENDING = "dots.imatrix."
_OF_THE_RECIPE = ("general.file_type", "quantize.imatrix.", _BLENDING, "split.")


def identity(
    files: Sequence[FileLayout],
    keys: Sequence[KeyValue],
    inputs: Iterable[Path],
) -> dict[str, str]:
    """Words for what every tensor of an output depends on, with a hash of each.

    Args:
        keys: the metadata; what follows from the recipe is counted there.
        inputs: further files, i.e. an importance matrix.
    """
    own = [key for key in keys if not key.key.startswith(_OF_THE_RECIPE)]
    blending = [f"{key}".encode() for key in keys if key.key.startswith(_BLENDING)]
    plan = [
        text for file in files for text in (os.fsencode(file.path.name), tensor_infos(file.tensors))
    ]
    return {
        "the recipe": _hash(plan),
        "config or tokenizer": _hash([gguf_header(own, ())]),
        "the importance matrix": _hash([*(_stat(path) for path in inputs), *blending]),
        "llama.cpp": _hash([Path(library()._name).read_bytes()]),
    }


def sources(plan: Plan, source: Source) -> tuple[str, ...]:
    """For every tensor of the plan a hash of what it is made from."""
    files = {path: _stat(path) for path in source.paths}
    found = []
    for tensor in plan.tensors:
        own = [place for part in tensor.spec.sources for place in source.places(part.name)]
        found.append(_hash(files[path] + entry.encode() for path, entry in own))
    return tuple(found)


def _stat(path: Path) -> bytes:
    status = path.stat()
    return os.fsencode(path.name) + f" {status.st_size} {status.st_mtime_ns}".encode()


def _hash(pieces: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()
