"""How threads should wait for each other, alone and beside a busy program.

    python -m bench.answer.waiting MODEL.gguf --out docs/bench/waiting.md

The same answer, in turn, with OpenMP's threads spinning as long as libgomp lets them, the same
bound to cores (OMP_PROC_BIND=true, OMP_PLACES=cores), and spinning for a few us, as dots sets them;
then again beside a program that keeps one core busy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.lib.measure import dots_env, note, ratios, spread, table, warm, write_report

LONG = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own, where there are cores enough
SIDES = {
    "spinning": LONG,
    "bound": LONG | {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    "as dots": {},
}
PROMPT, N_TOKENS, N_CTX = "hello", 24, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warm([options.model])
    rows = []
    for name, beside in (("nothing", False), ("a busy program", True)):
        with _busy(beside):
            rounds = [
                {side: _speed(options.model, environ) for side, environ in SIDES.items()}
                for _ in range(options.rounds)
            ]
        note(f"  {name}: {rounds}")
        speeds = {side: [found[side] for found in rounds] for side in SIDES}
        row = [name, *(spread(speeds[side]) for side in SIDES)]
        rows.append([*row, spread(ratios(speeds["as dots"], speeds["spinning"]))])
    text = f"{options.model.name}: single tokens, {options.rounds} rounds, medians (range)."
    header = ["beside it", *(f"{side}, tok/s" for side in SIDES), "as dots, of spinning"]
    sections = [text, table(header, rows)]
    if options.out:
        write_report(options.out, "How threads wait", sections)
    else:
        print("\n\n".join(sections))


def _speed(model: Path, environ: dict[str, str]) -> float:
    """Tokens per second of one process."""
    command = [
        sys.executable, "-m", "bench.answer.decode_once", str(model), PROMPT, str(N_TOKENS), "0",
        str(N_CTX), "--temp", "1", "--seed", "1",
    ]  # fmt: skip
    env = {**os.environ, **dots_env(), **environ}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return float(json.loads(done.stdout)["decode_tps"])


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """A program that takes as much of one core as it is given."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
