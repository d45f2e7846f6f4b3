"""`dots worker`: offers this machine's devices to `--rpc` on others, until it is ended.

llama.cpp's RPC server does the work. It has no authentication, so it listens on the loopback
interface unless told otherwise.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.errors import DotsError
from dotscli.folders import cache_folder
from dotscli.options.worker import WorkerFlags
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.engine import Device

LOOK_S = 1.0  # how often who is connected is looked at


def worker(terminal: Terminal, flags: WorkerFlags, as_json: bool) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        DotsError: it can't start, or llama.cpp's server has ended by itself.
    """
    from dotscli.engine import say_at_abort
    from dotscli.engine.options import usable_cores
    from dotscli.engine.rpc.client import rpc_function
    from dotscli.engine.rpc.server import free_address, offered_devices, serving

    rpc_function("ggml_backend_rpc_start_server")  # without RPC nothing else matters
    devices = offered_devices(flags.device or ())
    address = free_address(flags.host, flags.port)
    n_threads = flags.threads or usable_cores()
    cache = _cache(terminal) if flags.cache else None
    terminal.shut_out_c()
    say_at_abort(lambda error: terminal.last_words(error.message, error.hint))
    try:
        with serving(address, devices, n_threads, cache) as server:
            if as_json:
                terminal.json(_facts(address, devices, n_threads, cache))
            else:
                _show(terminal, address, devices, cache)
            if not ipaddress.ip_address(address[0]).is_loopback:
                terminal.warn(
                    "whoever reaches this address can use this machine and read what others "
                    "compute on it: there is no password and no encryption"
                )
            terminal.note("Ctrl-C ends it")
            _watch(terminal, server, address[1])
    except KeyboardInterrupt:
        terminal.interrupted()
        terminal.end_line()
        raise
    raise DotsError("llama.cpp's server has ended by itself", hint="start it again")


def _watch(terminal: Terminal, server: threading.Thread, port: int) -> None:
    """Says who comes and goes, for as long as the server runs."""
    from dotscli.engine.rpc.connections import clients, limit_waits

    known: set[tuple[str, int]] = set()
    while server.is_alive():
        now = set(clients(port))
        for client in now - known:
            limit_waits(client)
            terminal.note(f"{client[0]} is connected")
        for client in known - now:
            terminal.note(f"{client[0]} has left")
        known = now
        server.join(LOOK_S)


def _cache(terminal: Terminal) -> Path:
    """Where weights are kept, made if need be.

    Raises:
        DotsError: it can't be made.
    """
    folder = cache_folder(terminal.environ) / "rpc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DotsError(f"{folder} can't be made: {error.strerror or error}") from error
    return folder


def _facts(
    address: tuple[str, int], devices: Sequence[Device], n_threads: int, cache: Path | None
) -> dict[str, object]:
    from dotscli.engine.rpc.greeting import protocol_version

    return {
        "address": f"{address[0]}:{address[1]}",
        "protocol": protocol_version(),
        "devices": [
            {
                "name": device.name,
                "type": device.type,
                "description": device.description,
                "free_bytes": device.free_bytes,
                "total_bytes": device.total_bytes,
            }
            for device in devices
        ],
        "threads": n_threads,
        "cache": str(cache) if cache else None,
    }


def _show(
    terminal: Terminal, address: tuple[str, int], devices: Sequence[Device], cache: Path | None
) -> None:
    rows = [
        (d.name, d.type, format_bytes(d.free_bytes), format_bytes(d.total_bytes), d.description)
        for d in devices
    ]
    terminal.table(("device", "type", "free", "total", "what"), rows, right=("free", "total"))
    ip, port = address
    local = ipaddress.ip_address(ip).is_loopback
    name = socket.gethostname()
    there = name if ip == "0.0.0.0" else ip
    lines = ["", f"listening on {ip}:{port}, for one client at a time"]
    lines += [f"weights are kept in {cache}"] if cache else []
    if local:
        lines += [
            f"use it here:       dots chat --rpc {ip}:{port}",
            f"from elsewhere:    ssh -N -L {port}:{ip}:{port} {name}, then the same",
        ]
    else:
        lines += [f"use it elsewhere:  dots chat --rpc {there}:{port}"]
    terminal.write("\n".join(lines) + "\n")
