"""Heat on disk: saved after a run, merged into the next, seeded from an importance matrix.

A heat file is JSON and belongs to one model, known by a fingerprint of the GGUF. Traces are binary:
the ids that the router chose, batch by batch, for offline study. This module decides nothing.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dotscli.errors import DotsError
from dotscli.hot.heat import Heat
from dotscli.models.identity import fingerprint
from dotscli.models.json_file import check_count
from dotscli.models.regular_file import check_regular, check_replaceable

FORMAT = 1
MAX_LAYERS = 4096
MAX_EXPERTS = 32767
MAX_FILE_NBYTES = 8 << 20  # a model of 142 B weights has some 100 kB
_RECORD = struct.Struct("<HHI")  # layer, n_used, n_tokens; then int16 ids [n_tokens, n_used]
_COUNTS = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down)_exps\.weight\.counts")


def file_of(model: Path, folder: Path) -> Path:
    """Where in a folder the heat of this model is kept: by fingerprint."""
    return folder / f"{fingerprint(model)}.json"


def save(heat: Heat, path: Path) -> None:
    """Write a heat file whole or not at all.

    Raises:
        DotsError: if the folder can't be written to.
    """
    document = {
        "format": FORMAT,
        "layers": {str(k): np.round(v, 3).tolist() for k, v in sorted(heat.layers.items())},
    }
    write_json(document, path, "the heat")


def write_json(document: object, path: Path, what: str) -> None:
    """Write a small JSON file whole or not at all, with its folder.

    Raises:
        DotsError: if the folder can't be written to.
    """
    name = ""
    check_replaceable(path, hint="move it away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            name = file.name
            json.dump(document, file)
        Path(name).replace(path)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise DotsError(f"can't save {what} to {path}: {error.strerror}") from error


def load(path: Path) -> Heat:
    """Read a heat file, or the counts of a GGUF importance matrix.

    Raises:
        DotsError: if it is neither, or says something that can't be.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            nbytes = os.fstat(file.fileno()).st_size
            if magic == b"GGUF":
                return from_imatrix(path)
            if nbytes > MAX_FILE_NBYTES:
                raise DotsError(f"{path} is not a heat file: {nbytes} bytes")
            text = magic + file.read(MAX_FILE_NBYTES)
    except OSError as error:
        raise DotsError(f"can't read {path}: {error.strerror}") from error
    check_count(text, str(path))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DotsError(f"{path} is not a heat file: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DotsError(f"{path} is not a heat file of format {FORMAT}")
    layers = document.get("layers")
    if not isinstance(layers, dict) or len(layers) > MAX_LAYERS:
        raise DotsError(f"{path} has no table of layers")
    return Heat({_layer(path, key): _counts(path, key, values) for key, values in layers.items()})


def _layer(path: Path, key: str) -> int:
    if len(key) > 9 or not key.isascii() or not key.isdigit() or int(key) >= MAX_LAYERS:
        raise DotsError(f"{path} has the invalid layer {key[:40]!r}")
    return int(key)


def _counts(path: Path, key: str, values: object) -> np.ndarray:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_EXPERTS:
        raise DotsError(f"{path}, layer {key}: not a list of counts")
    if not all(type(v) in (int, float) and 0 <= v < 2**63 for v in values):
        raise DotsError(f"{path}, layer {key}: a count is not a number from 0 to 2^63")
    return np.array(values, np.float64)


def from_imatrix(path: Path) -> Heat:
    """Heat from the counts per expert that a GGUF importance matrix holds.

    Raises:
        DotsError: if the file is malformed or has no counts of routed experts.
    """
    from dotscli.models.gguf_file import read_gguf

    gguf = read_gguf(path)
    if len(gguf.shards) > 1:
        raise DotsError(f"{path} is one of {len(gguf.shards)} shards, not an importance matrix")
    heat = Heat()
    with path.open("rb") as file:
        for tensor in gguf.tensors:
            match = _COUNTS.fullmatch(tensor.name)
            if not match or tensor.type_id != 0 or int(match[1]) >= MAX_LAYERS:
                continue
            file.seek(gguf.data_offset + tensor.offset)
            values = np.frombuffer(file.read(tensor.nbytes), "<f4").astype(np.float64)
            if not 1 < len(values) <= MAX_EXPERTS or not ((values >= 0) & (values < 2**63)).all():
                raise DotsError(f"{path}: {tensor.name} has impossible counts")
            # up, gate and down of a layer are counted apart and agree: one of them is enough.
            heat.layers.setdefault(int(match[1]), values)
    if not heat.layers:
        raise DotsError(f"{path} has no counts of routed experts, so it gives no heat")
    return heat


def read_trace(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of a trace in order: the layer and its experts, int16 [n_tokens, n_used].

    Raises:
        DotsError: if the file ends inside a record.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while head := file.read(_RECORD.size):
            layer, n_used, n_tokens = _RECORD.unpack(head.ljust(_RECORD.size, b"\0"))
            nbytes = 2 * n_used * n_tokens
            if len(head) < _RECORD.size or nbytes > size - file.tell():
                raise DotsError(f"{path} ends inside a record, at byte {size}")
            yield layer, np.frombuffer(file.read(nbytes), "<i2").reshape(n_tokens, n_used)
