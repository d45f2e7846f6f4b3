"""FP8 checkpoints: the bytes of the same weights in float32, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotscli.commands.inspect import checkpoint_facts
from dotscli.errors import DotsError
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.quantize.against import MatrixError, compare
from dotscli.quantize.source.fp8 import VALUES
from dotscli.quantize.source.fp8_layout import fp8_layout
from tests import fp8_maker
from tests.fp8_maker import DEEPSEEK, LAYOUTS, Tensors, compressed_tensors, write_pair

CHANNEL = LAYOUTS["compressed-tensors, channel"]
TENSOR = "model.layers.1.mlp.experts.3.down_proj.weight"


def make(folder: Path, out: Path, type: str = "q4_k_m", **options: object) -> Path:
    for _ in quantize_checkpoint(folder, out, type, threads=2, **options):
        pass
    return out


@pytest.mark.parametrize("dtype", VALUES)
def test_every_code_is_worth_what_the_specification_says(dtype: str) -> None:
    np.testing.assert_array_equal(VALUES[dtype], fp8_maker.VALUES[dtype])


def test_the_ends_of_the_formats() -> None:
    e4m3, e5m2 = VALUES["F8_E4M3"], VALUES["F8_E5M2"]
    assert [e4m3[code] for code in (0x01, 0x08, 0x38, 0x7E, 0xFE)] == [2**-9, 2**-6, 1, 448, -448]
    assert [e5m2[code] for code in (0x01, 0x04, 0x3C, 0x7B, 0x7C)] == [
        2**-16, 2**-14, 1, 57344, np.inf,
    ]  # fmt: skip
    assert np.flatnonzero(np.isnan(e4m3)).tolist() == [0x7F, 0xFF]


@pytest.mark.parametrize(
    ("layout", "type"),
    [*((layout, "q4_k_m") for layout in LAYOUTS), ("DeepSeek", "f32"), ("DeepSeek", "bf16")],
)
def test_same_file_as_from_the_weights_in_float32(layout: str, type: str, tmp_path: Path) -> None:
    fp8, plain = write_pair(tmp_path, LAYOUTS[layout])
    ours = make(fp8, tmp_path / "fp8.gguf", type).read_bytes()
    assert ours == make(plain, tmp_path / "plain.gguf", type).read_bytes()


def test_same_bytes_for_any_number_of_threads_and_any_memory(tmp_path: Path) -> None:
    fp8, _ = write_pair(tmp_path, LAYOUTS["DeepSeek"])
    first = make(fp8, tmp_path / "1.gguf").read_bytes()
    assert make(fp8, tmp_path / "2.gguf", max_memory=(256 << 20) + 20_000).read_bytes() == first


def test_scales_of_activations_are_left_alone(tmp_path: Path) -> None:
    def add(stored: Tensors, dtypes: dict[str, str]) -> None:
        for name in ("mlp.experts.3.down_proj.input_scale", "self_attn.k_scale"):
            stored[f"model.layers.1.{name}"] = np.ones(1, np.float32)
            dtypes[f"model.layers.1.{name}"] = "BF16"

    fp8, plain = write_pair(tmp_path, CHANNEL, add)
    ours = make(fp8, tmp_path / "fp8.gguf").read_bytes()
    assert ours == make(plain, tmp_path / "plain.gguf").read_bytes()


def test_what_is_lost_twice_is_said(tmp_path: Path) -> None:
    fp8, _ = write_pair(tmp_path, CHANNEL)
    (warning,) = plan_checkpoint(fp8).warnings
    assert "27 of 46 tensors are already stored as F8_E4M3" in warning
    assert plan_checkpoint(fp8, "bf16").warnings == ()
    events = list(quantize_checkpoint(fp8, tmp_path / "out.gguf"))
    assert warning in events[0].warnings  # type: ignore[union-attr]


def test_verify_compares_with_an_fp8_checkpoint(tmp_path: Path) -> None:
    fp8, _ = write_pair(tmp_path, LAYOUTS["DeepSeek"])
    gguf = make(fp8, tmp_path / "out.gguf", "f32")
    found = [event for event in compare(gguf, fp8) if isinstance(event, MatrixError)]
    assert len(found) > 50
    assert all(error.error == 0 and error.n_different == 0 for error in found)


def test_inspect_counts_the_bytes_of_fp8(tmp_path: Path) -> None:
    fp8, _ = write_pair(tmp_path, CHANNEL)
    _, stored = checkpoint_facts(fp8)
    kinds = {tensor.name: (tensor.type, tensor.nbytes / tensor.n_weights) for tensor in stored}
    assert kinds["blk.1.ffn_down_exps.weight"] == ("F8_E4M3", 1)
    assert kinds["token_embd.weight"] == ("BF16", 2)


def test_a_damaged_scale_or_code_names_its_tensor(tmp_path: Path) -> None:
    cases = {
        "nan": (TENSOR, 0x7F, "holds nan in row 2, column 5"),
        "zero": (TENSOR + "_scale", 0.0, "holds 0 in row 2, column 0"),
        "negative": (TENSOR + "_scale", -1.0, "holds -1 in row 2, column 0"),
        "infinite": (TENSOR + "_scale", np.inf, "holds inf in row 2, column 0"),
    }
    for case, (name, value, message) in cases.items():

        def put(stored: Tensors, _: dict[str, str], name: str = name, value: float = value) -> None:
            stored[name][2, 5 if name == TENSOR else 0] = value

        fp8, _ = write_pair(tmp_path / case, CHANNEL, put)
        with pytest.raises(DotsError, match=message) as caught:
            make(fp8, tmp_path / "out.gguf")
        assert name in caught.value.message


def without_scale(stored: Tensors, _: dict[str, str]) -> None:
    del stored[TENSOR + "_scale"]


def of_another_shape(stored: Tensors, _: dict[str, str]) -> None:
    stored[TENSOR + "_scale"] = np.ones((128, 2), np.float32)


def of_another_dtype(_: Tensors, dtypes: dict[str, str]) -> None:
    dtypes[TENSOR + "_scale"] = "F64"


def beside_bf16(stored: Tensors, dtypes: dict[str, str]) -> None:
    stored["lm_head.weight_scale"] = np.ones((320, 1), np.float32)


def with_zero_points(stored: Tensors, dtypes: dict[str, str]) -> None:
    stored[TENSOR.replace(".weight", ".weight_zero_point")] = np.zeros((256, 1), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_scale, f"{TENSOR} is F8_E4M3 and has no scales"),
        (of_another_shape, r"_scale is \[128, 2\] in BF16, not scales for \[256, 160\]"),
        (of_another_dtype, r"_scale is \[256, 1\] in F64, not scales"),
        (beside_bf16, r"does not have \(1\): lm_head.weight_scale"),
        (with_zero_points, "does not have .*weight_zero_point"),
    ],
)
def test_scales_that_do_not_fit_are_refused(change: object, message: str, tmp_path: Path) -> None:
    fp8, _ = write_pair(tmp_path, CHANNEL, change)  # type: ignore[arg-type]
    with pytest.raises(DotsError, match=message):
        plan_checkpoint(fp8)


def test_fp8_without_a_word_in_the_config_is_refused(tmp_path: Path) -> None:
    fp8, plain = write_pair(tmp_path, CHANNEL)
    (fp8 / "config.json").write_bytes((plain / "config.json").read_bytes())
    with pytest.raises(DotsError, match="_scale"):
        plan_checkpoint(fp8)


def changed(config: dict[str, object], **changes: object) -> dict[str, object]:
    return {**config, **changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "quant_method is missing"),
        ({"quant_method": "gptq", "bits": 4}, 'quant_method is "gptq"'),
        (changed(compressed_tensors("channel"), format="pack-quantized"), "pack-quantized"),
        (changed(compressed_tensors("channel"), config_groups={}), "at least one group"),
        (compressed_tensors("group"), 'strategy is "group"'),
        (compressed_tensors("channel", num_bits=4), "not 8-bit floats"),
        (compressed_tensors("channel", type="int"), "not 8-bit floats"),
        (compressed_tensors("block"), "block_structure is null"),
        (compressed_tensors("block", block_structure=[128, 0]), "rows and columns of a block"),
        (changed(DEEPSEEK, weight_block_size=[128]), "rows and columns of a block"),
        (changed(DEEPSEEK, weight_block_size=[128, True]), "rows and columns of a block"),
    ],
)
def test_other_quantizations_are_refused(
    config: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(fp8_maker.tiny.config(changes={"quantization_config": config}))
    )
    with pytest.raises(DotsError, match=message):
        plan_checkpoint(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.floats(-9, 9) | st.sampled_from(
        ["fp8", "compressed-tensors", "float-quantized", "float", "channel", "block", "tensor"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["quant_method", "format", "config_groups", "weights", "group_0", "type",
                         "num_bits", "strategy", "block_structure", "weight_block_size"]), inner),
    max_leaves=20,
)  # fmt: skip


@given(json_values, st.lists(st.integers(0, 9), max_size=3), st.lists(st.integers(0, 9)))
def test_any_quantization_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, config: object, shape: list[int], scales: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    try:
        layout = fp8_layout(folder)
    except DotsError as error:
        assert "quantization_config" in error.message or "already quantized" in error.message
        return
    if layout is not None:
        grid = layout.grid(tuple(shape), tuple(scales))
        assert grid is None or int(np.prod(grid.n_scales(tuple(shape)))) == int(np.prod(scales))
