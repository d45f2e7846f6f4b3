"""A GGUF as input: the tensors that llama-quantize makes of it, and its metadata kept."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.models.gguf_file import read_gguf
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.quantize.against import MatrixError, compare
from dotscli.quantize.convert import Resumed, TensorDone
from dotscli.quantize.recipe.presets import PRESETS
from dotscli.quantize.verify import Damaged, verify
from tests import gguf_maker, reference, tiny
from tests.transcript import dots

FILE_TYPES = {preset.name: preset.file_type for preset in PRESETS}


def make(source: Path, out: Path, type: str = "q4_k_m", **options: object) -> Path:
    for _ in quantize_checkpoint(source, out, type, threads=2, **options):
        pass
    return out


@pytest.fixture(scope="module")
def sources(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model as a GGUF of each kind."""
    folder = tmp_path_factory.mktemp("sources")
    kinds = ("f32", "bf16", "f16", "q8_0", "q4_k_m")
    return {kind: make(tiny_checkpoint, folder / f"{kind}.gguf", kind) for kind in kinds}


@pytest.mark.parametrize(
    ("kind", "type"),
    [("f32", "q4_0"), ("bf16", "q4_k_m"), ("bf16", "f32"), ("f16", "iq4_xs"), ("q8_0", "q4_k_s"),
     ("q4_k_m", "q8_0"), ("q4_k_m", "q4_k_m")],
)  # fmt: skip
def test_tensors_equal_those_of_llama_quantize(
    kind: str, type: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    ours = make(sources[kind], tmp_path / "ours.gguf", type)
    theirs = tmp_path / "theirs.gguf"
    reference.quantize(sources[kind], theirs, FILE_TYPES[type])
    assert reference.read_tensors(ours) == reference.read_tensors(theirs)


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_same_file_as_from_the_checkpoint(
    kind: str, sources: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    direct = make(tiny_checkpoint, tmp_path / "direct.gguf", "q4").read_bytes()
    assert make(sources[kind], tmp_path / "two.gguf", "q4").read_bytes() == direct


def test_metadata_of_other_programs_is_kept(tmp_path: Path) -> None:
    source = gguf_maker.dots1()
    kept = {
        "general.url": ("string", "https://example.org/模型"),
        "general.tags": ("array:string", ["a", ""]),
        "x.small": ("u16", 7),
        "x.big": ("u64", 1 << 63),
        "x.float": ("f32", 0.1),
        "x.bools": ("array:bool", [1, 0]),
        "x.floats": ("array:f32", [0.25, -1.0]),
        "x.none": ("array:i32", []),
    }
    replaced = {
        "general.file_type": ("u32", 7),
        "general.alignment": ("u32", 64),
        "quantize.imatrix.file": ("string", "old.gguf"),
        "dots.checksum.blake2b": ("array:u64", [1, 2]),
    }
    source.keys |= kept | replaced
    source.alignment = 64
    path = source.write(tmp_path / "source.gguf")
    made = read_gguf(make(path, tmp_path / "out.gguf", "q4_0"))
    before = read_gguf(path)
    for key, value in before.metadata.items():
        if key not in replaced:
            assert made.metadata[key] == value, key
            assert made.types[key] == before.types[key], key
    assert made.metadata["general.file_type"] == FILE_TYPES["q4_0"]
    assert made.metadata["general.quantization_version"] == 2
    assert made.metadata["general.alignment"] == 4096
    assert "quantize.imatrix.file" not in made.metadata
    assert not [event for event in verify(made.path) if isinstance(event, Damaged)]


def test_a_split_model_becomes_one_file_or_other_parts(tmp_path: Path) -> None:
    whole = make(gguf_maker.dots1().write(tmp_path / "whole.gguf"), tmp_path / "1.gguf")
    parts = gguf_maker.split(tmp_path)
    assert make(parts[0], tmp_path / "2.gguf").read_bytes() == whole.read_bytes()
    make(parts[0], tmp_path / "3.gguf", split_max_size=1 << 20)
    first = next(tmp_path.glob("3-00001-of-*.gguf"))
    assert len(read_gguf(first).shards) > 1
    assert make(first, tmp_path / "4.gguf").read_bytes() == whole.read_bytes()


def test_attention_in_one_tensor_is_taken_apart(tmp_path: Path) -> None:
    source = gguf_maker.dots1()
    apart = make(source.write(tmp_path / "apart.gguf"), tmp_path / "1.gguf", "q8_0")
    for layer in range(3):
        names = [f"blk.{layer}.attn_{part}.weight" for part in "qkv"]
        (columns, rows), kind, _ = source.tensors[names[0]]
        data = b"".join(source.tensors.pop(name)[2] for name in names)
        source.tensors[f"blk.{layer}.attn_qkv.weight"] = ((columns, 3 * rows), kind, data)
    joined = make(source.write(tmp_path / "joined.gguf"), tmp_path / "2.gguf", "q8_0")
    assert joined.read_bytes() == apart.read_bytes()


def test_importance_counts_here_too(
    sources: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    imatrix = tmp_path / "imatrix.gguf"
    write_imatrix(imatrix)
    direct = make(tiny_checkpoint, tmp_path / "1.gguf", "q4", imatrix=imatrix)
    again = make(sources["bf16"], tmp_path / "2.gguf", "q4", imatrix=imatrix)
    assert again.read_bytes() == direct.read_bytes()
    # The keys of an importance matrix are those of the last pass, whatever the source had.
    plain = read_gguf(make(again, tmp_path / "3.gguf", "q8_0"))
    assert not [key for key in plain.metadata if key.startswith("quantize.imatrix")]


def write_imatrix(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    rng = np.random.default_rng(0)
    for name, n_experts, n_columns in (("attn_q", 1, 256), ("ffn_up_exps", 8, 256)):
        sums = np.exp(rng.standard_normal((n_experts, n_columns))).astype(np.float32)
        writer.add_tensor(f"blk.1.{name}.weight.in_sum2", sums)
        writer.add_tensor(f"blk.1.{name}.weight.counts", np.ones((n_experts, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_what_is_lost_twice_is_said(sources: dict[str, Path], tmp_path: Path) -> None:
    assert plan_checkpoint(sources["bf16"], "q4").warnings == ()
    assert plan_checkpoint(sources["q4_k_m"], "f16").warnings == ()
    assert plan_checkpoint(sources["q4_k_m"], "q4_k_m").warnings == ()  # copied
    done = dots("quantize", sources["q8_0"], "--dry-run")
    assert "tensors are already stored as Q8_0 and lose precision again" in " ".join(
        done.stderr.split()
    )
    done = dots("quantize", sources["q8_0"], "-o", tmp_path / "out.gguf")
    assert "lose precision again" in " ".join(done.stderr.split())


def test_verify_compares_with_the_gguf_it_was_made_from(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    out = make(sources["q8_0"], tmp_path / "out.gguf", "q4_0")
    found = [event for event in compare(out, sources["q8_0"]) if isinstance(event, MatrixError)]
    assert not [error for error in found if error.n_different]
    assert any(error.error > 0.01 for error in found)
    other = [event for event in compare(out, sources["bf16"]) if isinstance(event, MatrixError)]
    assert any(error.n_different for error in other)


def test_an_interrupted_run_goes_on(sources: dict[str, Path], tmp_path: Path) -> None:
    whole = make(sources["q8_0"], tmp_path / "whole.gguf", "q4_0").read_bytes()
    out = tmp_path / "out.gguf"
    events = quantize_checkpoint(sources["q8_0"], out, "q4_0", threads=1)
    done = 0
    for event in events:
        done += isinstance(event, TensorDone)
        if done == 9:
            break
    events.close()  # type: ignore[attr-defined]
    again = list(quantize_checkpoint(sources["q8_0"], out, "q4_0", threads=1))
    resumed = next(event for event in again if isinstance(event, Resumed))
    assert resumed.n_tensors >= 9
    assert out.read_bytes() == whole


def test_the_input_is_never_the_output(sources: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(sources["q8_0"].read_bytes())
    (tmp_path / "link.gguf").symlink_to(source)
    os.link(source, tmp_path / "same.gguf")
    before = source.read_bytes()
    for out in ("source.gguf", "link.gguf", "same.gguf"):
        with pytest.raises(DotsError, match="is also an input"):
            make(source, tmp_path / out, "q4_0", force=True)
    parts = gguf_maker.split(tmp_path)
    with pytest.raises(DotsError, match="is also an input"):
        make(parts[0], parts[2], "q4_0", force=True)
    assert source.read_bytes() == before


def test_the_output_is_named_after_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = gguf_maker.split(tmp_path)
    done = dots("quantize", parts[0], "--type", "q4_0")
    assert done.stdout == "m-q4_0.gguf\n"


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = gguf_maker.dots1().set("general.architecture", "string", "llama")
    with pytest.raises(DotsError, match="architecture 'llama'"):
        plan_checkpoint(other.write(tmp_path / "llama.gguf"))
    with pytest.raises(DotsError, match="is not the first shard"):
        plan_checkpoint(gguf_maker.split(tmp_path)[1])
    shards = tiny.write_checkpoint(tmp_path / "tiny", n_shards=1)
    with pytest.raises(DotsError, match="is not a GGUF"):
        plan_checkpoint(shards / "model.safetensors")


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_k_m"])
def test_a_damaged_block_names_its_tensor(
    type: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    """The scale of one block of Q8_0 becomes infinite; copied, widened or quantized, it's found."""
    path = tmp_path / "source.gguf"
    data = bytearray(sources["q8_0"].read_bytes())
    tensor = next(
        t for t in gguf.GGUFReader(sources["q8_0"]).tensors if t.name == "blk.1.ffn_up_exps.weight"
    )
    data[tensor.data_offset : tensor.data_offset + 2] = b"\x00\x7c"
    path.write_bytes(data)
    with pytest.raises(DotsError, match=r"blk\.1\.ffn_up_exps\.weight holds .* row 0"):
        make(path, tmp_path / "out.gguf", type)
