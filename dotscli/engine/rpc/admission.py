"""What one client has asked of a worker, and whether it may ask for more.

Every request passes here before llama.cpp sees it. What is judged is what a request costs the
machine: lengths, and memory that is taken. Whether a tensor or a graph makes sense is not judged:
llama.cpp's process may die of one, and does so for this client alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dotscli.engine.available import available_memory
from dotscli.engine.rpc.messages import (
    ALLOC,
    ALLOC_BUFFER,
    ALLOCATED,
    ANSWER,
    BUFFER_CLEAR,
    BUFFER_GET_BASE,
    COMMANDS,
    FREE_BUFFER,
    GET_REQUEST,
    GET_TENSOR,
    GRAPH_COMPUTE,
    GRAPH_HEAD,
    MEMSET_TENSOR,
    POINTER,
    SET_TENSOR,
    SET_TENSOR_HASH,
    TENSOR_BUFFER,
    TENSOR_NBYTES,
    Command,
)
from dotscli.terminal.text import format_bytes

MAX_GRAPH_NBYTES = 64 << 20  # 220,000 tensors; a layer has about 100
MAX_BUFFERS = 10_000  # each costs a few hundred bytes beside what it holds
SMALL_NBYTES = 64 << 20  # of one message: no need to look how much memory is free
NO_BUFFER = ANSWER.pack(ALLOCATED.size) + ALLOCATED.pack(0, 0)


class RefusedError(Exception):
    """A request that llama.cpp doesn't get to see; what was sent, as the rest of "sent ..."."""


class Account:
    """The buffers of one client.

    Args:
        capacities: bytes that it may allocate on each device.
    """

    def __init__(self, capacities: Sequence[int]) -> None:
        self._free = list(capacities)
        self._buffers: dict[int, tuple[int, int]] = {}  # address: device, bytes

    def admit(self, number: int, nbytes: int, head: bytes) -> bytes | None:
        """Whether a request may go on to llama.cpp.

        Args:
            number: of a command.
            nbytes: length of the request, which `check_length` has seen.
            head: its beginning, as long as the command's head.

        Returns:
            An answer in place of llama.cpp's, or None: let it answer.

        Raises:
            RefusedError: it may not.
        """
        if number == ALLOC_BUFFER:
            device, wanted = ALLOC.unpack(head)
            if device >= len(self._free):
                raise RefusedError(f"ALLOC_BUFFER for device {device} of {len(self._free)}")
            if wanted > self._free[device] or len(self._buffers) >= MAX_BUFFERS:
                return NO_BUFFER  # llama.cpp's answer where there is no memory
        elif number in (BUFFER_GET_BASE, FREE_BUFFER, BUFFER_CLEAR):
            (buffer,) = POINTER.unpack_from(head)
            self._check_buffer(number, buffer, 0)
            if number == FREE_BUFFER:
                device, held = self._buffers.pop(buffer)
                self._free[device] += held
        elif number in (SET_TENSOR, SET_TENSOR_HASH, GET_TENSOR, MEMSET_TENSOR):
            (buffer,) = TENSOR_BUFFER.unpack_from(head)
            moved = nbytes - len(head)
            if number == GET_TENSOR:
                moved = GET_REQUEST.unpack(head)[2]
            self._check_buffer(number, buffer, moved)
            _check_memory(number, moved)
        elif number == GRAPH_COMPUTE:
            _check_graph(nbytes, head)
        return None

    def allocated(self, request: bytes, answer: bytes) -> None:
        """Enters the buffer that an ALLOC_BUFFER has made, if it has."""
        device, wanted = ALLOC.unpack(request)
        buffer, held = ALLOCATED.unpack(answer)
        if buffer and buffer not in self._buffers:
            self._buffers[buffer] = device, max(wanted, held)
            self._free[device] -= max(wanted, held)

    def _check_buffer(self, number: int, buffer: int, moved: int) -> None:
        what = COMMANDS[number].name + (f" of {sized(moved)}" if moved else "")
        if buffer not in self._buffers:
            raise RefusedError(f"{what} for a buffer that it doesn't have")
        if moved > self._buffers[buffer][1]:
            raise RefusedError(f"{what} for a buffer of {sized(self._buffers[buffer][1])}")


def check_length(number: int, nbytes: int) -> Command:
    """The command of a request that is as long as such a request can be.

    Raises:
        RefusedError: it isn't, or there is no such command.
    """
    if number >= len(COMMANDS):
        raise RefusedError(f"unknown command {number}")
    command = COMMANDS[number]
    if nbytes < command.head or (nbytes > command.head and not command.is_open):
        raise RefusedError(f"{command.name} of {sized(nbytes)} instead of {command.head}")
    return command


def sized(nbytes: int) -> str:
    """A length that somebody else has named, whatever it is."""
    return format_bytes(nbytes) if nbytes < 1 << 50 else f"2^{math.log2(nbytes):.0f} bytes"


def _check_graph(nbytes: int, head: bytes) -> None:
    """llama.cpp takes memory for every node, the first of which cost 8 bytes of a message."""
    n_nodes = GRAPH_HEAD.unpack(head)[1]
    tensors = nbytes - GRAPH_HEAD.size - 8 * n_nodes - 4
    if nbytes > MAX_GRAPH_NBYTES:
        raise RefusedError(f"GRAPH_COMPUTE of {sized(nbytes)}: more than any model's")
    if tensors < 0 or tensors % TENSOR_NBYTES or n_nodes > tensors // TENSOR_NBYTES:
        raise RefusedError(f"GRAPH_COMPUTE of {sized(nbytes)} with {n_nodes} nodes")


def _check_memory(number: int, nbytes: int) -> None:
    """llama.cpp holds all of a tensor once more while it is on its way."""
    if nbytes <= SMALL_NBYTES:
        return
    available = available_memory().nbytes
    if nbytes > available:
        raise RefusedError(
            f"{COMMANDS[number].name} of {sized(nbytes)}, of which {sized(available)} are free here"
        )
