"""A thousand answers of the memory tier while other programs take memory and give it back.

    python -m bench.full_size model --preset tier --size 1.8G -o /tmp/small.gguf --skew 0.2
    python -m bench.hot.pressure /tmp/small.gguf --out docs/bench/pressure.md

One process answers, another takes up to a quarter of the limit at 0.5 GB a second, holds it for a
moment and gives it back, over and over; both live in one group with a hard limit of memory and no
swap, where the kernel ends whoever goes beyond it. Prompts of 1 to 300 tokens return again and
again: every time their answers must be the same. What the process holds beside experts must not
grow. Root, for the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from mmap import mmap
from pathlib import Path

from bench.lib.limited import Limited, limited
from bench.lib.measure import dots_env, note, private_bytes, table, write_report

SHARE = 0.6  # of the model's size: the limit
MOST, RATE = 0.25, 5e8  # what is taken: a share of the limit, bytes per second
STEP = 1 << 23  # bytes taken at once
HELD_S = (0.05, 2.0)
LENGTHS = (1, 5, 9, 40, 300)  # tokens of a prompt
N_PROMPTS, N_TOKENS, N_CTX = 20, 5, 512
N_ROWS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hot.pressure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, help="the report")
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--side", choices=["answer", "take"], help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.group:
        Limited(options.group, 0).enter()
    if options.side == "answer":
        _answer(options.model, options.answers)
    elif options.side == "take":
        _take(options.limit)
    else:
        _run(options)


def _answer(model: Path, n_answers: int) -> None:
    """Prints a line of JSON for every part of the answers."""
    from dotscli.engine import Engine, EngineOptions
    from dotscli.engine.sampling import Sampling

    rng = random.Random(1)
    known: dict[int, list[int | None]] = {}
    n_different, since = 0, time.perf_counter()
    with Engine.load(model, EngineOptions(n_ctx=N_CTX), on_log=note) as engine:
        assert engine.tier is not None, "the model fits: nothing to see"
        prompts = [
            [rng.randrange(engine.n_vocab) for _ in range(LENGTHS[i % len(LENGTHS)])]
            for i in range(N_PROMPTS)
        ]
        budgets: list[int] = []
        for n in range(1, n_answers + 1):
            which = rng.randrange(N_PROMPTS)
            engine.forget()  # a prompt that is read in one piece always has the same logits
            pieces = engine.generate(prompts[which], Sampling(temp=0), n_predict=N_TOKENS)
            tokens = [piece.token for piece in pieces]
            n_different += known.setdefault(which, tokens) != tokens
            figures = engine.tier.figures()
            budgets.append(figures.budget_nbytes)
            if n % max(1, n_answers // N_ROWS) == 0:
                beside = private_bytes(os.getpid()) - engine.tier.counters().resident_nbytes
                row = {"answers": n, "s": time.perf_counter() - since, "different": n_different}
                row |= {"beside": beside, "least": min(budgets), "most": max(budgets)}
                print(json.dumps(row), flush=True)
                budgets.clear()


def _take(limit: int) -> None:
    """Takes memory and gives it back until it is ended; the sum is on stdout, line by line."""
    rng, total = random.Random(2), 0
    while True:
        wanted = rng.randrange(int(MOST * limit))
        taken, began = mmap(-1, wanted + STEP), time.perf_counter()
        for at in range(0, wanted, STEP):
            taken[at : at + STEP] = b"x" * STEP
            time.sleep(max(0.0, began + (at + STEP) / RATE - time.perf_counter()))
        time.sleep(rng.uniform(*HELD_S))
        taken.close()
        total += wanted
        print(total, flush=True)
        time.sleep(rng.uniform(*HELD_S) / 2)


def _start(
    options: argparse.Namespace, side: str, limit: int, group: Limited
) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "bench.hot.pressure", str(options.model), "--side", side,
        "--limit", str(limit), "--answers", str(options.answers), "--group", str(group.folder),
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **dots_env()}
    )


def _run(options: argparse.Namespace) -> None:
    nbytes = options.model.stat().st_size
    limit = int(SHARE * nbytes)
    rows = []
    with limited("dots-pressure", limit) as group:
        taking = _start(options, "take", limit, group)
        answering = _start(options, "answer", limit, group)
        assert answering.stdout is not None
        for line in answering.stdout:
            note(line.rstrip())
            rows.append(json.loads(line))
        code = answering.wait()
        taking.kill()
        taken = [int(line) for line in taking.communicate()[0].splitlines()[:-1]]
        peak, n_killed = group.peak, group.n_killed
    if code or not rows or taking.returncode >= 0:
        raise SystemExit(f"failed with {code} after {rows[-1:]}; {n_killed} killed")
    about = (
        f"{options.model.name}, {nbytes / 1e9:.2f} GB, under a limit of {limit / 1e9:.2f} GB "
        f"without swap, of which at most {peak / 1e9:.2f} GB were used. Another program took "
        f"{taken[-1] / 1e9:.0f} GB in {len(taken)} turns and gave them back. "
        f"{rows[-1]['answers']} answers of {N_TOKENS} tokens to {N_PROMPTS} prompts of 1 to "
        f"{max(LENGTHS)} tokens; {rows[-1]['different']} differ from the first one to the same "
        f"prompt. The kernel has ended {n_killed} processes."
    )
    header = ["answers", "s", "experts' budget, MB", "held beside experts, MB"]
    lines = [
        [f"{r['answers']}", f"{r['s']:.0f}", f"{r['least'] / 1e6:.0f} to {r['most'] / 1e6:.0f}",
         f"{r['beside'] / 1e6:.0f}"] for r in rows
    ]  # fmt: skip
    sections = [about, table(header, lines)]
    if options.out:
        write_report(options.out, "Answers while memory comes and goes", sections)
    else:
        print("\n\n".join(sections))


if __name__ == "__main__":
    main()
