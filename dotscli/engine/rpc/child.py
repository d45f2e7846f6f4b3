"""The process in which llama.cpp's RPC server works for one client, and which may die of it.

It is started by `dotscli.engine.rpc.process` with a JSON document as its argument, reports with one
on stdout where it listens and what it offers, and ends when stdin does. It takes precautions for
the machine: no core dump, first in line when memory runs out, and, where only the CPU is offered,
no more memory than the machine has. It doesn't stop a client from executing code in it, should
a request find an error in llama.cpp: it has the rights of whoever runs the worker.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from dotscli.engine.devices import Device, devices
from dotscli.engine.log import log
from dotscli.engine.rpc.client import rpc_function
from dotscli.engine.rpc.connections import listening_ports
from dotscli.errors import DotsError, ExitStatus
from dotscli.terminal.descriptors import to_nowhere

SLACK_NBYTES = 512 << 20  # buffers of llama.cpp that are no client's doing
STACK_NBYTES = 8 << 20  # of a thread
FACTS = ("name", "type", "description", "free_bytes", "total_bytes")  # of a Device


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
                f"--device {name!r}: no such device",
                hint=f"this machine has {', '.join(known)}",
                exit_status=ExitStatus.USAGE,
            )
    return [known[name] for name in dict.fromkeys(names)]


def main() -> None:
    """Serves until it is killed; what it was told is in sys.argv[1]."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    to_nowhere(1)  # where llama.cpp's server greets
    told: dict[str, Any] = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        offered = offered_devices(told["names"])
        start = rpc_function("ggml_backend_rpc_start_server")
    except DotsError as error:
        _say(report, {"error": [error.message, error.hint, int(error.exit_status)]})
        return
    log().listener = _write_line
    _restrain(offered, told["threads"])
    threading.Thread(target=_report, args=(report, offered), daemon=True).start()
    _serve(start, offered, told["threads"], told["cache"])


def _serve(start: int, offered: Sequence[Device], n_threads: int, cache: str | None) -> None:
    """llama.cpp's server on a free port of the loopback interface; it has no end."""
    size = ctypes.c_size_t
    handles = (ctypes.c_void_p * len(offered))(*(device.handle for device in offered))
    serve = ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, ctypes.c_char_p, size, size, ctypes.POINTER(ctypes.c_void_p)
    )(start)
    folder = os.fsencode(Path(cache).absolute()) if cache else None
    serve(b"127.0.0.1:0", folder, n_threads, len(offered), handles)


def _report(report: TextIO, offered: Sequence[Device]) -> None:
    while not (ports := listening_ports()):
        time.sleep(0.005)
    facts = [{name: getattr(device, name) for name in FACTS} for device in offered]
    _say(report, {"port": ports[0], "devices": facts})


def _write_line(line: str) -> None:
    os.write(2, f"{line}\n".encode())


def _say(report: TextIO, document: object) -> None:
    with report:
        report.write(json.dumps(document) + "\n")


def _end_with_parent() -> None:
    """Also while C code computes: it holds no lock of Python's."""
    while os.read(0, 1 << 10):
        pass
    os._exit(0)


def _restrain(offered: Sequence[Device], n_threads: int) -> None:
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform == "win32":
        return
    import resource

    import psutil

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and all(device.type == "CPU" for device in offered):
        # A driver of a GPU maps more than it uses, so there this would mean nothing.
        used = psutil.Process().memory_info().data
        there = psutil.virtual_memory().total + psutil.swap_memory().total
        most = used + there + SLACK_NBYTES + n_threads * STACK_NBYTES
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
