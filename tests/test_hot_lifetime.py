"""Hot experts live as long as the tensors that llama.cpp made of them, and belong to one model."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp")

from dotscli.errors import DotsError  # noqa: E402  # after the check that there is a llama_cpp
from dotscli.hot.backend import library, plugin  # noqa: E402
from tests.dots1_gguf import Run, Type, batches, log, write_model  # noqa: E402

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

SHAPE = {"n_layers": 3, "n_experts": 16, "n_experts_used": 4}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with log():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("lifetime") / "model.gguf", Type.Q8_0, **SHAPE)


def test_a_model_that_is_freed_takes_its_experts_along(model: Path) -> None:
    hot = plugin.backend().open("CPU")
    run = Run(model, hot)
    hot.reserve(1, 4)
    hot.set_residents(1, range(4))
    llama_cpp.llama_free(run.ctx)
    llama_cpp.llama_model_free(run.model)
    try:
        assert hot.layers() == ()
        assert hot.residents(1) == ()
        with pytest.raises(DotsError, match="layer 1 has no routed experts here"):
            hot.place(1, 0, 7)
        with pytest.raises(DotsError, match="layer 1 has no routed experts here"):
            hot.reserve(1, 4)
        assert hot.counters().uploads == 4
    finally:
        hot.close()


def test_a_load_that_is_given_up_leaves_no_experts(model: Path) -> None:
    hot = plugin.backend().open("CPU")
    seen = []

    def give_up(progress: float, _: object) -> bool:
        seen.append((progress, len(hot.layers())))
        return progress < 1

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    params.tensor_buft_overrides = ctypes.cast(hot.overrides, ctypes.c_void_p)
    params.progress_callback = callback = llama_cpp.llama_progress_callback(give_up)
    try:
        assert not llama_cpp.llama_model_load_from_file(str(model).encode(), params)
        assert callback and max(n_layers for _, n_layers in seen) == 2
        assert hot.layers() == ()
    finally:
        hot.close()


def test_two_models_in_one_load_keep_their_own_weights(model: Path, tmp_path: Path) -> None:
    """The second one is computed on the CPU; neither gets experts of the other."""
    other = write_model(tmp_path / "other.gguf", Type.Q8_0, seed=1, **SHAPE)
    expected = {}
    for path in (model, other):
        with Run(path) as run:
            expected[path] = [run.decode(batch) for batch in batches((1, 9))]
    hot = plugin.backend().open("CPU")
    loading = SimpleNamespace(overrides=hot.overrides, loaded=lambda: None, close=lambda: None)
    with Run(model, loading) as first, Run(other, loading) as second:  # type: ignore[arg-type]
        hot.loaded()
        for layer in hot.layers():
            hot.reserve(layer.layer, 8)
            hot.set_residents(layer.layer, range(8))
        for path, run in ((model, first), (other, second)):
            for batch, logits in zip(batches((1, 9)), expected[path], strict=True):
                np.testing.assert_array_equal(run.decode(batch), logits)
        assert hot.counters().decode_hits > 0
    hot.close()
