"""Devices of this process offered to others: llama.cpp's RPC server, on a thread of its own.

The server's function has no end: it takes one client after the other, and whoever is connected
keeps the rest waiting. It prints on C's stdout, and it returns only where it can't start.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dotscli.engine.devices import Device, devices
from dotscli.engine.log import log
from dotscli.engine.rpc.client import rpc_function
from dotscli.engine.rpc.connections import Address, clients, hang_up, is_listening
from dotscli.errors import DotsError, ExitStatus

STOP_S = 10.0  # for the graph that is being computed


def offered_devices(names: Sequence[str]) -> list[Device]:
    """The devices of these names; without names every GPU, else the CPU.

    Raises:
        DotsError: a name that no device has (exit status 2).
    """
    known = {device.name: device for device in devices()}
    if not names:
        gpus = [device for device in known.values() if device.type in ("GPU", "IGPU")]
        return gpus or [device for device in known.values() if device.type == "CPU"]
    for name in names:
        if name not in known:
            raise DotsError(
                f"--device names the unknown device {name!r}",
                hint=f"this machine has {', '.join(known)}",
                exit_status=ExitStatus.USAGE,
            )
    return [known[name] for name in dict.fromkeys(names)]


def free_address(host: str, port: int) -> Address:
    """The IPv4 address to listen on; port 0 becomes one that is free.

    Raises:
        DotsError: this machine has no such address, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise DotsError(
            f"--host {host} is no IPv4 address: {error.strerror or error}",
            hint="give 127.0.0.1, an address of this machine, or 0.0.0.0 for all of them",
            exit_status=ExitStatus.USAGE,
        ) from error
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as llama.cpp does; elsewhere it would take a port from its owner
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(found[0][4])
            probe.listen(1)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise DotsError(
                f"{host}:{port} can't be listened on: {error.strerror or error}",
                hint=f"give another: --port {port + 1}" if taken else "see --host and --port",
            ) from error
        ip, free = probe.getsockname()
    return ip, free


@contextmanager
def serving(
    address: Address, offered: Sequence[Device], n_threads: int, cache: Path | None
) -> Iterator[threading.Thread]:
    """A thread that serves clients until the end of the block; clients get hung up on then.

    Args:
        address: of `free_address`.
        offered: as many devices as clients will see, in this order.
        n_threads: of a CPU among them.
        cache: a folder for large tensors that clients have sent, so that they need not again.

    Raises:
        DotsError: llama.cpp was built without RPC, or its server doesn't start.
    """
    log()  # of clients that left in the middle: nothing that concerns anybody
    handles = (ctypes.c_void_p * len(offered))(*(device.handle for device in offered))
    size = ctypes.c_size_t
    start = ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, ctypes.c_char_p, size, size, ctypes.POINTER(ctypes.c_void_p)
    )(rpc_function("ggml_backend_rpc_start_server"))
    endpoint = f"{address[0]}:{address[1]}".encode()
    folder = os.fsencode(cache) if cache else None
    arguments = (endpoint, folder, n_threads, len(offered), handles)
    thread = threading.Thread(target=start, args=arguments, daemon=True)
    thread.start()
    while thread.is_alive() and not is_listening(address[1]):
        time.sleep(0.01)
    if not thread.is_alive():
        raise DotsError(
            f"llama.cpp's server does not start at {endpoint.decode()}", hint="run: dots doctor"
        )
    try:
        yield thread
    finally:
        deadline = time.monotonic() + STOP_S
        while (busy := clients(address[1])) and time.monotonic() < deadline:
            for descriptor in busy.values():
                hang_up(descriptor)
            time.sleep(0.05)
