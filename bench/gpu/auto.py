"""`dots prompt` as a user types it, on a GPU that something else has made too small: prints JSON.

    python -m bench.gpu.auto MODEL.gguf --leave BYTES

Another process takes device memory until BYTES are free, in one plain allocation. Then the default,
`--hot auto`, has to place, compare, decide and answer; a second time with what it remembers; then
stock's placement of the same memory. `dots plan` and `dots doctor` say what they think of it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu.link import Cuda
from bench.lib.measure import ROOT, dots

QUESTION = "Why is the sky blue, and the sunset red?"
TOKENS = 96
LONGEST_S = 60


def hog(leave: int) -> None:
    """Take device memory until `leave` bytes are free, until stdin ends."""
    cuda = Cuda()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    if free.value > leave:
        cuda.pointer("cudaMalloc", ctypes.c_size_t(free.value - leave))
    print("ready", flush=True)
    sys.stdin.read()


def said(arguments: list[str], env: dict[str, str]) -> dict[str, Any]:
    """What a command of dots prints, how it ends, and how long it takes."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*dots(), *arguments], capture_output=True, text=True, env=env, check=False,
            cwd=ROOT, timeout=LONGEST_S,
        )  # fmt: skip
        status, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        status, out, err = -1, "", "took too long"
    try:
        out = json.loads(out)
    except json.JSONDecodeError:
        pass
    seconds = time.monotonic() - start
    return {
        "arguments": arguments,
        "status": status,
        "seconds": seconds,
        "out": out,
        "err": err[-4000:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--leave", type=int, required=True)
    parser.add_argument("--n-cpu-moe", type=int, default=99)
    parser.add_argument("--ctx-size", type=int, default=2048)
    parser.add_argument("--hog", action="store_true")
    given = parser.parse_args()
    if given.hog:
        hog(given.leave)
        return
    ask = ["prompt", "-m", given.model, "--json", "-n", str(TOKENS), "--temp", "0"]
    ask += ["-c", str(given.ctx_size)]
    stock = ["--hot", "off", "-ngl", "99", "-ncmoe", str(given.n_cpu_moe)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "XDG_DATA_HOME": folder}
        command = [sys.executable, "-m", "bench.gpu.auto", "--hog", "--leave", str(given.leave)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            for arguments in (
                ["plan", given.model, "--json", "-c", str(given.ctx_size)],
                [*ask, QUESTION],
                [*ask, QUESTION],
                [*ask, *stock, QUESTION],
                ["doctor", "--json"],
            ):
                found.append(said(arguments, env))
            other.communicate("")
        kept = {str(p.name): p.read_text() for p in Path(folder).rglob("*.trials")}
    print(json.dumps({"commands": found, "trials": kept}))


if __name__ == "__main__":
    main()
