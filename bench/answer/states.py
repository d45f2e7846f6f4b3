"""What a kept context is worth: the nano model's, and one of 4 GiB against the disk.

    python -m bench.answer.states          # writes docs/bench/states.md; 5 GB in --folder

A conversation of 1,500 tokens of the nano model is kept and put back in another engine, against
reading it again. The 4 GiB are random bytes under the format of a real state: they are hashed and
written, leave the page cache, and are read and compared; the disk is read beside it, in pieces of
1 MiB, six at a time, past the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench.hot.disk_tier import disk_bandwidth
from bench.lib.limited import forget
from bench.lib.measure import ROOT, note, spread, table, write_report
from dotscli.commands.model import nano_model
from dotscli.engine import Engine, EngineOptions
from dotscli.engine.sampling import Sampling
from dotscli.engine.state_file import NewState, checked_state, read_info
from dotscli.terminal.terminal import Terminal

N_TOKENS, LARGE, BLOCK = 1500, 4 << 30, 1 << 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/bench/states.md")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        nano = [_nano(Path(name) / str(n)) for n in range(options.rounds)]
        large = [_large(Path(name)) for _ in range(options.rounds)]
    names = ("read again, s", "put back, s", "ratio")
    columns = [
        [again for again, _ in nano], [back for _, back in nano],
        [again / back for again, back in nano],
    ]  # fmt: skip
    text = f"{N_TOKENS} tokens of the nano model, {options.rounds} rounds."
    sections = [
        text,
        table(
            ["", "median (range)"], [[n, spread(c, 3)] for n, c in zip(names, columns, strict=True)]
        ),
    ]
    rates = [[LARGE / seconds / 1e9 for seconds in row[:2]] + [row[2] / 1e9] for row in large]
    names = ("kept, GB/s", "read and compared, GB/s", "the disk, GB/s")
    rows = [[n, spread([row[i] for row in rates])] for i, n in enumerate(names)]
    rows.append(["of the disk", spread([row[1] / row[2] for row in rates])])
    sections += ["A state of 4 GiB.", table(["", "median (range)"], rows)]
    write_report(options.out, "Contexts that are kept", sections)


def _nano(folder: Path) -> tuple[float, float]:
    """Seconds until the first token: without a state, and with one."""
    model = nano_model(Terminal.system())
    found = []
    for _ in range(2):
        with Engine.load(model, EngineOptions(n_ctx=2048)) as engine:
            engine.keep_states(folder, note)
            tokens = (engine.tokenize("Tell me what dots is. ", parse_special=True) * N_TOKENS)[
                :N_TOKENS
            ]
            began = time.perf_counter()
            next(iter(engine.generate(tokens, Sampling(temp=0), n_predict=1)))
            found.append(time.perf_counter() - began)
            engine.keep_state()
    note(f"  nano: {found}")
    return found[0], found[1]


def _written(to: memoryview) -> None:
    """Every page: what is only reserved would be read without the disk."""
    block = os.urandom(BLOCK)
    for at in range(0, len(to), BLOCK):
        to[at : at + BLOCK] = block[: len(to) - at]


def _large(folder: Path) -> tuple[float, float, float]:
    """Seconds to keep, seconds to read, and the disk's bytes per second."""
    path = folder / "large.state"
    began = time.perf_counter()
    new = NewState(path, "it", [1], LARGE, 1.0)
    new.fill(_written)
    new.finish()
    kept = time.perf_counter() - began
    forget(path)
    began = time.perf_counter()
    with checked_state(read_info(path)):
        read = time.perf_counter() - began
    disk = statistics.median(disk_bandwidth(path) for _ in range(2))
    note(f"  4 GiB: kept {kept:.1f} s, read {read:.1f} s, disk {disk / 1e9:.2f} GB/s")
    path.unlink()
    return kept, read, disk


if __name__ == "__main__":
    main()
