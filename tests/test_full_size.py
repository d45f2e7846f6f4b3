"""The stand-ins of bench/full_size that need neither root nor much disk."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.full_size import checkpoint, shapes
from bench.full_size.blocks import Blocks
from bench.full_size.holes import write_holes
from bench.full_size.model import write_model
from bench.full_size.reflink import can_clone, occupied
from bench.gpu.model import Routing, observe
from dotscli.engine import Engine, EngineOptions
from dotscli.engine.lib import llama
from dotscli.engine.load import READ
from dotscli.engine.options import CACHE_TYPES, MAX_OUTPUTS
from dotscli.hot.memory_use import margin_nbytes
from dotscli.hot.model_cost import file_cost
from dotscli.models.check import check_dots1
from dotscli.models.gguf_file import read_gguf
from dotscli.models.gguf_type import TensorType
from dotscli.quantize.rows.decode import decode
from dotscli.quantize.rows.valid import first_unsound
from dotscli.quantize.types import IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from dotscli.quantize.verify import Damaged, verify
from tests.dots1_gguf import log
from tests.transcript import dots

PAGE = 4096
REAL = replace(shapes.PRESETS["real"], vocab="small")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    path = folder / "tiny.gguf"
    write_model(path, shapes.stand_in(shapes.PRESETS["tiny"], "q4", folder), Routing())
    assert [found.name for found in folder.iterdir()] == ["tiny.gguf"]
    return path


@pytest.mark.parametrize(
    "kind", [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS], ids=str
)
def test_random_blocks_are_sound_and_spread_as_asked(kind: TensorType) -> None:
    for spread in (0.02, 0.001):
        blocks = Blocks(1).make(kind, 20_000, spread)
        assert first_unsound(blocks.tobytes(), kind) is None
        weights = decode(blocks.tobytes(), kind)
        assert weights.std() == pytest.approx(spread, rel=0.05)
        assert abs(weights.mean()) < 0.15 * spread  # codes of Q4_0 go from -8 to 7
        assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_a_made_up_model_computes(tiny: Path) -> None:
    assert [event for event in verify(tiny) if isinstance(event, Damaged)] == []
    with Engine.load(tiny, EngineOptions(n_threads=1, n_ctx=128)) as engine:
        logits = engine.logits(engine.tokenize("any text, 你好", parse_special=False))
    assert np.isfinite(logits).all()
    assert 0.1 < logits[:, :256].std() < 10
    assert not logits[:, 256:].any()  # special tokens never end an answer
    assert dots("prompt", "-m", tiny, "-n", "8", "--json", "hello").exit_status == 0


def test_its_tokens_go_to_different_experts(tiny: Path, tmp_path: Path) -> None:
    even, popular = (
        observe(tiny, Routing(memory=memory), tmp_path / f"{memory}.json", 256, 1)
        for memory in (0.0, 1.0)
    )
    assert even["used_by_the_token_before"] < popular["used_by_the_token_before"] < 0.95
    assert even["hottest_quarter"] < 0.8


def test_the_size_decides_how_many_layers(tmp_path: Path) -> None:
    shape = shapes.fitting(shapes.PRESETS["tier"], "q4_0", 1_000_000_000)
    made = shapes.stand_in(shape, "q4_0", tmp_path)
    more = shapes.stand_in(replace(shape, layers=shape.layers + 1), "q4_0", tmp_path)
    assert made.plan.data_nbytes <= 1_000_000_000 < more.plan.data_nbytes


@pytest.mark.skipif(sys.platform == "win32", reason="a hole of 77 GiB would be filled")
def test_a_hole_has_the_size_of_the_real_model_and_takes_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "holes.gguf"
    made = shapes.stand_in(REAL, "q4", tmp_path)
    write_holes(path, made)
    assert path.stat().st_size == made.nbytes > 80e9
    assert occupied(path) < 10_000_000
    file = read_gguf(path)
    check_dots1(file)
    assert len(file.tensors) == 990
    for tensor in file.tensors:
        if tensor.is_stack:
            assert (file.data_offset + tensor.offset) % PAGE == tensor.matrix_nbytes % PAGE == 0
    assert dots("plan", path, "--vram", "24G", "--ram", "64G", "-c", "4096").exit_status == 0


def test_the_checkpoint_has_the_published_tensors_in_67_shards() -> None:
    files = checkpoint._shards(shapes.PRESETS["real"])
    assert len(files) == 67
    assert sum(map(len, files)) == 24_231
    total = 0
    for content in files:
        header, nbytes = checkpoint._header(content)
        assert len(header) % PAGE == 0
        assert sum(n for _, n in checkpoint._pieces(nbytes)) - nbytes in range(PAGE)
        total += nbytes
    assert total == 2 * 142_774_381_696


def test_a_file_system_that_cannot_share_is_told_of(tmp_path: Path) -> None:
    if can_clone(tmp_path):
        folder = tmp_path / "shared"
        shape = replace(shapes.PRESETS["tiny"], layers=70)  # enough tensors for all shards
        nbytes = checkpoint.write_checkpoint(folder, shape, tmp_path)
        assert nbytes > 0
        assert dots("quantize", folder, "--dry-run").exit_status == 0
    else:
        with pytest.raises(SystemExit, match="can't share blocks"):
            checkpoint.write_checkpoint(tmp_path / "c", shapes.PRESETS["tiny"], tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a hole of 77 GiB would be filled")
def test_llama_cpp_needs_the_buffers_that_are_planned_at_the_real_size(tmp_path: Path) -> None:
    """Without memory: with `no_alloc` it lays its graphs out, and says how large they get."""
    path = tmp_path / "holes.gguf"
    write_holes(path, shapes.stand_in(REAL, "q4", tmp_path))
    cost = file_cost(read_gguf(path))
    api = llama()
    with log() as lines:
        params = api.llama_model_default_params()
        params.no_alloc, params.n_gpu_layers, params.use_extra_bufts = True, 0, False
        params.load_mode = READ
        model = api.llama_model_load_from_file(os.fsencode(path), params)
        assert model
        for n_ctx, kind, n_ubatch in (
            (2048, "f16", 512), (8192, "q8_0", 512), (8192, "q8_0", 4096), (32768, "q8_0", 2048),
        ):  # fmt: skip
            lines.clear()
            made = api.llama_context_default_params()
            made.n_ctx, made.n_batch, made.n_ubatch = n_ctx, n_ubatch, n_ubatch
            made.n_outputs_max = MAX_OUTPUTS
            made.type_k = made.type_v = CACHE_TYPES[kind].id
            context = api.llama_init_from_model(model, made)
            api.llama_free(context)
            planned = cost.compute_nbytes(n_ctx, kind, kind, n_ubatch) - cost.staged_nbytes
            (needed,) = sizes(lines, "compute buffer size")
            assert needed <= planned + margin_nbytes(12 << 30) // 32
        api.llama_model_free(model)


def sizes(lines: list[str], what: str) -> list[float]:
    """Bytes of the buffers that llama.cpp's log tells of."""
    found = re.findall(rf"{what} = +([\d.]+) MiB", "\n".join(lines))
    return [float(mib) * 2**20 for mib in found]
