"""How much an error in one kind of tensor harms: KL divergence per relative squared error.

    python -m bench.quality.sensitivity CHECKPOINT --text FILE [--imatrix FILE] [--chunks 24] \
        [--work DIR]

For every role a GGUF is made in which only that role's tensors are quantized and all others are
f32. Its KL divergence from the f32 model, less that of the role as Q8_0 (which is what rounding
the activations costs), is divided by the mean relative error of the role's tensors, as
`dotscli.quantize.fit.measure` has it. Two types tell whether the quotient is a constant. The
figures of `quantize/fit/sensitivity.py` come from here.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from pathlib import Path

from bench.lib.divergence import reference_log_probabilities, score, uncertainty
from bench.lib.measure import ROOT
from dotscli.models.dots1 import Dots1
from dotscli.models.tensors import naming_of
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.fit.measure import Errors, measure
from dotscli.quantize.imatrix.importance import load_importance
from dotscli.quantize.recipe.recipe import quantizable
from dotscli.quantize.recipe.types_of_file import place_of
from dotscli.quantize.source.shards import Shards
from dotscli.quantize.types import type_named

FLOOR = "Q8_0"
TYPES = ("MXFP4", "Q4_0")  # coarse ones that fit every row


def drained(work: Generator[object, None, Errors]) -> Errors:
    """What a generator returns once everything it yields is taken."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: Errors = end.value
            return found


def relative_errors(folder: Path, imatrix: Path | None) -> dict[str, dict[str, dict[int, float]]]:
    """type -> role -> layer (-1 outside the layers) -> relative squared error."""
    shards = Shards.open(folder)
    specs = [
        spec for spec in Dots1.load(folder).tensors(naming_of(shards.names())) if quantizable(spec)
    ]
    kinds = [type_named(name) for name in (FLOOR, *TYPES)]
    importance = None if imatrix is None else load_importance(imatrix)
    errors = drained(measure([(spec, kinds) for spec in specs], shards, importance, 1))
    found: dict[str, dict[str, dict[int, float]]] = {kind.name: {} for kind in kinds}
    for spec in specs:
        layer, role = place_of(spec.name)
        for kind in kinds:
            found[kind.name].setdefault(role, {})[layer] = errors[spec.name][kind]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "sensitivity")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    def made(name: str, *overrides: str) -> Path:
        path: Path = args.work / f"{name}.gguf"
        for _ in quantize_checkpoint(
            args.checkpoint, path, "f32", tensor_types=overrides, imatrix=args.imatrix, force=True
        ):
            pass
        return path

    errors = relative_errors(args.checkpoint, args.imatrix)
    text = args.text.read_text(encoding="utf-8")
    chunks, reference = reference_log_probabilities(made("f32"), text, args.chunks, args.threads)
    print("| role | type | relative error | KL | per error |")
    print("|---|---|--:|--:|--:|")
    for role in errors[FLOOR]:
        floor, floor_error = 0.0, 0.0
        for kind in (FLOOR, *TYPES):
            path = made("one", rf"(^|\.){role}\.weight={kind}")
            kl = score(path, chunks, reference, args.threads).kl
            layers = errors[kind][role].values()
            error = sum(layers) / len(layers)
            mean, spread = float(kl.mean()), uncertainty(lambda values: values.mean(), kl)
            if kind == FLOOR:
                floor, floor_error = mean, error
            slope = "" if kind == FLOOR else f"{(mean - floor) / (error - floor_error):.4f}"
            print(
                f"| `{role}` | {kind} | {error:.6f} | {mean:.6f} ± {spread:.6f} | {slope} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
