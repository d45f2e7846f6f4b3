"""Reading the header of a GGUF that nobody vouches for: every number is checked before its use.

The format is GGUF v3 (github.com/ggml-org/ggml, docs/gguf.md): magic, version, two counts, the
metadata, the tensor infos, padding, the tensors. This is code of its own because it has to refuse
bad bytes politely and to be quick: gguf.GGUFReader takes seconds for a vocabulary of 152,064
tokens, and takes every length for true. Arrays stay bytes until somebody iterates over them.
What a dots1 file must hold is checked in `dotscli.models.check`; the tensors are never read.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.gguf_bytes import ByteReader, GgufArray, TooShortError, shown
from dotscli.models.gguf_type import ARRAY, SCALARS, STRING, TENSOR_TYPES, UINT32, type_name
from dotscli.models.regular_file import check_regular

__all__ = ["GgufArray", "GgufFile", "GgufTensor", "read_gguf", "read_one"]

VERSION = 3
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY = 1 << 10
MAX_NAME = 63  # GGML_MAX_NAME - 1
MAX_STRING = 1 << 24
MAX_ELEMENTS = 1 << 62
MAX_SHARDS = 999
MAX_HEADER_NBYTES = 64 << 20
_USUAL_NBYTES = 8 << 20  # what the header of dots.llm1 takes, a vocabulary of 152,064 tokens in it
DEFAULT_ALIGNMENT = 32
_OTHER_TOOLS = (
    "llama-quantize and llama-gguf-split ignore general.alignment, which is {} here; "
    "dots quantize can do what they do"
)
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its shape in GGUF order (columns first), ggml type, place in the data section.

    `offset` counts from the beginning of the data section of its shard.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int

    @property
    def type_name(self) -> str:
        """Q4_K, F32 ..."""
        return type_name(self.type_id)

    @property
    def is_stack(self) -> bool:
        """Whether it stacks the matrices of experts."""
        return len(self.shape) == 3

    @property
    def n_experts(self) -> int:
        """Number of expert matrices stacked in it; 1 for everything else."""
        return self.shape[2] if self.is_stack else 1

    @property
    def matrix_nbytes(self) -> int:
        """Bytes of one expert's matrix, or of all there is."""
        return self.nbytes // self.n_experts


@dataclass(frozen=True)
class GgufFile:
    """A checked header. `metadata` holds int, float, bool, str and `GgufArray` values.

    For a split model this is the first shard's header with the tensors of all shards, `shards`
    has the paths in order, and `types` the number of the GGUF value type of every key.
    """

    path: Path
    version: int
    metadata: dict[str, object]
    types: dict[str, int]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_nbytes: int
    shards: tuple[Path, ...]


def read_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF, and of all its shards if it is the first of several.

    Raises:
        DotsError: not a GGUF of version 3, or any count, length, type or offset that does not
            fit the file; it names the file and the byte where it was found.
    """
    first = read_one(path)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    paths = _shard_paths(path, count)
    others = [read_one(shard) for shard in paths[1:]]
    tensors = list(first.tensors)
    for number, shard in enumerate([first, *others]):
        if shard.metadata.get("split.no") != number or shard.types["split.no"] != 2:
            raise DotsError(
                f"{shard.path}: split.no is {shown(shard.metadata.get('split.no'))}, not {number}",
                hint="the shards are mixed up; download or quantize them again",
            )
    for shard in others:
        tensors += shard.tensors
    expected = first.metadata.get("split.tensors.count")
    names = {tensor.name for tensor in tensors}
    if expected != len(tensors) or len(names) != len(tensors):
        raise DotsError(
            f"{path}: the {count} shards hold {len(names)} different tensors in {len(tensors)}, "
            f"split.tensors.count says {expected}",
            hint="the shards do not belong together",
        )
    return GgufFile(
        path, first.version, first.metadata, first.types, tuple(tensors), first.data_offset,
        sum(shard.file_nbytes for shard in [first, *others]), tuple(paths),
    )  # fmt: skip


def _shard_paths(path: Path, count: int) -> list[Path]:
    match = _SHARD.match(path.name)
    if not match or int(match["count"]) != count or count > MAX_SHARDS:
        raise DotsError(
            f"{path}: split.count is {count}, the name does not end in -00001-of-{count:05d}.gguf",
            hint="llama.cpp finds the other shards by that name",
        )
    names = [f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    paths = [path.with_name(name) for name in names]
    if int(match["number"]) != 1:
        raise DotsError(f"{path} is not the first shard", hint=f"give {paths[0]}")
    return paths


def read_one(path: Path) -> GgufFile:
    """The header of one file, be it a part of a split model or not; errors as of `read_gguf`."""
    check_regular(path, hint="give a .gguf file")
    try:
        with path.open("rb") as file:  # not mapped: a file that is cut meanwhile would be a signal
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise DotsError(f"{path} is empty", hint="download or quantize it again")
            for nbytes in (_USUAL_NBYTES, MAX_HEADER_NBYTES):
                file.seek(0)
                with contextlib.suppress(TooShortError):
                    return _parse(ByteReader(file.read(nbytes), path, size), path)
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror or error}") from error
    raise DotsError(
        f"{path}: the header is longer than {MAX_HEADER_NBYTES >> 20} MiB, or was cut off just now",
        hint="the file is damaged; download or quantize it again",
    )


def _parse(reader: ByteReader, path: Path) -> GgufFile:
    version = _read_preamble(reader)
    n_tensors = reader.count("the number of tensors", MAX_TENSORS, at_least_bytes=24)
    n_keys = reader.count("the number of keys", MAX_KEYS, at_least_bytes=13)
    metadata: dict[str, object] = {}
    types: dict[str, int] = {}
    for number in range(n_keys):
        key = reader.name(f"key {number}", MAX_KEY)
        if key in metadata:
            raise reader.bad(f"the key {key} appears twice")
        types[key], metadata[key] = _read_value(reader, key)
    alignment = _alignment(reader, metadata, types)
    tensors = tuple(_read_tensors(reader, n_tensors, alignment))
    data_offset = -(-reader.position // alignment) * alignment
    for tensor in tensors:
        end = data_offset + tensor.offset + tensor.nbytes
        if end > reader.size:
            raise DotsError(
                f"{path}: {tensor.name} ends at byte {end} and the file at {reader.size}",
                hint="the file is truncated; download or quantize it again",
            )
    return GgufFile(path, version, metadata, types, tensors, data_offset, reader.size, (path,))


def _read_preamble(reader: ByteReader) -> int:
    magic = reader.take(4, "the magic")
    if magic != b"GGUF":
        raise DotsError(
            f"{reader.path} is not a GGUF: it begins with {magic!r}",
            hint="give a .gguf file; a checkpoint becomes one with: dots quantize CHECKPOINT",
        )
    version = reader.number(SCALARS[UINT32], "the version")
    if version != VERSION:
        swapped = int.from_bytes(struct.pack("<I", int(version)), "big")
        kind = " with the bytes of a big-endian machine" if swapped == VERSION else ""
        raise DotsError(
            f"{reader.path}: GGUF version {swapped if kind else version}{kind}, but only 3 works",
            hint="convert it again with a current converter",
        )
    return VERSION


def _read_value(reader: ByteReader, key: str) -> tuple[int, object]:
    kind = int(reader.number(SCALARS[UINT32], f"the type of {key}"))
    if kind == STRING:
        return kind, reader.text(key, MAX_STRING)
    if kind == ARRAY:
        return kind, reader.array(key)
    if kind not in SCALARS:
        raise reader.bad(f"{key} has the unknown value type {kind}")
    return kind, reader.scalar(kind, key)


def _alignment(reader: ByteReader, metadata: dict[str, object], types: dict[str, int]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    # ggml maps tensors in place and aborts below its own alignment of 32
    if (
        not isinstance(alignment, int)
        or types.get("general.alignment", UINT32) != UINT32
        or not DEFAULT_ALIGNMENT <= alignment <= 1 << 16
        or alignment & (alignment - 1)
    ):
        raise reader.bad(
            f"general.alignment is {shown(alignment)}, not a power of 2 from 32 to 65536"
        )
    return alignment


def _read_tensors(reader: ByteReader, count: int, alignment: int) -> Iterator[GgufTensor]:
    seen: set[str] = set()
    offset = 0
    for number in range(count):
        name = reader.name(f"the name of tensor {number}", MAX_NAME)
        if name in seen:
            raise reader.bad(f"the tensor {name} appears twice")
        seen.add(name)
        tensor = _read_tensor(reader, name)
        # llama.cpp wants them back to back, which also means that they cannot overlap
        if tensor.offset != offset:
            hint = _OTHER_TOOLS.format(alignment) if alignment != DEFAULT_ALIGNMENT else ""
            raise reader.bad(f"{name} has the offset {tensor.offset}, expected {offset}", hint)
        offset += -(-tensor.nbytes // alignment) * alignment
        yield tensor


def _read_tensor(reader: ByteReader, name: str) -> GgufTensor:
    n_dims = int(reader.number(SCALARS[UINT32], f"the dimensions of {name}"))
    if not 1 <= n_dims <= 4:
        raise reader.bad(f"{name} has {n_dims} dimensions, it must have 1 to 4")
    shape = []
    elements = 1
    for _ in range(n_dims):
        size = reader.count(f"a size of {name}", MAX_ELEMENTS)
        shape.append(size)
        elements *= size
    if elements == 0 or elements > MAX_ELEMENTS:
        raise reader.bad(f"{name} has the shape {shape}")
    type_id = int(reader.number(SCALARS[UINT32], f"the type of {name}"))
    kind = TENSOR_TYPES.get(type_id)
    if kind is None:
        raise reader.bad(f"{name} has the unknown tensor type {type_id}")
    if shape[0] % kind.block:
        raise reader.bad(
            f"{name} has {shape[0]} columns, {kind.name} needs a multiple of {kind.block}"
        )
    offset = reader.count(f"the offset of {name}", MAX_ELEMENTS)
    return GgufTensor(
        name, tuple(shape), type_id, offset, elements // kind.block * kind.block_nbytes
    )
