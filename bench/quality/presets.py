"""What quantizing costs: KL divergence, perplexity and top-1 agreement against size.

    python -m bench.quality.presets [--checkpoint DIR ...]      # rewrites docs/bench/quality.md

For each checkpoint folder: an f32 GGUF as the reference, an importance matrix from its
`calibration.txt`, every preset and every recipe of RECIPES with and without it, each evaluated on
its `heldout.txt` (the nano model's texts are written anew from seeds no training used). Sizes are
those of the same recipe on the shapes of dots.llm1, where routed experts are 95 % of the weights.
bench/quality/perplexity_check.py compares the method with llama-perplexity.

Without --checkpoint: the nano model, the same with its channels shuffled
(bench/quality/shuffle.py), and the model of bench/quality/larger.py if it was trained with --work
CACHE/larger. GGUFs and scores are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.lib.curve import Point, picture
from bench.lib.divergence import (
    CHUNK,
    Floats,
    Scores,
    perplexity,
    ratio,
    reference_log_probabilities,
    score,
    tail,
    uncertainty,
)
from bench.lib.measure import ROOT, dots, dots_env, machine, note, run, table
from bench.lib.recipes import GROUPS, RECIPES, Recipe, presets, real_size
from bench.lib.reference import cache_folder
from bench.quality.shuffle import shuffle

REPORT = ROOT / "docs" / "bench" / "quality.md"
NANO = ROOT / "models" / "nano"
NANO_SEEDS = {"heldout.txt": 990_001, "calibration.txt": 990_002}
NANO_TALKS = 1500
BASELINE = "q4_k_m"
REFERENCE = Recipe("f32", "f32")
CALIBRATION_CHUNKS = 150
BLOCK = re.compile(r"(<!-- measured -->\n).*(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Subject:
    """One checkpoint and where what is made of it is kept."""

    name: str
    folder: Path
    texts: Path
    work: Path
    threads: int

    def gguf(self, recipe: Recipe, imatrix: Path | None = None) -> Path:
        """The GGUF of a recipe, made unless it is there."""
        tensors = recipe.types(self.folder, imatrix)
        key = [tensors, digest(imatrix) if imatrix else ""]
        name = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
        path = self.work / f"{name}.gguf"
        if not path.exists():
            more = ["--imatrix", imatrix] if imatrix else []
            run(
                [*dots(), "quantize", self.folder, "-o", path, *recipe.arguments, *more,
                 "--threads", str(self.threads)],
                env=dots_env(),
            )  # fmt: skip
        return path


@dataclass(frozen=True)
class Result:
    """One file that was scored."""

    recipe: Recipe
    with_importance: bool
    scores: Scores


def digest(path: Path) -> str:
    """A hash of a file's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def subject(folder: Path, cache: Path, threads: int) -> Subject:
    """A checkpoint with its two texts; where it has none, it gets those of the nano model."""
    weights = "".join(digest(path) for path in sorted(folder.glob("*.safetensors")))
    name = folder.resolve().name if folder.name != "model" else folder.resolve().parent.name
    key = hashlib.blake2b(weights.encode(), digest_size=6).hexdigest()
    work = cache / "quality" / f"{name}-{key}"
    work.mkdir(parents=True, exist_ok=True)
    if (folder / "heldout.txt").exists():
        return Subject(name, folder, folder, work, threads)
    from dotscli.models.nano.text import render, talks

    for file, seed in NANO_SEEDS.items():
        text = "".join(render(talk) for talk in talks(seed, NANO_TALKS))
        (work / file).write_text(text, "utf-8")
    return Subject(name, folder, work, work, threads)


def importance(model: Subject, base: Path) -> Path:
    """The importance matrix of the calibration text."""
    text = model.texts / "calibration.txt"
    path = model.work / f"calibrated-{digest(text)}-{CALIBRATION_CHUNKS}.gguf"
    if not path.exists():
        run(
            [*dots(), "calibrate", base, "-f", text, "-o", path, "--ctx-size", str(CHUNK),
             "--chunks", str(CALIBRATION_CHUNKS), "--threads", str(model.threads),
             "--parse-special"],
            env=dots_env(),
        )  # fmt: skip
    return path


def measure(
    model: Subject, recipes: Sequence[tuple[Recipe, bool]], n_chunks: int
) -> tuple[float, list[Result]]:
    """The reference's perplexity, and every recipe (with or without importance) scored."""
    base = model.gguf(REFERENCE)
    imatrix = importance(model, base)
    text = (model.texts / "heldout.txt").read_text("utf-8")
    kept = f"{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}-{n_chunks}"
    chunks, theirs = reference_log_probabilities(base, text, n_chunks, model.threads)
    results = []
    for recipe, with_importance in recipes:
        path = model.gguf(recipe, imatrix if with_importance else None)
        scored = path.with_suffix(f".{kept}.npz")
        if not scored.exists():
            score(path, chunks, theirs, model.threads).save(scored)
        results.append(Result(recipe, with_importance, Scores.load(scored)))
        kl = results[-1].scores.kl.mean()
        note(f"{model.name} {recipe.label}{' + imatrix' * with_importance}: KL {kl:.5f}")
    following = np.array([chunk[CHUNK // 2 + 1 :] for chunk in chunks])
    nll = -np.take_along_axis(theirs, following[..., None], -1)
    return float(perplexity(nll.astype(np.float64))), results


def plus_minus(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def in_millinats(kl: Floats) -> str:
    """The mean, with its uncertainty."""
    return plus_minus(1e3 * kl.mean(), 1e3 * uncertainty(np.mean, kl), 2)


def rows(results: Iterable[Result], against: Floats) -> Iterable[tuple[str, ...]]:
    """A table row for each result; KL also as a ratio to `against`, the baseline's."""
    for result in results:
        scores, kl = result.scores, result.scores.kl
        nbytes, bpw = real_size(result.recipe, result.with_importance)
        yield (
            f"`{result.recipe.label}`" + (" + imatrix" if result.with_importance else ""),
            f"{nbytes / 1e9:.2f}" if nbytes else "",
            f"{bpw:.3f}",
            in_millinats(kl),
            plus_minus(*ratio(kl, against), 3),
            plus_minus(1e3 * float(np.median(kl)), 1e3 * uncertainty(np.median, kl), 3),
            plus_minus(float(tail(kl)), uncertainty(tail, kl), 3),
            plus_minus(100 * scores.same.mean(), 100 * uncertainty(np.mean, scores.same), 2),
            plus_minus(float(perplexity(scores.nll)), uncertainty(perplexity, scores.nll), 3),
        )


HEADER = (
    "recipe", "GB, real shapes", "bits per weight", "mean KL, mnat", "KL / Q4_K_M's",
    "median KL, mnat", "99.9 % KL, nat", "same top token, %", "perplexity",
)  # fmt: skip


def section(model: Subject, base: float, results: Sequence[Result]) -> tuple[str, list[Point]]:
    """One model's table, smallest file first, and its points of the curve."""
    plain = [r for r in results if r.recipe.label not in GROUPS]
    against = next(
        r.scores.kl for r in plain if r.recipe.label == BASELINE and not r.with_importance
    )
    plain.sort(key=lambda r: (real_size(r.recipe, r.with_importance)[1], r.with_importance))
    about = (
        f"### {model.name}\n\nReference: f32, perplexity {base:.3f}; "
        f"{against.size} tokens scored in {len(against)} chunks of {CHUNK}."
    )
    alone = [
        (r.recipe.label, in_millinats(r.scores.kl)) for r in results if r.recipe.label in GROUPS
    ]
    groups = "One group alone quantized, everything else f32, no importance matrix:\n\n" + table(
        ("group", "mean KL, mnat"), alone
    )
    points = [
        Point(r.recipe.label, real_size(r.recipe, r.with_importance)[1],
              float(r.scores.kl.mean()), r.with_importance)
        for r in plain
        if real_size(r.recipe, r.with_importance)[1] < 6
    ]  # fmt: skip
    return "\n\n".join([about, table(HEADER, rows(plain, against)), groups]), points


def default_checkpoints(cache: Path) -> list[Path]:
    """What is measured unless other folders are named."""
    shuffled, larger = cache / "nano-shuffled", cache / "larger" / "model"
    if not shuffled.exists():
        shuffle(NANO, shuffled)
    return [NANO, shuffled, *([larger] if larger.exists() else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--checkpoint", type=Path, action="append", help="may be given repeatedly")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="regex: score these recipes only, print, write no report")
    options = parser.parse_args()
    cache = cache_folder()
    folders = options.checkpoint or default_checkpoints(cache)
    wanted = [
        (recipe, flag)
        for recipe in (*presets(), *RECIPES, *GROUPS.values())
        for flag in ((False, True) if recipe.takes_importance else (False,))
        if re.search(options.only or "", recipe.label)
    ]
    sections, panels = [], []
    for folder in folders:
        model = subject(folder, cache, options.threads)
        base, results = measure(model, wanted, options.chunks)
        if options.only:
            continue
        text, points = section(model, base, results)
        sections.append(text)
        panels.append((f"{model.name}: KL divergence to f32", points))
    if options.only:
        return
    title = "bits per weight on dots.llm1's shapes"
    REPORT.with_suffix(".svg").write_text(picture(panels, title, "mean KL, nat"), "utf-8")
    about = "\n".join(f"- {line}" for line in machine())
    block = "\n\n".join([about, "![KL against bits per weight](quality.svg)", *sections])
    old = REPORT.read_text("utf-8")
    REPORT.write_text(BLOCK.sub(lambda m: f"{m[1]}{block}\n{m[2]}", old), "utf-8")
    note(f"wrote {REPORT}")


if __name__ == "__main__":
    main()
