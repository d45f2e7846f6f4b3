"""Experts reach the device by the faster of two ways, and the CPU leaves a core to who brings them.

Both ways are exact over a device that shows whatever is reused or freed too early.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from dotscli.hot.backend import library, plugin
from dotscli.hot.backend.plugin import HotModel, Streaming
from tests.dots1_gguf import Run, Type, batches, log, write_model
from tests.hot_devices import LaggingDevice, has_rpc, rpc_device

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

SIZES = (1, 33, 1)
N_EXPERTS = 20
N_TIMED = 10  # uploads that compare the two ways


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with log():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uploads") / "model.gguf"
    return write_model(path, Type.Q4_0, n_layers=3, n_experts=N_EXPERTS, n_experts_used=4)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, four experts; each part of one has 4.25 MiB."""
    path = tmp_path_factory.mktemp("uploads") / "large.gguf"
    return write_model(path, Type.F32, n_layers=2, n_ff_expert=4352, n_experts=4, n_experts_used=2)


def logits(path: Path, hot: HotModel | None = None) -> list[np.ndarray]:
    with Run(path, hot, n_ctx=2048) as run:
        return [run.decode(batch) for batch in batches(SIZES)]


class Uploads:
    """One after the other into the four slots of layer 1, each time another expert."""

    def __init__(self, hot: HotModel) -> None:
        self.hot, self.n = hot, 0

    def do(self, n: int) -> None:
        for _ in range(n):
            self.hot.place(1, self.n % 4, self.n % N_EXPERTS)
            self.n += 1


@pytest.mark.parametrize("slow", ["staged", "direct"])
def test_the_faster_way_is_kept(slow: str, lagging: LaggingDevice, model: Path) -> None:
    stock = logits(model)
    with lagging.with_pinned_memory(), lagging.slow_uploads(pinned=slow == "staged"):
        hot = plugin.backend().open(lagging.name)
        with Run(model, hot, n_ctx=2048) as run:
            hot.reserve(1, 4)
            uploads = Uploads(hot)
            uploads.do(N_TIMED)
            timed = hot.counters()
            assert timed.uploads == N_TIMED
            assert 2 * timed.direct_nbytes == timed.uploaded_nbytes  # in turn
            before = [lagging.uploaded_nbytes(pinned=pinned) for pinned in (False, True)]
            uploads.do(20)
            came = [lagging.uploaded_nbytes(pinned=pinned) for pinned in (False, True)]
            nbytes = hot.counters().uploaded_nbytes - timed.uploaded_nbytes
            expected = [nbytes, 0] if slow == "staged" else [0, nbytes]
            assert [now - then for now, then in zip(came, before, strict=True)] == expected
            assert hot.counters().direct_nbytes - timed.direct_nbytes == expected[0]
            for batch, right in zip(batches(SIZES), stock, strict=True):
                np.testing.assert_array_equal(run.decode(batch), right)


def test_the_ways_are_compared_anew(lagging: LaggingDevice, model: Path) -> None:
    """What was read from disk at first is in memory later."""
    with lagging.with_pinned_memory():
        hot = plugin.backend().open(lagging.name)
        with Run(model, hot, n_ctx=2048):
            hot.reserve(1, 4)
            uploads = Uploads(hot)
            with lagging.slow_uploads(pinned=False):
                uploads.do(N_TIMED)
            lagging.library.lag_set_max_pause_us(0)
            try:
                uploads.do(256 - N_TIMED)
                with lagging.slow_uploads(pinned=True):
                    uploads.do(N_TIMED)
                before = hot.counters()
                uploads.do(20)
                after = hot.counters()
            finally:
                lagging.library.lag_set_max_pause_us(200)
    direct = after.direct_nbytes - before.direct_nbytes
    assert direct == after.uploaded_nbytes - before.uploaded_nbytes


@pytest.mark.parametrize("slow", ["staged", "direct"])
def test_large_experts_in_pieces(slow: str, lagging: LaggingDevice, large: Path) -> None:
    """Of half a MiB where the driver takes them itself: a layer's own copies get their turn."""
    stock = logits(large)
    with lagging.with_pinned_memory(), lagging.slow_uploads(pinned=slow == "staged"):
        hot = plugin.backend().open(lagging.name)
        hot.set_streaming(Streaming.ALWAYS)
        with Run(large, hot, n_ctx=2048) as run:
            hot.reserve(1, 2)
            for i in range(N_TIMED + 4):
                hot.place(1, i % 2, i % 4)
                if i % 2:
                    for batch, right in zip(batches(SIZES), stock, strict=True):
                        np.testing.assert_array_equal(run.decode(batch), right)
                    run.clear()
            assert hot.counters().streamed_experts > 0
            assert hot.counters().direct_nbytes > 0
    assert lagging.largest_upload(pinned=False) == 512 << 10


def test_plain_memory_is_not_taken_for_pinned(lagging: LaggingDevice, model: Path) -> None:
    """Devices hand it out in silence where they can't pin any; staging in it would be a detour."""
    stock = logits(model)
    with lagging.with_plain_memory_for_pinned():
        hot = plugin.backend().open(lagging.name)
        with Run(model, hot, n_ctx=2048) as run:
            of_llama_cpp = lagging.n_plain_buffers()
            hot.reserve(1, 4)
            Uploads(hot).do(N_TIMED)
            for batch, right in zip(batches(SIZES), stock, strict=True):
                np.testing.assert_array_equal(run.decode(batch), right)
            counters = hot.counters()
            assert counters.direct_nbytes == counters.uploaded_nbytes + counters.streamed_nbytes
            assert lagging.n_plain_buffers() == of_llama_cpp
            assert hot.messages() == ()


def test_pieces_over_the_network(large: Path) -> None:
    if not has_rpc():
        pytest.skip("this llama.cpp has no RPC")
    stock = logits(large)
    with rpc_device() as name:
        hot = plugin.backend().open(name)
        with Run(large, hot, n_ctx=2048) as run:
            hot.reserve(1, 2)
            for i in range(2):
                hot.place(1, i, i)
            for batch, right in zip(batches(SIZES), stock, strict=True):
                np.testing.assert_array_equal(run.decode(batch), right)


# A thread fewer


@contextmanager
def exchanging(hot: HotModel) -> Iterator[None]:
    stop = threading.Event()

    def exchange() -> None:
        uploads = Uploads(hot)
        while not stop.wait(0.001):
            uploads.do(1)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_one_thread_fewer_while_experts_are_exchanged(lagging: LaggingDevice, model: Path) -> None:
    sizes = (1,) * 20
    with Run(model, n_threads=4, dense_on=lagging.name, op_offload=False) as run:
        expected = [run.decode(batch) for batch in batches(sizes)]
    hot = plugin.backend().open(lagging.name)
    with Run(model, hot, n_threads=4, dense_on=lagging.name, op_offload=False) as run:
        hot.reserve(1, 4)
        for batch, right in zip(batches(sizes), expected, strict=True):
            np.testing.assert_array_equal(run.decode(batch), right)
        assert hot.counters().spared_layers == 0
        run.clear()
        with exchanging(hot):
            time.sleep(0.05)
            for batch, right in zip(batches(sizes), expected, strict=True):
                np.testing.assert_array_equal(run.decode(batch), right)
        n_layers = 2 * len(sizes)
        assert 0 < hot.counters().spared_layers <= n_layers
        time.sleep(0.15)  # and a moment later all of them are back
        spared = hot.counters().spared_layers
        run.decode([1])
        assert hot.counters().spared_layers == spared


@pytest.mark.parametrize(("n_threads", "dense"), [(3, True), (4, False)])
def test_all_threads_where_there_are_few_or_others_take_turns(
    n_threads: int, dense: bool, lagging: LaggingDevice, model: Path
) -> None:
    """llama.cpp's own CPU backend computes with all: OpenMP would end and start one every time."""
    hot = plugin.backend().open(lagging.name)
    on = lagging.name if dense else None
    with Run(model, hot, n_threads=n_threads, dense_on=on, op_offload=False) as run:
        hot.reserve(1, 4)
        with exchanging(hot):
            time.sleep(0.05)
            for batch in batches((1,) * 5):
                run.decode(batch)
        assert hot.counters().uploads > 0
        assert hot.counters().spared_layers == 0
