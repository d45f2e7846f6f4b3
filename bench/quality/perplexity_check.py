"""Are the figures of bench/quality those of llama-perplexity? One file, one text, both ways.

    python -m bench.quality.perplexity_check          # writes docs/bench/perplexity-check.md

The nano model as q4_k_m against f32. llama-perplexity takes names of control tokens for plain text,
so the text is the conversations without them.
"""

from __future__ import annotations

import re

import numpy as np

from bench.lib.divergence import CHUNK, perplexity, reference_log_probabilities, score, tail
from bench.lib.measure import ROOT, run, table, write_report
from bench.lib.recipes import Recipe
from bench.lib.reference import cache_folder, reference
from bench.quality.presets import BASELINE, NANO, REFERENCE, subject

REPORT = ROOT / "docs" / "bench" / "perplexity-check.md"
N_CHUNKS = 20


def main() -> None:
    tool = reference().tool("llama-perplexity")
    model = subject(NANO, cache_folder(), threads=1)
    base, ours = model.gguf(REFERENCE), model.gguf(Recipe(BASELINE, BASELINE))
    text = re.sub(r"<\|\w+\|>", "\n", (model.texts / "heldout.txt").read_text("utf-8"))
    plain, kept = model.work / "check.txt", model.work / "check.kld"
    plain.write_text(text, "utf-8")
    common = ["-f", plain, "-c", str(CHUNK), "-b", str(CHUNK), "-t", "1", "-ctk", "f32",
              "-ctv", "f32", "-fa", "off", "-ngl", "0", "--chunks", str(N_CHUNKS),
              "--kl-divergence-base", kept]  # fmt: skip
    run([tool, "-m", base, *common])
    said = run([tool, "-m", ours, *common, "--kl-divergence"]).stdout
    kept.unlink()
    chunks, theirs = reference_log_probabilities(base, text, N_CHUNKS, model.threads)
    scores = score(ours, chunks, theirs, model.threads)
    pairs = (
        ("perplexity", r"Mean PPL\(Q\)\s*:\s*([\d.]+)", perplexity(scores.nll)),
        ("mean KL, nat", r"Mean\s+KLD:\s*([\d.]+)", scores.kl.mean()),
        ("median KL, nat", r"Median\s+KLD:\s*([\d.]+)", np.median(scores.kl)),
        ("99.9 % KL, nat", r"99\.9%\s+KLD:\s*([\d.]+)", tail(scores.kl)),
        ("same top token, %", r"Same top p:\s*([\d.]+)", 100 * scores.same.mean()),
    )
    rows = []
    for name, pattern, value in pairs:
        match = re.search(pattern, said)
        if match is None:
            raise SystemExit(f"llama-perplexity printed no {name}:\n{said[-2000:]}")
        rows.append((name, f"{value:.6f}", match[1]))
    about = (
        f"The nano model as `{BASELINE}` against f32, {N_CHUNKS} chunks of {CHUNK} tokens of "
        "conversations without control tokens. llama-perplexity keeps the reference's "
        "probabilities in 16 bits each; here they are float32."
    )
    write_report(
        REPORT,
        "KL divergence: the same as llama-perplexity's",
        [about, table(("", "bench/quality/presets.py", "llama-perplexity"), rows)],
    )


if __name__ == "__main__":
    main()
