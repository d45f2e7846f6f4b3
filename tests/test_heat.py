"""Heat: counting, forgetting, merging, choosing; and its files, good and bad."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.errors import DotsError
from dotscli.hot import heat_store
from dotscli.hot.heat import Heat
from dotscli.models.identity import fingerprint


def counts(**layers: list[float]) -> dict[int, np.ndarray]:
    return {int(name[1:]): np.array(values) for name, values in layers.items()}


def test_the_hottest_come_first_and_the_lower_id_among_equals() -> None:
    heat = Heat.of(counts(l1=[1, 5, 5, 0, 9]))
    assert heat.hottest(1, 3) == [4, 1, 2]
    assert heat.hottest(1, 99) == [4, 1, 2, 0, 3]
    assert heat.hottest(7, 3) == []


def test_share_is_the_hit_rate_of_having_them() -> None:
    heat = Heat.of(counts(l1=[1, 2, 3, 4]))
    assert heat.share(1, [3, 3, 1]) == 0.6
    assert heat.share(1, []) == 0
    assert heat.share(2, [0]) == 0


def test_skew_is_one_where_all_are_used_alike() -> None:
    assert Heat.of(counts(l1=[3] * 20)).skew(1) == pytest.approx(1)
    assert Heat.of(counts(l1=[9, 9] + [1] * 18)).skew(1) == pytest.approx(5)


def test_adding_weighs_by_tokens_and_starts_anew_for_another_shape() -> None:
    heat = Heat.of(counts(l1=[1, 2], l2=[4, 0]))
    heat.add(counts(l1=[3, 3], l2=[1, 1, 1]))
    assert {layer: values.tolist() for layer, values in heat.layers.items()} == {
        1: [4, 5],
        2: [1, 1, 1],
    }


def test_saved_and_loaded(tmp_path: Path) -> None:
    heat = Heat.of(counts(l1=[0.5, 1234567.125], l60=[3, 0]))
    path = tmp_path / "new" / "heat.json"
    heat_store.save(heat, path)
    heat_store.save(heat, path)
    again = heat_store.load(path)
    assert {k: v.tolist() for k, v in again.layers.items()} == {1: [0.5, 1234567.125], 60: [3, 0]}
    assert [p.name for p in path.parent.iterdir()] == ["heat.json"]


def test_a_folder_that_can_not_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DotsError, match="can't save the heat"):
        heat_store.save(Heat(), tmp_path / "file" / "heat.json")


BAD = {
    "not json": "no",
    "a list": "[]",
    "another format": '{"format": 2, "layers": {}}',
    "no layers": '{"format": 1}',
    "layers in a list": '{"format": 1, "layers": []}',
    "a layer without number": '{"format": 1, "layers": {"one": [1]}}',
    "a huge layer": '{"format": 1, "layers": {"99999999999": [1]}}',
    "a layer of many digits": f'{{"format": 1, "layers": {{"{"0" * 5000}": [1]}}}}',
    "a huge layer behind zeros": '{"format": 1, "layers": {"00000000199999999": [1]}}',
    "a file larger than any": '{"format": 1, "layers": {}}' + " " * (8 << 20),
    "no counts": '{"format": 1, "layers": {"1": []}}',
    "a negative count": '{"format": 1, "layers": {"1": [-1]}}',
    "infinity": '{"format": 1, "layers": {"1": [Infinity]}}',
    "not a number": '{"format": 1, "layers": {"1": [NaN]}}',
    "a true count": '{"format": 1, "layers": {"1": [true]}}',
    "a count of text": '{"format": 1, "layers": {"1": ["1"]}}',
    "deep nesting": "[" * 100_000,
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_bad_heat_files_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "heat.json"
    path.write_text(text)
    with pytest.raises(DotsError, match=r"heat\.json"):
        heat_store.load(path)


def test_a_missing_heat_file(tmp_path: Path) -> None:
    with pytest.raises(DotsError, match="can't read"):
        heat_store.load(tmp_path / "none.json")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_heat_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    with pytest.raises(DotsError):
        heat_store.load(path)


def write_imatrix(path: Path, entries: dict[str, np.ndarray]) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "none")
    writer.add_type("imatrix")
    for name, values in entries.items():
        writer.add_tensor(name, values.astype(np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_importance_matrix_seeds_heat(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    used = np.array([7, 0, 2, 9])
    path = write_imatrix(
        tmp_path / "imatrix.gguf",
        {
            "blk.0.ffn_down.weight.counts": np.array([18]),
            "blk.1.ffn_gate_exps.weight.in_sum2": np.ones(16),
            "blk.1.ffn_gate_exps.weight.counts": used,
            "blk.1.ffn_down_exps.weight.counts": used,
            "blk.2.ffn_up_exps.weight.counts": used[::-1],
        },
    )
    heat = heat_store.load(path)
    assert {layer: c.tolist() for layer, c in heat.layers.items()} == {
        1: [7, 0, 2, 9],
        2: [9, 2, 0, 7],
    }


@pytest.mark.parametrize("entries", [{"blk.1.ffn_up.weight.counts": np.ones(1)},
                                     {"blk.1.ffn_up_exps.weight.counts": np.array([1, -1])},
                                     {"blk.1.ffn_up_exps.weight.counts": np.array([1, np.nan])}],
                         ids=["dense only", "negative", "not a number"])  # fmt: skip
def test_an_importance_matrix_without_usable_counts(
    entries: dict[str, np.ndarray], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(DotsError, match=r"imatrix\.gguf"):
        heat_store.load(write_imatrix(tmp_path / "imatrix.gguf", entries))


def test_a_fingerprint_is_the_models_own(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(bytes(10_000_000))
    b.write_bytes(bytes(10_000_000))
    assert fingerprint(a) == fingerprint(b)
    with b.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint(a) != fingerprint(b)
    assert heat_store.file_of(a, tmp_path) == tmp_path / f"{fingerprint(a)}.json"


def test_an_empty_and_a_small_file_have_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"b")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


@pytest.mark.parametrize("cut", [1, 7, 8, 11])
def test_a_trace_that_ends_early(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    whole = struct.pack("<HHI4h", 3, 2, 2, 5, 6, 7, 8)
    path.write_bytes(whole + whole[:cut])
    records = heat_store.read_trace(path)
    layer, ids = next(records)
    assert (layer, ids.tolist()) == (3, [[5, 6], [7, 8]])
    with pytest.raises(DotsError, match=f"ends inside a record, at byte {16 + cut}"):
        next(records)


def test_heat_files_are_json_that_others_can_read(tmp_path: Path) -> None:
    heat_store.save(Heat.of(counts(l2=[1, 2])), tmp_path / "h.json")
    document = json.loads((tmp_path / "h.json").read_text())
    assert document == {"format": 1, "layers": {"2": [1.0, 2.0]}}
