"""Devices of other machines, through llama.cpp's RPC backend.

A worker has one client at a time, so the connection is kept from the first moment to the end of the
process. One that is lost takes the process with it, since llama.cpp aborts: `lost_worker` says
which it was.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from dotscli.engine.lib import ggml
from dotscli.engine.rpc.connections import SILENCE_S, Address, is_connected, limit_waits
from dotscli.engine.rpc.greeting import START_HINT, greet, parse_address
from dotscli.errors import DotsError

POINTER = ctypes.c_void_p
BUILD_HINT = (
    'build it: CMAKE_ARGS="-DGGML_RPC=on" pip install --force-reinstall --no-cache-dir --no-deps '
    "llama-cpp-python"
)
_workers: dict[str, Address] = {}


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
        server = ctypes.CFUNCTYPE(POINTER, ctypes.c_char_p)(add_server)(_numeric(address))
        if not server:
            raise DotsError(f"the worker at {endpoint} offers no devices", hint=START_HINT)
        _keep_connection(server)
        limit_waits(address, silence_s=SILENCE_S)
        ggml("ggml_backend_register", None, POINTER)(server)
        _workers[endpoint] = address


def any_lost(endpoints: Sequence[str]) -> bool:
    """Whether the connection to one of these workers, once added, has ended."""
    return not all(is_connected(_workers[endpoint]) for endpoint in endpoints)


def lost_worker() -> DotsError:
    """What to say when llama.cpp has given up on a worker, or waits for one in vain."""
    gone = [endpoint for endpoint, address in _workers.items() if not is_connected(address)]
    who = "the worker" if len(gone or _workers) == 1 else "one of the workers"
    names = ", ".join(gone or _workers)
    what = "has gone away" if gone else "does not answer, or not as a worker should"
    return DotsError(f"{who} at {names} {what}", hint=f"look there for the reason; {START_HINT}")


def _keep_connection(server: Any) -> None:
    """A backend that nobody uses: llama.cpp hangs up when the last one is gone."""
    device = ggml("ggml_backend_reg_dev_get", POINTER, POINTER, ctypes.c_size_t)(server, 0)
    ggml("ggml_backend_dev_init", POINTER, POINTER, ctypes.c_char_p)(device, None)


def _numeric(address: Address) -> bytes:
    return f"{address[0]}:{address[1]}".encode()


def _registry() -> Any:
    return ggml("ggml_backend_reg_by_name", POINTER, ctypes.c_char_p)(b"RPC")
