"""Reading GGUF headers: what a good file says, shards, and how quick it is."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import GgufArray, read_gguf
from dotscli.models.gguf_type import SCALARS, TENSOR_TYPES, VALUE_NAMES
from tests import gguf_maker
from tests.transcript import environment


def test_the_header_says_what_was_written(tmp_path: Path) -> None:
    made = gguf_maker.dots1()
    file = read_gguf(made.write(tmp_path / "m.gguf"))
    assert file.version == 3
    assert file.data_offset == made.borders["data"]
    assert list(file.metadata) == list(made.keys)
    for key, (kind, value) in made.keys.items():
        read = file.metadata[key]
        if isinstance(read, GgufArray):
            assert kind == f"array:{read.element_name}"
            assert list(read) == list(value)
        else:
            assert read == pytest.approx(value)
            assert type(read) is {"string": str, "f32": float, "bool": bool}.get(kind, int)
    assert [(t.name, t.shape, t.type_id, t.nbytes) for t in file.tensors] == [
        (name, shape, kind, len(data)) for name, (shape, kind, data) in made.tensors.items()
    ]


def test_it_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "dots1")
    writer.add_uint32("dots1.block_count", 7)
    writer.add_array("an.array", ["a", "你", ""])
    writer.add_array("numbers", [1.5, -2.0])
    writer.add_array("flags", [True, False])
    writer.add_tensor("one", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("two", np.ones(3, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    reference = gguf.GGUFReader(path)
    assert file.metadata["dots1.block_count"] == 7
    assert list(file.metadata["an.array"]) == ["a", "你", ""]  # type: ignore[call-overload]
    assert list(file.metadata["numbers"]) == [1.5, -2.0]  # type: ignore[call-overload]
    assert list(file.metadata["flags"]) == [True, False]  # type: ignore[call-overload]
    assert [(t.name, t.shape, file.data_offset + t.offset, t.nbytes) for t in file.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.data_offset, t.n_bytes) for t in reference.tensors
    ]


def test_the_table_of_types_is_ggmls() -> None:
    sizes = {number.name: size for number, size in gguf.GGML_QUANT_SIZES.items()}
    for number, known in TENSOR_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == known.name
        assert known.id == number
        if known.name != "Q8_1":  # a type of intermediate results, wrong in the package
            assert sizes[known.name] == (known.block, known.block_nbytes)


def test_the_table_of_values_is_that_of_the_package() -> None:
    short = {"UINT": "u", "INT": "i", "FLOAT": "f"}
    for known in gguf.GGUFValueType:
        kind = known.name.rstrip("0123456789")
        assert VALUE_NAMES[known] == short.get(kind, kind.lower()) + known.name[len(kind) :]
        fixed = known not in (gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY)
        assert (known in SCALARS) == fixed
        if fixed:
            code = gguf.GGUFWriter._simple_value_packing[known]
            assert SCALARS[known].size == struct.calcsize(f"<{code}")
    assert len(VALUE_NAMES) == len(gguf.GGUFValueType)


def test_a_split_model_is_read_from_its_first_shard(tmp_path: Path) -> None:
    paths = gguf_maker.split(tmp_path)
    file = read_gguf(paths[0])
    assert file.shards == tuple(paths)
    assert {t.name for t in file.tensors} == set(gguf_maker.dots1().tensors)
    assert file.file_nbytes == sum(path.stat().st_size for path in paths)
    check_dots1(file)


def test_another_shard_names_the_first_one(tmp_path: Path) -> None:
    paths = gguf_maker.split(tmp_path)
    with pytest.raises(DotsError, match="not the first shard") as caught:
        read_gguf(paths[1])
    assert str(paths[0]) in caught.value.hint


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = gguf_maker.split(tmp_path)
    paths[2].unlink()
    with pytest.raises(DotsError, match=paths[2].name):
        read_gguf(paths[0])


def test_a_cut_shard_is_named(tmp_path: Path) -> None:
    paths = gguf_maker.split(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-64])
    with pytest.raises(DotsError, match=paths[1].name):
        read_gguf(paths[0])


def test_swapped_shards_are_noticed(tmp_path: Path) -> None:
    paths = gguf_maker.split(tmp_path)
    second = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    paths[2].write_bytes(second)
    with pytest.raises(DotsError, match=r"split\.no is 2, not 1"):
        read_gguf(paths[0])


def test_a_renamed_shard_is_explained(tmp_path: Path) -> None:
    other = tmp_path / "renamed.gguf"
    gguf_maker.split(tmp_path)[0].rename(other)
    with pytest.raises(DotsError, match=r"-00001-of-00003\.gguf"):
        read_gguf(other)


def test_a_large_vocabulary_is_checked_in_a_quarter_of_a_second(tmp_path: Path) -> None:
    n_vocab = 152_064
    made = gguf_maker.dots1(vocab_size=n_vocab, hidden=32, n_heads=1, n_layers=2)
    merges = [f"a{i} b{i}" for i in range(151_387)]
    path = made.set("tokenizer.ggml.merges", "array:string", merges).write(tmp_path / "m.gguf")
    taken = []
    for _ in range(3):
        started = time.process_time()
        check_dots1(read_gguf(path))
        taken.append(time.process_time() - started)
    assert min(taken) < 0.25


def test_an_answer_does_not_wait_for_the_package_gguf(tiny_gguf: Path) -> None:
    """Importing it takes 0.2 s, most of what a small model needs for its first token."""
    script = (
        "import sys; from dotscli.cli.app import run\n"
        "from dotscli.terminal.terminal import Terminal\n"
        "status = run(sys.argv[1:], Terminal.system())\n"
        "sys.exit('imported' if 'gguf' in sys.modules else status)"
    )
    words = ["prompt", "hi", "-m", str(tiny_gguf), "-n", "1", "-c", "256"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
