"""Safetensors files that nobody vouches for: read whole and right, or refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dotscli.errors import DotsError
from dotscli.quantize.source.safetensors_header import DTYPE_NBITS, parse_header, read_header
from dotscli.quantize.source.shards import Shards
from tests import tiny


def test_every_tensor_is_found_with_its_bytes(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, n_shards=3, dtype="F32")
    shards = Shards.open(folder)
    expected = tiny.weights(tiny.config())
    assert set(shards.names()) == set(expected)
    assert len(shards.paths) == 3
    assert shards.nbytes == sum(values.nbytes for values in expected.values())
    for name, values in expected.items():
        assert (shards.shape(name), shards.dtype(name)) == (values.shape, "F32")
        assert shards.read(name, 0, values.nbytes).tobytes() == values.tobytes()
    shards.close()


def test_parts_are_read_again_and_again(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, n_shards=1, dtype="F32")
    name = "lm_head.weight"
    expected = tiny.weights(tiny.config())[name].tobytes()
    shards = Shards.open(folder)
    for start, nbytes in ((0, 5), (4093, 8192), (len(expected) - 1, 1), (7, 0)):
        for _ in range(2):
            assert shards.read(name, start, nbytes).tobytes() == expected[start : start + nbytes]
    with pytest.raises(ValueError, match="lm_head"):
        shards.read(name, 0, len(expected) + 1)
    shards.close()


def test_header_of_odd_length_is_read(tmp_path: Path) -> None:
    """safetensors pads the header; nothing says that others do."""
    values = np.arange(64, dtype=np.float32)
    header = {"a": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}
    text = json.dumps(header).encode() + b" " * 3
    (tmp_path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + values.tobytes()
    )
    shards = Shards.open(tmp_path)
    assert shards.read("a", 0, 256).tobytes() == values.tobytes()


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, n_shards=1)
    shards = Shards.open(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(DotsError, match=r"model\.safetensors shrank"):
        shards.read("lm_head.weight", 0, 100)


def test_header_may_be_empty_of_tensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert read_header(tmp_path / "x.safetensors") == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
sizes = st.integers(-2, 40) | st.integers(1 << 60, 1 << 70)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_NBITS, "F31", ""]) | json_values,
        "shape": st.lists(sizes, max_size=3) | json_values,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | json_values,
    }
)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_read_or_refused(text: bytes, extra: int) -> None:
    try:
        parse_header(text, 8 + len(text) + extra, Path("x.safetensors"))
    except DotsError as error:
        assert "x.safetensors" in error.message


@given(st.dictionaries(st.text(max_size=6), entries | json_values, max_size=4), st.integers(0, 99))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_read_or_refused(header: dict[str, object], extra: int) -> None:
    text = json.dumps(header).encode()
    try:
        found = parse_header(text, 8 + len(text) + extra, Path("x.safetensors"))
    except DotsError as error:
        assert "x.safetensors" in error.message
        return
    # What is accepted covers the data exactly.
    end = 8 + len(text)
    for entry in found:
        assert entry.start == end
        n_bits = int(np.prod(entry.shape, dtype=object)) * DTYPE_NBITS[entry.dtype]
        assert n_bits == 8 * entry.nbytes
        end += entry.nbytes
    assert end == 8 + len(text) + extra


@given(st.lists(st.tuples(st.sampled_from(["F32", "BF16", "F16", "U8"]),
                          st.lists(st.integers(0, 5), max_size=3)), max_size=6),
       st.randoms(use_true_random=False))  # fmt: skip
def test_headers_that_follow_the_format_are_read(
    tensors: list[tuple[str, list[int]]], random: object
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    named, offset = {}, 0
    for i, (dtype, shape) in enumerate(tensors):
        nbytes = int(np.prod(shape, dtype=int)) * DTYPE_NBITS[dtype] // 8
        named[f"t{i}"] = {"dtype": dtype, "shape": shape,
                          "data_offsets": [offset, offset + nbytes]}  # fmt: skip
        offset += nbytes
    names = list(named)
    random.shuffle(names)  # type: ignore[attr-defined]
    header |= {name: named[name] for name in names}
    text = json.dumps(header).encode()
    found = parse_header(text, 8 + len(text) + offset, Path("x"))
    assert {entry.name: (entry.dtype, list(entry.shape)) for entry in found} == {
        f"t{i}": (dtype, shape) for i, (dtype, shape) in enumerate(tensors)
    }
