"""`dots worker`: offers this machine's devices to `--rpc` on others, until it is ended.

llama.cpp's RPC server does the work, behind `dotscli.engine.rpc.server`. It has no authentication,
so it listens on the loopback interface unless told otherwise.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dotscli.errors import DotsError
from dotscli.folders import cache_folder
from dotscli.options.worker import WorkerFlags
from dotscli.terminal.terminal import Terminal
from dotscli.terminal.text import format_bytes

if TYPE_CHECKING:
    from dotscli.engine.rpc.server import Server

BURST = 200  # lines about clients that may come at once
LINES_PER_S = 1.0  # and after that: a client that is cut off again and again fills no disk


def worker(terminal: Terminal, flags: WorkerFlags, as_json: bool) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        DotsError: it can't start, or llama.cpp's server doesn't any more.
    """
    from dotscli.engine.cores import usable_cores
    from dotscli.engine.rpc.client import rpc_function
    from dotscli.engine.rpc.server import Server, listen

    rpc_function("ggml_backend_rpc_start_server")  # without RPC nothing else matters
    n_threads = flags.threads or usable_cores()
    cache = _cache(terminal) if flags.cache else None
    with (
        listen(flags.host, flags.port) as listener,
        closing(Server(listener, flags.device or (), n_threads, cache)) as server,
    ):
        if as_json:
            terminal.json(_facts(server, n_threads, cache))
        else:
            _show(terminal, server, cache)
        if not ipaddress.ip_address(server.address[0]).is_loopback:
            terminal.warn(
                "anyone who reaches this address can use this machine and read what others "
                "compute on it: there is no password and no encryption"
            )
        terminal.note("Ctrl-C stops it")
        seldom = Seldom(BURST, LINES_PER_S)
        try:
            server.run(seldom.passing(terminal.note), seldom.passing(terminal.warn))
        except KeyboardInterrupt:
            terminal.interrupted()
            terminal.end_line()
            raise


class Seldom:
    """Lets lines through for as long as they don't come too fast; says how many it has dropped.

    Args:
        burst: so many at once.
        lines_per_s: so many in the long run.
    """

    def __init__(self, burst: int, lines_per_s: float) -> None:
        self._burst = burst
        self._lines_per_s = lines_per_s
        self._left = float(burst)
        self._at = time.monotonic()
        self._n_dropped = 0

    def passing(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say`, but not too often."""

        def say_seldom(line: str) -> None:
            now = time.monotonic()
            self._left = min(self._burst, self._left + (now - self._at) * self._lines_per_s)
            self._at = now
            if self._left < 1:
                self._n_dropped += 1
                return
            self._left -= 1
            if self._n_dropped:
                line = f"{line} (and {self._n_dropped} more lines like this)"
                self._n_dropped = 0
            say(line)

        return say_seldom


def _cache(terminal: Terminal) -> Path:
    """Where weights are kept, made if need be.

    Raises:
        DotsError: it can't be made.
    """
    folder = cache_folder(terminal.environ) / "rpc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DotsError(f"{folder} can't be created: {error.strerror or error}") from error
    return folder


def _facts(server: Server, n_threads: int, cache: Path | None) -> dict[str, object]:
    from dotscli.engine.rpc.greeting import protocol_version

    return {
        "address": f"{server.address[0]}:{server.address[1]}",
        "protocol": protocol_version(),
        "devices": server.devices,
        "threads": n_threads,
        "cache": str(cache) if cache else None,
    }


def _show(terminal: Terminal, server: Server, cache: Path | None) -> None:
    rows = [
        (
            device["name"],
            device["type"],
            format_bytes(device["free_bytes"]),
            format_bytes(device["total_bytes"]),
            device["description"],
        )
        for device in server.devices
    ]
    terminal.table(
        ("device", "type", "free", "total", "description"), rows, right=("free", "total")
    )
    ip, port = server.address
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
