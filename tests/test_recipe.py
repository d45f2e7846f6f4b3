"""Which type each tensor gets: the presets on the real shapes, overrides, and the whole plan."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.quantize import plan_checkpoint
from dotscli.quantize.plan import ALIGNMENT, Plan, plan
from dotscli.quantize.recipe.presets import PRESETS
from dotscli.quantize.recipe.recipe import Recipe
from dotscli.quantize.recipe.types_of_file import listed
from dotscli.quantize.rows.codec import Codec
from dotscli.quantize.types import F32, Q6_K, TYPES, fitting, type_named
from tests import tiny
from tests.test_dots1 import REAL

# Tensor bytes that llama-quantize's own dry run gives for the real shapes, without and with an
# importance matrix (llama.cpp of llama-cpp-python 0.3.36).
TOTALS = {
    "q4_k_m": (94_478_012_928, 94_478_012_928),
    "q4_k_s": (86_513_971_712, 86_513_971_712),
    "q4_0": (80_582_947_328, 80_866_898_432),
    "iq4_xs": (78_400_008_704, 77_550_318_080),
    "iq4_nl": (81_430_475_264, 80_582_947_328),
    "mxfp4_moe": (80_026_661_376, 80_026_661_376),
    "q8_0": (151_793_299_968, 151_793_299_968),
    "bf16": (285_613_797_888, 285_613_797_888),
}


def real_plan(type: str, *overrides: str, with_importance: bool = False) -> Plan:
    model = Dots1.from_config(REAL, "config.json")
    return plan(model, None, Recipe.preset(type, overrides), with_importance)


def types_of(found: Plan) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in found.tensors}


@pytest.mark.parametrize("type", TOTALS)
def test_totals_on_the_real_shapes_are_those_of_llama_quantize(type: str) -> None:
    plain, weighed = (real_plan(type, with_importance=i).total_bytes for i in (False, True))
    assert (plain, weighed) == TOTALS[type]


def test_q4_k_m_spends_more_bits_where_llama_quantize_does() -> None:
    types = types_of(real_plan("q4_k_m"))
    more = {*range(7), 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, *range(54, 62)}
    for layer in range(62):
        assert types[f"blk.{layer}.attn_v.weight"] == ("Q6_K" if layer in more else "Q4_K")
        if layer:
            down = types[f"blk.{layer}.ffn_down_exps.weight"]
            assert down == ("Q8_0" if layer in more else "Q5_0")
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["output.weight"] == "Q6_K"
    assert types["blk.9.ffn_gate_inp.weight"] == types["blk.9.exp_probs_b.bias"] == "F32"


def test_q4_is_four_bit_and_a_tenth_smaller_than_q4_k_m() -> None:
    for with_importance in (False, True):
        found = real_plan("q4", with_importance=with_importance)
        assert found.total_bytes <= 0.9 * TOTALS["q4_k_m"][with_importance]
        types = types_of(found)
        experts = Counter(type for name, type in types.items() if "_exps" in name)
        assert experts == {"Q4_K": 122, "IQ4_NL": 55, "Q5_0": 6}
        assert types["output.weight"] == types["token_embd.weight"] == "Q8_0"
        assert types["blk.5.attn_v.weight"] == types["blk.5.ffn_up_shexp.weight"] == "Q6_K"
        assert types["blk.5.ffn_gate_inp.weight"] == types["blk.5.exp_probs_b.bias"] == "F32"
        assert all(type == "F32" for name, type in types.items() if "norm" in name)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_plan_places_tensors_back_to_back(preset: object) -> None:
    found = real_plan(preset.name)  # type: ignore[attr-defined]
    end = 0
    for tensor in found.tensors:
        assert tensor.offset % ALIGNMENT == 0
        assert 0 <= tensor.offset - end < ALIGNMENT
        end = tensor.offset + tensor.nbytes
    assert end <= found.data_nbytes < end + ALIGNMENT


def test_types_are_those_of_ggml() -> None:
    gguf = pytest.importorskip("gguf")
    for kind in TYPES:
        theirs = gguf.GGMLQuantizationType[kind.name]
        assert theirs.value == kind.id
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block, kind.block_nbytes)


def test_file_types_are_llama_cpps() -> None:
    """general.file_type, whose numbers the package gguf knows, as llama.cpp's header has them."""
    import llama_cpp

    def number(name: str) -> int:
        return int(getattr(llama_cpp, f"LLAMA_FTYPE_{name}"))

    assert Recipe.preset("q4").file_type == number("MOSTLY_Q4_K_M")
    assert Recipe.preset("q4_k_s").file_type == number("MOSTLY_Q4_K_S")
    assert Recipe.preset("f32").file_type == number("ALL_F32")
    assert Recipe.preset("mxfp4_moe").file_type == number("MOSTLY_MXFP4_MOE")
    for kind in TYPES:  # a list of types is named after the one that most weights have
        assert listed("of a budget", {}, {kind: 1, F32: 0}).file_type >= 0
    assert listed("of a budget", {}, {Q6_K: 2, F32: 1}).file_type == number("MOSTLY_Q6_K")


@pytest.mark.parametrize(
    ("wanted", "n_columns", "found"),
    [
        ("Q4_K", 4096, "Q4_K"), ("Q4_K", 1408, "Q5_0"), ("Q5_K", 1408, "Q5_1"),
        ("Q6_K", 1408, "Q8_0"), ("IQ4_XS", 1408, "IQ4_NL"), ("Q3_K", 1408, "Q4_0"),
        ("Q4_0", 1408, "Q4_0"), ("Q4_0", 100, "F16"), ("Q6_K", 100, "F16"), ("BF16", 100, "BF16"),
    ],
)  # fmt: skip
def test_shapes_have_the_last_word(wanted: str, n_columns: int, found: str) -> None:
    assert fitting(type_named(wanted), n_columns).name == found


def test_first_override_that_matches_wins() -> None:
    types = types_of(real_plan("q4_0", r"blk\.[12]\.ffn_down_exps=q5_k", "ffn_down=Q8_0"))
    assert types["blk.1.ffn_down_exps.weight"] == "Q5_1"  # 1408 is no multiple of 256
    assert types["blk.3.ffn_down_exps.weight"] == "Q8_0"
    assert types["blk.3.ffn_up_exps.weight"] == "Q4_0"


def test_override_never_reaches_what_stays_float() -> None:
    types = types_of(real_plan("q4_0", "blk=q8_0"))
    assert types["blk.3.attn_norm.weight"] == types["blk.3.ffn_gate_inp.weight"] == "F32"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ffn_dwon=q8_0", "matches no tensor"),
        ("ffn_gate_inp=q8_0", "matches only tensors that stay F32, such as blk.1.ffn_gate_inp"),
        ("ffn_down=q9_0", "unknown tensor type q9_0"),
        ("ffn_down", "is not REGEX=TYPE"),
        ("=q8_0", "is not REGEX=TYPE"),
        ("ffn_(down=q8_0", "invalid regular expression"),
    ],
)
def test_override_that_can_not_work_is_refused(override: str, message: str) -> None:
    with pytest.raises(DotsError, match=message.replace("(", r"\(")):
        real_plan("q4_0", override)


def test_unknown_types_are_answered_with_the_list() -> None:
    with pytest.raises(DotsError) as caught:
        Recipe.preset("q5_k_m")
    assert "q4 f32 f16 bf16 q8_0 q4_0 q4_k_s" in caught.value.hint
    with pytest.raises(DotsError) as caught:
        Recipe.preset("q4", ["ffn=q9"])
    assert "iq4_nl" in caught.value.hint
    assert Recipe.preset("Q4_K_M").file_type == 15


def test_config_alone_gives_the_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL))
    for path in (tmp_path, tmp_path / "config.json"):
        document = plan_checkpoint(path, "q4_k_m").as_json()
        assert document["total_bytes"] == TOTALS["q4_k_m"][0]
        assert round(document["bpw"], 3) == 5.294  # type: ignore[call-overload]
    first = document["tensors"][0]  # type: ignore[index]
    expected = {"name": "token_embd.weight", "type": "Q4_K", "shape": [4096, 152064],
                "bytes": 350_355_456}  # fmt: skip
    assert first == expected


def test_weights_that_are_there_must_be_complete(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    assert plan_checkpoint(folder).n_weights > 0
    next(folder.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(DotsError, match="names model-00002-of-00002"):
        plan_checkpoint(folder)


def test_down_experts_take_the_best_type_of_their_size() -> None:
    """Rows of 1408 fit blocks of 32 only; this is the reason for IQ4_NL in q4."""
    gguf = pytest.importorskip("gguf")
    errors = {}
    weights = np.random.default_rng(0).standard_normal((16, 1408), dtype=np.float32)
    for name in ("IQ4_NL", "Q4_0", "Q4_1", "MXFP4"):
        kind, out = type_named(name), np.zeros(weights.nbytes, np.uint8)
        made = Codec().encode(memoryview(weights.tobytes()), "F32", 1408, kind, out)
        raw = out[:made].reshape(16, -1)
        back = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]).reshape(16, 1408)
        errors[name] = float(np.sqrt(np.mean((back - weights) ** 2)))
    assert min(errors, key=errors.__getitem__) == "IQ4_NL"
