"""What `dots calibrate` costs and whether its sums are llama-imatrix's.

1. Time: chunks of the same text through two contexts of one process in turn, one with the
   collector and one without a callback; then the whole commands in turn, `dots calibrate` and
   llama-imatrix, with the same texts, chunks, batch and threads.
2. Agreement: counts and sums of both, entry by entry.
3. Use: llama-quantize reads the file that `dots calibrate` has written, and makes the same tensors
   of it as `dots quantize --no-blend`.

    python -m bench.quantize.calibrate              # writes docs/bench/calibrate.md

Models: the nano model, and the checkpoint preset `decode` of bench/lib/checkpoint.py (14 layers, 32
experts, the full vocabulary), both q4_k_m. Exits with 1 if counts on the nano model or tensors
differ, or if collecting costs more than 1.5 times the evaluation. Needs bench/lib/reference.py run
once. Disk: about 3 GB.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from bench.lib.checkpoint import cached
from bench.lib.measure import (
    ROOT,
    Transcript,
    alternate,
    dots,
    dots_env,
    note,
    ratios,
    run,
    spread,
    table,
    wait_until_quiet,
    warm,
    write_report,
)
from bench.lib.reference import Reference, cache_folder, reference
from bench.quantize.upstream_equal import compare_tensors
from dotscli.engine import Engine, EngineOptions
from dotscli.engine.collect import Collector
from dotscli.engine.lib import llama
from dotscli.quantize.imatrix.file import read_imatrix
from tests.reference import with_default_alignment

CHUNK = 512
MOST = 1.5  # what collecting may cost, in evaluations without it
NANO = ROOT / "models" / "nano"


class Silent(Collector):
    """A collector without a callback: the evaluation alone, with the same outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.callback: Any = llama().ggml_backend_sched_eval_callback()


def text_of(folder: Path) -> Path:
    """This project's sources and documents as one text, the same for a commit."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("dotscli/*.py")]
    out = folder / "text.txt"
    out.write_text("\n".join(path.read_text("utf-8") for path in sorted(paths)), "utf-8")
    return out


def chunk_times(gguf: Path, text: Path, threads: int, n_chunks: int) -> tuple[list[float], ...]:
    """Seconds per chunk with and without collecting, chunk by chunk in turn."""
    options = EngineOptions(n_ctx=CHUNK, n_threads=threads)
    collectors = (Collector(), Silent())
    with (
        Engine.load(gguf, options, collector=collectors[0]) as collecting,
        Engine.load(gguf, options, collector=collectors[1]) as evaluating,
    ):
        tokens = collecting.tokenize(text.read_text("utf-8"), parse_special=False)
        sides = list(zip((collecting, evaluating), collectors, strict=True))
        times: tuple[list[float], ...] = ([], [])
        for number in range(-1, n_chunks):  # the first is to warm up
            chunk = tokens[max(number, 0) * CHUNK :][:CHUNK]
            for seconds, (engine, collector) in zip(times, sides, strict=True):
                start = time.perf_counter()
                engine.collect(chunk, collector)
                if number >= 0:
                    seconds.append(time.perf_counter() - start)
    return times


def commands(
    gguf: Path, text: Path, threads: int, n_chunks: int, where: Reference, work: Path
) -> dict[str, list[str | Path]]:
    """The two whole commands; llama-imatrix without its perplexity, which dots doesn't compute."""
    at = ["-f", text, "-c", str(CHUNK), "--chunks", str(n_chunks), "-t", str(threads)]
    return {
        "dots calibrate": [*dots(), "calibrate", gguf, *at, "-o", work / "ours.gguf", "--force"],
        "llama-imatrix": [
            where.tool("llama-imatrix"), "-m", gguf, *at, "-o", work / "theirs.gguf",
            "-b", str(CHUNK), "--no-ppl",
        ],
    }  # fmt: skip


def agreement(work: Path, out: Transcript, name: str) -> bool:
    """Whether names and counts are the same; says how far sums are apart."""
    ours, theirs = (read_imatrix(work / n).entries for n in ("ours.gguf", "theirs.gguf"))
    if ours.keys() != theirs.keys():
        out.say(f"{name}: entries differ: {sorted(ours.keys() ^ theirs.keys())[:4]}")
        return False
    different = moved = total = 0
    worst = 0.0
    for key, entry in theirs.items():
        mine = ours[key]
        changed = mine.counts != entry.counts
        different += int(changed.sum())
        moved += int(np.abs(mine.counts - entry.counts).sum()) // 2
        total += int(entry.counts.sum())
        same = ~changed & (entry.counts > 0)
        if same.any():
            apart = np.abs(mine.sums[same] - entry.sums[same]).max(axis=1)
            worst = max(worst, float((apart / entry.sums[same].max(axis=1)).max()))
    n_counts = sum(entry.counts.size for entry in theirs.values())
    out.say(
        f"{name}: {len(theirs)} entries, {different} of {n_counts} "
        f"counts differ ({moved} of {total} rows went to another expert); where counts are the "
        f"same, sums differ by at most {worst:.1e} of the largest of their matrix"
    )
    return different == 0


def use(text: Path, where: Reference, work: Path, out: Transcript) -> bool:
    """llama-quantize and dots make the same tensors with a file that dots has written."""
    bf16, imatrix = work / "bf16.gguf", work / "nano.imatrix.gguf"
    run([*dots(), "quantize", NANO, "-o", bf16, "--type", "bf16"], env=dots_env())
    run([*dots(), "calibrate", bf16, "-f", text, "-o", imatrix, "--chunks", "8"], env=dots_env())
    plain = with_default_alignment(bf16, work / "nano.plain.gguf")  # llama-quantize wants that
    good = True
    for kind in ("q4_k_m", "iq4_xs"):
        theirs, ours = work / f"{kind}.theirs.gguf", work / f"{kind}.ours.gguf"
        quantize = where.tool("llama-quantize")
        run([quantize, "--imatrix", imatrix, plain, theirs, kind.upper(), "2"])
        options = ["--type", kind, "--imatrix", imatrix, "--no-blend"]
        run([*dots(), "quantize", NANO, "-o", ours, *options], env=dots_env())
        lines = compare_tensors(GGUFReader(ours), GGUFReader(theirs))
        out.say(f"nano {kind}: {'equal' if not lines else lines[:3]}")
        good &= not lines
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "calibrate.md")
    options = parser.parse_args()
    where = reference(options.cache)
    work = options.cache / "calibrate"
    work.mkdir(parents=True, exist_ok=True)
    text = text_of(work)
    decode = cached("decode", options.cache / "checkpoints", options.cache)
    models = {}
    for name, checkpoint in (("nano", NANO), ("decode", decode)):
        models[name] = options.cache / f"{name}-q4_k_m.gguf"
        if not models[name].exists():
            out = ["-o", models[name], "--type", "q4_k_m"]
            run([*dots(), "quantize", checkpoint, *out], env=dots_env())
    warm(models.values())
    load = wait_until_quiet(0.1, options.patience)
    good, said = True, Transcript()
    rows, whole = [], []
    for name, gguf in models.items():
        note(name)
        collecting, evaluating = chunk_times(gguf, text, options.threads, options.chunks)
        cost = ratios(collecting, evaluating)
        good &= statistics.median(cost) <= MOST
        rows.append([name, spread(evaluating, 3), spread(collecting, 3), spread(cost)])
        pair = commands(gguf, text, options.threads, options.chunks, where, work)
        sides = {
            side: lambda command=command: run(command, env=dots_env())
            for side, command in pair.items()
        }
        results = alternate(sides, options.repeats)
        walls = {side: [one.wall_s for one in runs] for side, runs in results.items()}
        ratio = spread(ratios(walls["dots calibrate"], walls["llama-imatrix"]))
        whole.append([name, *(spread(seconds) for seconds in walls.values()), ratio])
        equal = agreement(work, said, name)
        good &= equal or name != "nano"
    good &= use(text, where, work, said)
    sections = [
        f"`python -m bench.quantize.calibrate`, {options.threads} threads, "
        f"{options.chunks} chunks of "
        f"{CHUNK} tokens; medians, in brackets the range; ratios are of neighbouring runs. Other "
        f"programs used {load:.2f} cores when it began.",
        "## Collecting against evaluating alone, seconds per chunk\n\n"
        + table(["model", "evaluating", "collecting", "ratio"], rows),
        f"## The whole command, {options.repeats} runs each, seconds\n\n"
        + table(["model", "dots calibrate", "llama-imatrix --no-ppl", "ratio"], whole),
        "## Agreement with llama-imatrix, and use by llama-quantize\n\n" + said.block(),
    ]
    print("\n\n".join(sections))
    write_report(options.report, "Calibrating", sections)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
