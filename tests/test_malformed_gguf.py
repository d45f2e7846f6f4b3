"""GGUFs that are damaged, hostile or wrong: each is refused with its name and the bad value.

All of it happens in this process: a crash would end the test run.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dotscli.errors import DotsError
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import read_gguf
from tests import gguf_maker
from tests.gguf_maker import F16, F64, Gguf

HUGE = 2**62


@cache
def good() -> bytes:
    """A small file that passes."""
    return bytes(small())


def small() -> Gguf:
    return gguf_maker.dots1(hidden=32, n_heads=2, n_ff=32, n_ff_expert=32, n_layers=2, n_experts=4)


def check(path: Path) -> None:
    check_dots1(read_gguf(path))


def refused(path: Path, *words: str) -> DotsError:
    with pytest.raises(DotsError) as caught:
        check(path)
    error = caught.value
    assert path.name in error.message
    for word in words:
        assert word in error.message, error.message
    assert error.hint
    return error


def test_the_file_that_is_spoiled_below_is_good(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(good())
    check(path)


def borders() -> dict[str, int]:
    made = small()
    bytes(made)
    return {"nothing": 0, "magic": 2} | made.borders


@pytest.mark.parametrize("border", borders())
@pytest.mark.parametrize("beyond", [0, 1])
def test_a_file_cut_at_any_border(tmp_path: Path, border: str, beyond: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(good()[: borders()[border] + beyond])
    refused(path)


def test_a_file_that_lacks_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(good()[:-1])
    assert "truncated" in refused(path, "output").hint


def patched(at: str, data: bytes, shift: int = 0) -> bytes:
    raw = bytearray(good())
    start = borders()[at] + shift
    raw[start : start + len(data)] = data
    return bytes(raw)


KEY_LENGTH = 8 + len("dots1.block_count")
BYTES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no GGUF at all": (lambda: b"PK\3\4" + bytes(100), "not a GGUF"),
    "the header of safetensors": (lambda: b'\x40\0\0\0\0\0\0\0{"a":{}}', "not a GGUF"),
    "version 0": (lambda: patched("version", struct.pack("<I", 0)), "version 0"),
    "version 2": (lambda: patched("version", struct.pack("<I", 2)), "version 2"),
    "version 4": (lambda: patched("version", struct.pack("<I", 4)), "version 4"),
    "big-endian": (lambda: patched("version", struct.pack(">I", 3)), "big-endian"),
    "tensors beyond counting": (
        lambda: patched("tensor count", struct.pack("<Q", HUGE)), str(HUGE)),
    "more tensors than there are": (
        lambda: patched("tensor count", struct.pack("<Q", 60_000)), "bytes"),
    "keys beyond counting": (lambda: patched("key count", struct.pack("<Q", 2**64 - 1)), "keys"),
    "one key too few": (
        lambda: patched("key count", struct.pack("<Q", len(small().keys) - 1)), ""),
    "a key longer than the file": (
        lambda: patched("key general.architecture", struct.pack("<Q", HUGE)), str(HUGE)),
    "a key of length 0": (
        lambda: patched("key general.architecture", struct.pack("<Q", 0)), "''"),
    "a key that is not UTF-8": (
        lambda: patched("key general.architecture", b"\xff", 8), "not UTF-8"),
    "a key with a NUL": (lambda: patched("key general.architecture", b"\0", 10), "\\x00"),
    "an unknown value type": (
        lambda: patched("value of dots1.block_count", struct.pack("<I", 99)), "99"),
    "a string longer than the file": (
        lambda: patched("value of general.name", struct.pack("<IQ", 8, HUGE)), str(HUGE)),
    "an array longer than the file": (
        lambda: patched("value of tokenizer.ggml.token_type", struct.pack("<IIQ", 9, 5, HUGE)),
        str(HUGE)),
    "an array of strings longer than the file": (
        lambda: patched("value of tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, 2**40)),
        str(2**40)),
    "an array of arrays": (
        lambda: patched("value of tokenizer.ggml.tokens", struct.pack("<II", 9, 9)), "type 9"),
    "a token longer than the file": (
        lambda: patched("value of tokenizer.ggml.tokens", struct.pack("<Q", HUGE), 16),
        "tokenizer.ggml.tokens"),
    "a bool of value 7": (
        lambda: patched("value of dots1.expert_weights_norm", b"\7", 4), "value 7"),
    "a tensor name of 64 bytes": (
        lambda: patched("info of token_embd.weight", struct.pack("<Q", 64)), "64"),
    "a tensor of 0 dimensions": (
        lambda: patched("info of token_embd.weight", struct.pack("<I", 0), 25), "0 dimensions"),
    "a tensor of 5 dimensions": (
        lambda: patched("info of token_embd.weight", struct.pack("<I", 5), 25), "5 dimensions"),
    "a tensor without elements": (
        lambda: patched("info of token_embd.weight", struct.pack("<Q", 0), 29), "[0, 320]"),
    "a shape whose product overflows": (
        lambda: patched("info of token_embd.weight", struct.pack("<QQ", 2**40, 2**40), 29),
        str(2**40)),
    "an unknown tensor type": (
        lambda: patched("info of token_embd.weight", struct.pack("<I", 77), 45), "77"),
    "a removed tensor type": (
        lambda: patched("info of token_embd.weight", struct.pack("<I", 31), 45), "31"),
    "rows that are no whole blocks": (
        lambda: patched("info of token_embd.weight", struct.pack("<I", 12), 45), "Q4_K"),
    "an offset outside the file": (
        lambda: patched("info of token_embd.weight", struct.pack("<Q", HUGE), 49), str(HUGE)),
}  # fmt: skip


@pytest.mark.parametrize("what", BYTES)
def test_bytes_that_lie(tmp_path: Path, what: str) -> None:
    make, word = BYTES[what]
    path = tmp_path / "bad.gguf"
    path.write_bytes(make())
    refused(path, word)


def key(name: str, kind: str, value: object) -> Callable[[Gguf], object]:
    return lambda made: made.set(name, kind, value)


def without(name: str) -> Callable[[Gguf], object]:
    return lambda made: made.keys.pop(name)


def tensor(name: str, **changes: object) -> Callable[[Gguf], object]:
    def change(made: Gguf) -> None:
        shape, kind, data = made.tensors[name]
        made.tensors[name] = (
            changes.get("shape", shape), changes.get("kind", kind), changes.get("data", data),
        )  # fmt: skip

    return change


def tokens(made: Gguf, index: int, token: bytes | str) -> None:
    found = list(made.keys["tokenizer.ggml.tokens"][1])  # type: ignore[call-overload]
    found[index] = token
    made.set("tokenizer.ggml.tokens", "array:string", found)


ROUTER = "blk.1.ffn_gate_inp.weight"
VALUES: dict[str, tuple[Callable[[Gguf], object], str]] = {
    "another architecture": (key("general.architecture", "string", "llama"), "'llama'"),
    "no architecture": (without("general.architecture"), "None"),
    "an architecture that is a number": (key("general.architecture", "u32", 1), "architecture 1"),
    "no gating function": (without("dots1.expert_gating_func"), "expert_gating_func"),
    "softmax gating": (key("dots1.expert_gating_func", "u32", 1), "expert_gating_func is 1"),
    "an unknown gating": (key("dots1.expert_gating_func", "u32", 9), "expert_gating_func is 9"),
    "no number of layers": (without("dots1.block_count"), "block_count"),
    "no layers": (key("dots1.block_count", "u32", 0), "block_count is 0"),
    "a million layers": (key("dots1.block_count", "u32", 10**6), "1000000"),
    "layers as i32": (key("dots1.block_count", "i32", 2), "type i32"),
    "layers as a string": (key("dots1.block_count", "string", "2"), "type string"),
    "layers as an array": (key("dots1.block_count", "array:u32", [2, 2]), "type array"),
    "a layer more than there are tensors": (key("dots1.block_count", "u32", 3), "blk.2."),
    "a layer less": (key("dots1.block_count", "u32", 1), "blk.1."),
    "no context": (key("dots1.context_length", "u32", 0), "context_length is 0"),
    "more dense layers than layers": (
        key("dots1.leading_dense_block_count", "u32", 3), "leading_dense_block_count is 3"),
    "no key for dense layers": (
        without("dots1.leading_dense_block_count"), "leading_dense_block_count"),
    "no expert scale": (without("dots1.expert_weights_scale"), "expert_weights_scale"),
    "an expert scale that is no number": (
        key("dots1.expert_weights_scale", "f32", math.nan), "nan"),
    "more experts used than there are": (
        key("dots1.expert_used_count", "u32", 5), "expert_used_count is 5"),
    "no experts used": (key("dots1.expert_used_count", "u32", 0), "expert_used_count is 0"),
    "no experts": (key("dots1.expert_count", "u32", 0), "expert_count is 0"),
    "too many experts": (key("dots1.expert_count", "u32", 5000), "5000"),
    "as many groups as experts": (
        key("dots1.expert_group_count", "u32", 4), "expert_group_count is 4"),
    "groups that do not divide": (key("dots1.expert_group_count", "u32", 3), "is 3"),
    "more groups used than there are": (
        lambda m: (m.set("dots1.expert_group_count", "u32", 2),
                   m.set("dots1.expert_group_used_count", "u32", 2)), "is 2"),
    "grouped queries": (key("dots1.attention.head_count_kv", "u32", 1), "head_count_kv is 1"),
    "heads that do not fit": (key("dots1.attention.head_count", "u32", 1), "head_count"),
    "no heads": (key("dots1.attention.head_count", "u32", 0), "head_count is 0"),
    "an odd head width": (key("dots1.attention.key_length", "u32", 15), "15"),
    "values of another width": (key("dots1.attention.value_length", "u32", 8), "8"),
    "RoPE over a part of the head": (key("dots1.rope.dimension_count", "u32", 8), "8"),
    "an unknown RoPE scaling": (key("dots1.rope.scaling.type", "string", "magic"), "'magic'"),
    "a RoPE base of zero": (key("dots1.rope.freq_base", "f32", 0.0), "freq_base is 0.0"),
    "a RoPE base that is no number": (
        key("dots1.rope.freq_base", "f32", float("nan")), "freq_base is nan"),
    "a RoPE factor next to zero": (
        key("dots1.rope.scaling.factor", "f32", 1e-40), "rope.scaling.factor is"),
    "an infinite scale of experts": (
        key("dots1.expert_weights_scale", "f32", float("inf")), "expert_weights_scale is inf"),
    "an epsilon that is no number": (
        key("dots1.attention.layer_norm_rms_epsilon", "f32", float("nan")), "is nan"),
    "a context of 2^32 - 1": (key("dots1.context_length", "u32", 2**32 - 1), "4294967295"),
    "outputs of another width": (
        key("dots1.embedding_length_out", "u32", 2**31), "embedding_length_out"),
    "a negative epsilon": (key("dots1.attention.layer_norm_rms_epsilon", "f32", -1.0), "-1.0"),
    "attention that looks ahead": (key("dots1.attention.causal", "bool", 0), "causal is False"),
    "layers for further tokens": (key("dots1.nextn_predict_layers", "u32", 1), "is 1"),
    "an alignment of 3": (key("general.alignment", "u32", 3), "alignment is 3"),
    "an alignment of 1": (key("general.alignment", "u32", 1), "alignment is 1"),
    "an alignment as u64": (key("general.alignment", "u64", 32), "alignment"),
    "no tokens": (without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
    "an empty vocabulary": (key("tokenizer.ggml.tokens", "array:string", []), "0 tokens"),
    "tokens as numbers": (key("tokenizer.ggml.tokens", "array:u32", [1]), "tokenizer.ggml.tokens"),
    "a token twice": (lambda m: tokens(m, 7, "a"), "'a'"),
    "an empty token": (lambda m: tokens(m, 7, ""), "token 7 is empty"),
    "a token that is not UTF-8": (lambda m: tokens(m, 7, b"\xff"), "token 7"),
    "a token that llama.cpp would read as another": (
        lambda m: tokens(m, 7, "a\0b"), "token 7 contains a NUL byte"),
    "a merge with a zero byte": (
        key("tokenizer.ggml.merges", "array:string", ["a b", "a\0 b"]), "merge 1"),
    "a token of 4000 bytes": (lambda m: tokens(m, 7, "x" * 4000), "4000"),
    "a vocabulary shorter than the embeddings": (
        lambda m: (m.set("tokenizer.ggml.tokens", "array:string",
                         list(m.keys["tokenizer.ggml.tokens"][1])[:300]),  # type: ignore[call-overload]
                   m.set("tokenizer.ggml.token_type", "array:i32", [1] * 300)), "[32, 300]"),
    "fewer token types than tokens": (
        key("tokenizer.ggml.token_type", "array:i32", [1] * 319), "319"),
    "a token type of 9": (
        key("tokenizer.ggml.token_type", "array:i32", [9] * 320), "value 9"),
    "fewer scores than tokens": (key("tokenizer.ggml.scores", "array:f32", [0.0]), "scores"),
    "no merges": (without("tokenizer.ggml.merges"), "tokenizer.ggml.merges"),
    "a merge of one word": (key("tokenizer.ggml.merges", "array:string", ["a b", "ab"]), "merge 1"),
    "a merge of three words": (
        key("tokenizer.ggml.merges", "array:string", ["a b c"]), "merge 0"),
    "another tokenizer": (key("tokenizer.ggml.model", "string", "llama"), "'llama'"),
    "another pre-tokenizer": (key("tokenizer.ggml.pre", "string", "gpt-2"), "'gpt-2'"),
    "no end token": (without("tokenizer.ggml.eos_token_id"), "eos_token_id"),
    "an end token outside": (key("tokenizer.ggml.eos_token_id", "u32", 320), "320"),
    "a negative end token": (key("tokenizer.ggml.eos_token_id", "i32", -1), "-1"),
    "a padding token outside": (key("tokenizer.ggml.padding_token_id", "u32", 2**31), "padding"),
    "add_bos as a number": (key("tokenizer.ggml.add_bos_token", "u32", 0), "add_bos_token"),
    "a template that is a number": (key("tokenizer.chat_template", "u32", 0), "chat_template"),
    "a router in F64": (
        lambda m: m.tensors.update({ROUTER: ((32, 4), F64, bytes(32 * 4 * 8))}), "F64"),
    "a router in F16": (
        lambda m: m.tensors.update({ROUTER: ((32, 4), F16, bytes(32 * 4 * 2))}), "F16"),
    "a norm in F16": (
        lambda m: m.tensors.update({"output_norm.weight": ((32,), F16, bytes(64))}), "F16"),
    "embeddings in I32": (tensor("token_embd.weight", kind=26), "I32"),
    "experts in F64": (
        lambda m: m.tensors.update(
            {"blk.1.ffn_up_exps.weight": ((32, 32, 4), F64, bytes(32 * 32 * 4 * 8))}), "F64"),
    "no router bias": (lambda m: m.tensors.pop("blk.1.exp_probs_b.bias"), "exp_probs_b"),
    "no output": (lambda m: m.tensors.pop("output.weight"), "output.weight"),
    "a tensor too many": (
        lambda m: m.tensors.update({"blk.0.attn_q.bias": ((32,), 0, bytes(128))}), "attn_q.bias"),
    "a transposed tensor": (
        tensor("blk.0.ffn_down.weight", shape=(16, 64)), "[16, 64]"),
    "two experts' worth in a stack": (
        tensor("blk.1.ffn_up_exps.weight", shape=(32, 32, 2), data=bytes(32 * 32 * 2 * 4)),
        "[32, 32, 2]"),
    "a gap between tensors": (lambda m: m.offsets.update({"output.weight": 2**20}), str(2**20)),
    "tensors that overlap": (lambda m: m.offsets.update({"blk.0.attn_norm.weight": 0}), "offset 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", VALUES)
def test_values_that_llama_cpp_would_die_of(tmp_path: Path, what: str) -> None:
    spoil, word = VALUES[what]
    made = small()
    spoil(made)
    refused(made.write(tmp_path / "bad.gguf"), word)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "spoil",
    [
        key("general.architecture", "string", LONG),
        key("general.alignment", "array:string", [LONG]),
        key("dots1.expert_gating_func", "string", LONG),
        key("dots1.rope.scaling.type", "string", LONG),
        key("tokenizer.ggml.model", "string", LONG),
        key("tokenizer.ggml.pre", "array:string", [LONG]),
        key("tokenizer.ggml.eos_token_id", "string", LONG),
        lambda m: (tokens(m, 7, "x" * 2000), tokens(m, 8, "x" * 2000)),
    ],
)
def test_an_error_does_not_repeat_a_long_value(
    tmp_path: Path, spoil: Callable[[Gguf], object]
) -> None:
    made = small()
    spoil(made)
    assert len(refused(made.write(tmp_path / "bad.gguf")).message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"tokenizer.ggml.model", b"tokenizer.ggml.token"),
        (b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"),
    ],
)
def test_a_name_that_comes_twice(tmp_path: Path, first: bytes, second: bytes) -> None:
    path = tmp_path / "bad.gguf"
    raw = good()
    if first.startswith(b"tok"):
        made = small()
        made.keys = {"tokenizer.ggml.token": ("u32", 1), **made.keys}
        raw = bytes(made)
    path.write_bytes(raw.replace(second, first, 1))
    refused(path, "twice", first.decode())


def test_a_folder_and_a_missing_file_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DotsError, match="is a folder, not a file"):
        read_gguf(tmp_path)
    with pytest.raises(DotsError, match="can't be read"):
        read_gguf(tmp_path / "no.gguf")


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 64),
)
@example([(0, 0)], 0)
def test_random_damage_is_noticed_or_harmless(
    tmp_path: Path, edits: list[tuple[int, int]], cut: int
) -> None:
    raw = bytearray(good())
    header = borders()["data"]
    for place, value in edits:
        raw[place % header] = value
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(raw[: len(raw) - cut] if cut > 32 else raw)
    try:
        check(path)
    except DotsError as error:
        assert path.name in error.message
