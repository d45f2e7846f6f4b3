"""Do threads that are tied to cores decode faster, alone and beside a busy program?

    python -m bench.answer.pinning MODEL.gguf --out docs/bench/pinning.md

The same answer with OpenMP's threads free, as dots leaves them, and bound to cores
(OMP_PROC_BIND=true, OMP_PLACES=cores), in turn; then again beside one that keeps a core busy.
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

BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
PROMPT, N_TOKENS, N_CTX = "hello", 48, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warm([options.model])
    rows = []
    for name, beside in (("nothing", False), ("a busy program", True)):
        with _busy(beside):
            pairs = [(_speed(options.model, {}), _speed(options.model, BOUND))
                     for _ in range(options.rounds)]  # fmt: skip
        free, bound = zip(*pairs, strict=True)
        note(f"  {name}: {pairs}")
        rows.append([name, spread(free), spread(bound), spread(ratios(bound, free))])
    text = f"{options.model.name}: single tokens, {options.rounds} rounds, medians (range)."
    header = ["beside it", "free, tok/s", "bound, tok/s", "ratio of a round"]
    sections = [text, table(header, rows)]
    if options.out:
        write_report(options.out, "Threads tied to cores", sections)
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
