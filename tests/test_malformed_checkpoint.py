"""A written list of broken checkpoints: each ends in one sentence that names file and value.

Nothing is written, nothing of the checkpoint changes, and no other exception than DotsError gets
out. Configs, tokenizers, templates and outputs have lists of their own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.errors import DotsError
from dotscli.models.metadata import metadata
from dotscli.models.vocab import Vocab
from dotscli.quantize import plan_checkpoint, quantize_checkpoint
from dotscli.quantize.output.gguf_header import gguf_header
from tests import tiny

Header = dict[str, Any]
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SINGLE = "model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.experts.5.down_proj.weight"
SIZES = {"n_layers": 2, "hidden": 64, "n_ff": 96, "n_ff_expert": 32, "n_experts": 8}


def split(path: Path) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(path: Path, header: Header | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def header(change: Callable[[Header], object], shard: str = FIRST) -> Callable[[Path], None]:
    def breaking(folder: Path) -> None:
        found, data = split(folder / shard)
        change(found)
        join(folder / shard, found, data)

    return breaking


def field(tensor: str, key: str, value: object) -> Callable[[Path], None]:
    return header(lambda found: found[tensor].update({key: value}))


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def breaking(folder: Path) -> None:
        document = json.loads((folder / INDEX).read_text())
        change(document["weight_map"])
        (folder / INDEX).write_text(json.dumps(document))

    return breaking


def weights(
    change: Callable[[dict[str, np.ndarray]], object], dtype: str | dict[str, str] = "BF16"
) -> Callable[[Path], None]:
    """Write the shards again with other tensors."""

    def breaking(folder: Path) -> None:
        tensors = tiny.weights(tiny.config(**SIZES))  # type: ignore[arg-type]
        change(tensors)
        tiny.write_shards(folder, tensors, dtype, n_shards=2)

    return breaking


def put(name: str, at: tuple[int, ...], value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name][at] = value

    return change


def cut(name: str, nbytes: int) -> Callable[[Path], None]:
    def breaking(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:nbytes] if nbytes >= 0 else raw + bytes(-nbytes))

    return breaking


def raw_header(text: bytes) -> Callable[[Path], None]:
    return lambda folder: join(folder / FIRST, text, split(folder / FIRST)[1])


def length(value: int) -> Callable[[Path], None]:
    def breaking(folder: Path) -> None:
        raw = (folder / FIRST).read_bytes()
        (folder / FIRST).write_bytes(struct.pack("<Q", value) + raw[8:])

    return breaking


def swap_shards(weight_map: dict[str, str]) -> None:
    weight_map[Q_PROJ] = SECOND


def both_tensors(folder: Path) -> None:
    """The same tensor in both shards."""
    found, data = split(folder / SECOND)
    size = len(data)
    found[Q_PROJ] = {"dtype": "U8", "shape": [4], "data_offsets": [size, size + 4]}
    join(folder / SECOND, found, data + b"abcd")


def fuse_one_layer(folder: Path) -> None:
    """One fused stack among per-expert tensors."""
    tensors = tiny.weights(tiny.config(**SIZES))  # type: ignore[arg-type]
    tensors["model.layers.1.mlp.experts.down_proj"] = np.zeros((8, 64, 32), np.float32)
    tiny.write_shards(folder, tensors, n_shards=2)


def config(**changes: object) -> Callable[[Path], None]:
    def breaking(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return breaking


def transpose(tensors: dict[str, np.ndarray]) -> None:
    tensors[DOWN] = np.ascontiguousarray(tensors[DOWN].T)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    # files
    "no weights at all": (
        lambda f: [p.unlink() for p in [*f.glob("*.safetensors"), f / INDEX]],
        f"holds neither {INDEX} nor {SINGLE}",
    ),
    "index names a missing shard": (
        lambda f: (f / SECOND).unlink(), f"{INDEX} names {SECOND}, which",
    ),
    "shard is a folder": (
        lambda f: ((f / SECOND).unlink(), (f / SECOND).mkdir()), f"{INDEX} names {SECOND}, which",
    ),
    "two versions of the weights": (
        lambda f: (f / SINGLE).write_bytes((f / FIRST).read_bytes()), f"holds both {INDEX}",
    ),
    "shard cut in its data": (cut(FIRST, 30_000), f"{FIRST} is truncated: its tensors end at byte"),
    "shard cut by one byte": (
        lambda f: cut(FIRST, (f / FIRST).stat().st_size - 1)(f), f"{FIRST} is truncated",
    ),
    "shard cut in its header": (cut(FIRST, 100), f"{FIRST} is truncated: header of"),
    "shard cut in its length": (cut(FIRST, 5), f"{FIRST} is truncated: 5 bytes"),
    "shard is empty": (cut(FIRST, 0), f"{FIRST} is truncated: 0 bytes"),
    "bytes behind the last tensor": (cut(FIRST, -7), f"{FIRST} holds 7 bytes that belong to no"),
    "an LFS pointer instead of a shard": (
        lambda f: (f / FIRST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:"),
        f"{FIRST}: the header says it is",
    ),
    # header
    "header too long": (length(1 << 40), f"{FIRST}: the header says it is {1 << 40} bytes"),
    "header longer than the file": (length(9_000_000), "header of 9000000 bytes, file of"),
    "header is not JSON": (raw_header(b"{{{{{{{{"), f"{FIRST}: the header is not valid JSON"),
    "header is not UTF-8": (raw_header(b'{"\xff":1}  '), f"{FIRST}: the header is not valid JSON"),
    "header is a list": (raw_header(b"[]      "), f"{FIRST}: the header holds a list"),
    "header nested without end": (raw_header(b"[" * 200_000), "the header is nested too deeply"),
    "tensor twice in one header": (
        raw_header(b'{"a": {}, "a": {}}'), '"a" appears twice in one object',
    ),
    "tensor without a name": (header(lambda h: h.update({"": {}})), 'a tensor named ""'),
    "tensor that is a number": (header(lambda h: h.update({"x": 7})), "has 7 for x"),
    "dtype unknown": (field(Q_PROJ, "dtype", "F31"), f'{Q_PROJ}: dtype is "F31"'),
    "dtype is no text": (field(Q_PROJ, "dtype", 5), f"{Q_PROJ}: dtype is 5"),
    "dtype missing": (
        header(lambda h: h[Q_PROJ].pop("dtype")), f"{Q_PROJ}: the key dtype is missing",
    ),
    "shape with a negative size": (field(Q_PROJ, "shape", [-64, -64]), "shape is [-64, -64]"),
    "shape with a fraction": (field(Q_PROJ, "shape", [64.0, 64]), "shape is [64.0, 64]"),
    "shape whose product overflows": (
        field(Q_PROJ, "shape", [1 << 40, 1 << 40]), f"{Q_PROJ} has 8192 bytes, its shape",
    ),
    "offsets reversed": (field(Q_PROJ, "data_offsets", [100, 50]), "data_offsets is [100, 50]"),
    "offsets overlap": (
        field(Q_PROJ, "data_offsets", [0, 8192]), "overlaps the tensor before it",
    ),
    "offsets leave a gap": (
        header(lambda h: h.pop(Q_PROJ)), "leaves a gap to the tensor before it",
    ),
    "offsets behind the end": (
        field(Q_PROJ, "data_offsets", [1 << 50, (1 << 50) + 8192]), "leaves a gap to the tensor",
    ),
    # index
    "index is not JSON": (lambda f: (f / INDEX).write_text("{"), f"{INDEX} is not valid JSON"),
    "index without weight_map": (
        lambda f: (f / INDEX).write_text("{}"), "the key weight_map is missing",
    ),
    "index is empty": (index(lambda m: m.clear()), "weight_map names no tensor"),
    "index climbs out of the folder": (
        index(lambda m: m.update({Q_PROJ: "../x.safetensors"})), 'lies in "../x.safetensors"',
    ),
    "index with an absolute path": (
        index(lambda m: m.update({Q_PROJ: "/etc/x.safetensors"})), 'lies in "/etc/x.safetensors"',
    ),
    "index with a backslash": (
        index(lambda m: m.update({Q_PROJ: "..\\x.safetensors"})), "expected a .safetensors file",
    ),
    "index with another suffix": (
        index(lambda m: m.update({Q_PROJ: "config.json"})), 'lies in "config.json"',
    ),
    "index with a name longer than a file's": (
        index(lambda m: m.update({Q_PROJ: "x" * 244 + ".safetensors"})), "expected a .safetensors",
    ),
    "index with a name of 255 characters in 500 bytes": (
        index(lambda m: m.update({Q_PROJ: "é" * 243 + ".safetensors"})), "which",
    ),
    "index with a tensor's name of 5000 characters": (
        index(lambda m: m.update({"x" * 5000: FIRST})), 'a tensor named "xxx',
    ),
    "index with a tensor's name that is no text": (
        index(lambda m: m.update({"\ud800": FIRST})), 'a tensor named "\\ud800"',
    ),
    "index with a number": (index(lambda m: m.update({Q_PROJ: 7})), f'"{Q_PROJ}" lies in 7'),
    "index puts a tensor into the wrong shard": (
        index(swap_shards), f"puts {Q_PROJ} into {SECOND}, whose header does not have it",
    ),
    "index names a tensor that no shard has": (
        index(lambda m: m.update({"model.extra": FIRST})), f"puts model.extra into {FIRST}",
    ),
    "shard holds what the index does not name": (
        index(lambda m: m.pop(Q_PROJ)), f"{FIRST} holds {Q_PROJ}, which {INDEX} does not name",
    ),
    "tensor in two shards": (both_tensors, f"{SECOND}: {Q_PROJ} is also in {FIRST}"),
    # tensors
    "expert missing": (weights(lambda t: t.pop(DOWN)), f"missing tensors (1): {DOWN}"),
    "layer missing": (
        config(num_hidden_layers=3), "missing tensors (37): model.layers.2.input_layernorm",
    ),
    "router bias missing": (
        weights(lambda t: t.pop("model.layers.1.mlp.gate.e_score_correction_bias")),
        "missing tensors (1): model.layers.1.mlp.gate.e_score_correction_bias",
    ),
    "tensor too many": (
        weights(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(64)})),
        "a dots.llm1 of this config does not have (1): model.layers.0.self_attn.q_proj.bias",
    ),
    "layer too many": (config(num_hidden_layers=1), "have (37): model.layers.1.self_attn"),
    "expert too many": (config(n_routed_experts=7), "have (3): model.layers.1.mlp.experts.7"),
    "one layer fused, others not": (fuse_one_layer, "(1): model.layers.1.mlp.experts.gate_up_proj"),
    "shape transposed": (
        weights(transpose), f"{DOWN} is [32, 64], expected [64, 32]",
    ),
    "vocabulary of another size": (
        config(vocab_size=330), "embed_tokens.weight is [320, 64], expected [330, 64]",
    ),
    "dtype F64": (
        weights(lambda t: None, {DOWN: "F64"}), f"other than BF16, F16, F32 (1): {DOWN} is F64",
    ),
    "NaN in an expert": (
        weights(put(DOWN, (63, 31), np.nan), "F32"),
        f"{DOWN} holds nan in row 63, column 31: it is not finite for blk.1.ffn_down_exps.weight "
        "(expert 5)",
    ),
    "infinity in attention": (
        weights(put(Q_PROJ, (2, 3), -np.inf)), f"{Q_PROJ} holds -inf in row 2, column 3",
    ),
    "NaN in a norm": (
        weights(put("model.norm.weight", (9,), np.nan), "F32"),
        "model.norm.weight holds nan in row 0, column 9",
    ),
    "infinity in the router's bias": (
        weights(put("model.layers.1.mlp.gate.e_score_correction_bias", (7,), np.inf)),
        "e_score_correction_bias holds inf in row 0, column 7",
    ),
    "weight too large for a half float scale": (
        weights(put(DOWN, (0, 0), 1e30), "F32"), "it is too large for blk.1.ffn_down_exps.weight",
    ),
    # config and tokenizer, one of each list
    "config without a key": (config(rope_theta=None), "config.json: the key rope_theta is null"),
    "config with GQA": (config(num_key_value_heads=2), "config.json: num_key_value_heads is 2"),
    "config of another model": (config(model_type="qwen2_moe"), 'model_type is "qwen2_moe"'),
    "tokenizer missing": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "tokenizer not JSON": (
        lambda f: (f / "tokenizer.json").write_text("<html>"), "tokenizer.json is not valid JSON",
    ),
    "tokenizer_config not JSON": (
        lambda f: (f / "tokenizer_config.json").write_text("["), "tokenizer_config.json is not",
    ),
    "generation_config not JSON": (
        lambda f: (f / "generation_config.json").write_text("7"), "generation_config.json holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    breaking, message = BROKEN[name]
    folder = tiny.write_checkpoint(tmp_path / "broken", **SIZES)
    breaking(folder)
    before = {path: path.stat().st_size for path in folder.rglob("*")}
    with pytest.raises(DotsError) as caught:
        list(quantize_checkpoint(folder, tmp_path / "o.gguf", "q4_0"))
    assert message in caught.value.message
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message
    assert {path: path.stat().st_size for path in folder.rglob("*")} == before
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept in ({"broken"}, {"broken", "o.gguf.part", "o.gguf.part.journal"})


def test_intact_checkpoint_passes(tmp_path: Path) -> None:
    """The list would prove nothing if its starting point failed."""
    folder = tiny.write_checkpoint(tmp_path / "intact", **SIZES)
    list(quantize_checkpoint(folder, tmp_path / "o.gguf", "q4_0"))
    assert (tmp_path / "o.gguf").exists()


def test_no_folder_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(DotsError, match=str(path)):
            next(quantize_checkpoint(path, tmp_path / "o.gguf"))


TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", INDEX)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("intact"), **SIZES)


@given(st.sampled_from(TEXTS), st.lists(st.integers(0, 400), max_size=4), json_values)
@settings(max_examples=150, deadline=None)
def test_any_value_anywhere_is_read_or_refused(
    intact: Path, name: str, places: list[int], value: object
) -> None:
    """One value of one JSON file is replaced by any other; nothing but DotsError may come of it."""
    path = intact / name
    original = path.read_text()
    document = at = json.loads(original)
    for place in places:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            break
        parent, key = at, keys[place % len(keys)]
        at = at[key]
        if not isinstance(at, (dict, list)) or place == places[-1]:
            parent[key] = value
            break
    else:
        document = value
    path.write_text(json.dumps(document))
    try:
        decided = plan_checkpoint(intact)
        vocab = Vocab.load(intact, decided.model)
        gguf_header(metadata(decided.model, vocab, intact, 15), decided.tensors)
    except DotsError as error:
        assert str(intact) in error.message
        assert "\n" not in error.message
    finally:
        path.write_text(original)
