"""A client of `dots worker` that sends what it likes: the protocol by hand, on a connection."""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from dotscli.engine.lib import ggml
from dotscli.engine.rpc.messages import (
    ALLOC,
    ALLOC_BUFFER,
    ALLOCATED,
    ANSWER,
    BUFFER_GET_BASE,
    CAPABILITIES,
    HELLO,
    POINTER,
    REQUEST,
    TENSOR_NBYTES,
)

TENSOR = struct.Struct("<QIQ4I4II16ii10QQQQ64si")  # rpc_tensor, ggml-rpc.cpp
COMPUTE = 16  # enum ggml_tensor_flag
assert TENSOR.size == TENSOR_NBYTES


class Client:
    """A connection that has greeted; used as a block it is closed at the end."""

    def __init__(self, address: str, *, greets: bool = True, timeout_s: float = 30) -> None:
        host, _, port = address.partition(":")
        self.connection = socket.create_connection((host, int(port)), timeout_s)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if greets:
            assert len(self.ask(HELLO, CAPABILITIES)) == 28

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()

    @property
    def name(self) -> str:
        host, port = self.connection.getsockname()
        return f"{host}:{port}"

    def send(self, command: int, data: bytes = b"", nbytes: int | None = None) -> None:
        """A request; `nbytes` is what it says about its length, if that is not the truth."""
        self.connection.sendall(REQUEST.pack(command, len(data) if nbytes is None else nbytes))
        self.connection.sendall(data)

    def ask(self, command: int, data: bytes = b"") -> bytes:
        """A request and the answer to it."""
        self.send(command, data)
        (nbytes,) = ANSWER.unpack(self.read(ANSWER.size))
        return self.read(nbytes)

    def read(self, nbytes: int) -> bytes:
        data = bytearray()
        while len(data) < nbytes:
            part = self.connection.recv(min(nbytes - len(data), 1 << 20))
            assert part, "the worker has hung up"
            data += part
        return bytes(data)

    def allocate(self, nbytes: int, device: int = 0) -> tuple[int, int]:
        """Handle of a buffer, 0 if there is none, and the address of its first byte."""
        buffer, _ = ALLOCATED.unpack(self.ask(ALLOC_BUFFER, ALLOC.pack(device, nbytes)))
        if not buffer:
            return 0, 0
        (base,) = POINTER.unpack(self.ask(BUFFER_GET_BASE, POINTER.pack(buffer)))
        return buffer, base

    def is_cut_off(self) -> bool:
        """Whether the worker hangs up."""
        try:
            return not self.connection.recv(1)
        except ConnectionError:
            return True


def tensor(
    buffer: int,
    data: int,
    ne: Sequence[int],
    *,
    nb: Sequence[int] | None = None,
    id_: int = 1,
    op: int = 0,
    sources: Sequence[int] = (),
) -> bytes:
    """An f32 tensor as a request describes it."""
    strides = nb or (4, 4 * ne[0], 4 * ne[0] * ne[1], 4 * ne[0] * ne[1] * ne[2])
    src = [*sources, *[0] * (10 - len(sources))]
    values = (id_, 0, buffer, *ne, *strides, op, *[0] * 16, COMPUTE, *src, 0, 0, data, b"", 1)
    return TENSOR.pack(*values)


def vector(buffer: int, data: int, n: int) -> bytes:
    """A tensor of `n` floats."""
    return tensor(buffer, data, (n, 1, 1, 1))


def graph(nodes: Sequence[int], tensors: Sequence[bytes], device: int = 0) -> bytes:
    """GRAPH_COMPUTE for these ids of nodes."""
    ids = struct.pack(f"<{len(nodes)}Q", *nodes)
    counts = struct.pack("<II", device, len(nodes)), struct.pack("<I", len(tensors))
    return counts[0] + ids + counts[1] + b"".join(tensors)


@functools.cache
def operation(name: str) -> int:
    """The number of an operation, e.g. SUM."""
    import ctypes

    op_name = ggml("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    return next(number for number in range(200) if op_name(number) == name.encode())
