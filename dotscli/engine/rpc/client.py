"""Devices of other machines, through llama.cpp's RPC backend.

A worker has one client at a time, so the connection is kept from the first moment to the end of the
process. One that is lost takes the process with it, since llama.cpp aborts: `lost_worker` says
which it was.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

from dotscli.engine.lib import ggml
from dotscli.engine.rpc.connections import SILENCE_S, Address, hang_up, is_connected, limit_waits
from dotscli.engine.rpc.greeting import START_HINT, greet, parse_address
from dotscli.errors import DotsError

POINTER = ctypes.c_void_p
BUILD_HINT = (
    'rebuild it: CMAKE_ARGS="-DGGML_RPC=on" pip install --force-reinstall --no-cache-dir --no-deps '
    "llama-cpp-python"
)
MAX_ALIGNMENT = 1 << 20  # bytes; GPUs want 128 to 512
MAX_MEMORY = 1 << 50  # bytes of one device
ADDING_S = 30.0  # a few questions that cost a worker nothing
_workers: dict[str, Address] = {}
_silent: set[str] = set()  # those that were hung up on


def has_rpc() -> bool:
    """Whether this build can use the devices of other machines, and offer its own."""
    return bool(_registry())


def rpc_function(name: str) -> int:
    """The address of a function of the RPC backend.

    Raises:
        DotsError: llama.cpp was built without it.
    """
    registry = _registry()
    find = ggml("ggml_backend_reg_get_proc_address", POINTER, POINTER, ctypes.c_char_p)
    address = find(registry, name.encode()) if registry else None
    if not address:
        raise DotsError("llama-cpp-python was built without RPC", hint=BUILD_HINT)
    return int(address)


def add_rpc(endpoints: Sequence[str]) -> None:
    """Makes the devices of the workers at HOST:PORT known to this process.

    Raises:
        DotsError: llama.cpp was built without RPC, an address is none, or no worker that fits
            answers there.
    """
    new = [endpoint for endpoint in dict.fromkeys(endpoints) if endpoint not in _workers]
    for endpoint in new:
        parse_address(endpoint)  # all of them, before the first waits for an answer
    for endpoint in new:
        add_server = rpc_function("ggml_backend_rpc_add_server")
        address = greet(endpoint)
        _workers[endpoint] = address  # from here on llama.cpp may lose it
        too_long = threading.Timer(ADDING_S, _hang_up, [endpoint])
        too_long.daemon = True
        too_long.start()
        try:
            _add(endpoint, ctypes.CFUNCTYPE(POINTER, ctypes.c_char_p)(add_server))
        except DotsError:
            del _workers[endpoint]
            raise
        finally:
            too_long.cancel()


def any_lost(endpoints: Sequence[str]) -> bool:
    """Whether the connection to one of these workers, once added, has ended."""
    return not all(is_connected(_workers[endpoint]) for endpoint in endpoints)


def lost_worker() -> DotsError:
    """What to say when llama.cpp has given up on a worker, or waits for one in vain."""
    gone = [
        endpoint
        for endpoint, address in _workers.items()
        if endpoint not in _silent and not is_connected(address)
    ]
    who = "the worker" if len(gone or _workers) == 1 else "one of the workers"
    names = ", ".join(gone or _workers)
    what = "is gone" if gone else "does not answer, or not like a worker"
    return DotsError(
        f"{who} at {names} {what}", hint=f"check that machine for the reason; {START_HINT}"
    )


def _add(endpoint: str, add_server: Any) -> None:
    address = _workers[endpoint]
    server = add_server(_numeric(address))
    if not server:
        raise DotsError(f"the worker at {endpoint} offers no devices", hint=START_HINT)
    _keep_connection(server)
    limit_waits(address, silence_s=SILENCE_S)
    _check_devices(endpoint, server)
    ggml("ggml_backend_register", None, POINTER)(server)


def _keep_connection(server: Any) -> None:
    """A backend that nobody uses: llama.cpp hangs up when the last one is gone."""
    device = ggml("ggml_backend_reg_dev_get", POINTER, POINTER, ctypes.c_size_t)(server, 0)
    ggml("ggml_backend_dev_init", POINTER, POINTER, ctypes.c_char_p)(device, None)


def _hang_up(endpoint: str) -> None:
    """llama.cpp waits for ever for the first answers; it notices the end of a connection."""
    _silent.add(endpoint)
    hang_up(_workers[endpoint])


def _check_devices(endpoint: str, server: Any) -> None:
    """That numbers of a worker's devices are possible, before llama.cpp divides a model by them.

    The alignment is asked for once and then kept by llama.cpp; memory may be another next time,
    and all that comes later is believed.

    Raises:
        DotsError: one is not.
    """
    count = ggml("ggml_backend_reg_dev_count", ctypes.c_size_t, POINTER)
    get = ggml("ggml_backend_reg_dev_get", POINTER, POINTER, ctypes.c_size_t)
    buffer_type = ggml("ggml_backend_dev_buffer_type", POINTER, POINTER)
    alignment = ggml("ggml_backend_buft_get_alignment", ctypes.c_size_t, POINTER)
    sizes = ctypes.POINTER(ctypes.c_size_t)
    memory = ggml("ggml_backend_dev_memory", None, POINTER, sizes, sizes)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    for number in range(count(server)):
        device = get(server, number)
        aligned = alignment(buffer_type(device))
        if not 0 < aligned <= MAX_ALIGNMENT or aligned & (aligned - 1):
            raise _impossible(endpoint, number, f"wants tensors at multiples of {aligned} bytes")
        memory(device, ctypes.byref(free), ctypes.byref(total))
        if free.value > total.value or total.value > MAX_MEMORY:
            what = f"reports {free.value} of {total.value} bytes of memory as free"
            raise _impossible(endpoint, number, what)


def _impossible(endpoint: str, device: int, what: str) -> DotsError:
    return DotsError(
        f"device {device} of the worker at {endpoint} {what}, which is impossible", hint=START_HINT
    )


def _numeric(address: Address) -> bytes:
    return f"{address[0]}:{address[1]}".encode()


def _registry() -> Any:
    return ggml("ggml_backend_reg_by_name", POINTER, ctypes.c_char_p)(b"RPC")
