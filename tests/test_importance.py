"""Importance matrices: read from llama.cpp's GGUF form, and used as llama-quantize uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.quantize.convert import Started
from dotscli.quantize.importance import load_importance
from dotscli.quantize.presets import PRESETS
from tests import reference, tiny
from tests.test_quantize import SIZES, assert_same_tensors, make

Matrix = dict[str, np.ndarray]


def measurements(folder: Path, seed: int = 1) -> Matrix:
    """Sums and counts for every matrix of the layers; experts see different numbers of tokens."""
    rng = np.random.default_rng(seed)
    found = {}
    for spec in Dots1.load(folder).tensors():
        if len(spec.shape) < 2 or spec.layer is None:
            continue
        counts = rng.integers(20, 4000, (spec.n_experts, 1)).astype(np.float32)
        squares = rng.gamma(0.3, 2.0, (spec.n_experts, spec.shape[-1])).astype(np.float32)
        found[spec.name + ".in_sum2"] = (squares + np.float32(1e-3)) * counts
        found[spec.name + ".counts"] = counts
    return found


def write(path: Path, tensors: Matrix, kind: str = "imatrix") -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "dots1")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["calibration.txt", "more.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_llama_quantize_divides(tensors: Matrix) -> Matrix:
    """in_sum2 / counts per expert, ones where an expert saw no token."""
    out = {}
    for name, sums in tensors.items():
        base = name.removesuffix(".in_sum2")
        if base != name:
            counts = tensors[base + ".counts"]
            with np.errstate(divide="ignore", invalid="ignore"):
                out[base] = np.where(counts > 0, sums / counts, np.float32(1))
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("whole") / "eight", **SIZES)


@pytest.mark.parametrize(
    "type", ["q4_0", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs", "mxfp4_moe", "q8_0"]
)
def test_preset_with_importance_equals_llama_quantize(
    type: str, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = measurements(checkpoint)
    tensors["blk.3.ffn_up_exps.weight.counts"][2] = 0  # an expert that was never used
    bf16 = make(checkpoint, tmp_path / "bf16.gguf", "bf16")
    imatrix = write(tmp_path / "i.gguf", tensors)
    ours = make(checkpoint, tmp_path / "ours.gguf", type, imatrix=imatrix)
    file_type = next(preset.file_type for preset in PRESETS if preset.name == type)
    importance = as_llama_quantize_divides(tensors)
    reference.quantize(bf16, tmp_path / "theirs.gguf", file_type, importance=importance)
    assert_same_tensors(ours, tmp_path / "theirs.gguf")


def test_keys_say_where_it_came_from(checkpoint: Path, tmp_path: Path) -> None:
    imatrix = write(tmp_path / "i.gguf", measurements(checkpoint))
    keys = reference.read_keys(make(checkpoint, tmp_path / "o.gguf", "q8_0", imatrix=imatrix))
    assert keys["quantize.imatrix.file"] == "i.gguf"
    assert keys["quantize.imatrix.dataset"] == "calibration.txt"
    assert keys["quantize.imatrix.entries_count"] == 8 * 4 + 3 + 7 * 7
    assert keys["quantize.imatrix.chunks_count"] == 7


def test_experts_without_measurements_are_not_killed(checkpoint: Path, tmp_path: Path) -> None:
    """All-zero rows make ggml write zeros; so does a group of columns that share a scale."""
    tensors = measurements(checkpoint)
    name = "blk.2.ffn_down_exps.weight"
    tensors[name + ".in_sum2"][1] = 0
    tensors[name + ".in_sum2"][2, 32:64] = 0
    imatrix = write(tmp_path / "i.gguf", tensors)
    out = tmp_path / "o.gguf"
    options = {"imatrix": imatrix, "tensor_types": ["ffn_down_exps=iq4_nl"]}
    started = next(quantize_checkpoint(checkpoint, out, "q8_0", **options))  # type: ignore[arg-type]
    assert isinstance(started, Started)
    assert "1 of " in started.warnings[0]
    make(checkpoint, out, "q8_0", **options)
    gguf = pytest.importorskip("gguf")
    tensor = next(t for t in gguf.GGUFReader(out).tensors if t.name == name)
    weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(4, 256, 96)
    source = tiny.weights(tiny.config(**SIZES))  # type: ignore[arg-type]
    for expert in range(4):
        expected = source[f"model.layers.2.mlp.experts.{expert}.down_proj.weight"]
        error = np.sqrt(np.mean((weights[expert] - expected) ** 2) / np.mean(expected**2))
        assert error < 0.15
        assert np.abs(weights[expert][:, 32:64]).max() > 0


def test_rows_are_quotients_and_never_zero(checkpoint: Path, tmp_path: Path) -> None:
    tensors = measurements(checkpoint)
    name = "blk.2.ffn_down_exps.weight"
    tensors[name + ".in_sum2"][0, :16] = 0
    matrix = load_importance(write(tmp_path / "i.gguf", tensors))
    row = matrix.row(name, 0)
    assert row is not None
    assert row.dtype == np.float32
    expected = tensors[name + ".in_sum2"][0] / tensors[name + ".counts"][0]
    assert (row[16:] == expected[16:]).all()
    assert (row[:16] == row[0]).all()
    assert row[0] > 0
    assert matrix.row("token_embd.weight", 0) is None


def _set(name: str, value: object) -> Callable[[Matrix], None]:
    def change(tensors: Matrix) -> None:
        tensors[name][..., 0] = value

    return change


def _replace(name: str, values: np.ndarray | None) -> Callable[[Matrix], None]:
    def change(tensors: Matrix) -> None:
        if values is None:
            del tensors[name]
        else:
            tensors[name] = values

    return change


DOWN = "blk.2.ffn_down_exps.weight"
ZEROS = np.zeros((4, 96), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(DOWN + ".in_sum2", np.nan), "negative or not finite"),
        (_set(DOWN + ".in_sum2", np.inf), "negative or not finite"),
        (_set(DOWN + ".in_sum2", -1), "negative or not finite"),
        (_set(DOWN + ".counts", np.nan), "negative or not finite"),
        (_replace(DOWN + ".counts", None), r"has no \.counts"),
        (_replace(DOWN + ".in_sum2", None), r"has no \.in_sum2"),
        (_replace(DOWN + ".counts", np.ones((3, 1), np.float32)), "with 3 counts"),
        (_replace(DOWN + ".in_sum2", ZEROS.astype(np.float16)), "no F32 matrix"),
        (_replace(DOWN + ".in_sum2", np.ones((4, 4, 24), np.float32)), "no F32 matrix"),
        (_replace(DOWN + ".in_sum2", np.ones((4, 160), np.float32)), "4 x 160, the tensor needs"),
        (lambda tensors: tensors.clear(), "none of the model's tensors"),
    ],
)
def test_malformed_matrix_is_refused(
    change: Callable[[Matrix], object], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = measurements(checkpoint)
    change(tensors)
    imatrix = write(tmp_path / "i.gguf", tensors)
    for call in (
        lambda: plan_checkpoint(checkpoint, "q4_0", imatrix=imatrix),
        lambda: make(checkpoint, tmp_path / "o.gguf", "q4_0", imatrix=imatrix),
    ):
        with pytest.raises(DotsError, match=message) as caught:
            call()
        assert str(imatrix) in caught.value.message
    assert not (tmp_path / "o.gguf").exists()


def test_the_matrix_is_never_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    imatrix = write(tmp_path / "i.gguf", measurements(checkpoint))
    before = imatrix.read_bytes()
    with pytest.raises(DotsError, match="is an input"):
        make(checkpoint, imatrix, "q4_0", imatrix=imatrix, force=True)
    assert imatrix.read_bytes() == before


def test_other_files_are_no_importance_matrix(checkpoint: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "m.gguf", measurements(checkpoint), kind="model")
    with pytest.raises(DotsError, match=r"general\.type is 'model'"):
        load_importance(model)
    (tmp_path / "old.dat").write_bytes(b"\1\0\0\0")
    with pytest.raises(DotsError, match=r"old\.dat"):
        load_importance(tmp_path / "old.dat")
    with pytest.raises(DotsError, match="missing"):
        load_importance(tmp_path / "missing.gguf")
