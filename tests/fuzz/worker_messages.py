"""What a client of llama.cpp's RPC server says: messages, and a conversation that is in order.

Buffers get their addresses from the worker, so a conversation has marks in their place: the k-th
number that the worker has answered, plus an offset. Layouts are those of ggml-rpc.cpp.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

(ALLOC, ALIGNMENT, MAX_SIZE, BASE, FREE, CLEAR, SET, SET_HASH, GET, COPY, COMPUTE, MEMORY, INIT,
 ALLOC_SIZE, HELLO, COUNT, RECOMPUTE, MEMSET) = range(18)  # fmt: skip
SILENT = frozenset({FREE, CLEAR, SET, COMPUTE, INIT, RECOMPUTE, MEMSET})  # nothing comes back
AT_ONCE = frozenset({HELLO, COUNT})  # the worker knows the answer without llama.cpp
NUMBERS = {ALLOC: 2, BASE: 1}  # u64 of the answer that marks may stand for
HEAD = struct.Struct("<BQ")
TENSOR = struct.Struct("<QIQ4I4II16ii10QQQQ64si")
_MARK = re.compile(rb"(...)(.)\xf0\xb0\x57\x7e", re.DOTALL)
F32, ADD = 0, 2
COMPUTED = 16  # GGML_TENSOR_FLAG_COMPUTE: without it a node is passed over
NBYTES = 4096


def mark(k: int, offset: int = 0) -> int:
    """A u64 that stands for the k-th number of the worker, plus an offset."""
    return 0x7E57B0F0_00000000 | k << 24 | offset


def resolved(data: bytes, numbers: Sequence[int]) -> bytes:
    """The marks replaced by what the worker has said; those of nothing yet by 0."""

    def number(found: re.Match[bytes]) -> bytes:
        offset, k = int.from_bytes(found[1], "little"), found[2][0]
        value = numbers[k] + offset if k < len(numbers) else 0
        return struct.pack("<Q", value & (2**64 - 1))

    return _MARK.sub(number, data)


def tensor(
    id_: int,
    offset: int = 0,
    n: int = 64,
    op: int = 0,
    sources: Sequence[int] = (),
    buffer: int = 0,
) -> bytes:
    """A row of n float32 in the buffer that was made as the `buffer`-th."""
    src = [*sources, *[0] * 10][:10]
    first = 3 * buffer  # a buffer gives three numbers: address, size, base
    return TENSOR.pack(
        id_, F32, mark(first), n, 1, 1, 1, 4, 4 * n, 4 * n, 4 * n, op, *[0] * 16, COMPUTED, *src,
        0, 0, mark(first + 2, offset), b"t%d" % id_, 1,
    )  # fmt: skip


def graph(nodes: Sequence[int], tensors: Sequence[bytes], device: int = 0) -> bytes:
    """Nodes by id and all tensors that they are made of."""
    head = struct.pack(f"<II{len(nodes)}QI", device, len(nodes), *nodes, len(tensors))
    return head + b"".join(tensors)


def conversation(repeats: int = 1) -> list[tuple[int, bytes]]:
    """Two buffers; tensors written, read, copied, added up, several times."""
    a, b = tensor(1), tensor(2, 256)
    total = tensor(3, 512, op=ADD, sources=(1, 2))
    u64 = struct.Struct("<Q").pack
    again = [
        (COUNT, b""),
        (ALIGNMENT, struct.pack("<I", 0)),
        (MAX_SIZE, struct.pack("<I", 0)),
        (MEMORY, struct.pack("<I", 0)),
        (ALLOC_SIZE, struct.pack("<I", 0) + a + tensor(0) * 10),
        (ALLOC, struct.pack("<IQ", 0, NBYTES)),
        (BASE, u64(mark(0))),
        (ALLOC, struct.pack("<IQ", 0, NBYTES)),
        (BASE, u64(mark(3))),
        (CLEAR, u64(mark(0)) + b"\0"),
        (INIT, a),
        (SET, a + b"\0" + u64(0) + bytes(256)),
        (SET_HASH, b + u64(0) + u64(7)),
        (MEMSET, b + u64(0) + u64(256) + b"\1"),
        (COPY, a + tensor(4, 0, buffer=1)),
        (COMPUTE, graph((3,), (a, b, total))),
        (RECOMPUTE, struct.pack("<I", 0)),
        (GET, total + u64(0) + u64(256)),
    ]
    return [(HELLO, bytes(24)), *again * repeats, (FREE, u64(mark(0)))]


def encoded(messages: Sequence[tuple[int, bytes]]) -> bytes:
    """As they go over the wire, marks included."""
    return b"".join(HEAD.pack(cmd, len(payload)) + payload for cmd, payload in messages)


def divided(data: bytes) -> list[bytes]:
    """A stream cut into messages as the worker would; what is left over is the last one."""
    pieces, at = [], 0
    while at + HEAD.size <= len(data):
        end = at + HEAD.size + HEAD.unpack_from(data, at)[1]
        if end > len(data):
            break
        pieces.append(data[at:end])
        at = end
    return [*pieces, data[at:]] if at < len(data) else pieces
