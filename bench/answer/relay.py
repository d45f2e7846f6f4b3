"""What the relay of `dots worker` costs: llama.cpp's RPC server reached directly, and through it.

One client, by hand, on the loopback interface; sides take turns, each with a process of its own:
  to the worker      SET_TENSOR of so many MiB, and a byte read back at the end
  from the worker    GET_TENSOR of the same
  round trip         GET_ALIGNMENT, the smallest question

    python -m bench.answer.relay                 # writes docs/bench/relay.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.lib.measure import (
    ROOT,
    dots,
    dots_env,
    note,
    ratios,
    spread,
    table,
    wait_until_quiet,
    write_report,
)
from dotscli.engine.rpc.messages import GET_TENSOR, SET_TENSOR
from dotscli.engine.rpc.process import ServerProcess

sys.path.insert(0, str(ROOT))
from tests.rpc_client import Client, vector

GET_ALIGNMENT = 1
FIGURES = {"set": "to the worker, GB/s", "get": "from the worker, GB/s", "trip": "round trip, us"}


@contextmanager
def direct() -> Iterator[str]:
    """llama.cpp's server without anything before it; yields its address."""
    process = ServerProcess((), 1, None)
    process.connect()
    port = process.connection.getpeername()[1]
    process.connection.close()  # it takes the next client
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.end()


@contextmanager
def relayed() -> Iterator[str]:
    """A worker; yields its address."""
    process = subprocess.Popen(
        [*dots(), "worker", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **dots_env()},
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.terminate()
        process.communicate()


def measured(address: str, data: bytes, n_trips: int) -> dict[str, float]:
    """One run of all three."""
    n = len(data) // 4
    with Client(address, timeout_s=300) as client:
        buffer, base = client.allocate(len(data))
        whole = vector(buffer, base, n)
        request = whole + bytes(9) + data
        for _ in range(2):  # the first touches the memory
            start = time.perf_counter()
            client.send(SET_TENSOR, request)
            client.ask(GET_TENSOR, whole + struct.pack("<QQ", 0, 1))
            set_s = time.perf_counter() - start
        start = time.perf_counter()
        client.send(GET_TENSOR, whole + struct.pack("<QQ", 0, len(data)))
        view = memoryview(bytearray(len(data) + 8))
        while view:
            view = view[client.connection.recv_into(view) :]
        get_s = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(n_trips):
            client.ask(GET_ALIGNMENT, bytes(4))
        trip_s = (time.perf_counter() - start) / n_trips
    return {"set": len(data) / set_s / 1e9, "get": len(data) / get_s / 1e9, "trip": trip_s * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--trips", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "relay.md")
    options = parser.parse_args()
    data = os.urandom(options.mib << 20)
    load = wait_until_quiet(0.1, options.patience)
    sides = {"direct": direct, "through the relay": relayed}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(options.repeats):
        for name, side in sides.items():
            with side() as address:
                results[name].append(measured(address, data, options.trips))
        note(f"  {number + 1}/{options.repeats}")
    rows = []
    for name, runs in results.items():
        row = [name]
        for figure in FIGURES:
            values = [run[figure] for run in runs]
            against = ratios(values, [run[figure] for run in results["direct"]])
            row += [spread(values), f"{statistics.median(against):.2f}"]
        rows.append(row)
    header = ["side", *(cell for title in FIGURES.values() for cell in (title, "of direct"))]
    text = (
        f"{options.mib} MiB, {options.trips} round trips, {options.repeats} runs of each side in "
        "turn; medians, in brackets the range. "
        f"Other programs used {load:.2f} cores when it began.\n\n{table(header, rows)}"
    )
    write_report(options.report, "The relay of a worker on the loopback interface", [text])


if __name__ == "__main__":
    main()
