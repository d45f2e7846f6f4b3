"""How much a layer should say about an expert that saw few tokens, measured on the nano model.

The model reads its own kind of text in chunks of 64 tokens, and what goes into every expert is
kept chunk by chunk. Then samples of chunks play a short calibration: for each expert its columns'
weights are estimated from the sample's n tokens as

    (n own + k prior) / (n + k)        own: the sample's mean squares, prior: of the same level

and compared with those of all other chunks (experts with at least 3,000 tokens there). The error
is that of the weights' logarithms, the level aside, as quantizers don't see it: root mean square
over columns and experts. Two priors are tried, the layer's mean over all its experts' tokens and
equal weights, for gate and up, which read the same input, and for down.

    python -m bench.quality.blending               # writes docs/bench/blending.md, 2 minutes

The constants in quantize/imatrix/importance.py come from this table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bench.lib.measure import ROOT, dots, dots_env, note, run, table, write_report
from bench.lib.reference import cache_folder
from bench.quantize.calibrate import NANO
from dotscli.engine import Engine, EngineOptions
from dotscli.engine.collect import Collector
from dotscli.models.nano.text import talks

CHUNK = 64
STRENGTHS = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # k, in tokens
BINS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # n, first token of each row
ENOUGH = 3000  # tokens in the rest, for it to count as the truth
PRIORS = ("layer", "equal")

Kept = dict[str, tuple[np.ndarray, np.ndarray]]


def collect(gguf: Path, n_chunks: int) -> Kept:
    """By tensor: sums (chunks, experts, columns) and counts (chunks, experts) of every chunk."""
    text = "".join(
        f"<|userprompt|>{question}<|endofuserprompt|><|response|>{answer}<|endofresponse|>"
        for talk in talks(7, n_chunks * 2)
        for question, answer in talk.turns
    )
    collector = Collector()
    sums: dict[str, list[np.ndarray]] = {}
    counts: dict[str, list[np.ndarray]] = {}
    options = EngineOptions(n_ctx=CHUNK, n_threads=1)
    with Engine.load(gguf, options, collector=collector) as engine:
        tokens = engine.tokenize(text, parse_special=True)
        for number in range(min(n_chunks, len(tokens) // CHUNK)):
            for found in engine.collect(tokens[number * CHUNK :][:CHUNK], collector):
                name = found.names[0]
                if "_exps" in name:
                    sums.setdefault(name, []).append(found.sums)
                    counts.setdefault(name, []).append(found.counts)
    return {name: (np.stack(sums[name]), np.stack(counts[name])) for name in sums}


def squared_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Mean square over columns of what the logarithms differ by, but for a constant."""
    apart = np.log(estimate / truth)
    return float(np.mean((apart - apart.mean()) ** 2))


def measure(kept: Kept, is_down: bool, n_samples: int) -> dict[str, np.ndarray]:
    """By prior: the error by n and k, (rows, strengths); NaN where nothing was sampled."""
    rng = np.random.default_rng(0)
    errors = {prior: np.zeros((len(BINS) - 1, len(STRENGTHS))) for prior in PRIORS}
    found = np.zeros(len(BINS) - 1)
    for name, (sums, counts) in kept.items():
        if ("ffn_down" in name) != is_down:
            continue
        all_sums, all_counts = sums.sum(axis=0, dtype=np.float64), counts.sum(axis=0)
        for _ in range(n_samples):
            n_picked = int(np.exp(rng.uniform(0, np.log(200))))
            picked = rng.choice(len(sums), n_picked, replace=False)
            own_sums, n = sums[picked].sum(axis=0, dtype=np.float64), counts[picked].sum(axis=0)
            layer = own_sums.sum(axis=0)
            for expert in np.flatnonzero((n >= BINS[0]) & (n < BINS[-1])):
                rest = all_counts[expert] - n[expert]
                if rest < ENOUGH:
                    continue
                truth = (all_sums[expert] - own_sums[expert]) / rest
                own = own_sums[expert] / n[expert]
                row = int(np.searchsorted(BINS, n[expert], side="right")) - 1
                found[row] += 1
                for prior, shape in zip(PRIORS, (layer, np.ones_like(own)), strict=True):
                    level = shape * (own.mean() / shape.mean())
                    errors[prior][row] += [
                        squared_error((n[expert] * own + k * level) / (n[expert] + k), truth)
                        for k in STRENGTHS
                    ]
    with np.errstate(invalid="ignore"):
        return {prior: np.sqrt(total / found[:, None]) for prior, total in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=20, help="per tensor")
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "bench" / "blending.md")
    options = parser.parse_args()
    gguf = options.cache / "nano-q4_k_m.gguf"
    if not gguf.exists():
        run([*dots(), "quantize", NANO, "-o", gguf, "--type", "q4_k_m"], env=dots_env())
    kept = collect(gguf, options.chunks)
    note("collected")
    sections = [
        f"`python -m bench.quality.blending`: {options.chunks} chunks of {CHUNK} tokens, "
        f"{options.samples} samples per tensor. Error of the weights' logarithms by the tokens n "
        "that an expert saw (rows) and the tokens k that the prior counts for (columns)."
    ]
    for title, is_down in (("gate and up", False), ("down", True)):
        for prior, errors in measure(kept, is_down, options.samples).items():
            rows = [
                [f"{low} to {high - 1}", *(f"{value:.3f}" for value in row)]
                for low, high, row in zip(BINS, BINS[1:], errors, strict=False)
            ]
            header = ["n", *(f"k = {k}" for k in STRENGTHS)]
            sections.append(f"## {title}, prior: {prior}\n\n{table(header, rows)}")
    print("\n\n".join(sections))
    write_report(options.report, "Blending thin experts", sections)


if __name__ == "__main__":
    main()
