"""The messages of llama.cpp's RPC, version 7.0: what they are called and how long they may be.

A request is a command (u8), the number of bytes that follow (u64) and those bytes; an answer is a
number of bytes (u64) and those bytes; everything is little-endian and packed (ggml-rpc.cpp, enum
rpc_cmd and the structs below it). A tensor is described in 296 bytes. Lengths only: what the
numbers inside mean to llama.cpp is known for the few that decide about memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

VERSION = (7, 0)  # major, minor: both decide about the layout, the patch counts operations
TENSOR_NBYTES = 296
REQUEST = struct.Struct("<BQ")  # command, bytes that follow
ANSWER = struct.Struct("<Q")  # bytes that follow
WELCOME = struct.Struct("<QBBBx24x")  # bytes that follow; major, minor, patch; capabilities
COUNT = struct.Struct("<QI")  # bytes that follow, devices
CAPABILITIES = bytes(24)  # RPC_CONN_CAPS_SIZE: other transports than TCP, none here

ALLOC_BUFFER, FREE_BUFFER, BUFFER_CLEAR = 0, 4, 5
BUFFER_GET_BASE = 3
SET_TENSOR, SET_TENSOR_HASH, GET_TENSOR = 6, 7, 8
GRAPH_COMPUTE = 10
HELLO, DEVICE_COUNT = 14, 15
MEMSET_TENSOR = 17

ALLOC = struct.Struct("<IQ")  # device, bytes
ALLOCATED = struct.Struct("<QQ")  # address of the buffer, 0 if there is none; bytes
POINTER = struct.Struct("<Q")
TENSOR_BUFFER = struct.Struct("<12xQ")  # in a tensor: the address of its buffer
SET_HEAD = struct.Struct(f"<{TENSOR_NBYTES}sBQ")  # tensor, whether to cache it, offset
HASH_REQUEST = struct.Struct(f"<{TENSOR_NBYTES}sQQ")  # tensor, offset, hash
GET_REQUEST = struct.Struct(f"<{TENSOR_NBYTES}sQQ")  # tensor, offset, bytes
GRAPH_HEAD = struct.Struct("<II")  # device, nodes; then nodes * u64, u32 tensors, tensors


@dataclass(frozen=True)
class Command:
    """A kind of request; sizes in bytes.

    Args:
        head: what comes first and always; all of it unless `is_open`.
        is_open: more follows, as much as the request says.
        answer: what comes back; None where nothing does, GET_TENSOR's is in the request.
    """

    name: str
    head: int
    answer: int | None = None
    is_open: bool = False


COMMANDS = (
    Command("ALLOC_BUFFER", 12, 16),
    Command("GET_ALIGNMENT", 4, 8),
    Command("GET_MAX_SIZE", 4, 8),
    Command("BUFFER_GET_BASE", 8, 8),
    Command("FREE_BUFFER", 8),
    Command("BUFFER_CLEAR", 9),
    Command("SET_TENSOR", SET_HEAD.size, is_open=True),
    Command("SET_TENSOR_HASH", HASH_REQUEST.size, 1),
    Command("GET_TENSOR", GET_REQUEST.size, 0),
    Command("COPY_TENSOR", 2 * TENSOR_NBYTES, 1),
    Command("GRAPH_COMPUTE", GRAPH_HEAD.size, is_open=True),
    Command("GET_DEVICE_MEMORY", 4, 16),
    Command("INIT_TENSOR", TENSOR_NBYTES),
    Command("GET_ALLOC_SIZE", 4 + 11 * TENSOR_NBYTES, 8),
    Command("HELLO", len(CAPABILITIES), WELCOME.size - ANSWER.size),
    Command("DEVICE_COUNT", 0, 4),
    Command("GRAPH_RECOMPUTE", 4),
    Command("MEMSET_TENSOR", TENSOR_NBYTES + 17),
)
