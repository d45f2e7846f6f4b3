"""What is decided before a load, and that `dots plan` says the same."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotscli.commands.plan import loadable
from dotscli.engine.load_plan import plan_load
from dotscli.engine.main_memory import Held, held, load_sizes
from dotscli.engine.options import EngineOptions
from dotscli.errors import DotsError
from dotscli.hot.memory_use import GIB, Verdict
from dotscli.hot.model_cost import ModelCost, file_cost
from dotscli.hot.placement import Request, place
from dotscli.models.gguf_file import GgufFile, read_gguf
from tests.dots1_gguf import Type, write_model

MIB = 1 << 20


@functools.cache
def made() -> GgufFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        return read_gguf(write_model(path, Type.Q4_0, Type.Q8_0, n_layers=6, n_experts=20))


@pytest.fixture
def gguf() -> GgufFile:
    return made()


@pytest.fixture
def cost() -> ModelCost:
    return file_cost(made())


@settings(max_examples=200, deadline=None)
@given(ram=st.integers(0, 200 * MIB), n_ctx=st.sampled_from((256, 512, 1024, 2048)))
def test_a_load_decides_as_the_plan_says(ram: int, n_ctx: int) -> None:
    gguf, cost = made(), file_cost(made())
    planned = place(cost, Request(0, ram, n_ctx, "f16", "q8_0"))
    options = EngineOptions(n_ctx=n_ctx, n_ubatch=512, cache_type_v="q8_0")
    what = held(gguf, cost, options, gpu=False, hot=None)
    sizes = load_sizes(cost, what, options, ram, 0)
    assert sizes.memory == planned.main
    assert sizes.memory.verdict is planned.verdict


@settings(max_examples=200, deadline=None)
@given(ram=st.integers(0, 60 * MIB), kind=st.sampled_from(("f16", "q8_0")))
def test_a_plan_without_a_context_is_never_refused_where_a_load_is_not(ram: int, kind: str) -> None:
    gguf, cost = made(), file_cost(made())
    wanted = Request(0, ram, min(8192, cost.n_ctx_train), kind, kind)
    planned = loadable(cost, wanted, None)
    options = EngineOptions(n_ubatch=512, cache_type_k=kind, cache_type_v=kind)
    sizes = load_sizes(cost, held(gguf, cost, options, gpu=False, hot=None), options, ram, 0)
    assert (planned.verdict is Verdict.TOO_SMALL) == (sizes.memory.verdict is Verdict.TOO_SMALL)
    if planned.request != wanted:
        assert planned.request.n_ctx == sizes.n_ctx


@settings(max_examples=200, deadline=None)
@given(
    ram=st.integers(0, 200 * MIB),
    vram=st.integers(0, 100 * MIB),
    n_ctx=st.sampled_from((256, 1024)),
)
def test_it_does_with_hot_experts_too(ram: int, vram: int, n_ctx: int) -> None:
    gguf, cost = made(), file_cost(made())
    planned = place(cost, Request(vram, ram, n_ctx))
    if not planned.dense_on_device or not planned.n_resident:
        return
    options = EngineOptions(n_ctx=n_ctx, n_ubatch=512)
    what = held(gguf, cost, options, gpu=True, hot=planned.device.experts)
    memory = load_sizes(cost, what, options, ram, 0).memory
    assert memory.use.dense == planned.ram.dense
    assert memory.use.kv == planned.ram.kv == 0
    # slots go by experts, here they are taken off every layer alike
    rounding = max(layer.experts_nbytes for layer in cost.layers)
    assert abs(memory.use.experts - planned.ram.experts) <= rounding
    assert abs(memory.disk - planned.disk_nbytes) <= rounding


@pytest.mark.parametrize(
    ("options", "n_dense", "n_cached"),
    [
        ({}, 0, 0),
        ({"n_gpu_layers": 0}, 6, 6),
        ({"n_gpu_layers": 3}, 4, 4),  # the output counts as a layer
        ({"n_gpu_layers": 100}, 0, 0),
        ({"n_gpu_layers": 100, "cpu_moe": True}, 0, 0),
    ],
)
def test_layers_are_counted_as_llama_cpp_counts_them(
    options: dict[str, int], n_dense: int, n_cached: int, gguf: GgufFile, cost: ModelCost
) -> None:
    found = held(gguf, cost, EngineOptions(**options), gpu=True, hot=None)  # type: ignore[arg-type]
    output = 0 if options.get("n_gpu_layers") != 0 else cost.output_nbytes
    dense = sum(layer.dense_nbytes for layer in cost.layers[:n_dense])
    assert found.dense == cost.embedding_nbytes + dense + output
    assert found.n_cached == n_cached
    on_cpu = range(6) if options.get("cpu_moe") else range(n_dense)
    assert set(found.cold) == {c.layer for c in cost.moe_layers if c.layer in on_cpu}


def test_experts_of_a_layer_that_is_torn_apart_stay_with_the_dense_weights(
    gguf: GgufFile, cost: ModelCost
) -> None:
    options = EngineOptions(override_tensor=(r"blk\.2\.ffn_up_exps=CPU", "ffn_.*_exps=CUDA0"))
    found = held(gguf, cost, options, gpu=True, hot=None)
    [up] = [t for t in gguf.tensors if t.name == "blk.2.ffn_up_exps.weight"]
    assert found == Held(cost.embedding_nbytes + up.nbytes, {}, 0)


def test_a_larger_batch_is_taken_where_experts_come_from_the_disk() -> None:
    """The real shapes: reading an expert once for 4,096 tokens is worth some buffers."""
    from dotscli.commands.plan import checkpoint_cost
    from tests.test_placement import REAL

    real = checkpoint_cost(REAL, "q4")
    what = Held(
        real.embedding_nbytes + real.dense_nbytes,
        {c.layer: c.experts_nbytes for c in real.moe_layers},
        len(real.layers),
    )
    options = EngineOptions(n_ctx=8192, cache_type_k="q8_0", cache_type_v="q8_0")
    sizes = [load_sizes(real, what, options, n * GIB, 0) for n in (16, 24, 32, 64, 128)]
    assert [s.memory.verdict for s in sizes] == [Verdict.TIER] * 4 + [Verdict.FITS]
    assert [s.n_ubatch for s in sizes] == [2048, 4096, 4096, 4096, 512]
    small = load_sizes(real, what, options, 8 * GIB, 0)
    assert small.memory.verdict is Verdict.TOO_SMALL


def test_a_size_that_is_not_there_is_mentioned(gguf: GgufFile) -> None:
    said: list[str] = []
    plan_load(gguf, EngineOptions(n_ctx=512, ram_nbytes=1 << 50), None, said.append)
    assert any(line.startswith("--ram 1024 TiB: only ") for line in said), said


def test_a_context_stays_as_asked_for(gguf: GgufFile) -> None:
    with pytest.raises(DotsError, match="with a context of 2048 tokens"):
        plan_load(gguf, EngineOptions(n_ctx=2048, ram_nbytes=15 * MIB), None, lambda _line: None)


def test_hot_experts_without_a_copy_on_a_device_are_all_in_main_memory(
    gguf: GgufFile, cost: ModelCost
) -> None:
    """A second CPU as their device, or a GPU that has no room left: the layers are on the GPU."""
    what = held(gguf, cost, EngineOptions(), gpu=True, hot=0)
    assert sum(what.cold.values()) == cost.experts_nbytes
    assert held(gguf, cost, EngineOptions(), gpu=True, hot=None).cold == {}


def test_what_is_lacking_counts_the_dense_weights_too(gguf: GgufFile) -> None:
    said: list[str] = []
    options = EngineOptions(n_ctx=512, tier=False, ram_nbytes=1 << 20)
    plan_load(gguf, options, None, said.append)
    assert len(said) == 1
    lacking = re.search(r"needs ([0-9.]+) (MiB|GiB) more memory than is free", said[0])
    assert lacking is not None, said
    assert float(lacking[1]) * {"MiB": 1, "GiB": 1024}[lacking[2]] > (
        sum(t.nbytes for t in gguf.tensors) / MIB - 1
    )
