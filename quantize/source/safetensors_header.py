"""Parses and checks the header of one safetensors file, before any of its numbers is used.

The format: u64 header length (little-endian), JSON {name: {dtype, shape, data_offsets}}, then the
data, which the tensors cover without gap or overlap up to the last byte
(https://github.com/huggingface/safetensors). It does not know what the tensors are for.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from dotscli.errors import DotsError
from dotscli.models.json_file import Values, parse_object, shown
from dotscli.models.regular_file import check_regular

# The safetensors library allows 100 MB; all 24,231 tensors of dots.llm1 in one header are 3 MB.
MAX_HEADER_NBYTES = 32 << 20
MAX_NAME = 512
MAX_NBYTES = 1 << 62

DTYPE_NBITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: dtype as safetensors writes it, shape, and its bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class ShardTensor:
    """Where one tensor lies: its file and the checked entry of that file's header."""

    path: Path
    entry: Entry


def read_header(path: Path) -> tuple[Entry, ...]:
    """Read and check the header of one file.

    Returns:
        The tensors in the order of their bytes; `start` counts from the start of the file.

    Raises:
        DotsError: the file is cut, longer than its tensors, or its header is anything but what the
            format says; the message names the file, the tensor and the value.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            file_nbytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise DotsError(f"{path} is truncated: {len(prefix)} bytes, no safetensors header")
            header_nbytes = struct.unpack("<Q", prefix)[0]
            if header_nbytes > MAX_HEADER_NBYTES:
                raise DotsError(
                    f"{path}: the header says it is {header_nbytes} bytes long, "
                    f"more than the {MAX_HEADER_NBYTES} that dots reads",
                    hint="it may not be a safetensors file",
                )
            if header_nbytes > file_nbytes - 8:
                raise DotsError(
                    f"{path} is truncated: header of {header_nbytes} bytes, file of {file_nbytes}",
                    hint="download the shard again",
                )
            text = file.read(header_nbytes)
    except OSError as error:
        raise DotsError(f"{path} can't be read: {error.strerror}") from None
    return parse_header(text, file_nbytes, path)


def parse_header(text: bytes, file_nbytes: int, path: Path) -> tuple[Entry, ...]:
    """Check a header's text against the size of its file; see `read_header`."""
    header = parse_object(text, f"{path}: the header")
    data_start = 8 + len(text)
    entries = [
        _entry(name, value, path, data_start)
        for name, value in header.items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: (entry.start, entry.nbytes))
    end = data_start
    for entry in entries:
        if entry.start != end:
            relation = "overlaps the tensor" if entry.start < end else "leaves a gap to the tensor"
            raise DotsError(
                f"{path}: {entry.name} starts at byte {entry.start} and {relation} before it, "
                f"which ends at {end}"
            )
        end += entry.nbytes
    if end > file_nbytes:
        raise DotsError(
            f"{path} is truncated: its tensors end at byte {end}, the file at {file_nbytes}",
            hint="download the shard again",
        )
    if end < file_nbytes:
        raise DotsError(f"{path} holds {file_nbytes - end} bytes that belong to no tensor")
    return tuple(entries)


def _entry(name: str, value: object, path: Path, data_start: int) -> Entry:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise DotsError(f"{path}: the header has a tensor named {shown(name)}")
    if not isinstance(value, dict):
        raise DotsError(f"{path}: the header has {shown(value)} for {name}")
    fields = Values(value, f"{path}: {name}")
    dtype = fields.text("dtype")
    if dtype not in DTYPE_NBITS:
        raise fields.wrong("dtype", "a dtype of safetensors")
    shape = _sizes(fields, "shape")
    if len(shape) > 8:
        raise fields.wrong("shape", "at most 8 dimensions")
    offsets = _sizes(fields, "data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fields.wrong("data_offsets", "a start and an end")
    n_bits = DTYPE_NBITS[dtype]
    for size in shape:
        n_bits *= size
    nbytes = offsets[1] - offsets[0]
    if n_bits != 8 * nbytes:
        raise DotsError(
            f"{path}: {name} has {nbytes} bytes, its shape {list(shape)} in {dtype} needs "
            f"{n_bits // 8}"
        )
    return Entry(name, dtype, shape, data_start + offsets[0], nbytes)


def _sizes(fields: Values, key: str) -> tuple[int, ...]:
    values = fields.array(key)
    sizes: list[int] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NBYTES:
            raise fields.wrong(key, "a list of whole numbers from 0 up")
        sizes.append(value)
    return tuple(sizes)
