"""Quantizing a checkpoint: the bytes of llama.cpp's quantizer, tensor by tensor, whatever the
form of the input and the number of threads. Interruptions are in test_resume.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from dotscli.errors import DotsError
from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.convert import Event, Finished, Progress, Started, TensorDone
from dotscli.quantize.output.part_file import PART_MAGIC
from dotscli.quantize.recipe.presets import PRESETS, Preset
from tests import reference, tiny

# Eight layers, so that the rules for the first eighth apply; expert rows of 96 and dense rows of
# 224 fit no block of 256, so that the fallbacks apply.
SIZES = {
    "n_layers": 8, "n_experts": 4, "n_experts_used": 2, "n_ff": 224, "n_ff_expert": 96,
    "vocab_size": 288,
}  # fmt: skip
QUANTIZED = [preset for preset in PRESETS if preset.name not in ("q4", "f32")]


def make(folder: Path, out: Path, type: str, **options: object) -> Path:
    events = list(quantize_checkpoint(folder, out, type, **options))  # type: ignore[arg-type]
    assert events[-1] == Finished(out, out.stat().st_size)
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("whole") / "eight", **SIZES)


@pytest.fixture(scope="module")
def bf16(checkpoint: Path) -> Path:
    return make(checkpoint, checkpoint.parent / "bf16.gguf", "bf16")


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    found, expected = reference.read_tensors(ours), reference.read_tensors(theirs)
    assert {n: t for n, (t, _) in found.items()} == {n: t for n, (t, _) in expected.items()}
    assert [n for n in found if found[n] != expected[n]] == []


@pytest.mark.parametrize("preset", QUANTIZED, ids=lambda preset: preset.name)
def test_preset_equals_llama_quantize(
    preset: Preset, checkpoint: Path, bf16: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    make(checkpoint, ours, preset.name)
    reference.quantize(bf16, theirs, preset.file_type)
    assert_same_tensors(ours, theirs)
    keys = reference.read_keys(ours)
    assert keys.pop("general.alignment") == 4096
    assert keys == reference.read_keys(theirs)


@pytest.mark.parametrize("type", ["q4_0", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs", "mxfp4_moe"])
def test_rules_for_eight_experts_equal_llama_quantize(type: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "eight", n_layers=2, n_experts=8, hidden=64)
    bf16 = make(folder, tmp_path / "bf16.gguf", "bf16")
    ours = make(folder, tmp_path / "ours.gguf", type)
    file_type = next(preset.file_type for preset in PRESETS if preset.name == type)
    reference.quantize(bf16, tmp_path / "theirs.gguf", file_type)
    assert_same_tensors(ours, tmp_path / "theirs.gguf")


def test_overrides_equal_llama_quantize(checkpoint: Path, bf16: Path, tmp_path: Path) -> None:
    overrides = [(r"blk\.[12]\.ffn_(up|gate)_exps", "q5_k", 13), ("ffn_down", "q3_k", 11),
                 ("attn_v", "q8_0", 8), ("token_embd", "q6_k", 14)]  # fmt: skip
    texts = [f"{regex}={name}" for regex, name, _ in overrides]
    ours = make(checkpoint, tmp_path / "ours.gguf", "q4_k_m", tensor_types=texts)
    ids = [(regex, number) for regex, _, number in overrides]
    reference.quantize(bf16, tmp_path / "theirs.gguf", 15, overrides=ids)
    assert_same_tensors(ours, tmp_path / "theirs.gguf")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_f32_is_the_checkpoint_widened(dtype: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "c", dtype=dtype, n_shards=1)
    found = reference.read_tensors(make(folder, tmp_path / "f32.gguf", "f32"))
    weights = {name: _rounded(w, dtype) for name, w in tiny.weights(tiny.config()).items()}
    assert found["token_embd.weight"][1] == weights["model.embed_tokens.weight"].tobytes()
    bias = weights["model.layers.2.mlp.gate.e_score_correction_bias"]
    assert found["blk.2.exp_probs_b.bias"] == ("F32", bias.tobytes())
    for role in ("gate", "up", "down"):
        experts = [weights[f"model.layers.1.mlp.experts.{e}.{role}_proj.weight"] for e in range(8)]
        assert found[f"blk.1.ffn_{role}_exps.weight"][1] == np.stack(experts).tobytes()
    assert {kind for kind, _ in found.values()} == {"F32"}


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    raw = tiny.encode(values, dtype)
    if dtype == "BF16":
        bits = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(values.shape)
    return (
        np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype("<f4").reshape(values.shape)
    )


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_sources_equal_llama_quantize(dtype: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "c", dtype=dtype, **SIZES)
    same = make(folder, tmp_path / "same.gguf", dtype.lower())
    ours = make(folder, tmp_path / "ours.gguf", "q4_k_m")
    reference.quantize(same, tmp_path / "theirs.gguf", 15)
    assert_same_tensors(ours, tmp_path / "theirs.gguf")


def test_mixed_source_dtypes(tmp_path: Path) -> None:
    """A raw state dict of transformers keeps the router in F32 and everything else in bf16."""
    plain = tiny.write_checkpoint(tmp_path / "plain", n_shards=1)
    mixed = tiny.write_checkpoint(tmp_path / "mixed", n_shards=1)
    tensors = tiny.weights(tiny.config())
    for name, values in tensors.items():
        tensors[name] = _rounded(values, "BF16")
    kinds = {name: "F32" for name in tensors if ".mlp.gate." in name}
    tiny.write_shards(mixed, tensors, kinds, n_shards=1)
    found = [make(folder, folder / "o.gguf", "q4") for folder in (plain, mixed)]
    assert_same_tensors(*found)
    keys = [reference.read_keys(path) for path in found]
    assert [k.pop("general.name") for k in keys] == ["Plain", "Mixed"]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_fused_experts_give_the_same_file(suffix: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eight"
    tiny.write_checkpoint(folder, style="fused", n_shards=3, **SIZES)
    if suffix:
        tensors = tiny.fused(tiny.weights(tiny.config(**SIZES)))  # type: ignore[arg-type]
        renamed = {n + suffix if "_proj" in n and ".weight" not in n else n: t
                   for n, t in tensors.items()}  # fmt: skip
        tiny.write_shards(folder, renamed, "BF16", n_shards=3)
    ours = make(folder, tmp_path / "fused.gguf", "q4_k_m")
    assert ours.read_bytes() == make(checkpoint, tmp_path / "o.gguf", "q4_k_m").read_bytes()


def test_same_bytes_for_any_number_of_threads_and_any_memory(
    checkpoint: Path, tmp_path: Path
) -> None:
    first = make(checkpoint, tmp_path / "1.gguf", "q4", threads=1).read_bytes()
    for i, (threads, memory) in enumerate(((2, None), (5, 257 << 20), (3, (256 << 20) + 20_000))):
        out = make(checkpoint, tmp_path / f"o{i}.gguf", "q4", threads=threads, max_memory=memory)
        assert out.read_bytes() == first


def test_merges_as_pairs_give_the_same_file(tmp_path: Path) -> None:
    found = [
        make(tiny.write_checkpoint(tmp_path / pairs / "c", merges_as_pairs=pairs == "pairs"),
             tmp_path / f"{pairs}.gguf", "q4_0").read_bytes()
        for pairs in ("pairs", "strings")
    ]  # fmt: skip
    assert found[0] == found[1]


def test_events_count_the_source(tiny_checkpoint: Path, tmp_path: Path) -> None:
    events: list[Event] = list(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf"))
    started = events[0]
    assert isinstance(started, Started)
    size = sum(path.stat().st_size for path in tiny_checkpoint.glob("*.safetensors"))
    assert size - 100_000 < started.source_nbytes < size
    progress = [event.done_nbytes for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress)
    assert progress[-1] == started.source_nbytes
    done = [event for event in events if isinstance(event, TensorDone)]
    assert len(done) == started.n_tensors == 46
    assert (done[0].name, done[-1].name) == ("token_embd.weight", "output.weight")
    assert started.out_nbytes == (tmp_path / "o.gguf").stat().st_size


def test_header_is_read_by_others(tiny_checkpoint: Path, tmp_path: Path) -> None:
    keys = reference.read_keys(make(tiny_checkpoint, tmp_path / "o.gguf", "q4"))
    assert keys["general.architecture"] == "dots1"
    assert keys["dots1.expert_gating_func"] == 2
    assert keys["tokenizer.ggml.add_bos_token"] is False
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert tokens[276] == "<|endoftext|>"


def test_a_part_without_a_journal_is_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """If it is ours; tests/test_foreign_work.py has those that aren't."""
    out = tmp_path / "o.gguf"
    out.with_name("o.gguf.part").write_bytes(PART_MAGIC + b"left over" * 1_000_000)
    make(tiny_checkpoint, out, "q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["o.gguf"]
    assert out.read_bytes() == make(tiny_checkpoint, tmp_path / "p.gguf", "q4_0").read_bytes()


def test_two_runs_never_write_one_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", "q4_0")
    next(first)
    with pytest.raises(DotsError, match="is being written by another process"):
        list(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", "q4_0"))
    assert isinstance(list(first)[-1], Finished)


def test_output_that_exists_stays_unless_forced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(DotsError, match="already exists") as caught:
        make(tiny_checkpoint, out, "q4_0")
    assert "--force" in caught.value.hint
    assert out.read_bytes() == b"precious"
    make(tiny_checkpoint, out, "q4_0", force=True)
    assert out.read_bytes()[:4] == b"GGUF"


def test_the_input_is_never_written(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "c")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    shard = next(folder.glob("*.safetensors"))
    (tmp_path / "alias.gguf").symlink_to(shard)
    (tmp_path / "alias2.gguf.part").symlink_to(shard)
    (folder / "README.md").write_text("precious")
    before[folder / "README.md"] = (b"precious", (folder / "README.md").stat().st_mtime_ns)
    for out in (
        shard,
        folder / "config.json",
        folder / "README.md",
        tmp_path / "alias.gguf",
        tmp_path / "alias2.gguf",
    ):
        with pytest.raises(DotsError, match="is also an input"):
            make(folder, out, "q4_0", force=True)
    make(folder, folder / "o.gguf", "q4_0")
    (folder / "o.gguf").unlink()
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("out", "message"),
    [("no/such/o.gguf", "is not a folder"), ("", "is a folder")],
)
def test_output_place_is_checked_first(
    out: str, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(DotsError, match=message):
        next(quantize_checkpoint(tiny_checkpoint, tmp_path / out))


def test_full_disk_is_known_before_the_first_byte(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=17 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DotsError, match=r"has 0\.02 GB free, the output needs 0\.00 GB"):
        next(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, "--threads -1"),
        ({"max_memory": 1 << 20}, "too little memory"),
        ({"max_memory": 0}, "--max-memory 0 bytes is out of range"),
        ({"split_max_size": -1}, "--split-max-size -1 bytes is out of range"),
        ({"type": "q9"}, "unknown type q9"),
        ({"tensor_types": ["ffn_dwon=q8_0"]}, "matches no tensor"),
    ],
)
def test_options_are_checked_first(
    options: dict[str, object], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(DotsError, match=message):
        next(quantize_checkpoint(tiny_checkpoint, tmp_path / "o.gguf", **options))  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from dotscli.quantize import quantize_checkpoint

        for event in quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), "q4_0", threads=2):
            pass
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]))
    """
    peaks = []
    for name, n_layers in (("small", 3), ("large", 12)):
        folder = tiny.write_checkpoint(tmp_path / name, n_layers=n_layers, n_experts=32)
        command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
        command.append(str(tmp_path / f"{name}.gguf"))
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120, env=environ
        )
        peaks.append(json.loads(done.stdout))
    assert peaks[1] < 1.10 * peaks[0]
