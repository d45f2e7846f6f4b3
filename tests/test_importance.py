"""Importance matrices: read from llama.cpp's two forms, and used as llama-quantize uses them where
every expert saw enough; blended where one didn't.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.models.dots1 import Dots1
from dotscli.quantize import plan_checkpoint, plan_steps, quantize_checkpoint
from dotscli.quantize.against import MatrixError, compare
from dotscli.quantize.convert import Started
from dotscli.quantize.fit.fit import Fit
from dotscli.quantize.imatrix.coverage import LayerCoverage, coverage
from dotscli.quantize.imatrix.importance import THIN_TOKENS, ImportanceMatrix, load_importance
from dotscli.quantize.recipe.presets import PRESETS
from dotscli.quantize.request import Budget
from tests import reference, tiny
from tests.test_quantize import SIZES, assert_same_tensors, make

Matrix = dict[str, np.ndarray]


def measurements(folder: Path, seed: int = 1) -> Matrix:
    """Sums and counts for every matrix of the layers; experts see different numbers of tokens, all
    of them enough."""
    rng = np.random.default_rng(seed)
    found = {}
    for spec in Dots1.load(folder).tensors():
        if len(spec.shape) < 2 or spec.layer is None:
            continue
        counts = rng.integers(THIN_TOKENS, 4000, (spec.n_experts, 1)).astype(np.float32)
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
    bf16 = make(checkpoint, tmp_path / "bf16.gguf", "bf16")
    imatrix = write(tmp_path / "i.gguf", tensors)
    ours = make(checkpoint, tmp_path / "ours.gguf", type, imatrix=imatrix)
    file_type = next(preset.file_type for preset in PRESETS if preset.name == type)
    importance = as_llama_quantize_divides(tensors)
    reference.quantize(bf16, tmp_path / "theirs.gguf", file_type, importance=importance)
    assert_same_tensors(ours, tmp_path / "theirs.gguf")


def test_thin_experts_equal_llama_quantize_without_blending(
    checkpoint: Path, tmp_path: Path
) -> None:
    tensors = measurements(checkpoint)
    tensors["blk.3.ffn_up_exps.weight.counts"][2] = 0  # an expert that was never used
    tensors["blk.4.ffn_gate_exps.weight.counts"][1] = 3
    bf16 = make(checkpoint, tmp_path / "bf16.gguf", "bf16")
    imatrix = write(tmp_path / "i.gguf", tensors)
    ours = make(checkpoint, tmp_path / "ours.gguf", "iq4_nl", imatrix=imatrix, blend=False)
    importance = as_llama_quantize_divides(tensors)
    file_type = next(preset.file_type for preset in PRESETS if preset.name == "iq4_nl")
    reference.quantize(bf16, tmp_path / "theirs.gguf", file_type, importance=importance)
    assert_same_tensors(ours, tmp_path / "theirs.gguf")
    blended = make(checkpoint, tmp_path / "blended.gguf", "iq4_nl", imatrix=imatrix)
    assert blended.read_bytes() != ours.read_bytes()
    for path in (ours, blended):  # how it was made is in the file
        *_, last = compare(path, checkpoint, ["blk.3.ffn_up_exps.weight"], imatrix)
        assert isinstance(last, MatrixError)
        assert last.n_different == 0


@pytest.mark.parametrize("blend", [True, False])
def test_a_dry_run_weighs_and_warns_as_the_pass_does(
    blend: bool, checkpoint: Path, tmp_path: Path
) -> None:
    thin_matrix(checkpoint, tmp_path / "i.gguf", 3)
    options = {"imatrix": tmp_path / "i.gguf", "budget": Budget(bpw=5.0), "blend": blend}
    *_, planned = plan_steps(checkpoint, **options)
    made = list(quantize_checkpoint(checkpoint, tmp_path / "o.gguf", **options))
    [chosen] = (event for event in made if isinstance(event, Fit))
    assert isinstance(planned, Fit)
    assert planned.decisions == chosen.decisions  # with the harm that is left, to the last bit
    warnings = next(event for event in made if isinstance(event, Started)).warnings
    assert any("blended" in warning for warning in warnings) is blend
    if blend:
        assert plan_checkpoint(checkpoint, imatrix=tmp_path / "i.gguf").warnings == warnings


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


DOWN = "blk.2.ffn_down_exps.weight"
GATE = "blk.2.ffn_gate_exps.weight"


def thin_matrix(checkpoint: Path, path: Path, count: float) -> tuple[ImportanceMatrix, Matrix]:
    """Expert 1 of layer 2 saw `count` tokens of its own kind."""
    tensors = measurements(checkpoint)
    for name in (GATE, DOWN):
        tensors[name + ".in_sum2"][1] *= count / tensors[name + ".counts"][1]
        tensors[name + ".counts"][1] = count
    return load_importance(write(path, tensors)), tensors


@pytest.mark.parametrize("count", [1, 16, 128, 255])
def test_a_thin_expert_is_blended_with_its_layer(
    count: int, checkpoint: Path, tmp_path: Path
) -> None:
    matrix, tensors = thin_matrix(checkpoint, tmp_path / "i.gguf", count)
    assert matrix.thin(GATE).tolist() == [1]
    for name, full in ((GATE, 16), (DOWN, 4)):
        sums, counts = tensors[name + ".in_sum2"].astype(np.float64), tensors[name + ".counts"]
        own = sums[1] / count
        prior = sums.sum(axis=0) if name == GATE else np.ones_like(own)
        prior *= own.mean() / prior.mean()
        k = full * (1 - count / THIN_TOKENS)
        row = matrix.row(name, 1)
        assert row is not None
        np.testing.assert_allclose(row, (count * own + k * prior) / (count + k), rtol=1e-5)
        other = matrix.row(name, 0)
        assert other is not None
        assert (other == tensors[name + ".in_sum2"][0] / counts[0]).all()


def test_an_unseen_expert_takes_its_layers_mean_and_down_none(
    checkpoint: Path, tmp_path: Path
) -> None:
    matrix, tensors = thin_matrix(checkpoint, tmp_path / "i.gguf", 0)
    mean = tensors[GATE + ".in_sum2"].sum(axis=0) / tensors[GATE + ".counts"].sum()
    gate, down = matrix.row(GATE, 1), matrix.row(DOWN, 1)
    assert gate is not None
    assert down is not None
    np.testing.assert_allclose(gate, mean, rtol=1e-5)
    assert (down == 1).all()


def test_nothing_jumps_where_an_expert_stops_being_thin(checkpoint: Path, tmp_path: Path) -> None:
    matrix, _ = thin_matrix(checkpoint, tmp_path / "i.gguf", THIN_TOKENS - 1)
    plain = load_importance(tmp_path / "i.gguf", thin_tokens=0)
    for name in (GATE, DOWN):
        blended, measured = matrix.row(name, 1), plain.row(name, 1)
        assert blended is not None
        np.testing.assert_allclose(blended, measured, rtol=2e-3, atol=2e-3 * blended.mean())


def test_coverage_names_the_thin_experts(checkpoint: Path, tmp_path: Path) -> None:
    matrix, tensors = thin_matrix(checkpoint, tmp_path / "i.gguf", 5)
    layers = {layer.layer: layer for layer in coverage(matrix)}
    assert sorted(layers) == list(range(1, 8))
    counts = tensors[DOWN + ".counts"].ravel()
    assert layers[2] == LayerCoverage(2, 4, 4, 5, int(np.median(counts)), (1,))
    assert not layers[3].thin


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
        (_replace(DOWN + ".in_sum2", ZEROS.astype(np.float16)), "not an F32 matrix"),
        (_replace(DOWN + ".in_sum2", np.ones((4, 4, 24), np.float32)), "not an F32 matrix"),
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
    with pytest.raises(DotsError, match="is also an input"):
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
