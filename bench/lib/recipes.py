"""Which recipes bench/quality/presets.py compares, and what each costs on the shapes of dots.llm1.

A new point is a line of RECIPES: a label and the arguments of `dots quantize`. Budgets (`--bpw`)
are compared in bench/quality/budget.py, which counts tensors with their bytes in dots.llm1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from bench.lib.measure import ROOT
from dotscli.models.dots1 import Dots1
from dotscli.quantize import plan_checkpoint
from dotscli.quantize.plan import plan
from dotscli.quantize.recipe.presets import PRESETS
from dotscli.quantize.recipe.recipe import Recipe as Rules

REAL = ROOT / "tests" / "data" / "dots.llm1.inst"
UNWEIGHED = ("f32", "f16", "bf16", "q8_0", "mxfp4_moe")  # an importance matrix changes nothing


@dataclass(frozen=True)
class Recipe:
    """One way to quantize.

    Attributes:
        type: a preset. tensor_types: overrides REGEX=TYPE.
    """

    label: str
    type: str
    tensor_types: tuple[str, ...] = ()

    @property
    def takes_importance(self) -> bool:
        """Whether an importance matrix can change the file."""
        return self.type not in UNWEIGHED

    @property
    def arguments(self) -> list[str]:
        """Those of `dots quantize`."""
        overrides = [part for text in self.tensor_types for part in ("--tensor-type", text)]
        return ["--type", self.type, *overrides]

    def types(self, folder: Path, imatrix: Path | None) -> list[tuple[str, str]]:
        """Name and type of every tensor."""
        found = plan_checkpoint(folder, self.type, tensor_types=self.tensor_types, imatrix=imatrix)
        return [(tensor.name, tensor.type.name) for tensor in found.tensors]


@functools.cache
def real_size(recipe: Recipe, with_importance: bool) -> tuple[int, float]:
    """Bytes of all tensors and bits per weight on dots.llm1's shapes."""
    rules = Rules.preset(recipe.type, recipe.tensor_types)
    found = plan(Dots1.load(REAL), None, rules, with_importance)
    return found.total_bytes, found.bpw


def presets() -> tuple[Recipe, ...]:
    """Every preset but the reference."""
    return tuple(Recipe(p.name, p.name) for p in PRESETS if p.name != "f32")


_NOT_EXPERTS = "^(?!.*_exps)"
RECIPES = tuple(
    Recipe(f"q4, {label}", "q4", overrides)
    for label, overrides in (
        ("rest q5_k", (f"{_NOT_EXPERTS}=q5_k",)),
        ("rest q6_k", (f"{_NOT_EXPERTS}=q6_k",)),
        ("attn q8_0", ("attn_=q8_0",)),
        ("rest q8_0", (f"{_NOT_EXPERTS}=q8_0",)),
        ("xs + q5_0", ("(gate|up)_exps=iq4_xs", "down_exps=q5_0")),
        ("down q5_0", ("down_exps=q5_0",)),
    )
)

_PARTS = (  # each by itself: a name, the tensors, the types
    ("attention", "attn_", ("q4_k", "q6_k", "q8_0")),
    ("output", "^output", ("q4_k", "q6_k", "q8_0")),
    ("embedding", "token_embd", ("q4_k", "q6_k", "q8_0")),
    ("dense layer", r"ffn_(gate|up|down)\.", ("q4_k", "q6_k", "q8_0")),
    ("shared experts", "_shexp", ("q4_k", "q6_k", "q8_0")),
    ("routed gate and up", "ffn_(gate|up)_exps", ("iq4_xs", "q4_k", "q5_k")),
    ("routed down", "ffn_down_exps", ("iq4_nl", "q5_0", "q5_1", "q8_0")),
)
GROUPS = {
    f"{name}: {kind.upper()}": Recipe(f"{name}: {kind.upper()}", "f32", (f"{pattern}={kind}",))
    for name, pattern, kinds in _PARTS
    for kind in kinds
}
