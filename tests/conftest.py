"""Fixtures are nouns: small real checkpoints, made once per run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dotscli.engine import Engine, EngineOptions
from dotscli.quantize import quantize_checkpoint
from tests import gguf_maker, tiny
from tests.hot_devices import LaggingDevice, compiler
from tests.unix_only import MODULES, unix_only

# Pseudo-terminals, limits of a process and the like: Windows has other things, or nothing.
collect_ignore = unix_only(Path(__file__).parent) if sys.platform == "win32" else []


def pytest_report_header() -> list[str]:
    if not collect_ignore:
        return []
    needs = ", ".join(sorted(MODULES))
    return [f"not run on Windows, for want of {needs}: {' '.join(collect_ignore)}"]


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Heat, settings and history of whoever runs the tests are neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("DATA", "CONFIG", "STATE", "CACHE"):
            patch.setenv(f"XDG_{kind}_HOME", str(tmp_path_factory.mktemp(kind.lower())))
        yield


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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dots1 of 3 layers, context 2048, weights in F32."""
    return gguf_maker.dots1().write(tmp_path_factory.mktemp("engine") / "tiny.gguf")


@pytest.fixture(scope="module")
def loaded(model: Path) -> Iterator[Engine]:
    with Engine.load(model, EngineOptions(n_threads=1, n_ctx=512)) as engine:
        yield engine


@pytest.fixture
def engine(loaded: Engine) -> Engine:
    """The same engine with an empty cache."""
    loaded.forget()
    return loaded


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that make devices known to this process come last.

    Such a device counts as a GPU from then on, and one whose worker is gone ends the process of
    whoever asks how much memory it has.
    """
    last = ("test_hot_exact.py", "test_hot_stream.py", "test_hot_uploads.py")
    items.sort(key=lambda item: item.path.name in last)


@pytest.fixture(scope="session")
def lagging(tmp_path_factory: pytest.TempPathFactory) -> LaggingDevice:
    """One for all: a second library would register a second device under its name."""
    if not compiler():
        pytest.skip("no C++ compiler")
    return LaggingDevice(tmp_path_factory.mktemp("lag"))
