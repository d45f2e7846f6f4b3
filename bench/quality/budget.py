"""Does a budget spend bytes better than recipes that are written down? KL divergence at equal size.

    python -m bench.quality.budget CHECKPOINT --text HELDOUT [--imatrix FILE] [--chunks 40] \
        [--work DIR]

Sizes are those on the shapes of dots.llm1, where routed experts are 95 % of the weights; in a small
model they are half of them, and bits would be spent on other things. So every group of tensors
counts as many bytes as its role has in dots.llm1, and the solver of `dots quantize --bpw` gets as
many as each reference needs there. Both files are scored on the same chunks against the f32 model.
References are llama-quantize's presets, `q4`, and recipes in the manner of the dynamic quants that
others publish: more bits for attention, shared experts and embeddings, and for the down experts of
the first layers.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from bench.lib.divergence import ratio, reference_log_probabilities, score, uncertainty
from bench.lib.measure import ROOT, machine, table
from bench.quality.sensitivity import drained
from dotscli.models.dots1 import Dots1
from dotscli.models.gguf_type import TensorType
from dotscli.models.tensors import TensorSpec
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.fit.fit import free_groups, harms
from dotscli.quantize.fit.knapsack import Option, spend
from dotscli.quantize.fit.measure import measure
from dotscli.quantize.imatrix.importance import load_importance
from dotscli.quantize.plan import plan, stored_nbytes
from dotscli.quantize.recipe.recipe import Recipe, quantizable
from dotscli.quantize.recipe.types_of_file import place_of
from dotscli.quantize.source.shards import Shards

REAL = Dots1.load(ROOT / "tests" / "data" / "dots.llm1.inst")
N_REAL = sum(spec.n_elements for spec in REAL.tensors())
# What dynamic quants of mixtures do: experts at about 4 bits, everything that each token passes
# through wider, and the down experts of the first layers too. Q4_K_L is Q4_K_M with embeddings in
# 8 bits.
EMBEDDINGS = ("token_embd=q8_0", "^output=q8_0")
FIRST = r"blk\.[0-2]\.ffn_down_exps"
DYNAMIC = (
    *EMBEDDINGS, "attn_=q8_0", "_shexp=q8_0", r"ffn_(gate|up|down)\.=q8_0",
    f"{FIRST}=q8_0", "ffn_down_exps=q5_0", "_exps=q4_k",
)  # fmt: skip
SMALL = (
    "token_embd=q6_k", "^output=q6_k", "attn_=q6_k", "_shexp=q6_k", r"ffn_(gate|up|down)\.=q6_k",
    f"{FIRST}=q5_0", "ffn_down_exps=iq4_nl", "_exps=iq4_xs",
)  # fmt: skip
REFERENCES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("iq4_xs", "iq4_xs", ()),
    ("mxfp4_moe", "mxfp4_moe", ()),
    ("dynamic, small", "q8_0", SMALL),
    ("q4_0", "q4_0", ()),
    ("q4", "q4", ()),
    ("q4_k_s", "q4_k_s", ()),
    ("dynamic", "q8_0", DYNAMIC),
    ("q4_k_m", "q4_k_m", ()),
    ("q4_k_l", "q4_k_m", EMBEDDINGS),
)
HEADER = (
    "reference", "GB, real shapes", "bits per weight", "its KL, mnat", "the budget's KL, mnat",
    "budget / reference", "the budget's gate and up", "its down",
)  # fmt: skip


class Solver:
    """Chooses types for a checkpoint with the bytes that its roles have in dots.llm1."""

    def __init__(self, folder: Path, imatrix: Path | None) -> None:
        shards, self.model = Shards.open(folder), Dots1.load(folder)
        specs = shards.specs(self.model)
        self.groups = free_groups(specs, ())
        wanted = [(spec, group.candidates) for group in self.groups for spec in group.specs]
        importance = None if imatrix is None else load_importance(imatrix)
        self.harms = harms(self.groups, drained(measure(wanted, shards, importance, 1)))
        real, here = (Counter[str]() for _ in range(2))
        for n_weights, tensors in ((real, REAL.tensors()), (here, specs)):
            for spec in tensors:
                n_weights[place_of(spec.name)[1]] += spec.n_elements
        self.scale = {role: real[role] / here[role] for role in here}
        self.fixed = sum(4 * spec.n_elements for spec in REAL.tensors() if not quantizable(spec))

    def nbytes(self, spec: TensorSpec, kind: TensorType) -> int:
        """What the share of the role that this tensor stands for needs in dots.llm1."""
        return round(self.scale[place_of(spec.name)[1]] * stored_nbytes(spec, kind))

    def types(self, nbytes: int) -> dict[str, str]:
        """Tensor -> type, for so many bytes on dots.llm1's shapes."""
        options = [
            [
                Option(sum(self.nbytes(spec, kind) for spec in group.specs), harm[kind])
                for kind in group.candidates
            ]
            for group, harm in zip(self.groups, self.harms, strict=True)
        ]
        chosen = spend(options, nbytes - self.fixed)
        return {
            spec.name: group.candidates[index].name
            for group, index in zip(self.groups, chosen, strict=True)
            for spec in group.specs
        }


def counted(types: dict[str, str], part: str) -> str:
    """How often which type occurs among the tensors with this in their name."""
    found = Counter(kind for name, kind in types.items() if part in name)
    return ", ".join(f"{kind} x{n}" for kind, n in found.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "budget")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "one.gguf"

    def make(type: str, tensor_types: tuple[str, ...] = ()) -> None:
        for _ in quantize_checkpoint(
            args.checkpoint, path, type, tensor_types=tensor_types, imatrix=args.imatrix,
            force=True, threads=args.threads,
        ):  # fmt: skip
            pass

    solver = Solver(args.checkpoint, args.imatrix)
    make("f32")
    text = args.text.read_text(encoding="utf-8")
    chunks, reference = reference_log_probabilities(path, text, args.chunks, args.threads)
    rows = []
    for label, type, tensor_types in REFERENCES:
        recipe = Recipe.preset(type, tensor_types)
        nbytes = solver.fixed + sum(
            solver.nbytes(tensor.spec, tensor.type)
            for tensor in plan(solver.model, None, recipe, args.imatrix is not None).tensors
            if quantizable(tensor.spec)
        )
        make(type, tensor_types)
        theirs = score(path, chunks, reference, args.threads).kl
        types = solver.types(nbytes)
        make("f32", tuple(f"^{name}$={kind}" for name, kind in types.items()))
        ours = score(path, chunks, reference, args.threads).kl
        shown = (
            f"{1e3 * kl.mean():.3f} ± {1e3 * uncertainty(np.mean, kl):.3f}" for kl in (theirs, ours)
        )
        quotient, spread = ratio(ours, theirs)
        rows.append(
            (
                f"`{label}`", f"{nbytes / 1e9:.2f}", f"{8 * nbytes / N_REAL:.3f}", *shown,
                f"{quotient:.2f} ± {spread:.2f}", counted(types, "ffn_up_exps"),
                counted(types, "ffn_down_exps"),
            )
        )  # fmt: skip
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print("\n".join(f"- {line}" for line in machine()), "\n")
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
