"""Fixtures are nouns: small real checkpoints, made once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dotscli.quantize import quantize_checkpoint
from tests import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, eight experts, bf16, two shards, per-expert names."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a GGUF of float32: it answers with noise, by the rules."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    for _ in quantize_checkpoint(tiny_checkpoint, path, "f32"):
        pass
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that make devices known to this process come last.

    Such a device counts as a GPU from then on, and one whose worker is gone ends the process of
    whoever asks how much memory it has.
    """
    items.sort(key=lambda item: item.path.name == "test_hot_exact.py")
