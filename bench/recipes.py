"""Which recipes bench/quality.py compares, and what each costs on the shapes of dots.llm1.

A new point is a line of RECIPES: a label and the arguments of `dots quantize`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from measure import ROOT

from dotscli.models.dots1 import Dots1
from dotscli.quantize import plan_checkpoint
from dotscli.quantize.plan import plan
from dotscli.quantize.presets import PRESETS
from dotscli.quantize.recipe import Recipe as Rules

REAL = ROOT / "tests" / "data" / "dots.llm1.inst"
EXACT = ("f32", "f16", "bf16", "q8_0")  # an importance matrix changes nothing


@dataclass(frozen=True)
class Recipe:
    """One way to quantize.

    Attributes:
        type: a preset. tensor_types: overrides REGEX=TYPE.
        budget: further arguments, such as ("--bpw", "4.25"); types then depend on the weights.
    """

    label: str
    type: str
    tensor_types: tuple[str, ...] = ()
    budget: tuple[str, ...] = ()

    @property
    def takes_importance(self) -> bool:
        """Whether an importance matrix can change the file."""
        return self.type not in EXACT or bool(self.tensor_types)

    @property
    def arguments(self) -> list[str]:
        """Those of `dots quantize`."""
        overrides = [part for text in self.tensor_types for part in ("--tensor-type", text)]
        return ["--type", self.type, *overrides, *self.budget]

    def types(self, folder: Path, imatrix: Path | None) -> list[tuple[str, str]]:
        """Name and type of every tensor, before a budget."""
        found = plan_checkpoint(folder, self.type, tensor_types=self.tensor_types, imatrix=imatrix)
        return [(tensor.name, tensor.type.name) for tensor in found.tensors]


@functools.cache
def real_size(recipe: Recipe, with_importance: bool) -> tuple[int, float]:
    """Bytes of all tensors and bits per weight on dots.llm1's shapes; with a budget, its bits."""
    if recipe.budget:
        return 0, float(recipe.budget[1])
    rules = Rules.preset(recipe.type, recipe.tensor_types)
    found = plan(Dots1.load(REAL), None, rules, with_importance)
    return found.total_bytes, found.bpw


def presets() -> tuple[Recipe, ...]:
    """Every preset but the reference."""
    return tuple(Recipe(p.name, p.name) for p in PRESETS if p.name != "f32")


def mixture(label: str, gate_up: str, down: str, rest: str, output: str = "") -> Recipe:
    """Routed gate and up, routed down, everything else, and perhaps the output by itself."""
    overrides = (f"ffn_(gate|up)_exps={gate_up}", f"ffn_down_exps={down}")
    return Recipe(label, "q8_0", (*overrides, f"^output={output or rest}", f".={rest}"))


RECIPES = (
    mixture("q4k+nl, rest q6_k", "q4_k", "iq4_nl", "q6_k"),
    mixture("q4k+nl, rest q8_0", "q4_k", "iq4_nl", "q8_0"),
    mixture("xs+q5_0, rest q6_k", "iq4_xs", "q5_0", "q6_k"),
    mixture("xs+q5_0, rest q8_0", "iq4_xs", "q5_0", "q8_0"),
    mixture("xs+nl, rest q8_0", "iq4_xs", "iq4_nl", "q8_0"),
    mixture("q4k+q5_0, rest q8_0", "q4_k", "q5_0", "q8_0"),
)

GROUPS = {
    label: Recipe(label, "f32", (label,))
    for label in (
        "attn_=q4_k", "attn_=q6_k", "attn_=q8_0",
        "_shexp=q4_k", "_shexp=q6_k", "_shexp=q8_0",
        "^output=q4_k", "^output=q6_k", "^output=q8_0",
        "token_embd=q4_k", "token_embd=q6_k", "token_embd=q8_0",
        "ffn_(gate|up|down).weight=q4_k", "ffn_(gate|up|down).weight=q6_k",
        "ffn_(gate|up)_exps=iq4_xs", "ffn_(gate|up)_exps=q4_k", "ffn_(gate|up)_exps=q5_k",
        "ffn_down_exps=iq4_nl", "ffn_down_exps=q5_0", "ffn_down_exps=q5_1", "ffn_down_exps=q8_0",
    )
}  # fmt: skip
