"""Where the numbers of a GGUF stand: counts, lengths, types, sizes, offsets, values.

Of a valid file only; independent of the package's own reader.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Layout:
    """Fields of one file.

    Attributes:
        numbers: (offset, bytes) of every number; of the elements of an array the first few.
        texts: (offset, bytes) of every key, name and string, without its length.
        entries: (start, end) of every key with its value, and of every tensor's info.
        header_nbytes: where the header ends, its padding included.
    """

    numbers: list[tuple[int, int]]
    texts: list[tuple[int, int]]
    entries: list[tuple[int, int]]
    header_nbytes: int


def layout(data: bytes) -> Layout:
    """Walk the header of a valid GGUF v3."""
    found = Layout([(4, 4), (8, 8), (16, 8)], [], [], 0)
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    at, alignment = 24, DEFAULT_ALIGNMENT
    for _ in range(n_keys):
        start = at
        value = _text(data, at, found)
        at = _value(data, value, found)
        found.entries.append((start, at))
        if data[start + 8 : value] == b"general.alignment":
            alignment = struct.unpack_from("<I", data, value + 4)[0]
    for _ in range(n_tensors):
        start = at
        at = _text(data, at, found)
        n_dims = struct.unpack_from("<I", data, at)[0]
        found.numbers.append((at, 4))
        found.numbers.extend((at + 4 + 8 * i, 8) for i in range(n_dims))
        at += 4 + 8 * n_dims
        found.numbers.extend([(at, 4), (at + 4, 8)])
        at += 12
        found.entries.append((start, at))
    end = -(-at // alignment) * alignment
    return Layout(found.numbers, found.texts, found.entries, end)


def _text(data: bytes, at: int, found: Layout) -> int:
    length = struct.unpack_from("<Q", data, at)[0]
    found.numbers.append((at, 8))
    found.texts.append((at + 8, length))
    return at + 8 + length


def _value(data: bytes, at: int, found: Layout) -> int:
    kind = struct.unpack_from("<I", data, at)[0]
    found.numbers.append((at, 4))
    at += 4
    if kind == STRING:
        return _text(data, at, found)
    if kind != ARRAY:
        found.numbers.append((at, SIZES[kind]))
        return at + SIZES[kind]
    element, count = struct.unpack_from("<IQ", data, at)
    found.numbers.extend([(at, 4), (at + 4, 8)])
    at += 12
    for i in range(count):
        if element == STRING:
            at = _text(data, at, found) if i < 3 else at + 8 + struct.unpack_from("<Q", data, at)[0]
        else:
            if i < 3:
                found.numbers.append((at, SIZES[element]))
            at += SIZES[element]
    return at
