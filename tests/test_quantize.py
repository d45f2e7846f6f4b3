"""Quantizing a checkpoint: every preset gives the bytes of llama.cpp's quantizer, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dotscli.quantize import quantize_checkpoint
from dotscli.quantize.convert import Finished, Progress, Started, TensorDone
from dotscli.quantize.presets import PRESETS
from tests import reference, tiny

# Nine layers, so that the rules for the first eighth apply; expert rows of 160 and dense rows of
# 352 fit no block of 256, so that the fallbacks apply.
SIZES = {"n_layers": 9, "n_experts": 4, "n_experts_used": 2, "vocab_size": 288}
QUANTIZED = [p for p in PRESETS if p.name not in ("q4", "f32")]


def make(folder: Path, out: Path, type: str, **options: object) -> Path:
    events = list(quantize_checkpoint(folder, out, type, **options))  # type: ignore[arg-type]
    assert isinstance(events[-1], Finished)
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("nine") / "nine", **SIZES)


@pytest.fixture(scope="module")
def bf16(checkpoint: Path) -> Path:
    return make(checkpoint, checkpoint.parent / "bf16.gguf", "bf16")


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    found, expected = reference.read_tensors(ours), reference.read_tensors(theirs)
    assert {n: t for n, (t, _) in found.items()} == {n: t for n, (t, _) in expected.items()}
    assert [n for n in found if found[n] != expected[n]] == []


@pytest.mark.parametrize("preset", QUANTIZED, ids=lambda p: p.name)
def test_preset_equals_llama_quantize(
    preset: object, checkpoint: Path, bf16: Path, tmp_path: Path
) -> None:
    ours = make(checkpoint, tmp_path / "ours.gguf", preset.name)  # type: ignore[attr-defined]
    reference.quantize(bf16, tmp_path / "theirs.gguf", preset.file_type)  # type: ignore[attr-defined]
    assert_same_tensors(ours, tmp_path / "theirs.gguf")
