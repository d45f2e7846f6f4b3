"""The devices that llama.cpp sees, and those of other machines through its RPC backend."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dotscli.engine.lib import ggml
from dotscli.errors import DotsError

POINTER = ctypes.c_void_p
TYPES = ("CPU", "GPU", "IGPU", "ACCEL", "META")  # enum ggml_backend_dev_type, ggml-backend.h
RPC_HINT = 'build llama-cpp-python with CMAKE_ARGS="-DGGML_RPC=on"'
CONNECT_S = 5.0
_added: set[str] = set()


@dataclass(frozen=True)
class Device:
    """One device of llama.cpp's registry; sizes in bytes. `handle` is its address in C."""

    name: str
    type: str
    description: str
    free_bytes: int
    total_bytes: int
    handle: int


def devices() -> list[Device]:
    """Every device, in llama.cpp's order of priority; the CPU comes last."""
    count = ggml("ggml_backend_dev_count", ctypes.c_size_t)
    get = ggml("ggml_backend_dev_get", POINTER, ctypes.c_size_t)
    return [_device(get(i)) for i in range(count())]


def has_gpu() -> bool:
    """Whether any device could hold layers: a GPU, also an integrated one or another machine's."""
    return any(device.type in ("GPU", "IGPU") for device in devices())


def buffer_types() -> dict[str, int]:
    """Names of the buffer types that a tensor can be sent to, with their addresses in C."""
    buffer_type = ggml("ggml_backend_dev_buffer_type", POINTER, POINTER)
    name = ggml("ggml_backend_buft_name", ctypes.c_char_p, POINTER)
    found = [buffer_type(device.handle) for device in devices()]
    return {name(address).decode(): address for address in found if address}


def has_rpc() -> bool:
    """Whether this build can use the devices of other machines."""
    return bool(_rpc_registry())


def _rpc_registry() -> Any:
    return ggml("ggml_backend_reg_by_name", POINTER, ctypes.c_char_p)(b"RPC")


def add_rpc(endpoints: Sequence[str]) -> None:
    """Makes the devices of the workers at HOST:PORT known to this process.

    Raises:
        DotsError: llama.cpp was built without RPC, or a worker does not answer.
    """
    for endpoint in endpoints:
        if endpoint in _added:
            continue
        _check_reachable(endpoint)
        registry = _rpc_registry()
        if not registry:
            raise DotsError("this build of llama.cpp has no RPC backend", hint=RPC_HINT)
        find = ggml("ggml_backend_reg_get_proc_address", POINTER, POINTER, ctypes.c_char_p)
        address = find(registry, b"ggml_backend_rpc_add_server")
        if not address:
            raise DotsError("this build's RPC backend cannot add workers", hint=RPC_HINT)
        add = ctypes.CFUNCTYPE(POINTER, ctypes.c_char_p)(address)
        server = add(endpoint.encode())
        if not server:
            raise DotsError(
                f"no llama.cpp worker of this version answers at {endpoint}",
                hint="start one there with: dots worker",
            )
        ggml("ggml_backend_register", None, POINTER)(server)
        _added.add(endpoint)


def _check_reachable(endpoint: str) -> None:
    import socket

    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise DotsError(f"--rpc is {endpoint!r}", hint="give HOST:PORT", exit_status=2)
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise DotsError(
            f"no worker answers at {endpoint}: {error}", hint="start one there with: dots worker"
        ) from error


def _device(handle: Any) -> Device:
    def text(function: str) -> str:
        value = ggml(function, ctypes.c_char_p, POINTER)(handle)
        return value.decode("utf-8", "replace") if value else ""

    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    sizes = ctypes.POINTER(ctypes.c_size_t)
    ggml("ggml_backend_dev_memory", None, POINTER, sizes, sizes)(
        handle, ctypes.byref(free), ctypes.byref(total)
    )
    kind = ggml("ggml_backend_dev_type", ctypes.c_int, POINTER)(handle)
    return Device(
        name=text("ggml_backend_dev_name"),
        type=TYPES[kind] if 0 <= kind < len(TYPES) else str(kind),
        description=text("ggml_backend_dev_description"),
        free_bytes=free.value,
        total_bytes=total.value,
        handle=handle,
    )
