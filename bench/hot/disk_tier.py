"""Models that don't fit into memory: the memory tier against llama.cpp's mapped file, in turn.

    python -m bench.full_size model --preset tier -o tier.gguf
    python -m bench.hot.disk_tier tier.gguf --out docs/bench/disk-tier.md

Each run is a process of its own under a hard limit of memory without swap, and begins with nothing
of the file in the page cache: load, a short prompt, single tokens, then a prompt of 2,048 tokens.
Stock is llama.cpp with the file mapped and nothing repacked, at a read-ahead of 128 KiB and of
8 MiB. The disk's own speed is measured before each round: pieces of 1 MiB at random places, six at
a time, past the page cache. Root, for the limits.
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

from bench.lib.limited import forget, limited, read_ahead
from bench.lib.measure import dots_env, note, spread, table, write_report

SHARES = (1 / 3, 1 / 2, 3 / 4)
READ_AHEADS = (128, 8192)  # KiB
N_SHORT, N_LONG, N_CTX = 16, 2048, 2304
PIECE, N_READERS, DISK_S = 1 << 20, 6, 2.0
WARM_S = 4.0  # of single tokens before those that are timed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hot.disk_tier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, help="the report")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="single tokens at most")
    parser.add_argument("--seconds", type=float, default=25.0, help="for them at most")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--read-ahead", type=int, nargs="+", default=READ_AHEADS, help="KiB")
    parser.add_argument("--no-prompt", action="store_true", help="leave the long prompt out")
    parser.add_argument("--device", default="", help="for hot experts, with --hot")
    parser.add_argument("--hot", type=int, default=0, help="bytes of hot experts on --device")
    parser.add_argument("--side", choices=["tier", "stock"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_child(options)))
        return
    rows = []
    for share in options.shares:
        limit = int(share * options.model.stat().st_size)
        for kib in options.read_ahead:
            with read_ahead(options.model, kib):
                rows.append(
                    (share, kib, [_round(options, limit, n) for n in range(options.rounds)])
                )
    sections = [_text(options), _decode_table(rows)]
    if not options.no_prompt:
        sections.append(_prompt_table(rows))
    if options.out:
        write_report(options.out, "The memory tier against a mapped file", sections)
    else:
        print("\n\n".join(sections))


# One side, in a process of its own


def _child(options: argparse.Namespace) -> dict[str, object]:
    from dotscli.engine import Engine, EngineOptions, HotOptions
    from dotscli.engine.sampling import Sampling

    hot = None
    if options.hot:
        hot = HotOptions(nbytes=options.hot, device=options.device, guard=False)
    wanted = EngineOptions(
        n_ctx=N_CTX, n_threads=options.threads, tier=options.side == "tier", hot=hot
    )
    began = time.perf_counter()
    rng = random.Random(1)
    with Engine.load(options.model, wanted, on_log=note) as engine:
        found: dict[str, object] = {"load_s": time.perf_counter() - began}
        short = [rng.randrange(engine.n_vocab) for _ in range(N_SHORT)]
        sampling = Sampling(temp=1.0, seed=1)
        at: list[float] = []
        first, since = None, time.perf_counter()
        reads: list[int] = []
        for piece in engine.generate(short, sampling, n_predict=N_CTX - N_SHORT - 1):
            now = time.perf_counter()
            first = first or now
            if piece.token is None:
                continue
            if now - first >= WARM_S:
                at.append(now)
                reads.append(_read_nbytes())
            if len(at) > options.tokens or now - first > WARM_S + options.seconds:
                break
        found["ttft_s"] = (first or since) - since
        decoded = max(1, len(at) - 1)
        found["decode_s"] = (at[-1] - at[0]) / decoded if len(at) > 1 else options.seconds
        found["n_decoded"] = decoded
        found["read_per_token"] = (reads[-1] - reads[0]) / decoded if len(at) > 1 else 0
        if engine.tier is not None:
            ram = engine.stats.ram
            assert ram is not None
            found["hit_rate"], found["resident"] = ram.hit_rate, ram.resident_share
        if not options.no_prompt:
            engine.forget()
            before = _read_nbytes()
            long = [rng.randrange(engine.n_vocab) for _ in range(N_LONG)]
            since = time.perf_counter()
            next(engine.generate(long, sampling, n_predict=1))
            found["prompt_s"] = time.perf_counter() - since
            found["prompt_read"] = _read_nbytes() - before
    return found


def _read_nbytes() -> int:
    """Bytes that this process has read from the disk."""
    text = Path("/proc/self/io").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["read_bytes"])


# Rounds


def _round(options: argparse.Namespace, limit: int, number: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {"disk": {"bandwidth": disk_bandwidth(options.model)}}
    for side in ("tier", "stock"):
        forget(options.model)
        arguments = sys.argv[1:]
        command = [sys.executable, "-m", "bench.hot.disk_tier", *arguments, "--side", side]
        with limited("dots-disk-tier", limit) as group:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False,
                env={**os.environ, **dots_env()}, preexec_fn=partial(group.enter),
            )  # fmt: skip
            if done.returncode or group.n_killed:
                raise SystemExit(f"{side} failed with {done.returncode}: {done.stderr[-2000:]}")
            found[side] = json.loads(done.stdout.splitlines()[-1])
            found[side]["peak"] = group.peak
        note(f"  {limit / 1e9:.2f} GB, round {number + 1}, {side}: {json.dumps(found[side])}")
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

Rounds = list[dict[str, dict[str, float]]]


def _text(options: argparse.Namespace) -> str:
    hot = f", {options.hot / 1e9:.2f} GB of hot experts on {options.device}" if options.hot else ""
    return (
        f"{options.model.name}: {options.model.stat().st_size / 1e9:.2f} GB{hot}. "
        f"{options.rounds} rounds; medians (lowest to highest), ratios of the same round. "
        "`of the disk`: the tier's tokens per second over what the disk's bandwidth would allow "
        "for the bytes that a token has read, if computing cost nothing."
    )


def _decode_table(rows: Sequence[tuple[float, int, Rounds]]) -> str:
    def line(share: float, kib: int, rounds: Rounds) -> list[str]:
        tier, stock = ([1 / r[side]["decode_s"] for r in rounds] for side in ("tier", "stock"))
        of_disk = [
            r["tier"]["read_per_token"] / r["tier"]["decode_s"] / r["disk"]["bandwidth"]
            for r in rounds
        ]
        read = statistics.median(r["tier"]["read_per_token"] for r in rounds)
        return [
            f"{share:.0%}", f"{kib} KiB", spread(tier), spread(stock),
            spread([a / b for a, b in zip(tier, stock, strict=True)]),
            f"{statistics.median(r['tier'].get('hit_rate', 0) for r in rounds):.0%}",
            f"{read / 1e6:.0f}", spread(of_disk),
            f"{statistics.median(r['disk']['bandwidth'] for r in rounds) / 1e9:.2f}",
            spread([r["tier"]["load_s"] + r["tier"]["ttft_s"] for r in rounds], 1),
            spread([r["stock"]["load_s"] + r["stock"]["ttft_s"] for r in rounds], 1),
        ]  # fmt: skip

    header = [
        "memory", "read-ahead", "tier, tok/s", "stock, tok/s", "ratio", "hits", "MB a token",
        "of the disk", "disk, GB/s", "first token, s", "stock's",
    ]  # fmt: skip
    return "## Single tokens\n\n" + table(header, [line(*row) for row in rows])


def _prompt_table(rows: Sequence[tuple[float, int, Rounds]]) -> str:
    def line(share: float, kib: int, rounds: Rounds) -> list[str]:
        tier, stock = ([N_LONG / r[side]["prompt_s"] for r in rounds] for side in ("tier", "stock"))
        return [
            f"{share:.0%}", f"{kib} KiB", spread(tier, 1), spread(stock, 1),
            spread([a / b for a, b in zip(tier, stock, strict=True)]),
            f"{statistics.median(r['tier']['prompt_read'] for r in rounds) / 1e9:.2f}",
            f"{statistics.median(r['stock']['prompt_read'] for r in rounds) / 1e9:.2f}",
        ]  # fmt: skip

    header = ["memory", "read-ahead", "tier, tok/s", "stock, tok/s", "ratio", "GB read", "stock's"]
    return f"## A prompt of {N_LONG} tokens\n\n" + table(header, [line(*row) for row in rows])


if __name__ == "__main__":
    main()
