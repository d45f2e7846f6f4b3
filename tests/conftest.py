"""Fixtures are nouns: small real checkpoints, made once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, eight experts, bf16, two shards, per-expert names."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
