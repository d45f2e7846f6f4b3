"""Which type each preset gives each tensor: llama-quantize's rules for dots1, and the recipe q4.

The rules are those of llama.cpp's llama-quant.cpp (llama_tensor_get_type_impl) as far as dots1 can
meet them, stated per role; tests compare every preset with that library tensor by tensor. Pure
functions of a tensor's name, shape and place: nothing here reads a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dotscli.errors import DotsError
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.types import (
    BF16,
    F16,
    F32,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_K,
    Q6_K,
    Q8_0,
)


@dataclass(frozen=True)
class Place:
    """What a rule may look at.

    Attributes:
        role: the name without layer and ".weight": "token_embd", "attn_v", "ffn_down_exps" ...
        layer: the layer number, -1 outside the layers.
        n_columns: length of a row.
        with_importance: whether the file is made with an importance matrix.
    """

    role: str
    layer: int
    n_layers: int
    n_experts: int
    n_columns: int
    with_importance: bool

    @property
    def is_ffn_down(self) -> bool:
        """ffn_down, ffn_down_exps and ffn_down_shexp are one category for llama-quantize."""
        return self.role.startswith("ffn_down")

    @property
    def in_first_eighth(self) -> bool:
        """Layers whose errors every later layer sees."""
        return 0 <= self.layer < self.n_layers // 8

    @property
    def more_bits(self) -> bool:
        """use_more_bits of llama-quantize: the first and last eighth, and every third between."""
        first = self.n_layers // 8
        return (
            self.layer < first
            or self.layer >= 7 * self.n_layers // 8
            or (self.layer - first) % 3 == 2
        )


Rule = Callable[[Place], TensorType]


@dataclass(frozen=True)
class Preset:
    """One value of --type.

    Attributes:
        mostly: what such a file mostly is, as llama.cpp names it: Q4_K_M, F32 ...
        rule: the type of each quantizable tensor, before shapes force another.
    """

    name: str
    mostly: str
    rule: Rule
    summary: str

    @property
    def file_type(self) -> int:
        """llama.cpp's number for general.file_type."""
        from gguf import LlamaFileType  # slow to import, and most plans don't ask

        prefix = "ALL" if self.mostly == "F32" else "MOSTLY"
        return int(LlamaFileType[f"{prefix}_{self.mostly}"])


def _everywhere(wanted: TensorType) -> Rule:
    return lambda place: wanted


def _output(default: TensorType, place: Place) -> TensorType:
    if place.n_columns % default.block or default is Q8_0:
        return Q8_0
    return Q6_K


def _mixture(default: TensorType, special: Rule) -> Rule:
    """A preset of llama-quantize: its own exceptions, then those for models with 8 experts."""

    def rule(place: Place) -> TensorType:
        if place.role == "output":
            return _output(default, place)
        if place.role in ("attn_v", "attn_k") and place.n_experts == 8:
            return Q8_0
        if place.role == "attn_output" and place.n_experts == 8 and default in (
            Q4_K, IQ4_NL, IQ4_XS,
        ):  # fmt: skip
            return Q5_K
        return special(place)

    return rule


def _q4_0(place: Place) -> TensorType:
    first_down = place.is_ffn_down and place.in_first_eighth
    return Q4_1 if first_down and place.with_importance else Q4_0


def _q4_k_s(place: Place) -> TensorType:
    if place.role == "attn_v" and place.layer < 4:
        return Q5_K
    return Q5_K if place.is_ffn_down and place.in_first_eighth else Q4_K


def _q4_k_m(place: Place) -> TensorType:
    wide = place.role == "attn_v" or place.is_ffn_down
    return Q6_K if wide and place.more_bits else Q4_K


def _iq4(default: TensorType) -> Rule:
    def rule(place: Place) -> TensorType:
        first_down = place.is_ffn_down and place.in_first_eighth
        return Q5_K if first_down and not place.with_importance else default

    return rule


def _mxfp4_moe(place: Place) -> TensorType:
    return MXFP4 if place.role.endswith("_exps") else Q8_0


def _q4(place: Place) -> TensorType:
    """4-bit experts, and what every token passes through wider; 4.67 bits per weight.

    94 % of the weights are experts. Their gate and up rows (4096) take Q4_K. Down rows (1408) fit
    no block of 256; of the types with blocks of 32, IQ4_NL errs least: 7.7 % (relative root mean
    square, gaussian weights) at 4.5 bits, where Q4_0 has 8.6 %, MXFP4 11.5 % and Q4_1 7.8 % at 5.0.
    It is slow to make, and no slower to compute. What is left of the budget goes where it removes
    most error per byte, as docs/bench/quality.md measures: attention, shared experts and dense
    layers, which every token uses, at Q6_K (1.8 % instead of Q4_K's 7.2 %), embeddings and output
    at Q8_0, and the down experts of the first eighth, whose errors every later layer sees, at Q5_0
    (4.3 %). Attention at Q8_0 would be closer still, but every token reads it.
    """
    if place.role.endswith("_exps"):
        if place.is_ffn_down and place.in_first_eighth:
            return Q5_0
        return Q4_K if place.n_columns % Q4_K.block == 0 else IQ4_NL
    return Q8_0 if place.role in ("token_embd", "output") else Q6_K


PRESETS = (
    Preset(
        "q4",
        "Q4_K_M",
        _q4,
        "the default: 4-bit experts, the rest 6 or 8 bits, 4.67 bits per weight",
    ),
    Preset("f32", "F32", _everywhere(F32), "as exact as the checkpoint, four bytes per weight"),
    Preset("f16", "F16", _everywhere(F16), "half precision"),
    Preset("bf16", "BF16", _everywhere(BF16), "the published weights, bit for bit"),
    Preset("q8_0", "Q8_0", _mixture(Q8_0, _everywhere(Q8_0)), "8-bit"),
    Preset("q4_0", "Q4_0", _mixture(Q4_0, _q4_0), "4-bit, fast to make and to run"),
    Preset("q4_k_s", "Q4_K_S", _mixture(Q4_K, _q4_k_s), "llama-quantize's Q4_K_S"),
    Preset(
        "q4_k_m", "Q4_K_M", _mixture(Q4_K, _q4_k_m), "llama-quantize's Q4_K_M, 5.3 bits per weight"
    ),
    Preset("iq4_nl", "IQ4_NL", _mixture(IQ4_NL, _iq4(IQ4_NL)), "non-linear 4-bit, slow to make"),
    Preset("iq4_xs", "IQ4_XS", _mixture(IQ4_XS, _iq4(IQ4_XS)), "the smallest, slow to make"),
    Preset("mxfp4_moe", "MXFP4_MOE", _mxfp4_moe, "experts in MXFP4, everything else 8-bit"),
)


def preset_named(name: str) -> Preset:
    """The preset of that name, in any case.

    Raises:
        DotsError: no such preset; the hint lists them.
    """
    for preset in PRESETS:
        if preset.name == name.lower():
            return preset
    raise DotsError(
        f"unknown type {name}", hint="one of: " + " ".join(preset.name for preset in PRESETS)
    )
