"""`dots verify`: damage anywhere in a file is found and named; with the checkpoint every byte is
compared and the error of every expert measured.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from dotscli.engine import Engine, EngineOptions
from dotscli.errors import DotsError
from dotscli.models.gguf_file import read_gguf, read_one
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.output.checksums import KEY, checksum
from dotscli.quantize.types import TYPES
from dotscli.quantize.verify import Damaged, matrices, verify
from tests import reference, tiny
from tests.transcript import dots

N_FLIPS = 100


@pytest.fixture(scope="module")
def gguf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "q4.gguf"
    list(quantize_checkpoint(tiny_checkpoint, out, "q4"))
    return out


@pytest.fixture
def copy(gguf: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copy(gguf, tmp_path / "copy.gguf"))


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def damage(path: Path, *names: str) -> list[Damaged]:
    return [event for event in verify(path, names) if isinstance(event, Damaged)]


def test_a_whole_file_is_whole(gguf: Path) -> None:
    done = dots("verify", gguf)
    assert done.exit_status == 0
    assert done.stdout.startswith("46 tensors, 88 matrices; structure valid; checksums of ")
    assert done.stdout.endswith("; no differences found.\n")
    assert done.stderr == ""


def test_every_flipped_bit_is_found_and_its_expert_named(copy: Path) -> None:
    rng = random.Random(0)
    everywhere = list(matrices(read_gguf(copy), None))
    found = 0
    for _ in range(N_FLIPS):
        matrix = rng.choice(everywhere)
        position, bit = matrix.start + rng.randrange(matrix.nbytes), rng.randrange(8)
        flip(copy, position, bit)
        found += [(d.tensor, d.expert) for d in damage(copy)] == [(matrix.tensor, matrix.expert)]
        flip(copy, position, bit)
    assert found == N_FLIPS
    assert damage(copy) == []


def test_damage_is_told_in_words(copy: Path) -> None:
    matrix = next(m for m in matrices(read_gguf(copy), None) if m.expert == 5)
    flip(copy, matrix.start + 20)  # a scale would be told apart
    done = dots("verify", copy)
    assert done.exit_status == 1
    label = "blk.1.ffn_gate_exps.weight, expert 5"
    assert done.stderr == f"error: {copy}: {label} ({matrix.type}) is damaged\n"
    assert "; 1 difference." in done.stdout
    report = dots("verify", copy, "--json").json
    assert [(d["tensor"], d["expert"]) for d in report["damaged"]] == [(matrix.tensor, 5)]
    assert dots("verify", copy, "--tensor", "output.weight").exit_status == 0
    assert dots("verify", copy, "--tensor", matrix.tensor).exit_status == 1


def test_damage_in_the_header_is_found(copy: Path) -> None:
    """By its structure or by its own checksum (but for the name of the key that holds it)."""
    rng = random.Random(1)
    for _ in range(N_FLIPS):
        position, bit = rng.randrange(read_gguf_size(copy)), rng.randrange(8)
        flip(copy, position, bit)
        try:
            assert damage(copy), position
        except DotsError:
            pass
        flip(copy, position, bit)
    assert damage(copy) == []


def read_gguf_size(path: Path) -> int:
    return read_gguf(path).data_offset


def test_checksums_are_blake2b_of_each_matrix(gguf: Path) -> None:
    import gguf as package

    values = package.GGUFReader(gguf).fields[KEY].contents()
    blobs = reference.read_tensors(gguf)
    position = 2
    for tensor in read_gguf(gguf).tensors:
        n = tensor.shape[2] if len(tensor.shape) == 3 else 1
        for part in np.split(np.frombuffer(blobs[tensor.name][1], np.uint8), n):
            assert values[position] == checksum([part.tobytes()])
            position += 1
    assert len(values) == position


def test_a_file_that_llama_quantize_made_anew(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It copies the key, which then speaks of other bytes."""
    bf16, theirs = tmp_path / "bf16.gguf", tmp_path / "theirs.gguf"
    list(quantize_checkpoint(tiny_checkpoint, bf16, "bf16"))
    reference.quantize(bf16, theirs, 2)
    found = damage(theirs)
    assert len(found) == 1
    assert "another program rewrote the file" in found[0].what


def test_a_file_without_checksums(copy: Path) -> None:
    data = copy.read_bytes()
    copy.write_bytes(data.replace(KEY.encode(), b"other" + KEY.encode()[5:]))
    done = dots("verify", copy)
    assert done.exit_status == 0
    assert "the file has no checksums" in done.stdout


def test_checksums_of_another_type_are_damage(copy: Path) -> None:
    """The header says that there are some, so the file is not one without."""
    data = copy.read_bytes()
    at = data.index(KEY.encode()) + len(KEY) + 4
    assert data[at] == 10  # UINT64 becomes INT64
    copy.write_bytes(data[:at] + b"\x0b" + data[at + 1 :])
    assert "its checksums prove nothing" in damage(copy)[0].what


def test_broken_structure_is_one_error(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:-40_000])
    done = dots("verify", copy)
    assert done.exit_status == 1
    assert done.stderr.startswith(f"error: {copy}")


def test_a_tensor_that_is_not_there(gguf: Path) -> None:
    with pytest.raises(DotsError, match="has no tensor ffn_down_exps") as caught:
        damage(gguf, "ffn_down_exps")
    assert "blk.1.ffn_down_exps.weight" in caught.value.hint


def test_against_its_checkpoint(gguf: Path, tiny_checkpoint: Path) -> None:
    done = dots("verify", gguf, "--against", tiny_checkpoint)
    assert done.exit_status == 0, done.stderr
    assert "experts down" in done.stdout
    report = dots("verify", gguf, "--against", tiny_checkpoint, "--json").json
    assert report["damaged"] == []
    assert len(report["errors"]) == 88
    by_type: dict[str, list[float]] = {}
    for error in report["errors"]:
        by_type.setdefault(error["type"], []).append(error["error"])
    assert set(by_type["F32"]) == {0.0}
    assert all(0.0 < e < 0.15 for kind, es in by_type.items() if kind != "F32" for e in es)


def test_against_names_what_the_checksums_cannot(copy: Path, tiny_checkpoint: Path) -> None:
    """A file that was damaged before its checksums were made."""
    name = "blk.2.ffn_up_exps.weight"
    matrix = next(m for m in matrices(read_gguf(copy), None) if (m.tensor, m.expert) == (name, 3))
    flip(copy, matrix.start + 20)
    done = dots("verify", copy, "--against", tiny_checkpoint, "--tensor", name)
    assert done.exit_status == 1
    assert f"{name}, expert 3 ({matrix.type}) differs from {tiny_checkpoint} in 1 bytes" in (
        done.stderr
    )


def test_against_another_checkpoint(gguf: Path, tmp_path: Path) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    done = dots("verify", gguf, "--against", other)
    assert done.exit_status == 1
    assert "and 68 more" in done.stderr
    wider = tiny.write_checkpoint(tmp_path / "wider", n_ff_expert=128)
    done = dots("verify", gguf, "--against", wider)
    assert done.exit_status == 1
    assert "the file belongs to another model" in done.stderr


@pytest.mark.parametrize("kind", [t for t in TYPES if t.quantized], ids=str)
def test_errors_equal_those_of_the_package_gguf(kind: object, tmp_path: Path) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    from dotscli.quantize.rows.codec import Codec
    from dotscli.quantize.rows.decode import decode
    from dotscli.quantize.types import TensorType

    assert isinstance(kind, TensorType)
    weights = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    out = np.empty(4 * kind.row_nbytes(512), np.uint8)
    Codec().encode(weights.data.cast("B"), "F32", 512, kind, out)
    expected = dequantize(out.reshape(4, -1), GGMLQuantizationType[kind.name]).reshape(-1)
    assert np.allclose(decode(out.tobytes(), kind), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def split(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in files of at most 200 kB; the first of them."""
    folder = tmp_path_factory.mktemp("split")
    list(quantize_checkpoint(tiny_checkpoint, folder / "q4.gguf", "q4", split_max_size=200_000))
    return sorted(folder.iterdir())[0]


def test_split_files_are_named_and_bounded(split: Path, gguf: Path) -> None:
    files = sorted(split.parent.iterdir())
    n = len(files)
    assert n > 2
    assert [path.name for path in files] == [f"q4-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]
    assert max(path.stat().st_size for path in files) <= 200_000
    tensors = {}
    for path in files:
        tensors.update(reference.read_tensors(path))
    assert tensors == reference.read_tensors(gguf)
    keys = reference.read_keys(split)
    assert [keys.pop(f"split.{k}") for k in ("no", "count", "tensors.count")] == [0, n, 46]
    assert keys == reference.read_keys(gguf)


def test_llama_cpp_loads_a_split_model(split: Path, gguf: Path) -> None:
    found = []
    for path in (split, gguf):
        with Engine.load(path, EngineOptions(n_threads=1, n_ctx=64)) as engine:
            found.append(engine.logits(engine.tokenize("hello", parse_special=False)))
    assert np.array_equal(*found)


def test_damage_in_a_split_model(split: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(split.parent, tmp_path / "copy"))
    first, last = sorted(folder.iterdir())[:: len(list(folder.iterdir())) - 1]
    assert damage(first) == []
    assert dots("verify", first, "--against", tiny_checkpoint).exit_status == 0
    shard = read_one(last)
    flip(last, shard.data_offset + shard.tensors[-1].offset + 100)
    assert [d.tensor for d in damage(first)] == ["output.weight"]


def test_a_part_without_the_checksums_that_the_others_have(split: Path, tmp_path: Path) -> None:
    """Its key has another name now; nothing in the file itself says that it had one."""
    folder = Path(shutil.copytree(split.parent, tmp_path / "copy"))
    paths = sorted(folder.iterdir())
    data = paths[1].read_bytes()
    paths[1].write_bytes(data.replace(KEY.encode(), b"other" + KEY.encode()[5:]))
    found = damage(paths[0])
    assert [event.tensor for event in found] == [None]
    assert found[0].what.startswith(f"{paths[1]}: it has no checksums, and the other parts have")


def test_a_split_output_goes_on_too(split: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "q4.gguf"
    events = quantize_checkpoint(tiny_checkpoint, out, "q4", split_max_size=200_000)
    for _ in range(50):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert all(".part" in path.name for path in tmp_path.iterdir())
    list(quantize_checkpoint(tiny_checkpoint, out, "q4", split_max_size=200_000))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in split.parent.iterdir()
    }


def test_a_tensor_larger_than_a_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DotsError, match="--split-max-size of 20000 bytes is too small") as caught:
        next(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", split_max_size=20_000))
    assert "give at least" in caught.value.hint


def test_one_file_is_enough_for_a_small_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    list(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", split_max_size=1 << 30))
    assert [path.name for path in tmp_path.iterdir()] == ["o.gguf"]


def test_a_folder_is_told_from_a_file(tiny_checkpoint: Path) -> None:
    done = dots("verify", tiny_checkpoint)
    assert done.exit_status == 1
    assert f"error: {tiny_checkpoint} is a folder" in done.stderr
    assert f"hint: dots verify FILE.gguf --against {tiny_checkpoint}" in done.stderr


def test_an_importance_matrix_is_named_for_what_it_is() -> None:
    path = Path(__file__).parent / "data" / "imatrix" / "small.imatrix.gguf"
    for words in (("verify", path), ("prompt", "hi", "-m", path), ("plan", path)):
        done = dots(*words)
        assert done.exit_status == 1
        assert f"error: {path} is an importance matrix, not a model" in done.stderr
        assert f"--imatrix {path}" in done.stderr
