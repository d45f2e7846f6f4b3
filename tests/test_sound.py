"""Numbers that are none: found in every type, by every command that could pass them on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.models.check_tensors import WEIGHTS
from dotscli.models.gguf_file import read_gguf
from dotscli.models.gguf_type import BY_NAME, TensorType
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.rows.codec import library
from dotscli.quantize.rows.valid import KNOWN, first_unsound
from tests import gguf_maker, tiny
from tests.transcript import dots

KINDS = [BY_NAME[name] for name in sorted(WEIGHTS)]
N_BLOCKS = 400


def ggmls_verdict(block: bytes, kind: TensorType) -> bool:
    return bool(library().ggml_validate_row_data(kind.id, block, len(block)))


def test_every_type_of_weights_is_known() -> None:
    assert KNOWN == WEIGHTS


# Bytes of a block, and the bits in them that make it infinite or none where noise seldom does.
RARE = {"F32": {2: 0x80, 3: 0x7F}, "BF16": {0: 0x80, 1: 0x7F}, "MXFP4": {0: 0xFF}}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_blocks_are_judged_as_ggml_judges_them(kind: TensorType) -> None:
    """Random blocks: a half float's exponent is all ones in one of 32."""
    rng = np.random.default_rng(kind.id)
    blocks = rng.integers(0, 256, (N_BLOCKS, kind.block_nbytes), np.uint8)
    for byte, bits in RARE.get(kind.name, {}).items():
        blocks[::3, byte] |= bits
    verdicts = [ggmls_verdict(block.tobytes(), kind) for block in blocks]
    assert verdicts == [first_unsound(block.tobytes(), kind) is None for block in blocks]
    assert 0 < sum(verdicts) < N_BLOCKS
    assert first_unsound(blocks.tobytes(), kind) == verdicts.index(False)
    good = blocks[np.array(verdicts)]
    assert first_unsound(good.tobytes(), kind) is None


PLACES = {
    "norm": ("output_norm.weight", None),
    "router": ("blk.1.ffn_gate_inp.weight", None),
    "bias": ("blk.1.exp_probs_b.bias", None),
    "attention": ("blk.0.attn_q.weight", None),
    "expert": ("blk.1.ffn_down_exps.weight", 5),
}


@pytest.fixture(scope="module")
def q8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sound") / "q8.gguf"
    list(quantize_checkpoint(tiny_checkpoint, out, "q8_0"))
    return out


def spoil(path: Path, name: str, expert: int | None) -> None:
    """Make the last number of a matrix, or the scale of its last block, infinite or none."""
    gguf = read_gguf(path)
    tensor = next(tensor for tensor in gguf.tensors if tensor.name == name)
    end = gguf.data_offset + tensor.offset + (expert or 0) * tensor.matrix_nbytes
    end += tensor.matrix_nbytes
    with path.open("r+b") as file:
        if tensor.type_name == "F32":
            file.seek(end - 4)
            file.write(b"\0\0\xc0\x7f")
        else:
            file.seek(end - 34)
            file.write(b"\0\x7c")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("with_checksums", [True, False])
def test_verify_says_where(place: str, with_checksums: bool, q8: Path, tmp_path: Path) -> None:
    """Also in files of programs that keep no checksums: there it was said of none of these."""
    path = Path(shutil.copy(q8, tmp_path))
    if not with_checksums:
        path.write_bytes(path.read_bytes().replace(b"dots.checksum", b"else.checksum", 1))
    name, expert = PLACES[place]
    assert dots("verify", path, "--tensor", name).exit_status == 0
    spoil(path, name, expert)
    done = dots("verify", path)
    assert done.exit_status == 1
    label = name if expert is None else f"{name}, expert {expert}"
    assert f"error: {path}: {label} (" in done.stderr
    assert "is damaged: a " in done.stderr
    assert "not finite in row" in done.stderr
    (damage,) = [d for d in dots("verify", path, "--json").json["damaged"] if d["tensor"]]
    assert (damage["tensor"], damage["expert"]) == (name, expert)


@pytest.mark.parametrize("place", ["norm", "bias"])
def test_a_model_with_such_a_vector_is_not_loaded(place: str, q8: Path, tmp_path: Path) -> None:
    """A router whose bias is no number chooses experts that give finite, meaningless logits."""
    path = Path(shutil.copy(q8, tmp_path))
    spoil(path, *PLACES[place])
    done = dots("prompt", "hi", "-m", path, "-n", "2", "-c", "256")
    assert (done.exit_status, done.stdout) == (1, "")
    assert f"{PLACES[place][0]} holds a value that is not finite" in done.stderr
    assert "dots verify" in done.stderr


def test_infinite_logits_are_an_error(tmp_path: Path) -> None:
    """One row of the output is infinite: its token would be the answer, for ever."""
    made = gguf_maker.dots1()
    shape, kind, data = made.tensors["output.weight"]
    rows = np.frombuffer(data, "<f4").reshape(shape[::-1]).copy()
    rows[65] = np.finfo(np.float32).max
    made.tensors["output.weight"] = (shape, kind, rows.tobytes())
    path = made.write(tmp_path / "inf.gguf")
    done = dots("prompt", "hi", "-m", path, "-n", "2", "-c", "256", "--temp", "0")
    assert done.exit_status == 1
    assert "computes NaN or infinity" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.2.mlp.experts.3.up_proj.weight",
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_quantize_refuses_them(name: str, value: float, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "damaged", n_shards=1)
    tensors = tiny.weights(tiny.config())
    tensors[name].reshape(-1)[-1] = value
    tiny.write_safetensors(folder / "model.safetensors", tensors, "F32")
    with pytest.raises(DotsError, match=f"{name} holds {value:g} in row .* is not finite"):
        list(quantize_checkpoint(folder, tmp_path / "o.gguf", "q8_0"))


def test_quantize_refuses_them_in_a_gguf(
    q8: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Copied blocks too; the row is named, and ggml's own line isn't printed beside ours."""
    for name, expert in PLACES.values():
        path = Path(shutil.copy(q8, tmp_path))
        spoil(path, name, expert)
        with pytest.raises(DotsError, match=f"{name} holds .*not finite") as caught:
            list(quantize_checkpoint(path, tmp_path / "o.gguf", "q8_0", restart=True))
        assert "in row " in caught.value.message
    assert "ggml" not in capfd.readouterr().err
