"""The memory tier computes what stock computes, to the last bit, however little memory it has.

Stock is llama.cpp without repacking, whose kernels are the same.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from dotscli.errors import DotsError
from dotscli.hot.backend import library, plugin
from dotscli.hot.backend.plugin import Streaming
from dotscli.hot.expert_cache import ExpertBytes
from dotscli.hot.expert_files import in_file_order
from tests.dots1_gguf import Run, Type, batches, log, write_model
from tests.tier_kit import Tiered

if library.library_path() is None:
    pytest.skip("installed without native libraries", allow_module_level=True)

SHAPE = {"n_layers": 5, "n_experts": 20, "n_experts_used": 4}
SIZES = (1, 2, 7, 8, 9, 33, 512, 1, 1)
TYPES = [
    (Type.Q4_K, Type.Q5_0), (Type.Q4_0, Type.Q4_0), (Type.Q5_K, Type.Q5_1), (Type.Q6_K, Type.Q8_0),
    (Type.Q8_0, Type.F16), (Type.IQ4_NL, Type.IQ4_NL), (Type.IQ4_XS, Type.Q8_0),
    (Type.F32, Type.BF16),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with log():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ram") / "m.gguf"
    return write_model(path, Type.Q4_0, Type.Q8_0, **SHAPE)


def logits(path: Path, sizes: Sequence[int] = SIZES, **how: object) -> list[np.ndarray]:
    with Run(path, **how) as run:  # type: ignore[arg-type]
        return [run.decode(batch) for batch in batches(sizes)]


@pytest.fixture(scope="module")
def expected(model: Path) -> list[np.ndarray]:
    return logits(model)


def check(found: Tiered, expected: Sequence[np.ndarray], sizes: Sequence[int] = SIZES) -> None:
    for batch, wanted in zip(batches(sizes), expected, strict=True):
        np.testing.assert_array_equal(found.run.decode(batch), wanted)


@pytest.mark.parametrize(("up", "down"), TYPES, ids=lambda t: t.name)
def test_every_type_at_every_budget(up: Type, down: Type, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", up, down, **SHAPE)
    expected = logits(path)
    for share in (0.0, 0.2, 0.6, 1.1):
        with Tiered(path, share) as tiered:
            assert tiered.hot.n_tiered() == SHAPE["n_layers"] - 1
            check(tiered, expected)
            ram = tiered.hot.ram()
            assert ram.resident_nbytes <= tiered.nbytes(share)
            assert ram.read_nbytes > 0


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_threads_change_nothing(model: Path, n_threads: int) -> None:
    expected = logits(model, n_threads=n_threads)
    with Tiered(model, 0.15, n_threads=n_threads) as tiered:
        check(tiered, expected)


def test_evictions_in_every_token(model: Path) -> None:
    sizes = (1,) * 300
    expected = logits(model, sizes)
    with Tiered(model, 0.0) as tiered:
        check(tiered, expected, sizes)
        ram = tiered.hot.ram()
    n_pairs = len(sizes) * 4 * (SHAPE["n_layers"] - 1)
    assert ram.decode_hits + ram.decode_misses == n_pairs
    assert ram.decode_misses > 0.9 * n_pairs


def test_what_fits_is_read_once(model: Path) -> None:
    with Tiered(model, 1.1) as tiered:
        for batch in batches((64,) * 6):
            tiered.run.decode(batch)
        ram = tiered.hot.ram()
        n_experts = SHAPE["n_experts"] * (SHAPE["n_layers"] - 1)
        assert ram.read_experts <= n_experts
        assert ram.resident_experts == ram.read_experts


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_batch_reads_no_expert_twice(model: Path, share: float) -> None:
    with Tiered(model, share, n_ctx=2048) as tiered:
        for batch in batches((512, 512, 512)):
            before = tiered.hot.ram().read_experts
            tiered.run.decode(batch)
            n_experts = SHAPE["n_experts"] * (SHAPE["n_layers"] - 1)
            assert tiered.hot.ram().read_experts - before <= n_experts
        assert tiered.hot.ram().reread_experts == 0


@pytest.mark.parametrize("folder", [None, "/dev/shm"], ids=["disk", "tmpfs"])
def test_direct_and_buffered(
    folder: str | None, model: Path, tmp_path: Path, expected: list[np.ndarray]
) -> None:
    path = model
    if folder is not None:
        if not os.access(folder, os.W_OK):
            pytest.skip(f"no {folder}")
        path = Path(folder) / f"dots-tier-{os.getpid()}.gguf"
        shutil.copy(model, path)
    try:
        with Tiered(path, 0.2) as tiered:
            check(tiered, expected)
    finally:
        if path != model:
            path.unlink()


def test_warming_up_changes_nothing_and_spares_misses(
    model: Path, expected: list[np.ndarray]
) -> None:
    with Tiered(model, 1.1) as tiered:
        layers = range(1, SHAPE["n_layers"])
        heat = {layer: [float(e) for e in range(SHAPE["n_experts"])] for layer in layers}
        tiered.hot.warm(heat, in_file_order(tiered.parts))
        while tiered.hot.ram().resident_experts < SHAPE["n_experts"] * len(layers):
            threading.Event().wait(0.01)
        check(tiered, expected)  # the last one may still be on its way
        tiered.run.clear()
        before = tiered.hot.ram()
        check(tiered, expected)
        after = tiered.hot.ram()
        assert after.decode_misses == before.decode_misses
        assert after.prefill_misses == before.prefill_misses
        assert after.ahead_nbytes == after.read_nbytes


def test_memory_comes_and_goes_while_tokens_are_computed(
    model: Path, expected: list[np.ndarray]
) -> None:
    ended = threading.Event()
    with Tiered(model, 0.5) as tiered:

        def change() -> None:
            for share in itertools.cycle((0.0, 0.9, 0.1, 0.4)):
                if ended.wait(0.002):
                    return
                tiered.hot.set_ram(tiered.nbytes(share))

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(5):
                tiered.run.clear()
                check(tiered, expected)
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("streaming", [Streaming.NEVER, Streaming.ALWAYS])
def test_a_hot_device_beside_it(
    streaming: Streaming, model: Path, expected: list[np.ndarray]
) -> None:
    with Tiered(model, 0.25, "CPU") as tiered:
        tiered.hot.set_streaming(streaming)
        for layer in tiered.hot.layers():
            tiered.hot.reserve(layer.layer, 6)
            tiered.hot.set_residents(layer.layer, range(6))
        check(tiered, expected)
        for layer in tiered.hot.layers():
            tiered.hot.set_residents(layer.layer, range(9, 15))
        tiered.run.clear()
        check(tiered, expected)
        assert tiered.hot.counters().decode_hits > 0


def test_a_callback_that_looks_at_every_node(model: Path, expected: list[np.ndarray]) -> None:
    seen: set[str] = set()

    def wanted(name: str, _ask: bool) -> bool:
        seen.add(name)
        return True

    # the nodes of a batch come one by one then, and each wants all of its experts at once
    with Tiered(model, 0.3, eval_callback=wanted) as tiered:
        check(tiered, expected)
    assert any(name.startswith("ffn_moe_down") for name in seen)


def test_two_contexts_and_two_models_at_once(model: Path, expected: list[np.ndarray]) -> None:
    with (
        Tiered(model, 0.2) as one,
        Tiered(model, 0.5) as other,
        Run(model, beside=one.run) as second,
    ):
        for batch, wanted in zip(batches(SIZES), expected, strict=True):
            for run in (one.run, other.run, second):
                np.testing.assert_array_equal(run.decode(batch), wanted)


def test_nothing_is_left_when_it_is_closed(model: Path) -> None:
    def held() -> tuple[int, int]:
        files = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
        return files.count(str(model)), len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    with Tiered(model, 0.2) as tiered:
        tiered.run.decode([1, 2, 3])
    before = held()
    for _ in range(5):
        with Tiered(model, 0.2) as tiered:
            tiered.run.decode([1, 2, 3])
            assert held()[1] > before[1]
    assert held() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1 << 60}, {"n_experts": 0}, {"n_experts": 1 << 20}, {"expert_nbytes": 0},
        {"expert_nbytes": -1}, {"file": 7}, {"file": -1}, {"layer": -1}, {"layer": 1 << 30},
        {"part": 3}, {"part": -1}, {"n_experts": -5},
    ],
    ids=str,
)  # fmt: skip
def test_places_outside_of_the_file_are_refused(model: Path, wrong: dict[str, int]) -> None:
    right = {"layer": 1, "part": 0, "file": 0, "offset": 0, "expert_nbytes": 4096, "n_experts": 2}
    hot = plugin.backend().open(None)
    try:
        with pytest.raises(DotsError, match="can't be read when they are needed"):
            hot.read_from([model], [ExpertBytes(**(right | wrong))])
    finally:
        hot.loaded()
        hot.close()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    hot = plugin.backend().open(None)
    try:
        with pytest.raises(DotsError, match="can't be read when they are needed"):
            hot.read_from([tmp_path / "no.gguf"], [])
    finally:
        hot.loaded()
        hot.close()


def test_no_room_at_all_is_an_error_in_time_and_forgiven(
    model: Path, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another program takes all memory while tokens are computed, or experts uploaded."""
    monkeypatch.setattr(plugin, "PATIENCE_S", 0.3)
    with Tiered(model, 0.5, device="CPU") as tiered:
        tiered.hot.reserve(2, 1)
        tiered.hot.set_ram(0)
        began = time.monotonic()
        for batch in batches((1, 40)):
            assert tiered.run.try_decode(batch)
            assert "has no room for one more" in tiered.hot.failure()
            tiered.run.clear()
        with pytest.raises(DotsError, match="has no room for one more"):
            tiered.hot.place(2, 0, 3)
        assert time.monotonic() - began < 10
        tiered.hot.set_ram(tiered.nbytes(0.5))
        tiered.hot.place(2, 0, 3)
        tiered.run.clear()
        check(tiered, expected)
