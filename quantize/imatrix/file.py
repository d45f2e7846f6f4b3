"""The files that importance matrices are kept in: llama.cpp's GGUF form, read and written, and the
older .dat form, read.

A GGUF holds, per weight tensor, `<name>.in_sum2` (matrices, columns): squared activations summed
per column, and `<name>.counts`: the tokens each matrix saw. A .dat file (save_imatrix_legacy in
llama.cpp's tools/imatrix/imatrix.cpp) holds the quotients, times the number of chunks, which is its
only count: i32 entries; for each: i32 length and name, i32 chunks, i32 values, float32 values; then
perhaps i32 chunks and a string, the text's name. Both are little-endian and come from anywhere, so
nothing in them is taken on trust. What the values are for is not known here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dotscli.errors import DotsError
from dotscli.models.gguf_bytes import ByteReader, GgufArray, shown
from dotscli.models.gguf_file import (
    DEFAULT_ALIGNMENT,
    MAX_NAME,
    MAX_TENSORS,
    GgufFile,
    GgufTensor,
    read_gguf,
)
from dotscli.models.gguf_type import INT32, SCALARS
from dotscli.models.metadata import KeyValue
from dotscli.models.regular_file import check_regular
from dotscli.quantize.output.gguf_header import header, tensor_info
from dotscli.quantize.output.whole_file import write_whole
from dotscli.quantize.plan import aligned
from dotscli.quantize.types import F32

SUMS, COUNTS = ".in_sum2", ".counts"
_MAX_NBYTES = 1 << 30  # that of dots.llm1 has 300 MB
_MAX_TEXT = 1 << 16

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """The measurements for one tensor: sums (matrices, columns), counts (matrices,)."""

    sums: Floats
    counts: Floats


@dataclass(frozen=True)
class ImatrixFile:
    """What one file holds.

    Attributes:
        entries: by the name of the weight tensor.
        datasets: the names of the texts it was collected on.
        n_chunks: how many chunks of them; chunk_size: tokens in each, 0 where it isn't said.
        is_legacy: whether it is a .dat file, whose counts are chunks and not tokens.
        keys: all of a GGUF's metadata.
    """

    entries: dict[str, Entry]
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int = 0
    is_legacy: bool = False
    keys: Mapping[str, object] | None = None


def read_imatrix(path: Path) -> ImatrixFile:
    """Read and check an importance matrix of either form.

    Raises:
        DotsError: it is none, it ends early, has sums without counts or another type than F32, or
            values that are negative or not finite.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            nbytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror or error}") from None
    if nbytes > _MAX_NBYTES:
        raise DotsError(f"{path} has {nbytes} bytes, too many for an importance matrix")
    found = _read_gguf_form(path) if magic == b"GGUF" else _read_legacy(path)
    for name, entry in found.entries.items():
        for values in (entry.sums, entry.counts):
            if not np.isfinite(values).all() or (values < 0).any():
                raise DotsError(f"{path}: {name} holds values that are negative or not finite")
    return found


def write_imatrix(path: Path, content: ImatrixFile, more_keys: Sequence[KeyValue] = ()) -> None:
    """Write the GGUF form as llama-imatrix does, whole or not at all, replacing what is there.

    The order of keys and tensors, and a last dimension of 1 left out, are those of llama-imatrix.

    Raises:
        DotsError: the disk is full, or another failure of the file system.
    """
    keys = [
        KeyValue("general.type", "str", "imatrix"),
        KeyValue("imatrix.datasets", "arr[str]", content.datasets),
        KeyValue("imatrix.chunk_count", "u32", content.n_chunks),
        KeyValue("imatrix.chunk_size", "u32", content.chunk_size),
        *more_keys,
    ]
    infos, data, offset = [], [], 0
    for name, entry in sorted(content.entries.items()):
        for suffix, values in ((SUMS, entry.sums), (COUNTS, entry.counts[:, None])):
            sizes = values.shape[:0:-1] if len(values) == 1 else values.shape[::-1]
            infos.append(tensor_info(name + suffix, sizes, F32.id, offset))
            raw = np.ascontiguousarray(values, "<f4")
            data.append(raw)
            offset += aligned(raw.nbytes, DEFAULT_ALIGNMENT)
    write_whole(path, [header(keys, infos), *(_padded(raw) for raw in data)])


def _padded(values: Floats) -> bytes:
    raw = values.tobytes()
    return raw + bytes(aligned(len(raw), DEFAULT_ALIGNMENT) - len(raw))


def _read_gguf_form(path: Path) -> ImatrixFile:
    gguf = read_gguf(path)
    kind = gguf.metadata.get("general.type")
    if kind != "imatrix":
        raise DotsError(
            f"{path}: general.type is {shown(kind)}, expected 'imatrix'",
            hint="make one with: dots calibrate MODEL -f TEXT",
        )
    if len(gguf.shards) > 1:
        raise DotsError(f"{path} is one of {len(gguf.shards)} parts, expected one file")
    tensors = {tensor.name: tensor for tensor in gguf.tensors}
    entries: dict[str, Entry] = {}
    for name, tensor in tensors.items():
        base = name.removesuffix(SUMS)
        if base == name:
            if name.endswith(COUNTS) and name.removesuffix(COUNTS) + SUMS not in tensors:
                raise DotsError(f"{path}: {name} has no {SUMS} beside it")
            continue
        counts = tensors.get(base + COUNTS)
        if counts is None:
            raise DotsError(f"{path}: {name} has no {COUNTS} beside it")
        entries[base] = _entry(gguf, tensor, counts)
    n_chunks = gguf.metadata.get("imatrix.chunk_count")
    chunk_size = gguf.metadata.get("imatrix.chunk_size")
    datasets = gguf.metadata.get("imatrix.datasets")
    return ImatrixFile(
        entries,
        tuple(str(name) for name in datasets) if isinstance(datasets, GgufArray) else (),
        n_chunks if isinstance(n_chunks, int) else 0,
        chunk_size if isinstance(chunk_size, int) else 0,
        keys=gguf.metadata,
    )


def _entry(gguf: GgufFile, sums: GgufTensor, counts: GgufTensor) -> Entry:
    entry = Entry(_tensor(gguf, sums), _tensor(gguf, counts).reshape(-1))
    if entry.sums.shape[0] != entry.counts.size:
        raise DotsError(
            f"{gguf.path}: {sums.name} is {entry.sums.shape[0]} x {entry.sums.shape[1]}, "
            f"with {entry.counts.size} counts"
        )
    # llama.cpp rounds counts to whole tokens, halves away from zero.
    return Entry(entry.sums, np.floor(entry.counts + np.float32(0.5)))


def _tensor(gguf: GgufFile, tensor: GgufTensor) -> Floats:
    if tensor.type_id != F32.id or not 1 <= len(tensor.shape) <= 2:
        raise DotsError(f"{gguf.path}: {tensor.name} is not an F32 matrix")
    try:
        with gguf.path.open("rb") as file:
            file.seek(gguf.data_offset + tensor.offset)
            data = file.read(tensor.nbytes)
    except OSError as error:
        raise DotsError(f"{gguf.path} can't be read: {error.strerror or error}") from None
    if len(data) < tensor.nbytes:
        raise DotsError(f"{gguf.path} shrank while it was being read")
    values: Floats = np.frombuffer(data, "<f4").reshape(-1, tensor.shape[0])
    return values


def _read_legacy(path: Path) -> ImatrixFile:
    with path.open("rb") as file:
        data = file.read(_MAX_NBYTES)
    if not data:
        raise DotsError(f"{path} is empty")
    reader = ByteReader(data, path)
    n_entries = _count(reader, "the number of entries", 1, MAX_TENSORS)
    entries: dict[str, Entry] = {}
    for number in range(n_entries):
        name = _text(reader, f"the name of entry {number}", MAX_NAME)
        if name in entries:
            raise reader.bad(f"the entry {name} appears twice")
        n_chunks = _count(reader, f"the chunks of {name}", 0, 1 << 31)
        n_values = _count(reader, f"the values of {name}", 1, 1 << 31)
        start = reader.position
        if n_values > (reader.size - start) // 4:
            raise reader.bad(f"the file ends at byte {reader.size}, within {name}")
        reader.position += 4 * n_values
        # Without a count the values are quotients already, as llama-quantize reads them.
        counts = np.array([max(n_chunks, 1)], np.float32)
        sums = np.frombuffer(data, "<f4", n_values, start).reshape(1, -1)
        entries[name] = Entry(sums, counts)
    entries = _by_expert(entries)
    if reader.position == reader.size:
        return ImatrixFile(entries, (), 0, is_legacy=True)
    n_chunks = _count(reader, "the number of chunks", 0, 1 << 31)
    dataset = _text(reader, "the name of the text", _MAX_TEXT)
    return ImatrixFile(entries, (dataset,) if dataset else (), n_chunks, is_legacy=True)


def _by_expert(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Stacks of experts as such: the form has only rows of values, so their number is inferred.

    Router and gate read the same input: gate has as many matrices as it has the router's columns.
    Where that can't be, entries stay as they are and fit no tensor.
    """
    found = dict(entries)
    for name, entry in entries.items():
        layer, _, rest = name.rpartition(".ffn_")
        router, gate = (entries.get(f"{layer}.ffn_{m}.weight") for m in ("gate_inp", "gate_exps"))
        if not rest.endswith("_exps.weight") or router is None or gate is None:
            continue
        n_experts = max(gate.sums.size // router.sums.size, 1)
        if entry.sums.size % n_experts == 0:
            counts = np.repeat(entry.counts, n_experts)
            found[name] = Entry(entry.sums.reshape(n_experts, -1), counts)
    return found


def _count(reader: ByteReader, what: str, least: int, most: int) -> int:
    value = int(reader.number(SCALARS[INT32], what))
    if not least <= value <= most:
        raise DotsError(
            f"{reader.path} is not an importance matrix: {what} is {value} (before byte "
            f"{reader.position})",
            hint="make one with: dots calibrate MODEL -f TEXT",
        )
    return value


def _text(reader: ByteReader, what: str, longest: int) -> str:
    length = _count(reader, f"the length of {what}", 0, longest)
    return reader.take(length, what).decode("utf-8", "replace")
