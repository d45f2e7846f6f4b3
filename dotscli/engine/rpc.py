"""Devices of other machines, through llama.cpp's RPC backend.

llama.cpp aborts the process when the other side is no worker or one of another version, and waits
for ever when it says nothing. So the greeting is exchanged here first, with a time limit: command
14, 24 bytes of capabilities out, version and capabilities back (ggml-rpc.cpp, RPC_CMD_HELLO).
A worker that goes away later still takes the process with it.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dotscli.engine.lib import ggml, llama
from dotscli.errors import DotsError

POINTER = ctypes.c_void_p
BUILD_HINT = 'build llama-cpp-python with CMAKE_ARGS="-DGGML_RPC=on"'
START_HINT = "start one there with: dots worker"
TIMEOUT_S = 5.0
HELLO, CAPABILITIES = 14, 24  # RPC_CMD_HELLO, RPC_CONN_CAPS_SIZE
_ANSWER = struct.Struct(f"<QBBBB{CAPABILITIES}s")  # size, major, minor, patch, -, capabilities
_added: set[str] = set()


def has_rpc() -> bool:
    """Whether this build can use the devices of other machines."""
    return bool(_registry())


def add_rpc(endpoints: Sequence[str]) -> None:
    """Makes the devices of the workers at HOST:PORT known to this process.

    Raises:
        DotsError: llama.cpp was built without RPC, or no worker that fits answers.
    """
    for endpoint in endpoints:
        if endpoint in _added:
            continue
        _greet(endpoint)
        registry = _registry()
        if not registry:
            raise DotsError("this build of llama.cpp has no RPC backend", hint=BUILD_HINT)
        find = ggml("ggml_backend_reg_get_proc_address", POINTER, POINTER, ctypes.c_char_p)
        address = find(registry, b"ggml_backend_rpc_add_server")
        if not address:
            raise DotsError("this build's RPC backend cannot add workers", hint=BUILD_HINT)
        server = ctypes.CFUNCTYPE(POINTER, ctypes.c_char_p)(address)(endpoint.encode())
        if not server:
            raise DotsError(f"the worker at {endpoint} offers no devices", hint=START_HINT)
        ggml("ggml_backend_register", None, POINTER)(server)
        _added.add(endpoint)


def _registry() -> Any:
    return ggml("ggml_backend_reg_by_name", POINTER, ctypes.c_char_p)(b"RPC")


def _greet(endpoint: str) -> None:
    """Sees that a worker with this build's protocol answers there."""
    import socket

    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise DotsError(f"--rpc is {endpoint!r}", hint="give HOST:PORT", exit_status=2)
    try:
        with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
            connection.sendall(struct.pack("<BQ", HELLO, CAPABILITIES) + bytes(CAPABILITIES))
            answer = b""
            while len(answer) < _ANSWER.size and (part := connection.recv(_ANSWER.size)):
                answer += part
    except OSError as error:
        raise DotsError(f"no worker answers at {endpoint}: {error}", hint=START_HINT) from error
    if len(answer) != _ANSWER.size or _ANSWER.unpack(answer)[0] != _ANSWER.size - 8:
        raise DotsError(f"what answers at {endpoint} is no llama.cpp worker", hint=START_HINT)
    major, ours = answer[8], _protocol()
    if ours is not None and major != ours:
        raise DotsError(
            f"the worker at {endpoint} speaks version {major} of the RPC protocol, not {ours}",
            hint="install the same version of llama-cpp-python on both machines",
        )


def _protocol() -> int | None:
    """Version of this build's protocol, which only its installed header tells."""
    header = Path(llama().__file__).parents[1] / "include" / "ggml-rpc.h"
    try:
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"#define RPC_PROTO_MAJOR_VERSION\s+(\d+)", text)
    return int(found[1]) if found else None
