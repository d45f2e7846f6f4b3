"""Experts that aren't resident go through the device for long prompts: exact, and only if it pays.

Forced here where no device is faster than the CPU; by itself it must come out off.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from dotscli.hot.backend import library, plugin
from dotscli.hot.backend.plugin import HotModel, Streaming
from tests.dots1_gguf import Run, batches, log, write_model
from tests.hot_devices import ROOT, LaggingDevice, compiler, has_rpc, rpc_device
from tests.test_hot_exact import N_EXPERTS, TYPES, Type, assert_same, make_resident

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

SIZES = (33, 1, 512, 9, 512, 1)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with log():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "model.gguf"
    return write_model(
        path, Type.Q4_K, Type.Q5_0, n_layers=4, n_experts=N_EXPERTS, n_experts_used=4
    )


@pytest.fixture(scope="module")
def stock(model: Path) -> list[np.ndarray]:
    with Run(model, n_ctx=2048) as run:
        return [run.decode(batch) for batch in batches(SIZES)]


def opened(device: str = "CPU", streaming: Streaming = Streaming.ALWAYS) -> HotModel:
    hot = plugin.backend().open(device)
    hot.set_streaming(streaming)
    return hot


# Exactness


@pytest.mark.parametrize("types", TYPES, ids=lambda t: f"{t[0].name}-{t[1].name}")
def test_every_type_at_every_residency(types: tuple[Type, Type], tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.gguf", *types, n_layers=3, n_experts=N_EXPERTS, n_experts_used=4
    )
    with Run(path, n_ctx=2048) as run:
        expected = [run.decode(batch) for batch in batches(SIZES)]
    for percent in (0, 10, 50, 100):
        hot = opened()
        with Run(path, hot, n_ctx=2048) as run:
            make_resident(hot, percent)
            before = hot.counters()
            assert_same(run, expected, SIZES)
            counters = hot.counters()
            assert (counters.streamed_experts > 0) == (percent < 100)
            assert counters.streamed_nbytes == sum(
                counters.streamed_experts * layer.expert_nbytes for layer in hot.layers()[:1]
            )
            assert counters.uploads == before.uploads  # and the residents are as they were
            assert hot.messages() == ()


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("percent", [0, 50])
def test_beside_the_cpu(
    percent: int, pinned: bool, lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    """Uploads, waves and the CPU's share at once; the device shows what is reused too early."""
    lagging.library.lag_offer_pinned(int(pinned))
    try:
        hot = opened(lagging.name, Streaming.WHERE_IT_PAYS)  # a few at first, to learn
        with Run(model, hot, n_ctx=2048) as run:
            make_resident(hot, percent)
            assert_same(run, stock, SIZES)
            assert hot.counters().streamed_experts > 0
            assert hot.counters().prefill_misses > 0
            run.clear()
            hot.set_streaming(Streaming.ALWAYS)
            assert_same(run, stock, SIZES)
            assert hot.messages() == ()
    finally:
        lagging.library.lag_offer_pinned(0)


def test_while_experts_are_exchanged(
    lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    hot, stop, n_exchanges = opened(lagging.name), threading.Event(), 0

    def exchange() -> None:
        nonlocal n_exchanges
        rng = np.random.default_rng(0)
        while not stop.is_set():
            layer = int(rng.integers(1, 4))
            slot, expert = int(rng.integers(0, 8)), int(rng.integers(-1, N_EXPERTS))
            if expert not in hot.residents(layer):
                hot.place(layer, slot, expert)
                n_exchanges += 1
            stop.wait(0.0005)

    with Run(model, hot, n_ctx=2048) as run:
        make_resident(hot, 40)
        other = threading.Thread(target=exchange)
        other.start()
        try:
            for _ in range(3):
                run.clear()
                assert_same(run, stock, SIZES)
        finally:
            stop.set()
            other.join()
        assert n_exchanges > 20
        assert hot.counters().streamed_experts > 0


@pytest.mark.parametrize("n_used", [1, 4])
def test_dense_layers_on_the_same_device(
    n_used: int, lagging: LaggingDevice, tmp_path: Path
) -> None:
    path = write_model(
        tmp_path / "m.gguf", Type.Q4_0,
        n_layers=4, n_ff_expert=288, n_experts=8, n_experts_used=n_used,
    )  # fmt: skip
    with Run(path, n_ctx=2048) as run:
        expected = [run.decode(batch) for batch in batches(SIZES)]
    for streaming in (Streaming.ALWAYS, Streaming.WHERE_IT_PAYS):
        hot = opened(lagging.name, streaming)
        with Run(path, hot, dense_on=lagging.name, op_offload=False, n_ctx=2048) as run:
            make_resident(hot, 50)
            assert_same(run, expected, SIZES)


def test_over_the_network(model: Path, stock: list[np.ndarray]) -> None:
    if not has_rpc():
        pytest.skip("this llama.cpp has no RPC")
    with rpc_device() as name:
        hot = opened(name)
        with Run(model, hot, n_ctx=2048) as run:
            make_resident(hot, 10)
            assert_same(run, stock, SIZES)
            assert hot.counters().streamed_experts > 0


# When something is missing


def test_without_memory_for_it(
    lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    hot = opened(lagging.name)
    with Run(model, hot, n_ctx=2048) as run:
        with lagging.refusing_memory(after=4):
            assert_same(run, stock, SIZES)
        [message] = hot.messages()
        assert message.startswith("long prompts don't use the device for more than hot experts")
        assert hot.counters().streamed_experts == 0


@pytest.mark.parametrize(
    ("streaming", "after"),
    [(Streaming.WHERE_IT_PAYS, 0), (Streaming.ALWAYS, 1), (Streaming.ALWAYS, 4)],
)
@pytest.mark.parametrize("n_used", [1, 4])
def test_a_device_that_fails(
    n_used: int, streaming: Streaming, after: int, lagging: LaggingDevice, tmp_path: Path
) -> None:
    """With one expert a token the CPU has written over the activations by then."""
    path = write_model(
        tmp_path / "m.gguf", Type.Q4_0,
        n_layers=4, n_ff_expert=288, n_experts=18, n_experts_used=n_used,
    )  # fmt: skip
    with Run(path, n_ctx=2048) as run:
        expected = [run.decode(batch) for batch in batches(SIZES)]
    hot = opened(lagging.name, streaming)
    with Run(path, hot, n_ctx=2048) as run:
        with lagging.failing(after=after):
            assert_same(run, expected, SIZES)
        [message] = hot.messages()
        assert message.endswith("it failed to compute")


# Whether it pays


def test_a_second_cpu_has_no_use_for_copies(model: Path, stock: list[np.ndarray]) -> None:
    hot = opened(streaming=Streaming.WHERE_IT_PAYS)
    with Run(model, hot, n_ctx=2048) as run:
        make_resident(hot, 10)
        assert_same(run, stock, SIZES)
        assert hot.counters().streamed_experts == 0


def test_a_slow_link_is_tried_and_left_alone(
    lagging: LaggingDevice, model: Path, stock: list[np.ndarray]
) -> None:
    lagging.library.lag_set_max_pause_us(20_000)
    try:
        hot = opened(lagging.name, Streaming.WHERE_IT_PAYS)
        with Run(model, hot, n_ctx=2048) as run:
            for _ in range(2):
                run.clear()
                assert_same(run, stock, SIZES)
            learnt = hot.counters().streamed_experts
            run.clear()
            assert_same(run, stock, SIZES)
            assert 0 < learnt == hot.counters().streamed_experts
    finally:
        lagging.library.lag_set_max_pause_us(200)


@pytest.fixture(scope="module")
def n_to_stream(tmp_path_factory: pytest.TempPathFactory) -> ctypes._CFuncPtr:
    if not compiler():
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("costs") / "libcosts.so"
    sources = [ROOT / "tests/native/stream_costs.cpp", ROOT / "dotscli/native/hot/costs.cpp"]
    command = [str(compiler()), "-std=c++17", "-shared", "-fPIC", f"-I{ROOT / 'dotscli/native'}"]
    subprocess.run([*command, *map(str, sources), "-o", str(target)], check=True)
    function = ctypes.CDLL(str(target)).n_to_stream_at
    function.argtypes = [ctypes.c_double] * 3 + [ctypes.c_void_p] + [ctypes.c_int] * 2
    return function


def ask(
    function: ctypes._CFuncPtr, cpu: float, device: float, upload: float, pairs: list[int],
    *, resident: int = 0,
) -> int:  # fmt: skip
    array = (ctypes.c_int * len(pairs))(*pairs)
    return int(function(cpu, device, upload, array, len(pairs), resident))


def test_what_is_streamed_follows_the_times(n_to_stream: ctypes._CFuncPtr) -> None:
    even = [32] * 100
    # 32 pairs take the CPU 32 ms; a fast device behind a fast link does nearly everything
    assert ask(n_to_stream, 1e-3, 1e-6, 0.1e-3, even) == 99
    # uploads take a third of the CPU's time: it keeps a quarter
    assert ask(n_to_stream, 1e-3, 1e-6, 32e-3 / 3, even) == pytest.approx(75, abs=2)
    # a slow device behind a fast link counts as the link does
    assert ask(n_to_stream, 1e-3, 1e-3 / 3, 1e-6, even) == pytest.approx(75, abs=2)
    # a link that takes ten times the CPU's time gets a tenth
    assert 5 < ask(n_to_stream, 1e-3, 1e-6, 0.32, even) < 10
    # and one that takes longer than the CPU needs for all of them nothing
    assert ask(n_to_stream, 1e-3, 1e-6, 4, even) == 0
    # so much to do for residents that the device has no time
    assert ask(n_to_stream, 1e-3, 1e-3, 1e-6, even, resident=5000) == 0


def test_those_with_most_tokens_go_first(n_to_stream: ctypes._CFuncPtr) -> None:
    """An upload takes as long as ten pairs on the CPU."""
    cpu, device, upload = 1e-4, 1e-6, 1e-3
    assert ask(n_to_stream, cpu, device, upload, [1] * 20) == 0
    assert ask(n_to_stream, cpu, device, upload, [60] * 8 + [1] * 56) == 8
    assert ask(n_to_stream, cpu, device, upload, [64] * 64) > 50


def test_what_is_not_known_is_measured_first(n_to_stream: ctypes._CFuncPtr) -> None:
    assert ask(n_to_stream, 0, 1e-6, 1e-6, [32] * 100) == 0
    assert ask(n_to_stream, 1e-3, 0, 0, [32] * 100) == 4
    assert ask(n_to_stream, 1e-3, 0, 0, [32] * 3) == 2
    assert ask(n_to_stream, 1e-3, 1e-6, 1e-6, [32]) == 0
