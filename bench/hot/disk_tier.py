"""Models that don't fit into memory: the memory tier against llama.cpp's mapped file, in turn.

    python -m bench.full_size model --preset tier -o /tmp/even.gguf --skew 0 --topic 0
    python -m bench.full_size model --preset tier -o /tmp/skewed.gguf --skew 0.2 --topic 0.2
    python -m bench.hot.disk_tier /tmp/even.gguf /tmp/skewed.gguf --out docs/bench/disk-tier.md

Each run is a process of its own under a hard limit of memory without swap, and begins with nothing
of the file in the page cache: load, a short prompt, single tokens, and for the last model a prompt
of 2,048 tokens. Stock is llama.cpp with the file mapped and nothing repacked, at a read-ahead of
128 KiB and of 8 MiB. The disk's own speed is measured before each round: pieces of 1 MiB at random
places, six at a time, past the page cache. Where a limit lets the model fit, dots as it is runs
against llama-cpp-python as it is, from the page cache. Root, for the limits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from mmap import mmap
from pathlib import Path

from bench.hot.disk_side import N_LONG, Task, measure
from bench.lib.limited import forget, limited, read_ahead
from bench.lib.measure import dots_env, note, spread, table, warm, write_report

SHARES = (1 / 3, 1 / 2, 3 / 4, 3 / 2)  # the last: everything fits, and nothing is repacked
FITTING = 4  # times its size: room for a repacked copy and the page cache
READ_AHEADS = (128, 8192)  # KiB
PIECE, N_READERS, DISK_S = 1 << 20, 6, 2.0

Round = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hot.disk_tier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="the report")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, help="rounds with the long prompt (default: all)")
    parser.add_argument("--tokens", type=int, default=48, help="single tokens at most")
    parser.add_argument("--seconds", type=float, default=25.0, help="for them at most")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--read-ahead", type=int, nargs="+", default=READ_AHEADS, help="KiB")
    parser.add_argument("--device", default="", help="for hot experts, with --hot")
    parser.add_argument("--hot", type=int, default=0, help="bytes of hot experts on --device")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        values = json.loads(options.task)
        print(json.dumps(measure(Task(**values | {"model": Path(values["model"])}))))
        return
    sections = [_about(options)]
    for model in options.models:
        last = model == options.models[-1]
        sections += _model(options, model, prompt=last and _n_prompts(options) > 0)
    if options.out:
        write_report(options.out, "The memory tier against a mapped file", sections)
    else:
        print("\n\n".join(sections))


def _model(options: argparse.Namespace, model: Path, *, prompt: bool) -> list[str]:
    rows = []
    for share in options.shares:
        for kib in options.read_ahead[: None if share < 1 else 1]:
            with read_ahead(model, kib):
                rounds = [
                    _round(options, model, share, prompt and n < _n_prompts(options))
                    for n in range(options.rounds)
                ]
            rows.append((share, kib, rounds))
    sections = [f"## {model.name}: {model.stat().st_size / 1e9:.2f} GB", _decode_table(rows)]
    if prompt:
        fitting = [_fitting(options, model, n) for n in range(options.rounds + 1)]
        sections += [f"### A prompt of {N_LONG} tokens", _prompt_table(rows)]
        sections += ["### Where it fits", _fitting_table(fitting)]
    return sections


def _n_prompts(options: argparse.Namespace) -> int:
    return int(options.rounds if options.prompts is None else options.prompts)


# Rounds


def _round(options: argparse.Namespace, model: Path, share: float, prompt: bool) -> Round:
    found: Round = {"disk": {"bandwidth": disk_bandwidth(model)}}
    limit = int(share * model.stat().st_size)
    for side in ("tier", "stock"):
        forget(model)
        found[side] = _run(options, model, side, limit, prompt)
    return found


def _fitting(options: argparse.Namespace, model: Path, number: int) -> Round:
    warm([model])
    limit = FITTING * model.stat().st_size
    # In turn the first: which pays for memory that nobody has used for a while.
    sides = ("tier", "llama") if number % 2 else ("llama", "tier")
    return {side: _run(options, model, side, limit, True) for side in sides}


def _run(
    options: argparse.Namespace, model: Path, side: str, limit: int, prompt: bool
) -> dict[str, float]:
    task = {
        "model": str(model), "side": side, "tokens": options.tokens, "seconds": options.seconds,
        "threads": options.threads, "prompt": prompt, "device": options.device, "hot": options.hot,
    }  # fmt: skip
    command = [sys.executable, "-m", "bench.hot.disk_tier", str(model), "--task", json.dumps(task)]
    with limited("dots-disk-tier", limit) as group:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False,
            env={**os.environ, **dots_env()}, preexec_fn=partial(group.enter),
        )  # fmt: skip
        if done.returncode or group.n_killed:
            raise SystemExit(f"{side} failed with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        found["peak"] = group.peak
    note(f"  {model.name}, {limit / 1e9:.2f} GB, {side}: {json.dumps(found)}")
    return found


def disk_bandwidth(path: Path) -> float:
    """Bytes per second of random direct reads, six at a time."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    n_pieces = path.stat().st_size // PIECE
    end = time.perf_counter() + DISK_S

    def reader(seed: int) -> int:
        rng, buffer, nbytes = random.Random(seed), mmap(-1, PIECE), 0
        while time.perf_counter() < end:
            nbytes += os.preadv(descriptor, [buffer], rng.randrange(n_pieces) * PIECE)
        return nbytes

    began = time.perf_counter()
    with ThreadPoolExecutor(N_READERS) as pool:
        nbytes = sum(pool.map(reader, range(N_READERS)))
    os.close(descriptor)
    return nbytes / (time.perf_counter() - began)


# The report

Rows = Sequence[tuple[float, int, list[Round]]]


def _about(options: argparse.Namespace) -> str:
    hot = f"{options.hot / 1e9:.2f} GB of hot experts on {options.device}. " if options.hot else ""
    return (
        f"{hot}{options.rounds} rounds, {_n_prompts(options)} of them with the long prompt; "
        "medians (lowest to highest), ratios of the same round. "
        "`of the disk`: the tier's tokens per second over what the disk's bandwidth would allow "
        "for the bytes that a token has read, if computing cost nothing. `waits`: seconds that "
        "computing threads waited for the disk. `read twice`: experts that were read more than "
        "once for the same batch."
    )


def _pairs(rounds: list[Round], figure: str, theirs: str = "stock") -> list[list[float]]:
    """Both sides' speeds where `figure` is seconds, and the ratio of each round."""
    ours, other = ([1 / r[side][figure] for r in rounds] for side in ("tier", theirs))
    return [ours, other, [a / b for a, b in zip(ours, other, strict=True)]]


def _median(rounds: list[Round], side: str, figure: str) -> float:
    return statistics.median(r[side].get(figure, 0) for r in rounds)


def _decode_table(rows: Rows) -> str:
    def line(share: float, kib: int, rounds: list[Round]) -> list[str]:
        tier, stock, ratio = _pairs(rounds, "decode_s")
        of_disk = [
            r["tier"]["read_per_token"] / r["tier"]["decode_s"] / r["disk"]["bandwidth"]
            for r in rounds
        ]
        return [
            f"{share:.0%}", f"{kib} KiB", spread(tier), spread(stock), spread(ratio),
            f"{_median(rounds, 'tier', 'hit_rate'):.0%}" if share < 1 else "",
            f"{_median(rounds, 'tier', 'read_per_token') / 1e6:.0f}", spread(of_disk),
            f"{_median(rounds, 'disk', 'bandwidth') / 1e9:.2f}",
            spread([r["tier"]["load_s"] + r["tier"]["ttft_s"] for r in rounds], 1),
            spread([r["stock"]["load_s"] + r["stock"]["ttft_s"] for r in rounds], 1),
        ]  # fmt: skip

    header = [
        "memory", "read-ahead", "tier, tok/s", "stock, tok/s", "ratio", "hits", "MB a token",
        "of the disk", "disk, GB/s", "first token, s", "stock's",
    ]  # fmt: skip
    return table(header, [line(*row) for row in rows])


def _prompt_table(rows: Rows) -> str:
    def line(share: float, kib: int, rounds: list[Round]) -> list[str]:
        rounds = [r for r in rounds if "prompt_s" in r["tier"]]
        tier, stock, ratio = _pairs(rounds, "prompt_s")
        return [
            f"{share:.0%}", f"{kib} KiB", spread([N_LONG * t for t in tier], 1),
            spread([N_LONG * t for t in stock], 1), spread(ratio),
            f"{_median(rounds, 'tier', 'prompt_wait_s'):.1f}",
            f"{sum(r['tier'].get('reread', 0) for r in rounds)}",
            f"{_median(rounds, 'tier', 'prompt_read') / 1e9:.2f}",
            f"{_median(rounds, 'stock', 'prompt_read') / 1e9:.2f}",
        ]  # fmt: skip

    header = [
        "memory", "read-ahead", "tier, tok/s", "stock, tok/s", "ratio", "waits, s", "read twice",
        "GB read", "stock's",
    ]  # fmt: skip
    return table(header, [line(*row) for row in rows])


def _fitting_table(rounds: list[Round]) -> str:
    def line(name: str, ours: list[float], other: list[float], ratio: list[float]) -> list[str]:
        return [name, spread(ours), spread(other), spread(ratio)]

    start = [
        {side: {"s": r[side]["load_s"] + r[side]["ttft_s"]} for side in r} for r in rounds
    ]  # fmt: skip
    rows = [
        line("single tokens, tok/s", *_pairs(rounds, "decode_s", "llama")),
        line("load and first token, 1/s", *_pairs(start, "s", "llama")),
    ]
    ours, other, ratio = _pairs(rounds, "prompt_s", "llama")
    prompt = [[N_LONG * speed for speed in side] for side in (ours, other)]
    rows.append(line("prompt, tok/s", *prompt, ratio))
    return table(["", "dots", "llama-cpp-python", "ratio"], rows)


if __name__ == "__main__":
    main()
